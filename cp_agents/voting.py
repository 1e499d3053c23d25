"""M answers to one tag: the votes over parallel samples (Conf-Profile section 4.2, equations 3-5).

Everything is vectorised over rows. A row is one attribute of one record, a column one of the M samples, so
the same code serves a single record in the graph and a replay of many thousands.

Rules that the paper leaves open, and what is done here:

* An absent answer (code -1) takes no part. NA is a tag like the others and votes with its own confidence.
* Ties are broken in this order: higher S, more votes, the higher single confidence, taxonomy order (NA last).
* Only a tag that at least one sample named can win, so that some sample's evidence always stands by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cp_agents.dawid_skene import fit_dawid_skene
from cp_agents.errors import InputError

IntArray = NDArray[np.integer[Any]]
WeightArray = NDArray[Any]
"""Stated confidences, or other weights above 0 and at most 5 (see `confidence.py`)."""
FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]

VoteMethod = Literal["weighted", "majority", "mean", "softmax", "dawid_skene"]
METHODS: tuple[VoteMethod, ...] = get_args(VoteMethod)

FULL_CONFIDENCE = 5
_DECIMALS = 9  # S is rounded to this, so that the order in which samples are added up cannot decide a tie


class Votes(NamedTuple):
    """The result of a vote. Every array has one entry per row; `agreeing` has one per row and sample."""

    winner: IntArray
    """Tag code; -1 where no sample survived."""
    score: FloatArray
    """S of equation 5, on the scale 0..5M' of every method (M' = survivors). 0 where no sample survived."""
    share: FloatArray
    """Votes for the winner / survivors, 0..1."""
    runner_up: IntArray
    """Tag code of the second; -1 where all survivors agree."""
    runner_up_score: FloatArray
    """Its S; 0 where there is none."""
    margin: FloatArray
    """(S of the winner - S of the runner-up) / S of all named tags, 0..1."""
    survivors: IntArray
    """Samples with a usable answer."""
    agreeing: BoolArray
    """Which samples named the winner."""
    best_sample: IntArray
    """Column of the most confident agreeing sample, the lowest on ties; -1 where no sample survived."""


def vote(
    tags: IntArray,
    confidence: WeightArray,
    n_tags: int,
    method: VoteMethod = "weighted",
    *,
    samplers: IntArray | None = None,
    temperature: float = 1.0,
) -> Votes:
    """Vote on one attribute over its records (or on many attributes, padded to the widest tag set).

    `tags[R, M]` holds tag codes 0..n_tags-1, or -1 where a sample gave no usable answer; `confidence[R, M]`
    holds 1..5, or other weights above 0 and at most 5, and is not looked at where the tag is -1. The methods
    differ in the S of a tag t:

    * `weighted`: the sum of the confidences of the samples that name t (equation 3), 0..5M'.
    * `majority`: 5 for each sample that names t, whatever its confidence.
    * `mean`: M' times the mean confidence of the samples that name t. It ignores how many they are: one
      sample at 5 beats nine at 4. It is there to reproduce the paper's Table 2.
    * `softmax` (CISC): weights softmax(c / temperature) over the survivors of the row; S = 5 M' times the
      weight of those that name t. A low temperature leaves the most confident, a high one is `majority`.
    * `dawid_skene`: 5 M' times the posterior of t from expectation-maximisation over all rows, see
      `dawid_skene.py`. `samplers[R, M]` (or `[M]`) says who drew each sample; the samples of one sampler are
      exchangeable and share one confusion matrix; without it all are one sampler's. It looks at tags
      alone, and learns from many records of ONE attribute: on a single row it comes down to `majority`.

    Raises `InputError` for an unknown method or a temperature of 0 or less, `ValueError` for arrays that
    break the above.
    """
    if method not in METHODS:
        raise InputError(f"unknown vote method {method!r} (expected one of {', '.join(METHODS)})")
    if not temperature > 0:
        raise InputError(f"the softmax temperature should be above 0, found {temperature:g}")
    tags, confidence = np.asarray(tags), np.asarray(confidence)
    alive = _check(tags, confidence, n_tags)
    rows = len(tags)

    # One spare column takes the absent answers, so that no boolean indexing is needed.
    width = n_tags + 1
    cell = (np.where(alive, tags, n_tags) + width * np.arange(rows)[:, None]).ravel()

    def per_tag(weights: NDArray[Any] | None) -> NDArray[Any]:
        flat = None if weights is None else weights.ravel()
        return np.bincount(cell, flat, rows * width).reshape(rows, width)[:, :n_tags]

    survivors = alive.sum(axis=1)
    count = per_tag(None)
    if method == "weighted":
        score = per_tag(confidence)
    elif method == "majority":
        score = FULL_CONFIDENCE * count.astype(float)
    elif method == "mean":
        score = survivors[:, None] * per_tag(confidence) / np.maximum(count, 1)
    elif method == "softmax":
        top = np.where(alive, confidence, 0).max(axis=1, keepdims=True)
        weight = np.where(alive, np.exp(np.minimum(confidence - top, 0) / temperature), 0.0)
        # A row with survivors sums to 1 or more: its most confident sample alone weighs exp(0).
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1.0)
        score = FULL_CONFIDENCE * survivors[:, None] * per_tag(weight)
    else:
        posterior = fit_dawid_skene(tags, n_tags, samplers).posterior
        score = FULL_CONFIDENCE * survivors[:, None] * posterior
    score = np.where(count > 0, np.round(score, _DECIMALS), -1.0)

    peak = np.zeros(rows * width, dtype=np.result_type(confidence, np.int64))
    np.maximum.at(peak, cell, confidence.ravel())
    peak = peak.reshape(rows, width)[:, :n_tags]

    every = np.arange(rows)
    winner, top_score = _first(score, count, peak)
    rest = score.copy()
    rest[every, winner] = -1.0
    runner_up, second_score = _first(rest, count, peak)
    winner = np.where(top_score < 0, -1, winner)
    runner_up = np.where(second_score < 0, -1, runner_up)
    top_score, second_score = np.maximum(top_score, 0.0), np.maximum(second_score, 0.0)

    all_scores = np.maximum(score, 0.0).sum(axis=1)
    agreeing = alive & (tags == winner[:, None])
    return Votes(
        winner=winner,
        score=top_score,
        share=agreeing.sum(axis=1) / np.maximum(survivors, 1),
        runner_up=runner_up,
        runner_up_score=second_score,
        margin=(top_score - second_score) / np.where(all_scores > 0, all_scores, 1.0),
        survivors=survivors,
        agreeing=agreeing,
        best_sample=np.where(winner < 0, -1, np.where(agreeing, confidence, 0).argmax(axis=1)),
    )


def vote_attributes(
    tags: IntArray,
    confidence: WeightArray,
    n_tags: Sequence[int],
    method: VoteMethod = "weighted",
    *,
    samplers: IntArray | None = None,
    temperature: float = 1.0,
) -> Votes:
    """Vote on K attributes of R records at once: `tags[K, R, M]`, `confidence[K, R, M]`, `n_tags[k]`.

    Equal to `vote` attribute by attribute, and faster for a single record (R = 1). The arrays of the result
    have shape `[K, R]`, `agreeing` `[K, R, M]`. `samplers` is `[R, M]`. Raises what `vote` raises.
    """
    tags, confidence = np.asarray(tags), np.asarray(confidence)
    if tags.ndim != 3 or len(n_tags) != len(tags):
        raise ValueError(f"expected tags[K, R, M] for {len(n_tags)} attributes, found shape {tags.shape}")
    if (tags >= np.asarray(n_tags)[:, None, None]).any():
        raise ValueError("a tag code lies outside its attribute's closed set")
    if method == "dawid_skene":  # learns confusions between the tags of one attribute
        each = [
            vote(t, c, n, method, samplers=samplers) for t, c, n in zip(tags, confidence, n_tags, strict=True)
        ]
        return Votes(*(np.stack(arrays) for arrays in zip(*each, strict=True)))
    attributes, records, samples = tags.shape
    flat = vote(
        tags.reshape(-1, samples),
        confidence.reshape(-1, samples),
        max(n_tags),
        method,
        temperature=temperature,
    )
    arrays: list[NDArray[Any]] = [array.reshape(attributes, records, *array.shape[1:]) for array in flat]
    return Votes(*arrays)


def _check(tags: IntArray, confidence: WeightArray, n_tags: int) -> BoolArray:
    """Which answers are there. Codes out of range would be counted in the next row, so they are refused."""
    if tags.ndim != 2 or tags.shape[1] < 1 or tags.shape != confidence.shape:
        raise ValueError(
            f"expected tags[R, M] and confidence[R, M], found {tags.shape} and {confidence.shape}"
        )
    alive: BoolArray = tags >= 0
    if tags.max(initial=-1) >= n_tags:
        raise ValueError(f"a tag code lies outside 0..{n_tags - 1}")
    given = confidence[alive]
    if given.size and not 0 < given.min() <= given.max() <= FULL_CONFIDENCE:  # which no NaN passes either
        raise ValueError(
            f"a vote has a confidence outside 1..{FULL_CONFIDENCE}, or a weight that is not above 0"
        )
    return alive


def _first(score: FloatArray, count: IntArray, peak: WeightArray) -> tuple[IntArray, FloatArray]:
    """Per row the leading tag under the tie rules, and its S (-1 where no tag is left)."""
    top = score.max(axis=1, keepdims=True)
    leading = score == top
    for key in (count, peak):
        among = np.where(leading, key, -1)
        leading &= among == among.max(axis=1, keepdims=True)
    return leading.argmax(axis=1), top[:, 0]
