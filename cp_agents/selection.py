"""Very long histories: which entries a teacher is shown, part by part, and what its answers mean.

The paper leaves ultra-long histories open (section 7). Here the teacher that profiles reads the whole history first, in
parts of bounded size, and names by number the entries that tell who the user is. What it names is shown to the
next level, until it fits the cue block, where it stands before everything else; the rest is condensed by rule as
always (`cues.assemble_cues`). Nothing is rewritten, so evidence stays the user's own words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cp_agents.cues import EntryKey
from cp_agents.fitting import QUARTERS, cost
from cp_agents.history import Cleaner, Entry, read_sources
from cp_agents.schema import UserRecord

KEPT_SHARE = 4
"""A level keeps at most one in so many, or as many as fit if that is more: so signals of all parts meet on the way."""
_ROOM = 0.75
"""Of the token budget for what is chosen; the rest is for self-reports and what condenses the others."""
_LONGEST = 200 * QUARTERS
"""Of one entry as the teacher sees it."""
_KEEP = re.compile(r"<keep>(.*?)(?:</keep>|\Z)", re.DOTALL | re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,6})(?:\s*[-–]\s*(\d{1,6}))?")


class Line(NamedTuple):
    """One entry as the teacher sees it."""

    key: EntryKey
    text: str
    """Anonymised, with its time and count, on one line."""
    cost: int
    """Quarter tokens."""


class Part(NamedTuple):
    """Lines of one source that are read together."""

    source: str
    lines: tuple[Line, ...]
    most: int
    """How many may be kept."""

    @property
    def text(self) -> str:
        """The numbered lines under the source's heading."""
        rows = (f"{number}. {line.text}" for number, line in enumerate(self.lines, 1))
        return "\n".join((f"[{self.source}]", *rows))


def lines_of(record: UserRecord, token_budget: int) -> list[Line]:
    """Every entry of the record, source by source, oldest first; as `assemble_cues` cleans and merges them."""
    cleaner = Cleaner(record.user_id, token_budget * QUARTERS, Counter())
    found = []
    for source, entries in read_sources(record.sources, cleaner).items():
        for entry in sorted(entries, key=lambda e: e.day or 0):
            text = _shown(entry, cleaner)
            if text:
                found.append(Line((source, entry.text), text, cost(text) + 1))
    return found


def is_long(lines: Iterable[Line], token_budget: int) -> bool:
    """Whether the entries do not fit the block, so that somebody has to choose."""
    return sum(line.cost for line in lines) > token_budget * QUARTERS


def fits(lines: Iterable[Line], token_budget: int) -> bool:
    """Whether these may stand in the block side by side."""
    return sum(line.cost for line in lines) <= _ROOM * token_budget * QUARTERS


def parts_of(lines: Sequence[Line], token_budget: int) -> list[Part]:
    """The lines in parts of one source and at most `token_budget` estimated tokens each."""
    whole = sum(line.cost for line in lines)
    share = max(_ROOM * token_budget * QUARTERS / max(1, whole), 1 / KEPT_SHARE)
    parts: list[list[Line]] = []
    room = 0
    for line in lines:
        if not parts or parts[-1][0].key[0] != line.key[0] or line.cost > room:
            parts.append([])
            room = token_budget * QUARTERS
        parts[-1].append(line)
        room -= line.cost
    return [Part(p[0].key[0], tuple(p), max(1, int(len(p) * min(1.0, share)))) for p in parts]


def read_choice(text: str, part: Part) -> list[Line] | None:
    """The lines that an answer names, at most `part.most`, in the order named; None where it has no <keep> element.

    Numbers that no line has are passed over. Of several elements the last counts.
    """
    elements = _KEEP.findall(text.rpartition("</think>")[2])
    if not elements:
        return None
    chosen: dict[int, None] = {}
    for first, last in _RANGE.findall(elements[-1]):
        for number in range(int(first), min(int(last or first), len(part.lines)) + 1):
            if 1 <= number <= len(part.lines):
                chosen[number] = None
    return [part.lines[number - 1] for number in list(chosen)[: part.most]]


def _shown(entry: Entry, cleaner: Cleaner) -> str:
    text = cleaner.cut(entry.text, _LONGEST)
    time = f"[{entry.time}] " if entry.time else ""
    count = f" (x{entry.count})" if entry.count > 1 else ""
    return f"{time}{text}{count}" if text else ""
