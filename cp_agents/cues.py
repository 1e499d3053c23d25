"""From a record to its cue block: the one text about a user that a model sees, and that the store keeps.

    [watched]
    - [2024-05-03] Baby stroller review (x3)
    - Comparing prams (x2, 40.5)
    - [2021] 1,204 items: stroller (x40), diapers (x22)
    [self_reported]
    - gender: Male

A heading `[source]`, then its items: `- [time] text (xCOUNT, WEIGHT)`. Time is a day, a month or a year as
the record has it, without the time of day; COUNT stands there if it is above 1, WEIGHT if the item has one.
The last lines of a long source condense what did not fit, by month or year where the items have a time:
`- [period] N items: text (xCOUNT), ...`, else `- N more items: ...`. `[self_reported]` comes last, `- field: value`.

All text of the user has been through `anonymise`, stands on one line and starts behind "- ", so none of it can
close a fence or open a heading. Where a text would read as a part of the line that it is not, the line says
it otherwise: "Area (51)" is printed `Area (51) (x1)`, an untimed "[2021] review" `(2021) review`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from cp_agents.errors import InputError
from cp_agents.fitting import QUARTERS, cost, estimate_tokens, fair_level
from cp_agents.history import YEAR, Cleaner, Entry, read_fields, read_sources
from cp_agents.schema import SELF_REPORTED, UserRecord

__all__ = ["AssembledCues", "CueLine", "assemble_cues", "cue_lines", "estimate_tokens"]

# Shares of a budget, as divisors, and sizes in quarter tokens.
_REPORTED_SHARE = 4  # self-reports may take a quarter of the block, and what the sources leave
_FIELD_SHARE = 8  # of the self-reports, for each field if there are many
_CONDENSED_SHARE = 6  # of a source that overflows, for the lines that condense the rest
_LINE_SHARE = 16  # no item of a source that overflows takes more than this part of it,
_LINE_MIN = 48 * QUARTERS  # or this
_SOURCE_MIN = 40 * QUARTERS  # below this a source says nothing: the smallest make room for the others
_PERIOD_MIN = 30 * QUARTERS
_EXCERPT_MAX = 20 * QUARTERS  # of one text in a condensed line
_EXCERPT_MIN = 6 * QUARTERS

_TIME = rf"{YEAR}(?:-\d\d(?:-\d\d)?)?"
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
_TIME_PREFIX = re.compile(rf"\[({_TIME})\](?: |\Z)", re.ASCII)
# "(1995)" at the end is far more often the year of a film than a weight: such a weight is printed "(x1, 1995)".
_SUFFIX = re.compile(rf" \((?:x(\d+)(?:, ({_NUMBER}))?|(?!{YEAR}\))({_NUMBER}))\)\Z", re.ASCII)
_CONDENSED = re.compile(r"(\d{1,3}(?:,\d{3})*) (?:more )?items?:(?: |\Z)", re.ASCII)


EntryKey = tuple[str, str]
"""Names an entry: its source, and its text as it stands in the block."""


class CueLine(NamedTuple):
    """One line of a cue block, read back."""

    source: str
    text: str
    """Without time and suffix; of a self-report "field: value"; of a condensed line all of "N items: ..."."""
    count: int  # type: ignore[assignment]  # tuple.count gives way to the field
    """How often; of a condensed line how many items it stands for."""
    weight: float | None
    time: str | None
    start: int
    """Offset in the block of what follows "- ", time and suffix included."""
    end: int
    """Offset of the end of the line."""
    condensed: bool = False
    """True of a line that stands for many items and names the largest."""


class AssembledCues(BaseModel):
    """What `assemble_cues` made of a record."""

    text: str
    """The cue block."""
    self_reported: dict[str, str]
    """The self-reported fields as the block shows them."""
    tokens: int
    """`estimate_tokens(text)`."""
    dropped: dict[str, int]
    """What is not in the block as it was in the record; only what occurred is listed.

    Items, by their counts: `dropped_items` are nowhere in the block, `empty_items` had no text that could be shown,
    `condensed_items` are counted in a condensed line. By entries: `merged_items` were equal to an earlier one,
    `unreadable_times`, `dropped_sources`, `dropped_fields`, `empty_fields`. By texts: `cut_texts` end in an
    ellipsis; `redacted_user`, `_handle`, `_email`, `_phone`, `_url` are placeholders put in, those of a text
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


