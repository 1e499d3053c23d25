"""The metrics of profiles as sums over users, for `cp_agents.evaluation.sums`; the numbers of `metrics.evaluate`.

What a user adds to the counts of one attribute, at one tau, is three rows of zeros with a one in each at most: the
gold tag, the tag that was said, and the tag that was both. NA is no column: users whose gold is NA add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cp_agents.evaluation.outcomes import Outcomes
from cp_agents.schema import CONFIDENCE_LEVELS

FloatArray = NDArray[np.float64]

RATIOS = ("selective_accuracy", "coverage", "true_recall", "macro_f1", "paper_f1")
"""Per attribute, see `cp_agents.evaluation.metrics`."""
AVERAGES = ("selective_accuracy", "coverage", "true_recall", "macro_f1", "paper_f1_mean", "paper_f1_of_means")
"""Means over the attributes for which the number is defined, under the prefix `average`."""
AVERAGE = "average"


def users_of(outcomes: Mapping[str, Outcomes]) -> tuple[str, ...]:
    """All users that the outcomes speak of, in order of appearance: the rows of `parts`."""
    return tuple(dict.fromkeys(user for o in outcomes.values() for user in o.users))


def parts(outcomes: Mapping[str, Outcomes], tau: float) -> FloatArray:
    """What each user adds at `tau`: [U, the sum over attributes of 3 T], T without NA."""
    place = {user: i for i, user in enumerate(users_of(outcomes))}
    blocks = []
    for o in outcomes.values():
        rows = np.array([place[user] for user in o.users], np.int64)[o.labelled]
        truth, said = o.truth[o.labelled], o.at(tau)[o.labelled]
        hit = np.where(truth == said, truth, o.na)
        block = np.zeros((len(place), 3, len(o.attribute.names)))
        for i, codes in enumerate((truth, said, hit)):
            block[rows, i, codes] = 1.0
        blocks.append(block[:, :, : o.na].reshape(len(place), -1))  # NA is the last code
    return np.hstack(blocks)


class ProfileMetrics:
    """From sums of `parts` to numbers named `ATTRIBUTE.RATIO` and `average.AVERAGE`."""

    def __init__(self, outcomes: Mapping[str, Outcomes]) -> None:
        self._tags = {name: o.na for name, o in outcomes.items()}

    @property
    def width(self) -> int:
        """Columns of `parts`."""
        return 3 * sum(self._tags.values())

    def __call__(self, sums: FloatArray) -> dict[str, FloatArray]:
        """Numbers [D] for sums [D, width]; NaN where undefined."""
        found: dict[str, FloatArray] = {}
        start = 0
        for name, tags in self._tags.items():
            counts = sums[:, start : start + 3 * tags].reshape(len(sums), 3, tags)
            start += 3 * tags
            found |= {f"{name}.{key}": value for key, value in _ratios(counts).items()}
        for key in RATIOS:
            mean = nan_mean(np.array([found[f"{name}.{key}"] for name in self._tags]))
            found[f"{AVERAGE}.{'paper_f1_mean' if key == 'paper_f1' else key}"] = mean
        found[f"{AVERAGE}.paper_f1_of_means"] = harmonic(
            found[f"{AVERAGE}.selective_accuracy"], found[f"{AVERAGE}.coverage"]
        )
        return found


class MeanOverSamples:
    """The mean, over M samples, of each sample's own metrics; its parts are the samples' parts side by side."""

    def __init__(self, metrics: ProfileMetrics) -> None:
        self._metrics = metrics

    def __call__(self, sums: FloatArray) -> dict[str, FloatArray]:
        """Numbers [D] for sums [D, M * width]."""
        width = self._metrics.width
        each = [self._metrics(sums[:, i : i + width]) for i in range(0, sums.shape[1], width)]
        return {name: nan_mean(np.array([numbers[name] for numbers in each])) for name in each[0]}


def level_parts(outcomes: Mapping[str, Outcomes]) -> FloatArray:
    """What each user adds to the counts of right and wrong answers by level: [U, K * 2 * 5].

    Answers are votes other than NA for a user with a gold tag.
    """
    place = {user: i for i, user in enumerate(users_of(outcomes))}
    blocks = []
    for o in outcomes.values():
        answered = o.labelled & (o.voted != o.na) & (o.reach >= 1)
        rows = np.array([place[user] for user in o.users], np.int64)[answered]
        level = np.minimum(o.reach[answered], CONFIDENCE_LEVELS[-1]).astype(np.int64) - 1
        block = np.zeros((len(place), 2, len(CONFIDENCE_LEVELS)))
        block[rows, (o.voted != o.truth)[answered].astype(np.int64), level] = 1.0
        blocks.append(block.reshape(len(place), -1))
    return np.hstack(blocks)


class LevelMetrics:
    """From sums of `level_parts` to what the levels are worth, named `ATTRIBUTE.NUMBER` and `average.NUMBER`.

    `evenness`: entropy of the levels over that of five equal ones, 1 where all five are equally frequent; `largest`:
    share of the most frequent level; `auroc`: probability that a right answer has the higher level, ties half;
    `ece`: mean |share right - level / 5|; `right_at_1` to `right_at_5`: share right at a level. `pooled.auroc` is
    over the answers of all attributes together.
    """

    def __init__(self, outcomes: Mapping[str, Outcomes]) -> None:
        self._names = tuple(outcomes)

    def __call__(self, sums: FloatArray) -> dict[str, FloatArray]:
        """Numbers [D] for sums [D, K * 2 * 5]; NaN where undefined."""
        counts = sums.reshape(len(sums), len(self._names), 2, len(CONFIDENCE_LEVELS))
        found: dict[str, FloatArray] = {}
        for k, name in enumerate(self._names):
            found |= {f"{name}.{key}": value for key, value in _level_numbers(counts[:, k]).items()}
        for key in ("evenness", "largest", "auroc", "ece"):
            found[f"{AVERAGE}.{key}"] = nan_mean(np.array([found[f"{name}.{key}"] for name in self._names]))
        found["pooled.auroc"] = _level_numbers(counts.sum(axis=1))["auroc"]
        return found


def harmonic(precision: FloatArray, recall: FloatArray) -> FloatArray:
    """2PR / (P + R) as in `metrics.harmonic_mean`: 0 where either is 0, else NaN where either is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 2 * precision * recall / (precision + recall)
    return np.where((precision == 0) | (recall == 0), 0.0, found)


