"""Batches over the real graph, store and HTTP server: failures, resume, kill -9, drain, relabelling."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cp_agents import Profiler, TraceStore, replay
from cp_agents.errors import BackendError, ErrorType
from cp_agents.relabel import partly_drawn
from cp_agents.runner import BatchReport, Stop, run_batch
from cp_agents.schema import Profile
from tests.loopback import LoopbackConfig, block_key, running_server, server_process
from tests.support import PETS, RECORD, ScriptedBackend, answer


def users(n: int) -> list[dict[str, Any]]:
    return [
        {
            "user_id": f"user-{i}",
            "watched": [f"video {i} about topic {i % 7}", "cooking at home"],
            "posted": [f"day {i}"],
        }
        for i in range(n)
    ]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


async def batch(
    url: str, records: list[dict[str, Any]], **options: Any
) -> tuple[list[Profile], BatchReport, Profiler]:
    run = {key: options.pop(key) for key in ("concurrency", "fanout", "calibrate") if key in options}
    p = Profiler(backend="openai:m", base_url=url, **{"samples": 10, **options})
    profiles, report = await p.aprofile_many(records, **run)
    await p.backend.aclose()
    return profiles, report, p


def decided(profiles: list[Profile]) -> list[dict[str, Any]]:
    """Comparable over runs: replay gives records in the order in which they were first seen."""
    return sorted(({**p.to_json(), "run_id": ""} for p in profiles), key=lambda line: str(line["user_id"]))


async def test_n_honoured_n_ignored_and_both_fanouts_give_the_same_profiles() -> None:
    found = {}
    for honour_n in (True, False):
        with running_server(LoopbackConfig(honour_n=honour_n)) as server:
            for fanout in ("node", "send"):
                profiles, report, _ = await batch(server.url, users(30), fanout=fanout)
                assert (report.done, report.failed, report.meter.samples) == (30, {}, 300)
                found[honour_n, fanout] = decided(profiles)
    assert all(profiles == found[True, "node"] for profiles in found.values())


async def test_a_bad_endpoint_loses_no_record_and_counts_every_failure() -> None:
    config = LoopbackConfig(honour_n=False, p_429=0.05, p_500=0.02, p_malformed=0.02, p_hang=0.01)
    with running_server(config) as server:
        profiles, report, p = await batch(server.url, users(30), timeout=0.4)
    assert len(profiles) == 30
    assert report.failed == {}
    assert p.store.rows("select count(*) from samples") == [(300,)]
    errors = dict(
        p.store.rows("select error_type, count(*) from samples where error_type is not null group by 1")
    )
    assert errors == dict(report.meter.errors)
    assert sum(report.meter.outcomes.values()) == 300


async def test_failures_that_last_become_typed_rows_and_a_later_run_asks_again() -> None:
    failing = True

    def script(i: int) -> str | Exception:
        return BackendError("no answer in 1 s", ErrorType.TIMEOUT) if failing and i % 3 == 0 else answer()

    backend, store = ScriptedBackend(script), TraceStore()
    records = [{**RECORD, "user_id": f"u{i}", "seen": [f"video {i}"]} for i in range(5)]

    async def run() -> BatchReport:
        p = Profiler(backend=backend, store=store, taxonomy=PETS, samples=4, run="r")
        return (await p.aprofile_many(records))[1]

    first = await run()
    assert dict(first.meter.errors) == {"timeout": 10}
    assert (first.done, first.resumed) == (5, 0)
    failing = False
    backend.calls.clear()
    second = await run()
    assert sorted({index for _, index in backend.calls}) == [0, 3]
    assert len(backend.calls) == 10
    assert second.meter.errors == {}
    backend.calls.clear()
    third = await run()
    assert (third.done, third.resumed, backend.calls) == (5, 5, [])


async def test_a_fatal_error_stops_the_run_and_keeps_what_landed() -> None:
    calls = 0

    def script(i: int) -> str | Exception:
        nonlocal calls
        calls += 1
        return answer() if calls <= 12 else BackendError("the budget of 12 calls is spent", ErrorType.BUDGET)

    store = TraceStore()
    p = Profiler(backend=ScriptedBackend(script), store=store, taxonomy=PETS, samples=4)
    records = [{**RECORD, "user_id": f"u{i}", "seen": [f"video {i}"]} for i in range(9)]
    with pytest.raises(BackendError, match="budget of 12 calls"):
        await p.aprofile_many(records, concurrency=1)
    assert store.rows("select count(*) from samples") == [(12,)]
    assert calls == 13


async def test_replay_leaves_out_records_in_the_middle_of_being_drawn() -> None:
    left = 14

    def script(i: int) -> str | Exception:
        nonlocal left
        left -= 1
        return answer() if left >= 0 else BackendError("the budget is spent", ErrorType.BUDGET)

    store = TraceStore()
    p = Profiler(backend=ScriptedBackend(script), store=store, taxonomy=PETS, samples=4, run="r")
    records = [{**RECORD, "user_id": f"u{i}", "seen": [f"video {i}"]} for i in range(9)]
    with pytest.raises(BackendError, match="budget is spent"):
        await p.aprofile_many(records, concurrency=1)
    assert store.rows("select count(*) from samples") == [(14,)]
    assert [profile.user_id for profile in replay(store)] == ["u0", "u1", "u2"]
    assert len(partly_drawn(store, "r", 4)) == 1
    left = 100
    profiles, _ = await p.aprofile_many(records)
    assert partly_drawn(store, "r", 4) == set()
    assert decided(list(replay(store))) == decided(profiles)


async def test_what_cannot_be_remembered_hides_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forgetful(store: TraceStore, backend: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cp_agents.runner.remember", forgetful)
    spent = BackendError("the budget is spent", ErrorType.BUDGET)
    with pytest.raises(BackendError, match="budget is spent"):
        await Profiler(ScriptedBackend(lambda i: spent), taxonomy=PETS, samples=2).aprofile_many([RECORD])
    done, _ = await Profiler(ScriptedBackend(lambda i: answer()), taxonomy=PETS, samples=2).aprofile_many(
        [RECORD]
    )
    assert len(done) == 1
    assert caplog.text.count("what was found out of the endpoint could not be kept (OSError)") == 2


async def test_a_bad_record_fails_alone() -> None:
    p = Profiler(backend=ScriptedBackend(lambda i: answer()), taxonomy=PETS, samples=2)
    profiles, report = await p.aprofile_many([RECORD, {"user_id": "u2", "posted": [3]}])
    assert [profile.user_id for profile in profiles] == ["u1"]
    assert report.failed == {
        "u2": '"posted" item 1 should be text, [text, weight] or {"text", "time", "count"}, found a number'
    }


async def test_drain_finishes_what_is_in_flight_and_starts_nothing_new() -> None:
    stop = Stop()
    p = Profiler(backend=ScriptedBackend(lambda i: answer()), taxonomy=PETS, samples=2)
    records = [{**RECORD, "user_id": f"u{i}", "seen": [f"video {i}"]} for i in range(50)]

    def enough(report: BatchReport) -> None:
        if report.done == 5:
            stop()

    report = await run_batch(p.context, records, concurrency=3, stop=stop, on_record=enough)
    assert report.stopped
    assert 5 <= report.done <= 8
    assert p.store.rows("select count(*) from profiles") == [(report.done,)]
    assert p.store.rows("select count(*) from samples") == [(2 * report.done,)]


async def test_a_batch_is_calibrated_on_its_own_votes_and_replay_agrees() -> None:
    with running_server(LoopbackConfig()) as server:
        profiles, report, p = await batch(server.url, users(60))
        uncalibrated, _, _ = await batch(server.url, users(60), calibrate=None)
        requests = len(server.requests)
        assert report.calibrator is not None
        assert {profile.calibrator for profile in profiles} == {report.calibrator.label}
        assert {profile.calibrator for profile in uncalibrated} == {"uncalibrated"}
        assert decided(list(replay(p.store))) == decided(profiles)
        assert decided(list(replay(p.store, calibrator=None))) == decided(uncalibrated)
        assert decided(list(replay(p.store, calibrator=report.calibrator))) == decided(profiles)
        strict = list(replay(p.store, vote="majority", tau=["5"]))
        assert len(server.requests) == requests
    accepted = [
        v.confidence for profile in strict for v in profile.attributes.values() if v.status == "accepted"
    ]
    assert accepted
    assert set(accepted) == {5}


# -- kill -9 ----------------------------------------------------------------------------------------------


def command(in_file: Path, out: Path, store: Path, url: str) -> list[str]:
    return [
        sys.executable, "-m", "cp_agents", "profile", str(in_file), "--backend", "openai:m", "--base-url", url,
        "--store", str(store), "--out", str(out), "--samples", "5", "--concurrency", "8", "--run", "r",
    ]  # fmt: skip


def stored_calls(store: Path) -> set[tuple[str, int]]:
    """(cue block, sample index) of every answer that had been committed."""
    if not store.exists():
        return set()
    traces = TraceStore(store)
    found = traces.rows("select r.cues, s.sample_index from samples s join records r using (record_id)")
    traces.close()
    return {(block_key(cues), index) for cues, index in found}


@pytest.mark.parametrize("honour_n", [True, False])
def test_killed_at_random_instants_and_resumed_it_equals_an_unbroken_run(
    tmp_path: Path, honour_n: bool
) -> None:
    """CP_AGENTS_KILLS=20 CP_AGENTS_KILL_RECORDS=500 runs it at full length."""
    kills = int(os.environ.get("CP_AGENTS_KILLS", "3"))
    records = int(os.environ.get("CP_AGENTS_KILL_RECORDS", "60"))
    in_file = write(tmp_path / "users.jsonl", users(records))
    log = tmp_path / "requests.jsonl"
    rng = random.Random(7)
    with server_process("--latency", "0.02", "--log", str(log), *([] if honour_n else ["--no-n"])) as url:
        unbroken = tmp_path / "unbroken.jsonl"
        subprocess.run(
            command(in_file, unbroken, tmp_path / "unbroken.db", url), check=True, capture_output=True
        )
        started = time.monotonic()
        out, store = tmp_path / "broken.jsonl", tmp_path / "broken.db"
        finished_before_kill: list[tuple[int, set[tuple[str, int]]]] = []
        for _ in range(kills):
            log_position = log.stat().st_size
            process = subprocess.Popen(
                command(in_file, out, store, url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(rng.uniform(0.6, 2.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished_before_kill.append((log_position, stored_calls(store)))
        position = log.stat().st_size
        last = subprocess.run(command(in_file, out, store, url), check=True, capture_output=True, text=True)
        assert time.monotonic() > started
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [json.loads(line) for line in unbroken.read_text().splitlines()]
    assert len(lines) == records
    assert lines == expected, last.stdout
    # What an attempt had committed when it was killed, no later attempt asked for again.
    asked = _asked(log)
    ends = [start for start, _ in finished_before_kill[1:]] + [position]
    for (_, committed), end in zip(finished_before_kill, ends, strict=True):
        later = {call for offset, calls in asked if offset >= end for call in calls}
        assert not committed & later


def _asked(log: Path) -> list[tuple[int, set[tuple[str, int]]]]:
    """Every request received: its offset in the log, and the (cue block, sample index) pairs it asked for."""
    found, offset = [], 0
    for line in log.read_bytes().splitlines(keepends=True):
        row = json.loads(line)
        if row["event"] == "received":
            found.append((offset, {(row["block"], row["seed"] + i) for i in range(row["n"])}))
        offset += len(line)
    return found


def test_ctrl_c_drains_and_the_same_command_goes_on(tmp_path: Path) -> None:
    in_file, out, store = write(tmp_path / "users.jsonl", users(60)), tmp_path / "p.jsonl", tmp_path / "t.db"
    with server_process("--latency", "0.15") as url:
        process = subprocess.Popen(
            command(in_file, out, store, url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len(stored_calls(store)) < 40:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert "the same command goes on from there" in said
        assert not out.exists()
        with TraceStore(store) as traces:
            [(profiles, samples)] = traces.rows(
                "select (select count(*) from profiles), count(*) from samples"
            )
        assert 0 < profiles < 60
        assert samples == 5 * profiles  # what was in flight was waited for, and nothing new was started
        done = subprocess.run(command(in_file, out, store, url), capture_output=True, text=True, check=True)
        assert f"{profiles} of them from before" in done.stdout
    assert len(out.read_text().splitlines()) == 60


async def test_a_report_counts_its_own_batch() -> None:
    p = Profiler(backend=ScriptedBackend(lambda i: answer()), taxonomy=PETS, samples=2)
    for name in ("a", "b"):
        _, report = await p.aprofile_many([{**RECORD, "user_id": name, "seen": [name]}])
        assert report.meter.samples == 2


async def test_a_dead_endpoint_ends_the_run_instead_of_failing_every_record() -> None:
    backend = ScriptedBackend(lambda i: BackendError("refused", ErrorType.CONNECTION))
    p = Profiler(backend=backend, taxonomy=PETS, samples=4)
    records = [{**RECORD, "user_id": f"u{i}", "seen": [f"video {i}"]} for i in range(200)]
    with pytest.raises(BackendError, match="is the endpoint up"):
        await p.aprofile_many(records, concurrency=4)
    assert len(backend.calls) < 100


async def test_extra_parameters_and_the_query_are_part_of_the_identity() -> None:
    identities = [
        Profiler(backend="openai:m", base_url=f"http://127.0.0.1:9/v1{query}", extra=extra).backend.identity
        for query in ("", "?api-version=1")
        for extra in ({}, {"reasoning_effort": "high"})
    ]
    assert len(set(identities)) == 4
    assert all("api-version" not in str(identity) for identity in identities)
