"""Scores of a cue block under a lexicon, and answers drawn from them.

A block is read once: every line becomes a row of votes in nats per tag. A sample then sees a bootstrap of the
rows (each counts Poisson(1) times, which is resampling with replacement, line by line), and for each attribute

    evidence  e_t = damp(sum of the resampled votes for t) + self-report + implications of the other attributes
    posterior q_t = softmax(prior_t + e_t)
    answer      t ~ softmax(sharpness * (prior_t + e_t) / temperature),   or NA where max e - min e < na_below

with damp(x) = sign(x) * damping * log(1 + |x| / damping), so that a hundred like lines are not a hundred
independent witnesses. The confidence 1..5 is the posterior of the drawn tag, chance taken out:
(q_t - 1/K) / (1 - 1/K) against four levels.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.backends.lexicon_compile import ANYWHERE, Floats, Lexicon
from cp_agents.backends.lexicon_file import Source
from cp_agents.backends.lexicon_text import STOPS, Found, Token
from cp_agents.cues import CueLine
from cp_agents.schema import NA, SELF_REPORTED
from cp_agents.taxonomy import fold
from cp_agents.wire import WireAnswer

ALWAYS = -1
"""Row number of what every sample sees: the self-report."""
QUOTES = 3
"""At most so many quotations in one evidence text."""
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

    rows: Floats
    """(rows, columns), nats."""
    reported: Floats
    """(columns,), nats."""
    supports: dict[int, list[Support]] = field(default_factory=dict)
    """Column to what speaks for it, strongest first."""
    implied: dict[int, list[Support]] = field(default_factory=dict)
    """The same for what speaks for a tag that implies this one; filled when asked for."""
    digest: int = 0
    """Seeds the samples: a hash of the lines that were read, those that were set aside left out."""


class _Line(NamedTuple):
    text: str
    source: str
    start: int
    count: int
    weight: float | None


def read_block(lexicon: Lexicon, block: str, lines: Sequence[CueLine]) -> Reading:
    """Score every line of a cue block, once for all samples."""
    reported, claims, texts = _self_report(lexicon, block, lines)
    kept = [line for line in texts if not _is_instruction(lexicon, line.text)]
    rows: list[Floats] = []
    supports: dict[int, list[Support]] = {}
    for tag_column, line in claims:
        support = Support(float(lexicon.trust[tag_column]), ALWAYS, line.start, line.end)
        supports.setdefault(tag_column, []).append(support)
    means = _mean_weights(kept)
    kinds = {name: lexicon.sources.get(fold(name), _PLAIN) for name in {line.source for line in kept}}
    read = [_votes(lexicon, kinds[line.source][0], line) for line in kept]
    heard = Counter(match.phrase for found, _, _ in read for match in found)
    for line, (found, _, votes) in zip(kept, read, strict=True):
        source = kinds[line.source][1]
        scale = source.factor * _scale(line, source.half or means.get(line.source))
        if scale == 0 or not votes.any():
            continue
        # n lines with the same words are 1 + ln n witnesses, not n
        votes = votes * np.array([scale * (1 + np.log(n := heard[m.phrase])) / n for m in found])[:, None]
        for i, column in np.argwhere(votes > 0):
            support = Support(float(votes[i, column]), len(rows), found[i].start, found[i].end)
            supports.setdefault(int(column), []).append(support)
        rows.append(votes.sum(axis=0))
    hits = [set(phrases) for _, phrases, _ in read]
    _apply_rules(lexicon, kept, kinds, hits, rows, supports)
    for found_supports in supports.values():
        found_supports.sort(key=lambda s: (-s.nats, s.start))
    seen = "\n".join(f"{line.source}\0{line.text}\0{line.count}\0{line.weight}" for line in kept)
    seed = f"{lexicon.revision}\n{seen}\n{sorted(c for c, _ in claims)}"
    return Reading(
        rows=np.array(rows) if rows else np.zeros((0, len(lexicon.prior))),
        reported=reported,
        supports=supports,
        digest=int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]),
    )


def _self_report(
    lexicon: Lexicon, block: str, lines: Sequence[CueLine]
) -> tuple[Floats, list[tuple[int, CueLine]], list[_Line]]:
    """Nats per column, (column, line) of each claim, and all lines that are text to be searched."""
    texts: list[_Line] = []
    claimed: dict[str, list[tuple[int, int, CueLine]]] = {}
    for line in lines:
        if line.source != SELF_REPORTED:
            texts += _pieces(line, block)
            continue
        name, _, value = line.text.partition(": ")
        is_claim = False
        for rank, attribute in lexicon.fields.get(fold(name), ()):
            tag = lexicon.taxonomy[attribute].match_value(value)
            if tag is not None and tag != NA:
                column = lexicon.slices[attribute].start + lexicon.taxonomy[attribute].names.index(tag)
                claimed.setdefault(attribute, []).append((rank, column, line))
                is_claim = True
        if not is_claim:
            offset = len(name) + 2 if value else 0
            texts.append(_Line(line.text[offset:], line.source, line.start + offset, 1, None))
    claims = [min(said, key=lambda claim: claim[0])[1:] for said in claimed.values()]
    nats = np.zeros(len(lexicon.prior))
    for column, _ in claims:
        nats[column] = lexicon.trust[column]
    return nats, claims, texts


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


def _mean_weights(lines: Sequence[_Line]) -> dict[str, float]:
    by_source: dict[str, list[float]] = {}
    for line in lines:
        if line.weight is not None:
            by_source.setdefault(line.source, []).append(line.weight)
    return {name: sum(weights) / len(weights) for name, weights in by_source.items()}


def _scale(line: _Line, half: float | None) -> float:
    """How much one line counts: 1 for a plain one, slowly more with its count, 0.5 to 1.5 by its weight."""
    scale = min(3.0, 1 + 0.5 * float(np.log2(line.count)))
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
    for i, same in enumerate(spans.values()):  # one text, several phrases: the strongest vote counts
        rows = weights[[m.phrase for m in same]]
        votes[i] = rows[np.abs(rows).argmax(axis=0), np.arange(rows.shape[1])]
        inside = [k for k in range(len(found)) if _inside(found[k], found[i])]
        if inside:
            hidden[inside] |= lexicon.speaks[[m.phrase for m in same]].any(axis=0)
    votes[hidden] = 0
    return found, [m.phrase for same in spans.values() for m in same], votes


def _inside(inner: Found, outer: Found) -> bool:
    if outer.first == outer.last or inner.first < outer.first or inner.last > outer.last:
        return False
    return inner.last - inner.first < outer.last - outer.first


def _negated(lexicon: Lexicon, tokens: Sequence[Token], match: Found) -> bool:
    for position in range(match.first - 1, max(-1, match.first - 1 - _NEGATION_REACH), -1):
        if tokens[position].key in STOPS:
            return False
        if tokens[position].key in lexicon.negations:
            return True
    return False


def _apply_rules(
    lexicon: Lexicon,
    lines: Sequence[_Line],
    kinds: Mapping[str, tuple[str, Source]],
    hits: Sequence[set[int]],
    rows: list[Floats],
    supports: dict[int, list[Support]],
) -> None:
    """Add a row for every rule whose conditions hold; measures add up lines whose weights have a known unit."""
    measured: list[tuple[_Line, set[int], float]] = []
    for line, found in zip(lines, hits, strict=True):
        if line.weight is not None and kinds[line.source][1].half is not None:
            measured.append((line, found, line.weight))
    if not measured:
        return
    members: dict[str, list[tuple[float, _Line]]] = {}
    for name, phrases in lexicon.measures.items():
        members[name] = [(w, line) for line, found, w in measured if phrases is None or found & phrases]
    totals = {name: sum(w for w, _ in found) for name, found in members.items()}
    for conditions, votes in lexicon.rules:
        if not all((totals[name] >= bound) == at_least for name, at_least, bound in conditions):
            continue
        shown = [
            members[name]
            for name, at_least, _ in conditions
            if at_least and lexicon.measures[name] is not None
        ]
        for found_lines in shown:
            if found_lines:
                line = max(found_lines)[1]
                for column in np.flatnonzero(votes > 0):
                    support = Support(
                        float(votes[column]), len(rows), line.start, line.start + len(line.text)
                    )
                    supports.setdefault(int(column), []).append(support)
        rows.append(votes)


def answer(
    lexicon: Lexicon, block: str, reading: Reading, seeds: Sequence[int], temperature: float = 1.0
) -> list[list[WireAnswer]]:
    """One answer per seed, all attributes in order; a seed's answer does not depend on the other seeds.

    At temperature 0 the whole record is seen and the best tag is taken.
    """
    settings = lexicon.settings
    counts, luck = _resample(reading, len(lexicon.slices), seeds, temperature > 0)
    raw = counts @ reading.rows
    direct = np.sign(raw) * settings.damping * np.log1p(np.abs(raw) / settings.damping) + reading.reported
    lift = _posterior(lexicon, lexicon.prior + direct) - _posterior(lexicon, lexicon.prior[None, :])
    evidence = direct + lift @ lexicon.implies
    score = lexicon.prior + evidence
    posterior = _posterior(lexicon, score)
    chances = (
        _posterior(lexicon, score * (settings.sharpness / temperature)) if temperature > 0 else posterior
    )
    answers: list[list[WireAnswer]] = [[] for _ in seeds]
    for a, (name, part) in enumerate(lexicon.slices.items()):
        span = evidence[:, part].max(axis=1) - evidence[:, part].min(axis=1)
        if temperature > 0:
            drawn = (np.cumsum(chances[:, part], axis=1) < luck[:, a, None]).sum(axis=1)
            drawn = np.minimum(drawn, part.stop - part.start - 1)
        else:
            drawn = posterior[:, part].argmax(axis=1)
        chance = 1 / (part.stop - part.start)
        for i, tag in enumerate(drawn):
            if span[i] < settings.na_below:
                answers[i].append(WireAnswer(name, NA, 1, ""))
                continue
            sure = (posterior[i, part.start + tag] - chance) / max(1 - chance, 1e-9)
            confidence = 1 + int(np.searchsorted(settings.levels, sure, side="right"))
            quote = _quote(lexicon, block, reading, part.start + int(tag), counts[i])
            answers[i].append(WireAnswer(name, lexicon.taxonomy[name].names[tag], confidence, quote))
    return answers


def _resample(
    reading: Reading, attributes: int, seeds: Sequence[int], bootstrap: bool
) -> tuple[Floats, Floats]:
    """How often each row counts (seeds, rows), and one uniform number per attribute (seeds, attributes)."""
    rows = len(reading.rows)
    counts = np.ones((len(seeds), rows))
    luck = np.zeros((len(seeds), attributes))
    if bootstrap:
        for i, seed in enumerate(seeds):
            rng = np.random.default_rng((reading.digest, seed % 2**64))
            luck[i] = rng.random(attributes)
            counts[i] = rng.poisson(1.0, rows)
    return counts, luck


def _posterior(lexicon: Lexicon, score: Floats) -> Floats:
    """Softmax per attribute, (samples, columns)."""
    q = np.empty_like(score)
    for part in lexicon.slices.values():
        e = np.exp(score[:, part] - score[:, part].max(axis=1, keepdims=True))
        q[:, part] = e / e.sum(axis=1, keepdims=True)
    return q


def _quote(lexicon: Lexicon, block: str, reading: Reading, column: int, counts: NDArray[np.float64]) -> str:
    """What the sample saw that speaks for the tag; where nothing does, what speaks for a tag that implies it."""
    if column not in reading.implied:
        causes = np.flatnonzero(lexicon.implies[:, column] > 0)
        reading.implied[column] = sorted(s for c in causes for s in reading.supports.get(int(c), ()))[::-1]
    for candidates in (reading.supports.get(column, ()), reading.implied[column]):
        quotes: list[str] = []
        for support in candidates:
            if support.row == ALWAYS or counts[support.row] > 0:
                text = block[support.start : support.end]
                if text not in quotes:
                    quotes.append(text)
                if len(quotes) == QUOTES:
                    break
        if quotes:
            return "; ".join(quotes)
    return ""
