"""The column map: which column of a stranger's table is what. Readable YAML, checked against the table's header."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cp_agents.errors import InputError
from cp_agents.files import read_text
from cp_agents.schema import NA, SELF_REPORTED
from cp_agents.taxonomy import Taxonomy, fold

EVERY_ROW = "#row"
"""In place of a user's column: every row is a user of its own, without an id."""

_RESERVED = frozenset({"user_id", SELF_REPORTED})


def _text(value: object) -> object:
    """YAML reads the column 2019 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return _text(value)


class SourceColumns(_Part):
    """One cue source: the columns that its items are read from."""

    columns: list[str] = Field(min_length=1)
    separator: str | None = None
    """What stands between several texts in a cell; `json` where a cell is a list as JSON or Python writes it."""
    weight: str | None = None
    """Column with how much (minutes, spend): a number of 0 or more."""
    count: str | None = None
    """Column with how often."""

    @model_validator(mode="before")
    @classmethod
    def _from_column(cls, raw: object) -> object:
        raw = dict(raw) if isinstance(raw, dict) else {"columns": raw}
        if "column" in raw:
            raw.setdefault("columns", raw.pop("column"))
        if "columns" not in raw:
            return raw
        columns = _text(raw["columns"])
        return {**raw, "columns": [_text(c) for c in columns] if isinstance(columns, list) else [columns]}

    @field_validator("separator")
    @classmethod
    def _check(cls, separator: str | None) -> str | None:
        if separator == "":
            raise ValueError("a separator should have at least one character")
        return separator


class GoldColumn(_Part):
    """One attribute's truth: its column, and tags for values that the taxonomy does not know."""

    column: str
    values: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_column(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return {"column": raw}
        values = raw.get("values") or {}
        if not isinstance(values, dict):
            return raw
        if odd := [k for k in values if isinstance(k, bool) or k is None]:
            raise ValueError(
                f"`values` holds {odd[0]} without quotes, which YAML takes for no text: put it in quotes"
            )
        return {**raw, "values": {str(k): _text(v) for k, v in values.items()}}


class FileFormat(BaseModel):
    """How the file is written, where that cannot or should not be found out."""

    model_config = ConfigDict(extra="forbid")

    encoding: str | None = None
    delimiter: str | None = None
    """One character, or `tab`."""
    quotes: Literal["double", "backslash", "none"] = "double"
    """How a quotation mark stands inside a quoted cell; `none` where quotation marks are ordinary characters."""
    header: bool | None = None
    missing: list[str] = []
    """More spellings of an empty cell."""
    pad_short_rows: bool = False
    """Take rows with too few cells, as if the last were empty; else they are left out."""
    replace_bad_bytes: bool = False

    @field_validator("delimiter")
    @classmethod
    def _check(cls, delimiter: str | None) -> str | None:
        delimiter = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}.get(
            delimiter or "", delimiter
        )
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise ValueError(f"the delimiter should be one character or `tab`, found {delimiter!r}")
        return delimiter


