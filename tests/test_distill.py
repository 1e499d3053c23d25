"""The whole road with a tiny real model: what goes where, going on after a stop, and who is promoted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from typer.testing import CliRunner

from cp_agents import Profiler
from cp_agents.cli.app import app
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.stores.students import student, students
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy
from cp_agents.trainers.distill import distill
from cp_agents.trainers.distill_config import DistillSettings, distill_settings
from cp_agents.trainers.distill_verdict import verdict
from cp_agents.trainers.sft_rows import split_of
from tests.grpo_models import WORDS
from tests.student_models import make_student
from tests.support import PETS, RECORD, ScriptedBackend, answer
from tests.test_transformers_backend import make_model

USERS = 40


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher's run, and a model that says elements of the wire format at random."""
    folder = tmp_path_factory.mktemp("road")
    make_model(folder / "base", words=WORDS, end=3.0, context=4096)
    users = [RECORD | {"user_id": f"u{i}", "posted": [f"my cat sleeps {i} hours"]} for i in range(USERS)]
    backend = ScriptedBackend(lambda i: answer("Cat" if i else "Dog", evidence=""))
    with Profiler(backend=backend, store=folder / "traces.db", taxonomy=PETS, samples=3, run="teacher") as p:
        p.profile_many(users)
    return folder


def settings(road: Path, out: Path, **changes: Any) -> DistillSettings:
    given: dict[str, Any] = {
        "store": road / "traces.db",
        "run": "teacher",
        "base": str(road / "base"),
        "out": out,
        "preset": "cpu-smoke",
        "language": "en-compact",
        "validation": 0.2,
        "samples": 2,
        "max_tokens": 16,
        "shape": "original",
        "sft": {"max_steps": 2, "batch": 4, "eval_users": 2, "eval_tokens": 16, "bf16": False},
        "grpo": {"steps": 1, "prompts": 2, "rollouts": 2, "bf16": False},
        **changes,
    }
    return distill_settings(**given)


def copy(road: Path, to: Path) -> Path:
    return Path(shutil.copytree(road, to / "copy"))


def test_the_whole_road(road: Path, tmp_path: Path) -> None:
    here = copy(road, tmp_path)
    told: list[str] = []
    found = distill(settings(here, tmp_path / "out", name="s1", promote="always"), told.append)
    assert found.promoted
    assert [line.partition(":")[0] for line in told] == list(found.stages)
    with TraceStore(here / "traces.db") as store:
        chosen = student(store, "s1")
        assert chosen.label == found.student
        assert chosen.training["stage"] == "grpo"
        assert chosen.path == (tmp_path / "out" / "grpo" / "model").resolve()
        assert "held_out/parse_rate" in chosen.metrics
        runs = {
            name: {r[0] for r in store.rows("select user_id from records where run_id = ?", (name,))}
            for (name,) in store.rows("select run_id from runs")
        }
    held_out = {f"u{i}" for i in range(USERS) if split_of(f"u{i}", 0, 0.2) == "validation"}
    taught = {
        json.loads(line)["user_id"]
        for line in (tmp_path / "out" / "data" / "train.jsonl").read_text().splitlines()
    }
    assert runs[found.stages["calibrate"]["run"]] == held_out
    rl = runs[found.stages["reference"]["run"]]
    assert taught
    assert rl
    assert taught | rl | held_out == {f"u{i}" for i in range(USERS)}
    assert not (taught & rl) | (taught & held_out) | (rl & held_out)


def test_the_student_takes_the_teachers_place(road: Path, tmp_path: Path) -> None:
    here = copy(road, tmp_path)
    distill(settings(here, tmp_path / "out", skip=("grpo", "calibrate"), promote="always"))
    with Profiler(
        backend="student:student", store=here / "traces.db", taxonomy=PETS, samples=2, max_tokens=16
    ) as p:
        assert p.prompt.language == "en-compact"
        assert set(p.profile(RECORD)) == {"pet", "home"}


