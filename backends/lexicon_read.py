"""A cue block as a lexicon sees it: votes in nats per line and tag, and where the words stand.

A block is read once, for all samples. Lines that speak to a model are set aside. The lines of a kind of source
count as the lexicon says, more with their count and weight; n lines with the same words count as 1 + ln n.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cp_agents.backends.lexicon_compile import ANYWHERE, Floats, Lexicon
from cp_agents.backends.lexicon_file import Source
from cp_agents.backends.lexicon_text import STOPS, Found, Token
from cp_agents.cues import CueLine
from cp_agents.schema import NA, SELF_REPORTED
from cp_agents.taxonomy import fold

ALWAYS = -1
"""Row number of what every sample sees: the self-report."""
_NEGATION_REACH = 3
_PLAIN = (ANYWHERE, Source())
_CONDENSED_HEAD = re.compile(r"[\d,]+ (?:more )?items?: ")
_CONDENSED_PIECE = re.compile(r"(?P<text>.+?)(?: \(x(?P<count>\d+)\))?(?:, |$)")


class Support(NamedTuple):
    """`block[start:end]` speaks for a tag with so many nats."""

    nats: float
    row: int
    start: int
    end: int


@dataclass
class Reading:
    """A cue block as the lexicon sees it."""

    reported: Floats
    """(columns,): what the self-report says, nats."""
    digest: int
    """Seeds the samples: a hash of the lines that were read; those that were set aside leave no trace."""
    rows: list[Floats] = field(default_factory=list)
    """What each line and each rule says, (columns,) nats."""
    supports: dict[int, list[Support]] = field(default_factory=dict)
    """Column to what speaks for it, strongest first."""
    implied: dict[int, list[Support]] = field(default_factory=dict)
    """The same for what speaks for a tag that implies this one; filled when asked for."""

    def support(self, column: int, nats: float, row: int, start: int, end: int) -> None:
        """Note that `block[start:end]` speaks for the tag in `column`."""
        self.supports.setdefault(column, []).append(Support(nats, row, start, end))


class _Line(NamedTuple):
    text: str
    source: str
    start: int
    times: int
    weight: float | None


def read_block(lexicon: Lexicon, block: str, lines: Sequence[CueLine]) -> Reading:
    """Score every line of a cue block; `lines` are those of the block."""
    claims, texts = _self_report(lexicon, block, lines)
    kept = [line for line in texts if not _is_instruction(lexicon, line.text)]
    kinds = {name: lexicon.sources.get(fold(name), _PLAIN) for name in {line.source for line in kept}}
    read = [_votes(lexicon, kinds[line.source][0], line) for line in kept]
    seen = "\n".join(f"{line.source}\0{line.text}\0{line.times}\0{line.weight}" for line in kept)
    seed = f"{seen}\n{sorted(column for column, _ in claims)}"
    reading = Reading(
        np.zeros(len(lexicon.prior)), int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8])
    )
    for column, line in claims:
        reading.reported[column] = nats = float(lexicon.trust[column])
        reading.support(column, nats, ALWAYS, line.start, line.end)
    _add_lines(reading, kept, read, {name: source for name, (_, source) in kinds.items()})
    measured = [
        (line, set(phrases))
        for line, (_, phrases, _) in zip(kept, read, strict=True)
        if line.weight is not None and kinds[line.source][1].half is not None
    ]
    if measured:
        _add_rules(reading, lexicon, measured)
    for supports in reading.supports.values():
        supports.sort(key=lambda s: (-s.nats, s.start))
    return reading


def _self_report(
    lexicon: Lexicon, block: str, lines: Sequence[CueLine]
) -> tuple[list[tuple[int, CueLine]], list[_Line]]:
    """(column, line) of each tag that a field claims, and all lines that are text to be searched."""
    texts: list[_Line] = []
    claimed: dict[str, list[tuple[int, int, CueLine]]] = {}
    for line in lines:
        if line.source != SELF_REPORTED:
            texts += _pieces(line, block)
            continue
        name, _, value = line.text.partition(": ")
        is_claim = False
        for rank, attribute in lexicon.fields.get(fold(name), ()):
            if lexicon.taxonomy[attribute].open:
                continue
            tag = lexicon.taxonomy[attribute].match_value(value)
            if tag is not None and tag != NA:
                column = lexicon.slices[attribute].start + lexicon.taxonomy[attribute].names.index(tag)
                claimed.setdefault(attribute, []).append((rank, column, line))
                is_claim = True
        if not is_claim:
            offset = len(name) + 2 if value else 0
            texts.append(_Line(line.text[offset:], line.source, line.start + offset, 1, None))
    return [min(said, key=lambda claim: claim[0])[1:] for said in claimed.values()], texts


def _pieces(line: CueLine, block: str) -> Iterator[_Line]:
    """A line as it is, or the parts of a condensed one, each with its own count."""
    offset = max(line.start, block.find(line.text, line.start, line.end))
    head = _CONDENSED_HEAD.match(line.text) if line.condensed else None
    if head is None:
        yield _Line(line.text, line.source, offset, line.count, line.weight)
        return
    for piece in _CONDENSED_PIECE.finditer(line.text, head.end()):
        yield _Line(piece["text"], line.source, offset + piece.start(), int(piece["count"] or 1), None)


def _is_instruction(lexicon: Lexicon, text: str) -> bool:
    return lexicon.instructions is not None and lexicon.instructions.search(fold(text)) is not None


def _add_lines(
    reading: Reading,
    lines: Sequence[_Line],
    read: Sequence[tuple[list[Found], list[int], Floats]],
    sources: Mapping[str, Source],
) -> None:
    weights: dict[str, list[float]] = {}
    for line in lines:
        if line.weight is not None:
            weights.setdefault(line.source, []).append(line.weight)
    means = {name: sum(of_source) / len(of_source) for name, of_source in weights.items()}
    heard = Counter(match.phrase for found, _, _ in read for match in found)
    for line, (found, _, votes) in zip(lines, read, strict=True):
        source = sources[line.source]
        scale = source.factor * _scale(line, source.half or means.get(line.source))
        if scale == 0 or not votes.any():
            continue
        times = np.array([heard[match.phrase] for match in found])
        votes = votes * (scale * (1 + np.log(times)) / times)[:, None]
        for i, column in np.argwhere(votes > 0):
            reading.support(
                int(column), float(votes[i, column]), len(reading.rows), found[i].start, found[i].end
            )
        reading.rows.append(votes.sum(axis=0))


def _scale(line: _Line, half: float | None) -> float:
    """How much one line counts: 1 for a plain one, slowly more with its count, 0.5 to 1.5 by its weight."""
    scale = min(3.0, 1 + 0.5 * float(np.log2(line.times)))
    if line.weight is not None and half:
        scale *= 0.5 + line.weight / (line.weight + half)
    return scale


def _votes(lexicon: Lexicon, kind: str, line: _Line) -> tuple[list[Found], list[int], Floats]:
    """The matches of a line, all phrases matched, and the matches' votes (matches, columns) before scaling.

    A match says nothing of an attribute where it lies inside a longer match that speaks of it, and nothing at all
    close behind a negation.
    """
    tokens = lexicon.normaliser.tokens(line.text, line.start)
    spans: dict[tuple[int, int], list[Found]] = {}
    seen: set[int] = set()
    for match in lexicon.trie.find(tokens):
        if match.phrase not in seen and not _negated(lexicon, tokens, match):
            seen.add(match.phrase)
            spans.setdefault((match.first, match.last), []).append(match)
    found = [same[0] for same in spans.values()]
    weights = lexicon.weights[kind]
    votes = np.zeros((len(found), weights.shape[1]))
    hidden = np.zeros(votes.shape, dtype=bool)
    firsts = np.array([match.first for match in found])
    lasts = np.array([match.last for match in found])
    for i, ((first, last), same) in enumerate(spans.items()):
        rows = weights[[match.phrase for match in same]]
        # of several phrases for the same words the strongest vote counts
        votes[i] = rows[np.abs(rows).argmax(axis=0), np.arange(rows.shape[1])]
        if first < last:
            inside = (firsts >= first) & (lasts <= last)
            inside[i] = False
            hidden[inside] |= lexicon.speaks[[match.phrase for match in same]].any(axis=0)
    votes[hidden] = 0
    return found, [match.phrase for same in spans.values() for match in same], votes


def _negated(lexicon: Lexicon, tokens: Sequence[Token], match: Found) -> bool:
    for position in range(match.first - 1, max(-1, match.first - 1 - _NEGATION_REACH), -1):
        if tokens[position].key in STOPS:
            return False
        if tokens[position].key in lexicon.negations:
            return True
    return False


def _add_rules(reading: Reading, lexicon: Lexicon, measured: Sequence[tuple[_Line, set[int]]]) -> None:
    """Add a row for every rule whose conditions hold. `measured` are lines whose weights have a known unit."""
    members = {
        name: [
            (line.weight or 0.0, line.start, line)
            for line, found in measured
            if phrases is None or found & phrases
        ]
        for name, phrases in lexicon.measures.items()
    }
    totals = {name: sum(weight for weight, _, _ in found) for name, found in members.items()}
    for conditions, votes in lexicon.rules:
        if not all((totals[name] >= bound) == at_least for name, at_least, bound in conditions):
            continue
        for name, at_least, _ in conditions:
            if at_least and lexicon.measures[name] is not None and members[name]:
                line = max(members[name])[2]
                for column in np.flatnonzero(votes > 0):
                    end = line.start + len(line.text)
                    reading.support(int(column), float(votes[column]), len(reading.rows), line.start, end)
        reading.rows.append(votes)
