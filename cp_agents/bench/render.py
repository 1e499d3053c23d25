"""Tables of numbers with intervals, for the terminal and for Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from cp_agents.bench.results import Cell, Grid

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 200
"""Columns of a line where nobody looks at a terminal: every table fits without a break."""


def console() -> Console:
    """Where tables go. A file or a pipe has no width of its own and gets enough for every table."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def terminal_cell(cell: Cell) -> str:
    """`0.380 [.361,.399]`: the one space in it is where a narrow column breaks the line."""
    return _cell(cell, lambda low, high: f"[{_bare(low)},{_bare(high)}]")


def markdown_cell(cell: Cell) -> str:
    """`0.380 [0.361, 0.399]`."""
    return _cell(cell, lambda low, high: f"[{low:.3f}, {high:.3f}]").replace("|", "\\|")


def rich_table(grid: Grid) -> Table:
    """For the terminal; the best of each column in bold."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=grid.title, title_justify="left", show_lines=False)
    table.add_column(grid.label, overflow="fold")
    for name in grid.columns:
        table.add_column(name.replace("_", " "), justify="right")
    best = grid.best_rows()
    for i, row in enumerate(grid.rows):
        cells = [escape(terminal_cell(cell)) for cell in row.cells]
        shown = [f"[bold]{c}[/bold]" if i in best[k] else c for k, c in enumerate(cells)]
        table.add_row(escape(row.label), *shown, style=None if row.ranked else "dim")
    return table


def print_grid(console: Console, grid: Grid) -> None:
    """The table, and under it its notes, one a line."""
    console.print(rich_table(grid))
    for note in grid.notes:
        console.print(note, markup=False, style="dim")


def markdown_table(grid: Grid) -> str:
    """The same in Markdown, with title and notes; ends with a line break."""
    best = grid.best_rows()
    lines = [f"**{grid.title}**", "", _line([grid.label, *grid.columns])]
    lines.append(_line(["---", *["---:"] * len(grid.columns)]))
    for i, row in enumerate(grid.rows):
        cells = [markdown_cell(cell) for cell in row.cells]
        shown = [f"**{c}**" if i in best[k] else c for k, c in enumerate(cells)]
        lines.append(_line([row.label.replace("|", "\\|"), *shown]))
    if grid.notes:
        lines += ["", *(f"- {note}" for note in grid.notes)]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell, interval: Callable[[float, float], str]) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, str):
        return cell
    if cell.value is None:
        return "-"
    # a difference has a sign, whichever it is
    parts = [f"{cell.value:+.3f}" if cell.p is not None else f"{cell.value:.3f}"]
    if cell.low is not None and cell.high is not None:
        parts.append(interval(cell.low, cell.high))
    if cell.p is not None:
        parts.append(f"p={cell.p:.3f}")
    return " ".join(parts)


def _bare(value: float) -> str:
    """Three decimals without the leading zero."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
