"""`train grpo`: reinforcement of a student by the confidence-guided reward."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cp_agents.cli import options as o
from cp_agents.cli import training_options as t


def grpo(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="The SFT student's folder; or any model as after transformers:, for GRPO without SFT.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str,
        typer.Option(
            "--reference", help="Run that `train reference` made of this student.", show_default=False
        ),
    ],
    out: t.Out,
    store: o.Store = o.DEFAULT_STORE,
    preset: t.Preset = "paper",
    users: Annotated[
        Path | None, typer.Option("--users", help="JSONL that `train filter` wrote; all users by default.")
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", help="Gold JSONL to compare targets with; nothing learns from it."),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Reviewed tags are the target where there are some.")
    ] = False,
    language: Annotated[
        str | None, typer.Option("--language", help="Prompt language for a model that is no student.")
    ] = None,
    lora: t.Lora = None,
    qlora: t.Qlora = False,
    lora_rank: t.LoraRank = None,
    lora_alpha: t.LoraAlpha = None,
    lora_targets: t.LoraTargets = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Updates of the weights.")] = None,
    prompts: Annotated[int | None, typer.Option("--prompts", help="Users a step.")] = None,
    rollouts: Annotated[
        int | None, typer.Option("--rollouts", help="Rollouts a user: the group that votes.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Constant.")] = None,
    beta: Annotated[
        float | None, typer.Option("--beta", help="Weight of the KL divergence; 0: none.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of the rollouts.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Of the rollouts.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Most tokens of a rollout.")] = None,
    loss: Annotated[str | None, typer.Option("--loss", help="grpo, bnpo, dr_grpo or dapo.")] = None,
    scale_rewards: Annotated[
        str | None, typer.Option("--scale-rewards", help="What divides advantages: group, batch or none.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Confidence in the target's vote: online, clipped, rank or none."),
    ] = None,
    weight: Annotated[
        str | None, typer.Option("--weight", help="What weighs rewards: reference, self or none.")
    ] = None,
    per_attribute: Annotated[
        bool, typer.Option("--per-attribute", help="Standardise each attribute's rewards before the sum.")
    ] = False,
    label_weight: Annotated[
        float | None, typer.Option("--label-weight", help="Lambda, the weight of reviewed tags.")
    ] = None,
    lowest: Annotated[
        float | None, typer.Option("--lowest", help="Groups with less of the possible reward teach nothing.")
    ] = None,
    highest: Annotated[
        float | None, typer.Option("--highest", help="Groups with more of it teach nothing.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", help="Stop rule, NAME=VALUE or NAME=off; may be repeated.", show_default=False
        ),
    ] = None,
    device_batch: Annotated[
        int | None, typer.Option("--device-batch", help="Rollouts learnt from at a time; as many as fit.")
    ] = None,
    generation_batch: Annotated[
        int | None, typer.Option("--generation-batch", help="Rollouts sampled at a time, in whole groups.")
    ] = None,
    rollout_backend: Annotated[
        str | None, typer.Option("--rollout-backend", help="transformers, vllm-colocate or vllm-server.")
    ] = None,
    vllm_server: Annotated[
        str | None, typer.Option("--vllm-server", help="Base URL of `trl vllm-serve`.")
    ] = None,
    vllm_memory: Annotated[
        float | None, typer.Option("--vllm-memory", help="Share of the GPU for vllm-colocate.")
    ] = None,
    gradient_checkpointing: t.GradientCheckpointing = None,
    bf16: t.Bf16 = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the users' order and the rollouts.")] = None,
    save_every: t.SaveEvery = None,
    ignore_memory: t.IgnoreMemory = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, batches and memory estimate, and stop.")
    ] = False,
) -> None:
    """Train a student on its own rollouts, or go on where the run in --out was stopped.

    What is not given is the preset's. A run that a stop rule ends leaves no model and exits with 1.
    Python: `cp_agents.trainers.grpo.train_grpo`.
    """
    given: dict[str, Any] = {
        "users": users, "gold": gold, "language": language, "lora_rank": lora_rank, "lora_alpha": lora_alpha,
        "lora_targets": lora_targets, "steps": steps, "prompts": prompts, "rollouts": rollouts,
        "learning_rate": learning_rate, "beta": beta, "temperature": temperature, "top_p": top_p,
        "max_tokens": max_tokens, "loss": loss, "scale": scale_rewards, "device_batch": device_batch,
        "generation_batch": generation_batch, "rollout_backend": rollout_backend, "vllm_server": vllm_server,
        "vllm_memory": vllm_memory, "gradient_checkpointing": gradient_checkpointing, "bf16": bf16, "seed": seed,
        "save_every": save_every, "mode": t.mode_of(lora, qlora),
        "reward": _given(target=target, weight=weight, per_attribute=per_attribute or None, label_weight=label_weight,
                         lowest=lowest, highest=highest) or None,
        "stop": _stop_rules(stop or []) or None,
    }  # fmt: skip
    from cp_agents.trainers.base_model import require_training
    from cp_agents.trainers.grpo_config import grpo_settings

    settings = grpo_settings(
        preset,
        model=model, store=store, reference=reference, out=out, hybrid=hybrid, ignore_memory=ignore_memory,
        **_given(**given),
    )  # fmt: skip
    require_training("reinforcement learning")
    if dry_run:
        from cp_agents.trainers.grpo_plan import plan_grpo

        for name, value in plan_grpo(settings, check=False).summary().items():
            typer.echo(f"{name}: {value}")
        return
    from cp_agents.errors import CpAgentsError
    from cp_agents.trainers.grpo import train_grpo

    result = train_grpo(settings, sys.stderr)
    if result.stopped_by is not None:
        raise CpAgentsError(
            f"training was stopped after {result.steps} steps, and no model is given out: {result.stopped_by}; the"
            f" checkpoints from before are in {out / 'checkpoints'}"
        )
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks
        return
    shown = ("reward_sum", "parse_rate", "na_rate", "majority_ratio", "confidence_mean", "label_accuracy")
    measured = ", ".join(f"{name} {result.metrics[name]:.3f}" for name in shown if name in result.metrics)
    typer.echo(f"student in {result.model} after {result.steps} steps: {measured}")


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _stop_rules(given: list[str]) -> dict[str, Any]:
    from cp_agents.errors import InputError

    rules: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise InputError(f"--stop should be NAME=VALUE or NAME=off, found {text!r}")
        rules[name] = None if value == "off" else value
    return rules
