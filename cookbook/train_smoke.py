"""The whole road on a toy: a tiny model of random weights learns from lexicon votes and then profiles a user.

    make train-smoke            # or: python cookbook/train_smoke.py FOLDER

Nothing here is worth keeping but the order of the steps, which is the same for a real teacher and a real model:
a teacher's run, `distill`, and the student in the teacher's place. What to change for that stands at each step.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

USERS = 400
WATCHED = {
    "parent": ["stroller review", "bedtime songs for toddlers", "nursery school tour", "packed lunch ideas"],
    "student": ["exam revision timetable", "dorm room tour", "lecture notes app", "first year at university"],
    "driver": ["truck repair at the roadside", "long haul diary", "tyre pressure check", "night shift at the depot"],
    "retired": ["garden in retirement", "pension explained", "grandchildren visit", "slow walks by the sea"],
}  # fmt: skip
REPORTED = {
    "parent": ("Female", "35"),
    "student": ("Female", "20"),
    "driver": ("Male", "45"),
    "retired": ("Male", "70"),
}


def users() -> list[dict[str, Any]]:
    """Four kinds of people, who watch what their kind watches, and some of whom say who they are."""
    found = []
    draw = random.Random(0)
    for i in range(USERS):
        kind = list(WATCHED)[i % len(WATCHED)]
        gender, age = REPORTED[kind]
        watched = [f"{title} part {draw.randrange(100)}" for title in draw.sample(WATCHED[kind], 3)]
        reported = {"gender": gender, "age": age} if i % 3 else {"gender": gender}
        found.append({"user_id": f"u{i}", "watched": watched, "self_reported": reported})
    return found


def tiny_model(folder: Path, texts: list[str]) -> None:
    """A model of about a million random weights, with a tokenizer that knows the words of `texts`.

    For real: leave this out, and name a model (`--base Qwen/Qwen3-0.6B`, a folder, smollm2).
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    special = ["<|end|>", "<|turn|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])
    fast.chat_template = (
        "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def cp_agents(*words: str | Path) -> None:
    """Run a verb, as it would be typed."""
    print("$ cp-agents", *words, flush=True)
    subprocess.run([sys.executable, "-m", "cp_agents", *map(str, words)], check=True)


def main(folder: Path) -> None:
    """Everything, into an empty `folder`."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    store, people = folder / "traces.db", folder / "users.jsonl"
    people.write_text("".join(json.dumps(user) + "\n" for user in users()), encoding="utf-8")

    # 1. The teacher. For real: --backend openai:MODEL, and your own users.
    cp_agents("profile", people, "--out", folder / "teacher.jsonl", "--store", store, "--run", "teacher")

    import sqlite3

    with sqlite3.connect(store) as opened:
        texts = [
            row[0] for row in opened.execute("select text from samples union all select cues from records")
        ]
    base = folder / "tiny"
    if not base.is_dir():
        tiny_model(base, texts)

    # 2. From its traces to a student. For real: --preset paper or lora, and let the measurements decide (no --promote).
    cp_agents(
        "distill", "--store", store, "--run", "teacher", "--base", base, "--out", folder / "road",
        "--name", "smoke", "--preset", "cpu-smoke", "--language", "en-compact", "--max-tokens", "320",
        "--samples", "3", "--sft", "epochs=8", "--sft", "batch=8", "--sft", "learning_rate=0.003",
        "--sft", "eval_every=0",
        "--rl-share", "0.25", "--shape", "original", "--grpo", "steps=2", "--promote", "always",
    )  # fmt: skip

    # 3. The student in the teacher's place: one word is another.
    (folder / "one.jsonl").write_text(json.dumps(users()[1]) + "\n", encoding="utf-8")
    cp_agents(
        "profile", folder / "one.jsonl", "--out", folder / "student.jsonl", "--store", store,
        "--backend", "student:smoke", "--max-tokens", "320",
    )  # fmt: skip
    profile = json.loads((folder / "student.jsonl").read_text(encoding="utf-8"))["profile"]
    print(
        json.dumps({name: (value["tag"], value["confidence"]) for name, value in profile.items()}, indent=1)
    )
    print(f"the whole road in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "smoke"))
