"""The run beside gold: accuracy and coverage at every tau, reliability, confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cp_agents.abstention import DEFAULT_TAU
from cp_agents.evaluation.confidence import SOURCES, source_metrics, sums_of_stated
from cp_agents.evaluation.metrics import (
    ThresholdMetrics,
    attribute_metrics,
    average_metrics,
    threshold_metrics,
)
from cp_agents.evaluation.outcomes import BoolArray, Outcomes, by_user, read_outcomes
from cp_agents.evaluation.statistics import Interval, intervals
from cp_agents.report.model import (
    AttributeQuality,
    Averages,
    Confusion,
    Quality,
    Reliability,
    ReliabilityBin,
    TauPoint,
)
from cp_agents.report.numbers import Estimate, Proportion
from cp_agents.report.rows import Profiled, votes_for_tags
from cp_agents.schema import CONFIDENCE_LEVELS, NA
from cp_agents.taxonomy import Taxonomy

_BINS = 10
_DRAWS = 500
_FREQUENT = 5
_AVERAGES = (
    "selective_accuracy",
    "coverage",
    "true_recall",
    "macro_f1",
    "paper_f1_mean",
    "paper_f1_of_means",
)
_F1_OF = "macro_f1 of "


def quality_of(
    rows: Sequence[Profiled],
    gold: Mapping[str, Mapping[str, str]],
    records: frozenset[str],
    taxonomy: Taxonomy,
    tau: Mapping[str, float],
) -> Quality:
    """Everything that needs gold; `records` are all users of the run, profiled or not.

    Gold of users that the run does not have is counted and left out: a run over a part of them is not a silent one.
    Users of the run without a profile count as unanswered. Raises `InputError` for a tag outside the closed set.
    """
    known = {user: truth for user, truth in gold.items() if user in records}
    profiles = by_user({"user_id": row.user_id, "profile": row.profile} for row in rows)
    outcomes = read_outcomes(profiles, known, taxonomy)
    own = {name: math.ceil(tau.get(name, DEFAULT_TAU)) for name in outcomes}
    found = _estimates(outcomes, own)
    summed = sums_of_stated({"profile": row.profile} for row in rows)
    attributes = [
        _of_attribute(outcome, own[name], rows, known, found[_F1_OF + name], summed)
        for name, outcome in outcomes.items()
    ]
    constants = [a.constant_macro_f1 for a in attributes if a.constant_macro_f1 is not None]
    return Quality(
        users=len(known),
        not_in_run=len(gold) - len(known),
        not_in_gold=sum(user not in gold for user in records),
        not_evaluated=sorted({n for truth in known.values() for n in truth if n not in taxonomy}),
        attributes=attributes,
        averages=Averages(
            **{name: found[name] for name in _AVERAGES},
            constant_macro_f1=sum(constants) / len(constants) if constants else None,
        ),
    )


def _estimates(outcomes: Mapping[str, Outcomes], own: Mapping[str, int]) -> dict[str, Estimate]:
    """Means over the attributes, and each one's macro-F1, at the run's own tau."""

    def numbers(drawn: Mapping[str, Outcomes]) -> dict[str, float | None]:
        at_own = {name: threshold_metrics(o, own[name]) for name, o in drawn.items()}
        means = average_metrics(0, list(at_own.values()))
        f1 = {_F1_OF + name: row.macro_f1 for name, row in at_own.items()}
        return {name: getattr(means, name) for name in _AVERAGES} | f1

    if not any(len(o.users) for o in outcomes.values()):
        return dict.fromkeys(
            (*_AVERAGES, *(_F1_OF + name for name in outcomes)), Estimate(value=None, low=None, high=None)
        )
    return {name: _estimate(found) for name, found in intervals(numbers, outcomes, draws=_DRAWS).items()}


def _estimate(found: Interval) -> Estimate:
    value, low, high = (None if math.isnan(x) else x for x in found)
    return Estimate(value=value, low=low, high=high)


def _of_attribute(
    outcomes: Outcomes,
    own: int,
    rows: Sequence[Profiled],
    gold: Mapping[str, Mapping[str, str]],
    macro_f1: Estimate,
    summed: bool,
) -> AttributeQuality:
    metrics, constant = attribute_metrics(outcomes), attribute_metrics(outcomes).best_constant
    at_own = threshold_metrics(outcomes, own)
    return AttributeQuality(
        attribute=outcomes.attribute.name,
        n_labelled=metrics.n_labelled,
        n_gold_na=metrics.n_gold_na,
        answered_where_gold_na=at_own.answered_where_gold_na,
        constant_tag=constant.tag if constant else None,
        constant_accuracy=constant.accuracy if constant else None,
        constant_macro_f1=constant.macro_f1 if constant else None,
        at_tau=[_point(m, metrics.n_labelled) for m in metrics.at_tau],
        own=_point(at_own, metrics.n_labelled),
        macro_f1=macro_f1,
        reliability=_reliability(outcomes, rows, gold, summed),
        confusion=_confusion(outcomes, own),
    )


def _point(found: ThresholdMetrics, labelled: int) -> TauPoint:
    return TauPoint(
        tau=found.tau,
        accuracy=Proportion(count=found.correct, n=found.answered),
        coverage=Proportion(count=found.answered, n=labelled),
        recall=Proportion(count=found.correct, n=labelled),
        macro_f1=found.macro_f1,
        paper_f1=found.paper_f1,
    )


def _reliability(
    outcomes: Outcomes, rows: Sequence[Profiled], gold: Mapping[str, Mapping[str, str]], summed: bool
) -> Reliability | None:
    """By the probability where the calibrator gives one, else by S / 5M', else by the vote share."""
    name, attribute = outcomes.attribute.name, outcomes.attribute
    found: list[tuple[float | None, float | None, float, int, bool]] = []
    for row, value in votes_for_tags(rows, name):
        truth = attribute.match_tag(gold.get(row.user_id, {}).get(name, NA))
        if truth != NA:
            share = float(value["vote_share"])
            combined = SOURCES["combined"](value) if summed else None
            is_right = attribute.match_tag(value["voted"]) == truth
            found.append((value.get("probability"), combined, share, value["confidence"], is_right))
    if not found:
        return None
    source = next(i for i in range(3) if all(row[i] is not None for row in found))
    confidence = np.clip(np.array([row[source] for row in found], np.float64), 0.0, 1.0)
    level = np.array([row[3] for row in found])
    right = np.array([row[4] for row in found], np.bool_)
    numbers = source_metrics(confidence, right)
    of_bin = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = [
        ReliabilityBin(mean=float(confidence[rows_].mean()), accuracy=_share(right[rows_]))
        for b in range(_BINS)
        if (rows_ := of_bin == b).any()
    ]
    return Reliability(
        source=("probability", "combined", "agreement")[source],
        n=len(found),
        bins=bins,
        ece=numbers.ece,
        auroc=numbers.auroc,
        levels=[_share(right[level == each]) for each in CONFIDENCE_LEVELS],
    )


def _share(right: BoolArray) -> Proportion:
    return Proportion(count=int(right.sum()), n=len(right))


def _confusion(outcomes: Outcomes, own: int) -> Confusion:
    names, na = outcomes.attribute.names, outcomes.na
    said = outcomes.at(own)
    counts = np.zeros((na + 1, na + 1), np.int64)
    np.add.at(counts, (outcomes.truth, said), 1)
    seen = [i for i in range(na) if counts[i].any() or counts[:, i].any()]
    rows = [*seen, na] if counts[na].any() else seen
    columns = [*seen, na]
    wrong = [
        (names[i], names[j], int(counts[i, j]))
        for i in range(na)
        for j in range(na)
        if i != j and counts[i, j]
    ]
    return Confusion(
        rows=[names[i] for i in rows],
        columns=[names[j] for j in columns],
        counts=[[int(counts[i, j]) for j in columns] for i in rows],
        unseen=[names[i] for i in range(na) if i not in seen],
        frequent=sorted(wrong, key=lambda row: -row[2])[:_FREQUENT],
    )
