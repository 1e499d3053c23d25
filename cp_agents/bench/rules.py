"""Mapping rules: which published field says which tag, as a YAML file that people can read and change.

A rules file names the data set's licence and citation, translates the published columns to readable fields (one
table per format in which the set is published), and lists for each attribute the rules that give its tag: the
first rule that holds decides, and where none does the tag is NA. Every tag is checked against the taxonomy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cp_agents.errors import InputError, first_fault
from cp_agents.files import read_text
from cp_agents.schema import NA
from cp_agents.taxonomy import Attribute, Taxonomy, fold, load_taxonomy

Fields = Mapping[str, str]
"""What is known of a user, by the rules' own field names; what is not known is not in it."""

_BRACKET = re.compile(r"(\d{1,3})\s*-\s*(\d{1,3})")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Condition(_Part):
    """What a field has to be. All parts that are given have to hold; an unknown field meets only `known: false`."""

    is_: list[str] = Field(default=[], alias="is")
    """One of these values, folded."""
    from_: float | None = Field(default=None, alias="from")
    """A number of at least this."""
    to: float | None = None
    """A number of at most this."""
    words: list[str] = []
    """One of these phrases stands in it, word by word."""
    without: list[str] = []
    """None of these phrases stands in it."""
    known: bool = True
    """Whether the field is known at all."""

    def holds(self, value: str | None) -> bool:
        """Whether `value` meets it."""
        if value is None or not self.known:
            return (value is not None) is self.known
        if self.is_ and _folded(value) not in self._values:
            return False
        if self.from_ is not None or self.to is not None:
            number = as_number(value)
            if number is None or (self.from_ is not None and number < self.from_):
                return False
            if self.to is not None and number > self.to:
                return False
        text = f" {_plain(value)} " if self.words or self.without else ""
        if self.words and not any(f" {_plain(word)} " in text for word in self.words):
            return False
        return not any(f" {_plain(word)} " in text for word in self.without)

    @cached_property
    def _values(self) -> frozenset[str]:
        return frozenset(map(_folded, self.is_))


# Published values are few and come again and again: a survey has 240,000 rows of the same codes.
@lru_cache(maxsize=1 << 14)
def _folded(text: str) -> str:
    return fold(text)


@lru_cache(maxsize=1 << 14)
def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", fold(text.replace("_", " "))))


def as_number(text: str) -> float | None:
    """The number that `text` is, None where it is none (or not finite)."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) != float("inf") and number == number else None


class Rule(_Part):
    """`{tag, when: {field: condition}}`, or `{value_of: field}`: the tag that the field itself names or lies in."""

    tag: str | None = None
    value_of: str | None = None
    when: dict[str, Condition | list[str | int] | str | int] = {}

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """`when`, with plain values and lists of them read as `is`."""
        found = {}
        for name, given in self.when.items():
            if isinstance(given, Condition):
                found[name] = given
            else:
                values = given if isinstance(given, list) else [given]
                found[name] = Condition.model_validate({"is": [str(v) for v in values]})
        return found

    def gives(self, fields: Fields, attribute: Attribute) -> str | None:
        """The tag, or None where the rule does not hold."""
        if not all(condition.holds(fields.get(name)) for name, condition in self.conditions.items()):
            return None
        if self.value_of is None:
            return self.tag
        value = fields.get(self.value_of)
        return None if value is None else value_tag(attribute, value)


def value_tag(attribute: Attribute, value: str) -> str | None:
    """The tag that a value names or lies in; a bracket of numbers ("45-49") only if both its ends lie in the same."""
    if (bracket := _BRACKET.fullmatch(value.strip())) is not None:
        if (tag := attribute.match_tag(value)) is not None:
            return tag
        low, high = (attribute.match_value(end) for end in bracket.groups())
        return low if low == high else None
    return attribute.match_value(value)


class Column(_Part):
    """A field of the rules, as one format publishes it."""

    column: str
    values: dict[str | int, str] = {}
    """Published value: what it means. A value that is not listed is unknown. Empty: the value itself."""
    words: dict[str, list[str]] = {}
    """What it means: phrases of labels that say so, the first that is found; for formats with labels for codes."""

    @cached_property
    def _meanings(self) -> dict[str, str]:
        return {_folded(str(value)): meaning for value, meaning in self.values.items()}

    def read(self, raw: str) -> str | None:
        """What a published value means, None where the rules do not say."""
        if not self.values and not self.words:
            return raw
        if (meaning := self._meanings.get(_folded(raw))) is not None:
            return meaning
        text = f" {_plain(raw)}" if self.words else ""
        for meaning, phrases in self.words.items():
            if any(f" {_plain(phrase)}" in text for phrase in phrases):
                return meaning
        return None


class Format(_Part):
    """One way in which the set is published."""

    name: str
    """The data set's name in tables."""
    title: str
    fields: dict[str, Column]


class Difference(_Part):
    """A field that is one number less another, unknown where either is."""

    of: str
    minus: str


class Simulated(_Part):
    """How a self-reported field is made up from what is known."""

    present: float = Field(ge=0, le=1)
    """Share of the users that state it."""
    wrong: float = Field(default=0.0, ge=0, le=1)
    """Share of those that state something else."""


