"""What the command line shows: progress, summary and profile tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cp_agents.schema import NA, AttributeProfile, Profile

if TYPE_CHECKING:
    from cp_agents.calibration import Calibrator
    from cp_agents.runner import BatchReport


def console() -> Console:
    """Where results go. A file or a pipe has no width of its own and gets enough for every table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 150)


def short_interval(low: float, high: float) -> str:
    """`[-.02,1]`: two decimals and no space, so that a narrow terminal breaks the line before it, not within it."""
    ends = [f"{end:.2f}" for end in (low, high)]
    short = (
        "1" if end == "1.00" else end.replace("0.", ".", 1) if abs(float(end)) < 1 else end for end in ends
    )
    return f"[{','.join(short)}]"


def print_table(console: Console, table: Table) -> None:
    """The table; where it is wider than the terminal, with every column as narrow as its longest word allows.

    Left to itself it would cut numbers in the columns that it makes narrow.
    """
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width:
        for column in table.columns:
            texts = (str(text) for text in (column.header, *column.cells))
            column.width = max((len(word) for text in texts for word in text.split()), default=1)
    console.print(table)


@contextmanager
def progress(total: int) -> Iterator[Callable[[BatchReport], None]]:
    """A live line on stderr: records a second, tokens, cost, errors by type, time left."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("profiling"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total, note="")

        def update(report: BatchReport) -> None:
            bar.update(task, completed=report.done + len(report.failed), note=_note(report))

        yield update


def _note(report: BatchReport) -> str:
    meter = report.meter
    rate = (report.done - report.resumed) / report.seconds if report.seconds else 0.0
    parts = [f"{rate:.1f}/s"]
    if tokens := meter.prompt_tokens + meter.completion_tokens:
        parts.append(f"{tokens:,} tokens")
    if meter.cost_usd:
        parts.append(f"${meter.cost_usd:.4f}")
    if meter.errors:
        parts.append(_counts(meter.errors))
    return "  ".join(parts)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()) if count)


def print_summary(report: BatchReport, total: int, written: int, out: Path, store: Path) -> None:
    """What the run did, on stdout."""
    meter = report.meter
    console = Console(highlight=False, soft_wrap=True)
    say = console.print
    fresh = report.done - report.resumed
    speed = f", {fresh / report.seconds:.1f} records/s" if fresh and report.seconds else ""
    resumed = f", {report.resumed} of them from before" if report.resumed else ""
    say(f"{report.done} of {total} records profiled{resumed} in {report.seconds:.1f} s{speed}")
    if report.failed:
        say(f"records that failed: {len(report.failed)}")
    reused = f" ({meter.reused:,} more reused from the store)" if meter.reused else ""
    say(f"samples: {meter.samples:,}{reused}: {_counts(meter.outcomes) or 'none drawn'}")
    if report.sampling is not None:
        stops = _counts(report.sampling.stops)
        say(f"samples asked for: {report.sampling.mean:.2f} a record (adaptive: {stops})")
    if meter.errors:
        say(f"failed samples by type: {_counts(meter.errors)}")
    if meter.prompt_tokens or meter.completion_tokens:
        about = "about " if meter.estimated else ""
        cached = f" ({meter.cached_tokens:,} cached)" if meter.cached_tokens else ""
        say(f"tokens: {about}{meter.prompt_tokens:,} prompt{cached}, {meter.completion_tokens:,} completion")
    if meter.cost_usd:
        say(f"cost: ${meter.cost_usd:,.4f}")
    say(f"attributes: {_counts(report.statuses)}")
    say(f"calibrator: {_calibrator(report.calibrator)}")
    say(
        f"wrote {written} profiles to {escape(str(out))}; every sample is in {escape(str(store))}, run {report.run_id}"
    )


def _calibrator(used: Calibrator | None) -> str:
    if used is None:
        return "uncalibrated (too few records)"
    return used.label + (f" (too few votes on {', '.join(used.uncalibrated)})" if used.uncalibrated else "")


def profile_table(profiles: Iterable[Profile], title: str | None = None) -> Table:
    """One row an attribute: user, tag, confidence, evidence."""
    table = Table(title=title, title_justify="left")
    for name in ("user", "attribute", "tag"):
        table.add_column(name, no_wrap=name == "user")
    table.add_column("conf.", justify="right")
    table.add_column("evidence", overflow="fold", ratio=1)
    for profile in profiles:
        for i, name in enumerate(profile):
            value = profile[name]
            last = i == len(profile) - 1
            table.add_row(
                escape(profile.user_id) if i == 0 else "",
                name,
                _tag(value),
                "" if value.tag == NA else f"{value.confidence}/5",
                _evidence(value),
                end_section=last,
            )
    return table


def _tag(value: AttributeProfile) -> str:
    if value.tag != NA:
        return f"[bold]{escape(value.tag)}[/bold]"
    return f"[dim]{NA} (would say {escape(value.voted)})[/dim]" if value.voted != NA else f"[dim]{NA}[/dim]"


def _evidence(value: AttributeProfile) -> str:
    if value.tag == NA:
        return f"[dim]{escape(', '.join(value.reasons))}[/dim]"
    return escape("; ".join(f"{e.text} [{e.source or 'not in the record'}]" for e in value.evidence[:3]))
