"""Options of `benchmarks.gpu_student`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser(description: str, stages: Sequence[str]) -> argparse.ArgumentParser:
    """All options, with defaults that fit into 25 minutes of a large GPU."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("data", type=Path, help="folder with unlabelled.jsonl, users.jsonl and gold.jsonl")
    add("out", type=Path, help="folder of everything that is made")
    add("--model", default="smollm2", help="folder of weights, GGUF file or packaged model")
    add("--minutes", type=float, default=25.0, help="of this call")
    add("--until", choices=stages, help="the last stage of this call")
    add("--budget", type=_budget(stages), action="append", default=[], help="NAME=SECONDS, of one stage")
    add("--seed", type=int, default=0)
    add("--rows", type=int, help="answers sampled at a time outside of GRPO; on a GPU 1024 by default")
    add("--peak-tflops", type=float, default=989.0, help="of the device, in dense bf16: an H200's by default")

    data = made.add_argument_group("data")
    data.add_argument("--sft-users", type=int, default=10_000)
    data.add_argument("--rl-users", type=int, default=10_000)
    data.add_argument("--teacher-samples", type=int, default=10, help="M of the teacher")
    data.add_argument(
        "--evidence", action="store_true", help="teach quotations too: answers are half as long again"
    )
    data.add_argument("--shape", default="m", choices=("original", "uniform", "v", "lambda", "m"))

    sft = made.add_argument_group("SFT")
    sft.add_argument("--sft-learning-rate", type=float, default=3e-4)
    sft.add_argument("--sft-batch", type=int, default=64)
    sft.add_argument("--sft-epochs", type=float, default=2.0)
    sft.add_argument("--sft-steps", type=int, help="steps instead of epochs")
    sft.add_argument("--packing", action="store_true", help="rows share sequences; --sft-batch counts these")

    grpo = made.add_argument_group("GRPO")
    grpo.add_argument("--grpo-steps", type=int, default=45)
    grpo.add_argument("--self-steps", type=int, default=30, help="of the ablation with self-confidence")
    grpo.add_argument("--no-sft-steps", type=int, default=6, help="of the ablation without SFT")
    grpo.add_argument("--grpo-prompts", type=int, default=16, help="users a step")
    grpo.add_argument("--no-sft-prompts", type=int, default=8, help="users a step without SFT")
    grpo.add_argument("--grpo-rollouts", type=int, default=32, help="per user")
    grpo.add_argument("--grpo-learning-rate", type=float, default=1e-5)
    grpo.add_argument("--generation-batch", type=int, help="rollouts sampled at a time; by default what fits")
    grpo.add_argument("--rollout-backend", default="transformers", choices=("transformers", "vllm-colocate"))
    grpo.add_argument("--max-tokens", type=int, default=256, help="of an answer of a student")

    measured = made.add_argument_group("evaluation")
    measured.add_argument("--samples", type=int, default=5, help="M of every model but the teacher")
    measured.add_argument("--eval-users", type=int, help="the first so many users of users.jsonl")
    measured.add_argument(
        "--base-language", default="en", help="prompt of the base model, and of GRPO without SFT"
    )
    measured.add_argument("--base-max-tokens", type=int, default=288, help="of an answer to that prompt")
    return made


def _budget(stages: Sequence[str]):  # type: ignore[no-untyped-def]  # argparse takes the name for its message
    def budget(text: str) -> tuple[str, float]:
        name, _, seconds = text.partition("=")
        if name not in stages:
            raise argparse.ArgumentTypeError(f"no stage {name!r}: there are {', '.join(stages)}")
        try:
            return name, float(seconds)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {name}=SECONDS, found {text!r}") from None

    return budget
