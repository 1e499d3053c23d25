"""From a table and its column map to a data set's folder, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cp_agents.bench.csv_group import MOST_COLUMNS, UserRows
from cp_agents.bench.csv_load import Report, load_rows, positions_of, reasons
from cp_agents.bench.csv_map import ColumnMap, Plan, resolve
from cp_agents.bench.csv_read import Table
from cp_agents.bench.csv_truth import Truth
from cp_agents.bench.csv_values import is_number, is_personal_name, split_cell
from cp_agents.bench.dataset import Card
from cp_agents.bench.writing import Entry, check_new_folder, write_dataset
from cp_agents.errors import InputError
from cp_agents.files import whole_file
from cp_agents.schema import SELF_REPORTED
from cp_agents.taxonomy import Taxonomy

MAP = "map.yaml"
"""The column map, kept beside the records that it gave."""

_MOST_COUNT = 10**9


def prepare_csv(
    table: Table,
    column_map: ColumnMap,
    taxonomy: Taxonomy,
    out: Path,
    *,
    name: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Report:
    """Write the folder `out` with users.jsonl, gold.jsonl where a user has gold, dataset.json and map.yaml.

    `progress` gets the number of rows read so far. Memory holds one user at a time; rows wait in a temporary file
    beside `out`. Raises `InputError` where the table or the map is wrong, and then leaves no trace.
    """
    plan = resolve(column_map, table.columns, taxonomy, table.name)
    width = len(positions_of(plan)) + 1
    if width > MOST_COLUMNS:
        raise InputError(f"the column map names {width - 1:,} columns, and {MOST_COLUMNS - 1:,} are the most")
    check_new_folder(out)
    report = Report(table)
    report.truth = {g.attribute: Truth(taxonomy[g.attribute], g.values) for g in plan.gold}

    def completed(card: Card) -> Card:
        report.notes += _notes(table, plan, report)
        doubts = [f"{kind}: {count:,}" for kind, count in report.doubts.most_common()]
        return card.model_copy(
            update={
                "title": f"prepared from {Path(table.name).name}",
                "rules": f"column map {column_map.hash}",
                "notes": doubts + report.notes,
            }
        )

    try:
        beside = tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.")
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror})") from None
    with (
        beside as waiting,
        UserRows(Path(waiting) / "rows.db", width) as rows,
    ):
        load_rows(table, plan, column_map, rows, report, progress)
        entries = _entries(rows, plan, report)
        report.card = write_dataset(out, entries, completed, name=name or out.name, left_out=report.left_out)
    with whole_file(out / MAP) as file:
        file.write(column_map.to_yaml())
    return report


def _entries(rows: UserRows, plan: Plan, report: Report) -> Iterator[Entry]:
    """The users one by one. Raises `InputError` where there are none."""
    at = {column: i + 1 for i, column in enumerate(positions_of(plan))}
    facts = [column for _, column in plan.reported] + [g.column for g in plan.gold]
    for user, group in rows.groups():
        items: dict[str, list[object]] = {t.source: [] for t in plan.texts}
        values: dict[int, str] = {}
        changed: set[int] = set()
        for cells in group:
            _add_items(items, cells, plan, at, report)
            for column in facts:
                if (value := cells[at[column]]) is not None:
                    if values.setdefault(column, value) != value:
                        changed.add(column)
                    values[column] = value  # rows are in order of time: the latest stays
        record: dict[str, object] = {source: found for source, found in items.items() if found}
        events = sum(map(len, items.values()))
        if reported := {name: values[column] for name, column in plan.reported if column in values}:
            record[SELF_REPORTED] = reported
        if not record:
            report.left_out["users without a text or a self-reported field"] += 1
            continue
        for column in changed:
            name = report.table.columns[column]
            report.doubts[f"users with several values of {name!r}, the latest taken"] += 1
        report.users += 1
        report.events += events
        known = [g for g in plan.gold if g.column in values]
        truth = {g.attribute: report.truth[g.attribute].tag(values[g.column]) for g in known}
        yield Entry(user, record, {"truth": truth} if truth else {})
    if not report.users:
        raise InputError(
            f"{report.table.name}: no user could be read ({reasons(report.left_out, report.first)})"
        )


def _add_items(
    items: dict[str, list[object]],
    cells: Sequence[str | None],
    plan: Plan,
    at: dict[int, int],
    report: Report,
) -> None:
    time, empty = cells[0], True
    for text in plan.texts:
        cell = cells[at[text.column]]
        if cell is None:
            continue
        parts = split_cell(cell, text.separator)
        if parts is None:
            report.doubts[f"cells of {report.table.columns[text.column]!r} that are no list"] += 1
            continue
        extra: dict[str, object] = {} if time is None else {"time": time}
        for key, column, most in (("count", text.count, _MOST_COUNT), ("weight", text.weight, 1e300)):
            if column is None or (said := cells[at[column]]) is None:
                continue
            number = float(said) if is_number(said) else -1.0
            if 0 <= number <= most:
                extra[key] = max(1, round(number)) if key == "count" else number
            else:
                report.doubts[
                    f"cells of {report.table.columns[column]!r} that are no number of 0 or more"
                ] += 1
        for part in parts:
            empty = False
            items[text.source].append({"text": part, **extra} if extra else part)
    if empty and plan.texts:
        report.doubts["rows without a text"] += 1


def _notes(table: Table, plan: Plan, report: Report) -> list[str]:
    """What a person should know: values that are no tag, and columns that name people and are shown to the model."""
    shown = [
        table.columns[c]
        for c in dict.fromkeys([t.column for t in plan.texts] + [c for _, c in plan.reported])
    ]
    return [
        f"{truth.attribute}: {truth.unmapped.total():,} users have a value that names no tag, and are NA"
        for truth in report.truth.values()
        if truth.unmapped
    ] + [
        f"column {name!r} may name or locate a person and is shown to the model (addresses and numbers are redacted,"
        " names are not)"
        for name in shown
        if is_personal_name(name)
    ]