def nan_mean(values: FloatArray) -> FloatArray:
    """The mean over the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _ratios(counts: FloatArray) -> dict[str, FloatArray]:
    """For counts [D, 3, T] of gold, said and hit."""
    gold, said, hit = counts[:, 0], counts[:, 1], counts[:, 2]
    labelled, answered, correct = gold.sum(axis=1), said.sum(axis=1), hit.sum(axis=1)
    accuracy, coverage = _ratio(correct, answered), _ratio(answered, labelled)
    # 2TP / (2TP + FP + FN), since TP + FN and TP + FP are the two counts
    f1 = np.where(gold > 0, 2 * hit / np.maximum(gold + said, 1e-300), 0.0)
    return {
        "selective_accuracy": accuracy,
        "coverage": coverage,
        "true_recall": _ratio(correct, labelled),
        "macro_f1": _ratio(f1.sum(axis=1), (gold > 0).sum(axis=1)),
        "paper_f1": harmonic(accuracy, coverage),
    }


def evenness_numbers(counts: FloatArray) -> dict[str, FloatArray]:
    """`evenness` and `largest` [D] of the counts [D, 5] of answers by level, see `LevelMetrics`."""
    share = _ratio(counts, counts.sum(axis=1, keepdims=True))
    logs = np.log(np.where(share > 0, share, 1.0))
    return {
        "evenness": np.abs(share * logs).sum(axis=1) / np.log(len(CONFIDENCE_LEVELS)),
        "largest": share.max(axis=1),
    }


def _level_numbers(counts: FloatArray) -> dict[str, FloatArray]:
    """For counts [D, 2, 5] of right and wrong answers by level."""
    right, wrong = counts[:, 0], counts[:, 1]
    total = right + wrong
    below = np.cumsum(wrong, axis=1) - wrong
    pairs = right.sum(axis=1) * wrong.sum(axis=1)
    level = np.array(CONFIDENCE_LEVELS) / CONFIDENCE_LEVELS[-1]
    right_at = _ratio(right, total)
    return {
        **{f"right_at_{each}": right_at[:, i] for i, each in enumerate(CONFIDENCE_LEVELS)},
        **evenness_numbers(total),
        "auroc": _ratio((right * (below + wrong / 2)).sum(axis=1), pairs),
        "ece": _ratio(np.abs(right - total * level).sum(axis=1), total.sum(axis=1)),
    }


def _ratio(part: NDArray[np.floating], whole: NDArray[np.floating] | NDArray[np.integer]) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(whole > 0, part / whole, np.nan), np.float64)
