"""Which confidence means something? The same answers, judged by each source of confidence side by side.

A profile holds several: what the samples stated, how far they agree, the two together (which is the paper's S),
and a probability where a calibrator gives one. None of them is the right one for every teacher, so `evaluate`
reports them beside each other. The level after calibration is not among them: it is a rank of S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.schema import NA, Status
from cp_agents.taxonomy import Taxonomy

Row = Mapping[str, Any]
_BINS = 10


def _verbal(row: Row) -> float | None:
    named = len(row.get("agreeing", ()))
    return row["score"] / (5 * named) if named else None


def _combined(row: Row) -> float | None:
    survivors = row.get("survivors", 0)
    return row["score"] / (5 * survivors) if survivors else None


SOURCES: dict[str, Callable[[Row], float | None]] = {
    "verbal": _verbal,
    "agreement": lambda row: row["vote_share"],
    "combined": _combined,
    "probability": lambda row: row.get("probability"),
}
"""From a profile's attribute to a number in 0..1. `verbal`: the mean stated confidence of the samples that agree
with the vote, over 5 (weighted votes only). `agreement`: the vote share. `combined`: their product, S / 5M'.
`probability`: of a calibrator fitted on gold or reviewed rows."""


class SourceMetrics(BaseModel):
    """How well one source tells right answers from wrong ones, over the answered rows with a gold tag."""

    n: int
    auroc: float | None
    """Probability that a right answer has the higher confidence; ties count half. None without both kinds."""
    ece: float
    """Expected calibration error over ten bins of equal width: mean |accuracy - confidence|."""
    brier: float
    """Mean squared distance of the confidence from 1 (right) or 0 (wrong)."""
    aurc: float
    """Area under the risk-coverage curve: the mean error rate among the k most confident, over all k. Lower is
    better; the error rate itself is what a confidence that knows nothing gets."""
    risk: float
    """The error rate, to compare `aurc` with."""


def compare_sources(
    predictions: Iterable[Mapping[str, Any]], gold: Mapping[str, Mapping[str, str]], taxonomy: Taxonomy
) -> dict[str, dict[str, SourceMetrics]]:
    """`{attribute: {source: metrics}}` for lines of OUT.jsonl; sources and attributes without rows are left out."""
    found: dict[str, dict[str, tuple[list[float], list[bool]]]] = {}
    for line in predictions:
        truth = gold.get(line["user_id"], {})
        for name, row in line["profile"].items():
            known, said = truth.get(name, NA), row.get("voted", row["tag"])
            if name not in taxonomy or NA in (known, said) or row["status"] == Status.FAILED:
                continue
            right = taxonomy[name].match_tag(known) == taxonomy[name].match_tag(said)
            for source, read in SOURCES.items():
                if (value := read(row)) is not None:
                    values, verdicts = found.setdefault(name, {}).setdefault(source, ([], []))
                    values.append(min(1.0, value))
                    verdicts.append(right)
    return {
        name: {source: source_metrics(np.array(v), np.array(r)) for source, (v, r) in found[name].items()}
        for name in taxonomy.names
        if name in found
    }


def source_metrics(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> SourceMetrics:
    """The numbers for one source: `confidence` in 0..1 and `right`, one entry per answer, at least one."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    total = np.bincount(bins, minlength=_BINS)
    gap = np.bincount(bins, right, _BINS) - np.bincount(bins, confidence, _BINS)
    return SourceMetrics(
        n=len(right),
        auroc=_auroc(confidence, right),
        ece=float(np.abs(gap).sum() / total.sum()),
        brier=float(((confidence - right) ** 2).mean()),
        aurc=_aurc(confidence, right),
        risk=float(1 - right.mean()),
    )


def _auroc(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """Mann-Whitney U over the pairs of a right and a wrong answer."""
    good, bad = np.sort(confidence[right]), confidence[~right]
    if not len(good) or not len(bad):
        return None
    above = len(good) - np.searchsorted(good, bad, "right")
    equal = np.searchsorted(good, bad, "right") - np.searchsorted(good, bad, "left")
    return float((above + 0.5 * equal).sum() / (len(good) * len(bad)))


def _aurc(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Among equal confidences the order is chance, so each gets its group's mean error."""
    values, group = np.unique(-confidence, return_inverse=True)
    wrong = np.bincount(group, ~right, len(values)) / np.bincount(group, minlength=len(values))
    errors = np.sort(group)
    return float((np.cumsum(wrong[errors]) / np.arange(1, len(right) + 1)).mean())
