"""Tables of numbers with intervals, for the terminal and for Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cp_agents.bench.results import Cell, Grid

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_WIDTH = 200
"""Columns of a line where nobody looks at a terminal: every table fits without a break."""
_LABEL_WIDTH = 26
"""Of rows' labels at least, before numbers share the rest."""


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


def rich_table(
    grid: Grid, columns: Sequence[int] | None = None, label_width: int | None = None, *, narrow: bool = False
) -> Table:
    """For the terminal; the best of each column in bold. Only `columns`, by index, where they are given.

    `narrow`: no column is wider than its longest word.
    """
    from rich.markup import escape
    from rich.table import Table

    shown = range(len(grid.columns)) if columns is None else columns
    table = Table(title=escape(grid.title), title_justify="left")
    table.add_column(escape(grid.label), overflow="fold", width=label_width)
    for k in shown:
        width = _longest_word(grid, k) if narrow else None
        table.add_column(escape(grid.columns[k].replace("_", " ")), justify="right", width=width)
    best = grid.best_rows()
    for i, row in enumerate(grid.rows):
        cells = {k: escape(terminal_cell(row.cells[k])) for k in shown}
        bold = [f"[bold]{c}[/bold]" if i in best[k] else c for k, c in cells.items()]
        table.add_row(escape(row.label), *bold, style=None if row.ranked else "dim")
    return table


def print_grid(console: Console, grid: Grid) -> None:
    """The table, in several parts where it is wider than the terminal, and under it its notes, one a line."""
    whole = rich_table(grid)
    if _fits(console, whole):
        console.print(whole)
    else:
        for columns in _parts(grid, console.width):
            part = rich_table(grid, columns, _label_width(grid))
            # Left to itself the terminal's table would cut numbers where it has to choose a column to make narrow.
            narrow = not _fits(console, part)
            console.print(rich_table(grid, columns, _label_width(grid), narrow=True) if narrow else part)
    for note in grid.notes:
        console.print(note, markup=False, style="dim")


def _fits(console: Console, table: Table) -> bool:
    unbounded = console.options.update(max_width=10_000)
    return console.measure(table, options=unbounded).maximum <= console.width


def _label_width(grid: Grid) -> int:
    return min(_LABEL_WIDTH, max(len(label) for label in (grid.label, *(row.label for row in grid.rows))))


def _parts(grid: Grid, width: int) -> list[list[int]]:
    """The columns side by side, as many as fit with the labels into `width` when cells break at their spaces."""
    free = width - _label_width(grid) - 4
    parts: list[list[int]] = [[]]
    used = 0
    for k in range(len(grid.columns)):
        wide = _longest_word(grid, k) + 3
        if parts[-1] and used + wide > free:
            parts.append([])
            used = 0
        parts[-1].append(k)
        used += wide
    return parts


def _longest_word(grid: Grid, k: int) -> int:
    texts = [grid.columns[k].replace("_", " "), *(terminal_cell(row.cells[k]) for row in grid.rows)]
    return max(len(word) for text in texts for word in text.split() or [""])


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
