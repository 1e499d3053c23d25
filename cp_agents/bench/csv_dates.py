"""A column of dates, read in one way for all its cells.

`1/2/2025` is two days: which one, the whole column decides (a 13 in it), or the user with `--date-format`. All other
spellings say themselves what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cp_agents.errors import InputError

ORDERS = ("day-first", "month-first")

_YEARS = range(1900, 2100)
_LONGEST = 64
_MONTHS = {m: i + 1 for i, m in enumerate(re.findall("...", "janfebmaraprmayjunjulaugsepoctnovdec"))}
_CLOCK = (
    r"(?:[T,\s]+|(?<=[日号]))(?P<early>上午|下午|早上|晚上|中午|凌晨)?\s*(?P<hour>\d{1,2})(?:[:：时点.h](?P<minute>\d{1,2})"
    r"(?:[:：分.](?P<second>\d{1,2})(?:[.,](?P<fraction>\d{1,9}))?)?[秒分]?)?\s*(?P<late>[AaPp]\.?[Mm]\.?)?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2})?"
)
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_MONTH = r"(?P<name>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_YEAR_FIRST = re.compile(
    rf"(?P<year>\d{{4}})\s*[-/.年]\s*(?P<month>\d{{1,2}})(?:\s*[-/.月]\s*(?P<day>\d{{1,2}})\s*[日号]?(?:{_CLOCK})?|月)?"
)
_ORDERED = re.compile(
    rf"(?P<a>\d{{1,2}})\s*(?P<mark>[-/.])\s*(?P<b>\d{{1,2}})\s*(?P=mark)\s*(?P<year>\d{{4}}|\d{{1,2}})(?:{_CLOCK})?"
)
_NAMED = (
    re.compile(
        rf"{_WEEKDAY}(?P<day>\d{{1,2}})(?:st|nd|rd|th)?[-\s.]+(?:of\s+)?{_MONTH},?[-\s]+(?P<year>\d{{4}}|\d\d)(?:{_CLOCK})?",
        re.I,
    ),
    re.compile(rf"{_WEEKDAY}{_MONTH}\s*(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}})(?:{_CLOCK})?", re.I),
    # As Twitter and C's asctime write it: Fri May 02 13:00:00 +0000 2025.
    re.compile(
        rf"{_WEEKDAY}{_MONTH}\s+(?P<day>\d{{1,2}})\s+(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\s+"
        r"(?P<zone>[+-]\d{4}|UTC|GMT)?\s*(?P<year>\d{4})", re.I),
)  # fmt: skip
_PACKED = re.compile(
    r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)(?:[T ]?(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d))?"
)
_EPOCH = re.compile(r"(\d{9,10}|\d{12,13}|\d{15,16})(?:\.\d+)?", re.ASCII)
_YEAR_ALONE = re.compile(r"\d{4}年?", re.ASCII)
_AFTER_NOON = ("下午", "晚上")


class Time(NamedTuple):
    """A time as a record has it, and where it stands in order."""

    written: str
    """ISO 8601: a year, a month, a day or a date-time, in the zone that it was written in."""
    at: int
    """Microseconds since 1970; without a zone as if in the column's."""


class DateColumn:
    """Reads the cells of one column.

    `order` is how `1/2/2025` is read (one of `ORDERS`; None leaves such cells unread), `pattern` the strptime pattern
    of all cells, if there is one, `zone` that of cells without one and that epochs are written in.
    """

    def __init__(
        self, order: str | None = None, pattern: str | None = None, zone: tzinfo | None = None
    ) -> None:
        self.read: Callable[[str], Time | None] = lru_cache(maxsize=1 << 16)(self._read)
        """The time that a cell says, or None."""
        self._order = order
        self._pattern = pattern
        self._timed = pattern is not None and re.search("%[HIXcTRsf]", pattern) is not None
        self._zone = zone

    def _read(self, cell: str) -> Time | None:
        if len(cell) > _LONGEST:
            return None
        try:
            if self._pattern is not None:
                return self._time(datetime.strptime(cell, self._pattern), timed=self._timed)
            if "-" in cell[4:5] and cell.isascii() and len(cell) >= 10 and cell[:4].isdigit():
                return self._time(datetime.fromisoformat(cell), timed=len(cell) > 10)
        except (ValueError, OverflowError):
            if self._pattern is not None:
                return None
        try:
            return self._spelled(cell)
        except (ValueError, OverflowError):
            return None

    def _spelled(self, cell: str) -> Time | None:
        if (epoch := _EPOCH.fullmatch(cell)) is not None:
            size = len(epoch[1])
            micros = int(epoch[1]) * (10**6 if size < 12 else 1000 if size < 15 else 1)
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
            return self._time(moment.astimezone(self._zone) if self._zone else moment, timed=True)
        if (match := _ORDERED.fullmatch(cell)) is not None:
            a, b = int(match["a"]), int(match["b"])
            order = self._order or ("day-first" if a > 12 or a == b else "month-first" if b > 12 else None)
            if order is None or (len(match["year"]) < 4 and (self._order is None or len(match["year"]) == 1)):
                return None
            day, month = (a, b) if order == "day-first" else (b, a)
            return self._parts(match, _full_year(match["year"]), month, day)
        if (match := _PACKED.fullmatch(cell)) is not None or (
            match := _YEAR_FIRST.fullmatch(cell)
        ) is not None:
            if match["day"] is None:
                return self._short(int(match["year"]), int(match["month"]))
            return self._parts(match, int(match["year"]), int(match["month"]), int(match["day"]))
        for pattern in _NAMED:
            if (match := pattern.fullmatch(cell)) is not None:
                return self._parts(
                    match, _full_year(match["year"]), _MONTHS[match["name"].lower()], int(match["day"])
                )
        if _YEAR_ALONE.fullmatch(cell) is not None:
            return self._short(int(cell[:4]))
        return None

    def _parts(self, match: re.Match[str], year: int, month: int, day: int) -> Time | None:
        said = match.groupdict()
        if said.get("hour") is None:
            return self._time(datetime(year, month, day), timed=False)
        hour = int(said["hour"])
        half = said.get("late") or ""
        if hour < 12 and (half[:1] in ("p", "P") or said.get("early") in _AFTER_NOON):
            hour += 12
        elif hour == 12 and (half[:1] in ("a", "A") or said.get("early") == "凌晨"):
            hour = 0
        micros = int((said.get("fraction") or "0")[:6].ljust(6, "0"))
        minute, second = int(said.get("minute") or 0), int(said.get("second") or 0)
        moment = datetime(year, month, day, hour, minute, second, micros, _offset(said.get("zone")))
        return self._time(moment, timed=True)

    def _time(self, moment: datetime, *, timed: bool) -> Time | None:
        if moment.year not in _YEARS:
            return None
        aware = moment if moment.tzinfo else moment.replace(tzinfo=self._zone or UTC)
        at = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        if not timed:
            return Time(moment.date().isoformat(), at)
        written = (aware if self._zone else moment).isoformat()
        return Time(written.removesuffix("+00:00") + "Z" if written.endswith("+00:00") else written, at)

    def _short(self, year: int, month: int | None = None) -> Time | None:
        first = date(year, month or 1, 1)
        time = self._time(datetime(year, first.month, 1), timed=False)
        return None if time is None else time._replace(written=time.written[: 4 if month is None else 7])


