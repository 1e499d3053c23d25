"""Lexicon files: their shape, how they are found, and what in them does not fit a taxonomy.

A lexicon is knowledge as data: phrases with weights in nats (0.7 doubles the odds of a tag against the others),
priors, the trust in self-reports, rules over amounts, and what one attribute's tag implies for another.
`lexicons/common.yaml` holds what is no attribute's: inflection, spellings, sources, and what an instruction to a
model looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy

Phrases = str | list[str]
"""A list of phrases, or a text in which `;` or a line break stands between them."""
Weighted = dict[float, Phrases]
"""Phrases by weight in nats: `{3: "as a nurse; my patients", 1: [scrubs]}`."""
Votes = dict[str, dict[str, float]]
"""Nats by attribute and tag."""

BUILT_IN = "profilebench"
_CONDITION = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)?)")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """How the lines of some cue sources count."""

    names: list[str] = []
    factor: float = Field(default=1.0, ge=0)
    half: float | None = Field(default=None, gt=0)
    """Weight of an item (minutes, say) at which it counts once; None measures against the source's mean."""


class Settings(_Part):
    """Constants of the scoring; `lexicon_draw` says what each does."""

    damping: float = Field(default=4.0, gt=0)
    sharpness: float = Field(default=1.6, gt=0)
    na_below: float = Field(default=0.2, ge=0)
    levels: tuple[float, float, float, float] = (0.25, 0.45, 0.65, 0.85)


class AttributeLexicon(_Part):
    """What is known of one attribute."""

    trust: float = Field(default=0.85, gt=0, lt=1)
    """Prior probability that a self-reported value is right."""
    prior: dict[str, float] = {}
    tags: dict[str, Weighted] = {}
    only: dict[str, dict[str, Weighted]] = {}
    """Phrases that count in one kind of source alone: `{diary: {tag: {weight: phrases}}}`."""


class Rule(_Part):
    """Where all conditions hold, votes in nats."""

    when: dict[str, str]
    """Measure to condition: `">= 240"` or `"< 1"`, in the unit of the items' weights."""
    then: Votes

    @field_validator("when")
    @classmethod
    def _check(cls, when: dict[str, str]) -> dict[str, str]:
        for text in when.values():
            if not _CONDITION.fullmatch(text.strip()):
                raise ValueError(f"condition {text!r} should be like '>= 240' or '< 1'")
        return when

    @property
    def conditions(self) -> tuple[tuple[str, bool, float], ...]:
        """(measure, at least, bound): at least the bound, or below it."""
        parsed = ((name, _CONDITION.fullmatch(text.strip())) for name, text in self.when.items())
        return tuple((name, match[1] == ">=", float(match[2])) for name, match in parsed if match)


class LexiconFile(_Part):
    """One lexicon file."""

    settings: Settings = Settings()
    macros: dict[str, str] = {}
    ignore: Phrases = []
    """Phrases that mean nothing and hide the shorter phrases inside them."""
    attributes: dict[str, AttributeLexicon] = {}
    measures: dict[str, Phrases] = {}
    """Sums of the weights of diary lines that hold one of the phrases; `*` sums all."""
    rules: list[Rule] = []
    implies: dict[str, dict[str, Votes]] = {}
    """`{attribute: {tag: {other attribute: {tag: nats}}}}`."""


class CommonFile(_Part):
    """`lexicons/common.yaml`."""

    inflections: list[tuple[str, str]] = []
    """(ending, replacement); the first that fits a word is applied."""
    spellings: dict[str, str] = {}
    """Word to the word it counts as."""
    characters: list[str] = Field(default=[], max_length=2)
    """Two texts of equal length: each character of the first counts as the one below it (traditional, simplified)."""
    negations: Phrases = []
    instructions: list[str] = []
    """Regular expressions over the folded text of a line; `{names}` is any tag, `{attributes}` any attribute."""
    sources: dict[str, Source] = {}
    """How lines count, by kind of source."""

    @field_validator("characters")
    @classmethod
    def _pairs(cls, texts: list[str]) -> list[str]:
        if texts and len(texts[0]) != len(texts[-1]):
            raise ValueError("the two texts should be equally long")
        return texts


