"""Answers drawn from the reading of a cue block.

Every sample sees a bootstrap of the rows (each counts Poisson(1) times: resampling with replacement, row by row),
and for each attribute

    evidence    e_t = damp(sum of the resampled votes for t) + self-report + implications of the other attributes
    posterior   q_t = softmax(prior_t + e_t)
    answer      t ~ softmax(sharpness * (prior_t + e_t) / temperature),   or NA where max(e, 0) - min(e, 0) < na_below

with damp(x) = sign(x) * damping * ln(1 + |x| / damping), as the lines of one person are no independent witnesses.
The confidence 1..5 is the posterior of the drawn tag with chance taken out, (q_t - 1/K) / (1 - 1/K), against the
four levels. So samples disagree where the evidence is thin, and contradictions cost confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cp_agents.backends.lexicon_compile import Floats, Lexicon
from cp_agents.backends.lexicon_read import ALWAYS, Reading
from cp_agents.schema import NA
from cp_agents.wire import WireAnswer

QUOTES = 3
"""At most so many quotations in one evidence text."""
_GOLDEN = (5**0.5 - 1) / 2
_SEED_PERIOD = 2**32


def answer(
    lexicon: Lexicon, block: str, reading: Reading, seeds: Sequence[int], temperature: float = 1.0
) -> list[list[WireAnswer]]:
    """One answer per seed, all attributes in order; a seed's answer does not depend on the other seeds.

    At temperature 0 the whole record is seen and the best tag is taken.
    """
    settings = lexicon.settings
    counts, luck = _resample(reading, len(lexicon.slices), seeds, temperature > 0)
    raw = counts @ np.array(reading.rows).reshape(len(reading.rows), len(lexicon.prior))
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
        if lexicon.taxonomy[name].open:  # it knows tags by their phrases, and here there are none
            for said in answers:
                said.append(WireAnswer(name, NA, 1, ""))
            continue
        of_tags = evidence[:, part]
        span = np.maximum(of_tags.max(axis=1), 0) - np.minimum(of_tags.min(axis=1), 0)
        if temperature > 0:
            drawn = (np.cumsum(chances[:, part], axis=1) < luck[:, a, None]).sum(axis=1)
            drawn = np.minimum(drawn, part.stop - part.start - 1)
        else:
            drawn = posterior[:, part].argmax(axis=1)
        sure = posterior[np.arange(len(seeds)), part.start + drawn]
        tags = part.stop - part.start
        sure = (sure - 1 / tags) / (1 - 1 / tags) if tags > 1 else 1 - np.exp(-span)
        levels = 1 + np.searchsorted(settings.levels, sure, side="right")
        for i, tag in enumerate(drawn):
            if span[i] < settings.na_below:
                answers[i].append(WireAnswer(name, NA, 1, ""))
                continue
            quote = _quote(lexicon, block, reading, part.start + int(tag), counts[i])
            answers[i].append(WireAnswer(name, lexicon.taxonomy[name].names[tag], int(levels[i]), quote))
    return answers


def _resample(
    reading: Reading, attributes: int, seeds: Sequence[int], bootstrap: bool
) -> tuple[Floats, Floats]:
    """How often each row counts (seeds, rows), and one number in 0..1 per attribute (seeds, attributes).

    The latter steps by the golden ratio from seed to seed: of consecutive samples, shares come close to the chances
    with far fewer of them than independent numbers would need.
    """
    rows = len(reading.rows)
    counts = np.ones((len(seeds), rows))
    luck = np.zeros((len(seeds), attributes))
    if bootstrap:
        start = np.random.default_rng(reading.digest).random(attributes)
        for i, seed in enumerate(seeds):
            luck[i] = (start + seed % _SEED_PERIOD * _GOLDEN) % 1.0
            counts[i] = np.random.default_rng((reading.digest, seed % _SEED_PERIOD)).poisson(1.0, rows)
    return counts, luck


def _posterior(lexicon: Lexicon, score: Floats) -> Floats:
    """Softmax per attribute, (samples, columns)."""
    q = np.empty_like(score)
    for part in lexicon.slices.values():
        if part.start == part.stop:  # an open attribute
            continue
        e = np.exp(score[:, part] - score[:, part].max(axis=1, keepdims=True))
        q[:, part] = e / e.sum(axis=1, keepdims=True)
    return q


def _quote(lexicon: Lexicon, block: str, reading: Reading, column: int, counts: Floats) -> str:
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
