"""A lexicon compiled for one taxonomy: one trie of phrases, and matrices of their votes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cp_agents.backends.lexicon_file import (
    BUILT_IN,
    AttributeLexicon,
    CommonFile,
    LexiconFile,
    Phrases,
    Settings,
    Source,
    Votes,
    Weighted,
    read_common,
    read_lexicon,
)
from cp_agents.backends.lexicon_text import Normaliser, PhraseTrie, split_phrases
from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy, fold

Floats = NDArray[np.float64]
Columns = dict[tuple[str, str], int]

ANYWHERE = ""
"""The kind of source that no kind claims."""
EVERY_LINE = "*"
"""As a measure: all lines that have a weight."""
PLAIN_WEIGHT = 2.0
"""Nats of a tag's own name, where neither a lexicon nor the taxonomy gives phrases."""


@dataclass(frozen=True)
class Lexicon:
    """A lexicon compiled for a taxonomy. Its columns are all tags of all attributes in order, without NA."""

    taxonomy: Taxonomy
    slices: dict[str, slice]
    """Attribute to its columns."""
    trie: PhraseTrie
    normaliser: Normaliser
    weights: dict[str, Floats]
    """Kind of source to (phrases, columns), nats."""
    speaks: NDArray[np.bool_]
    """(phrases, columns): the columns of every attribute that a phrase speaks of; all for an ignored phrase."""
    prior: Floats
    """(columns,), nats."""
    trust: Floats
    """(columns,): what a self-report of that tag adds to it, nats."""
    implies: Floats
    """(columns, columns): what a certain tag adds to the others, nats."""
    measures: dict[str, frozenset[int] | None]
    """Phrases of a measure; None stands for every line."""
    rules: tuple[tuple[tuple[tuple[str, bool, float], ...], Floats], ...]
    """Conditions (measure, at least, bound), and the votes per column."""
    settings: Settings
    sources: dict[str, tuple[str, Source]]
    """Source name to its kind and how it counts."""
    fields: dict[str, list[tuple[int, str]]]
    """Self-reported field to the attributes it speaks of, each with the field's rank among the attribute's fields."""
    negations: frozenset[str]
    instructions: re.Pattern[str] | None
    revision: str
    """12 hex digits over the files and the taxonomy."""


def load_lexicon(taxonomy: Taxonomy, path: Path | None = None) -> Lexicon:
    """The lexicon of a taxonomy: the file at `path`, or the built-in one as far as it fits.

    Attributes without a lexicon are matched by the phrases that the taxonomy gives their tags, else by the tags'
    names and aliases. Raises `InputError` with one sentence for a file that does not fit the taxonomy.
    """
    # To compile the built-in one takes half a second, and it is the same for every backend of the process.
    return _load(taxonomy, path) if path is not None else _built_in_for(taxonomy.model_dump_json())


@lru_cache(maxsize=8)
def _built_in_for(taxonomy: str) -> Lexicon:
    return _load(Taxonomy.model_validate_json(taxonomy), None)


def _load(taxonomy: Taxonomy, path: Path | None) -> Lexicon:
    common, common_text = read_common()
    file, text = read_lexicon(taxonomy, path)
    revision = hashlib.sha256("\0".join((common_text, text, taxonomy.hash)).encode()).hexdigest()[:12]
    try:
        return _compile(file, common, taxonomy, revision)
    except InputError as error:
        raise InputError(f"lexicon {path or BUILT_IN}: {error}") from None


class _Table:
    """Phrases as they are collected: numbers from the trie, nats by kind of source, phrase and column."""

    def __init__(self, trie: PhraseTrie, columns: Columns) -> None:
        self.trie = trie
        self.columns = columns
        self.cells: dict[str, dict[tuple[int, int], float]] = {ANYWHERE: {}}

    def numbers(self, phrases: Phrases) -> set[int]:
        """The numbers of some phrases."""
        return {self.trie.add(phrase) for phrase in split_phrases(phrases)}

    def vote(self, kind: str, attribute: str, tags: dict[str, Weighted]) -> None:
        """Enter the phrases of an attribute; of two weights for one phrase and tag the stronger one counts."""
        cells = self.cells.setdefault(kind, {})
        for tag, weighted in tags.items():
            column = self.columns[attribute, tag]
            for weight, phrases in weighted.items():
                for number in self.numbers(phrases):
                    if abs(weight) > abs(cells.get((number, column), 0.0)):
                        cells[number, column] = weight

    def literal(self, attribute: str, tag: str, phrases: Iterable[tuple[str, float]]) -> None:
        """Enter a user's own phrases as they are: no macros, no groups."""
        for phrase, weight in phrases:
            self.cells[ANYWHERE][self.trie.add(phrase, literal=True), self.columns[attribute, tag]] = weight

    def matrix(self, kind: str) -> Floats:
        """(phrases, columns) for one kind of source."""
        dense = np.zeros((len(self.trie), len(self.columns)))
        for (number, column), weight in (self.cells[ANYWHERE] | self.cells[kind]).items():
            dense[number, column] = weight
        return dense


