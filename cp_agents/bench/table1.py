"""Table 1: methods by attributes. From what methods said to numbers with intervals, and from those to grids."""

from __future__ import annotations

from typing import NamedTuple

from cp_agents.bench.paper import paper, paper_row
from cp_agents.bench.results import (
    BenchResults,
    Cell,
    DatasetResult,
    End,
    Estimate,
    Grid,
    MethodKind,
    MethodResult,
    Numbers,
    Row,
    estimates,
)
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import Outcomes, Profiles, read_outcomes
from cp_agents.evaluation.profile_sums import AVERAGE, AVERAGES, RATIOS, ProfileMetrics, parts, users_of
from cp_agents.evaluation.sums import Draws
from cp_agents.open_sets import refuse_open
from cp_agents.taxonomy import Taxonomy

METRICS = RATIOS
DEFAULT_METRIC = "macro_f1"


class Method(NamedTuple):
    """What one method said about the users of a data set."""

    name: str
    kind: MethodKind
    profiles: Profiles
    model: str = ""
    run: str | None = None
    samples: int | None = None


class Comparison:
    """All methods of one data set, resampled alike; the reference is given first."""

    def __init__(self, gold: Gold, taxonomy: Taxonomy, tau: float, draws: int, seed: int) -> None:
        refuse_open(taxonomy, "tables of methods")
        self._gold, self._taxonomy, self._tau = gold, taxonomy, tau
        self.blank = read_outcomes({}, gold, taxonomy)
        self._metrics = ProfileMetrics(self.blank)
        self._draws = Draws(len(users_of(self.blank)), draws=draws, seed=seed)
        self._reference: dict[str, Outcomes] | None = None

    def result(self, method: Method) -> MethodResult:
        """The method's numbers. Raises `InputError` for a tag outside the closed set."""
        outcomes = read_outcomes(method.profiles, self._gold, self._taxonomy)
        summed = parts(outcomes, self._tau)
        difference = None
        if self._reference is None:
            self._reference = outcomes
        else:
            gap = self._draws.differences(self._metrics, summed, parts(self._reference, self._tau))
            macro = {name: value for name, value in gap.items() if name.endswith(f".{DEFAULT_METRIC}")}
            difference = {
                name.removesuffix(f".{DEFAULT_METRIC}"): value for name, value in estimates(macro).items()
            }
        return MethodResult(
            name=method.name,
            kind=method.kind,
            model=method.model,
            run=method.run,
            samples=method.samples,
            unanswered=sum(user not in method.profiles for user in self._gold),
            numbers=_nested(estimates(self._draws.intervals(self._metrics, summed))),
            difference=difference,
        )


def _nested(flat: dict[str, Estimate]) -> Numbers:
    numbers: Numbers = {}
    for name, value in flat.items():
        attribute, _, metric = name.rpartition(".")
        numbers.setdefault(attribute, {})[metric] = value
    return numbers


def metric_grid(found: DatasetResult, metric: str) -> Grid:
    """Methods by attributes in one metric with intervals, the average at the end. `metric` is one of `METRICS`."""
    averages = ("paper_f1_mean", "paper_f1_of_means") if metric == "paper_f1" else (metric,)
    heads = ("mean of F1s", "F1 of means") if metric == "paper_f1" else ("average",)
    rows = []
    for m in found.methods:
        cells: list[Cell] = [m.numbers[name][metric] for name in found.labelled]
        cells += [m.numbers[AVERAGE][name] for name in averages]
        rows.append(Row(label=m.name, cells=cells))
    columns = [f"{name} ({n})" for name, n in found.labelled.items()] + list(heads)
    return Grid(
        title=f"{found.name}: {metric} at tau {found.tau:g}, {found.users:,} users",
        columns=columns,
        rows=rows,
        best=["high"] * len(columns),
    )


def paper_grid(found: DatasetResult, *, intervals: bool = True) -> Grid:
    """`metric_grid` of the F1 that the paper's table 1 gives, and its own numbers under it."""
    grid = metric_grid(found, "paper_f1")
    rows = [
        row if intervals else row.model_copy(update={"cells": [_bare(cell) for cell in row.cells]})
        for row in grid.rows
    ]
    rows += paper_rows(found)
    notes = [
        "paper_f1 = harmonic mean of selective accuracy and coverage, which rewards answering always; the paper's"
        " average is the mean of F1s in its tables 1, 3 and 7 and the F1 of means in its tables 2 and 4",
    ]
    if len(rows) > len(grid.rows):
        known = paper()
        notes.append(
            f"the paper's numbers are of other data ({known['data']}), another teacher ({known['teacher']}) and"
            f" students of {known['base_model']}: they say how the methods lie to each other there, not what to"
            " expect here"
        )
    return grid.model_copy(update={"rows": rows, "notes": notes})


def paper_rows(found: DatasetResult) -> list[Row]:
    """The paper's table 1 in the columns of `paper_grid`; none where the attributes are others."""
    known: dict[str, dict[str, float]] = paper()["table_1"]
    attributes = set(next(iter(known.values()))) - {AVERAGE}
    if not set(found.labelled) <= attributes:
        return []
    # over fewer attributes the paper's averages would be other numbers
    averages = [AVERAGE, "of_means"] if set(found.labelled) == attributes else ["", ""]
    return [paper_row(label, numbers, [*found.labelled, *averages]) for label, numbers in known.items()]


def averages_grid(found: DatasetResult) -> Grid:
    """Methods by what their averages are made of, and how far each lies from the reference."""
    names = [name for name in AVERAGES if not name.startswith("paper")]
    rows = [
        Row(
            label=m.name,
            cells=[
                *(m.numbers[AVERAGE][name] for name in names),
                m.difference[AVERAGE] if m.difference else "=",
            ],
        )
        for m in found.methods
    ]
    tests = len(found.methods) - 1
    best: list[End] = ["high"] * len(names)
    return Grid(
        title=f"{found.name}: means over attributes at tau {found.tau:g}",
        columns=[*names, "macro_f1 less the reference's"],
        rows=rows,
        best=[*best, None],
        notes=[
            f"reference: {found.reference}; p of a paired randomisation test over users"
            + (f", each for itself ({tests} tests)" if tests > 1 else ""),
            "in brackets 95 % bootstrap intervals over users",
        ],
    )


def terminal_grids(found: DatasetResult, metric: str) -> list[Grid]:
    """What is printed: the chosen metric, the paper's F1 and the averages."""
    return [metric_grid(found, metric), paper_grid(found, intervals=False), averages_grid(found)]


def file_grids(found: DatasetResult) -> list[Grid]:
    """What results.md holds: every metric with intervals."""
    others = [metric for metric in METRICS if metric not in (DEFAULT_METRIC, "paper_f1")]
    return [
        metric_grid(found, DEFAULT_METRIC),
        averages_grid(found),
        paper_grid(found),
        *(metric_grid(found, metric) for metric in others),
    ]


def facts(results: BenchResults, found: DatasetResult) -> list[str]:
    """What a reader has to know of one data set's tables."""
    lines = [
        f"gold field {found.truth_field}, split {found.split}, data {found.data}, M={results.samples}",
        "(labels): has learned from gold",
    ]
    if any(method.kind == "trained" for method in found.methods):
        how = (
            f"cross-validated over {found.folds} folds by hash of the user id"
            if found.folds
            else "on the users of the other splits"
        )
        lines[1] += f"; trained models {how}"
    return lines + found.notes


def _bare(cell: Cell) -> Cell:
    return Estimate(value=cell.value) if isinstance(cell, Estimate) else cell
