"""Provider batches over a real HTTP server: equal to live runs, submitted once, collected whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database
from typer.testing import CliRunner

from cp_agents import Profiler, TraceStore, forget
from cp_agents.backends.usage import Prices
from cp_agents.batch_run import run_by_batches
from cp_agents.cli.app import app
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.runner import BatchReport, Stop
from cp_agents.stores.batches import all_batches, open_batches
from cp_agents.stores.migrations import migrations
from tests.loopback_batches import BatchConfig, BatchServer, batch_server_process, running_batch_server
from tests.support import PETS, ScriptedBackend, answer

SAMPLES = 4


def users(n: int) -> list[dict[str, Any]]:
    return [
        {
            "user_id": f"user-{i}@mail.example",
            "watched": [f"video {i} about topic {i % 7}", "cooking"],
            "posted": [f"day {i}"],
        }
        for i in range(n)
    ]


def profiler(server: BatchServer | str, store: TraceStore | None = None, **options: Any) -> Profiler:
    url = server if isinstance(server, str) else server.url
    options = {"samples": SAMPLES, "run": "r", "base_url": url, "timeout": 5.0, **options}
    return Profiler("openai:m", store or TraceStore(), **options)


async def batched(p: Profiler, records: list[dict[str, Any]], **options: Any) -> BatchReport:
    try:
        return await run_by_batches(p.context, records, **{"poll_s": 0.02, **options})
    finally:
        await p.backend.aclose()


def answers(store: TraceStore) -> list[tuple[Any, ...]]:
    """All that a run's samples say, without when and at what cost."""
    return store.rows(
        "select user_id, sample_index, s.sampler, s.prompt_hash, s.outcome, s.error_type, s.text from samples s"
        " join records using (record_id) order by 1, 2"
    )


def profiles(store: TraceStore) -> list[dict[str, Any]]:
    return [profile.to_json() for _, profile in store.profiles("r")]


def failures(store: TraceStore) -> dict[str, int]:
    return dict(
        store.rows("select error_type, count(*) from samples where error_type is not null group by 1")
    )


# -- equal to a live run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", ["yes", "no"])
async def test_a_batched_run_equals_a_live_one(n: str) -> None:
    records = users(30)
    with running_batch_server(BatchConfig(honour_n=n == "yes", batch_delay_s=0.2)) as server:
        live, by_batch = profiler(server, n=n), profiler(server, n=n)
        await live.aprofile_many(records)
        await live.backend.aclose()
        before = len(server.requests)
        report = await batched(by_batch, records)
        assert len(server.requests) - before == (1 if n == "yes" else SAMPLES)  # the first record
    assert answers(by_batch.store) == answers(live.store)
    assert profiles(by_batch.store) == profiles(live.store)
    assert [len(b.lines) for b in server.batches] == [29 if n == "yes" else 29 * SAMPLES]
    assert (report.done, report.resumed, report.failed, report.stopped) == (30, 0, {}, False)
    assert report.meter.samples == 30 * SAMPLES
    assert report.calibrator is not None
    assert sum(report.statuses.values()) == 30 * len(by_batch.taxonomy.names)


async def test_the_first_record_finds_out_about_n_and_parameters() -> None:
    with running_batch_server(BatchConfig(unsupported=("max_tokens", "seed"))) as server:
        p = profiler(server)
        report = await batched(p, users(5))
    [made] = server.batches
    assert {line["body"]["n"] for line in made.lines} == {SAMPLES}
    for line in made.lines:
        assert not {"max_tokens", "seed"} & set(line["body"])
        assert line["body"]["max_completion_tokens"] == 1200
    assert failures(p.store) == {}
    assert report.done == 5


