"""Is the promise kept? Thresholds chosen on a random half of the users and held to it on the other, many times.

Two readings are counted. *The other half*: the share of right answers among the users that were not used to choose; a
batch of finite size, luck included. *All users*: the same over both halves, which is as near to the long run as the
labels go. A split in which the attribute is never answered breaks no promise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel

from cp_agents.evaluation.outcomes import BoolArray, Outcomes
from cp_agents.evaluation.risk_control import accuracy_interval
from cp_agents.evaluation.thresholds import Promise, choose


class SplitCheck(BaseModel):
    """One attribute over many random splits."""

    attribute: str
    splits: int
    answered: int
    """Splits in which the chosen tau was not `never`."""
    broken: int
    """Of these, splits in which less than the target was right among the other half's answers."""
    broken_all: int
    """The same among all users."""
    coverage: float
    """Of the other half, mean over all splits; 0 where the attribute is never answered."""
    accuracy: float | None
    """Of the other half's answers, mean over the splits that answered."""

    @property
    def kept(self) -> float:
        """Share of the splits in which the promise was kept on the other half."""
        return 1 - self.broken / self.splits

    @property
    def kept_interval(self) -> tuple[float, float]:
        """95 % interval of `kept`, for the number of splits."""
        return accuracy_interval(self.splits - self.broken, self.splits)


def check_splits(
    outcomes: Mapping[str, Outcomes], promise: Promise, *, splits: int = 200, seed: int = 0
) -> dict[str, SplitCheck]:
    """Choose on a random half and test on the other, `splits` times; the halves are the same for all attributes."""
    users = list(dict.fromkeys(user for found in outcomes.values() for user in found.users))
    place = {user: i for i, user in enumerate(users)}
    rows = {name: np.array([place[u] for u in found.users], np.int64) for name, found in outcomes.items()}
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(len(users)) < len(users) // 2 for _ in range(splits)]
    return {name: _check(found, [h[rows[name]] for h in halves], promise) for name, found in outcomes.items()}


def _check(outcomes: Outcomes, halves: list[BoolArray], promise: Promise) -> SplitCheck:
    broken = broken_all = answered = 0
    accuracies, coverages = [], []
    labelled, right = outcomes.labelled, outcomes.voted == outcomes.truth
    for half in halves:
        tau = choose(outcomes.take(half), promise).tau
        said = labelled & (outcomes.at(tau) != outcomes.na)
        there = said & ~half
        coverages.append(there.sum() / max(1, (labelled & ~half).sum()))
        if not there.any():
            continue
        answered += 1
        accuracies.append(right[there].mean())
        broken += bool(accuracies[-1] < promise.target)
        broken_all += bool(right[said].mean() < promise.target)
    return SplitCheck(
        attribute=outcomes.attribute.name,
        splits=len(halves),
        answered=answered,
        broken=broken,
        broken_all=broken_all,
        coverage=float(np.mean(coverages)) if coverages else 0.0,
        accuracy=float(np.mean(accuracies)) if accuracies else None,
    )
