"""Which confidence means something? The same answers, judged by each source of confidence side by side.

A profile holds several: what the samples stated, how far they agree, the two together (which is the paper's S),
and a probability where a calibrator gives one. The stored samples add what the model itself gave its tags. None of
them is the right one for every teacher, so `evaluate` reports them beside each other. The level after calibration is
not among them: it is a rank of S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.evaluation.outcomes import by_user, closed_over
from cp_agents.evaluation.samples import Answers, Discrimination, of_vote
from cp_agents.schema import NA, Status
from cp_agents.taxonomy import Taxonomy

Row = Mapping[str, Any]
_BINS = 10


def _stated(row: Row, samples: int) -> float | None:
    return row["score"] / (5 * samples) if samples and "score" in row else None


SOURCES: dict[str, Callable[[Row], float | None]] = {
    "verbal": lambda row: _stated(row, len(row.get("agreeing", ()))),
    "agreement": lambda row: row.get("vote_share"),
    "logprob": lambda row: None,
    "combined": lambda row: _stated(row, row.get("survivors", 0)),
    "probability": lambda row: row.get("probability"),
}
"""From a profile's attribute to a number in 0..1. `verbal`: the mean stated confidence of the samples that agree
with the vote, over 5. `agreement`: the vote share. `combined`: their product, S / 5M'. (Both only where
`sums_of_stated`.) `probability`: of a calibrator fitted on gold or reviewed rows. Where the samples are at hand,
these come from them (`samples.of_vote`), and `logprob` is the mean probability that the model gave the tag in the
samples that agree."""


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
    wqd: float | None = None
    """Within-question discrimination: among the samples of one user and attribute, the share of pairs of a right and a
    wrong one in which the right one has the higher confidence; ties count half. None without the samples, or a pair."""


def compare_sources(
    predictions: Iterable[Mapping[str, Any]],
    gold: Mapping[str, Mapping[str, str]],
    taxonomy: Taxonomy,
    answers: Answers | None = None,
) -> dict[str, dict[str, SourceMetrics]]:
    """`{attribute: {source: metrics}}` for lines of OUT.jsonl; sources and attributes without rows are left out.

    `answers` are the samples behind them, see `samples.load_answers`.
    """
    predictions = list(predictions)
    unreadable = () if sums_of_stated(predictions) else ("verbal", "combined")
    found: dict[str, dict[str, tuple[list[float], list[bool]]]] = {}
    within = {name: Discrimination() for name in taxonomy.names}
    given = taxonomy
    taxonomy, gold = closed_over(taxonomy, by_user(predictions), gold)
    for line in predictions:
        truth = gold.get(line["user_id"], {})
        for name, row in line["profile"].items():
            known, said = truth.get(name, NA), row.get("voted", row["tag"])
            if name not in taxonomy or known == NA:
                continue
            asked = (answers or {}).get((line["user_id"], name), ())
            if given[name].open:  # the samples' wordings, as the values they are joined to
                asked = [a._replace(tag=taxonomy[name].match_tag(a.tag) or a.tag) for a in asked]
            within[name].add(asked, taxonomy[name].match_tag(known) or known)
            if said == NA or row.get("status") == Status.FAILED:
                continue
            right = taxonomy[name].match_tag(known) == taxonomy[name].match_tag(said)
            read = {s: None if s in unreadable else of_row(row) for s, of_row in SOURCES.items()}
            if stored := of_vote(asked, row.get("agreeing", ())):
                read = {**dict.fromkeys(read), **stored, "probability": read["probability"]}
            for source, value in read.items():
                if value is not None:
                    values, verdicts = found.setdefault(name, {}).setdefault(source, ([], []))
                    values.append(min(1.0, value))
                    verdicts.append(right)
    return {
        name: {
            source: source_metrics(np.array(values), np.array(verdicts), within[name].rate(source))
            for source, (values, verdicts) in found[name].items()
        }
        for name in taxonomy.names
        if name in found
    }


def sums_of_stated(predictions: Iterable[Mapping[str, Any]]) -> bool:
    """Whether S of these lines of OUT.jsonl can be the sum of what the samples stated, as of a vote weighted by it.

    The lines do not say by which vote they were made. Of m agreeing samples such a sum is a whole number from m to 5 m;
    where all are m, or all 5 m, they are taken for counts (majority, or `--confidence agreement`), which know nothing
    of what was stated.
    """
    sums = [
        (row["score"], len(row["agreeing"]))
        for line in predictions
        for row in line["profile"].values()
        if row.get("agreeing") and "score" in row
    ]
    if not all(score == round(score) and m <= score <= 5 * m for score, m in sums):
        return False
    return not sums or not any(all(score == each * m for score, m in sums) for each in (1, 5))


def source_metrics(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], wqd: float | None = None
) -> SourceMetrics:
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
        wqd=wqd,
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
