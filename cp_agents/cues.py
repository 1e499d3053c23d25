"""From a record to its cue block: the one text about a user that a model sees, and that the store keeps.

    [watched]
    - [2024-05-03] Baby stroller review (x3)
    - Comparing prams (x2, 40.5)
    - [2021] 1,204 items: stroller (x40), diapers (x22)
    [self_reported]
    - gender: Male

A heading `[source]`, then its items: `- [time] text (xCOUNT, WEIGHT)`. Time is a day, a month or a year as
the record has it, without the time of day; COUNT stands there if it is above 1, WEIGHT if the item has one.
The last lines of a long source condense what did not fit, by year or month where the items have a time:
`- [period] N items: text (xCOUNT), ...`. `[self_reported]` comes last, `- field: value`.

All text of the user has been through `anonymise`, stands on one line and starts behind "- ", so none of it can
close a fence or open a heading. Where a text would read as a part of the line that it is not, the line says
it otherwise: "Se7en (x2)" is printed `Se7en (x2) (x1)`, an untimed "[2021] review" `(2021) review`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel

from cp_agents.errors import InputError
from cp_agents.fitting import QUARTERS, cost, estimate_tokens
from cp_agents.schema import SELF_REPORTED, UserRecord

__all__ = ["AssembledCues", "CueLine", "assemble_cues", "cue_lines", "estimate_tokens"]

# Shares of a budget, as divisors, and sizes in quarter tokens.
_REPORTED_SHARE = 4  # self-reports may take a quarter of the block, and what the sources leave
_CONDENSED_SHARE = 6  # of a source that overflows, for the lines that condense the rest
_LINE_SHARE = 16  # no item of a source that overflows takes more than this part of it,
_LINE_MIN = 48 * QUARTERS  # or this
_SOURCE_MIN = 40 * QUARTERS  # below this a source says nothing: the smallest make room for the others
_PERIOD_MIN = 30 * QUARTERS
_EXCERPT_MAX = 20 * QUARTERS  # of one text in a condensed line
_NAME_MAX = 16 * QUARTERS
_NAME_CHARS = 32  # of a name that is one long word
_RAW_MARGIN = 4000  # characters beyond the budget that are read of a text, so that no address is cut in two

_DAYS_PER_YEAR = 365.25
_YEAR = r"(?:19|20)\d\d"
_TIME = rf"{_YEAR}(?:-\d\d(?:-\d\d)?)?"
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
_TIME_PREFIX = re.compile(rf"\[({_TIME})\](?: |\Z)", re.ASCII)
# "(1995)" at the end is far more often the year of a film than a weight: such a weight is printed "(x1, 1995)".
_SUFFIX = re.compile(rf" \((?:x(\d+)(?:, ({_NUMBER}))?|(?!{_YEAR}\))({_NUMBER}))\)\Z", re.ASCII)
_CONDENSED = re.compile(r"(\d{1,3}(?:,\d{3})*) (?:more )?items?: ", re.ASCII)
_WRITTEN_TIME = re.compile(
    rf"({_YEAR})(?:[-/.年](\d{{1,2}})(?:[-/.月](\d{{1,2}}))?|(\d\d)(\d\d))?[年月日]?(?:[T ,+Z].*)?\Z", re.ASCII | re.DOTALL
)
_EPOCH_TIME = re.compile(r"(\d{9,13})(?:\.\d*)?\Z", re.ASCII)


class CueLine(NamedTuple):
    """One line of a cue block, read back."""

    source: str
    text: str
    """Without time and suffix; of a self-report "field: value"; of a condensed line all of "N items: ..."."""
    count: int
    """How often; of a condensed line how many items it stands for."""
    weight: float | None
    time: str | None
    start: int
    """Offset in the block of what follows "- ", time and suffix included."""
    end: int
    """Offset of the end of the line."""
    condensed: bool = False
    """True of a line that stands for many items and names the foremost."""


class AssembledCues(BaseModel):
    """What `assemble_cues` made of a record."""

    text: str
    """The cue block."""
    self_reported: dict[str, str]
    """The self-reported fields as the block shows them."""
    tokens: int
    """`estimate_tokens(text)`."""
    dropped: dict[str, int]
    """What is not in the block as it was in the record. Only what occurred is listed.

    Items, by their counts: `dropped_items` nowhere in the block; `condensed_items` counted in a condensed line;
    `empty_items` without any text; `merged_items` entries that were equal to an earlier one.
    `dropped_sources`, `dropped_fields`, `empty_fields`. Texts: `cut_texts` shown to an ellipsis;
    `unreadable_times`; `redacted_user`, `_handle`, `_email`, `_phone`, `_url`: placeholders put in, a text
    that repeats counted once.
    """


def cue_lines(block: str) -> list[CueLine]:
    """Read a cue block back, line by line; offsets are characters of `block`. Unknown lines are passed over."""
    found: list[CueLine] = []
    source, start = "", 0
    for line in block.split("\n"):
        end = start + len(line)
        if line.startswith("[") and line.endswith("]"):
            source = line[1:-1]
        elif line.startswith("- ") and source:
            found.append(_read_line(source, line[2:], start + 2, end))
        start = end + 1
    return found


def _read_line(source: str, content: str, start: int, end: int) -> CueLine:
    if source == SELF_REPORTED:
        return CueLine(source, content, 1, None, None, start, end)
    time = None
    if (prefix := _TIME_PREFIX.match(content)) is not None:
        time, content = prefix[1], content[prefix.end() :]
    if (many := _CONDENSED.match(content)) is not None:
        return CueLine(source, content, int(many[1].replace(",", "")), None, time, start, end, condensed=True)
    count, weight = 1, None
    if (suffix := _SUFFIX.search(content)) is not None:
        number = suffix[2] or suffix[3]
        count, weight = int(suffix[1] or 1), None if number is None else float(number)
        content = content[: suffix.start()]
    return CueLine(source, content, count, weight, time, start, end)


def assemble_cues(record: UserRecord, *, token_budget: int = 3000) -> AssembledCues:
    """The cue block of `record`, of at most `token_budget` estimated tokens.

    1. Every text is sanitised and anonymised (`Redactor`); names of sources and fields too.
    2. Items of a source that are equal but for case, width and space become one: counts and weights are summed,
       the latest time stays.
    3. They are ordered by `log2(amount) + latest time in years`, where the amount is the weight, or the count of
       an item without one: being twice as much outweighs being one year older. An item without a time among
       others that have one counts as a year older than the newest. Equals stay in the order of the record.
    4. Self-reports get up to a quarter of the budget, the sources share the rest: equally, and what one does not
       need goes to the others. If there are too many for each to say something, the smallest are dropped.
    5. A source that fits its share stands there verbatim; long texts are cut to an equal length if that is
       enough. Else the foremost items stand there verbatim and the rest is condensed, by month if there is
       room for each month, else by year.

    Deterministic: the same record gives the same block. Raises `InputError` for a budget below 1.
    """
    if token_budget < 1:
        raise InputError(f"the token budget of the cues should be 1 or more, found {token_budget}")
    dropped: Counter[str] = Counter()
    budget = token_budget * QUARTERS
    cleaner = _Cleaner(record.user_id, budget, dropped)
    fields = _fields(record.self_reported, cleaner)
    sources = _sources(record.sources, cleaner)

    reported_need = _reported_cost(fields)
    needs = {name: _need(name, entries, budget) for name, entries in sources.items()}
    reported_share = min(reported_need, max(budget // _REPORTED_SHARE, budget - sum(needs.values())))
    shares = _shares(needs, sources, budget - reported_share)

    lines: list[str] = []
    for name, entries in sources.items():
        room = shares.get(name, 0) - _cost_of_line(_heading(name))
        if shown := _source_lines(entries, room, cleaner):
            lines += (_heading(name), *shown)
        else:
            dropped["dropped_sources"] += 1
    fields = _fit_fields(fields, reported_share, cleaner)
    if fields:
        lines += (_heading(SELF_REPORTED), *(f"- {key}: {value}" for key, value in fields.items()))
    text = "\n".join(lines)
    dropped.update({f"redacted_{kind}": n for kind, n in cleaner.redactor.counts.items()})
    return AssembledCues(
        text=text,
        self_reported=fields,
        tokens=estimate_tokens(text),
        dropped={key: n for key, n in sorted(dropped.items()) if n},
    )


# --- from items to entries --------------------------------------------------------------------------------


class _Cleaner:
    """Makes texts safe, cuts them, and keeps the counts of one record."""

    def __init__(self, user_id: str, budget: int, dropped: Counter[str]) -> None:
        self.redactor = Redactor(user_id)
        self.dropped = dropped
        self._limit = budget + _RAW_MARGIN

    def text(self, raw: str) -> str:
        """Sanitised and anonymised. Of a text far beyond the budget only as much as could be shown is read."""
        if len(raw) > self._limit:
            self.dropped["cut_texts"] += 1
            end = last_boundary(raw, self._limit)
            raw = raw[:end] + ELLIPSIS if end else ""
        return self.redactor.clean(raw)

    def name(self, raw: str) -> str:
        """Of a source or a field: short, without square brackets and colons."""
        name = re.sub(r"[\[\]:：]", lambda m: {"[": "(", "]": ")"}.get(m[0], " "), self.text(raw))
        name = " ".join(name.split())
        if cost(name) > _NAME_MAX:
            name = cut(name, _NAME_MAX) or name[:_NAME_CHARS].rstrip() + ELLIPSIS
        return name or "unnamed"

    def cut(self, text: str, budget: int) -> str:
        """`fitting.cut`, counted; empty if nothing fits."""
        if cost(text) <= budget:
            return text
        # A cut can make a phone number of a longer row of digits, so that it is looked at once more.
        shorter = self.redactor.redact(cut(text, budget))
        if cost(shorter) > budget:
            return ""
        self.dropped["cut_texts"] += bool(shorter)
        return shorter


def _fields(raw: dict[str, str], cleaner: _Cleaner) -> dict[str, str]:
    fields: dict[str, str] = {}
    for raw_key, raw_value in raw.items():
        key, value = cleaner.name(raw_key), cleaner.text(raw_value)
        if not value:
            cleaner.dropped["empty_fields"] += 1
        elif fields.setdefault(key, value) != value:  # two names that are one after cleaning
            fields[key] += f"; {value}"
    return fields


def _sources(raw: dict[str, list[CueItem]], cleaner: _Cleaner) -> dict[str, list[_Entry]]:
    """Entries by source, foremost first. Sources whose names are one after cleaning are one source."""
    merged: dict[str, dict[str, _Entry]] = {}
    for raw_name, items in raw.items():
        if items:
            name = cleaner.name(raw_name)
            if name.casefold() == SELF_REPORTED:  # what a user says cannot pose as another part of the block
                name += " items"
            _merge(items, merged.setdefault(name, {}), cleaner)
    return {name: _ordered(entries.values()) for name, entries in merged.items() if entries}


def _merge(items: Iterable[CueItem], entries: dict[str, _Entry], cleaner: _Cleaner) -> None:
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
            entries[key] = _Entry(text, count, weight, day, time)
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


def _ordered(entries: Iterable[_Entry]) -> list[_Entry]:
    """Foremost first (rule 3 of `assemble_cues`)."""
    found = list(entries)
    untimed = max((e.day for e in found if e.day is not None), default=0) - _DAYS_PER_YEAR

    def score(entry: _Entry) -> float:
        amount = entry.count if entry.weight is None else entry.weight
        years = (untimed if entry.day is None else entry.day) / _DAYS_PER_YEAR
        return math.log2(amount) + years if amount > 0 else -math.inf

    return sorted(found, key=score, reverse=True)  # stable, also in reverse


# --- from entries to lines --------------------------------------------------------------------------------


def _heading(name: str) -> str:
    return f"[{name}]"


def _line(entry: _Entry, text: str) -> str:
    """The line of an entry, written so that `cue_lines` reads back what was meant."""
    if entry.time is None and (prefix := _TIME_PREFIX.match(text)) is not None:
        text = f"({prefix[1]}){text[prefix.end(1) + 1 :]}"
    if _CONDENSED.match(text) is not None:
        text = text.replace(":", ";", 1)
    weight = None if entry.weight is None else f"{entry.weight:g}"
    suffix = ""
    if weight is None:
        if entry.count > 1 or _SUFFIX.search(text) is not None:
            suffix = f" (x{entry.count})"
    elif entry.count > 1 or re.fullmatch(_YEAR, weight):
        suffix = f" (x{entry.count}, {weight})"
    else:
        suffix = f" ({weight})"
    return f"- {'' if entry.time is None else f'[{entry.time}] '}{text}{suffix}"


def _cost_of_line(line: str) -> int:
    return cost(line) + 1


def _need(name: str, entries: Iterable[_Entry], enough: int) -> int:
    """What the source costs in full; no more is counted once it is above `enough`."""
    need = _cost_of_line(_heading(name))
    for entry in entries:
        need += _cost_of_line(_line(entry, entry.text))
        if need > enough:
            break
    return need


def _shares(needs: dict[str, int], sources: dict[str, list[_Entry]], budget: int) -> dict[str, int]:
    """The budget of each source that gets one (rule 4 of `assemble_cues`)."""
    sizes = {name: sum(e.count for e in entries) for name, entries in sources.items()}
    chosen: list[str] = []
    least = 0
    for name in sorted(needs, key=sizes.__getitem__, reverse=True):
        this = min(needs[name], _SOURCE_MIN)
        if not chosen or least + this <= budget:
            chosen.append(name)
            least += this
    level = fair_level((needs[name] for name in chosen), budget)
    return {name: min(needs[name], level) for name in chosen}


def _source_lines(entries: Sequence[_Entry], room: int, cleaner: _Cleaner) -> list[str]:
    """The lines of a source in `room` quarter tokens (rule 5 of `assemble_cues`)."""
    lines: list[str] = []
    rest: list[_Entry] = []
    costs = [_cost_of_line(_line(e, e.text)) for e in entries[: max(0, room)]]
    level = fair_level(costs, room) if len(costs) == len(entries) else 0
    condensed_room = 0
    if level < min(_LINE_MIN, max(costs, default=0)):
        condensed_room = room // _CONDENSED_SHARE
        level = max(_LINE_MIN, room // _LINE_SHARE)
    left = room - condensed_room
    for i, entry in enumerate(entries):
        line = _cut_line(entry, min(level, left) - 1, cleaner) if left > 0 else ""
        ...
    return lines
