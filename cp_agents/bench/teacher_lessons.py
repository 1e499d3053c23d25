"""What a table of teachers teaches, in sentences whose numbers and words follow from the data.

A difference is called one where the paired test gives p below `LEVEL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cp_agents.bench.results import Estimate
from cp_agents.bench.teacher_votes import (
    Ballots,
    FloatArray,
    IntArray,
    agreement_skill,
    combine,
    labelled_skill,
    recalls,
)

LEVEL = 0.05
_HALVINGS = 500
_FEW = (1, 3, 5, 9)
_MOST = 2 / 3
"""From which share of the teachers on they are said to agree."""

Tags = Mapping[str, NDArray[np.int64]]
"""`{attribute: [R]}`: one answer per user, -1 for none."""


def lessons(
    ballots: Mapping[str, Ballots],
    majority: Tags,
    recall: Mapping[str, float],
    against_best: Mapping[str, Estimate],
    against_majority: Mapping[str, Estimate],
    best: int,
    name: str,
    folds: IntArray,
    seed: int = 0,
) -> list[str]:
    """The sentences.

    `recall` is the true recall by row of the table, `against_best` what a row has more than the best teacher and
    `against_majority` than the majority, all means over attributes; `best` is that teacher's position and
    `name` its name. `folds[R]` says which part of the users each is in.
    """
    return [
        _alone(ballots, name),
        _together(recall, against_best),
        _where(ballots, majority, best, name),
        _halvings(ballots, majority, seed),
        _weights(against_majority),
        _skills(ballots),
        _fewer(ballots, folds),
        _confidence(ballots),
        _errors(ballots, majority),
    ]


def percent(value: float) -> str:
    """`0.703` is `70.3 %`."""
    return f"{100 * value:.1f} %"


def verdict(gap: Estimate) -> str:
    """Better or worse in points, or no difference that these users show."""
    value, p = gap.value or 0.0, 1.0 if gap.p is None else gap.p
    word = "no difference that these users show" if p >= LEVEL else "better" if value > 0 else "worse"
    return f"{100 * value:+.1f} points ({word}, p = {p:.3f})"


def _alone(ballots: Mapping[str, Ballots], best: str) -> str:
    alone = np.sort(recalls(ballots, _everyone(ballots)))
    return (
        f"Alone: {best} is right about {percent(alone[-1])} of what gold labels, the median teacher about "
        f"{percent(float(np.median(alone)))}, the last about {percent(alone[0])}."
    )


def _together(recall: Mapping[str, float], against_best: Mapping[str, Estimate]) -> str:
    told = [
        f"{name} {percent(recall[name])}, {verdict(against_best[name])}"
        for name in ("majority", "weighted by skill, half of the labels", "Dawid-Skene, no labels")
        if name in against_best
    ]
    return "Together, against the best in hindsight: " + "; ".join(told) + "."


def _where(ballots: Mapping[str, Ballots], majority: Tags, best: int, name: str) -> str:
    """In which attributes the majority gains and loses against the best teacher."""
    told = []
    for attribute, b in ballots.items():
        rows = b.truth >= 0
        gap = (majority[attribute] == b.truth)[rows].mean() - b.right[rows, best].mean()
        told.append((100 * float(gap), attribute))
    gaps = ", ".join(f"{attribute} {gap:+.1f}" for gap, attribute in sorted(told))
    return f"Where: the majority's true recall less that of {name}, in points: {gaps}."


def _weights(against_majority: Mapping[str, Estimate]) -> str:
    told = "; ".join(f"{name} {verdict(gap)}" for name, gap in against_majority.items())
    return f"Weights, against the plain majority: {told}."


def _halvings(ballots: Mapping[str, Ballots], majority: Tags, seed: int) -> str:
    """The best teacher of one random half on the other half, beside the majority there."""
    rng = np.random.default_rng(seed)
    both = {name: b._replace(tags=np.column_stack([b.tags, majority[name]])) for name, b in ballots.items()}
    users = len(_everyone(ballots))
    promised, kept, voted = np.empty((3, _HALVINGS))
    for i in range(_HALVINGS):
        half = np.zeros(users, np.bool_)
        half[rng.permutation(users)[: users // 2]] = True
        inside, outside = recalls(both, half), recalls(both, ~half)
        chosen = int(inside[:-1].argmax())
        promised[i], kept[i], voted[i] = inside[chosen], outside[chosen], outside[-1]
    return (
        f"Choosing one by labels: over {_HALVINGS} random halvings the best teacher of one half had "
        f"{percent(promised.mean())} there and {percent(kept.mean())} on the other half; the majority, without a "
        f"label, had {percent(voted.mean())} there and more than the chosen one in "
        f"{percent(float((voted > kept).mean()))} of the halvings."
    )


def _skills(ballots: Mapping[str, Ballots]) -> str:
    """How well agreement with the others, which needs no label, ranks the teachers."""
    everyone = _everyone(ballots)
    guessed = np.mean([agreement_skill(b) for b in ballots.values()], axis=0)
    true = np.mean([labelled_skill(b, everyone) for b in ballots.values()], axis=0)
    rho = _rank_correlation(guessed, true)
    if np.isnan(rho):
        return "Skill without labels: too few teachers that differ to compare their order with gold's."
    return (
        "Skill without labels: the order of the teachers by agreement with the majority of the others has a rank "
        f"correlation of {rho:.2f} with that by accuracy."
    )


def _fewer(ballots: Mapping[str, Ballots], folds: IntArray) -> str:
    """The majority of the k best teachers, chosen by agreement with the others or by the labels of the other folds."""
    everyone = _everyone(ballots)
    by_agreement = np.mean([agreement_skill(b) for b in ballots.values()], axis=0)
    teachers = len(by_agreement)
    sizes = [*(k for k in _FEW if k < teachers), teachers]

    def voted(skill: FloatArray, k: int, users: NDArray[np.bool_]) -> dict[str, IntArray]:
        chosen = np.argsort(-skill, kind="stable")[:k]
        few = {
            name: b._replace(tags=b.tags[:, chosen], confidence=b.confidence[:, chosen])
            for name, b in ballots.items()
        }
        return {name: combine(b, "majority", folds)[users] for name, b in few.items()}

    def score(said: Mapping[str, IntArray]) -> float:
        of = {name: b._replace(tags=said[name][:, None]) for name, b in ballots.items()}
        return float(recalls(of, everyone)[0])

    agreed, labelled = [], []
    for k in sizes:
        agreed.append(f"{k}: {percent(score(voted(by_agreement, k, everyone)))}")
        said = {name: np.full(len(everyone), -1, np.int64) for name in ballots}
        for fold in np.unique(folds):
            inside = folds == fold
            for name, tags in voted(recalls(ballots, ~inside), k, inside).items():
                said[name][inside] = tags
        labelled.append(f"{k}: {percent(score(said))}")
    return (
        f"Fewer teachers: the majority of the k that agree most with the others, without a label: {', '.join(agreed)}; "
        f"of the k best by half of the labels: {', '.join(labelled)}."
    )


def _confidence(ballots: Mapping[str, Ballots]) -> str:
    """Whether a teacher whose ranked guesses agree is right more often; all teachers and attributes pooled."""
    said: dict[int, list[int]] = {}
    for b in ballots.values():
        # the last tag is NA
        answered = (b.tags >= 0) & (b.tags < b.n_tags - 1) & (b.truth >= 0)[:, None]
        for level in np.unique(b.confidence[answered]):
            at = answered & (b.confidence == level)
            right, n = said.setdefault(int(level), [0, 0])
            said[int(level)] = [right + int((at & b.right).sum()), n + int(at.sum())]
    told = ", ".join(f"{level}: {percent(right / n)} of {n:,}" for level, (right, n) in sorted(said.items()))
    return f"Confidence (2, and 1 for each ranked guess of the same tag) and how many such answers are right: {told}."


def _errors(ballots: Mapping[str, Ballots], majority: Tags) -> str:
    """Whether the majority errs where teachers are divided or where they agree, and what any of them knew."""
    wrong = alike = known = labelled = 0
    for name, b in ballots.items():
        rows, said = b.truth >= 0, majority[name]
        missed = rows & (said != b.truth) & (said >= 0)
        share = (b.tags == said[:, None]).sum(axis=1) / np.maximum((b.tags >= 0).sum(axis=1), 1)
        wrong += int(missed.sum())
        alike += int((missed & (share >= _MOST)).sum())
        known += int((rows & b.right.any(axis=1)).sum())
        labelled += int(rows.sum())
    return (
        f"Errors: the majority misses {wrong} of {labelled} labels with a wrong tag or NA; in "
        f"{percent(alike / max(wrong, 1))} of these at least two thirds of the teachers that answer say the same, "
        "which weights hardly change. "
        f"At least one teacher is right about {percent(known / max(labelled, 1))} of the labels."
    )


def _everyone(ballots: Mapping[str, Ballots]) -> NDArray[np.bool_]:
    return np.ones(len(next(iter(ballots.values())).truth), np.bool_)


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's, ties by their mean rank; NaN where either is constant."""

    def ranks(x: NDArray[np.float64]) -> NDArray[Any]:
        return np.array([((x < v).sum() + (x <= v).sum() - 1) / 2 for v in x])

    x, y = ranks(a), ranks(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else float("nan")
