"""Table 3: what the difficulty shapes keep, and how good the votes on the kept users are."""

from __future__ import annotations

import numpy as np

from cp_agents.bench.paper import paper, paper_row
from cp_agents.bench.results import Cell, Estimate, Grid, Row
from cp_agents.bench.tables import (
    Result,
    Source,
    averages,
    cells,
    grid,
    notes_of,
    student_rows,
    tests_grid,
    versus,
)
from cp_agents.difficulty import SHAPES, LevelArray, Rule, choose, difficulty, histogram
from cp_agents.evaluation.metrics import harmonic_mean
from cp_agents.evaluation.profile_sums import ProfileMetrics, parts, users_of

_PAPER = {
    "original": "Original",
    "uniform": "Uniform",
    "v": "V-shape",
    "lambda": "Lambda-shape",
    "m": "M-shape",
}


def table_shapes(source: Source, *, rule: Rule = "mean", seed: int = 0, keep: int | None = None) -> Result:
    """For every shape the users that it keeps, and the averages at tau 1 over those with gold.

    The users' levels come from the calibrated votes by `rule`, see `cp_agents.difficulty`.
    """
    run, votes = source.run, source.run.votes()
    needed = max(1, min(run.settings.min_survivors, run.settings.samples))
    levels = np.where(votes.survivors >= needed, run.levels(votes), 0).T
    found = difficulty(levels, rule)
    voted = source.voted()
    metrics, added = ProfileMetrics(voted), parts(voted, 1)
    place = {user: i for i, user in enumerate(run.users)}
    with_gold = np.array([place[user] for user in users_of(voted)])
    shares: list[Row] = []
    rows: list[Row] = []
    tests: list[Row] = []
    for shape in SHAPES:
        kept = choose(run.users, found, shape, seed=seed, keep=keep)
        after, inside = histogram(found[kept]), kept[with_gold]
        counts: list[Cell] = [int(kept.sum()), int(inside.sum()), *map(int, after)]
        shares.append(Row(label=shape, cells=[*counts, _mean_level(after)]))
        rows.append(averages(source, f"{shape} ({int(inside.sum()):,})", metrics, added * inside[:, None]))
        if shape != "original":
            tests.append(
                Row(label=f"{shape} - original", cells=cells(source.draws.subset(metrics, added, inside)))
            )
    rows += student_rows(source, 1)
    printed = ["precision", "recall", "", "f1", "", ""]
    rows += [paper_row(_PAPER[name], numbers, printed) for name, numbers in paper()["table_3"].items()]
    grids = [
        Grid(
            title=f"table 3: users of the run by level, before ({len(run.users):,}) and in each shape",
            label="shape",
            columns=["kept", "with gold", *(f"level {i}" for i in range(1, 6)), "mean level"],
            rows=shares,
        ),
        grid("quality of the votes on the kept users, tau 1", rows, label="shape (users)"),
        tests_grid("kept users against all", tests),
    ]
    names = list(source.students)
    if len(names) > 1:
        first = "original" if "original" in names else names[0]
        against = [
            versus(
                source, f"student {name} - student {first}", source.students[name], source.students[first], 1
            )
            for name in names
            if name != first
        ]
        grids.append(tests_grid("students, paired", against))
    return Result(
        name="table 3",
        run=run.run_id,
        users=len(source.gold),
        grids=grids,
        notes=notes_of(
            source,
            f"a user's level: {rule} of the attributes' calibrated levels; the proportions of the shapes are ours,"
            " since the paper draws them as icons only",
            "not measured from traces: what a student learns from each shape; give its runs as --student SHAPE=RUN",
            "kept against all: p is the share of random subsets of as many users that lie as far from the whole",
            "the paper's text says that V has the highest recall, its table that Lambda has; its F1 here is the mean of"
            f" six F1s, of the printed P and R it would be, in the same order, {_of_means()}",
            students="students after SFT and RL on the kept users",
        ),
    )


def _of_means() -> str:
    each = [
        harmonic_mean(n["precision"] / 100, n["recall"] / 100) or 0.0 for n in paper()["table_3"].values()
    ]
    return " ".join(f"{f1:.4f}" for f1 in each)


def _mean_level(counts: LevelArray) -> Estimate:
    total = int(counts.sum())
    return Estimate(value=float((counts * np.arange(1, 6)).sum() / total) if total else None)
