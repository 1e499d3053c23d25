"""A table's rows, whatever wrote it: delimiter, quoting, header, and the line of each row for messages."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from cp_agents.bench.csv_dates import looks_like_date
from cp_agents.bench.csv_encoding import check_encoding, find_encoding, open_bytes
from cp_agents.bench.csv_values import is_number, is_personal_value
from cp_agents.errors import InputError
from cp_agents.taxonomy import fold

DELIMITERS = (",", ";", "\t", "|", "\x01")
Quotes = Literal["double", "backslash", "none"]

_LONGEST_CELL = 1 << 24
_LONGEST_LINE = 1 << 26
_HEAD_LINES = 400
_HEAD_CHARS = 1 << 20
_HEADER_LENGTH = 80


class Row(NamedTuple):
    """A row, and the line of the file that it begins on."""

    line: int
    cells: list[str]


class Table(NamedTuple):
    """How a file is read, and its columns' names: each once, in the file's order."""

    path: Path
    name: str
    """As messages call the file."""
    encoding: str
    delimiter: str
    quotes: Quotes
    skip_space: bool
    skip_lines: int
    """Lines before the table: Excel's `sep=;`."""
    header: bool
    columns: tuple[str, ...]
    lenient: bool

    @property
    def described(self) -> str:
        """For people: `utf-8, delimiter tab, 4 columns`."""
        words = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", "\x01": "0x01"}
        shown = words.get(self.delimiter, self.delimiter)
        header = "" if self.header else " without a header line"
        return f"{self.encoding}, delimiter {shown}, {len(self.columns)} columns{header}"


