"""`replay`: decide a stored run again, without a model call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from typing import Literal

    from cp_agents.calibration import Calibrator
    from cp_agents.stores.traces import TraceStore


def replay(
    out: o.OutFile,
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    vote: o.Vote = None,
    confidence: o.Confidence = None,
    tag_weights: o.TagWeights = None,
    tau: o.Tau = None,
    calibrator: Annotated[
        str,
        typer.Option(
            "--calibrator",
            help="A calibrator file, a stored calibrator's id, fit, none, or run: the run's own"
            " (fitted anew under another vote or confidence).",
        ),
    ] = "run",
) -> None:
    """Vote, calibrate and abstain again over a stored run; no model call. Python: `cp_agents.replay`."""
    from cp_agents import relabel
    from cp_agents.files import check_out, write_jsonl
    from cp_agents.hybrid import load_tag_weights
    from cp_agents.stores.traces import TraceStore

    started = time.monotonic()
    check_out(out, store, tag_weights, *o.files_of(calibrator))
    weights = None if tag_weights is None else load_tag_weights(tag_weights)
    with TraceStore(store, must_exist=True) as traces:
        run_id, _, settings = relabel.stored_run(traces, run)
        partly = len(relabel.partly_drawn(traces, run_id, settings.samples))
        profiles = relabel.replay(
            traces, run_id, vote=vote, confidence=confidence, tau=tau,  # type: ignore[arg-type]
            tag_weights=weights, calibrator=find_calibrator(traces, calibrator),
        )  # fmt: skip
        count = write_jsonl(out, (p.to_json() for p in profiles))
    typer.echo(
        f"{count} records of run {run_id} decided again in {time.monotonic() - started:.2f} s, written to {out}"
    )
    if partly:
        typer.echo(
            f"{partly} more were stopped in the middle of their samples and left out: the command that began the run"
            " goes on with them",
            err=True,
        )


def find_calibrator(store: TraceStore, name: str) -> Calibrator | Literal["run", "fit"] | None:
    """`run`, `fit`, `none`, a file, or the id of a calibrator in the store."""
    from pathlib import Path

    from cp_agents.calibration import Calibrator

    if name == "run":
        return "run"
    if name == "fit":
        return "fit"
    if name == "none":
        return None
    if Path(name).suffix or Path(name).is_file():
        return Calibrator.load(name)
    return Calibrator.from_json(store.calibrator(name.rpartition(":")[2]), f"calibrator {name}")
