"""`train sft`: supervised fine-tuning of a student on exported votes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cp_agents.cli import training_options as t


def sft(
    data: Annotated[Path, typer.Option("--data", help="Folder that `export sft` wrote.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="What to begin with: a folder, a GGUF file, smollm2, a cached ORG/NAME, or a student's folder.",
            show_default=False,
        ),
    ],
    out: t.Out,
    preset: t.Preset = "paper",
    lora: t.Lora = None,
    qlora: t.Qlora = False,
    lora_rank: t.LoraRank = None,
    lora_alpha: t.LoraAlpha = None,
    lora_dropout: Annotated[float | None, typer.Option("--lora-dropout", help="Dropout in it, 0..1.")] = None,
    lora_targets: t.LoraTargets = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Times that each row is seen.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Steps instead of epochs.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="At its highest.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Rows a step, over all processes.")] = None,
    device_batch: Annotated[
        int | None, typer.Option("--device-batch", help="Rows read at a time; as many as fit by default.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Most tokens of a row; longer rows are left out.")
    ] = None,
    packing: Annotated[
        bool | None, typer.Option("--packing/--no-packing", help="Several rows in one sequence, no padding.")
    ] = None,
    gradient_checkpointing: t.GradientCheckpointing = None,
    bf16: t.Bf16 = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the rows' order and the adapter.")] = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", help="Steps between rounds of profiling; 0: at the end.")
    ] = None,
    eval_users: Annotated[
        int | None, typer.Option("--eval-users", help="Held-out users profiled in a round; 0: none.")
    ] = None,
    eval_tokens: Annotated[
        int | None, typer.Option("--eval-tokens", help="Most tokens of an answer in a round.")
    ] = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="Gold JSONL to compare held-out users with too.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience", help="Rounds without a better macro-F1 that end training; keeps the best."
        ),
    ] = None,
    save_every: t.SaveEvery = None,
    ignore_memory: t.IgnoreMemory = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, steps and memory estimate, and stop.")
    ] = False,
) -> None:
    """Train a student on exported votes, or go on where the run in --out was stopped.

    What is not given is the preset's. Python: `cp_agents.trainers.sft.train_sft`.
    """
    given: dict[str, Any] = {
        "lora_rank": lora_rank, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "lora_targets": lora_targets,
        "epochs": epochs, "max_steps": max_steps, "learning_rate": learning_rate, "batch": batch,
        "device_batch": device_batch, "max_length": max_length, "packing": packing,
        "gradient_checkpointing": gradient_checkpointing, "bf16": bf16, "seed": seed, "eval_every": eval_every,
        "eval_users": eval_users, "eval_tokens": eval_tokens, "gold": gold, "patience": patience,
        "save_every": save_every, "mode": t.mode_of(lora, qlora),
    }  # fmt: skip
    from cp_agents.trainers.base_model import require_training
    from cp_agents.trainers.sft_config import sft_settings

    changes = {name: value for name, value in given.items() if value is not None}
    settings = sft_settings(preset, model=model, data=data, out=out, ignore_memory=ignore_memory, **changes)
    require_training("supervised fine-tuning")
    if dry_run:
        from cp_agents.trainers.sft_plan import plan_sft

        for name, value in plan_sft(settings, check=False).summary().items():
            typer.echo(f"{name}: {value}")
        return
    from cp_agents.trainers.sft import train_sft

    result = train_sft(settings, sys.stderr)
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks
        return
    shown = ("parse_rate", "macro_f1", "constant_macro_f1", "gold_macro_f1", "na_rate", "confidence")
    measured = ", ".join(f"{name} {result.metrics[name]:.3f}" for name in shown if name in result.metrics)
    typer.echo(
        f"student in {result.model} after {result.steps} steps" + (f": {measured}" if measured else "")
    )