def assemble_cues(
    record: UserRecord,
    *,
    token_budget: int = 3000,
    foremost: Collection[EntryKey] = (),
    condensed: bool = True,
) -> AssembledCues:
    """The cue block of `record`, of at most `token_budget` estimated tokens.

    1. Every text is sanitised and anonymised (`anonymise.Redactor`); names of sources and fields too.
    2. Items of a source that are equal but for case and width become one: counts and weights are summed, the
       latest time stays.
    3. They are ordered by `log2(amount) + latest time in years`, where the amount is the weight, or the count of
       an item without one: twice as much weighs as much as a year later. An item without a time among
       others that have one counts as a year older than the newest. Equals stay in the order of the record.
    4. Self-reports get up to a quarter of the budget, the sources share the rest: equally, and what one does not
       need goes to the others. If there are too many for each to say something, the smallest are dropped.
    5. A source that fits its share stands there verbatim; long texts are cut to an equal length if that is
       enough. Else the foremost items stand there verbatim and the rest is condensed: by month if there is room
       for each, else by year, with the oldest and the untimed in one line.

    Entries in `foremost` come first of their source, before what rule 3 says (see `cp_agents.selection`). Without
    `condensed` what does not fit is dropped.

    Deterministic: the same record gives the same block. Raises `InputError` for a budget below 1.
    """
    if token_budget < 1:
        raise InputError(f"the token budget of the cues should be 1 or more, found {token_budget}")
    dropped: Counter[str] = Counter()
    budget = token_budget * QUARTERS
    cleaner = Cleaner(record.user_id, budget, dropped)
    fields = read_fields(record.self_reported, cleaner)
    sources = read_sources(record.sources, cleaner)
    if foremost:  # stable: rule 3 decides among those, and among the others
        for name, entries in sources.items():
            chosen = {text for source, text in foremost if source == name}
            sources[name] = sorted(entries, key=lambda entry: entry.text not in chosen)

    needs = {name: _need(name, entries, budget) for name, entries in sources.items()}
    reported = min(_fields_cost(fields), max(budget // _REPORTED_SHARE, budget - sum(needs.values())))
    shares = _shares(needs, sources, budget - reported)

    lines: list[str] = []
    for name, entries in sources.items():
        if shown := _source_lines(
            entries, shares.get(name, 0) - _line_cost(_heading(name)), cleaner, condensed
        ):
            lines += (_heading(name), *shown)
        else:
            dropped["dropped_sources"] += 1
    fields = _fit_fields(fields, reported - _line_cost(_heading(SELF_REPORTED)), cleaner)
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


def _heading(name: str) -> str:
    return f"[{name}]"


def _line(entry: Entry, text: str) -> str:
    """The line of an entry, written so that `cue_lines` reads back what was meant."""
    if entry.time is None and (prefix := _TIME_PREFIX.match(text)) is not None:
        text = f"({prefix[1]}){text[prefix.end(1) + 1 :]}"
    if _CONDENSED.match(text) is not None:
        text = text.replace(":", ";", 1)
    suffix = ""
    if entry.weight is None:
        if entry.count > 1 or _SUFFIX.search(text) is not None:
            suffix = f" (x{entry.count})"
    else:
        weight = f"{entry.weight:g}"
        plain = entry.count == 1 and re.fullmatch(YEAR, weight) is None
        suffix = f" ({weight})" if plain else f" (x{entry.count}, {weight})"
    return f"- {'' if entry.time is None else f'[{entry.time}] '}{text}{suffix}"


def _line_cost(line: str) -> int:
    return cost(line) + 1  # with its line break


def _need(name: str, entries: Iterable[Entry], enough: int) -> int:
    """What the source costs in full; not counted further once it is above `enough`."""
    need = _line_cost(_heading(name))
    for entry in entries:
        need += _line_cost(_line(entry, entry.text))
        if need > enough:
            break
    return need


def _shares(needs: dict[str, int], sources: dict[str, list[Entry]], budget: int) -> dict[str, int]:
    """The budget of each source that gets one (rule 4 of `assemble_cues`)."""
    sizes = {name: sum(e.count for e in entries) for name, entries in sources.items()}
    chosen: list[str] = []
    taken = 0
    for name in sorted(needs, key=sizes.__getitem__, reverse=True):
        least = min(needs[name], _SOURCE_MIN)
        if not chosen or taken + least <= budget:
            chosen.append(name)
            taken += least
    level = fair_level((needs[name] for name in chosen), budget)
    return {name: min(needs[name], level) for name in chosen}


def _source_lines(entries: Sequence[Entry], room: int, cleaner: Cleaner, condensed: bool) -> list[str]:
    """The lines of a source in `room` quarter tokens (rule 5 of `assemble_cues`)."""
    if room <= 0:
        return _drop(entries, cleaner)
    costs = [_line_cost(_line(e, e.text)) for e in entries[:room]]
    level = fair_level(costs, room) if len(costs) == len(entries) else 0
    if level >= min(_LINE_MIN, max(costs)):
        return [line for e in entries if (line := _cut_line(e, level, cleaner)) or _drop([e], cleaner)]
    lines: list[str] = []
    rest: list[Entry] = []
    condensed_room = room // _CONDENSED_SHARE if condensed else 0
    left = room - condensed_room
    level = max(_LINE_MIN, room // _LINE_SHARE)
    for i, entry in enumerate(entries):
        line = _cut_line(entry, level if lines else min(level, left), cleaner)
        if not line:
            rest.append(entry)
        elif _line_cost(line) > left:
            rest += entries[i:]
            break
        else:
            lines.append(line)
            left -= _line_cost(line)
    return lines + (_condensed_lines if condensed else _drop_all)(rest, left + condensed_room, cleaner)


def _drop(entries: Iterable[Entry], cleaner: Cleaner) -> list[str]:
    cleaner.dropped["dropped_items"] += sum(e.count for e in entries)
    return []


def _drop_all(rest: Sequence[Entry], _: int, cleaner: Cleaner) -> list[str]:
    return _drop(rest, cleaner)


def _cut_line(entry: Entry, budget: int, cleaner: Cleaner) -> str:
    """The entry's line with its text cut to fit; empty if not even a word fits."""
    line = _line(entry, entry.text)
    if _line_cost(line) <= budget:
        return line
    text = cleaner.cut(entry.text, budget - _line_cost(_line(entry, "")))
    return _line(entry, text) if text else ""


def _condensed_lines(rest: Sequence[Entry], room: int, cleaner: Cleaner) -> list[str]:
    """One line a period, the newest first, and one for what has no time or is older than there is room for."""
    periods = _by_period(rest, len("2024-05"))
    if len(periods) * _PERIOD_MIN > room:
        periods = _by_period(rest, len("2024"))
    newest = sorted(periods, reverse=True)
    for period in newest[max(0, room // _PERIOD_MIN - 1) :] if len(periods) * _PERIOD_MIN > room else ():
        if period:
            periods.setdefault("", []).extend(periods.pop(period))
    lines: list[str] = []
    for left, period in zip(range(len(periods), 0, -1), sorted(periods, reverse=True), strict=True):
        line = _condensed_line(period, periods[period], room // left, cleaner)
        if line:
            lines.append(line)
            room -= _line_cost(line)
        else:
            _drop(periods[period], cleaner)
    return lines


def _by_period(entries: Iterable[Entry], digits: int) -> dict[str, list[Entry]]:
    """Entries by the first `digits` characters of their time; "" where there is none."""
    periods: dict[str, list[Entry]] = {}
    for entry in entries:
        periods.setdefault((entry.time or "")[:digits], []).append(entry)
    return periods


def _condensed_line(period: str, entries: Sequence[Entry], room: int, cleaner: Cleaner) -> str:
    """`- [period] N items: text (xCOUNT), ...` with as many of the largest as there is room for."""
    total = sum(e.count for e in entries)
    noun = "item" if total == 1 else "items"
    line = f"- [{period}] {total:,} {noun}: " if period else f"- {total:,} more {noun}: "
    room -= _line_cost(line)
    parts: list[str] = []
    for entry in sorted(entries, key=lambda e: e.amount, reverse=True)[: max(0, room)]:
        if parts and room < _EXCERPT_MIN:
            break
        suffix = f" (x{entry.count})" if entry.count > 1 else ""
        separator = ", " if parts else ""
        text = cleaner.cut(entry.text, min(_EXCERPT_MAX, room - len(suffix) - len(separator)))
        if text:
            parts.append(text + suffix)
            room -= cost(text) + len(suffix) + len(separator)
        elif parts:
            break
    if not parts:
        return ""
    cleaner.dropped["condensed_items"] += total
    return line + ", ".join(parts)


def _fields_cost(fields: dict[str, str]) -> int:
    lines = (f"- {key}: {value}" for key, value in fields.items())
    return _line_cost(_heading(SELF_REPORTED)) + sum(map(_line_cost, lines)) if fields else 0


def _fit_fields(fields: dict[str, str], room: int, cleaner: Cleaner) -> dict[str, str]:
    """The fields as they are shown in `room` quarter tokens, long values cut."""
    costs = [_line_cost(f"- {key}: {value}") for key, value in fields.items()]
    level = max(fair_level(costs, room), room // _FIELD_SHARE)
    shown: dict[str, str] = {}
    for key, value in fields.items():
        head = _line_cost(f"- {key}: ")
        if text := cleaner.cut(value, min(level, room) - head):
            shown[key] = text
            room -= head + cost(text)
        else:
            cleaner.dropped["dropped_fields"] += 1
    return shown
