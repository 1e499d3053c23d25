"""Two processes do not draw the same run: the second says so, and a crashed one stands in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cp_agents import Profiler, TraceStore
from cp_agents.errors import InputError
from cp_agents.stores.held import held, lock_path
from tests.loopback import LoopbackConfig, running_server
from tests.support import PETS, RECORD, ScriptedBackend, answer


def profile(folder: Path, url: str, run: str, *more: str) -> list[str]:
    users = folder / "users.jsonl"
    users.write_text("".join(json.dumps({**RECORD, "user_id": f"u{i}"}) + "\n" for i in range(3)))
    return [
        sys.executable, "-m", "cp_agents", "profile", str(users), "--backend", "openai:m", "--base-url", url,
        "--store", str(folder / "t.db"), "--out", str(folder / f"{run}.jsonl"), "--samples", "2", "--run", run, *more,
    ]  # fmt: skip


@contextlib.contextmanager
def holding(folder: Path, url: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of run r."""
    process = subprocess.Popen(profile(folder, url, "r", *more), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not list(folder.glob("*.lock")):
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_second_process_is_told_and_a_crashed_one_is_taken_over(tmp_path: Path) -> None:
    with running_server(LoopbackConfig(latency_s=60)) as server:
        with holding(tmp_path, server.url) as first:
            second = subprocess.run(profile(tmp_path, server.url, "r"), capture_output=True, text=True)
            assert second.returncode == 2
            assert f"error: process {first.pid} on " in second.stderr
            assert "is working on run r of this store: wait for it, or name another run" in second.stderr
            assert not (tmp_path / "r.jsonl").exists()
            server.config.latency_s = 0
            assert subprocess.run(profile(tmp_path, server.url, "other"), capture_output=True).returncode == 0
            first.send_signal(signal.SIGKILL)
            first.wait()
        assert len(list(tmp_path.glob("*.lock"))) == 1, "a crash leaves the file, but not the lock"
        done = subprocess.run(profile(tmp_path, server.url, "r"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 3
    assert list(tmp_path.glob("*.lock")) == []


async def test_one_process_may_profile_several_users_of_a_run_at_once(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "t.db")
    p = Profiler(ScriptedBackend(lambda i: answer()), store, taxonomy=PETS, samples=2, run="r")
    batches = (p.aprofile_many([{**RECORD, "user_id": f"u{i}"}]) for i in range(5))
    for profiles, report in await asyncio.gather(*batches):
        assert (len(profiles), report.failed) == (1, {})
    assert not lock_path(store.path, "r").exists()


def test_a_file_that_its_holder_has_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, the holder may have ended and removed it."""
    with TraceStore(tmp_path / "t.db") as store:
        path, lock = lock_path(store.path, "r"), fcntl.flock
        removed: list[int] = []

        def late(file: int, how: int) -> None:
            lock(file, how)
            if not removed:
                removed.append(file)
                path.unlink()

        monkeypatch.setattr(fcntl, "flock", late)
        with held(store, "r"):
            assert path.read_text().startswith("process ")
            with path.open() as other, pytest.raises(BlockingIOError):
                lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_drive_without_locks_is_worked_on_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with TraceStore(tmp_path / "t.db") as store, caplog.at_level(logging.WARNING), held(store, "r"):
        assert "nothing keeps a second process from working on run r: No locks available" in caplog.text


def test_runs_of_one_store_are_held_one_by_one(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "t.db") as store:
        path = lock_path(store.path, "a/b:ä")
        with held(store, "a/b:ä"), held(store, "other"):
            assert path.parent == tmp_path
            with path.open("r+") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not path.exists()
        with path.open("w") as elsewhere:
            fcntl.flock(elsewhere, fcntl.LOCK_EX)
            with (
                pytest.raises(InputError, match="another process is working on run a/b:ä"),
                held(store, "a/b:ä"),
            ):
                pass
