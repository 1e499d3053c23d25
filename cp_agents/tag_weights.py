"""Hybrid supervision: a few labels teach the vote which tags a teacher says too easily.

The paper votes without labels and names limited human labels as future work (section 7). Here k labelled users give
every tag t a weight w_t, and S of equation 3 becomes w_t times the sum of the confidences of the samples that name t.
A teacher that says "Single" whenever it is unsure loses weight there, and nothing else of the pipeline changes.

log w maximises sum over labelled users of log(w_truth S_truth / sum_t w_t S_t) - RIDGE/2 |log w|^2: a softmax with
known offsets log S, concave, solved by Newton's method. With no label every weight is 1, the label-free vote. NA is in
neither sum and keeps its weight: gold says which tag is right, not when to be silent. Users whose true tag no sample
named teach nothing, since no weight could make it win.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError
from cp_agents.schema import NA
from cp_agents.taxonomy import Attribute, Taxonomy
from cp_agents.voting import FULL_CONFIDENCE, VoteMethod

RIDGE = 3.0
"""How strongly weights hold to 1: about as many labels of one tag as it takes to move its weight much."""
TagWeights = Mapping[str, Mapping[str, float]]
"""`{attribute: {tag: weight}}`, weights above 0; what is not named weighs 1."""

_STEPS, _LONGEST, _ENOUGH = 100, 1.0, 1e-9
_DECIMALS = 6


def fit_tag_weights(
    scores: NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]], ridge: float = RIDGE
) -> NDArray[np.float64]:
    """Weights `[T]` of the tags from `scores[N, T]`, S of every tag but NA, and the true codes `truth[N]`."""
    usable = scores[np.arange(len(truth)), truth] > 0
    s, right = scores[usable].astype(float), truth[usable]
    log_weight = np.zeros(scores.shape[1])
    often = np.bincount(right, minlength=len(log_weight))
    for _ in range(_STEPS):
        weighed = s * np.exp(log_weight)
        p = weighed / weighed.sum(axis=1, keepdims=True)
        slope = often - p.sum(axis=0) - ridge * log_weight
        curvature = np.diag(p.sum(axis=0)) - p.T @ p + ridge * np.eye(len(log_weight))
        step = np.linalg.solve(curvature, slope)
        # far from the top Newton's step may shoot over
        step *= min(1.0, _LONGEST / max(np.abs(step).max(initial=0.0), _ENOUGH))
        log_weight += step
        if np.abs(step).max(initial=0.0) < _ENOUGH:
            break
    return np.exp(log_weight)


def tag_scores(tags: NDArray[Any], weights: NDArray[Any], n_tags: int) -> NDArray[np.float64]:
    """S of every tag (equation 3) `[R, n_tags]` from codes `tags[R, M]`, -1 for none, and their weights `[R, M]`."""
    rows = np.broadcast_to(np.arange(len(tags))[:, None], tags.shape)
    found = np.zeros((len(tags), n_tags))
    alive = tags >= 0
    np.add.at(found, (rows[alive], tags[alive]), weights[alive].astype(float))
    return found


def learn_tag_weights(
    tags: NDArray[Any],
    confidence: NDArray[Any],
    truth: NDArray[np.integer[Any]],
    taxonomy: Taxonomy,
    ridge: float = RIDGE,
) -> dict[str, dict[str, float]]:
    """The weights of every attribute from ballots `[K, R, M]` and true codes `truth[K, R]`, -1 where unlabelled.

    Rows whose truth is NA are not looked at. Attributes without a label are left out.
    """
    learned = {}
    for k, attribute in enumerate(taxonomy.attributes):
        known = (truth[k] >= 0) & (truth[k] != attribute.codes[NA])
        if not known.any():
            continue
        scores = tag_scores(tags[k][known], confidence[k][known], len(attribute.names))
        weights = fit_tag_weights(scores[:, :-1], truth[k][known], ridge)  # NA is the last
        learned[attribute.name] = {
            tag: round(float(w), _DECIMALS) for tag, w in zip(attribute.names[:-1], weights, strict=True)
        }
    return learned


def reweigh(
    tags: NDArray[Any], confidence: NDArray[Any], taxonomy: Taxonomy, weights: TagWeights
) -> NDArray[Any]:
    """The confidences `[K, R, M]` times the weights of their tags, on the scale of 0..5 that votes have.

    Of each attribute all weights, NA's 1 among them, are divided by the largest: S can only fall, and a calibrator has
    to be fitted on votes that were weighed alike.
    """
    if not weights:
        return confidence
    weighed = confidence.astype(float)
    for k, attribute in enumerate(taxonomy.attributes):
        if attribute.name in weights:
            factor = _factors(attribute, weights[attribute.name])
            weighed[k] = np.where(tags[k] >= 0, weighed[k] * factor[tags[k]], weighed[k])
    return np.asarray(np.minimum(weighed, FULL_CONFIDENCE))


def check_tag_weights(weights: TagWeights, taxonomy: Taxonomy, vote: VoteMethod) -> None:
    """Raises `InputError` for weights of other attributes or tags, or a vote in which they would mean nothing."""
    if weights and vote not in ("weighted", "softmax"):
        raise InputError(
            f"tag weights have no meaning in a vote by {vote}, which does not look at confidences: choose weighted"
        )
    for name in weights:
        if name not in taxonomy:
            raise InputError(f"tag weights: taxonomy {taxonomy.name} has no attribute {name!r}")
        if taxonomy[name].open and weights[name]:
            raise InputError(f"tag weights: {name} is open, so it has no tags to weigh")
        _factors(taxonomy[name], weights[name])


def _factors(attribute: Attribute, weights: Mapping[str, float]) -> NDArray[np.float64]:
    factors = np.ones(len(attribute.names))
    for tag, weight in weights.items():
        if tag not in attribute.codes:
            raise InputError(f"tag weights: {tag!r} is no tag of {attribute.name!r}")
        if not 0 < weight < float("inf"):
            raise InputError(f"tag weights: {attribute.name}.{tag} should be above 0, found {weight!r}")
        factors[attribute.codes[tag]] = weight
    return np.asarray(factors / factors.max())
