"""Confusion matrices as inline SVG: with names and counts where there is room, as shades with numbered columns where
there is not."""

from __future__ import annotations

import math
from typing import NamedTuple

from cp_agents.report.model import Confusion
from cp_agents.report.svg import Svg
from cp_agents.report.words import count, percent, title
from cp_agents.schema import NA

SMALL = 8
"""Columns up to which the narrow form has room for counts, so that it serves every screen."""
_WIDE, _NARROW = 1080, 360
_NA_GAP = 4
_COUNT_WIDTH = 21
# Of a wide sans-serif, on average, at the sizes that the style gives to names: 10.5 px, and 12 px where there is room.
_CHAR, _WIDE_CHAR = 6.2, 7.1
_MOST_NAME = 32
_CELL = 44.0
_LEAN = math.radians(42)


class _Layout(NamedTuple):
    names: float
    """Width of the column of names."""
    head: float
    cell: float
    row: float
    counts: bool


def narrow(found: Confusion, name: str) -> str:
    """For a phone or a column of the page: columns are numbered as the rows are."""
    columns = len(found.columns)
    longest = max(map(len, _row_names(found)))
    names = min(164.0 if columns > SMALL else 150.0, longest * _CHAR + 26)
    cell = min(44.0, (_NARROW - names - _NA_GAP - 6) / columns)
    counts = cell >= _COUNT_WIDTH
    layout = _Layout(names, 30 if cell < 15 else 20, cell, 26, counts)
    svg = Svg(_NARROW, layout.head + layout.row * len(found.rows) + 4, _label(name))
    numbers = _numbers(found)
    for j, column in enumerate(found.columns):
        x = _column(found, layout, j) + cell / 2
        # Two digits are wider than a narrow column: every other number stands a line higher.
        raised = cell < 15 and j % 2 == 1
        svg.text(x, layout.head - (17 if raised else 6), numbers[column], "tick", "middle", tip=column)
    for i, row in enumerate(found.rows):
        middle = layout.head + layout.row * (i + 0.5)
        lines = _wrap(_row_names(found)[i], int((names - 26) / _CHAR))
        for k, words in enumerate(lines):
            y = middle + 3.5 + (k - (len(lines) - 1) / 2) * 11
            svg.text(0, y, words, "rowname", tip=row)
        svg.text(names - 5, middle + 3.5, numbers[row], "tick", "end")
        _cells(svg, found, layout, i)
    return str(svg)


def wide(found: Confusion, name: str) -> str:
    """For a screen with room: full names on both sides, and every count."""
    names = min(_MOST_NAME * _WIDE_CHAR, max(map(len, _row_names(found))) * _WIDE_CHAR) + 14
    shown = [_cut(column) for column in found.columns]
    head = 22 + max(map(len, shown)) * _WIDE_CHAR * math.sin(_LEAN)
    # Headings lean to the right of their columns.
    ends = [(j + 1) * _CELL + len(said) * _WIDE_CHAR * math.cos(_LEAN) for j, said in enumerate(shown)]
    beyond = max(0.0, max(ends) - len(shown) * _CELL)
    cell = min(_CELL, (_WIDE - names - _NA_GAP - beyond) / len(shown))
    layout = _Layout(names, head, cell, 25, True)
    width = names + cell * len(shown) + _NA_GAP + beyond
    svg = Svg(width, head + layout.row * len(found.rows) + 4, _label(name), "chart", "natural")
    for j, column in enumerate(found.columns):
        x = _column(found, layout, j) + cell / 2 + 3
        svg.text(x, head - 8, shown[j], "rowname", turn=-math.degrees(_LEAN), tip=column)
    for i, row in enumerate(_row_names(found)):
        lines = _wrap(row, _MOST_NAME)
        for k, words in enumerate(lines):
            y = head + layout.row * (i + 0.5) + 4 + (k - (len(lines) - 1) / 2) * 12
            svg.text(names - 8, y, words, "rowname", "end", tip=found.rows[i])
        _cells(svg, found, layout, i)
    return str(svg)


def _cells(svg: Svg, found: Confusion, layout: _Layout, i: int) -> None:
    row, total = found.rows[i], sum(found.counts[i])
    y = layout.head + layout.row * i
    for j, column in enumerate(found.columns):
        votes, x = found.counts[i][j], _column(found, layout, j)
        share = votes / total if total else 0.0
        style = "silent" if NA in (row, column) else "hit" if row == column else "miss"
        tip = f"{row} said as {column}: {votes:,} of {total:,}, {percent(share)}"
        svg.rect(x + 0.5, y + 0.5, layout.cell - 1, layout.row - 1, "cell")
        if votes:
            svg.shade(x + 0.5, y + 0.5, layout.cell - 1, layout.row - 1, style, 0.14 + 0.54 * share**0.8, tip)
            if layout.counts:
                svg.text(x + layout.cell / 2, y + layout.row / 2 + 4, count(votes), "celltext", "middle")


def _column(found: Confusion, layout: _Layout, j: int) -> float:
    gap = _NA_GAP if found.columns[j] == NA else 0
    return layout.names + j * layout.cell + gap


def _row_names(found: Confusion) -> list[str]:
    return [f"{row}\u00a0({sum(counts):,})" for row, counts in zip(found.rows, found.counts, strict=True)]


def _cut(words: str) -> str:
    return words if len(words) <= _MOST_NAME else words[: _MOST_NAME - 1] + "…"


def _numbers(found: Confusion) -> dict[str, str]:
    """A number for every tag; NA keeps its name."""
    return {tag: NA if tag == NA else str(i) for i, tag in enumerate(found.columns, 1)}


def _wrap(words: str, width: int) -> list[str]:
    """At most two lines of about `width` characters, broken at a space, and before the count only if at no other."""
    if len(words) <= width:
        return [words]
    at = max(words.rfind(" ", 0, width + 1), 0) or words.rfind("\u00a0", 0, width + 1)
    first, rest = (words[:at], words[at + 1 :]) if at > 0 else (words[:width], words[width:])
    return [first, rest if len(rest) <= width + 1 else rest[: width - 1] + "…"]


def _label(name: str) -> str:
    return f"{title(name)}: gold in rows, the profiles' tags in columns"
