"""Intervals and tests of metrics that are made of sums over users, for tables with many rows.

Selective accuracy, coverage, F1 and macro-F1 all come from counts, and a count of resampled users is a weighted sum:
so all draws are one product of matrices, some hundred times faster than calling a metric for each. The users that
are drawn, and what the interval and the p are, are those of `cp_agents.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cp_agents.evaluation.statistics import DRAWS, LEVEL, Difference, Interval

FloatArray = NDArray[np.float64]

SumMetrics = Callable[[FloatArray], Mapping[str, FloatArray]]
"""From sums over users [D, C] to numbers by name [D], NaN where undefined."""

_ROWS = 250  # of draws in one product, so that many thousand users need no gigabytes


class Draws:
    """Resamples of `users` users, drawn once and used for every row of a table.

    A method is an array [U, C]: what each user adds to each of C counts. The same columns mean the same in all.
    """

    def __init__(self, users: int, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> None:
        self._users, self._draws, self._level, self._seed = users, draws, level, seed

    def intervals(self, metrics: SumMetrics, parts: FloatArray) -> dict[str, Interval]:
        """Every number of `metrics` with its interval; equal to `statistics.intervals`."""
        whole = metrics(parts.sum(axis=0, keepdims=True))
        drawn = metrics(_product(self._alone, parts))
        return {name: self._interval(float(value[0]), drawn[name]) for name, value in whole.items()}

    def differences(self, metrics: SumMetrics, a: FloatArray, b: FloatArray) -> dict[str, Difference]:
        """Every number for `a` less that for `b`, with interval and p; equal to `statistics.differences`."""
        weights, swaps = self._paired
        actual = _gap(metrics, a.sum(axis=0, keepdims=True), b.sum(axis=0, keepdims=True))
        drawn = _gap(metrics, _product(weights, a), _product(weights, b))
        moved = _product(swaps, b - a)
        null = _gap(metrics, a.sum(axis=0) + moved, b.sum(axis=0) - moved)
        return {
            name: Difference(*self._interval(float(v[0]), drawn[name]), p_value(float(v[0]), null[name]))
            for name, v in actual.items()
        }

    def subset(
        self, metrics: SumMetrics, parts: FloatArray, kept: NDArray[np.bool_]
    ) -> dict[str, Difference]:
        """Every number for the users `kept` [U] less that for all of them.

        The interval is that of resampled users. There is nothing to swap here, so p is the share of random subsets
        of as many users that lie at least as far from the whole.
        """
        all_users, inside = parts.sum(axis=0, keepdims=True), parts * kept[:, None]
        actual = _gap(metrics, inside.sum(axis=0, keepdims=True), all_users)
        drawn = _gap(metrics, _product(self._alone, inside), _product(self._alone, parts))
        rng = np.random.default_rng(self._seed)
        chosen = np.zeros((self._draws, self._users), np.float32)
        for row in chosen:
            row[rng.permutation(self._users)[: int(kept.sum())]] = 1
        null = _gap(metrics, _product(chosen, parts), all_users)
        return {
            name: Difference(*self._interval(float(v[0]), drawn[name]), p_value(float(v[0]), null[name]))
            for name, v in actual.items()
        }

    def _interval(self, value: float, drawn: FloatArray) -> Interval:
        defined = drawn[~np.isnan(drawn)]
        if np.isnan(value) or 2 * len(defined) < len(drawn) or not len(drawn):
            return Interval(value, float("nan"), float("nan"))
        low, high = np.quantile(defined, [(1 - self._level) / 2, (1 + self._level) / 2])
        return Interval(value, float(low), float(high))

    @cached_property
    def _alone(self) -> NDArray[np.float32]:
        """How often each user is drawn [D, U]."""
        rng = np.random.default_rng(self._seed)
        return np.array([self._counts(rng) for _ in range(self._draws)]).reshape(-1, self._users)

    @cached_property
    def _paired(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same for differences, and which users' answers are swapped [D, U], drawn in turn."""
        rng = np.random.default_rng(self._seed)
        weights = np.empty((self._draws, self._users), np.float32)
        swaps = np.empty_like(weights)
        for i in range(self._draws):
            weights[i] = self._counts(rng)
            swaps[i] = rng.random(self._users) < 0.5
        return weights, swaps

    def _counts(self, rng: np.random.Generator) -> NDArray[np.float32]:
        drawn = rng.integers(0, self._users, self._users)
        return np.bincount(drawn, minlength=self._users).astype(np.float32)


def p_value(value: float, null: FloatArray) -> float:
    """The share of draws, with the actual one, at least as far from 0 as `value`; NaN where there is none."""
    null = null[~np.isnan(null)]
    if np.isnan(value) or not len(null):
        return float("nan")
    # a hair's breadth for sums that were added up in another order
    return float(((np.abs(null) >= abs(value) - 1e-12).sum() + 1) / (len(null) + 1))


def _gap(metrics: SumMetrics, a: FloatArray, b: FloatArray) -> dict[str, FloatArray]:
    first, second = metrics(a), metrics(b)
    return {name: first[name] - second[name] for name in first}


def _product(weights: NDArray[np.float32], parts: FloatArray) -> FloatArray:
    blocks = [
        weights[i : i + _ROWS].astype(np.float64) @ parts for i in range(0, max(len(weights), 1), _ROWS)
    ]
    return np.concatenate(blocks)
