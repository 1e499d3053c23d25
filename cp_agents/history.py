"""From a record to entries: texts made safe, equal items merged, times read, the foremost first."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from cp_agents.anonymise import Redactor
from cp_agents.fitting import ELLIPSIS, QUARTERS, cost, cut, last_boundary
from cp_agents.schema import SELF_REPORTED, CueItem

_NAME_MAX = 16 * QUARTERS
_RAW_MARGIN = 4000  # characters beyond the budget that are read of a text, so that no address is cut in two
_DAYS_PER_YEAR = 365.25

YEAR = r"(?:19|20)\d\d"
_WRITTEN_TIME = re.compile(
    rf"({YEAR})(?:[-/.年](\d{{1,2}})(?:[-/.月](\d{{1,2}}))?|(\d\d)(\d\d))?[年月日]?(?:[T ,+Z].*)?\Z",
    re.ASCII | re.DOTALL,
)
_EPOCH_TIME = re.compile(r"(\d{9,13})(?:\.\d*)?\Z", re.ASCII)


@dataclass(slots=True)
class Entry:
    """Equal items of one source, as one."""

    text: str
    count: int
    weight: float | None
    day: int | None
    """Of the latest: days since year 1."""
    time: str | None
    """The same as it is printed: a day, a month or a year."""

    @property
    def amount(self) -> float:
        """The weight, or the count of what has none."""
        return self.count if self.weight is None else self.weight


class Cleaner:
    """Makes texts safe, cuts them, and keeps the counts of one record."""

    def __init__(self, user_id: str, budget: int, dropped: Counter[str]) -> None:
        self.redactor = Redactor(user_id)
        self.dropped = dropped
        self._budget = budget

    def text(self, raw: str) -> str:
        """Sanitised and anonymised. Of a text far beyond the budget only as much as could be shown is read."""
        if len(raw) <= self._budget + _RAW_MARGIN:
            return self.redactor.clean(raw)
        end = last_boundary(raw, self._budget + _RAW_MARGIN)
        text = self.redactor.clean(raw[:end] + ELLIPSIS) if end else ""
        if text and cost(text) <= self._budget:  # else it will be counted when it is cut to size
            self.dropped["cut_texts"] += 1
        return text

    def name(self, raw: str) -> str:
        """Of a source or a field: short, without square brackets and colons."""
        name = re.sub(r"[\[\]:：]", lambda m: {"[": "(", "]": ")"}.get(m[0], " "), self.text(raw))
        name = " ".join(name.split())
        if cost(name) > _NAME_MAX:
            name = cut(name, _NAME_MAX) or _shorten(name[:_NAME_MAX])
        return name or "unnamed"

    def cut(self, text: str, budget: int) -> str:
        """`fitting.cut`, counted; empty if nothing fits."""
        if cost(text) <= budget:
            return text
        # A cut can make a phone number of what was a longer row of digits: it is looked at once more.
        shorter = self.redactor.redact(cut(text, budget))
        if cost(shorter) > budget:
            return ""
        self.dropped["cut_texts"] += bool(shorter)
        return shorter


def _shorten(word: str) -> str:
    """The one word of a name that is too long: it needs some name."""
    while cost(word) > _NAME_MAX - cost(ELLIPSIS):
        word = word[:-1]
    return word + ELLIPSIS


def read_fields(raw: dict[str, str], cleaner: Cleaner) -> dict[str, str]:
    """The self-reported fields, made safe, in the order of the record."""
    fields: dict[str, str] = {}
    for raw_key, raw_value in raw.items():
        key, value = cleaner.name(raw_key), cleaner.text(raw_value)
        if not value:
            cleaner.dropped["empty_fields"] += 1
        elif fields.setdefault(key, value) != value:  # two names that are one after cleaning
            fields[key] += f"; {value}"
    return fields


def read_sources(raw: dict[str, list[CueItem]], cleaner: Cleaner) -> dict[str, list[Entry]]:
    """Entries by source, foremost first. Sources whose names are one after cleaning are one source."""
    merged: dict[str, dict[str, Entry]] = {}
    for raw_name, items in raw.items():
        if items:
            name = cleaner.name(raw_name)
            if name.casefold() == SELF_REPORTED:  # what a user says cannot pose as another part of the block
                name += " items"
            _merge(items, merged.setdefault(name, {}), cleaner)
    return {name: _ordered(entries.values()) for name, entries in merged.items() if entries}


def _merge(items: Iterable[CueItem], entries: dict[str, Entry], cleaner: Cleaner) -> None:
    """Add items to the entries of their source, equal ones to the entry that stands for them."""
    dropped = cleaner.dropped
    cleaned: dict[str, tuple[str, str]] = {}  # most of a long history repeats itself
    for item in items:
        known = cleaned.get(item.text)
        if known is None:
            text = cleaner.text(item.text)
            known = cleaned[item.text] = (_fold(text), text)
        key, text = known
        count = max(1, item.count)
        if not text:
            dropped["empty_items"] += count
            continue
        weight = item.weight if item.weight is not None and math.isfinite(item.weight) else None
        day, time = None, None
        if item.time is not None:
            if (read := read_time(item.time)) is None:
                dropped["unreadable_times"] += 1
            else:
                day, time = read
        entry = entries.get(key)
        if entry is None:
            entries[key] = Entry(text, count, weight, day, time)
            continue
        dropped["merged_items"] += 1
        entry.count += count
        if weight is not None:
            entry.weight = min((entry.weight or 0.0) + weight, sys.float_info.max)
        if day is not None and (entry.day is None or day > entry.day):
            entry.day, entry.time = day, time


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def read_time(written: str) -> tuple[int, str] | None:
    """The day number and the printed form of a time, or None if it cannot be read.

    Reads years, months, days and date-times (ISO 8601 and its look-alikes such as "2024/5/3", "2024年5月3日"), and
    seconds or milliseconds since 1970. Of a date-time the day stands as it was written: in the time zone of
    whoever wrote it. Years outside 1900..2099 are placeholders of some database, and not read.
    """
    written = written.strip()[:64]
    try:
        if (epoch := _EPOCH_TIME.match(written)) is not None:
            seconds = int(epoch[1]) if len(epoch[1]) < 12 else int(epoch[1]) // 1000
            day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).date()
            return (day.toordinal(), day.isoformat()) if day.year < 2100 else None
        if (match := _WRITTEN_TIME.match(written)) is None:
            return None
        year, month, day_of_month = match[1], match[2] or match[4], match[3] or match[5]
        day = date(int(year), int(month or 1), int(day_of_month or 1))
        return day.toordinal(), day.isoformat()[: 10 if day_of_month else 7 if month else 4]
    except (ValueError, OverflowError):
        return None


def _ordered(entries: Iterable[Entry]) -> list[Entry]:
    """Foremost first (rule 3 of `cues.assemble_cues`)."""
    found = list(entries)
    untimed = max((e.day for e in found if e.day is not None), default=0) - _DAYS_PER_YEAR

    def score(entry: Entry) -> float:
        years = (untimed if entry.day is None else entry.day) / _DAYS_PER_YEAR
        return math.log2(entry.amount) + years if entry.amount > 0 else -math.inf

    return sorted(found, key=score, reverse=True)  # stable, also in reverse
