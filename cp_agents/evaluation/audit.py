"""Does the profiler serve all groups alike? Accuracy, coverage, NA rate and confidence by group, and the gaps.

Per attribute and group of users, for what the profiles say (at the tau they were made with, or at one that is given):

* `accuracy` = correct / answered, over users whose truth is known (the paper's precision);
* `coverage` = answered / those users;
* `na_rate` = NA / all users of the group, whose truth need not be known;
* `confidence` = mean of 1..5 over the votes that are not NA, whether or not tau let them pass.

fairlearn's MetricFrame computes the numbers by group. The intervals are percentiles over resampled users, all groups at
once; that of a gap is of the two groups that lie furthest apart. The largest of several noisy numbers less the smallest
is above 0 by chance alone: `chance` says how often as large a gap comes up when the same users are dealt out to the
groups at random. A number of fewer than `MIN_USERS` users is shown and not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.errors import InputError, MissingExtraError
from cp_agents.evaluation.outcomes import FloatArray, Outcomes, Profiles, closed_over, read_outcomes
from cp_agents.evaluation.statistics import DRAWS, LEVEL
from cp_agents.taxonomy import Taxonomy

MEASURES = ("accuracy", "coverage", "na_rate", "confidence")
MIN_USERS = 30
"""Below this a share's 95 % interval is wider than 0.3: a gap to it says nothing."""
_BLOCK = 2_000_000
"""Numbers held at once while users are resampled."""


class Cell(BaseModel):
    """One measure of one attribute in one group."""

    group: str
    n: int
    """Users that it is a mean over."""
    value: float | None
    """None where there is nobody to count."""
    low: float | None
    high: float | None
    compared: bool
    """Whether the group is large enough to count in the gap."""


class Gap(BaseModel):
    """How far the groups that are large enough lie apart on one measure of one attribute."""

    highest: str
    lowest: str
    difference: float
    low: float
    """Of the bootstrap interval between these two groups."""
    high: float
    ratio: float | None
    """lowest / highest; None where the highest is 0."""
    chance: float
    """Share of random groupings of the same sizes with as large a difference."""


class GroupAudit(BaseModel):
    """One attribute of one profiler, by one grouping of the users."""

    attribute: str
    users: int
    """Of gold, in a group."""
    cells: dict[str, list[Cell]]
    """By measure."""
    gaps: dict[str, Gap | None]
    """By measure; None where fewer than two groups are large enough."""


class _Counted(NamedTuple):
    """What a measure is a mean of: values, and who counts. Both [N]."""

    values: FloatArray
    counts: FloatArray


def said_outcomes(
    profiles: Profiles,
    gold: Mapping[str, Mapping[str, str]],
    taxonomy: Taxonomy,
    tau: Mapping[str, float] | None,
) -> dict[str, tuple[Outcomes, NDArray[np.int64]]]:
    """Outcomes per attribute, and what is said: at `tau`, or as the profiles themselves say it."""
    taxonomy, gold = closed_over(taxonomy, profiles, gold)
    found = read_outcomes(profiles, gold, taxonomy)
    if tau is not None:
        return {name: (o, o.at(tau[name])) for name, o in found.items()}
    as_said = {
        user: {name: {**row, "voted": row["tag"]} for name, row in profile.items()}
        for user, profile in profiles.items()
    }
    return {name: (found[name], o.at(1)) for name, o in read_outcomes(as_said, gold, taxonomy).items()}