class ColumnMap(_Part):
    """Which column is what. Columns go by their name in the header, or by `#3`, counted from 1."""

    user: str
    """The user's id, or `#row` where every row is a user."""
    time: str | None = None
    date_format: str | None = None
    """`day-first`, `month-first` or a pattern of strptime; found out where it is not ambiguous."""
    timezone: str | None = None
    """Of times that name none, and of seconds since 1970, such as Asia/Shanghai."""
    sources: dict[str, SourceColumns] = {}
    self_reported: dict[str, str] = {}
    gold: dict[str, GoldColumn] = {}
    file: FileFormat = FileFormat()

    @field_validator("self_reported", mode="before")
    @classmethod
    def _fields(cls, raw: object) -> object:
        return {str(k): _text(v) for k, v in raw.items()} if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _check(self) -> ColumnMap:
        if not self.sources and not self.self_reported:
            raise ValueError("no column with text is named: the map needs at least one of `sources`")
        for name in self.sources:
            if name in _RESERVED or not name.strip():
                raise ValueError(f"a source cannot be called {name!r}, choose another name")
        return self

    @property
    def named(self) -> list[str]:
        """All columns that the map names."""
        named = [self.user, self.time, *self.self_reported.values(), *(g.column for g in self.gold.values())]
        for source in self.sources.values():
            named += [*source.columns, source.weight, source.count]
        return [name for name in named if name is not None and name != EVERY_ROW]

    @property
    def hash(self) -> str:
        """12 hex digits over the map."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """As a person would write it: what is not set is left out."""
        raw = self.model_dump(mode="json", exclude_defaults=True)
        for source in raw.get("sources", {}).values():
            if len(source["columns"]) == 1:
                source["column"] = source.pop("columns")[0]
        return yaml.safe_dump(raw, allow_unicode=True, sort_keys=False, width=100)


def load_map(path: Path) -> ColumnMap:
    """A column map from YAML. Raises `InputError` with one sentence that names the file and the field."""
    if not path.is_file():
        raise InputError(f"no column map at {path}")
    try:
        raw = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: expected a mapping with `user`, `sources` and the other parts of a column map"
        )
    return make_map(raw, str(path))


def make_map(raw: Mapping[str, Any], where: str) -> ColumnMap:
    """A checked map. Raises `InputError` that begins with `where`."""
    try:
        return ColumnMap.model_validate(raw)
    except ValidationError as error:
        unknown = [
            e for e in error.errors() if e["type"] == "extra_forbidden"
        ]  # a misspelt name leaves another missing
        first = (unknown or error.errors())[0]
        place = ".".join(str(p) for p in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"not a part of a column map (expected {', '.join(_known(first['loc']))})"
        elif first["type"] == "missing":
            message = "is missing"
        raise InputError(
            f"{where}: {f'{place}: ' if place else ''}{message[:1].lower()}{message[1:]}"
        ) from None


def _known(loc: Sequence[int | str]) -> list[str]:
    models: dict[object, type[BaseModel]] = {"sources": SourceColumns, "gold": GoldColumn, "file": FileFormat}
    return list((models.get(loc[0], ColumnMap) if len(loc) > 1 else ColumnMap).model_fields)


class TextColumn(NamedTuple):
    """A column of texts, by positions."""

    source: str
    column: int
    separator: str | None
    weight: int | None
    count: int | None  # type: ignore[assignment]  # tuple.count gives way to the field


class Gold(NamedTuple):
    """A column of truth, by position."""

    attribute: str
    column: int
    values: dict[str, str]
    """Folded value -> tag."""


class Plan(NamedTuple):
    """A map whose columns were found, by positions counted from 0."""

    user: int | None
    """None where every row is a user."""
    time: int | None
    texts: list[TextColumn]
    reported: list[tuple[str, int]]
    gold: list[Gold]


def resolve(column_map: ColumnMap, columns: Sequence[str], taxonomy: Taxonomy, where: str) -> Plan:
    """Find the map's columns in a table's header.

    Raises `InputError` for a column or an attribute that is not there, and for one that would show the model the truth.
    """

    def find(name: str | None) -> int | None:
        return None if name is None else find_column(name, columns, where)

    m = column_map
    texts = [
        TextColumn(name, find_column(column, columns, where), s.separator, find(s.weight), find(s.count))
        for name, s in m.sources.items()
        for column in s.columns
    ]
    reported = [(name, find_column(column, columns, where)) for name, column in m.self_reported.items()]
    gold = [
        Gold(attribute, find_column(g.column, columns, where), _tags(attribute, g, taxonomy))
        for attribute, g in m.gold.items()
    ]
    user = None if m.user == EVERY_ROW else find_column(m.user, columns, where)
    truth = {g.column: g.attribute for g in gold}
    for column in [t.column for t in texts] + [column for _, column in reported]:
        if column in truth:
            raise InputError(
                f"column {columns[column]!r} is the gold of {truth[column]!r} and would be shown to the model too:"
                " name it once"
            )
        if column == user:
            raise InputError(
                f"column {columns[column]!r} is the user's id and cannot be shown to the model too"
            )
    return Plan(user, find(m.time), texts, reported, gold)


def find_column(name: str, columns: Sequence[str], where: str) -> int:
    """A column's position, by its name (case and width do not count) or by `#N`.

    Raises `InputError` where there is none.
    """
    if name in columns:
        return columns.index(name)
    if name[:1] == "#" and name[1:].isdecimal() and 1 <= int(name[1:]) <= len(columns):
        return int(name[1:]) - 1
    alike = [i for i, column in enumerate(columns) if fold(column) == fold(name)]
    if len(alike) == 1:
        return alike[0]
    close = difflib.get_close_matches(name, columns, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    shown = ", ".join(columns[:30]) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
    raise InputError(f"{where} has no column {name!r}{hint}; its columns are: {shown}")


def _tags(attribute: str, gold: GoldColumn, taxonomy: Taxonomy) -> dict[str, str]:
    if attribute not in taxonomy:
        raise InputError(
            f"the taxonomy {taxonomy.name} has no attribute {attribute!r}; it has {', '.join(taxonomy.names)}"
        )
    tags: dict[str, str] = {}
    for value, written in gold.values.items():
        tag = taxonomy[attribute].match_tag(written)
        if tag is None:
            names = ", ".join(t for t in taxonomy[attribute].names if t != NA)
            raise InputError(
                f"the column map gives {value!r} the tag {written!r}, which {attribute} does not have; it has {names}"
            )
        tags[fold(value)] = tag
    return tags
