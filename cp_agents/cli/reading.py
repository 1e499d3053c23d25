"""What IN holds: user records of a file, or those of a stored run as `run:NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from cp_agents.files import BadLine
    from cp_agents.runner import StoredRecord
    from cp_agents.taxonomy import Taxonomy


def stored_source(in_file: Path) -> str | None:
    """The run that `run:NAME` in place of a file names; None for a file."""
    kind, given, run = str(in_file).partition(":")
    return run if kind == "run" and given and not in_file.exists() else None


def records_of_run(store: Path, run: str) -> list[StoredRecord]:
    """The records of a stored run, to be profiled again. Raises `StoreError` where there is no such run."""
    from cp_agents.runner import stored_records
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        return stored_records(traces, traces.run(run or None)["run_id"])


def taxonomy_of_run(store: Path, run: str) -> Taxonomy:
    """The taxonomy that a stored run was made with."""
    from cp_agents.relabel import stored_run
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        return stored_run(traces, run or None)[1]


def run_name(in_file: Path, backend: str) -> str:
    """The made-up name of a run: the same for the same file and kind of backend, so that it is found again."""
    import hashlib

    if (source := stored_source(in_file)) is not None:
        return f"{source}-{backend.partition(':')[0]}"
    place = hashlib.sha256(str(in_file.resolve()).encode()).hexdigest()[:4]
    return f"{in_file.stem}-{backend.partition(':')[0]}-{place}"


def report_bad_lines(bad: list[BadLine]) -> None:
    """One sentence a line on stderr, then exit code 2; nothing where there are none."""
    for line in bad[:20]:
        typer.echo(f"error: {line.message}", err=True)
    if len(bad) > 20:
        typer.echo(f"error: and {len(bad) - 20} more lines", err=True)
    if bad:
        raise typer.Exit(2)
