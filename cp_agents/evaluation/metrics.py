"""Profiles against gold: how often right, how often silent, at every threshold.

What the paper calls precision, recall and F1 are kept apart here under names that say what is divided by
what, since its "recall" cannot be the ordinary one (age at tau 1 has precision 73.29 and recall 99.87, and
true recall never exceeds precision). With labelled = users whose gold tag is not NA, answered = those of
them who got a tag other than NA, correct = those of them whose tag is the gold tag:

* `selective_accuracy` = correct / answered: the paper's precision.
* `coverage` = answered / labelled: what the paper's recall behaves like.
* `true_recall` = correct / labelled: ordinary recall.
* `macro_f1`: the mean over the tags that occur in gold of each tag's F1; silence is a miss.
* `paper_f1`: harmonic mean of selective_accuracy and coverage. It rewards answering always.
* `recall_tp_na` = correct / (correct + unanswered), the other reading of the paper's recall, and
  `paper_f1_tp_na`, its harmonic mean with selective_accuracy.

A ratio with nothing to divide by is None, never 0. A harmonic mean with a 0 in it is 0, so that an attribute
that stays silent does not drop out of the mean F1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.evaluation.loading import load_gold as load_gold
from cp_agents.evaluation.loading import load_predictions as load_predictions
from cp_agents.evaluation.outcomes import Outcomes, by_user, read_outcomes
from cp_agents.schema import CONFIDENCE_LEVELS
from cp_agents.taxonomy import Attribute, Taxonomy


class ThresholdMetrics(BaseModel):
    """One attribute at one tau. Ratios are 0..1."""

    tau: int
    answered: int
    correct: int
    selective_accuracy: float | None
    coverage: float | None
    true_recall: float | None
    macro_f1: float | None
    paper_f1: float | None
    recall_tp_na: float | None
    paper_f1_tp_na: float | None
    answered_where_gold_na: int
    """Users whose gold is NA and who got a tag; they are in none of the numbers above."""


class ConstantBaseline(BaseModel):
    """The most frequent gold tag answered for everyone; no other constant has a better macro-F1."""

    tag: str
    accuracy: float
    macro_f1: float


class AttributeMetrics(BaseModel):
    """One attribute at every tau."""

    n_labelled: int
    """Users whose gold tag is not NA."""
    n_gold_na: int
    """Users whose gold tag is NA."""
    missing: int
    """Labelled users without any prediction for this attribute; they count as unanswered."""
    best_constant: ConstantBaseline | None
    """None where nobody is labelled."""
    at_tau: list[ThresholdMetrics]


class AverageMetrics(BaseModel):
    """Means over the attributes at one tau, each over those attributes for which the number is defined.

    `paper_f1_mean` is the mean of the attributes' F1s and `paper_f1_of_means` the F1 of the mean precision
    and the mean recall: the paper's tables mix the two, and the second is usually the higher one.
    """

    tau: int
    selective_accuracy: float | None
    coverage: float | None
    true_recall: float | None
    macro_f1: float | None
    paper_f1_mean: float | None
    paper_f1_of_means: float | None
    recall_tp_na: float | None
    paper_f1_tp_na_mean: float | None
    paper_f1_tp_na_of_means: float | None


class Evaluation(BaseModel):
    """Everything that `evaluate` found."""

    users: int
    """Users in gold."""
    missing: int
    """Of these, without a prediction. They count as unanswered."""
    not_in_gold: int
    """Predictions for users that gold does not know; ignored."""
    attributes: dict[str, AttributeMetrics]
    """The taxonomy's attributes that gold speaks of, in taxonomy order."""
    not_evaluated: list[str]
    """Attributes in gold that the taxonomy lacks."""
    average: list[AverageMetrics]
    """One for each tau."""
    best_constant_macro_f1: float | None
    """Mean over the attributes."""


def harmonic_mean(precision: float | None, recall: float | None) -> float | None:
    """2PR / (P + R), the paper's F1. 0 where either is 0, whatever the other; else None where one is None."""
    if precision == 0 or recall == 0:
        return 0.0
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall)


def evaluate(
    predictions: Iterable[Mapping[str, Any]], gold: Mapping[str, Mapping[str, str]], taxonomy: Taxonomy
) -> Evaluation:
    """Compare lines of OUT.jsonl with gold at tau 1..5, whatever tau the run was made with.

    At tau t a user is answered on an attribute if its status is not failed, the vote (`voted`) is not NA and
    its confidence is at least t. A reviewed attribute is what the person said, at every tau: it does not hang
    on the model's confidence. Raises `InputError` for a tag outside the closed set and for a user with two
    predictions.
    """
    profiles = by_user(predictions)
    outcomes = read_outcomes(profiles, gold, taxonomy)
    attributes = {name: attribute_metrics(found) for name, found in outcomes.items()}
    spoken_of = {name for truth in gold.values() for name in truth}
    return Evaluation(
        users=len(gold),
        missing=sum(user not in profiles for user in gold),
        not_in_gold=sum(user not in gold for user in profiles),
        attributes=attributes,
        not_evaluated=sorted(name for name in spoken_of if name not in taxonomy),
        average=[
            average_metrics(tau, [a.at_tau[i] for a in attributes.values()])
            for i, tau in enumerate(CONFIDENCE_LEVELS)
        ],
        best_constant_macro_f1=_mean(
            a.best_constant.macro_f1 for a in attributes.values() if a.best_constant
        ),
    )


