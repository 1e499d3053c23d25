"""The part of a record's text that a decision hangs on: the lines with evidence, cut to a bounded size.

Pure: from a cue block and the places of evidence in it to lines of segments. Nothing is escaped here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

from cp_agents.report.model_records import Line, Segment

Kind = Literal["", "winner", "other"]

_MOST_LINES = 7
_MOST_CHARS = 900
_LINE_CHARS = 280
_AROUND = 90
_JOINERS = {"\u200d", "\ufe0e", "\ufe0f", "\u20e3"}


class Span(NamedTuple):
    """Where evidence stands in the cue block."""

    start: int
    end: int
    kind: Kind


class _Item(NamedTuple):
    source: str
    start: int
    end: int


def excerpt(cues: str, spans: Sequence[Span]) -> list[Line]:
    """The lines that hold `spans`, then as many of their neighbours, then of the first ones, as there is room for.

    At most seven lines and about 900 characters; long lines are cut around their evidence. What is left out between
    is counted. Where spans of both kinds overlap, the winner's counts. Spans may be of any order and may reach
    outside `cues` or over a line's end; only what lies in a line is marked.
    """
    items = _items(cues)
    spans = [s for s in spans if s.start < s.end]
    marked = [i for i, item in enumerate(items) if any(_overlaps(item, s) for s in spans)]
    order = [*marked, *(i + d for d in (1, -1) for i in marked), *range(len(items))]
    chosen: set[int] = set()
    room = _MOST_CHARS
    for i in order:
        if len(chosen) == _MOST_LINES:
            break
        if 0 <= i < len(items) and i not in chosen:
            size = min(items[i].end - items[i].start, _LINE_CHARS)
            if chosen and size > room:
                continue
            chosen.add(i)
            room -= size
    return _lines(cues, items, sorted(chosen), spans)


def _items(cues: str) -> list[_Item]:
    """The item lines of a cue block, without their "- "."""
    items, source, start = [], "", 0
    for text in cues.split("\n"):
        if text.startswith("[") and text.endswith("]"):
            source = text[1:-1]
        elif text.strip():
            items.append(_Item(source, start + (2 if text.startswith("- ") else 0), start + len(text)))
        start += len(text) + 1
    return items


def _overlaps(item: _Item, span: Span) -> bool:
    return span.start < item.end and span.end > item.start


def _lines(cues: str, items: Sequence[_Item], chosen: Sequence[int], spans: Sequence[Span]) -> list[Line]:
    lines: list[Line] = []
    shown, source = -1, None
    for i in chosen:
        if i > shown + 1:
            lines.append(Line(left_out=i - shown - 1))
        item = items[i]
        segments = _segments(cues, item, [s for s in spans if _overlaps(item, s)])
        lines.append(Line(source=item.source if item.source != source else "", segments=segments))
        shown, source = i, item.source
    if shown + 1 < len(items):
        lines.append(Line(left_out=len(items) - shown - 1))
    return lines


def _segments(cues: str, item: _Item, spans: Sequence[Span]) -> list[Segment]:
    """The line in pieces of one kind each, with an ellipsis wherever it was cut."""
    kinds: list[Kind] = [""] * (item.end - item.start)
    for kind in ("other", "winner"):
        for span in spans:
            if span.kind == kind:
                first, last = max(span.start, item.start), min(span.end, item.end)
                kinds[first - item.start : last - item.start] = [kind] * (last - first)
    text = cues[item.start : item.end]
    segments: list[Segment] = []
    at = 0
    for first, last in _windows(text, kinds):
        gap = "… " if first == 0 else " … "
        if first > at:
            segments.append(Segment(text=gap if at else "… "))
        at = first
        while at < last:
            end = next((j for j in range(at, last) if kinds[j] != kinds[at]), last)
            segments.append(Segment(text=text[at:end], kind=kinds[at]))
            at = end
    if at < len(text):
        segments.append(Segment(text=" …"))
    return segments


def _windows(text: str, kinds: Sequence[Kind]) -> list[tuple[int, int]]:
    """Which parts of a line to show: all of a short one, else its evidence with some words around it."""
    if len(text) <= _LINE_CHARS:
        return [(0, len(text))]
    marked = [i for i, kind in enumerate(kinds) if kind]
    if not marked:
        return [(0, _boundary(text, _LINE_CHARS))]
    windows: list[tuple[int, int]] = []
    for i in marked:
        first, last = max(0, i - _AROUND), min(len(text), i + 1 + _AROUND)
        if windows and first <= windows[-1][1]:
            windows[-1] = (windows[-1][0], last)
        else:
            windows.append((first, last))
    kept: list[tuple[int, int]] = []
    room = 2 * _LINE_CHARS
    for first, last in windows:
        last = min(last, first + room)
        if last > first:
            kept.append((_boundary(text, first), _boundary(text, last)))
            room -= last - first
    return kept


def _boundary(text: str, at: int) -> int:
    """A place at or shortly before `at` where a text may be cut: behind a space, never inside a character."""
    if at <= 0 or at >= len(text):
        return max(0, min(at, len(text)))
    space = text.rfind(" ", max(0, at - 14), at)
    if space > 0:
        return space + 1
    while at > 0 and (
        unicodedata.combining(text[at])
        or text[at] in _JOINERS
        or text[at - 1] == "\u200d"
        or unicodedata.category(text[at]) == "Sk"  # skin tones
    ):
        at -= 1
    return at