def _compile(file: LexiconFile, common: CommonFile, taxonomy: Taxonomy, revision: str) -> Lexicon:
    columns: Columns = {}
    slices: dict[str, slice] = {}
    for attribute in taxonomy.attributes:
        start = len(columns)
        columns.update({(attribute.name, tag.name): start + i for i, tag in enumerate(attribute.tags)})
        slices[attribute.name] = slice(start, len(columns))
    normaliser = Normaliser(
        common.inflections,
        common.spellings,
        dict(zip(*common.characters, strict=True)) if common.characters else {},
    )
    table = _Table(PhraseTrie(normaliser, file.macros), columns)
    for name, known in file.attributes.items():
        table.vote(ANYWHERE, name, known.tags)
        for kind, tags in known.only.items():
            if kind not in common.sources:
                raise InputError(f"attribute {name!r} has phrases for an unknown kind of source {kind!r}")
            table.vote(kind, name, tags)
    _own_phrases(table, taxonomy, set(file.attributes))
    measures = {
        name: None if phrases == EVERY_LINE else frozenset(table.numbers(phrases))
        for name, phrases in file.measures.items()
    }
    ignored = table.numbers(file.ignore)

    kinds = {ANYWHERE, *common.sources}
    weights = {kind: table.matrix(kind) for kind in table.cells}
    weights |= dict.fromkeys(kinds - weights.keys(), weights[ANYWHERE])
    speaks = np.zeros(weights[ANYWHERE].shape, dtype=bool)
    for matrix in weights.values():
        for part in slices.values():
            speaks[:, part] |= (matrix[:, part] != 0).any(axis=1, keepdims=True)
    speaks[sorted(ignored)] = True

    def votes(by_attribute: Votes) -> Floats:
        row = np.zeros(len(columns))
        for name, tags in by_attribute.items():
            for tag, nats in tags.items():
                row[columns[name, tag]] = nats
        return row

    implies = np.zeros((len(columns), len(columns)))
    for name, tags_of in file.implies.items():
        for tag, by_attribute in tags_of.items():
            implies[columns[name, tag]] = votes(by_attribute)
    trust = np.zeros(len(columns))
    for attribute in taxonomy.attributes:
        right = file.attributes.get(attribute.name, AttributeLexicon()).trust
        trust[slices[attribute.name]] = np.log(right / (1 - right) * max(1, len(attribute.tags) - 1))
    fields: dict[str, list[tuple[int, str]]] = {}
    for attribute in taxonomy.attributes:
        for rank, name in enumerate(attribute.self_reported or [attribute.name]):
            fields.setdefault(fold(name), []).append((rank, attribute.name))
    return Lexicon(
        taxonomy=taxonomy,
        slices=slices,
        trie=table.trie,
        normaliser=normaliser,
        weights=weights,
        speaks=speaks,
        prior=votes({name: known.prior for name, known in file.attributes.items()}),
        trust=trust,
        implies=implies,
        measures=measures,
        rules=tuple((rule.conditions, votes(rule.then)) for rule in file.rules),
        settings=file.settings,
        sources={fold(n): (kind, source) for kind, source in common.sources.items() for n in source.names},
        fields=fields,
        negations=frozenset(normaliser.key(word) for word in split_phrases(common.negations)),
        instructions=_pattern(common.instructions, taxonomy),
        revision=revision,
    )


def _own_phrases(table: _Table, taxonomy: Taxonomy, known: set[str]) -> None:
    for attribute in taxonomy.attributes:
        for tag in attribute.tags:
            table.literal(attribute.name, tag.name, tag.phrases.items())
            if attribute.name not in known and not tag.phrases:
                names = (n for n in (tag.name, *tag.aliases) if any(c.isalnum() for c in n))
                table.literal(attribute.name, tag.name, ((n, PLAIN_WEIGHT) for n in names))


def _pattern(expressions: list[str], taxonomy: Taxonomy) -> re.Pattern[str] | None:
    if not expressions:
        return None
    names = {fold(name) for a in taxonomy.attributes for tag in a.tags for name in (tag.name, *tag.aliases)}
    # names of one or two Latin letters ("it", "m") are everyday words
    telling = {name for name in names if len(name) > 2 or not name.isascii()}
    words = {"{names}": telling, "{attributes}": {fold(name) for name in taxonomy.names}}
    alternatives = {
        placeholder: "|".join(map(re.escape, sorted(found, key=lambda name: (-len(name), name)))) or r"(?!)"
        for placeholder, found in words.items()
    }
    written = []
    for expression in expressions:
        for placeholder, pattern in alternatives.items():
            expression = expression.replace(placeholder, f"(?:{pattern})")
        written.append(f"(?:{expression})")
    try:
        return re.compile("|".join(written))
    except re.error as error:
        raise InputError(f"an instruction pattern is no regular expression ({error})") from None
