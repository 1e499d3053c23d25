"""Closed-set taxonomies: attributes, their tags, and what else is known of them.

`taxonomies/profilebench.yaml` is Table 6 of the Conf-Profile paper. Users write their own file, with other
attributes and other languages; nothing in the code knows an attribute by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from datetime import date
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cp_agents.errors import InputError
from cp_agents.open_text import read_value
from cp_agents.schema import NA

Text = str | dict[str, str]
"""A text, or one per language code: `{"en": ..., "zh": ...}`."""

_DASHES = re.compile(r"[‐-―−－~～〜]")
# A number with a short word around it ("25岁", "约 25", "25 years old"), unless a word makes it a range: "90后", "50+".
_NUMBER = re.compile(r"\D{0,3}(\d{1,4}(?:\.\d+)?)\D{0,12}")
_VAGUE = re.compile(
    r"[<>≤≥+%]|-|\ds\b|plus|over|under|above|below|less|more|some|few|[未超于过多几代后後]|不到|不足|以[上下内外]"
)
_RESERVED = frozenset(
    {
        "record", "tag", "score", "evidence", "think", "thinking", "thought", "reasoning", "box", "answer",
        "confidence",
    }
)  # fmt: skip
"""Element names of the prompt and of answers, which no attribute may have."""
_ATTRIBUTE_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def fold(text: str) -> str:
    """Fold width, dashes, case and space, so that `Parenting (Child 0–2)` and its full-width twin are equal."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _DASHES.sub("-", folded)
    return re.sub(r"\s*([-/,()])\s*", r"\1", re.sub(r"[\s_]+", " ", folded)).strip()


_NA_NAMES = frozenset(
    fold(word) for word in (NA, "N/A", "n.a.", "unknown", "unknown(NA)", "未知", "无法判断")
)
"""How NA is written, folded."""


def in_language(text: Text, language: str) -> str:
    """The text in `language`, else in English, else in whichever is there."""
    if isinstance(text, str):
        return text
    return text.get(language) or text.get("en") or next(iter(text.values()), "")


class Tag(BaseModel):
    """One value of an attribute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: Text = ""
    aliases: list[str] = []
    """Other ways in which a model or a user says this tag."""
    range: tuple[float, float] | None = None
    """Inclusive range of numbers that mean this tag, for self-reports such as "age: 25"."""
    phrases: dict[str, float] = {}
    """Phrases that speak for this tag with a weight, for the lexicon backend (user taxonomies)."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, raw: object) -> object:
        if isinstance(raw, bool | int | float | date):
            # YAML reads 1, yes and 2024-01-01 as no text at all.
            shown = "a yes or no" if isinstance(raw, bool) else str(raw)[:40]
            raise ValueError(f"a tag should be text, found {shown} without quotes: put it in quotes")
        return {"name": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _check(self) -> Tag:
        if any(c in self.name for c in "<>\n"):
            raise ValueError(f"tag {self.name!r} contains <, > or a line break")
        if self.range is not None and any(map(math.isnan, self.range)):
            raise ValueError(f"tag {self.name!r}: the range {list(self.range)} holds what is no number")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"tag {self.name!r}: the range {list(self.range)} ends before it begins")
        for phrase, weight in self.phrases.items():
            if not math.isfinite(weight):
                raise ValueError(f"tag {self.name!r}: the weight of {phrase!r} should be a finite number")
        return self


class Attribute(BaseModel):
    """One dimension D_k with its closed set T_k; NA is always part of it and never listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: Text = ""
    self_reported: list[str] = []
    """Names of self-reported fields that speak of this attribute."""
    open: bool = False
    """Whether values are free text, clustered and voted by meaning (`cp_agents.open_sets`), instead of tags."""
    tags: list[Tag] = []

    @model_validator(mode="after")
    def _check(self) -> Attribute:
        if not self.open and not self.tags:
            wrong = "should not be empty" if "tags" in self.model_fields_set else "is missing"
            raise ValueError(f"attribute {self.name!r}, tags {wrong} (or say `open: true`, for free text)")
        if self.open and self.tags:
            raise ValueError(f"attribute {self.name!r} is open, so it has no tags: leave out one of the two")
        if not _ATTRIBUTE_NAME.match(self.name):
            raise ValueError(
                f"attribute name {self.name!r} should be lower-case letters, digits and _, starting with a letter"
            )
        if self.name in _RESERVED:
            raise ValueError(f"attribute name {self.name!r} is taken by the wire format, choose another")
        seen: dict[str, str] = {}
        for tag in self.tags:
            for name in (tag.name, *tag.aliases):
                key = fold(name)
                if not key:
                    raise ValueError(f"attribute {self.name!r}: a tag or an alias is empty")
                if key in _NA_NAMES:
                    raise ValueError(
                        f"attribute {self.name!r}: NA is in every closed set, do not list {name!r}"
                    )
                if key in seen and (name == tag.name or seen[key] != tag.name):
                    raise ValueError(f"attribute {self.name!r}: duplicate tag {name!r}")
                seen[key] = tag.name
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All tags in order, NA last. The position is the tag's code in votes; an open attribute has NA alone."""
        return (*(t.name for t in self.tags), NA)

    @cached_property
    def codes(self) -> dict[str, int]:
        """Position in `names` by tag."""
        return {name: code for code, name in enumerate(self.names)}

    @cached_property
    def _by_fold(self) -> dict[str, str]:
        table = {fold(name): t.name for t in self.tags for name in (*t.aliases, t.name)}
        return table | {
            fold(word): NA for word in (NA, "N/A", "n.a.", "unknown", "unknown(NA)", "未知", "无法判断")
        }

    def match_tag(self, text: str) -> str | None:
        """The tag that `text` names (folded; aliases count), or None when it is not in the closed set.

        Of an open attribute the value itself, cleaned; None where nothing is left of it.
        """
        if self.open:
            value = read_value(text)
            return NA if value is not None and fold(value) in _NA_NAMES else value
        return text if text in self.codes else self._by_fold.get(fold(text))

    def match_value(self, text: str) -> str | None:
        """Like `match_tag`, and numbers are looked up in the tags' ranges: "25" is "24-30".

        A number that stands for a range ("20s", "90后", "over 30") names a tag only as an alias.
        """
        if (tag := self.match_tag(text)) is not None:
            return tag
        folded = fold(text)
        number = _NUMBER.fullmatch(folded)
        if number is not None and not _VAGUE.search(folded):
            value = float(number[1])
            for t in self.tags:
                if t.range is not None and t.range[0] <= value <= t.range[1]:
                    return t.name
        return None


