"""Another backend over the records that a run has stored: the cues are the same bytes, the answers its own."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from cp_agents import Profiler
from cp_agents.cli.app import app
from cp_agents.cues import assemble_cues
from cp_agents.runner import run_batch, stored_records
from cp_agents.schema import UserRecord
from cp_agents.stores.traces import TraceStore
from tests.support import PETS, RECORD, ScriptedBackend, answer

USERS = [RECORD | {"user_id": f"u{i}", "posted": [f"my cat is {i}", "a@b.example wrote"]} for i in range(5)]


def profiler(store: TraceStore, backend: ScriptedBackend, run: str, **settings: object) -> Profiler:
    return Profiler(backend=backend, store=store, taxonomy=PETS, samples=3, run=run, **settings)  # type: ignore[arg-type]


async def test_a_stored_run_is_profiled_again_by_another_backend() -> None:
    store = TraceStore()
    teacher = profiler(store, ScriptedBackend(lambda i: answer("Cat")), "teacher")
    await teacher.aprofile_many(USERS)
    backend = ScriptedBackend(lambda i: answer("Dog"))
    backend.revision = "2"
    student = profiler(store, backend, "student", token_budget=64)
    records = stored_records(store, "teacher", {"u1", "u3"})
    report = await run_batch(student.context, records)
    assert (report.done, report.resumed, report.failed) == (2, 0, {})
    said = {p.user_id: p["pet"].tag for _, p in store.profiles("student")}
    assert said == {"u1": "Dog", "u3": "Dog"}
    copied = store.rows(
        "select user_id, cues, self_reported, tokens, dropped from records where run_id = ?", ("student",)
    )
    for user_id, *found in copied:
        [original] = store.rows(
            "select cues, self_reported, tokens, dropped from records where run_id = 'teacher' and user_id = ?",
            (user_id,),
        )
        assert tuple(found) == original
        assert found[0] == assemble_cues(UserRecord.from_dict(USERS[int(user_id[1:])])).text
        assert "a@b.example" not in found[0]


async def test_a_rerun_goes_on_where_it_stopped() -> None:
    store = TraceStore()
    await profiler(store, ScriptedBackend(lambda i: answer()), "teacher").aprofile_many(USERS)
    backend = ScriptedBackend(lambda i: answer("Fish"))
    backend.revision = "2"
    student = profiler(store, backend, "student")
    await run_batch(student.context, stored_records(store, "teacher", {"u0"}))
    calls = len(backend.calls)
    report = await run_batch(student.context, stored_records(store, "teacher"))
    assert (report.done, report.resumed) == (5, 1)
    assert len(backend.calls) == 5 * calls


async def test_one_graph_takes_both_kinds_of_input() -> None:
    store = TraceStore()
    teacher = profiler(store, ScriptedBackend(lambda i: answer("Cat")), "teacher")
    first = await teacher.graph.ainvoke({"record": RECORD})
    backend = ScriptedBackend(lambda i: answer("Dog"))
    backend.revision = "2"
    student = profiler(store, backend, "student")
    [record] = stored_records(store, "teacher")
    second = await student.graph.ainvoke({"stored": record.record_id})
    assert first["profile"]["profile"]["pet"]["tag"] == "Cat"
    assert second["profile"]["user_id"] == RECORD["user_id"]
    assert second["profile"]["profile"]["pet"]["tag"] == "Dog"


def test_run_name_in_place_of_a_file(tmp_path: Path) -> None:
    def cli(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    (tmp_path / "users.jsonl").write_text(json.dumps({"user_id": "u1", "watched": ["truck repair"]}) + "\n")
    store = ["--store", tmp_path / "t.db", "--samples", 3]
    cli("profile", tmp_path / "users.jsonl", "--out", tmp_path / "a.jsonl", "--run", "teacher", *store)
    replayed = f"replay:{tmp_path / 't.db'}#teacher"
    cli("profile", "run:teacher", "--out", tmp_path / "b.jsonl", "--backend", replayed, *store)
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.jsonl", "b.jsonl"))
    assert a["profile"] == b["profile"]
    assert (a["run_id"], b["run_id"]) == ("teacher", "teacher-replay")
    gone = CliRunner().invoke(app, ["profile", "run:nobody", "--out", str(tmp_path / "c"), *map(str, store)])
    assert gone.exit_code != 0
    assert "no run 'nobody'" in f"{gone.output}{gone.exception}"
