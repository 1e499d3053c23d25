"""A training run's folder: what a kill leaves behind is never taken for something finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cp_agents.errors import InputError
from cp_agents.trainers.card import CARD
from cp_agents.trainers.run_folder import COMPLETE, RunFolder, is_complete, mark_complete

SETTINGS = {"model": "m", "learning_rate": 1e-5, "out": "RUN"}


def checkpoint(run: RunFolder, step: int) -> Path:
    folder = run.checkpoint_at(step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "trainer_state.json").write_text("{}")
    mark_complete(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    assert folder.open(SETTINGS) is False
    return folder


def test_the_settings_are_written_and_the_same_ones_resume(run: RunFolder) -> None:
    assert json.loads((run.path / "config.json").read_text()) == SETTINGS
    assert RunFolder(run.path).open(SETTINGS) is True


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({**SETTINGS, "learning_rate": 1e-4}, "learning_rate 1e-05"),
        ({**SETTINGS, "seed": 3}, "seed null"),
        ({"model": "m", "learning_rate": 1e-5}, 'out "RUN"'),
    ],
)
def test_other_settings_are_refused_by_name(run: RunFolder, changed: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match="was begun with " + named):
        run.open(changed)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no training run"):
        RunFolder(tmp_path).open(SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_settings_is_a_sentence(run: RunFolder) -> None:
    (run.path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not a run's settings"):
        run.open(SETTINGS)


def test_the_newest_complete_checkpoint_counts(run: RunFolder) -> None:
    assert run.last_checkpoint() is None
    for step in (9, 10, 100):
        checkpoint(run, step)
    assert run.last_checkpoint() == run.checkpoint_at(100)


@pytest.mark.parametrize("broken", ["truncated", "missing", "unmarked", "marker cut", "marker of a list"])
def test_a_half_written_checkpoint_is_skipped_and_removed(run: RunFolder, broken: str) -> None:
    checkpoint(run, 5)
    bad = checkpoint(run, 10)
    if broken == "truncated":
        (bad / "model.safetensors").write_bytes(b"w" * 60)
    elif broken == "missing":
        (bad / "trainer_state.json").unlink()
    elif broken == "unmarked":
        (bad / COMPLETE).unlink()
    elif broken == "marker cut":
        (bad / COMPLETE).write_text('{"model.safe')
    else:
        (bad / COMPLETE).write_text("[1]")
    assert not is_complete(bad)
    assert run.last_checkpoint() == run.checkpoint_at(5)
    run.open(SETTINGS)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-5"]


def test_metrics_of_steps_that_are_taken_again_go(run: RunFolder) -> None:
    for step in range(1, 9):
        run.log(step, {"loss": 1.0 / step})
    checkpoint(run, 5)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert len(run.rows()) == 8
    run.open(SETTINGS)
    run.log(6, {"loss": 0.1})
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5, 6]


def test_metrics_without_a_checkpoint_begin_anew(run: RunFolder) -> None:
    run.log(0, {"loss": 1.0})
    run.open(SETTINGS)
    assert run.rows() == []


def test_the_model_appears_whole(run: RunFolder) -> None:
    with run.new_model() as folder:
        (folder / "model.safetensors").write_bytes(b"w")
        (folder / CARD).write_text("{}")
        assert not run.model.exists()
    assert run.is_finished
    assert sorted(path.name for path in run.model.iterdir()) == sorted(["model.safetensors", CARD])
    assert RunFolder(run.path).open(SETTINGS) is True
    assert run.is_finished


def test_a_model_that_failed_half_way_leaves_nothing(run: RunFolder) -> None:
    def fail() -> None:
        with run.new_model() as folder:
            (folder / "model.safetensors").write_bytes(b"w")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "config.json"]


def test_a_model_without_a_card_is_no_model(run: RunFolder) -> None:
    with pytest.raises(InputError, match="card"), run.new_model() as folder:
        (folder / "model.safetensors").write_bytes(b"w")
    assert not run.model.exists()


def test_plots_are_pictures_of_what_was_measured(run: RunFolder) -> None:
    pytest.importorskip("matplotlib")
    for step in range(5):
        run.log(step, {"loss": 2.0 - step / 5, "note": "x"})
    drawn = run.plot({"loss": ["loss", "note"], "metrics": ["parse_rate"]})
    assert [path.name for path in drawn] == ["loss.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
