"""Reference confidence: one pass of the student, kept with its identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

# ruff: noqa: E402
from typer.testing import CliRunner

from cp_agents.cli.app import app
from cp_agents.cues import assemble_cues
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.profiler import Profiler
from cp_agents.schema import Completion, UserRecord
from cp_agents.stores.forget import forget
from cp_agents.stores.students import promote, register
from cp_agents.stores.traces import TraceStore
from cp_agents.trainers.reference import load_reference, read_users, run_reference
from cp_agents.wire import WireAnswer, write_answer
from tests.student_models import make_adapter_student, make_student
from tests.support import PETS, RECORD, ScriptedBackend, answer

USERS = [{**RECORD, "user_id": f"u{i}", "posted": [f"my cat sleeps {i} hours"]} for i in range(3)]
OPTIONS = {"max_tokens": 16, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_student(tmp_path_factory.mktemp("students") / "s1")


def test_one_pass_is_a_run_that_resumes_and_forgets(student: Path, tmp_path: Path) -> None:
    store = tmp_path / "traces.db"
    users = tmp_path / "users.jsonl"
    users.write_text("".join(json.dumps(user) + "\n" for user in USERS), encoding="utf-8")
    run = run_reference(store, student, users, **OPTIONS)
    with TraceStore(store) as traces:
        rows = load_reference(traces, run, student)
        assert [row["user_id"] for row in rows] == ["u0", "u1", "u2"]
        assert [row["cues"] for row in rows] == [assemble_cues(UserRecord.from_dict(u)).text for u in USERS]
        assert all(set(row["c_ref"]) == set(PETS.names) for row in rows)
        before = traces.rows("select sample_id from samples")
        assert run_reference(traces, student, USERS, **OPTIONS) == run
        assert traces.rows("select sample_id from samples") == before, "no answer is drawn twice"
        forget(traces, "u1")
        assert [row["user_id"] for row in load_reference(traces, run, student)] == ["u0", "u2"]


def test_c_ref_is_what_the_student_states_and_one_where_it_says_nothing(
    student: Path, tmp_path: Path
) -> None:
    half = write_answer([WireAnswer("pet", "Cat", 5, "a bird that is not there")])
    said = {"u0": answer(confidence=4), "u1": half, "u2": "no idea"}
    with TraceStore(tmp_path / "traces.db") as store:
        run = run_reference(store, student, USERS, **OPTIONS)
        for user, text in said.items():
            _answer_instead(store, run, user, text)
        found = {row["user_id"]: row["c_ref"] for row in load_reference(store, run, student)}
    assert found == {"u0": {"pet": 4, "home": 4}, "u1": {"pet": 5, "home": 1}, "u2": {"pet": 1, "home": 1}}


def _answer_instead(store: TraceStore, run: str, user: str, text: str) -> None:
    """Store another answer over the student's, read as the run reads it."""
    from cp_agents.grounding import CueIndex, ground
    from cp_agents.parsing import parse_completion
    from cp_agents.stores.traces import NewSample

    [(record_id, cues)] = store.rows(
        "select record_id, cues from records where run_id = ? and user_id = ?", (run, user)
    )
    completion = Completion(index=0, text=text, finish_reason="stop")
    parsed = parse_completion(completion, PETS)
    settings = json.loads(store.run(run)["settings"])
    predictions = ground(parsed, CueIndex(cues), cap=settings["evidence_cap"])
    store.add_samples(record_id, "", [NewSample(completion, parsed.outcome, predictions)])


def test_a_run_of_another_student_is_refused(student: Path, tmp_path: Path) -> None:
    other = make_student(tmp_path / "other", seed=7)
    adapter = make_adapter_student(student, tmp_path / "adapter")
    with TraceStore(tmp_path / "traces.db") as store:
        run = run_reference(store, student, USERS, **OPTIONS)
        of_adapter = run_reference(store, adapter, USERS, **OPTIONS)
        assert len(load_reference(store, of_adapter, adapter)) == 3
        for wrong_run, wrong in ((run, other), (run, adapter), (of_adapter, student)):
            with pytest.raises(InputError, match="reference confidence of another student"):
                load_reference(store, wrong_run, wrong)


