"""What `bench prepare csv` shows: the columns, a proposed map, what was read and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from cp_agents.bench.csv_guess import Proposal
from cp_agents.bench.csv_load import Report
from cp_agents.bench.csv_map import ColumnMap
from cp_agents.bench.csv_read import Table
from cp_agents.bench.dataset import GOLD, USERS
from cp_agents.cli import tables
from cp_agents.errors import InputError

_SHOWN_VALUES = 8


@contextmanager
def progress() -> Iterator[Callable[[int], None]]:
    """A live line on stderr: rows read so far."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda rows: None
        return
    with console.status("reading") as status:
        yield lambda rows: status.update(f"{rows:,} rows read, putting them in order by user")


def show_proposal(table: Table, proposal: Proposal) -> None:
    """The columns, and the proposed map as YAML."""
    typer.echo(f"{table.name}: {table.described}; its first {proposal.rows:,} rows")
    shown = rich_table.Table()
    for heading in ("column", "filled", "distinct", "example", "looks like"):
        shown.add_column(
            heading, justify="right" if heading in ("filled", "distinct") else "left", overflow="fold"
        )
    for c in proposal.columns:
        shown.add_row(escape(c.name), f"{c.filled:.0%}", f"{c.distinct:,}", escape(c.example), c.role)
    tables.console().print(shown)
    typer.echo(f"\n{proposal.to_yaml()}")


def stop_unless_clear(proposal: Proposal, file: Path, out: Path | None, write_map: Path | None) -> None:
    """Raise `InputError` that says what to do next, unless the proposal can be used or was asked for alone."""
    target = out or "DIR"
    if proposal.doubts and (out is not None or write_map is None):
        saved = write_map or "MAP.yaml"
        how = f"correct {saved}" if write_map else f"save the map above with --write-map {saved}, correct it"
        raise InputError(
            f"nothing was prepared, because the columns do not say for sure what they are ({proposal.doubts[0]});"
            f" {how} and run: cp-agents bench prepare csv {file} --map {saved} --out {target}"
        )
    if out is None and write_map is None:
        raise InputError(
            f"nothing was prepared; if the map above is right, run: cp-agents bench prepare csv {file} --out {target}"
        )
    if out is None:
        typer.echo(
            f"next: check it and run: cp-agents bench prepare csv {file} --map {write_map} --out {target}"
        )


def show_report(report: Report, column_map: ColumnMap, out: Path, taxonomy: str) -> None:
    """What became of the table, and what to run next."""
    say = typer.echo
    guessed = "" if column_map.file.encoding else " (found out; --encoding says it)"
    say(f"{report.table.name}: read as {report.table.described}{guessed}")
    if report.order and not column_map.date_format:
        say(f"dates: {report.order}, as the whole column says")
    say(f"{_many(report.rows, 'row')} gave {_many(report.users, 'user')} with {_many(report.events, 'item')}")
    for heading, counts in (("left out", report.left_out), ("taken as they are", report.doubts)):
        for reason, n in counts.most_common():
            line = f" (first on line {report.first[reason]:,})" if reason in report.first else ""
            say(f"{heading}: {reason}: {n:,}{line}")
    for attribute, truth in report.truth.items():
        known = ", ".join(f"{tag} {n:,}" for tag, n in truth.tags.most_common())
        say(f"gold of {attribute}: {known or 'no value'}")
        if truth.unmapped:
            values = ", ".join(f"{value!r} {n:,}" for value, n in truth.unmapped.most_common(_SHOWN_VALUES))
            more = len(truth.unmapped) - _SHOWN_VALUES
            say(
                f"  no tag has these names, so they are NA: {values}{f' and {more:,} more' if more > 0 else ''};"
                f" give them tags under gold, {attribute}, values in the column map"
            )
    for note in report.notes:
        if "names no tag" not in note:
            say(f"note: {note}")
    gold = report.card is not None and report.card.gold > 0
    option = "" if taxonomy == "profilebench" else f" --taxonomy {taxonomy}"
    say(f"wrote {out / USERS}{f' and {out / GOLD}' if gold else ''}; the map is kept in {out / 'map.yaml'}")
    say(f"next: cp-agents profile {out / USERS} --out profiles.jsonl{option}")
    if gold:
        say(f"then: cp-agents evaluate profiles.jsonl --gold {out / GOLD}{option}")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
