"""What an endpoint can do is found out once and kept in the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cp_agents.backends.ensemble import EnsembleBackend
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.cli.app import app
from cp_agents.profiler import Profiler
from cp_agents.stores.endpoints import NO_HOLDS
from cp_agents.stores.traces import TraceStore
from tests.loopback import LoopbackConfig, LoopbackServer, running_server
from tests.support import RECORD

USERS = [{**RECORD, "user_id": f"u{i}"} for i in range(3)]


async def profile(store: TraceStore, backend: Any, seed: int = 0, **options: Any) -> None:
    profiler = Profiler(backend, store, samples=4, seed=seed, **options)
    _, report = await profiler.aprofile_many(USERS)
    assert report.meter.samples == 12
    await profiler.backend.aclose()


def sizes(server: LoopbackServer) -> list[int]:
    """How many samples each request asked for since the last look."""
    found = [request.n for request in server.requests]
    server.requests.clear()
    return found


async def test_that_n_is_ignored_is_found_out_once() -> None:
    store = TraceStore()
    with running_server(LoopbackConfig(honour_n=False)) as server:
        await profile(store, "openai:m", base_url=server.url)
        assert sizes(server).count(4) == 1
        await profile(store, "openai:m", 100, base_url=server.url)
        assert sizes(server) == [1] * 12
        await profile(store, "openai:other", base_url=server.url)
        assert sizes(server).count(4) == 1
    with running_server(LoopbackConfig(honour_n=False)) as moved:
        await profile(store, "openai:m", 200, base_url=moved.url)
        assert sizes(moved).count(4) == 1


async def test_that_n_is_honoured_is_kept_until_the_endpoint_says_otherwise() -> None:
    store = TraceStore()
    with running_server(LoopbackConfig()) as server:
        await profile(store, "openai:m", base_url=server.url)
        first = OpenAIBackend("m", base_url=server.url)
        Profiler(first, store)
        assert first.capabilities.n is True
        assert first.capabilities.prefix_cache is True
        server.config.honour_n = False
        await profile(store, "openai:m", 100, base_url=server.url)
    second = OpenAIBackend("m", base_url=server.url)
    Profiler(second, store)
    assert second.capabilities.n is False


async def test_what_is_declared_is_no_finding() -> None:
    store = TraceStore()
    with running_server(LoopbackConfig()) as server:
        await profile(store, "openai:m", base_url=server.url, n="no")
        assert sizes(server) == [1] * 12
        await profile(store, "openai:m", 100, base_url=server.url)
        assert sizes(server) == [4] * 3
        await profile(store, "openai:m", 200, base_url=server.url, n="no")
        assert sizes(server) == [1] * 12


async def test_a_server_that_never_answered_is_asked_again() -> None:
    store = TraceStore()
    backend = OpenAIBackend("m", base_url="http://127.0.0.1:9/v1", max_attempts=1)
    await Profiler(backend, store, samples=2).aprofile_many(USERS[:1])
    await backend.aclose()
    assert store.rows("select * from endpoints") == []


async def test_members_of_an_ensemble_are_kept_one_by_one() -> None:
    store = TraceStore()
    with running_server(LoopbackConfig(honour_n=False)) as one, running_server(LoopbackConfig()) as other:
        members = [OpenAIBackend("m", base_url=server.url) for server in (one, other)]
        await profile(store, EnsembleBackend(members))
        again = [OpenAIBackend("m", base_url=server.url) for server in (one, other)]
        Profiler(EnsembleBackend(again), store)
        assert [member.capabilities.n for member in again] == [False, True]


def test_doctor_finds_out_anew_for_the_runs_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with running_server(LoopbackConfig(honour_n=False)) as server:
        asked = ["doctor", "--backend", "openai:m", "--base-url", server.url]
        assert CliRunner().invoke(app, asked).exit_code == 0
        assert not Path("traces.db").exists()
        TraceStore("traces.db").close()
        assert CliRunner().invoke(app, asked).exit_code == 0
        with TraceStore("traces.db") as store:
            [(endpoint, found)] = store.rows("select endpoint, capabilities from endpoints")
        assert endpoint == server.url
        assert json.loads(found)["n"] is False
        server.config.honour_n = True
        assert CliRunner().invoke(app, asked).exit_code == 0
    with TraceStore("traces.db") as store:
        assert store.rows("select capabilities ->> 'n' from endpoints") == [(1,)]


def test_a_store_of_a_version_that_knew_more() -> None:
    store = TraceStore()
    known = json.dumps({"n": True, "telepathy": True})
    with store.transaction() as conn:
        conn.execute(
            "insert into endpoints values ('http://127.0.0.1:9/v1', 'openai:m', ?, '2026-01-01')", [known]
        )
    backend = OpenAIBackend("m", base_url="http://127.0.0.1:9/v1/")
    Profiler(backend, store)
    assert backend.capabilities.n is True


async def test_what_an_endpoint_could_not_do_is_asked_again_some_day() -> None:
    store = TraceStore()
    with running_server(LoopbackConfig(honour_n=False)) as server:
        await profile(store, "openai:m", base_url=server.url)
        sizes(server)
        server.config.honour_n = True  # it is upgraded
        checked = store.rows("select checked_at from endpoints")
        await profile(store, "openai:m", 100, base_url=server.url)
        assert sizes(server) == [1] * 12
        assert store.rows("select checked_at from endpoints") == checked
        with store.transaction() as conn:
            conn.execute("update endpoints set checked_at = ?", [f"{datetime.now(UTC) - NO_HOLDS:%Y-%m-%d}"])
        await profile(store, "openai:m", 200, base_url=server.url)
        assert sizes(server) == [4] * 3
    assert store.rows("select capabilities ->> 'n' from endpoints") == [(1,)]