class Rules(_Part):
    """A rules file, checked against its taxonomy."""

    name: str
    licence: str
    citation: str
    home: str
    redistribute: bool
    redistribution: str
    """One sentence: what may be passed on."""
    notes: list[str] = []
    taxonomy: str = "profilebench"
    formats: dict[str, Format] = Field(min_length=1)
    differences: dict[str, Difference] = {}
    truth: dict[str, list[Rule]] = Field(min_length=1)
    simulate: dict[str, Simulated] = {}
    """Self-reported fields by attribute, or by field where no attribute has that name."""
    labels: dict[str, str] = {}
    """By attribute, the human label that says whether it can be told from the text."""
    adult_age: int | None = None
    """Users who are younger are left out unless they are asked for."""
    genres: list[str] = []
    """Names of flags, in the order of their columns."""
    version: str = ""
    """12 hex digits over the file's text; filled in by `load_rules`."""

    @property
    def label(self) -> str:
        """Name and version, for the card."""
        return f"{self.name} {self.version}"

    def truth_of(self, known: Fields, taxonomy: Taxonomy) -> dict[str, str]:
        """`{attribute: tag}` of a user; NA where no rule holds. Only attributes that the set speaks of."""
        fields = dict(known)
        for name, difference in self.differences.items():
            of, minus = (as_number(fields.get(part, "")) for part in (difference.of, difference.minus))
            if of is not None and minus is not None:
                fields[name] = f"{of - minus:g}"
        return {
            name: next((tag for rule in rules if (tag := rule.gives(fields, taxonomy[name])) is not None), NA)
            for name, rules in self.truth.items()
        }


def load_rules(source: str | Path) -> tuple[Rules, Taxonomy]:
    """Rules by the name of a built-in file, or from a YAML file, and the taxonomy that they map to.

    Raises `InputError` with one sentence that names the file and what is wrong: also a tag outside the closed set,
    an attribute that the taxonomy does not have, or a field that no format defines.
    """
    path = Path(source)
    if path.suffix.lower() in {".yaml", ".yml"}:
        text = read_text(path)
    else:
        built_in = resources.files("cp_agents.bench") / "mappings" / f"{source}.yaml"
        if not built_in.is_file():
            raise InputError(f"no built-in rules {str(source)!r} (a file of your own should end in .yaml)")
        text = built_in.read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"rules {source}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise InputError(f"rules {source}: expected a mapping with `name`, `formats` and `truth`")
    try:
        rules = Rules.model_validate({**raw, "version": hashlib.sha256(text.encode()).hexdigest()[:12]})
    except ValidationError as error:
        raise InputError(f"rules {source}: {first_fault(error)}") from None
    taxonomy = load_taxonomy(rules.taxonomy)
    _check(rules, taxonomy, str(source))
    return rules, taxonomy


def _check(rules: Rules, taxonomy: Taxonomy, source: str) -> None:
    known = {field for form in rules.formats.values() for field in form.fields} | set(rules.differences)
    for difference in rules.differences.values():
        _check_fields([difference.of, difference.minus], known, f"rules {source}: differences")
    for name, listed in rules.truth.items():
        if name not in taxonomy:
            raise InputError(f"rules {source}: the taxonomy {taxonomy.name} has no attribute {name!r}")
        for number, rule in enumerate(listed, 1):
            where = f"rules {source}: {name}, rule {number}"
            if (rule.tag is None) == (rule.value_of is None):
                raise InputError(f"{where}: expected either `tag` or `value_of`")
            if rule.tag is not None and rule.tag not in taxonomy[name].codes:
                raise InputError(f"{where}: the tag {rule.tag!r} is not in the closed set of {name}")
            _check_fields([*rule.when, *([rule.value_of] if rule.value_of else [])], known, where)
    if foreign := sorted(set(rules.labels) - set(rules.truth)):
        raise InputError(f"rules {source}: labels: {foreign[0]!r} is no attribute of `truth`")
    for name, simulated in rules.simulate.items():
        if name not in rules.truth:
            _check_fields([name], known, f"rules {source}: simulate")
            if simulated.wrong:
                raise InputError(f"rules {source}: simulate: {name} is no attribute, so it cannot be wrong")


def _check_fields(named: list[str], known: set[str], where: str) -> None:
    for field in named:
        if field not in known:
            raise InputError(f"{where}: no format has a field {field!r} (fields: {', '.join(sorted(known))})")


def read_fields(form: Format, row: Mapping[str, Any], unlisted: dict[str, int]) -> dict[str, str]:
    """The rules' fields of a published row, by column name; counts values that the rules do not list.

    A column that the row does not have is unknown; an empty cell and the survey's codes below zero too.
    """
    found: dict[str, str] = {}
    for name, column in form.fields.items():
        raw = row.get(column.column)
        text = "" if raw is None else str(raw).strip()
        if text in _BLANK:
            continue
        meaning = column.read(text)
        if meaning is not None:
            found[name] = meaning
        else:
            key = f"values of {column.column} that the rules do not list"
            unlisted[key] = unlisted.get(key, 0) + 1
    return found


_BLANK = frozenset({"", "-1", "-2", "-3", "NA"})
"""How surveys and R write that there is no answer: blank, do not know, refused."""
