"""How confidence is spread before and after calibration, and how the samples split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cp_agents.calibration import Calibrator, Quintiles, uncalibrated_levels
from cp_agents.report.model import ConfidenceShape, VoteSplit
from cp_agents.report.rows import Profiled, is_vote, values_of, votes_for_tags
from cp_agents.schema import CONFIDENCE_LEVELS, NA
from cp_agents.taxonomy import Taxonomy

STEPS = 20
"""Of the histogram of S / M over 0..5."""
SHARES = 10
"""Of the histogram of vote shares over 0..1."""
_DECIMALS = 6


def shapes_of(
    rows: Sequence[Profiled], taxonomy: Taxonomy, calibrator: Calibrator | None
) -> list[ConfidenceShape]:
    """The paper's figures 3 and 9 for this run: S / M, and the level that the profiles have, per attribute."""
    return [_shape(name, rows, calibrator) for name in taxonomy.names]


def _shape(name: str, rows: Sequence[Profiled], calibrator: Calibrator | None) -> ConfidenceShape:
    votes = list(votes_for_tags(rows, name))
    mean = np.array([value["score"] / row.asked for row, value in votes], np.float64)
    levels = np.array([value["confidence"] for _, value in votes], np.int64)
    rounded = uncalibrated_levels(mean, 1) if len(mean) else levels
    curve = calibrator.attributes.get(name) if calibrator is not None else None
    cuts = (
        [t / calibrator.samples for t in curve.thresholds if t is not None]
        if calibrator is not None and isinstance(curve, Quintiles)
        else []
    )
    return ConfidenceShape(
        attribute=name,
        n=len(votes),
        before=_counts([_step(m, 5, STEPS) for m in mean.tolist()], STEPS),
        rounded=[int((rounded == level).sum()) for level in CONFIDENCE_LEVELS],
        after=[int((levels == level).sum()) for level in CONFIDENCE_LEVELS],
        cuts=cuts,
        calibrated=any(value.get("calibrated") for _, value in votes),
    )


def splits_of(
    rows: Sequence[Profiled], taxonomy: Taxonomy, gold: Mapping[str, Mapping[str, str]] | None
) -> list[VoteSplit]:
    """How large a share of the surviving samples the winner had, per attribute. `gold` is canonical."""
    return [_split(name, rows, gold or {}) for name in taxonomy.names]


def _split(name: str, rows: Sequence[Profiled], gold: Mapping[str, Mapping[str, str]]) -> VoteSplit:
    steps: dict[str, list[int]] = {"right": [], "wrong": [], "tag": [], "NA": []}
    unanimous = 0
    for row, value in values_of(rows, name):
        if not is_vote(value):
            continue
        truth, voted = gold.get(row.user_id, {}).get(name, NA), value["voted"]
        kind = "NA" if voted == NA else "tag" if truth == NA else "right" if truth == voted else "wrong"
        steps[kind].append(_step(value["vote_share"], 1, SHARES))
        unanimous += value["vote_share"] >= 1
    return VoteSplit(
        attribute=name,
        n=sum(map(len, steps.values())),
        unanimous=unanimous,
        kinds={kind: _counts(found, SHARES) for kind, found in steps.items()},
    )


def _step(value: float, most: float, steps: int) -> int:
    """Which of `steps` equal steps over 0..most holds the value; the upper end belongs to a step."""
    return min(steps - 1, max(0, math.ceil(round(value / most * steps, _DECIMALS)) - 1))


def _counts(found: Sequence[int], steps: int) -> list[int]:
    return [int(count) for count in np.bincount(np.array(found, np.int64), minlength=steps)]
