"""Supervised fine-tuning of tiny random models: what is learned, from which bytes, and what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")
pytest.importorskip("peft")

# ruff: noqa: E402
from cp_agents import Profiler
from cp_agents.backends.hf_files import find_model
from cp_agents.backends.hf_model import ChatModel
from cp_agents.errors import InputError
from cp_agents.exports import seal
from cp_agents.prompts.render import load_prompt
from cp_agents.schema import Message
from cp_agents.stores.student_card import check_whole
from cp_agents.stores.traces import TraceStore
from cp_agents.trainers.card import CARD, read_card
from cp_agents.trainers.data_card import SftCard, SftFilters, SftSource
from cp_agents.trainers.memory import Plan, Shape, check_memory, needed_bytes, rows_at_a_time
from cp_agents.trainers.run_folder import RunFolder
from cp_agents.trainers.sft import train_sft
from cp_agents.trainers.sft_config import SftSettings, sft_settings
from cp_agents.trainers.sft_data import export_sft
from cp_agents.trainers.sft_plan import plan_sft
from cp_agents.wire import WireAnswer, write_answer
from tests.support import PETS, RECORD
from tests.test_cli import run as cli
from tests.test_sft_data import pets
from tests.test_transformers_backend import make_model, make_tokenizer

PROMPT_VERSION = load_prompt(PETS, "en").version
WORDS = ("naps", "walks", "swims", "garden", "stairs", "tank", "leash", "purrs")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base")


def make_learner(folder: Path) -> Path:
    """A model begun in the usual way, which learns more readily than the one of the backend's tests."""
    tokenizer = make_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_row(number: int) -> dict[str, Any]:
    """A user whose pet and home follow from the words."""
    draw = random.Random(number)
    pet, home = draw.choice(["Cat", "Dog"]), draw.choice(["Flat", "House"])
    text = f"my {pet.lower()} in a {home.lower()} {draw.choice(WORDS)}"
    says = [WireAnswer("pet", pet, 4, text[:6]), WireAnswer("home", home, 3, home.lower())]
    return {
        "user_id": f"u{number}",
        "prompt": [{"role": "system", "content": "Pet?"}, {"role": "user", "content": text}],
        "completion": [{"role": "assistant", "content": write_answer(says)}],
        "tags": {"pet": pet, "home": home},
        "confidence": {"pet": 4, "home": 3},
        "gold": [],
    }


def write_data(folder: Path, train: int = 24, held_out: int = 6, **changes: Any) -> Path:
    """A folder of SFT data with `train` and `held_out` users."""
    folder.mkdir(parents=True)
    rows = [make_row(number) for number in range(train + held_out)]
    for name, chosen in (("train", rows[:train]), ("validation", rows[train:])):
        text = "".join(json.dumps(row) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    source = SftSource(
        run_id="teacher-1", backend="scripted", model="m", revision="1", samplers={}, samples=10, vote="weighted",
        calibrator="none", prompt_version=PROMPT_VERSION, created_at="2026-01-01",
    )  # fmt: skip
    values: dict[str, Any] = {
        "source": source, "language": "en", "prompt_version": PROMPT_VERSION,
        "taxonomy": PETS.model_dump(mode="json"), "taxonomy_hash": PETS.hash, "filters": SftFilters(),
        "reasoning": False, "evidence": True, "seed": 0, "validation": 0.2, "records": len(rows), "dropped": {},
        "failing": {}, "gold": 0, "ungrounded": 0, "balance": {},
        "files": {f"{name}.jsonl": seal(folder / f"{name}.jsonl") for name in ("train", "validation")},
    }  # fmt: skip
    card = SftCard.model_validate({**values, **changes})
    (folder / "card.json").write_text(card.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "sft")


def settings(base: Path, data: Path, out: Path, **changes: Any) -> SftSettings:
    values = {
        "model": str(base), "data": data, "out": out, "learning_rate": 5e-3, "batch": 8, "max_steps": 6,
        "eval_every": 0, "eval_users": 0, "save_every": 2, "bf16": False,
    }  # fmt: skip
    return sft_settings("cpu-smoke", **{**values, **changes})


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def rows_of(out: Path) -> list[dict[str, Any]]:
    return RunFolder(out).rows()


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "step_time"} for row in rows_of(out)]