async def test_custom_ids_are_unique_and_tell_nothing_of_a_user() -> None:
    config = BatchConfig(honour_n=False)
    with running_batch_server(config) as server:
        for run in ("r", "other"):
            await batched(profiler(server, run=run), users(6))
    ids = [[line["custom_id"] for line in made.lines] for made in server.batches]
    assert [len(set(batch)) for batch in ids] == [5 * SAMPLES, 5 * SAMPLES]
    assert not set(ids[0]) & set(ids[1])
    assert all(re.fullmatch("[0-9a-f]{32}", custom_id) for batch in ids for custom_id in batch)
    assert "mail.example" not in json.dumps([made.lines for made in server.batches])


async def test_batches_keep_to_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_batch_server(BatchConfig(honour_n=False)) as server:
        p = profiler(server)
        await batched(p, users(11), batch_size=15)
        assert [len(made.lines) for made in server.batches] == [15, 15, 10]
        whole = answers(p.store)
        size = server.batches[0].bytes // 15
        monkeypatch.setattr("cp_agents.batch_run.MAX_BYTES", 7 * size)
        q = profiler(server)
        server.batches.clear()
        await batched(q, users(11))
    sizes = [made.bytes for made in server.batches]
    assert len(sizes) > 5
    assert all(part <= 7 * size for part in sizes)
    assert answers(q.store) == whole


async def test_what_the_store_or_the_cache_has_is_not_asked_for() -> None:
    store = TraceStore()
    with running_batch_server() as server:
        live = profiler(server, store)
        await live.aprofile_many(users(4))
        report = await batched(profiler(server, store), users(10))
        assert (report.done, report.resumed, report.meter.reused) == (10, 4, 0)
        report = await batched(profiler(server, store, run="again"), users(10))
        assert (report.done, report.meter.samples, report.meter.reused) == (10, 0, 10 * SAMPLES)
        await live.backend.aclose()
    assert [len(made.lines) for made in server.batches] == [5]


async def test_cost_is_by_the_prices_of_batches() -> None:
    with running_batch_server() as server:
        p = profiler(server, prices={"prompt": 10.0, "completion": 20.0})
        report = await batched(p, users(5), prices=Prices(1.0, 2.0, 0.5))
    rows = p.store.rows(
        "select user_id, sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(cost_usd) from samples"
        " join records using (record_id) group by 1 order by 1"
    )
    for i, (_, prompt, cached, completion, cost) in enumerate(rows):
        live, batch = prompt * 10 + completion * 20, (prompt - cached) + cached * 0.5 + completion * 2
        assert cost * 1e6 == pytest.approx(batch if i else live)
    assert report.meter.cost_usd == pytest.approx(sum(row[4] for row in rows))


# -- going on where it stopped ----------------------------------------------------------------------------


class StopOnce(Stop):
    """Requested as soon as something was said."""

    def say(self, text: str) -> None:
        self()


async def test_a_stopped_run_collects_what_it_submitted_and_submits_only_what_is_new() -> None:
    store, stop = TraceStore(), StopOnce()
    with running_batch_server(BatchConfig(batch_delay_s=0.6)) as server:
        report = await batched(profiler(server, store), users(6), stop=stop, say=stop.say)
        assert (report.stopped, report.done, report.calibrator) == (True, 1, None)
        [waiting] = open_batches(store, "r")
        assert (waiting.batch_id, waiting.requests) == ("batch_0", 5)
        report = await batched(profiler(server, store), users(9))
        assert (report.stopped, report.done, report.resumed) == (False, 9, 1)
    assert [len(made.lines) for made in server.batches] == [5, 2]
    assert open_batches(store, "r") == []
    assert [row["status"] for row in all_batches(store)] == ["completed", "completed"]
    assert len(answers(store)) == 9 * SAMPLES
    assert store.rows("select count(*) from batch_requests") == [(0,)]


def command(folder: Path, url: str, name: str) -> list[str]:
    return [
        sys.executable, "-m", "cp_agents", "profile", str(folder / "users.jsonl"), "--backend", "openai:m",
        "--base-url", url, "--store", str(folder / f"{name}.db"), "--out", str(folder / f"{name}.jsonl"),
        "--samples", str(SAMPLES), "--run", "r", "--n", "no", "--batch-api", "--batch-size", "60",
    ]  # fmt: skip