def test_a_moved_student_is_the_same_and_names_work(student: Path, tmp_path: Path) -> None:
    import shutil

    with TraceStore(tmp_path / "traces.db") as store:
        promote(store, "s1", register(store, "s1", student))
        run = run_reference(store, "s1", USERS, **OPTIONS)
        moved = Path(shutil.copytree(student, tmp_path / "moved"))
        assert load_reference(store, run, moved) == load_reference(store, run, "s1")


def test_runs_that_are_no_reference_are_refused(student: Path, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        run = run_reference(store, student, USERS, **OPTIONS)
        teacher = Profiler(
            backend=ScriptedBackend(lambda i: answer()), store=store, taxonomy=PETS, samples=1, run="teacher"
        )
        with pytest.raises(InputError, match="another student"):
            load_reference(store, teacher.run_id, student)
        for column, value, says in (
            ("finished_at", None, "is not finished"),
            ("samples", 10, "10 samples a record"),
            ("prompt_version", "else", "made with prompt else"),
            ("taxonomy_hash", "else", "made with taxonomy else"),
        ):
            before = store.run(run)[column]
            with store.transaction() as conn:
                conn.execute(f"update runs set {column} = ? where run_id = ?", (value, run))
            with pytest.raises(InputError, match=says):
                load_reference(store, run, student)
            with store.transaction() as conn:
                conn.execute(f"update runs set {column} = ? where run_id = ?", (before, run))
        assert load_reference(store, run, student)


def test_the_command(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.jsonl").write_text(json.dumps(USERS[0]) + "\n", encoding="utf-8")
    words = ["train", "reference", str(student), "--in", "users.jsonl", "--max-tokens", "16", "--run", "ref"]
    said = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert said == (
        "reference confidence of 1 users in run ref of traces.db; attributes by C_ref 1: 2, 2: 0, 3: 0, 4: 0, 5: 0\n"
    )


@pytest.mark.parametrize("who", ["nowhere/model", "s9", "."])
def test_the_command_makes_no_store_for_a_student_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.jsonl").write_text(json.dumps(USERS[0]) + "\n", encoding="utf-8")
    with pytest.raises(CpAgentsError) as error:
        CliRunner().invoke(app, ["train", "reference", who, "--in", "users.jsonl"], catch_exceptions=False)
    assert error.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["users.jsonl"]


def test_only_the_users_that_a_filter_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text(
        '{"user_id": "u2", "difficulty": 2}\n{"user_id": "u0", "difficulty": 4}\n', encoding="utf-8"
    )
    assert [user["user_id"] for user in read_users(USERS, kept)] == ["u0", "u2"]
    for text, says in (
        ('{"user_id": "u9"}', "1 of the 1 users of .* have no record, 'u9' the first"),
        ('{"user": "u9"}', 'line 1: the record has no "user_id"'),
        ("", "names no users"),
    ):
        kept.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=says):
            read_users(USERS, kept)


def test_bad_input_is_one_sentence(student: Path, tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        broken = tmp_path / "broken.jsonl"
        broken.write_text('{"user_id": "u1"}\nnot json\n', encoding="utf-8")
        with pytest.raises(InputError, match="line 2: not JSON"):
            run_reference(store, student, broken)
        broken.write_text("\n", encoding="utf-8")
        with pytest.raises(InputError, match="holds no user records"):
            run_reference(store, student, broken)
        with pytest.raises(InputError, match="holds no student"):
            run_reference(store, tmp_path, USERS)
        with pytest.raises(InputError, match="no student 's9'"):
            run_reference(store, "s9", USERS)
        assert not store.rows("select * from runs")