class Taxonomy(BaseModel):
    """A named set of attributes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: Text = ""
    attributes: list[Attribute] = Field(min_length=1)
    example: dict[str, Any] | None = None
    """Optional one-shot example: `{"record": {...}, "answer": {attribute: {tag, score, evidence}}}`."""

    @model_validator(mode="after")
    def _check(self) -> Taxonomy:
        names = [a.name for a in self.attributes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate attribute {name!r}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Attribute names in order."""
        return tuple(a.name for a in self.attributes)

    @cached_property
    def _by_name(self) -> dict[str, Attribute]:
        return {a.name: a for a in self.attributes}

    def __getitem__(self, attribute: str) -> Attribute:
        return self._by_name[attribute]

    def __contains__(self, attribute: object) -> bool:
        return attribute in self._by_name

    @cached_property
    def hash(self) -> str:
        """12 hex digits over everything in the taxonomy."""
        dumped = self.model_dump(mode="json")
        for attribute in dumped["attributes"]:
            if not attribute["open"]:  # as before there were open ones
                del attribute["open"]
        canonical = json.dumps(dumped, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def reported_tags(self, self_reported: dict[str, str]) -> dict[str, str]:
        """What the self-reported fields say, as tags: `{attribute: tag}`. NA and unreadable values are left out."""
        fields = {fold(k): v for k, v in self_reported.items()}
        found: dict[str, str] = {}
        for attribute in self.attributes:
            for field in attribute.self_reported or [attribute.name]:
                tag = attribute.match_value(fields.get(fold(field), ""))
                if tag is not None and tag != NA:
                    found[attribute.name] = tag
                    break
        return found


def load_taxonomy(source: str | Path = "profilebench") -> Taxonomy:
    """A taxonomy by the name of a built-in one, or from a YAML file.

    Raises `InputError` with one sentence that names the file and what is wrong.
    """
    if not isinstance(source, str | Path):
        raise InputError(
            f"a taxonomy should be the name of a built-in one or a YAML file, found {type(source).__name__}"
        )
    path = Path(source)
    if path.suffix.lower() in {".yaml", ".yml"}:
        if not path.is_file():
            raise InputError(f"no taxonomy file at {path}")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"taxonomy {source}: not UTF-8 text") from None
        except OSError as error:
            raise InputError(f"taxonomy {source}: cannot be read ({error.strerror})") from None
    else:
        built_in = resources.files("cp_agents") / "taxonomies" / f"{source}.yaml"
        if not built_in.is_file():
            raise InputError(f"no built-in taxonomy {str(source)!r} (a file of your own should end in .yaml)")
        text = built_in.read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"taxonomy {source}: not YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise InputError(f"taxonomy {source}: nested too deeply") from None
    except ValueError as error:  # a date or a number that is none
        raise InputError(f"taxonomy {source}: not YAML ({error})") from None
    if not isinstance(raw, dict):
        raise InputError(f"taxonomy {source}: expected a mapping with `name` and `attributes`")
    try:
        return Taxonomy.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"taxonomy {source}: {_sentence(raw, error)}") from None


_SINGULAR = {"attributes": "attribute", "tags": "tag"}
_WRONG = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field",
    "too_short": "should not be empty",
    "string_type": "should be text (put numbers, dates, yes and no in quotes)",
    "list_type": "should be a list",
    "model_type": "should be a mapping",
    "dict_type": "should be a mapping",
    "tuple_type": "should be [lowest, highest]",
    "too_long": "should be [lowest, highest]",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
}


def _sentence(raw: object, error: ValidationError) -> str:
    """The first thing that is wrong, and where, by the names that the file gives."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    where: list[str] = []
    before: int | str = ""
    for part in first["loc"]:
        if isinstance(part, int):
            raw = raw[part] if isinstance(raw, list) and part < len(raw) else None
            name = raw.get("name") if isinstance(raw, dict) else None
            if before in _SINGULAR:
                where[-1] = f"{_SINGULAR[str(before)]} {part + 1 if name is None else repr(name)}"
            else:
                where.append(f"number {part + 1}")
        elif isinstance(raw, dict) and (
            part in raw or first["type"] == "missing"
        ):  # else it is a branch of a union, which is no place in the file
            where.append(part)
            raw = raw.get(part)
        before = part
    wrong = _WRONG.get(first["type"], first["msg"][:1].lower() + first["msg"][1:])
    if "description" in where:
        wrong = "should be a text, or one text per language"
    return f"{', '.join(where)} {wrong}"
