"""One table of teachers: each alone, all together in several ways, and the best single one, with and without hindsight.

Compared are the shares of what gold labels: accuracy = correct / answered, coverage = answered / labelled and true
recall = correct / labelled, as in `evaluation.metrics`; means go over attributes. A teacher that says NA, that was
not asked or whose guess no rule reads has not answered. Intervals are over users, and the paired test is against the
teacher that hindsight shows to be the best.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.bench.results import Cell, Estimate, Grid, Row, estimates
from cp_agents.bench.splits import fold_of
from cp_agents.bench.teacher_lessons import lessons
from cp_agents.bench.teacher_votes import (
    Ballots,
    agreement_skill,
    best_of_other_folds,
    combine,
    recalls,
)
from cp_agents.bench.teachers import Teachers
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import Outcomes, read_outcomes
from cp_agents.evaluation.statistics import differences, intervals

HALVES = 2
COMBINATIONS = {
    "majority": "majority",
    "weighted": "weighted by confidence",
    "agreement": "weighted by skill, no labels",
    "labelled": "weighted by skill, half of the labels",
    "dawid_skene": "Dawid-Skene, no labels",
}
MAJORITY = COMBINATIONS["majority"]
HINDSIGHT = "best single, in hindsight"
CHOSEN = "best single, by half of the labels"
AGREED = "best single, by agreement"
AVERAGES = ("accuracy", "coverage", "true_recall", "macro_f1")


class TeacherRow(BaseModel):
    """One line of the table."""

    name: str
    kind: str
    """teacher, combination or single."""
    models: list[str] = []
    """Which teacher was chosen; of a choice by halves, both."""
    per_attribute: dict[str, dict[str, float | None]]
    """`{attribute: {accuracy, coverage, true_recall, macro_f1}}`."""
    average: dict[str, Estimate]
    """Means over the attributes, by the same names, with intervals."""
    against_best: Estimate | None = None
    """True recall less that of the best single teacher in hindsight; None for the teachers themselves."""
    against_majority: Estimate | None = None
    """The same less that of the majority, for the other combinations."""


class TeacherTable(BaseModel):
    """Everything that `bench teachers` found."""

    users: int
    """Users in gold."""
    labelled: dict[str, int]
    """By attribute."""
    teachers: int
    best: str
    """The teacher with the highest mean true recall."""
    rows: list[TeacherRow]
    lessons: list[str]
    """Sentences made of the numbers."""


def teacher_table(teachers: Teachers, gold: Gold, *, draws: int = 1000, seed: int = 0) -> TeacherTable:
    """All teachers and their combinations against gold. Raises `InputError` where they have no user in common."""
    taxonomy = teachers.rules.taxonomy
    known = set(teachers.users)
    gold = {user: truth for user, truth in gold.items() if user in known}
    users = tuple(gold)
    blank = {n: o for n, o in read_outcomes({}, gold, taxonomy).items() if o.labelled.any()}
    if not blank:
        raise InputError("gold labels none of the users that the teachers answered about")
    ballots = {name: _ballots(teachers, users, blank[name]) for name in blank}
    folds = np.array([fold_of(user, HALVES) for user in users], np.int64)
    everyone = np.ones(len(users), np.bool_)
    alone = recalls(ballots, everyone)
    best, chosen = int(alone.argmax()), best_of_other_folds(ballots, folds)
    agreed = int(np.mean([agreement_skill(b) for b in ballots.values()], axis=0).argmax())

    said: dict[str, dict[str, NDArray[np.int64]]] = {
        teachers.models[j]: {n: b.tags[:, j] for n, b in ballots.items()}
        for j in np.argsort(-alone, kind="stable")
    }
    kinds = dict.fromkeys(said, "teacher")
    for how, label in COMBINATIONS.items():
        said[label] = {n: combine(b, how, folds) for n, b in ballots.items()}
        kinds[label] = "combination"
    rows = np.arange(len(users))
    said[HINDSIGHT] = said[teachers.models[best]]
    said[CHOSEN] = {n: b.tags[rows, chosen] for n, b in ballots.items()}
    said[AGREED] = said[teachers.models[agreed]]
    kinds |= {HINDSIGHT: "single", CHOSEN: "single", AGREED: "single"}
    single = {HINDSIGHT: {best}, CHOSEN: set(chosen.tolist()), AGREED: {agreed}}

    outcomes = {label: _outcomes(blank, users, tags) for label, tags in said.items()}
    found = []
    for label, of in outcomes.items():
        row = TeacherRow(
            name=label,
            kind=kinds[label],
            models=[teachers.models[j] for j in sorted(single.get(label, ()))],
            per_attribute={n: _of_attribute(o) for n, o in of.items()},
            average=estimates(intervals(_averages, of, draws=draws, seed=seed)),
        )
        if kinds[label] != "teacher" and label != HINDSIGHT:
            gap = differences(mean_recall, of, outcomes[HINDSIGHT], draws=draws, seed=seed)
            row.against_best = Estimate.of(gap["true_recall"])
        if kinds[label] == "combination" and label != MAJORITY:
            gap = differences(mean_recall, of, outcomes[MAJORITY], draws=draws, seed=seed)
            row.against_majority = Estimate.of(gap["true_recall"])
        found.append(row)
    table = TeacherTable(
        users=len(users),
        labelled={n: int(o.labelled.sum()) for n, o in blank.items()},
        teachers=len(teachers.models),
        best=teachers.models[best],
        rows=found,
        lessons=[],
    )
    table.lessons = lessons(
        ballots,
        said[MAJORITY],
        {row.name: row.average["true_recall"].value or 0.0 for row in found},
        {row.name: row.against_best for row in found if row.against_best is not None},
        {row.name: row.against_majority for row in found if row.against_majority is not None},
        best,
        table.best,
        folds,
        seed,
    )
    return table


def as_grid(table: TeacherTable, truth_field: str = "truth") -> Grid:
    """For the terminal and for Markdown; `truth_field` is what is named in the title."""
    names = list(table.labelled)
    rows = []
    for row in table.rows:
        cells: list[Cell] = [_pair(row.per_attribute[name]) for name in names]
        cells.append(_pair({name: row.average[name].value for name in AVERAGES}))
        cells += [row.average["true_recall"], row.average["macro_f1"], row.against_best]
        chosen = f" ({', '.join(map(short, row.models))})" if row.models else ""
        rows.append(Row(label=short(row.name) + chosen, cells=cells))
    return Grid(
        title=f"{table.teachers} recorded teachers on {table.users} users ({truth_field})",
        label="teacher or combination",
        columns=[*names, "mean", "true_recall", "macro_f1", "less the best"],
        rows=rows,
        best=[*[None for _ in names], None, "high", "high", None],
        notes=[
            "attributes and their mean: accuracy/coverage in percent; true recall and macro-F1: means over attributes; "
            "less the best: true recall less that of the best single one in hindsight, p of the paired test; "
            "[95 % bootstrap interval over users]",
            "labelled users: " + ", ".join(f"{name} {n}" for name, n in table.labelled.items()),
            *table.lessons,
        ],
    )


def short(model: str) -> str:
    """A model's name without its publisher's."""
    return model.rsplit("/", 1)[-1]


def _pair(numbers: Mapping[str, float | None]) -> str:
    return "/".join("-" if numbers[n] is None else f"{100 * (numbers[n] or 0):.0f}" for n in AVERAGES[:2])


def _ballots(teachers: Teachers, users: tuple[str, ...], blank: Outcomes) -> Ballots:
    attribute = blank.attribute
    shape = len(users), len(teachers.models)
    tags, confidence = np.full(shape, -1, np.int64), np.ones(shape, np.int64)
    for i, user in enumerate(users):
        for j, model in enumerate(teachers.models):
            guess = teachers.answers.get((model, user), {}).get(attribute.name)
            if guess is not None and guess.tag is not None:
                tags[i, j], confidence[i, j] = attribute.codes[guess.tag], guess.confidence
    truth = np.full(len(users), -1, np.int64)
    place = {user: i for i, user in enumerate(users)}
    for user, code in zip(blank.users, blank.truth, strict=True):
        if code != blank.na:
            truth[place[user]] = code
    return Ballots(tags, confidence, truth, len(attribute.names))


def _outcomes(
    blank: Mapping[str, Outcomes], users: tuple[str, ...], said: Mapping[str, NDArray[np.int64]]
) -> dict[str, Outcomes]:
    place = {user: i for i, user in enumerate(users)}
    found = {}
    for name, o in blank.items():
        tags = said[name][[place[user] for user in o.users]]
        answered = tags >= 0
        found[name] = o._replace(
            voted=np.where(answered, tags, o.na), reach=answered.astype(np.float64), present=answered
        )
    return found


def _of_attribute(o: Outcomes) -> dict[str, float | None]:
    """One attribute's numbers; the reach does not matter, since a teacher is heard whatever its confidence."""
    kept = o.truth != o.na
    truth, said = o.truth[kept], o.voted[kept]
    hit = truth == said
    labelled, answered, correct = len(truth), int((said != o.na).sum()), int(hit.sum())
    in_gold = np.bincount(truth, minlength=o.na + 1)
    sizes = in_gold + np.bincount(said, minlength=o.na + 1)
    occurs = in_gold > 0
    f1 = 2 * np.bincount(truth[hit], minlength=o.na + 1)[occurs] / sizes[occurs]
    return {
        "accuracy": correct / answered if answered else None,
        "coverage": answered / labelled if labelled else None,
        "true_recall": correct / labelled if labelled else None,
        "macro_f1": float(f1.mean()) if labelled else None,
    }


def _averages(outcomes: Mapping[str, Outcomes]) -> dict[str, float | None]:
    each = [_of_attribute(o) for o in outcomes.values()]
    means: dict[str, float | None] = {}
    for name in AVERAGES:
        defined = [value for row in each if (value := row[name]) is not None]
        means[name] = sum(defined) / len(defined) if defined else None
    return means


def mean_recall(outcomes: Mapping[str, Outcomes]) -> dict[str, float | None]:
    """Correct / labelled, the mean over attributes, as a metric of `statistics`."""
    each = []
    for o in outcomes.values():
        kept = o.truth != o.na
        if labelled := int(np.count_nonzero(kept)):
            each.append(np.count_nonzero(kept & (o.truth == o.voted)) / labelled)
    return {"true_recall": sum(each) / len(each) if each else None}
