"""American Time Use Survey: the Bureau of Labor Statistics' microdata files, or the R package's tables as CSV.

A respondent's diary of one day becomes cues with minutes. The survey's files are several (activities, respondents,
household roster, answers to the Current Population Survey) and are joined by TUCASEID.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cp_agents.bench.atus_names import ActivityNames, activity_names
from cp_agents.bench.prepared import Prepared
from cp_agents.bench.published import Published, csv_rows, matching, published_files
from cp_agents.bench.rules import Format, Rules, as_number, load_rules, read_fields
from cp_agents.bench.splits import place
from cp_agents.bench.writing import Entry
from cp_agents.errors import InputError
from cp_agents.schema import NA, SELF_REPORTED
from cp_agents.taxonomy import Taxonomy

SOURCE = "diary"
"""The cue source: an activity a line, its weight is the minutes."""
_CASE, _LINE = "tucaseid", "tulineno"
_CODES = ("trcodep", "trcode", "tiercode")
_MINUTES = ("tuactdur24", "dur")
_FILE = r"{}(?:[-_]?\d{{2,4}})?\.(?:dat|csv|txt)"
_EXPECTED = "expected atusact, atusresp and atusrost or atuscps, as .dat, .csv or zips"


class Table(NamedTuple):
    """A file with a header, its columns by lower-case name."""

    file: Published
    columns: Mapping[str, int]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line number and the cells of each row. Raises `InputError` for a row of another length."""
        rows = csv_rows(self.file, "latin-1")
        next(rows, None)
        for line, cells in rows:
            if cells and len(cells) != len(self.columns):
                raise InputError(
                    f"{self.file.where} line {line}: {len(cells)} fields, the header has {len(self.columns)}"
                )
            if cells:
                yield line, cells

    def column(self, *names: str) -> int:
        """The index of the first of these columns that is there. Raises `InputError` where none is."""
        for name in names:
            if name in self.columns:
                return self.columns[name]
        raise InputError(
            f"{self.file.where}: no column {' or '.join(n.upper() for n in names)}"
            f" (columns: {', '.join(list(self.columns)[:6])[:200]}, ...)"
        )


def prepare_atus(
    paths: Sequence[str | Path],
    rules_file: str | Path = "atus",
    *,
    users: int | None = None,
    simulate: int | None = None,
) -> Prepared:
    """Records and gold of respondents: diaries with minutes as cues, demographics as gold.

    `users` takes that many respondents, those whose id's hash is lowest; `simulate` is the seed of self-reports that
    are made up from the truth as the rules say, None for none. Raises `InputError` that names the file and what was
    expected.
    """
    rules, taxonomy = load_rules(rules_file)
    place_shown = ", ".join(map(str, paths))
    files = published_files(paths)
    activities, respondents, rosters, answers = (
        [_table(file) for file in _once(matching(files, _FILE.format(kind)))]
        for kind in ("atusact", "atusresp", "atusrost", "atuscps")
    )
    for kind, tables in (
        ("atusact", activities),
        ("atusresp", respondents),
        ("atusrost or atuscps", rosters + answers),
    ):
        if not tables:
            damaged = [file for file in files if file.base.endswith(".zip")]
            why = f"{damaged[0].path} is damaged, download it again" if damaged else _EXPECTED
            raise InputError(f"{place_shown}: no file {kind} ({why})")
    form = "r" if "tiercode" in activities[0].columns else "bls"
    if form not in rules.formats:
        raise InputError(f"rules {rules_file}: no format {form!r}")
    left_out: dict[str, int] = {}
    names = activity_names(files)
    notes = [f"Activities are named by {names.source}."]
    if not answers:
        notes.append("There was no atuscps file: education and marital status are not known.")
    if simulate is not None:
        notes.append(
            f"Self-reported fields are SIMULATED from the truth (seed {simulate}): {_shares(rules)}."
        )
    cases = _cases(rules.formats[form], respondents, rosters + answers, users, left_out)
    entries = _entries(activities, cases, names, rules, rules.formats[form], taxonomy, simulate, left_out)
    return Prepared(rules, rules.formats[form], entries, left_out, notes=tuple(notes))


def _once(files: Sequence[Published]) -> list[Published]:
    """Each file name once, as a folder may hold a zip and what was unpacked from it."""
    return list({file.base: file for file in reversed(files)}.values())[::-1]


def _table(file: Published) -> Table:
    _, header = next(csv_rows(file, "latin-1"), (1, []))
    columns = {name.strip().lower() or f" {i}": i for i, name in enumerate(header)}
    table = Table(file, columns)
    table.column(_CASE)
    if len(columns) != len(header):
        raise InputError(f"{file.where}: the header names a column twice")
    return table


def _shares(rules: Rules) -> str:
    return "; ".join(
        f"{name} stated by {s.present:.0%}" + (f", wrong for {s.wrong:.0%} of those" if s.wrong else "")
        for name, s in rules.simulate.items()
    )