def events(log: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [row for row in rows if row["event"] == kind]


def wait_for(what: Any) -> None:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < 30, "it did not come"
        time.sleep(0.02)


def batch_ids(folder: Path) -> list[str]:
    path = folder / "broken.db"
    if not path.exists():
        return []
    try:
        rows = list(
            Database(path).query("select batch_id from batches where batch_id is not null order by 1")
        )
    except sqlite3.OperationalError:  # the table is not there yet
        return []
    return [row["batch_id"] for row in rows]


async def live_run(url: str, records: list[dict[str, Any]]) -> Profiler:
    p = profiler(url, n="no")
    await p.aprofile_many(records)
    await p.backend.aclose()
    return p


def test_killed_between_submitting_and_collecting_it_submits_nothing_twice(tmp_path: Path) -> None:
    records, log = users(31), tmp_path / "log.jsonl"
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(u) + "\n" for u in records))
    with batch_server_process("--batch-delay", "1.2", "--log", str(log), "--no-n") as url:
        live = asyncio.run(live_run(url, records))
        broken = command(tmp_path, url, "broken")
        process = subprocess.Popen(broken, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(batch_ids(tmp_path)) == 2)  # 120 requests, at most 60 a batch
        process.send_signal(signal.SIGKILL)
        process.wait()
        submitted, live_calls = events(log, "batch"), len(events(log, "received"))
        assert [row["requests"] for row in submitted] == [60, 60]
        with TraceStore(tmp_path / "broken.db") as store:
            assert store.rows("select count(*) from samples") == [(SAMPLES,)]
        said = subprocess.run(broken, check=True, capture_output=True, text=True)
        assert "31 of 31 records profiled" in said.stdout
        assert events(log, "batch") == submitted
        assert len(events(log, "upload")) == 2
        assert len(events(log, "received")) == live_calls
    assert batch_ids(tmp_path) == [row["id"] for row in submitted] == ["batch_0", "batch_1"]
    with TraceStore(tmp_path / "broken.db") as store:
        assert answers(store) == answers(live.store)
        assert profiles(store) == profiles(live.store)
    lines = [json.loads(line) for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert lines == profiles(live.store)


def test_ctrl_c_leaves_the_batches_at_the_endpoint(tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(u) + "\n" for u in users(4)))
    with batch_server_process("--batch-delay", "60") as url:
        broken = command(tmp_path, url, "broken")
        with subprocess.Popen(broken, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: batch_ids(tmp_path) == ["batch_0"])
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "batch_0: 12 requests submitted" in said
    assert "stopping: what was submitted goes on at the endpoint" in said
    assert "1 of 4 records are done" in said
    assert not (tmp_path / "broken.jsonl").exists()


def test_killed_at_random_instants_it_asks_for_every_sample_once(tmp_path: Path) -> None:
    """CP_AGENTS_KILLS=20 runs it at full length."""
    records, log = users(40), tmp_path / "log.jsonl"
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(u) + "\n" for u in records))
    rng = random.Random(5)
    with batch_server_process("--batch-delay", "0.3", "--log", str(log), "--no-n") as url:
        live = asyncio.run(live_run(url, records))
        broken = command(tmp_path, url, "broken")
        for _ in range(int(os.environ.get("CP_AGENTS_KILLS", "1"))):
            process = subprocess.Popen(broken, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.7, 1.8))
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(broken, check=True, capture_output=True)
    asked = [custom_id for row in events(log, "batch") for custom_id in row["custom_ids"]]
    assert len(asked) == len(set(asked))
    with TraceStore(tmp_path / "broken.db") as store:
        assert answers(store) == answers(live.store)
        assert profiles(store) == profiles(live.store)