def test_a_road_goes_on_where_it_stopped(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, out = copy(road, tmp_path), tmp_path / "out"
    asked = settings(here, out, skip=("grpo",))

    def unplugged(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cp_agents.trainers.distill.Profiler", unplugged)
        with pytest.raises(KeyboardInterrupt):
            distill(asked)
    assert set(json.loads((out / "distill.json").read_text())["stages"]) == {"export", "sft"}
    weights = (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns
    told: list[str] = []
    distill(asked, told.append)
    assert [line for line in told if "done before" in line] == told[:2]
    assert (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    again: list[str] = []
    distill(asked, again.append)
    assert sum("done before" in line for line in again) == 4  # all but promote
    with pytest.raises(InputError, match="begun with seed = 0"):
        distill(settings(here, out, skip=("grpo",), seed=1))
    with pytest.raises(InputError, match="begun without grpo"):  # its users were taught already
        distill(settings(here, out))
    with TraceStore(here / "traces.db") as store:
        assert len(students(store, "student")) == 1


def test_two_roads_of_one_name_share_a_store(road: Path, tmp_path: Path) -> None:
    here = copy(road, tmp_path)
    found = [
        distill(settings(here, tmp_path / f"out{samples}", samples=samples, promote="always"))
        for samples in (1, 2)
    ]
    for stage in ("reference", "calibrate"):
        assert len({one.stages[stage]["run"] for one in found}) == 2
    with TraceStore(here / "traces.db") as store:
        assert student(store, "student").label == found[-1].student


def test_what_is_left_out_later_is_not_what_serves(road: Path, tmp_path: Path) -> None:
    here, out = copy(road, tmp_path), tmp_path / "out"
    whole = distill(settings(here, out, promote="always"))
    told: list[str] = []
    part = distill(settings(here, out, promote="always", skip=("grpo",)), told.append)
    assert [line.partition(":")[0] for line in told if "done before" in line] == ["export", "sft"]
    assert part.student != whole.student
    with TraceStore(here / "traces.db") as store:
        assert student(store, "student").path == (out / "sft" / "model").resolve()


def gold_of(path: Path, tag: str) -> Path:
    path.write_text(
        "".join(json.dumps({"user_id": f"u{i}", "truth": {"pet": tag}}) + "\n" for i in range(USERS))
    )
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base": "/nowhere/at/all"}, "no model"),
        ({"language": "tlh"}, "no prompt language"),
        ({"grpo": {"prompts": 128}}, "fall to GRPO and 128 are needed"),
        ({"validation": 1e-6}, "fall to the held-out ones and 1 are needed"),
        ({"shape": "m", "keep": 3, "grpo": {"prompts": 4}}, "the shape m keeps 3"),
        ({"gold": "bad"}, "'Horse' is not a tag of 'pet'"),
        ({"gold": "none"}, "cannot be read"),
        ({"run": "nobody"}, "holds no finished record"),
        ({"base": "stranger"}, "is a student of another taxonomy"),
    ],
)
def test_a_road_that_cannot_be_gone_is_not_begun(
    road: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    here = copy(road, tmp_path)
    if "gold" in changes:
        file = tmp_path / "gold.jsonl"
        changes = {"gold": gold_of(file, "Horse") if changes["gold"] == "bad" else file}
    if changes.get("base") == "stranger":
        changes = {"base": str(make_student(tmp_path / "stranger", taxonomy=load_taxonomy("profilebench")))}
    if changes.get("run") == "nobody":
        with Profiler(backend="lexicon", store=here / "traces.db", taxonomy=PETS, run="nobody") as profiler:
            profiler.profile_many([])
    asked = {**changes, "sft": {"max_steps": 1}}
    with pytest.raises(CpAgentsError, match=says):
        distill(settings(here, tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", ['{"settings', "[]", '{"settings": {}, "stages": []}'])
def test_a_state_that_is_none_is_one_sentence(road: Path, tmp_path: Path, state: str) -> None:
    (tmp_path / "distill.json").write_text(state)
    with pytest.raises(InputError, match="is not the state of a road"):
        distill(settings(road, tmp_path))


def test_a_file_in_the_place_of_the_folder_is_one_sentence(road: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        with pytest.raises(InputError, match=r"holds no road|cannot write"):
            distill(settings(road, out))
    assert file.read_text() == "mine"


def test_a_student_that_does_not_hold_is_not_promoted(road: Path, tmp_path: Path) -> None:
    here = copy(road, tmp_path)
    config = here / "cp-agents.toml"
    config.write_text("")
    words = [
        "--config", config, "distill", "--base", here / "base", "--out", tmp_path / "out",
        "--store", here / "traces.db", "--preset", "cpu-smoke", "--language", "en-compact",
        "--validation", "0.2", "--samples", "1", "--max-tokens", "16", "--skip", "grpo",
        "--sft", "max_steps=1", "--sft", "eval_users=0",
    ]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1, done.output
    assert "was not promoted" in done.output
    with TraceStore(here / "traces.db") as store:
        assert [one.promoted_at for one in students(store)] == [None]


@pytest.mark.parametrize(
    ("facts", "holds", "words"),
    [
        (None, False, "not compared"),
        ({"parse_rate": 0.97, "macro_f1": 0.9, "constant_macro_f1": 0.2}, False, "97.0% of its answers"),
        ({"parse_rate": 0.98, "macro_f1": 0.39, "constant_macro_f1": 0.2}, False, "0.400 is needed"),
        ({"parse_rate": 0.98, "macro_f1": 0.4, "constant_macro_f1": 0.2}, True, "0.400"),
        ({"parse_rate": 1.0, "macro_f1": 0.79, "constant_macro_f1": 0.6}, False, "0.800 is needed"),
        ({"parse_rate": 1.0, "macro_f1": 0.8, "constant_macro_f1": 0.6}, True, "0.800"),
        ({"parse_rate": 1.0, "macro_f1": None, "constant_macro_f1": 0.2}, False, "0.000"),
        (
            {
                "parse_rate": 1.0, "macro_f1": 0.9, "constant_macro_f1": 0.2, "gold_teacher": 0.5, "gold_student": 0.47,
            },
            False,
            "against gold is 0.470",
        ),
        (
            {
                "parse_rate": 1.0, "macro_f1": 0.9, "constant_macro_f1": 0.2, "gold_teacher": 0.5, "gold_student": 0.49,
            },
            True,
            "0.900",
        ),
    ],
)  # fmt: skip
def test_whether_a_student_holds(facts: dict[str, Any] | None, holds: bool, words: str) -> None:
    asked = distill_settings(store="s", run="r", base="b", out="o")
    assert verdict(facts, asked)[0] is holds
    assert words in verdict(facts, asked)[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"skip": ("sft",)}, "'sft' cannot be skipped"),
        ({"skip": ("lunch",)}, "skip.0"),
        ({"validation": 0}, "validation"),
        ({"sft": {"model": "x"}}, "sft.model is not to be set"),
        ({"grpo": {"store": "x"}}, "grpo.store is not to be set"),
        ({"name": "a@b"}, "a student's name"),
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"sft": {"batch": 0}}, "sft: batch"),
        ({"sft": {"sort": 1}}, "sft: sort"),
        ({"grpo": {"rollouts": 1}}, "grpo: rollouts: a group of 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        distill_settings(**{"store": "s", "run": "r", "base": "b", "out": "o", **changes})
