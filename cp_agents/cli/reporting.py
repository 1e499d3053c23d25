"""`report`: a stored run as one HTML page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o


def report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Name of the run in the store; the newest by default."),
    ] = None,
    store: o.Store = o.DEFAULT_STORE,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    gold: Annotated[
        Path | None,
        typer.Option("--gold", help="JSONL with user_id and the truth: adds all that needs it."),
    ] = None,
    truth_field: o.TruthField = "truth",
    taxonomy: Annotated[
        str | None,
        typer.Option(
            "--taxonomy",
            help="A built-in taxonomy or a YAML file with the run's tags, to read gold by its aliases; the run's own"
            " by default.",
            show_default=False,
        ),
    ] = None,
    records: Annotated[
        bool,
        typer.Option(
            "--records/--no-records",
            help="Whether to show single records; without, no text and no id of a user.",
        ),
    ] = True,
) -> None:
    """Write a stored run as one self-contained HTML page. Python: `cp_agents.report.gather.build_report`."""
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.files import check_out, whole_file
    from cp_agents.report.gather import build_report
    from cp_agents.report.render import render_report
    from cp_agents.stores.traces import TraceStore
    from cp_agents.taxonomy import load_taxonomy

    started = time.monotonic()
    named = [] if taxonomy is None else o.files_of(taxonomy)
    check_out(out, store, *([gold] if gold else []), *named)
    truth = None if gold is None else load_gold(gold, truth_field)
    chosen = None if taxonomy is None else load_taxonomy(taxonomy)
    with TraceStore(store, must_exist=True) as traces:
        found = build_report(traces, run, gold=truth, taxonomy=chosen, records=records)
    page = render_report(found)
    with whole_file(out) as file:
        file.write(page)
    typer.echo(
        f"report of run {found.run.run_id} ({found.run.profiled:,} users"
        f"{'' if truth is None else ', with gold'}) written to {out}: {len(page.encode()) / 1024:,.0f} KB"
        f" in {time.monotonic() - started:.1f} s"
    )
    if records:
        typer.echo("it holds ids and text of users; --no-records leaves both out", err=True)
