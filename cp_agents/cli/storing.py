"""`stats` and `forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o

_RUN_COLUMNS = ("run", "backend", "records", "samples", "from_cache", "failed", "mean_latency_s", "outcomes")
_SAMPLING_COLUMNS = ("run", "adaptive", "most_samples", "asked_per_record", "stops")
_COST_COLUMNS = (
    "run", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_usd", "cost_per_record", "accepted",
    "cost_per_accepted", "unpriced",
)  # fmt: skip


def stats(store: o.Store = o.DEFAULT_STORE) -> None:
    """Runs, samples, errors, tokens, cost and sizes of a store. Python: `cp_agents.stores.stats`."""
    from rich.markup import escape
    from rich.table import Table

    from cp_agents.cli import tables
    from cp_agents.stores.stats import run_stats, table_sizes
    from cp_agents.stores.traces import TraceStore

    console = tables.console()
    with TraceStore(store, must_exist=True) as traces:
        runs = run_stats(traces)
        sizes = table_sizes(traces)
    shown = [(f"runs in {store}", _RUN_COLUMNS, runs), ("tokens and cost in USD", _COST_COLUMNS, runs)]
    if waves := [run for run in runs if run["adaptive"]]:
        shown.insert(1, ("adaptive sampling", _SAMPLING_COLUMNS, waves))
    for title, columns, rows in shown:
        table = Table(title=title, title_justify="left")
        for name in columns:
            left = name in {"run", "backend", "outcomes", "adaptive", "stops"}
            table.add_column(name.replace("_", " "), justify="left" if left else "right")
        for run in rows:
            table.add_row(*("" if run[name] is None else escape(str(run[name])) for name in columns))
        console.print(table)
    small = Table()
    for name in ("table", "rows", "KB"):
        small.add_column(name, justify="left" if name == "table" else "right")
    for size in sizes:
        small.add_row(size.table, f"{size.rows:,}", f"{size.bytes / 1024:,.1f}")
    console.print(small)


def forget(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user_id to erase.")],
    store: o.Store = o.DEFAULT_STORE,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            "--export",
            help="JSONL, or the folder of an export, to rewrite without the user; may be repeated.",
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="A LangGraph SQLite checkpointer's file.")
    ] = None,
) -> None:
    """Erase a user from the store, exports and checkpoints. Python: `cp_agents.forget`."""
    from cp_agents.stores.forget import forget as forget_user
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        gone = forget_user(traces, user, exports=export or [], checkpoints=checkpoints)
    typer.echo(
        f"forgot {user}: {gone.records} records, {gone.samples} samples, {gone.export_lines} export lines"
        + (f", {len(gone.threads)} threads" if checkpoints else "")
    )
    if gone.shared_threads and checkpoints:
        typer.echo(
            f"note: threads {', '.join(gone.shared_threads)} also served other users and were erased as a whole",
            err=True,
        )
    if gone.threads and checkpoints is None:
        typer.echo(
            f"note: the user was also profiled on LangGraph threads {', '.join(gone.threads)};"
            " name the checkpointer's file with --checkpoints to erase those",
            err=True,
        )
