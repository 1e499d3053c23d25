"""The GPU benchmark on a toy: its tables are whole, it goes on where it stopped, and time that is up is said."""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("matplotlib")

# ruff: noqa: E402
from benchmarks import gpu_student
from benchmarks.gpu_student import STAGES, main
from benchmarks.stages import Facts, OverTime, Stage, Stages
from benchmarks.student_measures import mfu
from benchmarks.student_tables import METRICS, MODELS
from cookbook.train_smoke import tiny_model, users
from cp_agents.errors import InputError
from cp_agents.profiler import Profiler
from cp_agents.trainers.run_folder import RunFolder

SFT, RL, GOLD = 40, 20, 4


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users with and without gold, and a model whose tokenizer knows their words."""
    folder = tmp_path_factory.mktemp("data")
    people = list(islice(users(), SFT + RL + GOLD))
    for name, part in (("unlabelled", people[: SFT + RL]), ("users", people[SFT + RL :])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(user) + "\n" for user in part))
    truth = {"gender": "Female", "age": "24-30", "industry": "NA"}
    gold = [{"user_id": user["user_id"], "truth": truth} for user in people[SFT + RL :]]
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    with Profiler("lexicon", samples=1) as profiler:
        profiler.profile_many(people[:8])
        texts = [
            row[0] for row in profiler.store.rows("select text from samples union select cues from records")
        ]
    tiny_model(folder / "tiny", [*texts, *(m.content for m in profiler.prompt.messages(texts[-1]))])
    config = json.loads((folder / "tiny" / "config.json").read_text())
    config["max_position_embeddings"] = 16384  # of rotary positions, so no weight hangs on it
    (folder / "tiny" / "config.json").write_text(json.dumps(config))
    return folder


def words(data: Path, out: Path, *more: str) -> list[str]:
    return (
        f"{data} {out} --model {data / 'tiny'} --sft-users {SFT} --rl-users {RL} --teacher-samples 3 --shape original"
        " --sft-batch 4 --sft-steps 2 --grpo-steps 2 --self-steps 1 --no-sft-steps 1 --grpo-prompts 2"
        " --no-sft-prompts 1 --grpo-rollouts 2 --max-tokens 24 --base-max-tokens 16 --samples 3"
    ).split() + list(more)


def test_every_row_is_there_and_it_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(words(data, out, "--until", "filter")) == 3
    state = json.loads((out / "state.json").read_text())["stages"]
    assert [name for name, entry in state.items() if entry["status"] == "done"] == [
        "teacher",
        "export",
        "filter",
    ]
    assert state["export"]["facts"]["rows"] > 0
    (out / "teacher.db").unlink()  # nothing behind the filter needs it
    assert "not reached" in (out / "results.md").read_text()

    log = RunFolder.log

    def rings(self: RunFolder, step: int, values: Any) -> None:
        if (self.path.name, step) == ("grpo", 2):
            raise OverTime  # as the alarm does, wherever training is
        log(self, step, values)

    monkeypatch.setattr(RunFolder, "log", rings)
    assert main(words(data, out, "--budget", "grpo-self=0", "--until", "grpo-no-sft")) == 3
    monkeypatch.undo()
    stages = json.loads((out / "results.json").read_text())["stages"]
    assert stages["grpo"]["why"] == "over its budget of 400 s"
    assert stages["eval-grpo"]["why"] == "needs grpo"
    assert not (out / "grpo" / "model").exists()
    assert stages["grpo-self"]["why"] == "over its budget of 0 s"
    assert stages["eval-grpo-self"]["why"] == "needs grpo-self"
    assert "over its budget of 0 s" in (out / "results.md").read_text()
    sft_made = (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns

    capsys.readouterr()
    assert main(words(data, out)) == 0
    said = capsys.readouterr().out
    assert "grpo-no-sft: done before" in said
    assert "grpo: done after" in said
    assert "all is done" in said
    assert (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == sft_made
    results = json.loads((out / "results.json").read_text())
    assert set(results["stages"]) == {stage.name for stage in STAGES}
    assert all(entry["status"] == "done" for entry in results["stages"].values())
    quality, by_tau, training, speed, took = results["tables"]
    assert [row[0] for row in quality["rows"]] == [label for label, _, _ in MODELS]
    assert tuple(quality["columns"][4:]) == METRICS
    assert {row[2].partition(",")[0] for row in quality["rows"]} == {"-", "en", "en-compact"}
    assert len(by_tau["rows"]) == 5 * len(MODELS)
    assert [row[0] for row in training["rows"]] == [
        "SFT+GRPO",
        "GRPO without SFT",
        "SFT+GRPO, self-confidence",
    ]
    assert [row[0] for row in took["rows"]] == [*(stage.name for stage in STAGES), "all"]
    assert any("rollouts sampled" in row[0] for row in speed["rows"])
    facts = {name: entry["facts"] for name, entry in results["stages"].items()}
    assert facts["sft"]["tokens_per_s"] > 0
    assert facts["sft"]["mfu"] is None  # of a GPU's peak, on a CPU
    assert facts["grpo"]["rollouts_per_s"] <= facts["grpo"]["sampled_per_s"]
    assert (facts["grpo"]["steps"], facts["grpo-self"]["steps"]) == (2, 1)
    assert facts["eval-teacher"]["parse_rate"] == 1
    teacher = facts["eval-teacher"]["at_tau"]
    assert [at["tau"] for at in teacher] == [1, 2, 3, 4, 5]
    assert 0 < teacher[0]["coverage"] <= 1
    assert all(facts[f"eval-{name}"]["users"] == GOLD for _, _, name in MODELS)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for label, _, _ in MODELS:
        assert f"| {label} |" in (out / "results.md").read_text()

    assert main(words(data, out, "--seed", "1")) == 2
    assert "seed = 0" in capsys.readouterr().err


def test_the_budgets_with_a_gpu_are_25_minutes_together() -> None:
    names = [stage.name for stage in STAGES]
    without_gpu = {"teacher", "export", "filter", "eval-teacher"}
    assert set(names[:4]) == without_gpu
    assert sum(stage.budget for stage in STAGES[4:]) <= 25 * 60
    assert all(names.index(need) < names.index(stage.name) for stage in STAGES for need in stage.needs)


def test_mfu_by_hand() -> None:
    # 6 x 10^8 parameters x 10^6 tokens are 6e14 operations; in 2 s on 1000 TFLOP/s that is 0.3.
    assert mfu(10**8, 10**6, 2.0, 1000.0) == pytest.approx(0.3)


# --- stages --------------------------------------------------------------------------------------------------------


def slow() -> Facts:
    time.sleep(20)
    return {}


def test_a_stage_over_its_budget_is_left_out_with_what_needs_it(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {}, 100, lambda _: None)
    began = time.monotonic()
    stages.run(Stage("slow", (), 0.2), slow)
    stages.run(Stage("next", ("slow",), 10), slow)
    assert time.monotonic() - began < 10
    assert stages.entries["slow"]["why"] == "over its budget of 0 s"
    assert stages.entries["next"]["why"] == "needs slow"
    stages.run(Stage("slow", (), 5), lambda: {"found": 1})  # with more time it is tried again
    assert stages.facts("slow") == {"found": 1}


def test_the_end_of_a_call_leaves_a_stage_open(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {}, 0.2, lambda _: None)
    stages.run(Stage("slow", (), 100), slow)
    stages.run(Stage("other", (), 100), slow)
    assert [entry["status"] for entry in stages.entries.values()] == ["open", "open"]
    again = Stages(tmp_path, {}, 100, lambda _: None)
    again.run(Stage("slow", (), 100), lambda: {"found": 2})
    assert again.facts("slow") == {"found": 2}
    assert again.entries["slow"]["seconds"] >= 0.2  # of both calls


def test_a_failure_costs_its_own_stage_and_is_told(tmp_path: Path) -> None:
    def broken() -> Facts:
        raise RuntimeError("no such kernel")

    stages = Stages(tmp_path, {}, 100, lambda _: None)
    stages.run(Stage("a", (), 10), broken)
    stages.run(Stage("b", (), 10), dict)
    assert stages.entries["a"]["why"] == "RuntimeError: no such kernel (see errors.log)"
    assert "no such kernel" in (tmp_path / "errors.log").read_text()
    assert stages.is_done("b")
    assert Stages(tmp_path, {}, 100).entries == stages.entries


def test_a_killed_call_took_an_unknown_time(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def dies() -> Facts:
        raise Killed

    stages = Stages(tmp_path, {}, 100, lambda _: None)
    with pytest.raises(Killed):
        stages.run(Stage("a", (), 10), dies)
    again = Stages(tmp_path, {}, 100, lambda _: None)
    again.run(Stage("a", (), 10), dict)
    assert again.entries["a"]["at_least"] is True


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Stages(tmp_path, {"seed": 0}, 100)
    with pytest.raises(InputError, match="seed = 0 and is asked to go on with 1"):
        Stages(tmp_path, {"seed": 1}, 100)


def test_the_script_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--no-sft-steps" in capsys.readouterr().out
    assert (gpu_student.__doc__ or "").count("--budget")
