"""The difficulty filter: how sure the votes are of a user, and which users training keeps (Conf-Profile section 4.3).

Level 5 is a user whom the samples agree on, level 1 one whom nobody can tell. What the paper leaves open:

* One level per user comes from one per attribute by `RULES`: mean, median or minimum over the attributes, rounded half
  up. An attribute without enough answers to vote counts as level 1. Means gather in the middle, so that few users
  have the levels 1 and 5; `quintile` cuts the mean into five intervals of about equal count, as the calibration
  does with S, so that a level says where a user stands among the others.
* The shapes are drawn as icons only. Their target proportions here are `SHAPES`, in percent of levels 1 to 5.
* Users are drawn without replacement, so that a level with few users bounds the whole: the default is the largest
  subset that has the target proportions. A level without any user is left out and the others share its part.
* With a number of users to keep, a level that is too small gives all it has and the others share the rest, in their
  proportions.

Pure functions on arrays; `cp_agents.trainers.user_filter` reads the store and writes the files, `cp_agents.bench`
tables what each shape keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cp_agents.errors import InputError
from cp_agents.schema import CONFIDENCE_LEVELS

Shape = Literal["original", "uniform", "v", "lambda", "m"]
Rule = Literal["mean", "median", "min", "quintile"]
RULES: tuple[Rule, ...] = get_args(Rule)

SHAPES: dict[Shape, tuple[int, int, int, int, int] | None] = {
    "original": None,  # as the users come
    "uniform": (20, 20, 20, 20, 20),
    "v": (30, 15, 10, 15, 30),  # the clear and the hopeless
    "lambda": (10, 20, 40, 20, 10),  # the middle
    "m": (10, 35, 10, 35, 10),  # hard and easy ones, but neither hopeless nor clear ones: the paper's default
}
"""Percent of levels 1, 2, 3, 4 and 5 among the users that are kept."""

LevelArray = NDArray[np.int64]
_LEVELS = len(CONFIDENCE_LEVELS)


def difficulty(levels: ArrayLike, rule: Rule = "mean") -> LevelArray:
    """One level 1..5 per user [U] from the levels of the attributes [U, K]; 0 stands for an attribute that failed.

    Raises `InputError` for an unknown rule.
    """
    each = np.maximum(np.asarray(levels, dtype=float), 1)
    found: NDArray[np.float64]
    if rule in ("mean", "quintile"):
        found = each.mean(axis=1)
    elif rule == "median":
        found = np.median(each, axis=1)
    elif rule == "min":
        found = each.min(axis=1)
    else:
        raise InputError(f"unknown rule {rule!r}: expected one of {', '.join(RULES)}")
    found = np.round(found, 9)  # means of small whole numbers: this keeps 2.5 from becoming 2.4999...
    if rule == "quintile":
        return _quintiles(found)
    return np.clip(np.floor(found + 0.5), 1, _LEVELS).astype(np.int64)


def _quintiles(found: NDArray[np.float64]) -> LevelArray:
    """1 + floor(5 * midrank), as in `cp_agents.calibration`: ties have one level."""
    _, inverse, counts = np.unique(found, return_inverse=True, return_counts=True)
    double_midrank = 2 * (np.cumsum(counts) - counts) + counts
    levels: LevelArray = 1 + 5 * double_midrank // (2 * max(len(found), 1))
    return levels[inverse]


def histogram(found: ArrayLike) -> LevelArray:
    """How many users [5] have the levels 1 to 5."""
    return np.bincount(np.asarray(found, dtype=np.int64), minlength=_LEVELS + 1)[1:].astype(np.int64)


def quotas(available: Sequence[int] | LevelArray, shape: Shape, keep: int | None = None) -> LevelArray:
    """How many users [5] of each level to keep, of the `available` ones [5].

    Without `keep` the largest subset in the shape's proportions: each number is the exact one, rounded up or down.
    With it, that many users, as near to the proportions as the levels allow. Raises `InputError` for an unknown
    shape and where there are fewer than `keep` users.
    """
    if shape not in SHAPES:
        raise InputError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    there = [int(n) for n in available]
    if keep is not None and not 1 <= keep <= sum(there):
        raise InputError(f"expected between 1 and {sum(there)} users to keep, found {keep}")
    target = SHAPES[shape] or there
    weights = [weight if n else 0 for weight, n in zip(target, there, strict=True)]
    if not any(weights):
        return np.zeros(_LEVELS, np.int64)
    if keep is None:
        whole = sum(weights)
        keep = min(n * whole // weight for n, weight in zip(there, weights, strict=True) if weight)
    return np.array(_share(keep, weights, there), np.int64)


def _share(keep: int, weights: Sequence[int], there: Sequence[int]) -> list[int]:
    """`keep` in the proportions of `weights`; who would get more than is there gets that, and leaves the sharing."""
    weights, given = list(weights), [0] * len(weights)
    left = keep
    while True:
        whole = sum(weights)
        full = [i for i, weight in enumerate(weights) if weight and left * weight >= there[i] * whole]
        if not full:
            break
        for i in full:
            given[i] = there[i]
            weights[i] = 0
        left = keep - sum(given)
    if whole:
        parts = [divmod(left * weight, whole) for weight in weights]
        # By the largest remainder, the lower level first: less than one user off in each level.
        over = left - sum(part for part, _ in parts)
        first = sorted(range(len(parts)), key=lambda i: (-parts[i][1], i))[:over]
        for i, (part, _) in enumerate(parts):
            given[i] += part + (i in first)
    return given


def choose(
    user_ids: Sequence[str], found: ArrayLike, shape: Shape, *, seed: int = 0, keep: int | None = None
) -> NDArray[np.bool_]:
    """Which users [U] are kept, by their levels `found` [U].

    The order in which users come does not matter, and with the same seed fewer of a level are a subset of more.
    Raises `InputError` as `quotas`.
    """
    levels = np.asarray(found, dtype=np.int64)
    chosen = np.zeros(len(levels), dtype=bool)
    for level, quota in zip(CONFIDENCE_LEVELS, quotas(histogram(levels), shape, keep), strict=True):
        members = sorted(np.flatnonzero(levels == level).tolist(), key=lambda i: user_ids[i])
        order = np.random.default_rng([seed, level]).permutation(len(members))
        chosen[[members[i] for i in order[:quota]]] = True
    return chosen