def _full_year(written: str) -> int:
    year = int(written)
    return year if len(written) == 4 else year + (2000 if year < 69 else 1900)


def _offset(zone: str | None) -> tzinfo | None:
    if zone is None:
        return None
    if zone[0] not in "+-":
        return UTC
    digits = zone[1:].replace(":", "").ljust(4, "0")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(size if zone[0] == "+" else -size)


@lru_cache(maxsize=1 << 14)
def looks_like_date(cell: str) -> bool:
    """Whether a cell is a date in any order of day and month; a bare number of four digits is none."""
    if not 6 <= len(cell) <= _LONGEST:
        return False
    return any(DateColumn(order).read(cell) is not None for order in ORDERS)


class OrderSurvey:
    """Counts what a column's cells say about the order of day and month."""

    def __init__(self) -> None:
        self.cells = 0
        """Cells that could be either."""
        self.example = ""
        self.first: dict[str, tuple[int, str]] = {}
        """The first line and cell that can only be read in this order."""
        self.short = ""
        """A cell with a year of two digits, which could as well be a day."""

    def add(self, line: int, cell: str) -> None:
        """Look at one cell."""
        if len(cell) > _LONGEST or (match := _ORDERED.fullmatch(cell)) is None:
            return
        a, b = int(match["a"]), int(match["b"])
        if len(match["year"]) < 4:
            self.short = self.short or cell
        elif a > 12 and b <= 12:
            self.first.setdefault("day-first", (line, cell))
        elif b > 12 and a <= 12:
            self.first.setdefault("month-first", (line, cell))
        elif a != b:
            self.cells += 1
            self.example = self.example or cell

    def decide(self, column: str) -> str | None:
        """The order, or None where no cell needs one. Raises `InputError` where the column does not tell."""
        if self.short:
            raise InputError(
                f"the dates of column {column!r} have years of two digits ({self.short!r}); say which part is what,"
                " such as --date-format '%d/%m/%y'"
            )
        if len(self.first) == 1:
            return next(iter(self.first))
        if self.first:
            (day_line, day), (month_line, month) = self.first["day-first"], self.first["month-first"]
            raise InputError(
                f"the dates of column {column!r} are in two orders: {day!r} on line {day_line} has the day first,"
                f" {month!r} on line {month_line} the month; say --date-format day-first or month-first, and those"
                " of the other kind lose their time"
            )
        if self.cells:
            raise InputError(
                f"the dates of column {column!r} can be read in two ways ({self.example!r}, and no cell has a day"
                " above 12); say --date-format day-first or --date-format month-first"
            )
        return None


def check_date_format(written: str | None) -> tuple[str | None, str | None]:
    """`--date-format` as an order and a pattern of strptime, one of them None.

    Raises `InputError` where it is neither.
    """
    if written is None or written in ORDERS:
        return written, None
    try:
        shown = datetime(2025, 11, 23, 14, 5, 6, tzinfo=UTC).strftime(written)
        datetime.strptime(shown, written)
        if "%" in written and shown != written:
            return None, written
    except (ValueError, re.error):
        pass
    raise InputError(
        f"the date format {written!r} is none: expected day-first, month-first or a pattern such as '%d.%m.%Y %H:%M'"
    )


def find_zone(name: str | None) -> tzinfo | None:
    """A time zone by its name, such as Asia/Shanghai. Raises `InputError` where there is none of that name."""
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InputError(f"no time zone {name!r}: expected a name such as Asia/Shanghai or UTC") from None
