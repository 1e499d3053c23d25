"""Ways to make one answer of many teachers' answers, and of choosing one teacher: pure functions of their tags.

A teacher's skill p on an attribute becomes a weight by the log odds, w = log(p (T - 1) / (1 - p)) for T tags: the
best weights where teachers err independently and evenly over the wrong tags (Nitzan and Paroush 1982, for two tags).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.voting import FULL_CONFIDENCE, vote

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_LEAST_WEIGHT = 0.02
"""Of the greatest weight: what a teacher no better than chance still has, so that it can break a tie."""


class Ballots(NamedTuple):
    """One attribute of R users by J teachers."""

    tags: IntArray
    """`[R, J]` tag codes, NA the last of them; -1 where a teacher gave no usable answer."""
    confidence: IntArray
    """`[R, J]` 1..5; anything where the tag is -1."""
    truth: IntArray
    """`[R]` tag codes; -1 where gold is silent or NA."""
    n_tags: int
    """With NA."""

    @property
    def right(self) -> BoolArray:
        """`[R, J]`: which answers are the truth."""
        right: BoolArray = (self.tags == self.truth[:, None]) & (self.tags >= 0)
        return right


def weights_of(skill: FloatArray, n_tags: int) -> FloatArray:
    """`[J]` weights above 0 and at most 5 from skills 0..1, see the module."""
    p = np.clip(skill, 1e-3, 1 - 1e-3)
    odds = np.log(p * max(1, n_tags - 1) / (1 - p))
    top = odds.max(initial=0.0)
    if top <= 0:
        return np.ones(len(skill))
    weights: FloatArray = FULL_CONFIDENCE * np.maximum(odds / top, _LEAST_WEIGHT)
    return weights


def agreement_skill(ballots: Ballots) -> FloatArray:
    """`[J]`: how often a teacher names the tag that most of the OTHERS name; no label is looked at.

    Smoothed by one agreement and one disagreement, so that a teacher with few answers has about 0.5.
    """
    tags, (_, teachers) = ballots.tags, ballots.tags.shape
    codes = np.arange(ballots.n_tags)
    counts = (tags[:, :, None] == codes).sum(axis=1)
    skill = np.empty(teachers)
    for j in range(teachers):
        others = counts - (tags[:, j, None] == codes)
        heard = (tags[:, j] >= 0) & (others.sum(axis=1) > 0)
        agreed = (others.argmax(axis=1) == tags[:, j]) & heard
        skill[j] = (agreed.sum() + 1) / (heard.sum() + 2)
    return skill


def labelled_skill(ballots: Ballots, users: BoolArray) -> FloatArray:
    """`[J]`: how often a teacher that answers is right about those of `users` that gold labels, smoothed alike."""
    answered = (ballots.tags >= 0) & (users & (ballots.truth >= 0))[:, None]
    skill: FloatArray = ((ballots.right & answered).sum(axis=0) + 1) / (answered.sum(axis=0) + 2)
    return skill


def combine(ballots: Ballots, how: str, folds: IntArray) -> IntArray:
    """`[R]` tag codes, -1 where nobody answered.

    `how` is majority, weighted (by the confidence of `Ballots`), agreement (weighted by `agreement_skill`),
    labelled (weighted by `labelled_skill` of the users of the other folds, so never by a user's own label) or
    dawid_skene (each teacher a sampler).
    """
    tags, n = ballots.tags, ballots.n_tags
    if how == "majority":
        return vote(tags, np.ones_like(tags), n, "majority").winner.astype(np.int64)
    if how == "weighted":
        return vote(tags, ballots.confidence, n).winner.astype(np.int64)
    if how == "agreement":
        return _weighted(ballots, weights_of(agreement_skill(ballots), n))
    if how == "dawid_skene":
        teachers = np.arange(tags.shape[1])
        return vote(tags, np.ones_like(tags), n, "dawid_skene", samplers=teachers).winner.astype(np.int64)
    assert how == "labelled"
    found = np.full(len(tags), -1, np.int64)
    for fold in np.unique(folds):
        inside = folds == fold
        found[inside] = _weighted(ballots, weights_of(labelled_skill(ballots, ~inside), n))[inside]
    return found


def _weighted(ballots: Ballots, weights: FloatArray) -> IntArray:
    spread = np.broadcast_to(weights, ballots.tags.shape)
    return vote(ballots.tags, spread, ballots.n_tags).winner.astype(np.int64)


def recalls(ballots: Mapping[str, Ballots], users: BoolArray) -> FloatArray:
    """`[J]`: the mean over attributes of correct / labelled among `users`, for each teacher.

    Attributes that gold labels for none of them are left out; zeros where it labels nothing.
    """
    each = []
    for of in ballots.values():
        labelled = users & (of.truth >= 0)
        if labelled.any():
            each.append(of.right[labelled].mean(axis=0))
    if each:
        mean: FloatArray = np.mean(each, axis=0)
        return mean
    return np.zeros(next(iter(ballots.values())).tags.shape[1] if ballots else 0)


def best_of_other_folds(ballots: Mapping[str, Ballots], folds: IntArray) -> IntArray:
    """`[R]`: the teacher of each user, chosen as the one with the best recall in the other folds."""
    chosen = np.zeros(len(folds), np.int64)
    for fold in np.unique(folds):
        inside = folds == fold
        chosen[inside] = int(recalls(ballots, ~inside).argmax())
    return chosen
