"""A table's rows, checked one by one and put down by user; what does not fit is counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cp_agents.bench.csv_dates import DateColumn, OrderSurvey, check_date_format, find_zone
from cp_agents.bench.csv_group import UserRows
from cp_agents.bench.csv_map import ColumnMap, Plan
from cp_agents.bench.csv_read import Lines, Row, Table, read_rows
from cp_agents.bench.csv_truth import Truth
from cp_agents.bench.csv_values import Missing, is_rounded
from cp_agents.bench.dataset import Card
from cp_agents.errors import InputError
from cp_agents.schema import read_user_id

_EVERY = 100_000
_LONG, _SHORT = "rows with too many cells", "rows with too few cells"
_UNREAD = "times that cannot be read"


@dataclass
class Report:
    """What became of a table."""

    table: Table
    order: str | None = None
    """How day and month stand in the time column, where that mattered."""
    rows: int = 0
    """Rows that are not blank."""
    times: int = 0
    """Cells of the time column that are not empty."""
    users: int = 0
    events: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows and users that were not taken over, by reason."""
    first: dict[str, int] = field(default_factory=dict)
    """The first line of each reason, for those that have one."""
    doubts: Counter[str] = field(default_factory=Counter)
    """What was taken over in part, or mended, by kind."""
    notes: list[str] = field(default_factory=list)
    card: Card | None = None
    """As it was written; None until then."""
    truth: dict[str, Truth] = field(default_factory=dict)

    def skip(self, reason: str, line: int) -> None:
        """Count a row that is left out."""
        self.left_out[reason] += 1
        self.first.setdefault(reason, line)

    def doubt(self, kind: str, line: int) -> None:
        """Count something of a row that is not as it should be."""
        self.doubts[kind] += 1
        self.first.setdefault(kind, line)


def find_dates(table: Table, plan: Plan, column_map: ColumnMap) -> tuple[DateColumn, str | None]:
    """How the time column is read, and its order of day and month; looks at all of it where the map does not say.

    Raises `InputError` where the column does not tell, or the map's format or zone is none.
    """
    order, pattern = check_date_format(column_map.date_format)
    if plan.time is not None and column_map.date_format is None:
        survey, time = OrderSurvey(), plan.time
        for line, cells in read_rows(table):
            if time < len(cells):
                survey.add(line, cells[time].strip())
        order = survey.decide(table.columns[time])
    return DateColumn(order, pattern, find_zone(column_map.timezone)), order


def positions_of(plan: Plan) -> list[int]:
    """The columns whose cells are kept, each once."""
    wanted = [c for t in plan.texts for c in (t.column, t.weight, t.count) if c is not None]
    wanted += [c for _, c in plan.reported] + [g.column for g in plan.gold]
    return list(dict.fromkeys(wanted))


def load_rows(
    table: Table,
    plan: Plan,
    column_map: ColumnMap,
    rows: UserRows,
    report: Report,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Read the whole table into `rows`: the time as it is written, then the cells of `positions_of(plan)`.

    Raises `InputError` where so little is readable that the map or the format must be wrong.
    """
    dates, report.order = find_dates(table, plan, column_map)
    missing = Missing(column_map.file.missing)
    pad, width = column_map.file.pad_short_rows, len(table.columns)
    kept = [(i, _is_missing(i, plan, missing, report)) for i in positions_of(plan)]
    usable: dict[str, bool] = {}
    header = list(table.columns) if table.header else None
    lines: list[Lines] = []
    for line, cells in read_rows(table, lines):
        if not any(cells) or not any(map(str.strip, cells)):
            continue
        report.rows += 1
        if report.rows % _EVERY == 0:
            progress(report.rows)
        if len(cells) != width:
            fitted = _fit(Row(line, cells), width, pad, report)
            if fitted is None:
                continue
            cells = fitted
        if header is not None and cells[0].strip() == header[0] and [c.strip() for c in cells] == header:
            report.skip("lines that repeat the header", line)
            continue
        if plan.user is None:
            user = f"row-{report.rows}"
        elif missing(user := cells[plan.user].strip()):
            report.skip("rows without a user id", line)
            continue
        elif not _is_usable(user, usable, report, line):
            report.skip("rows whose user id is too long or holds control characters", line)
            continue
        at, written = None, None
        if plan.time is not None and not missing(cell := cells[plan.time].strip()):
            report.times += 1
            if (time := dates.read(cell)) is None:
                report.doubt(_UNREAD, line)
            else:
                written, at = time
        rows.add(
            user, at, [written, *(None if is_no(cell := cells[i].strip()) else cell for i, is_no in kept)]
        )
    progress(report.rows)
    for found in lines:
        report.doubts.update(
            {"NUL characters taken out": found.nulls, "wrong bytes replaced": found.replaced}
        )
    report.doubts += Counter()  # without the zeros
    _check_loaded(table, plan, report)


def _is_missing(column: int, plan: Plan, missing: Missing, report: Report) -> Callable[[str], bool]:
    """Whether a cell says nothing. In a column of truth "none" and "-" may be tags, or have one in the map."""
    truth = next((report.truth[g.attribute] for g in plan.gold if g.column == column), None)
    if truth is None:
        return missing
    return lambda cell: missing(cell) and not (cell and truth.is_known(cell))


def _fit(row: Row, width: int, pad: bool, report: Report) -> list[str] | None:
    """A row's cells at the table's width, or None where it does not fit."""
    line, cells = row
    if len(cells) > width:
        if not any(map(str.strip, cells[width:])):
            return cells[:width]
        report.skip(_LONG, line)
        return None
    if pad:
        report.doubt("rows with too few cells, filled up", line)
        return cells + [""] * (width - len(cells))
    report.skip(_SHORT, line)
    return None


def _is_usable(user: str, known: dict[str, bool], report: Report, line: int) -> bool:
    found = known.get(user)
    if found is None:
        try:
            read_user_id(user)
            found = True
        except InputError:
            found = False
        if is_rounded(user):
            report.doubt("user ids that a spreadsheet has rounded, so that several users may be one", line)
        if len(known) > _EVERY:
            known.clear()
        known[user] = found
    return found


def _check_loaded(table: Table, plan: Plan, report: Report) -> None:
    """Whether so little was readable that the map or the format must be wrong."""
    broken = report.left_out[_LONG] + report.left_out[_SHORT]
    if broken * 2 > report.rows:
        raise InputError(
            f"{table.name}: {broken:,} of {report.rows:,} rows do not have {len(table.columns)} cells"
            f" ({reasons(report.left_out, report.first)}); read as {table.described}: name another with --delimiter or"
            " --quotes, or say --pad-short-rows where only empty cells are missing"
        )
    unread = report.doubts.get(_UNREAD, 0)
    if plan.time is not None and unread * 2 > report.times:
        raise InputError(
            f"{table.name}: {unread:,} of {report.times:,} cells of column {table.columns[plan.time]!r} are no time"
            f" (first on line {report.first[_UNREAD]}); say how they are written with --date-format, such as"
            " '%d.%m.%Y %H:%M', or name another column"
        )


def reasons(counts: Counter[str], first: dict[str, int]) -> str:
    """Counts in words, the most frequent first, with the line of the first one."""
    return "; ".join(
        f"{reason}: {count:,}" + (f", first on line {first[reason]}" if reason in first else "")
        for reason, count in counts.most_common()
    ) or "it has no rows"  # fmt: skip