def _cases(
    form: Format,
    respondents: Sequence[Table],
    others: Sequence[Table],
    users: int | None,
    left_out: dict[str, int],
) -> dict[str, list[str | None]]:
    """What is known of each respondent, in the order of the format's fields. Strings are shared: there are 240,000."""
    cases: dict[str, list[str | None]] = {}
    for table in respondents:
        at = table.column(_CASE)
        for _, cells in table.rows():
            cases[cells[at]] = [None] * len(form.fields)
    if not cases:
        raise InputError(f"{respondents[0].file.where}: no respondents")
    if users is not None:
        cases = {case: cases[case] for case in heapq.nsmallest(users, cases, key=place)}
    found_columns: set[str] = set()
    for table in (*respondents, *others):
        at, line = table.column(_CASE), table.columns.get(_LINE)
        mine = {
            c.column: table.columns[c.column.lower()]
            for c in form.fields.values()
            if c.column.lower() in table.columns
        }
        found_columns |= set(mine)
        for _, cells in table.rows():
            known = cases.get(cells[at])
            if known is None or (line is not None and cells[line].strip() != "1"):  # 1 is the respondent
                continue
            fields = read_fields(form, {name: cells[i] for name, i in mine.items()}, left_out)
            for i, name in enumerate(form.fields):
                if name in fields and known[i] is None:
                    known[i] = sys.intern(fields[name])
    for needed in ("sex", "age", "labour"):
        if needed in form.fields and form.fields[needed].column not in found_columns:
            raise InputError(
                f"no file has the column {form.fields[needed].column}"
                f" ({', '.join(t.file.where for t in (*respondents, *others))})"
            )
    return cases


def _entries(
    activities: Sequence[Table], cases: dict[str, list[str | None]], names: ActivityNames, rules: Rules, form: Format,
    taxonomy: Taxonomy, simulate: int | None, left_out: dict[str, int],
) -> Iterator[Entry]:  # fmt: skip
    done: set[str] = set()
    for table in activities:
        for case, rows in groupby(_activities(table), key=lambda row: row[0]):
            if case not in cases:
                continue
            if case in done:
                raise InputError(
                    f"{table.file.where}: the rows of case {case!a} do not stand together, or are in two files"
                )
            done.add(case)
            minutes: dict[str, float] = {}
            for _, code, duration in rows:
                if (name := names.of(code)) is None:
                    left_out["activities that the survey could not code"] = (
                        left_out.get("activities that the survey could not code", 0) + 1
                    )
                else:
                    minutes[name] = minutes.get(name, 0) + duration
            diary = [[name, _short(m)] for name, m in sorted(minutes.items(), key=lambda item: -item[1]) if m]
            if not diary:
                left_out["respondents without a coded activity"] = (
                    left_out.get("respondents without a coded activity", 0) + 1
                )
                continue
            fields = {
                name: value for name, value in zip(form.fields, cases[case], strict=True) if value is not None
            }
            truth = rules.truth_of(fields, taxonomy)
            record: dict[str, object] = {SOURCE: diary}
            if simulate is not None:
                record[SELF_REPORTED] = simulated(case, simulate, truth, fields, rules, taxonomy)
            yield Entry(case, record, {"truth": truth})
    if missing := len(cases) - len(done):
        left_out["respondents without a diary"] = missing


def _short(minutes: float) -> float | int:
    return int(minutes) if minutes == int(minutes) else minutes


def _activities(table: Table) -> Iterator[tuple[str, str, float]]:
    """Case, six-digit code and minutes of each activity."""
    case, minutes = table.column(_CASE), table.column(*_MINUTES)
    tiers = [table.columns.get(f"tutier{i}code") for i in (1, 2, 3)]
    code = (
        None
        if all(t is not None for t in tiers) and not set(_CODES) & set(table.columns)
        else table.column(*_CODES)
    )
    for line, cells in table.rows():
        written = (
            cells[code] if code is not None else "".join(cells[t].zfill(2) for t in tiers if t is not None)
        )
        duration = as_number(cells[minutes])
        if duration is None or duration < 0:
            raise InputError(
                f"{table.file.where} line {line}: expected minutes, found {cells[minutes][:40]!a}"
            )
        yield cells[case], written.strip().zfill(6), duration


def simulated(
    user_id: str,
    seed: int,
    truth: Mapping[str, str],
    fields: Mapping[str, str],
    rules: Rules,
    taxonomy: Taxonomy,
) -> dict[str, str]:
    """Self-reported fields made up from the truth: a function of the seed and the user id alone."""
    draw = random.Random(f"{seed} {user_id}")
    found: dict[str, str] = {}
    for name, how in rules.simulate.items():
        stated, wrong, other = draw.random() < how.present, draw.random() < how.wrong, draw.random()
        value = truth.get(name, fields.get(name, NA))
        if not stated or value == NA:
            continue
        if wrong:
            tags = [tag for tag in taxonomy[name].names if tag not in (value, NA)]
            value = tags[int(other * len(tags))]
        found[name] = value
    return found