def test_killed_before_it_could_note_the_id_it_finds_the_batch_again(tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(u) + "\n" for u in users(8)))
    log = tmp_path / "log.jsonl"
    with batch_server_process("--hang-after-create", "--log", str(log)) as url:
        broken = command(tmp_path, url, "broken")
        process = subprocess.Popen(broken, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: events(log, "batch"))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert batch_ids(tmp_path) == []
        said = subprocess.run(broken, check=True, capture_output=True, text=True)
    assert "batch_0: found again" in said.stderr
    assert len(events(log, "batch")) == len(events(log, "upload")) == 1
    assert batch_ids(tmp_path) == ["batch_0"]
    assert len((tmp_path / "broken.jsonl").read_text().splitlines()) == 8


async def test_a_submission_without_an_answer_is_looked_for_before_it_is_repeated() -> None:
    with running_batch_server(BatchConfig(hang_after_create=True)) as server:
        report = await batched(profiler(server, timeout=0.3), users(5))
    assert len(server.batches) == 1
    assert report.done == 5


async def test_a_batch_that_never_reached_the_endpoint_is_submitted_anew() -> None:
    store = TraceStore()
    with running_batch_server(BatchConfig(listed=False)) as server:
        p = profiler(server, store)
        await p.aprofile_many(users(2))
        with store.transaction() as conn:
            conn.execute(
                "insert into batches (batch_key, run_id, status, requests, created_at)"
                " values ('k', 'r', 'submitting', 3, '2026-01-01T00:00:00+00:00')"
            )
        report = await batched(p, users(5))
    assert (report.done, len(server.batches)) == (5, 1)
    assert [row["batch"] for row in all_batches(store)] == ["batch_0"]


def test_a_store_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    db = Database(tmp_path / "old.db")
    migrations.apply(db, stop_before="m002_batches")
    db.conn.close()
    with TraceStore(tmp_path / "old.db") as store:
        assert all_batches(store) == []


# -- partial failures -------------------------------------------------------------------------------------


async def test_failures_are_typed_and_asked_for_again_by_the_next_attempt() -> None:
    store = TraceStore()
    config = BatchConfig(honour_n=False, p_line_500=0.1, p_line_missing=0.1, p_line_expired=0.2, seed=3)
    with running_batch_server(config) as server:
        first = await batched(profiler(server, store), users(20))
        found = failures(store)
        assert set(found) == {"server_error", "timeout"}
        assert found == dict(first.meter.errors)
        assert (first.done, first.stopped) == (20, False)
        messages = {
            row[0] for row in store.rows("select distinct error_message from samples where error_type <> ''")
        }
        assert messages == {
            "the endpoint failed (500)",
            "the batch did not answer this request (batch_expired)",
            "the batch expired before this request was answered",
        }
        assert store.rows("select count(*) from samples") == [(20 * SAMPLES,)]
        failed = sum(found.values())
        config.p_line_500 = config.p_line_missing = config.p_line_expired = 0.0
        second = await batched(profiler(server, store), users(20))
        assert failures(store) == {}
        assert second.meter.samples == failed
        assert second.meter.errors == {}
        live = profiler(server)
        await live.aprofile_many(users(20))
        await live.backend.aclose()
    assert answers(store) == answers(live.store)
    assert profiles(store) == profiles(live.store)


async def test_fewer_answers_than_n_are_filled_up_by_failures() -> None:
    config, stop = BatchConfig(batch_delay_s=9), StopOnce()
    with running_batch_server(config) as server:
        p = profiler(server, n="yes")
        await batched(p, users(4), stop=stop, say=stop.say)
        config.honour_n, config.batch_delay_s = False, 0
        await batched(p, users(4))
    assert failures(p.store) == {"server_error": 3 * (SAMPLES - 1)}
    assert p.store.rows("select distinct error_message from samples where error_type <> ''") == [
        ("the endpoint gave 1 of 4 answers",)
    ]


