"""The paper's figures from stored runs: precision against coverage, and levels before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.bench.paper import estimate, paper
from cp_agents.bench.results import Cell, Estimate, Grid, Row
from cp_agents.bench.stored import LevelArray, StoredRun, common_gold, outcomes
from cp_agents.bench.table_taus import at_every_tau
from cp_agents.bench.tables import Result, Source, notes_of
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.profile_sums import (
    AVERAGE,
    LevelMetrics,
    ProfileMetrics,
    evenness_numbers,
    level_parts,
    parts,
    users_of,
)
from cp_agents.evaluation.statistics import DRAWS
from cp_agents.evaluation.sums import Draws, FloatArray
from cp_agents.schema import CONFIDENCE_LEVELS

STEPS = 10
"""Of the histogram of S / M over 0..5."""


class Point(BaseModel):
    """One tau of a curve."""

    tau: int
    coverage: Estimate
    selective_accuracy: Estimate


class Curve(BaseModel):
    """Selective accuracy against coverage."""

    name: str
    points: list[Point]


class Bars(BaseModel):
    """A histogram: what each bar stands for, and its share."""

    name: str
    labels: list[str]
    shares: list[float]


class Panel(BaseModel):
    """One picture of a figure: curves or bars."""

    title: str
    curves: list[Curve] = []
    bars: list[Bars] = []


class Figure(Result):
    """The pictures of a figure, and the grids and notes below them."""

    panels: list[Panel]


def figure_curves(source: Source) -> Figure:
    """Figure 5 of the paper: a curve over tau 1 to 5 for the averages, and one for each attribute."""
    voted = source.voted()
    named = {"ours": voted} | {f"student {name}": said for name, said in source.students.items()}
    found = {name: at_every_tau(source, said) for name, said in named.items()}
    panels = []
    for attribute in (AVERAGE, *voted):
        curves = [
            Curve(
                name=name,
                points=[
                    Point(
                        tau=tau,
                        coverage=Estimate.of(at[f"{attribute}.coverage"]),
                        selective_accuracy=Estimate.of(at[f"{attribute}.selective_accuracy"]),
                    )
                    for tau, at in zip(CONFIDENCE_LEVELS, numbers, strict=True)
                ],
            )
            for name, numbers in found.items()
        ]
        panels.append(Panel(title=attribute, curves=[*curves, *_of_paper(attribute)]))
    first, last = CONFIDENCE_LEVELS[0], CONFIDENCE_LEVELS[-1]
    gaps = source.draws.differences(ProfileMetrics(voted), parts(voted, last), parts(voted, first))
    rows = []
    for attribute in (AVERAGE, *voted):
        cells: list[Cell] = []
        for key in ("selective_accuracy", "coverage"):
            cells += [Estimate.of(found["ours"][i][f"{attribute}.{key}"]) for i in (0, -1)]
            cells.append(Estimate.of(gaps[f"{attribute}.{key}"]))
        rows.append(Row(label=attribute, cells=cells))
    columns = [
        f"{key}, {at}"
        for key in ("selective_accuracy", "coverage")
        for at in (f"tau {first}", f"tau {last}", "difference")
    ]
    return Figure(
        name="figure 5",
        run=source.run.run_id,
        users=len(source.gold),
        panels=panels,
        grids=[
            Grid(
                title="does a higher tau give higher precision? paired tests",
                label="attribute",
                columns=columns,
                rows=rows,
            )
        ],
        notes=notes_of(
            source,
            "x: coverage (the paper's recall), y: selective accuracy (its precision); the figures of every tau: `bench"
            " table 7`",
            students="students after SFT and after SFT and RL",
        ),
    )


def figure_levels(
    run: StoredRun, number: int, gold: Gold | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Figure:
    """Figures 3 and 9: how S / M and the levels are spread, over the users whose vote is a tag.

    `number` says which attributes: those of the paper's figure; all where the taxonomy has none of them. With gold,
    also how often each level is right.
    """
    names = [name for name in paper()["figures"][number] if name in run.taxonomy]
    names = names or list(run.taxonomy.names)
    votes = run.votes()
    levels = {"uncalibrated": run.levels(votes, calibrated=False), "calibrated": run.levels(votes)}
    answered = run.answered(votes)
    mean = votes.score / run.ballots.asked
    drawn = Draws(len(run.users), draws=draws, seed=seed)
    panels, rows = [], []
    for name in names:
        k = run.taxonomy.names.index(name)
        here = answered[k]
        counts = {side: _one_hot(found[k], here) for side, found in levels.items()}
        panels.append(Panel(title=name, bars=[_histogram(mean[k][here]), *map(_level_bars, counts.items())]))
        for side, found in counts.items():
            spread = drawn.intervals(evenness_numbers, found)
            cells: list[Cell] = [int(here.sum())]
            cells += [Estimate(value=share) for share in _shares(found.sum(axis=0))]
            cells += [Estimate.of(spread[key]) for key in ("evenness", "largest")]
            rows.append(Row(label=f"{name}, {side}", cells=cells))
        gap = drawn.differences(evenness_numbers, counts["calibrated"], counts["uncalibrated"])
        nothing: list[Cell] = [None] * (1 + len(CONFIDENCE_LEVELS))
        ends: list[Cell] = [Estimate.of(gap[key]) for key in ("evenness", "largest")]
        rows.append(Row(label=f"{name}, difference", cells=nothing + ends))
    grids = [
        Grid(
            title=f"figure {number}: share of votes at each level, before and after calibration",
            label="attribute",
            columns=["votes", *(f"level {i}" for i in CONFIDENCE_LEVELS), "evenness", "largest"],
            rows=rows,
        )
    ]
    if gold is not None:
        grids.append(_right_by_level(run, gold, names, draws=draws, seed=seed))
    return Figure(
        name=f"figure {number}",
        run=run.run_id,
        users=len(run.users),
        panels=panels,
        grids=grids,
        notes=[
            f"{len(run.users):,} users of run {run.run_id} ({run.backend}), those whose vote is a tag; no gold is"
            " needed for the levels",
            "the paper's figures are pictures without numbers: before, gender gathers at the top and life stage at the"
            " bottom; after, its five intervals are about equal, which here would be 0.2 at each level",
            "S / M: mean confidence in the winner over all samples asked for; uncalibrated: S / M rounded; evenness:"
            " entropy over that of five equal levels. Ties of S go to one level, so few distinct sums cannot be even",
            "a resample is never more even than what it is drawn from, so the intervals of evenness and largest lie to"
            " one side of the value where that is near its end",
        ],
    )


def _one_hot(levels: LevelArray, rows: NDArray[np.bool_]) -> FloatArray:
    """What each user adds to the counts of the levels [U, 5]; nothing outside `rows` [U]."""
    return np.asarray((levels[:, None] == np.array(CONFIDENCE_LEVELS)) & rows[:, None], np.float64)


def _histogram(mean: FloatArray) -> Bars:
    """S / M in `STEPS` steps; a step holds its upper end."""
    step = np.clip(np.ceil(np.round(mean / 5 * STEPS, 6)) - 1, 0, STEPS - 1).astype(np.int64)
    return Bars(
        name="S / M",
        labels=[f"{5 * i / STEPS:g}-{5 * (i + 1) / STEPS:g}" for i in range(STEPS)],
        shares=_shares(np.bincount(step, minlength=STEPS)),
    )


def _level_bars(side: tuple[str, FloatArray]) -> Bars:
    name, counts = side
    return Bars(
        name=f"level, {name}",
        labels=[str(i) for i in CONFIDENCE_LEVELS],
        shares=_shares(counts.sum(axis=0)),
    )


def _right_by_level(run: StoredRun, gold: Gold, names: Sequence[str], *, draws: int, seed: int) -> Grid:
    shared = common_gold(gold, [run])
    votes = run.votes()
    cells: dict[str, list[Cell]] = {}
    for side, calibrated in (("uncalibrated", False), ("calibrated", True)):
        found = outcomes(run, shared, votes, run.levels(votes, calibrated=calibrated))
        drawn = Draws(len(users_of(found)), draws=draws, seed=seed)
        share = drawn.intervals(LevelMetrics(found), level_parts(found))
        for name in found:
            cells[f"{name}, {side}"] = [
                Estimate.of(share[f"{name}.right_at_{level}"]) for level in CONFIDENCE_LEVELS
            ]
    labels = [f"{name}, {side}" for name in names for side in ("uncalibrated", "calibrated")]
    return Grid(
        title=f"share of right answers at each level ({len(shared):,} users with gold)",
        label="attribute",
        columns=[f"level {i}" for i in CONFIDENCE_LEVELS],
        rows=[Row(label=label, cells=cells[label]) for label in labels if label in cells],
    )


def _of_paper(attribute: str) -> list[Curve]:
    known: Mapping[str, Mapping[str, Mapping[str, list[float]]]] = paper()["table_7"]
    return [
        Curve(
            name=f"paper, {stage.upper().replace('_', '+')}",
            points=[
                Point(tau=tau, coverage=estimate(r), selective_accuracy=estimate(p))
                for tau, p, r in zip(
                    CONFIDENCE_LEVELS,
                    numbers[attribute]["precision"],
                    numbers[attribute]["recall"],
                    strict=True,
                )
            ],
        )
        for stage, numbers in known.items()
        if attribute in numbers
    ]


def _shares(counts: NDArray[Any]) -> list[float]:
    whole = counts.sum()
    return [round(float(n / whole), 6) if whole else 0.0 for n in counts]
