"""GRPO for real, on tiny random models: settings, data, steps, resume, stop rules, two processes."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

# ruff: noqa: E402
from cp_agents.backends.hf_model import prompt_text, text_ids
from cp_agents.cli.app import app
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.prompts.render import load_prompt
from cp_agents.stores.reviews import answer_reviews
from cp_agents.stores.traces import TraceStore
from cp_agents.trainers import grpo_loop, machine
from cp_agents.trainers.base_model import find_base, load_base, load_tokenizer
from cp_agents.trainers.card import read_card, weights_hash, write_card
from cp_agents.trainers.confidence_reward import ConfidenceReward
from cp_agents.trainers.grpo import train_grpo
from cp_agents.trainers.grpo_config import grpo_settings, plan_batches
from cp_agents.trainers.grpo_data import load_grpo_data
from cp_agents.trainers.grpo_plan import plan_grpo
from cp_agents.trainers.run_folder import RunFolder
from cp_agents.trainers.stop_rules import StopRules, find_collapse
from tests.grpo_models import LANGUAGE, USERS, WORDS, make_policy, make_reference, tiny
from tests.student_models import make_adapter_student
from tests.support import PETS

ROOT = Path(__file__).parent.parent
NOWHERE = {"model": "m", "store": "t.db", "reference": "r", "out": "o"}


class Road:
    """A student, and a store with its reference run."""

    def __init__(self, folder: Path) -> None:
        self.student = make_policy(folder / "student")
        self.store = folder / "traces.db"
        self.reference = make_reference(self.store, self.student)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    torch.set_num_threads(1)
    return Road(tmp_path_factory.mktemp("grpo"))


def of(road: Road, out: Path, **changes: Any) -> Any:
    return tiny(road.student, road.store, road.reference, out, **changes)


# --- settings ------------------------------------------------------------------------------------------------------


def test_presets() -> None:
    paper = grpo_settings("paper", **NOWHERE)
    assert (paper.prompts, paper.rollouts, paper.steps) == (128, 32, 45)
    assert (paper.learning_rate, paper.beta, paper.temperature, paper.top_p) == (1e-6, 0.001, 1.0, 0.95)
    assert (paper.loss, paper.scale, paper.mode) == ("grpo", "group", "full")
    assert paper.reward.target == "online"
    assert paper.reward.weight == "reference"
    assert grpo_settings("lora", **NOWHERE).learning_rate == pytest.approx(10 * paper.learning_rate)
    assert grpo_settings("paper", mode="lora", **NOWHERE).learning_rate == pytest.approx(1e-5)
    assert grpo_settings("paper", mode="lora", learning_rate=3e-6, **NOWHERE).learning_rate == 3e-6


@pytest.mark.parametrize(
    ("preset", "changes", "says"),
    [
        ("papers", {}, "no preset 'papers'"),
        ("paper", {"rollouts": 1}, "a group of 1 agrees with its own vote"),
        ("paper", {"top_p": 0}, "top_p"),
        ("paper", {"reward": {"target": "loud"}}, "reward.target"),
        ("paper", {"rollout_backend": "vllm-server"}, "need its base URL"),
    ],
)
def test_settings_that_cannot_be(preset: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        grpo_settings(preset, **{**NOWHERE, **changes})


def test_a_step_is_cut_into_whole_groups() -> None:
    paper = grpo_settings("paper", **NOWHERE)  # 4,096 rollouts in groups of 32
    assert plan_batches(paper, 1, device=64, generation=1024) == (64, 64, 1024)
    assert plan_batches(paper, 2, device=60, generation=1000) == (32, 64, 512)
    assert plan_batches(paper, 1, device=64, generation=1024).per_generation(1) == 16
    small = paper.model_copy(update={"prompts": 3, "rollouts": 4})
    assert plan_batches(small, 2, device=4, generation=1) == (3, 2, 12)


@pytest.mark.parametrize(
    ("changes", "processes", "says"),
    [
        ({"prompts": 3, "rollouts": 3}, 2, "cannot be shared evenly by 2 processes"),
        ({"device_batch": 5}, 1, "device_batch 5 does not divide the 16 rollouts"),
        ({"generation_batch": 6}, 1, "generation_batch 6 cannot be.* multiple of 4 .* as 4, 8, 16"),
    ],
)
def test_a_step_that_cannot_be_cut(changes: dict[str, int], processes: int, says: str) -> None:
    settings = grpo_settings("cpu-smoke", **{**NOWHERE, **changes})
    with pytest.raises(InputError, match=says):
        plan_batches(settings, processes, device=4, generation=64)


@given(st.integers(1, 40), st.integers(2, 33), st.integers(1, 8), st.integers(1, 70), st.integers(1, 5000))
def test_every_cut_is_whole(prompts, rollouts, processes, device, generation) -> None:
    settings = grpo_settings("paper", **NOWHERE, prompts=prompts, rollouts=rollouts)
    if prompts * rollouts % processes:
        return
    found = plan_batches(settings, processes, device=device, generation=generation)
    assert found.device * found.accumulation * processes == prompts * rollouts
    assert found.generation % rollouts == prompts * rollouts % found.generation == 0
    assert found.generation == found.per_generation(processes) * found.device * processes
    assert found.device <= max(device, 1)


# --- stop rules ----------------------------------------------------------------------------------------------------

HEALTHY = {"confidence_mean": 3.0, "confidence/5": 0.2, "na_rate": 0.1, "parse_rate": 1.0}


def after(begin: dict[str, float], end: dict[str, float], rules: StopRules | None = None) -> str | None:
    rules = rules or StopRules(window=2)
    return find_collapse([{**HEALTHY, **begin}] * 2 + [{**HEALTHY, **end}] * 2, rules)


@pytest.mark.parametrize(
    ("begin", "end", "says"),
    [
        ({}, {}, None),
        (
            {},
            {"confidence_mean": 4.9, "confidence/5": 0.95},
            "confidence inflation.* 3.00 to 4.90 and 95% of answers",
        ),
        ({}, {"confidence_mean": 4.2, "confidence/5": 0.5}, None),  # surer, and still of all levels
        ({"confidence_mean": 4.8, "confidence/5": 0.9}, {"confidence_mean": 4.9, "confidence/5": 0.95}, None),
        ({}, {"na_rate": 0.45}, "NA collapse: the share of NA went from 10% to 45%"),
        ({"na_rate": 0.85}, {"na_rate": 0.95}, "NA collapse"),
        ({"na_rate": 0.95}, {"na_rate": 0.97}, None),  # records that tell nothing
        ({}, {"parse_rate": 0.4}, "format collapse.* went from 100% to 40%"),
        ({"parse_rate": 0.1}, {"parse_rate": 0.2}, None),  # a base model on its way
    ],
)
def test_stop_rules(begin: dict[str, float], end: dict[str, float], says: str | None) -> None:
    found = after(begin, end)
    if says is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(says, found)


def test_stop_rules_wait_for_two_windows_and_can_be_off() -> None:
    bad = {**HEALTHY, "parse_rate": 0.0}
    assert find_collapse([HEALTHY] * 2 + [bad], StopRules(window=2)) is None
    assert after({}, {"parse_rate": 0.0}, StopRules(window=2, parse_least=None)) is None
    assert after({}, {"na_rate": 1.0}, StopRules(window=2, na_rise=None, na_most=None)) is None
    assert (
        find_collapse([{}, {"na_rate": 0.2}, {}, {}], StopRules(window=1)) is None
    )  # steps without an answer


# --- data ----------------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_serving_and_labels_find_their_users(road: Road, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text('{"user_id": "u1", "truth": {"pet": "Dog"}}\n')
    users = tmp_path / "kept.jsonl"
    users.write_text("".join(json.dumps({"user_id": f"u{i}", "difficulty": 2}) + "\n" for i in (3, 1, 5)))
    with TraceStore(road.store) as store:
        [(record_id,)] = store.rows("select record_id from records where user_id = 'u3'")
        answer_reviews(store, record_id, {"home": ("House", None)}, "ann")
        said = {
            u: [(a, c) for a, c in rows]
            for u in ("u1", "u3", "u5")
            for rows in [
                store.rows(
                    "select attribute, confidence from predictions join samples using (sample_id) join records"
                    " using (record_id) where user_id = ? and predictions.outcome = 'ok'",
                    (u,),
                )
            ]
        }
    settings = of(road, tmp_path / "run", users=users, gold=gold, hybrid=True)
    data = load_grpo_data(settings, find_base(str(road.student)))
    prompt = load_prompt(PETS, LANGUAGE)
    with TraceStore(road.store) as store:
        cues = dict(store.rows("select user_id, cues from records"))
    assert [row["prompt"] for row in data.rows] == [
        [m.as_dict() for m in prompt.messages(cues[u])] for u in ("u1", "u3", "u5")
    ]
    assert [row["c_ref"] for row in data.rows] == [
        [dict(rows).get(name, 1) for name in PETS.names] for rows in said.values()
    ]
    assert [row["reviewed"] for row in data.rows] == [["", ""], ["", "House"], ["", ""]]
    assert [row["gold"] for row in data.rows] == [["Dog", ""], ["", ""], ["", ""]]
    assert load_grpo_data(of(road, tmp_path), find_base(str(road.student))).rows[3]["reviewed"] == ["", ""]


def test_users_that_cannot_be_trained_on(road: Road, tmp_path: Path) -> None:
    users = tmp_path / "kept.jsonl"
    users.write_text('{"user_id": "u1"}\n{"user_id": "stranger"}\n')
    with pytest.raises(InputError, match=r"1 of the 2 users .* no reference confidence in run .*'stranger'"):
        plan_grpo(of(road, tmp_path / "run", users=users))
    users.write_text('{"user_id": "u1"}\n')
    with pytest.raises(InputError, match="a step takes 2 different users and there are 1"):
        plan_grpo(of(road, tmp_path / "run", users=users))
    users.write_text('["u1"]\n')
    with pytest.raises(InputError, match=r"kept\.jsonl line 1: .*no .user_id"):
        plan_grpo(of(road, tmp_path / "run", users=users))
    with pytest.raises(InputError, match="no file at"):
        plan_grpo(of(road, tmp_path / "run", users=tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="fit with max_tokens 4,000 into the model's context of 4,096"):
        plan_grpo(of(road, tmp_path / "run", max_tokens=4000))
    assert not (tmp_path / "run").exists()


def test_reference_of_another_model_is_refused(road: Road, tmp_path: Path) -> None:
    other = make_policy(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match="reference confidence of another student"):
        plan_grpo(tiny(other, road.store, road.reference, tmp_path / "run"))
    bare = make_policy(tmp_path / "bare", seed=5, card=False)
    with pytest.raises(InputError, match="reference confidence of another model"):
        plan_grpo(tiny(bare, road.store, road.reference, tmp_path / "run", language=LANGUAGE))


def test_too_little_memory_is_said_before_loading(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda device: (10**8, 10**11))
    with pytest.raises(InputError, match=r"too little memory .* 0\.1 GB are free; less is taken by .*lora"):
        plan_grpo(of(road, tmp_path / "run"))
    assert plan_grpo(of(road, tmp_path / "run", ignore_memory=True)).needed > 10**8


# --- training ------------------------------------------------------------------------------------------------------


def comparable(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in ("step_time", "rollout_time", "epoch")}
        for row in RunFolder(run).rows()
    ]


def test_killed_and_resumed_it_comes_to_the_same(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []
    reward = ConfidenceReward.__call__

    def watched(self: ConfidenceReward, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.append([columns["record_id"], completions])
        return reward(self, prompts, completions, **columns)

    monkeypatch.setattr(ConfidenceReward, "__call__", watched)
    whole = train_grpo(of(road, tmp_path / "whole"))
    assert whole.model is not None
    assert (whole.steps, whole.resumed_from, whole.stopped_by) == (4, None, None)
    uninterrupted, on_log = [*seen], grpo_loop.GrpoKeeper.on_log

    def killed(self: Any, args: Any, state: Any, control: Any, logs: Any, **rest: Any) -> None:
        on_log(self, args, state, control, logs, **rest)
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(grpo_loop.GrpoKeeper, "on_log", killed)
    with pytest.raises(KeyboardInterrupt):
        train_grpo(of(road, tmp_path / "killed"))
    monkeypatch.setattr(grpo_loop.GrpoKeeper, "on_log", on_log)
    run = RunFolder(tmp_path / "killed")
    assert not run.is_finished
    broken = run.checkpoints / "checkpoint-3"  # as a kill in the middle of saving leaves it
    broken.mkdir()
    (broken / "trainer_state.json").write_text("{")
    seen.clear()
    resumed = train_grpo(of(road, tmp_path / "killed"))
    assert resumed.resumed_from == 2
    assert resumed.model is not None
    assert seen == uninterrupted[2:], "the same users, in the same order, with the same rollouts"
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
    assert weights_hash(resumed.model) == weights_hash(whole.model) != weights_hash(road.student)

    seen.clear()
    again = train_grpo(of(road, tmp_path / "whole"))  # finished: nothing is trained
    assert not seen
    assert (again.model, again.steps, again.metrics) == (whole.model, whole.steps, whole.metrics)
    with pytest.raises(InputError, match="was begun with seed 0"):
        train_grpo(of(road, tmp_path / "whole", seed=1))

    card = read_card(whole.model)
    assert (card.stage, card.kind, card.language) == ("grpo", "full", LANGUAGE)
    assert card.prompt_version == read_card(road.student).prompt_version
    assert card.training["data_hash"]
    for row in comparable(tmp_path / "whole"):
        shares = [row[f"confidence/{level}"] for level in range(1, 6)]
        assert sum(shares) == pytest.approx(1)
        assert row["reward_sum"] == pytest.approx(row["reward/pet"] + row["reward/home"])
        assert {"parse_rate", "na_rate", "majority_ratio", "tag_entropy", "kl"} <= row.keys()
    assert {p.name for p in (tmp_path / "whole").glob("*.png")} >= {"reward.png", "confidence.png"}


def test_the_policy_learns_what_people_said(tmp_path: Path) -> None:
    own = Road(tmp_path)
    with TraceStore(own.store) as store:
        for (record_id,) in store.rows("select record_id from records"):
            answer_reviews(store, record_id, {"pet": ("Cat", None), "home": ("House", None)}, "ann")
    settings = of(
        own, tmp_path / "run", hybrid=True, steps=10, rollouts=12, device_batch=24, learning_rate=0.004, beta=0.0,
        save_every=10,
    )  # fmt: skip
    assert train_grpo(settings).model is not None
    rewards = [row["reward_sum"] for row in RunFolder(tmp_path / "run").rows()]
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.5, rewards


def test_an_adapter_is_laid_over_a_student_and_trained_further(road: Road, tmp_path: Path) -> None:
    settings = of(road, tmp_path / "one", mode="lora", lora_rank=2, steps=2)
    first = train_grpo(settings)
    assert first.model is not None
    card = read_card(first.model)
    assert (card.kind, card.base, card.base_hash) == (
        "adapter",
        str(road.student),
        weights_hash(road.student),
    )
    reference = make_reference(road.store, first.model)
    second = train_grpo(tiny(first.model, road.store, reference, tmp_path / "two", mode="lora", steps=2))
    assert second.model is not None
    assert sorted(p.name for p in second.model.iterdir() if p.is_dir()) == []
    assert read_card(second.model).base == str(road.student)
    assert weights_hash(second.model) != weights_hash(first.model)
    load_base(str(second.model))
    write_card(first.model, card.model_copy(update={"base_hash": "else"}))
    with pytest.raises(InputError, match="adapter for another base"):
        plan_grpo(tiny(first.model, road.store, reference, tmp_path / "three"))


def test_rollouts_answer_the_tokens_that_serving_sends(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an adapter, merged: the frozen copy of the KL term is of the merged weights, not of the base."""
    from trl import GRPOTrainer

    sent: list[list[int]] = []
    generate = GRPOTrainer._generate_single_turn

    def watched(self: Any, prompt_ids: list[list[int]], *rest: Any, **named: Any) -> Any:
        sent.extend(prompt_ids)
        return generate(self, prompt_ids, *rest, **named)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", watched)
    adapter = make_adapter_student(road.student, tmp_path / "adapter", language=LANGUAGE)
    reference = make_reference(road.store, adapter)
    result = train_grpo(tiny(adapter, road.store, reference, tmp_path / "run", steps=1, beta=0.1))
    assert result.model is not None
    assert RunFolder(tmp_path / "run").rows()[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert read_card(result.model).kind == "full"
    assert not (tmp_path / "run" / "start").exists()

    tokenizer, prompt = load_tokenizer(find_base(str(adapter))), load_prompt(PETS, LANGUAGE)
    with TraceStore(road.store) as store:
        cues = store.rows("select cues from records where run_id = ?", (reference,))
    served = [list(text_ids(tokenizer, prompt_text(tokenizer, prompt.messages(text)))) for (text,) in cues]
    assert len(sent) == 8
    assert all(ids in served for ids in sent)


def test_grpo_without_sft(road: Road, tmp_path: Path) -> None:
    from cp_agents.profiler import Profiler
    from cp_agents.runner import run_batch

    base = make_policy(tmp_path / "base", seed=3, card=False)
    store = tmp_path / "traces.db"
    profiler = Profiler(
        backend=f"transformers:{base}", store=store, taxonomy=PETS, language=LANGUAGE, samples=1, max_tokens=16,
        run="base", extra={"device": "cpu", "dtype": "float32"},
    )  # fmt: skip
    from cp_agents.background import run_sync

    run_sync(run_batch(profiler.context, USERS, calibrator=None))
    settings = tiny(base, store, "base", tmp_path / "run", steps=1, language=LANGUAGE)
    result = train_grpo(settings)
    assert result.model is not None
    assert read_card(result.model).base == str(base)
    with pytest.raises(InputError, match="name the prompt language that it was made with"):
        plan_grpo(settings.model_copy(update={"language": "en"}))


def test_a_collapse_ends_the_run_without_a_model(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"window": 1, "parse_least": None, "na_rise": None, "confidence_rise": 0.0, "confidence_top": 0.0}
    lines: list[str] = []

    class Screen:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> None:
            lines.append(text)

        def flush(self) -> None:
            pass

    collapse = find_collapse

    def from_step_3(rows: Any, rules: StopRules) -> str | None:
        return collapse(rows, rules) if len(rows) < 3 else "confidence inflation: of all"

    monkeypatch.setattr(grpo_loop, "find_collapse", from_step_3)
    settings = of(road, tmp_path / "run", stop={**rules, "confidence_rise": 9.0}, save_every=1)
    result = train_grpo(settings, Screen())  # type: ignore[arg-type]
    assert result.model is None
    assert result.stopped_by == "confidence inflation: of all"
    assert result.steps == 3
    assert any("stopped at step 3: confidence inflation" in line for line in lines)
    run = RunFolder(tmp_path / "run")
    assert run.rows()[-1]["stopped_by"] == result.stopped_by
    last = run.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-2", "the one from before"
    monkeypatch.setattr(grpo_loop, "find_collapse", collapse)
    resumed = train_grpo(of(road, tmp_path / "run", stop={"confidence_rise": None}, save_every=1))
    assert (resumed.resumed_from, resumed.steps) == (2, 4)
    assert resumed.model is not None


# --- two processes -------------------------------------------------------------------------------------------------


def test_two_processes_reward_as_one(road: Road, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [
        {
            "text": rng.choice([" ".join(rng.sample(list(WORDS), 2)), "nothing", *WORDS]),
            "record_id": f"r{i // 4}",
            "c_ref": [1 + i // 4 % 5, 3],
            "gold": ["Cat", "House"],
        }
        for i in range(24)
    ]
    (tmp_path / "rollouts.json").write_text(json.dumps(rows))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "cookbook/accelerate/ddp.yaml"),
        "--main_process_port", str(port), "-m", "tests.two_processes", str(tmp_path / "rollouts.json"),
        str(tmp_path), str(road.student), str(road.store), road.reference,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    alone = ConfidenceReward(PETS, group_size=4)
    columns = {name: [row[name] for row in rows] for name in ("record_id", "c_ref", "gold")}
    expected = alone(None, [row["text"] for row in rows], **columns)
    assert [len(rank["rewards"]) for rank in ranks] == [10, 14]
    assert ranks[0]["rewards"] + ranks[1]["rewards"] == expected
    assert len(set(expected)) > 4
    for rank in ranks:
        assert rank["backend"] == "gloo"
        assert rank["metrics"] == pytest.approx(alone.metrics)
        assert "rollouts in this step and the group size is 4" in rank["short"]
        assert rank["model"] == str(tmp_path / "run" / "model")
    assert [row["step"] for row in RunFolder(tmp_path / "run").rows()] == [1, 2]
    assert read_card(tmp_path / "run" / "model").training["processes"] == 2


# --- the command ---------------------------------------------------------------------------------------------------


def command(road: Road, out: Path, *more: str) -> Any:
    options = ["--store", str(road.store), "--reference", road.reference, "--out", str(out)]
    return CliRunner().invoke(
        app, ["train", "grpo", "--model", str(road.student), *options, "--preset", "cpu-smoke", *more]
    )


def test_the_command(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--steps", "2", "--prompts", "2", "--rollouts", "3", "--max-tokens", "8")
    plan = command(road, tmp_path / "run", *small, "--lora", "--dry-run")
    assert "device_batch: 3\n" in plan.stdout
    assert "generation_batch: 6\n" in plan.stdout
    assert not (tmp_path / "run").exists()

    done = command(road, tmp_path / "run", *small, "--target", "rank", "--stop", "na_most=off")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"student in {tmp_path / 'run' / 'model'} after 2 steps: reward_sum ")
    assert read_card(tmp_path / "run" / "model").training["reward"]["target"] == "rank"

    monkeypatch.setattr(grpo_loop, "find_collapse", lambda rows, rules: "NA collapse: of all")
    stopped = command(road, tmp_path / "stopped", *small)
    assert isinstance(stopped.exception, CpAgentsError)
    assert stopped.exception.exit_code == 1
    assert str(stopped.exception).startswith(
        "training was stopped after 1 steps, and no model is given out: NA"
    )
    assert not (tmp_path / "stopped" / "model").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rollouts", "1"], "rollouts: a group of 1 agrees with its own vote"),
        (["--stop", "na_most"], "--stop should be NAME=VALUE or NAME=off, found 'na_most'"),
        (["--stop", "nothing=1"], "stop.nothing: "),
        (["--reference", "none"], "no run 'none' in the store"),
        (["--language", "zh"], "language: "),
        (["--beta", "inf"], "beta: "),
    ],
)
def test_the_command_refuses(road: Road, tmp_path: Path, more: list[str], says: str) -> None:
    refused = command(road, tmp_path / "run", *more)
    assert isinstance(refused.exception, CpAgentsError)
    assert refused.exception.exit_code == 2
    assert str(refused.exception).startswith(says)
    assert not (tmp_path / "run").exists()