class Lines:
    """Lines of an open text, with what was put right in them."""

    def __init__(self, table: Table, file: io.TextIOWrapper) -> None:
        self.nulls = 0
        """NUL characters taken out."""
        self.replaced = 0
        """Wrong bytes replaced."""
        self._table = table
        self._file = file

    def __iter__(self) -> Iterator[str]:
        read, lenient, number = self._file.readline, self._table.lenient, 0
        while line := read(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise InputError(
                    f"{self._table.name} line {number} is longer than {_LONGEST_LINE:,} characters:"
                    " expected one line a row"
                )
            if "\0" in line:
                self.nulls += line.count("\0")
                line = line.replace("\0", "")
            if lenient and "�" in line:
                self.replaced += line.count("�")
            yield line


def open_table(
    path: Path,
    *,
    name: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    quotes: Quotes = "double",
    header: bool | None = None,
    lenient: bool = False,
    named: Iterable[str] = (),
) -> Table:
    """Find out how a file is to be read; what is given is not guessed.

    `named` are columns that the user named: a first line that has one of them is a header. Raises `InputError` where
    the file is no table.
    """
    shown = name or str(path)
    if encoding is None:
        encoding = find_encoding(path, shown, lenient=lenient)
    else:
        check_encoding(path, shown, encoding, lenient=lenient)
    table = Table(path, shown, encoding, delimiter or ",", quotes, False, 0, False, (), lenient)
    with _text(table) as file:
        head = list(_head(Lines(table, file)))
    if head and head[0].lower().startswith("sep=") and len(head[0].strip("\r\n")) == 5:
        table = table._replace(skip_lines=1, delimiter=delimiter or head[0][4])
        head = head[1:]
        delimiter = table.delimiter
    if delimiter is None:
        table = table._replace(delimiter=_sniff(head, table))
    rows = _parse(head, table)
    if any(cell.startswith(' "') for row in rows for cell in row):
        table = table._replace(skip_space=True)
        rows = _parse(head, table)
    rows = [row for row in rows if any(map(str.strip, row))]
    if not rows:
        raise InputError(f"{shown} is empty: expected a line of column names and one line a row")
    if header is None:
        header = _has_header(rows, frozenset(map(fold, named)))
    columns = _column_names(rows, header)
    wider = sum(any(map(str.strip, row[len(columns) :])) for row in rows[1:])
    if header and wider * 2 > len(rows[1:]) > 0:
        raise InputError(
            f"{shown}: the first line has {len(columns)} cells and most of the others more, so it does not name the"
            " columns: take away what stands above the header, or say --no-header where there is none"
        )
    return table._replace(header=header, columns=columns)


def read_rows(table: Table, found: list[Lines] | None = None) -> Iterator[Row]:
    """The rows below the header, as they stand, empty ones too; `found` gets the `Lines` with their counts.

    Raises `InputError` that names the line where the quoting goes wrong.
    """
    with _text(table) as file, _long_cells():
        lines = Lines(table, file)
        if found is not None:
            found.append(lines)
        raw = iter(lines)
        for _ in range(table.skip_lines):
            next(raw, None)
        reader = csv.reader(raw, strict=True, **_options(table))
        line = table.skip_lines + 1
        skipped = not table.header
        try:
            for cells in reader:
                if skipped:
                    yield Row(line, cells)
                elif cells:
                    skipped = any(map(str.strip, cells))
                line = table.skip_lines + reader.line_num + 1
        except csv.Error as error:
            raise InputError(_quoting(table, line, str(error))) from None


@contextmanager
def _text(table: Table) -> Iterator[io.TextIOWrapper]:
    errors = "replace" if table.lenient else "strict"
    with open_bytes(table.path) as raw:
        binary: IO[Any] = raw
        yield io.TextIOWrapper(binary, encoding=table.encoding, errors=errors, newline="")


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module's limit is one for the whole process."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _options(table: Table) -> dict[str, Any]:
    shared = {"delimiter": table.delimiter, "skipinitialspace": table.skip_space}
    if table.quotes == "none":
        return shared | {"quoting": csv.QUOTE_NONE, "quotechar": None}
    if table.quotes == "backslash":
        return shared | {"escapechar": "\\", "doublequote": False}
    return shared


def _quoting(table: Table, line: int, error: str) -> str:
    where = f"{table.name} line {line}"
    mend = (
        "double a quotation mark inside a quoted cell, or say --quotes none where they are no quoting"
        ' and --quotes backslash where they are written \\"'
    )
    if "field larger" in error or "unexpected end" in error:
        return f"{where}: a quotation mark opens a cell here and never closes it; {mend}"
    return f"{where}: text follows the closing quotation mark of a cell; {mend}"


def _head(lines: Lines) -> Iterator[str]:
    size = 0
    for line in islice(lines, _HEAD_LINES):
        yield line
        size += len(line)
        if size > _HEAD_CHARS:
            return


def _parse(lines: Sequence[str], table: Table) -> list[list[str]]:
    """The rows of the head; the last one is left out where it may be cut."""
    rows: list[list[str]] = []
    with _long_cells():
        try:
            rows.extend(csv.reader(lines, **_options(table)))
        except csv.Error:  # the reader that goes through the whole file says where
            return rows
    return rows[:-1] if len(lines) == _HEAD_LINES and len(rows) > 1 else rows


def _sniff(head: Sequence[str], table: Table) -> str:
    """The delimiter that gives the most rows the same number of cells, and of those the most cells."""

    def score(delimiter: str) -> tuple[bool, float, int]:
        rows = [row for row in _parse(head, table._replace(delimiter=delimiter)) if row]
        if not rows:
            return (False, 0.0, 0)
        width, same = Counter(map(len, rows)).most_common(1)[0]
        if width == 1:
            return (False, 0.0, 1)
        return (abs(len(rows[0]) - width) <= 1, round(same / len(rows), 2), width)

    return max(DELIMITERS, key=score)


def _has_header(rows: Sequence[Sequence[str]], named: frozenset[str]) -> bool:
    """Whether the first row names the columns: it is not of the kind of what stands below it, nor repeated there."""
    if not rows:
        return True
    first, below = [cell.strip() for cell in rows[0]], rows[1:]
    if named & set(map(fold, first)):
        return True
    typed: list[bool] = []
    for i, cell in enumerate(first):
        column = [value for row in below if i < len(row) and (value := row[i].strip())]
        if not column or not cell:
            continue
        if (
            len(cell) > _HEADER_LENGTH
            or is_personal_value(cell)
            or (cell in column and list(rows[0]) not in below)
        ):
            return False
        kind = next(
            (k for k in (is_number, looks_like_date) if sum(map(k, column)) >= 0.9 * len(column)), None
        )
        if kind is not None:
            typed.append(kind(cell))
    return not typed or not all(typed)


def _column_names(rows: Sequence[Sequence[str]], header: bool) -> tuple[str, ...]:
    widths = Counter(len(row) for row in rows[1:] or rows)
    width = widths.most_common(1)[0][0] if widths else 0
    if not header:
        return tuple(f"column {i}" for i in range(1, max(width, 1) + 1))
    names = [" ".join(cell.split()) for cell in rows[0]]
    if width == len(names) + 1 and any(row[-1].strip() for row in rows[1:] if len(row) == width):
        names.insert(0, "row")  # R writes no name above the row names
    while len(names) > max(width, 1) and not names[-1]:
        names.pop()
    taken = Counter[str]()
    unique: list[str] = []
    for i, name in enumerate(names, 1):
        name = name or f"column {i}"
        taken[name] += 1
        unique.append(name if taken[name] == 1 else f"{name} ({taken[name]})")
    return tuple(unique)
