"""`distill`: the whole road from a teacher's run to a student."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cp_agents.cli import options as o
from cp_agents.errors import InputError


def distill(
    base: Annotated[
        str,
        typer.Option(
            "--base",
            help="What becomes the student: a folder, a GGUF file, smollm2, or a cached ORG/NAME.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for data, training runs and models.", show_default=False)
    ],
    store: o.Store = o.DEFAULT_STORE,
    run: Annotated[
        str | None,
        typer.Option("--run", help="The teacher's run; the newest by default.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The student's name, as in student:NAME.")] = "student",
    preset: Annotated[
        str, typer.Option("--preset", help="Of both trainers: paper, lora or cpu-smoke.")
    ] = "paper",
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            help="The student's prompt, as en-compact; the run's by default.",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the users that is held out.")
    ] = 0.1,
    rl_share: Annotated[
        float, typer.Option("--rl-share", help="Share of the others that goes to GRPO rather than SFT.")
    ] = 0.5,
    shape: Annotated[
        str, typer.Option("--shape", help="Of the difficulty filter: original, uniform, v, lambda or m.")
    ] = "m",
    samples: Annotated[int, typer.Option("--samples", help="M of the student on the held-out users.")] = 10,
    max_tokens: o.MaxTokens = 1200,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", help="Gold JSONL of held-out users, to measure with.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of split, filter and training.")] = 0,
    sft: Annotated[
        list[str] | None,
        typer.Option(
            "--sft", help="FIELD=VALUE over the preset of `train sft`; may be repeated.", show_default=False
        ),
    ] = None,
    grpo: Annotated[
        list[str] | None,
        typer.Option(
            "--grpo", help="FIELD=VALUE over the preset of `train grpo`; may be repeated.", show_default=False
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            help="Stage to leave out: filter, grpo, calibrate, compare or promote; may be repeated.",
            show_default=False,
        ),
    ] = None,
    promote: Annotated[str, typer.Option("--promote", help="if-holds, always or never.")] = "if-holds",
    min_parse: Annotated[
        float, typer.Option("--min-parse", help="Least share of readable answers for the student to hold.")
    ] = 0.98,
    min_gain: Annotated[
        float,
        typer.Option(
            "--min-gain", help="Least macro-F1 against the votes, in times that of the best constant answer."
        ),
    ] = 2.0,
) -> None:
    """From a teacher's run to a student that serves: export, SFT, filter, reference, GRPO, calibrate, compare, promote.

    Goes on where the road in --out was stopped. Exit code 1 if the student does not hold. Python:
    `cp_agents.trainers.distill.distill`.
    """
    from cp_agents.stores.traces import TraceStore
    from cp_agents.trainers.base_model import require_training
    from cp_agents.trainers.distill import distill as go
    from cp_agents.trainers.distill_config import distill_settings

    with TraceStore(store, must_exist=True) as traces:
        run = traces.run(run)["run_id"]
    settings = distill_settings(
        store=store, run=run, base=base, out=out, name=name, preset=preset, language=language,
        validation=validation, rl_share=rl_share, shape=shape, samples=samples, max_tokens=max_tokens, gold=gold,
        seed=seed, sft=_fields("--sft", sft), grpo=_fields("--grpo", grpo), skip=skip or (), promote=promote,
        min_parse=min_parse, min_gain=min_gain,
    )  # fmt: skip
    require_training("distillation")
    found = go(settings, typer.echo, sys.stderr)
    if found.promoted:
        typer.echo(f"student {found.student} serves as student:{name}: {found.why}")
        return
    typer.echo(f"student {found.student} was not promoted: {found.why}")
    if promote == "if-holds" and "promote" in settings.stages:
        raise typer.Exit(1)


def _fields(option: str, words: list[str] | None) -> dict[str, Any]:
    """`FIELD=VALUE` words; values are JSON where they are, else text."""
    import json

    fields: dict[str, Any] = {}
    for word in words or []:
        field, given, value = word.partition("=")
        if not given or not field:
            raise InputError(f"{option} takes FIELD=VALUE, found {word!r}")
        try:
            fields[field.replace("-", "_")] = json.loads(value)
        except ValueError:
            fields[field.replace("-", "_")] = value
    return fields
