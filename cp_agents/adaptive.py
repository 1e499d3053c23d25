"""When to stop drawing: adaptive sampling of one record, decided after every wave of samples.

The first m of a record's M samples have been drawn, failed ones included. Sampling stops

* `exact`: when no answers to the samples that are left could change any attribute's winner. For `weighted` that is
  a lead of more than 5 x remaining; here the worst continuations are put to the vote itself, so that ties and
  scores are those of every method. The winners are those of all M samples, always.
* `bayes`: when the expected share of attributes whose winner stays is above p, see `probability_it_stays`. So p
  speaks of the record as a whole: above 0.95, less than one winner in twenty is expected to turn out another than
  with all M samples. Asked of each attribute, one split vote would hold up the record; docs/graph.md measures both.

Neither stops while an attribute has fewer usable answers than a profile needs (`min_survivors`). `dawid_skene`
votes over all records at once, so that no record is settled on its own.

S grows with the samples asked for, so before calibration it is multiplied by M / m (see `decide.calibrate`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError
from cp_agents.voting import FULL_CONFIDENCE, VoteMethod, WeightArray, vote, vote_attributes

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]

Adaptive = Literal["exact", "bayes"]
RULES: tuple[Adaptive, ...] = get_args(Adaptive)

_FUTURES = (
    200  # simulated continuations: a standard error of 0.015 for one attribute at 0.95, less for the mean
)
_MOST_WAVES = 10
_JUST_ABOVE_0 = 1e-6
_SEED = 1979


class Stopping(NamedTuple):
    """The rule of a run."""

    rule: Adaptive
    samples: int
    """M."""
    method: VoteMethod = "weighted"
    p: float = 0.95
    """`bayes`: the expected share of winners that stay, above which sampling stops."""
    wave: int = 1
    """Fewest samples of a wave after the first; never less than a tenth of M."""
    min_survivors: int = 3


class Wave(NamedTuple):
    """What to do after the samples that were drawn."""

    more: int
    """Samples to draw next; 0 stops."""
    reason: Adaptive | None = None
    """Why it stops before M; None where it goes on or all M are drawn."""


def check_adaptive(rule: str | None, method: VoteMethod) -> None:
    """Raises `InputError` for a rule that is none, and for a vote that settles no record on its own."""
    if rule is not None and rule not in RULES:
        raise InputError(f"unknown adaptive sampling {rule!r}: expected {' or '.join(RULES)}")
    if rule is not None and method == "dawid_skene":
        raise InputError(
            "adaptive sampling cannot tell when a dawid_skene vote is settled, which takes all records together:"
            " choose another vote or leave out adaptive"
        )


def first_wave(n_tags: Sequence[int], stopping: Stopping) -> int:
    """The fewest samples that could settle votes on attributes of `n_tags[K]` tags: all agree, with weight 5."""
    return _first_wave(tuple(n_tags), stopping)


def next_wave(tags: IntArray, weights: WeightArray, n_tags: Sequence[int], stopping: Stopping) -> Wave:
    """Whether to go on, and with how many samples.

    `tags[K, m]` holds the codes of the samples drawn so far in the order of their indices, -1 for no usable answer,
    `weights[K, m]` what each votes with (0 < w <= 5), `n_tags[K]` the sizes of the closed sets; m >= 1. A wave is of
    `stopping.wave` samples or a tenth of M, whichever is more, and under `exact` of as many as it takes until the
    vote could be settled.
    """
    drawn = tags.shape[1]
    remaining = stopping.samples - drawn
    if remaining <= 0:
        return Wave(0)
    if reason := stop_reason(tags, weights, n_tags, stopping):
        return Wave(0, reason)
    fewest = 1
    if stopping.rule == "exact":
        leading = _winners(tags, weights, n_tags, stopping.method)
        fewest = _fewest(tags, weights, leading, n_tags, stopping)
    return Wave(min(remaining, max(fewest, stopping.wave, -(-stopping.samples // _MOST_WAVES))))


@lru_cache(maxsize=64)
def _first_wave(n_tags: tuple[int, ...], stopping: Stopping) -> int:
    nothing = np.empty((len(n_tags), 0), np.int16)
    # NA, the last tag, wins no tie: the wave is not cut to what would do for the first tag of every set alone.
    return _fewest(nothing, nothing, np.array(n_tags) - 1, n_tags, stopping)


def _fewest(
    tags: IntArray, weights: WeightArray, leading: IntArray, n_tags: Sequence[int], stopping: Stopping
) -> int:
    """How many more samples could settle the vote, if all named the `leading[K]` tags with weight 5."""
    remaining = stopping.samples - tags.shape[1]
    agreeing = np.repeat(leading[:, None], remaining, axis=1).astype(tags.dtype)
    all_tags = np.hstack([tags, agreeing])
    all_weights = np.hstack([weights, np.full_like(agreeing, FULL_CONFIDENCE, dtype=weights.dtype)])

    def settled(more: int) -> bool:
        then = tags.shape[1] + more
        return more == remaining or bool(
            stop_reason(all_tags[:, :then], all_weights[:, :then], n_tags, stopping)
        )

    return 1 + bisect_left(range(1, remaining + 1), True, key=settled)


def stop_reason(
    tags: IntArray, weights: WeightArray, n_tags: Sequence[int], stopping: Stopping
) -> Adaptive | None:
    """The rule that lets sampling stop here, None where it has to go on; arrays as in `next_wave`, m >= 1.

    Under `bayes` a vote that nothing could change says `exact`.
    """
    needed = max(1, min(stopping.min_survivors, stopping.samples))
    if ((tags >= 0).sum(axis=1) < needed).any():
        return None
    if is_settled(tags, weights, n_tags, stopping.samples, stopping.method):
        return "exact"
    if stopping.rule == "exact":
        return None
    stays = probability_it_stays(tags, weights, n_tags, stopping.samples, stopping.method)
    return "bayes" if float(stays.mean()) > stopping.p else None


def is_settled(
    tags: IntArray, weights: WeightArray, n_tags: Sequence[int], samples: int, method: VoteMethod = "weighted"
) -> bool:
    """Whether no answers to the remaining samples could change any attribute's winner.

    For each other tag the worst is that all of them name it with weight 5; under `mean`, where a vote for the
    winner can lower its S, that some of them name the winner with the least weight instead. An attribute
    without a usable answer has no winner yet.
    """
    drawn = tags.shape[1]
    remaining = samples - drawn
    winner = _winners(tags, weights, n_tags, method)
    if (winner < 0).any():
        return False
    if remaining <= 0:
        return True
    attribute, rival = np.nonzero(np.arange(max(n_tags)) < np.asarray(n_tags)[:, None])
    others = rival != winner[attribute]
    attribute, rival = attribute[others], rival[others]
    winner = winner[attribute]
    left = ((0, 0), (0, remaining))
    worst_tags, worst_weights = np.pad(tags, left)[attribute], np.pad(weights, left)[attribute]
    # Stated confidences are whole numbers from 1 on; of real weights only "above 0" is known.
    least = 1 if np.issubdtype(weights.dtype, np.integer) else _JUST_ABOVE_0
    for lowering in range(remaining + 1 if method == "mean" else 1):
        split = drawn + lowering
        worst_tags[:, drawn:split], worst_weights[:, drawn:split] = winner[:, None], least
        worst_tags[:, split:], worst_weights[:, split:] = rival[:, None], FULL_CONFIDENCE
        if (vote(worst_tags, worst_weights, max(n_tags), method).winner != winner).any():
            return False
    return True


def probability_it_stays(
    tags: IntArray, weights: WeightArray, n_tags: Sequence[int], samples: int, method: VoteMethod = "weighted"
) -> FloatArray:
    """Posterior probability `[K]` that the present winner is the winner of all M samples, attribute by attribute.

    The answers to one attribute are taken as exchangeable draws of a cell (tag, weight), or of no usable answer,
    whose probabilities have a Dirichlet prior that is worth one sample and is spread evenly over all tags and the
    weights 1..5. So the next answer repeats one of the m drawn so far with probability m / (m + 1), is any cell
    otherwise, and counts itself from then on (Polya's urn). `_FUTURES` such continuations, the same ones every
    time, are put to the vote itself. 0 where nobody has answered yet.
    """
    drawn, attributes = tags.shape[1], len(n_tags)
    futures, fresh = _urn(drawn, samples, attributes)
    cell = fresh * np.asarray(n_tags)[:, None, None]
    levels = 1 + cell % 1 * FULL_CONFIDENCE
    shape = (attributes, len(futures), drawn)
    urn_tags = np.concatenate([np.broadcast_to(tags[:, None], shape), cell.astype(tags.dtype)], axis=2)
    urn_weights = np.concatenate(
        [np.broadcast_to(weights[:, None], shape), levels.astype(np.int64).astype(weights.dtype)], axis=2
    )
    every = np.arange(len(futures))[:, None]
    then = vote_attributes(urn_tags[:, every, futures], urn_weights[:, every, futures], n_tags, method).winner
    now = _winners(tags, weights, n_tags, method)[:, None]
    return np.asarray(((then == now) & (now >= 0)).mean(axis=1), dtype=np.float64)


def _winners(
    tags: IntArray, weights: WeightArray, n_tags: Sequence[int], method: VoteMethod
) -> NDArray[np.integer[Any]]:
    """`[K]`: the present winners; -1 where there is none."""
    return vote_attributes(tags[:, None], weights[:, None], n_tags, method).winner[:, 0]


@lru_cache(maxsize=_MOST_WAVES)
def _urn(drawn: int, samples: int, attributes: int) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Continuations of `drawn` samples to M: which ball lies in each place `[F, M]`, and what new balls are.

    Balls below `drawn` are the samples themselves, ball `drawn + j` is the new one of draw j if that draw took one.
    What it is stands in `[K, F, M - drawn]` as a number of 0..1, spread evenly over its attribute's cells.
    """
    rng = np.random.default_rng((_SEED, drawn, samples))
    ball = np.tile(np.arange(samples, dtype=np.int16), (_FUTURES, 1))
    rows = np.arange(_FUTURES)
    for place in range(drawn, samples):
        pick = rng.integers(0, place + 1, _FUTURES)  # the last one stands for a new ball
        ball[:, place] = ball[rows, pick]
    return ball, rng.random((attributes, _FUTURES, samples - drawn), dtype=np.float32)