_File = TypeVar("_File", LexiconFile, CommonFile)


def read_common() -> tuple[CommonFile, str]:
    """The common file and its text."""
    text = _built_in("common")
    return _parse(CommonFile, text, "common"), text


def read_lexicon(taxonomy: Taxonomy, path: Path | None = None) -> tuple[LexiconFile, str]:
    """A lexicon file and its text, for a taxonomy.

    The file at `path` must fit the taxonomy; without one, the built-in lexicon is reduced to the attributes whose
    name and tags are the taxonomy's. Raises `InputError` with one sentence for a file that does not fit.
    """
    if path is None:
        text = _built_in(BUILT_IN)
        file = _fitting(_parse(LexiconFile, text, BUILT_IN), taxonomy)
        _check(file, taxonomy, BUILT_IN)
        return file, text
    if not path.is_file():
        raise InputError(f"no lexicon file at {path}")
    text = path.read_text(encoding="utf-8")
    file = _parse(LexiconFile, text, str(path))
    _check(file, taxonomy, str(path))
    return file, text


def _built_in(name: str) -> str:
    return (resources.files("cp_agents.backends") / "lexicons" / f"{name}.yaml").read_text(encoding="utf-8")


def _parse(model: type[_File], text: str, name: str) -> _File:
    try:
        raw: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InputError(f"lexicon {name}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise InputError(f"lexicon {name}: expected a mapping with `attributes`")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"lexicon {name}: {where + ': ' if where else ''}{message}") from None


def _known_tags(attribute: AttributeLexicon) -> set[str]:
    return {*attribute.prior, *attribute.tags, *(t for tags in attribute.only.values() for t in tags)}


def _fitting(file: LexiconFile, taxonomy: Taxonomy) -> LexiconFile:
    """The file without the attributes that the taxonomy lacks, or has with other tags."""
    keep = {
        name
        for name, attribute in file.attributes.items()
        if name in taxonomy and {t.name for t in taxonomy[name].tags} == _known_tags(attribute)
    }

    def only_kept(votes: Votes) -> Votes:
        return {name: tags for name, tags in votes.items() if name in keep}

    return file.model_copy(
        update={
            "attributes": {name: file.attributes[name] for name in file.attributes if name in keep},
            "rules": [rule.model_copy(update={"then": only_kept(rule.then)}) for rule in file.rules],
            "implies": {
                name: {tag: only_kept(votes) for tag, votes in tags.items()}
                for name, tags in file.implies.items()
                if name in keep
            },
        }
    )


def _mentions(file: LexiconFile) -> Iterator[tuple[str, str, str]]:
    """(where, attribute, tag) for everything that a file says of tags."""
    for name, attribute in file.attributes.items():
        yield from (("attributes", name, tag) for tag in sorted(_known_tags(attribute)))
    for number, rule in enumerate(file.rules, 1):
        yield from ((f"rule {number}", name, tag) for name, votes in rule.then.items() for tag in votes)
    for name, tags in file.implies.items():
        for tag, others in tags.items():
            yield "implies", name, tag
            yield from (("implies", other, t) for other, votes in others.items() for t in votes)


def _check(file: LexiconFile, taxonomy: Taxonomy, name: str) -> None:
    for where, attribute, tag in _mentions(file):
        if attribute not in taxonomy:
            raise InputError(
                f"lexicon {name}: {where}: taxonomy {taxonomy.name!r} has no attribute {attribute!r}"
            )
        if tag not in taxonomy[attribute].names[:-1]:
            raise InputError(f"lexicon {name}: {where}: attribute {attribute!r} has no tag {tag!r}")
    for attribute in file.attributes:
        if attribute not in taxonomy:
            raise InputError(f"lexicon {name}: taxonomy {taxonomy.name!r} has no attribute {attribute!r}")
    for number, rule in enumerate(file.rules, 1):
        for measure in rule.when:
            if measure not in file.measures:
                raise InputError(f"lexicon {name}: rule {number}: no measure {measure!r}")