def audit_groups(
    outcomes: Outcomes,
    said: NDArray[np.int64],
    group_of: Mapping[str, str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    min_users: int = MIN_USERS,
) -> GroupAudit:
    """The measures of one attribute by group. Users of gold without a group are left out.

    Raises `InputError` where nobody has a group, `MissingExtraError` where fairlearn is absent.
    """
    rows = np.array([i for i, user in enumerate(outcomes.users) if user in group_of], np.int64)
    if not len(rows):
        raise InputError("no user of gold is in a group: nothing can be audited")
    names = sorted({group_of[outcomes.users[i]] for i in rows})
    codes = np.array([names.index(group_of[outcomes.users[i]]) for i in rows], np.int64)
    measured = _measured(outcomes, said, rows)
    frame = _metric_frame(measured, np.array(names, dtype=object)[codes])
    members = np.eye(len(names))[codes]
    rng = np.random.default_rng(seed)
    resampled = _drawn(measured, members, rng, draws, shuffle=False)
    shuffled = _drawn(measured, members, rng, draws, shuffle=True)
    cells: dict[str, list[Cell]] = {}
    gaps: dict[str, Gap | None] = {}
    for measure, counted in measured.items():
        n = (counted.counts @ members).astype(int)
        cells[measure] = [
            _cell(name, int(n[g]), frame[measure][name], resampled[measure][:, g], min_users)
            for g, name in enumerate(names)
        ]
        compared = [g for g, cell in enumerate(cells[measure]) if cell.compared]
        gaps[measure] = (
            _gap(cells[measure], compared, resampled[measure], shuffled[measure])
            if len(compared) > 1
            else None
        )
    return GroupAudit(attribute=outcomes.attribute.name, users=len(rows), cells=cells, gaps=gaps)


def _measured(outcomes: Outcomes, said: NDArray[np.int64], rows: NDArray[np.int64]) -> dict[str, _Counted]:
    labelled, answered = outcomes.labelled[rows], said[rows] != outcomes.na
    right = said[rows] == outcomes.truth[rows]
    voted = (outcomes.voted[rows] != outcomes.na) & np.isfinite(outcomes.reach[rows])
    confidence = np.where(voted, outcomes.reach[rows], 0.0)
    everyone = np.ones(len(rows))

    def counted(values: NDArray[Any], counts: NDArray[Any]) -> _Counted:
        return _Counted(values.astype(np.float64), counts.astype(np.float64))

    return {
        "accuracy": counted(right, labelled & answered),
        "coverage": counted(answered, labelled),
        "na_rate": counted(~answered, everyone),
        "confidence": counted(confidence, voted),
    }


def _metric_frame(measured: Mapping[str, _Counted], groups: NDArray[Any]) -> dict[str, dict[str, float]]:
    """By measure and group; NaN where nobody counts."""
    try:
        from fairlearn.metrics import MetricFrame
    except ImportError:
        raise MissingExtraError("the fairness audit", "audit") from None

    def mean(_: object, values: FloatArray, *, counts: FloatArray) -> float:
        total = float(np.sum(counts))
        return float(np.dot(values, counts) / total) if total else float("nan")

    found = {}
    for measure, (values, counts) in measured.items():
        frame = MetricFrame(
            metrics=mean,
            y_true=values,
            y_pred=values,
            sensitive_features=groups,
            sample_params={"counts": counts},
        )
        found[measure] = {str(name): float(value) for name, value in frame.by_group.items()}
    return found


def _drawn(
    measured: Mapping[str, _Counted],
    members: FloatArray,
    rng: np.random.Generator,
    draws: int,
    *,
    shuffle: bool,
) -> dict[str, FloatArray]:
    """Every measure by group, [draws, G], of resampled users, or of users dealt out to the groups at random.

    `members` [N, G] is 1 where the user is in the group. NaN where nobody counts. A resample is a weight per user.
    """
    users = len(members)
    found: dict[str, list[FloatArray]] = {measure: [] for measure in measured}
    block = max(1, _BLOCK // users)
    for start in range(0, draws, block):
        many = min(block, draws - start)
        if shuffle:
            order = rng.permuted(np.tile(np.arange(users), (many, 1)), axis=1)
        else:
            weights = rng.multinomial(users, np.full(users, 1 / users), size=many).astype(np.float64)
        for measure, (values, counts) in measured.items():
            total = counts[order] if shuffle else weights * counts
            part = (counts * values)[order] if shuffle else weights * (counts * values)
            with np.errstate(invalid="ignore"):
                found[measure].append((part @ members) / (total @ members))
    return {measure: np.concatenate(blocks) for measure, blocks in found.items()}


def _cell(name: str, n: int, value: float, drawn: FloatArray, min_users: int) -> Cell:
    if not n:
        return Cell(group=name, n=0, value=None, low=None, high=None, compared=False)
    low, high = _percentiles(drawn)
    return Cell(group=name, n=n, value=value, low=low, high=high, compared=n >= min_users)


def _gap(cells: Sequence[Cell], compared: list[int], resampled: FloatArray, shuffled: FloatArray) -> Gap:
    by_value = sorted(compared, key=lambda g: (cells[g].value or 0.0, cells[g].group))
    bottom, top = by_value[0], by_value[-1]
    lowest, highest = cells[bottom].value or 0.0, cells[top].value or 0.0
    low, high = _percentiles(resampled[:, top] - resampled[:, bottom])
    by_luck = np.nanmax(shuffled[:, compared], axis=1) - np.nanmin(shuffled[:, compared], axis=1)
    # a hair's breadth for sums that were added up in another order
    as_large = int((by_luck >= highest - lowest - 1e-12).sum())
    return Gap(
        highest=cells[top].group,
        lowest=cells[bottom].group,
        difference=highest - lowest,
        low=low,
        high=high,
        ratio=lowest / highest if highest else None,
        chance=(as_large + 1) / (len(by_luck) + 1),
    )


def _percentiles(drawn: FloatArray) -> tuple[float, float]:
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