def attribute_metrics(outcomes: Outcomes) -> AttributeMetrics:
    """The metrics of one attribute at tau 1..5."""
    labelled = outcomes.labelled
    at_tau = [threshold_metrics(outcomes, tau) for tau in CONFIDENCE_LEVELS]
    return AttributeMetrics(
        n_labelled=int(labelled.sum()),
        n_gold_na=int((~labelled).sum()),
        missing=int((labelled & ~outcomes.present).sum()),
        best_constant=_best_constant(outcomes.attribute, outcomes.truth[labelled], outcomes.na),
        at_tau=at_tau,
    )


def threshold_metrics(outcomes: Outcomes, tau: int) -> ThresholdMetrics:
    """The metrics of one attribute at one tau."""
    effective, labelled = outcomes.at(tau), outcomes.labelled
    stray = int((effective[~labelled] != outcomes.na).sum())
    return _threshold_metrics(tau, outcomes.truth[labelled], effective[labelled], outcomes.na, stray)


def _threshold_metrics(
    tau: int, truth: NDArray[np.int_], said: NDArray[np.int_], na: int, stray: int
) -> ThresholdMetrics:
    labelled, answered, correct = len(truth), int((said != na).sum()), int((said == truth).sum())
    accuracy, coverage = _ratio(correct, answered), _ratio(answered, labelled)
    recall_tp_na = _ratio(correct, correct + labelled - answered)
    return ThresholdMetrics(
        tau=tau,
        answered=answered,
        correct=correct,
        selective_accuracy=accuracy,
        coverage=coverage,
        true_recall=_ratio(correct, labelled),
        macro_f1=macro_f1_score(truth, said, na),
        paper_f1=harmonic_mean(accuracy, coverage),
        recall_tp_na=recall_tp_na,
        paper_f1_tp_na=harmonic_mean(accuracy, recall_tp_na),
        answered_where_gold_na=stray,
    )


def macro_f1_score(truth: NDArray[np.int_], said: NDArray[np.int_], na: int) -> float | None:
    """Mean over the tags that occur in `truth` [N] of their F1; codes, `na` for silence. None without users."""
    in_gold = np.bincount(truth, minlength=na + 1)
    in_answers = np.bincount(said, minlength=na + 1)
    hits = np.bincount(truth[truth == said], minlength=na + 1)
    occurs = in_gold > 0
    if not occurs.any():
        return None
    # 2TP / (2TP + FP + FN), since TP + FN and TP + FP are the two counts
    return float((2 * hits[occurs] / (in_gold + in_answers)[occurs]).mean())


def _best_constant(attribute: Attribute, truth: NDArray[np.int_], na: int) -> ConstantBaseline | None:
    if not len(truth):
        return None
    code = int(
        np.bincount(truth, minlength=na).argmax()
    )  # of equally frequent ones the first of the taxonomy
    said = np.full_like(truth, code)
    return ConstantBaseline(
        tag=attribute.names[code],
        accuracy=float((truth == code).mean()),
        macro_f1=macro_f1_score(truth, said, na) or 0.0,
    )


def average_metrics(tau: int, rows: Sequence[ThresholdMetrics]) -> AverageMetrics:
    """The means over the attributes `rows` at `tau`."""
    accuracy, coverage = _mean(r.selective_accuracy for r in rows), _mean(r.coverage for r in rows)
    recall_tp_na = _mean(r.recall_tp_na for r in rows)
    return AverageMetrics(
        tau=tau,
        selective_accuracy=accuracy,
        coverage=coverage,
        true_recall=_mean(r.true_recall for r in rows),
        macro_f1=_mean(r.macro_f1 for r in rows),
        paper_f1_mean=_mean(r.paper_f1 for r in rows),
        paper_f1_of_means=harmonic_mean(accuracy, coverage),
        recall_tp_na=recall_tp_na,
        paper_f1_tp_na_mean=_mean(r.paper_f1_tp_na for r in rows),
        paper_f1_tp_na_of_means=harmonic_mean(accuracy, recall_tp_na),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return sum(defined) / len(defined) if defined else None
