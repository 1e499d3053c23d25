"""`calibrate fit` and `calibrate show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o

app = typer.Typer()


@app.command("fit")
def fit(
    out: Annotated[Path, typer.Option("--out", help="JSON file to write.", show_default=False)],
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    vote: o.Vote = None,
    confidence: o.Confidence = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind", help="quintile (label-free), or isotonic or platt (from gold or reviewed rows)."
        ),
    ] = "quintile",
    gold: Annotated[
        Path | None, typer.Option("--gold", help="Gold JSONL; without it reviewed rows are used.")
    ] = None,
    truth_field: o.TruthField = "truth",
) -> None:
    """Fit a calibrator on a stored run's votes. Python: `cp_agents.calibrate.fit_run`."""
    from cp_agents.calibrate import fit_run
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.files import check_out
    from cp_agents.stores.traces import TraceStore

    check_out(out, store, gold)
    truth = load_gold(gold, truth_field) if gold is not None else None
    with TraceStore(store, must_exist=True) as traces:
        calibrator = fit_run(traces, run, vote=vote, confidence=confidence, kind=kind, gold=truth)  # type: ignore[arg-type]
    calibrator.save(out)
    few = f"; too few records for {', '.join(calibrator.uncalibrated)}" if calibrator.uncalibrated else ""
    typer.echo(f"calibrator {calibrator.label} written to {out}{few}")


@app.command("show")
def show(
    calibrator: Annotated[str, typer.Argument(help="A calibrator file, or the id of a stored one.")],
    store: o.Store = o.DEFAULT_STORE,
) -> None:
    """Show a calibrator's curves. Python: `Calibrator.load`."""
    from rich.table import Table

    from cp_agents.calibration import Calibrator
    from cp_agents.cli import tables
    from cp_agents.cli.replaying import find_calibrator
    from cp_agents.errors import InputError
    from cp_agents.stores.traces import TraceStore

    if Path(calibrator).suffix or Path(calibrator).is_file():
        found = Calibrator.load(calibrator)
    else:
        with TraceStore(store, must_exist=True) as traces:
            loaded = find_calibrator(traces, calibrator)
        if not isinstance(loaded, Calibrator):
            raise InputError(f"{calibrator!r} names no one calibrator to show: give a file or a stored id")
        found = loaded
    table = Table(
        title=f"{found.label}: {found.vote_method} votes of {found.samples} samples by {found.confidence} confidence,"
        f" {found.taxonomy}"
    )
    table.add_column("attribute")
    table.add_column("fitted on", justify="right")
    table.add_column("curve", overflow="fold")
    for name, curve in found.attributes.items():
        body = curve.model_dump(mode="json", exclude={"kind", "n"})
        text = "  ".join(f"{key} {value}" for key, value in body.items()) or "too few records: uncalibrated"
        table.add_row(name, str(curve.n), text)
    tables.console().print(table)


@app.command("tags")
def tags(
    out: Annotated[Path, typer.Option("--out", help="JSON file to write.", show_default=False)],
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="Gold JSONL; without it reviewed rows are used.")
    ] = None,
    truth_field: o.TruthField = "truth",
) -> None:
    """Learn from labels which tags a teacher says too easily. Python: `cp_agents.hybrid.learn_from_run`.

    The file goes to `replay --tag-weights` or `profile --tag-weights`.
    """
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.files import check_out
    from cp_agents.hybrid import learn_from_run, save_tag_weights
    from cp_agents.stores.traces import TraceStore

    check_out(out, store, gold)
    truth = load_gold(gold, truth_field) if gold is not None else None
    with TraceStore(store, must_exist=True) as traces:
        learned = learn_from_run(traces, run, gold=truth)
    save_tag_weights(out, learned)
    for name, weights in learned.weights.items():
        lightest, heaviest = min(weights, key=weights.__getitem__), max(weights, key=weights.__getitem__)
        typer.echo(
            f"{name}: {learned.labels[name]} labels; {lightest} weighs {weights[lightest]:.2f},"
            f" {heaviest} {weights[heaviest]:.2f}"
        )
    typer.echo(f"wrote the weights of run {learned.run} to {out}")
