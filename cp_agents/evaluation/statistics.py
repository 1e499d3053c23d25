"""How sure a number is: bootstrap intervals over users, and a paired test between two methods on the same users.

Users are what is drawn, all attributes of a user together, since a user's attributes are not independent. A metric is
any function from outcomes to named numbers; several numbers are resampled at once, so that a table costs one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.evaluation.outcomes import Outcomes

DRAWS = 1000
LEVEL = 0.95

Metrics = Callable[[Mapping[str, Outcomes]], Mapping[str, float | None]]
"""From the outcomes of a method, by attribute, to numbers by name. Always the same names; None where undefined."""


class Interval(NamedTuple):
    """A number with its percentile bootstrap interval; NaN where the number, or half of the draws, is undefined."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """a - b with its bootstrap interval, and the two-sided p of the paired randomisation test."""

    value: float
    low: float
    high: float
    p: float


def intervals(
    metrics: Metrics,
    outcomes: Mapping[str, Outcomes],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Interval]:
    """Every number of `metrics` with the interval of `draws` resamples of the users."""
    whole = _numbers(metrics(outcomes))
    users = _Users(outcomes)
    rng = np.random.default_rng(seed)
    drawn = [_numbers(metrics(users.take(outcomes, rng.integers(0, users.n, users.n)))) for _ in range(draws)]
    return {name: _interval(value, [row[name] for row in drawn], level) for name, value in whole.items()}


def differences(
    metrics: Metrics,
    a: Mapping[str, Outcomes],
    b: Mapping[str, Outcomes],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Difference]:
    """Every number of `metrics` for `a` less that for `b`, two methods on the same users.

    The interval is that of resampled users, both methods with the same ones. The test swaps the two methods' answers
    for a random half of the users, `draws` times: p is the share of swaps, with the actual one, that give a difference
    at least as large, so never below 1 / (draws + 1). Raises `ValueError` where the users are not the same.
    """
    if {name: o.users for name, o in a.items()} != {name: o.users for name, o in b.items()}:
        raise ValueError("a paired test compares methods on the same users")
    users = _Users(a)
    rng = np.random.default_rng(seed)

    def gap(one: Mapping[str, Outcomes], other: Mapping[str, Outcomes]) -> dict[str, float]:
        first, second = _numbers(metrics(one)), _numbers(metrics(other))
        return {name: first[name] - second[name] for name in first}

    actual = gap(a, b)
    drawn, swapped = [], []
    for _ in range(draws):
        rows = rng.integers(0, users.n, users.n)
        drawn.append(gap(users.take(a, rows), users.take(b, rows)))
        swapped.append(gap(*users.swap(a, b, rng.random(users.n) < 0.5)))
    found = {}
    for name, value in actual.items():
        null = np.array([row[name] for row in swapped])
        null = null[~np.isnan(null)]
        # a hair's breadth for sums that were added up in another order
        as_large = int((np.abs(null) >= abs(value) - 1e-12).sum())
        p = (as_large + 1) / (len(null) + 1) if not np.isnan(value) and len(null) else float("nan")
        found[name] = Difference(*_interval(value, [row[name] for row in drawn], level), p)
    return found


class _Users:
    """All users of the outcomes, and where each stands in every attribute's arrays (-1: nowhere)."""

    def __init__(self, outcomes: Mapping[str, Outcomes]) -> None:
        place = {
            user: i for i, user in enumerate(dict.fromkeys(u for o in outcomes.values() for u in o.users))
        }
        self.n = len(place)
        self._of_row = {
            name: np.array([place[user] for user in o.users], np.int64) for name, o in outcomes.items()
        }
        self._row: dict[str, NDArray[np.int64]] = {}
        for name, of_row in self._of_row.items():
            row = np.full(self.n, -1, np.int64)
            row[of_row] = np.arange(len(of_row))
            self._row[name] = row

    def take(self, outcomes: Mapping[str, Outcomes], drawn: NDArray[np.int64]) -> dict[str, Outcomes]:
        taken = {}
        for name, found in outcomes.items():
            rows = self._row[name][drawn]
            taken[name] = found.rows(rows[rows >= 0])
        return taken

    def swap(
        self, a: Mapping[str, Outcomes], b: Mapping[str, Outcomes], mask: NDArray[np.bool_]
    ) -> tuple[dict[str, Outcomes], dict[str, Outcomes]]:
        one, other = {}, {}
        for name in a:
            rows = mask[self._of_row[name]]
            x, y = a[name], b[name]
            one[name], other[name] = (
                p._replace(
                    voted=np.where(rows, q.voted, p.voted),
                    reach=np.where(rows, q.reach, p.reach),
                    present=np.where(rows, q.present, p.present),
                )
                for p, q in ((x, y), (y, x))
            )
        return one, other


def _numbers(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else float(value) for name, value in found.items()}


def _interval(value: float, drawn: list[float], level: float) -> Interval:
    defined = np.array(drawn)
    defined = defined[~np.isnan(defined)]
    if np.isnan(value) or 2 * len(defined) < len(drawn) or not drawn:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