async def test_an_error_that_all_requests_share_ends_the_run_and_stores_nothing_for_them() -> None:
    config, stop = BatchConfig(model="m", batch_delay_s=9), StopOnce()
    store = TraceStore()
    with running_batch_server(config) as server:
        await batched(profiler(server, store), users(4), stop=stop, say=stop.say)
        config.model, config.batch_delay_s = "gone", 0
        with pytest.raises(BackendError, match="the endpoint has no model 'm'") as ended:
            await batched(profiler(server, store), users(4))
        assert ended.value.error_type is ErrorType.NOT_FOUND
        assert store.rows("select count(*) from samples") == [(SAMPLES,)]
        config.model = "m"
        report = await batched(profiler(server, store), users(4))
    assert (report.done, len(server.batches), failures(store)) == (4, 2, {})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [({"api_key": "sk-right"}, "refused the key"), ({"model": "other"}, "has no model 'm'")],
)
async def test_a_wrong_key_or_model_shows_before_anything_is_uploaded(
    config: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with running_batch_server(BatchConfig(**config)) as server:  # type: ignore[arg-type]
        p = profiler(server)
        with pytest.raises(BackendError, match=sentence):
            await batched(p, users(3))
    assert (server.uploads, answers(p.store)) == ([], [])


async def test_a_file_that_is_too_large_for_the_endpoint() -> None:
    with running_batch_server(BatchConfig(most_bytes=20_000)) as server:
        p = profiler(server)
        with pytest.raises(BackendError, match=r"no file of this size \(413\): make the batches smaller"):
            await batched(p, users(20))
        assert all_batches(p.store) == []
        report = await batched(p, users(20), batch_size=2)
    assert (report.done, failures(p.store)) == (20, {})


async def test_an_endpoint_without_a_batch_api_says_so_and_keeps_the_first_record() -> None:
    with running_batch_server(BatchConfig(no_batches=True)) as server:
        p = profiler(server)
        with pytest.raises(BackendError, match=r"no batch API \(404\)"):
            await batched(p, users(3))
    assert len(answers(p.store)) == SAMPLES
    assert all_batches(p.store) == []


async def test_batches_beyond_the_endpoints_limit_wait_for_the_others() -> None:
    with running_batch_server(BatchConfig(most_in_flight=5, batch_delay_s=0.1)) as server:
        p = profiler(server)
        report = await batched(p, users(13), batch_size=4)
        assert (report.done, failures(p.store)) == (13, {})
        assert sum(made.error is None for made in server.batches) == 3
        assert any(made.error for made in server.batches)
        q = profiler(server)
        with pytest.raises(BackendError, match=r"did not take batch_.*: token_limit_exceeded") as ended:
            await batched(q, users(13))
        assert ended.value.is_retryable
        report = await batched(q, users(13), batch_size=4)
        assert (report.done, report.resumed) == (13, 1)
        assert sorted(server.files) == []


async def test_a_batch_that_fails_as_a_whole_does_not_lose_the_others() -> None:
    with running_batch_server(BatchConfig(fail={1: "invalid_json_line"}, batch_delay_s=0.1)) as server:
        p = profiler(server)
        with pytest.raises(
            BackendError, match="the endpoint did not take batch_1: invalid_json_line: "
        ) as ended:
            await batched(p, users(10), batch_size=3)
        assert ended.value.error_type is ErrorType.BAD_REQUEST
        assert p.store.rows("select count(distinct record_id) from samples") == [(7,)]
        report = await batched(p, users(10), batch_size=3)
    assert (report.done, report.resumed) == (10, 7)
    assert [len(made.lines) for made in server.batches] == [
        3,
        3,
        3,
        2,
    ]  # one of the second time was drawn live


async def test_a_batch_that_the_endpoint_has_lost_ends_the_run_and_the_next_one_submits_anew() -> None:
    stop = StopOnce()
    with running_batch_server(BatchConfig(batch_delay_s=9)) as server:
        p = profiler(server)
        await batched(p, users(4), stop=stop, say=stop.say)
        server.batches.clear()
        server.config.batch_delay_s = 0
        with pytest.raises(BackendError, match=r"does not know batch_0 any more.*the same command again"):
            await batched(p, users(4))
        report = await batched(p, users(4))
    assert (report.done, failures(p.store)) == (4, {})
    assert [row["status"] for row in all_batches(p.store)] == ["completed", "lost"]


async def test_results_that_are_gone_are_missing_lines() -> None:
    stop = StopOnce()
    with running_batch_server(BatchConfig(batch_delay_s=9)) as server:
        p = profiler(server)
        await batched(p, users(3), stop=stop, say=stop.say)
        server.config.batch_delay_s = 0
        server._state(server.batches[0])
        del server.files[server.batches[0].files["output_file_id"]]
        report = await batched(p, users(3))
    assert (report.done, failures(p.store)) == (3, {"server_error": 2 * SAMPLES})


async def test_an_endpoint_out_of_reach_while_polling_is_waited_for() -> None:
    with running_batch_server(BatchConfig(broken_polls=4)) as server:
        report = await batched(profiler(server), users(4))
    assert (report.done, server.config.broken_polls) == (4, 0)


# -- what happens while a batch is away -------------------------------------------------------------------


async def test_users_who_were_forgotten_changed_or_drawn_live_meanwhile() -> None:
    stop, said = StopOnce(), list[str]()
    store = TraceStore()
    with running_batch_server(BatchConfig(batch_delay_s=0.5)) as server:
        p = profiler(server, store)
        await batched(p, users(6), stop=stop, say=stop.say)
        forget(store, "user-3@mail.example")
        later = [u for u in users(6) if not u["user_id"].startswith("user-3")]
        later[1] = {**later[1], "posted": ["something else"]}
        await p.aprofile(later[2])
        drawn = [row for row in answers(store) if row[0].startswith("user-2")]
        report = await batched(p, later, say=said.append)
    assert (report.done, report.failed) == (5, {})
    assert [len(made.lines) for made in server.batches] == [5]  # the changed one was drawn live
    assert [row for row in answers(store) if row[0].startswith("user-2")] == drawn
    assert "batch_0: 8 samples stored, 0 failures, 1 lines ignored" in said
    [(cues,)] = store.rows("select cues from records where user_id like 'user-1%'")
    assert "something else" in cues
    assert not any(row[0].startswith("user-3") for row in answers(store))


async def test_nothing_of_a_user_stays_at_the_endpoint_and_no_key_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    path, said = tmp_path / "t.db", list[str]()
    with running_batch_server(BatchConfig(api_key="sk-very-secret-key", p_line_500=0.3)) as server:
        p = profiler(server, TraceStore(path))
        await batched(p, users(8), say=said.append)
        p.store.close()
        assert server.files == {}
        # requests and answers, and the errors where the server drew any
        assert set(server.uploads) < set(server.deleted)
    assert b"very-secret" not in b"".join(f.read_bytes() for f in tmp_path.iterdir())  # noqa: ASYNC240
    assert "secret" not in "".join(said)


# -- settings that cannot be ------------------------------------------------------------------------------


async def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with running_batch_server() as server:
        p = profiler(server)
        for size in (0, 50_001):
            with pytest.raises(InputError, match=f"a batch should have 1 to 50000 requests, found {size}"):
                await batched(p, users(1), batch_size=size)
    scripted = Profiler(ScriptedBackend(lambda i: answer()), taxonomy=PETS)
    with pytest.raises(InputError, match="scripted:m has no batch API: expected an openai:MODEL backend"):
        await run_by_batches(scripted.context, users(1))
    path = tmp_path / "users.jsonl"
    path.write_text(json.dumps(users(1)[0]) + "\n")
    for flag in ("--budget-usd", "--budget-tokens"):
        result = CliRunner().invoke(
            app,
            ["profile", str(path), "--out", str(tmp_path / "p.jsonl"), "--backend", "openai:m",
             "--base-url", server.url, "--batch-api", flag, "5", "--store", str(tmp_path / "t.db")],
        )  # fmt: skip
        assert isinstance(result.exception, InputError)
        assert str(result.exception).startswith("a budget cannot stop a batch once it is submitted")