# --- what is learned ---------------------------------------------------------------------------------------


def test_full_fine_tuning_learns_and_leaves_a_student(base: Path, data: Path, tmp_path: Path) -> None:
    result = train_sft(settings(base, data, tmp_path / "run", eval_users=4, eval_tokens=150, max_steps=8))
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(row["tokens"] > 0 and row["step_time"] > 0 for row in rows)
    before, after = weights(base), weights(result.model)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    card = read_card(result.model)
    assert (card.kind, card.stage, card.base, card.source_run) == ("full", "sft", str(base), "teacher-1")
    assert (card.taxonomy_hash, card.prompt_version) == (PETS.hash, PROMPT_VERSION)
    assert card.training["steps"] == result.steps == 8
    assert 0 <= card.metrics["parse_rate"] <= 1
    assert card.metrics["users"] == 4
    assert card.metrics["constant_macro_f1"] > 0
    assert rows[-1]["eval_parse_rate"] == card.metrics["parse_rate"] == result.metrics["parse_rate"]
    assert {path.name for path in (tmp_path / "run").glob("*.png")} >= {"loss.png", "profiling.png"}
    ChatModel(find_model(str(result.model)), device="cpu", dtype="float32", stop="</home>")


def test_lora_trains_an_adapter_and_leaves_the_base(base: Path, data: Path, tmp_path: Path) -> None:
    run = settings(
        base,
        data,
        tmp_path / "run",
        mode="lora",
        learning_rate=2e-2,
        lora_rank=4,
        lora_targets="q_proj,v_proj",
    )
    result = train_sft(run)
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"]
    learned = weights(result.model)
    assert len(learned) == 2 * 2 * 2  # layers, targets, A and B
    assert all(value.abs().max() > 0 for value in learned.values())  # B begins as zero
    config = json.loads((result.model / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(base), 4)
    assert read_card(result.model).kind == "adapter"
    again = train_sft(
        settings(result.model, data, tmp_path / "again", mode="lora")
    )  # goes on with the adapter
    assert read_card(again.model).base == str(base)
    more = weights(again.model)
    assert more.keys() == learned.keys()
    assert any(not torch.equal(more[name], learned[name]) for name in more)
    merged = train_sft(settings(result.model, data, tmp_path / "merged", max_steps=1, learning_rate=1e-9))
    assert read_card(merged.model).kind == "full"
    assert not torch.equal(
        weights(merged.model)["model.layers.0.self_attn.q_proj.weight"],
        weights(base)["model.layers.0.self_attn.q_proj.weight"],
    )


def test_rows_are_the_bytes_of_serving_and_only_answers_carry_loss(
    base: Path, data: Path, tmp_path: Path
) -> None:
    plan = plan_sft(settings(base, data, tmp_path / "run"))
    served = ChatModel(find_model(str(base)), device="cpu", dtype="float32", stop="</home>")
    assert plan.ends == served.ends
    raw = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for row, encoded in zip(raw, plan.rows, strict=True):
        messages = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
        assert encoded.prompt == served.encode(messages).ids
        assert served.text(encoded.answer) == row["completion"][0]["content"]
        assert encoded.answer[-1] in served.ends
        assert not set(encoded.answer[:-1]) & served.ends
        columns = encoded.columns()
        assert columns["input_ids"] == [*encoded.prompt, *encoded.answer]
        assert columns["labels"] == [-100] * len(encoded.prompt) + list(encoded.answer)


def test_the_loss_is_the_mean_over_the_answers_tokens(base: Path, data: Path, tmp_path: Path) -> None:
    run = settings(base, data, tmp_path / "run", max_steps=1, batch=24, device_batch=3)
    train_sft(run)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    total, count = 0.0, 0
    for row in plan_sft(run).rows:
        with torch.no_grad():
            logits = model(torch.tensor([[*row.prompt, *row.answer]])).logits[0]
        said = logits[len(row.prompt) - 1 : -1].log_softmax(-1)
        total -= float(said[torch.arange(len(row.answer)), torch.tensor(row.answer)].sum())
        count += len(row.answer)
    assert rows_of(tmp_path / "run")[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_packed_rows_do_not_see_each_other(base: Path, data: Path, tmp_path: Path) -> None:
    for name, packing in (("packed", True), ("padded", False)):
        train_sft(
            settings(base, data, tmp_path / name, packing=packing, max_length=512, max_steps=1, batch=24)
        )
    packed, padded = (rows_of(tmp_path / name)[0]["loss"] for name in ("packed", "padded"))
    assert packed == pytest.approx(padded, rel=1e-4)


def test_from_a_stored_run_to_a_student_that_serves(tmp_path: Path) -> None:
    """The command line on the real export; the student answers what it was trained on, asked by the same prompt."""
    base = make_learner(tmp_path / "base")
    with TraceStore(tmp_path / "traces.db") as store:
        pets(store, users=tuple(f"u{i}" for i in range(12)))
        export_sft(store, None, tmp_path / "sft", language="en-compact", validation=0.3)
    run = tmp_path / "run"
    flags = f"--data {tmp_path}/sft --model {base} --out {run} --preset cpu-smoke --no-bf16 --max-steps 90 --batch 2"
    flags += " --learning-rate 5e-3 --eval-users 3 --save-every 90 --eval-every 0"
    plan = cli("train", "sft", *flags.split(), "--dry-run")
    assert plan.code == 0
    assert "steps: 90" in plan.out
    assert "memory_needed_gb" in plan.out
    assert not run.exists()
    trained = cli("train", "sft", *flags.split())
    assert trained.code == 0
    assert f"student in {run / 'model'} after 90 steps: parse_rate 1.000, macro_f1 1.000" in trained.out
    assert "step 90: parse_rate 1.000" in trained.err
    check_whole(run / "model", "full")
    student = Profiler(f"transformers:{run / 'model'}", taxonomy=PETS, language="en-compact", samples=3)
    profile = student.profile({**RECORD, "posted": [*RECORD["posted"], "zz spoons"]})
    assert {name: value.voted for name, value in profile.attributes.items()} == {"pet": "Cat", "home": "Flat"}
    other = cli("train", "sft", *flags.split(), "--seed", "7")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "begun with seed 0" in other.err


# --- stopped and resumed -----------------------------------------------------------------------------------

CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from cp_agents.trainers.sft import train_sft
from cp_agents.trainers.sft_config import SftSettings
train_sft(SftSettings.model_validate_json(sys.argv[1]))
"""


def test_a_killed_run_goes_on_with_the_same_rows_to_the_same_weights(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """Steps of several epochs, dropout included, so that order and random numbers have to be kept."""
    shape = {
        "mode": "lora",
        "lora_dropout": 0.2,
        "max_steps": 24,
        "eval_every": 3,
        "eval_users": 2,
        "eval_tokens": 8,
    }
    unbroken = train_sft(settings(base, data, tmp_path / "unbroken", **shape))
    run = settings(base, data, tmp_path / "run", **shape)
    at = random.randint(3, 14)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, run.model_dump_json()], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 90
        while len(rows_of(run.out)) < at:
            assert child.poll() is None, "ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (run.out / "model").exists()
    result = train_sft(run)
    assert result.steps == unbroken.steps == 24
    assert result.resumed_from is not None
    assert at - 3 <= result.resumed_from
    assert untimed(run.out) == untimed(tmp_path / "unbroken")
    first, second = weights(unbroken.model), weights(result.model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert train_sft(run).steps == 24  # finished: nothing is trained again


def test_a_half_written_checkpoint_is_passed_over(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(base, data, tmp_path / "run")
    unbroken = weights(train_sft(settings(base, data, tmp_path / "unbroken")).model)

    from cp_agents.trainers import sft

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sft, "_finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_sft(run)
    last = run.out / "checkpoints" / "checkpoint-6"
    with (last / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    result = train_sft(run)
    assert result.resumed_from == 4
    assert [row["step"] for row in rows_of(run.out)] == [1, 2, 3, 4, 5, 6]
    found = weights(result.model)
    assert all(torch.equal(unbroken[name], found[name]) for name in unbroken)


def test_training_stops_when_profiling_gets_no_better_and_keeps_the_best(
    base: Path, data: Path, tmp_path: Path
) -> None:
    run = settings(
        base, data, tmp_path / "run", max_steps=20, learning_rate=1e-9, eval_every=1, eval_users=3, eval_tokens=8,
        patience=2,
    )  # fmt: skip
    result = train_sft(run)
    assert result.steps == 3  # the first round is never bettered
    card = read_card(result.model)
    assert card.training["kept_step"] == 1
    assert card.metrics["macro_f1"] == rows_of(run.out)[0]["eval_macro_f1"]
    assert sorted(path.name for path in (run.out / "checkpoints").glob("best-*")) == []


def test_the_best_round_outlives_a_better_one_that_a_kill_took(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cp_agents.trainers.sft_loop import RunKeeper

    scores = {1: 0.4, 2: 0.1, 3: 0.5}

    def profile(keeper: Any, _: object) -> dict[str, float]:
        step = keeper.trainer.state.global_step
        if step == 4 and scores[3] == 0.5:
            raise KeyboardInterrupt
        return {"macro_f1": scores.get(step, 0.1), "parse_rate": 1.0}

    monkeypatch.setattr(RunKeeper, "_profile", profile)
    run = settings(
        base, data, tmp_path / "run", max_steps=5, save_every=2, eval_every=1, eval_users=2, patience=9
    )
    with pytest.raises(KeyboardInterrupt):
        train_sft(run)
    scores[3] = 0.1  # on a GPU the same step need not come to the same
    result = train_sft(run)
    assert result.resumed_from == 2
    assert read_card(result.model).training["kept_step"] == 1
    assert sorted(path.name for path in (run.out / "checkpoints").glob("best-*")) == []


# --- mistakes ----------------------------------------------------------------------------------------------


def test_other_settings_and_other_data_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    train_sft(settings(base, data, tmp_path / "run", max_steps=1))
    with pytest.raises(InputError, match="begun with seed 0"):
        train_sft(settings(base, data, tmp_path / "run", max_steps=1, seed=1))
    with pytest.raises(InputError, match="begun with data_hash"):
        train_sft(settings(base, write_data(tmp_path / "other", 10), tmp_path / "run", max_steps=1))


def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(
    base: Path, data: Path, tmp_path: Path
) -> None:
    def refused(match: str, model: Path = base, folder: Path = data, **changes: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            train_sft(settings(model, folder, tmp_path / "run", **changes))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    refused("no rows to train on", folder=write_data(tmp_path / "empty", 0, 2))
    refused("holds no SFT data", folder=tmp_path)
    refused("fits into max_length 16", max_length=16)
    refused("fits into the model's context, 32", model=make_model(tmp_path / "short", context=32))
    refused("no linear layer 'c_attn'", mode="lora", lora_targets="c_attn")
    refused("batch 8 cannot be divided", device_batch=3)
    if not torch.cuda.is_available():
        refused("needs a GPU", mode="qlora")
    refused("epochs: ", epochs=float("inf"))
    gold = tmp_path / "gold.jsonl"
    for line, says in (
        ("\xff", "gold.jsonl line 1: not JSON"),
        ('{"user_id": "x", "truth": {"pet": "Cat"}}', "has none of the 6 users"),
        ('{"user_id": "u24", "truth": {"pet": "Horse"}}', "'Horse' is not a tag of 'pet'"),
        ('{"user_id": "u24", "truth": {"colour": "red"}}', "speaks of no attribute of pets"),
    ):
        gold.write_text(line + "\n")
        refused(says, gold=gold)
    refused("patience needs held-out users", folder=write_data(tmp_path / "alone", 4, 0), patience=1)
    bare = make_model(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    refused("no chat template", model=bare)


def test_a_student_of_another_taxonomy_prompt_or_base_is_refused(
    base: Path, data: Path, tmp_path: Path
) -> None:
    student = train_sft(settings(base, data, tmp_path / "run", mode="lora", max_steps=1)).model
    other = write_data(tmp_path / "other", taxonomy_hash="feedfeedfeed")
    with pytest.raises(InputError, match="another taxonomy"):
        plan_sft(settings(student, other, tmp_path / "x"))
    compact = load_prompt(PETS, "en-compact").version
    other = write_data(tmp_path / "prompt", language="en-compact", prompt_version=compact)
    with pytest.raises(InputError, match="another prompt"):
        plan_sft(settings(student, other, tmp_path / "x"))
    moved = make_model(tmp_path / "moved", seed=5)
    card = read_card(student).model_copy(update={"base": str(moved)})
    (student / CARD).write_text(card.model_dump_json())
    with pytest.raises(InputError, match="adapter for another base"):
        plan_sft(settings(student, data, tmp_path / "x"))


def test_too_little_memory_is_said_before_anything_is_loaded(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cp_agents.trainers import machine

    monkeypatch.setattr(machine, "memory", lambda device: (10_000_000, 10_000_000))
    with pytest.raises(InputError, match=r"too little memory .* 0\.0 GB are free; no setting would fit"):
        train_sft(settings(base, data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert plan_sft(settings(base, data, tmp_path / "run", ignore_memory=True)).steps == 6


def test_settings_name_the_field() -> None:
    with pytest.raises(InputError, match="no preset 'huge': there are paper, lora, cpu-smoke"):
        sft_settings("huge")
    with pytest.raises(InputError, match="batch"):
        sft_settings("paper", model="m", data="d", out="o", batch=0)
    paper = sft_settings("paper", model="m", data="d", out="o")
    assert (paper.learning_rate, paper.batch, paper.epochs, paper.mode) == (1e-5, 32, 2, "full")
    lora = sft_settings("paper", model="m", data="d", out="o", mode="lora")
    assert (
        lora.learning_rate
        == sft_settings("lora", model="m", data="d", out="o").learning_rate
        == pytest.approx(1e-4)
    )


def test_the_memory_estimate_names_the_smallest_change_that_fits() -> None:
    shape = Shape(
        parameters=8_000_000_000,
        linear=7_000_000_000,
        adapter=40_000_000,
        layers=36,
        hidden=4096,
        inner=12288,
    )
    full = Plan("full", rows=4, length=2048, bf16=True, checkpointing=True)
    needed = needed_bytes(shape, full, "cuda")
    assert needed > 8e9 * 18
    assert check_memory("m", shape, full, "cuda", free=2 * needed) == needed
    assert needed_bytes(shape, full._replace(shards=8), "cuda") < needed / 4
    assert needed_bytes(shape, full._replace(checkpointing=False), "cuda") > needed
    with pytest.raises(
        InputError, match=r"full fine-tuning with 4 rows of 2,048 tokens .* 40\.0 GB are free; LoRA would"
    ):
        check_memory("m", shape, full, "cuda", free=40_000_000_000)
    with pytest.raises(InputError, match=r"QLoRA with 1 row at a time .device_batch. would take"):
        check_memory("m", shape, full, "cuda", free=15_000_000_000)
    rows = [rows_at_a_time(shape, full, "cuda", share=32, total=total * 10**9) for total in (80, 200, 1000)]
    assert rows == sorted(rows)
    assert all(32 % count == 0 for count in rows)
    assert rows[0] == 1
