"""What benchmarks find, as plain data: numbers with their intervals, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cp_agents.evaluation.statistics import Difference, Interval


class Estimate(BaseModel):
    """A number, its interval where there is one, and for a difference the p of its paired test.

    None where undefined, so that the JSON holds no NaN.
    """

    model_config = ConfigDict(frozen=True)

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @classmethod
    def of(cls, found: Interval | Difference | float | None) -> Estimate:
        """From what `cp_agents.evaluation.statistics` gives, or from a bare number."""
        if found is None or isinstance(found, int | float):
            return cls(value=_defined(found))
        return cls(
            value=_defined(found.value),
            low=_defined(found.low),
            high=_defined(found.high),
            p=_defined(found.p) if isinstance(found, Difference) else None,
        )


Cell = Estimate | str | int | None
"""What may stand in a table: a number with its interval, a count, a word; None for nothing."""


End = Literal["high", "low"] | None
"""Which end of a column is the better one; None where none is."""


class Row(BaseModel):
    """One line of a table."""

    label: str
    cells: list[Cell]
    """One for each column."""
    ranked: bool = True
    """Whether it takes part in the search for the best of a column; the paper's own numbers do not."""


class Grid(BaseModel):
    """A table: rows by columns, with what a reader has to know of it."""

    title: str
    label: str = "method"
    """Heading of the rows' labels."""
    columns: list[str]
    rows: list[Row]
    best: list[End] = Field(default_factory=list)
    """Of each column, to be shown in bold; empty for none."""
    notes: list[str] = Field(default_factory=list)

    def best_rows(self) -> list[set[int]]:
        """For each column the rows that hold its best number, ties included; none where all are equal."""
        return [
            _best([row.cells[i] if row.ranked else None for row in self.rows], end)
            for i, end in enumerate(self.best or [None] * len(self.columns))
        ]


def estimates(found: Mapping[str, Interval] | Mapping[str, Difference]) -> dict[str, Estimate]:
    """Every number of a dict of intervals or differences as an `Estimate`."""
    return {name: Estimate.of(value) for name, value in found.items()}


def _best(cells: Sequence[Cell], end: End) -> set[int]:
    numbers = {
        i: value
        for i, cell in enumerate(cells)
        if (value := cell.value if isinstance(cell, Estimate) else cell) is not None
        and not isinstance(value, str)
    }
    if end is None or len(set(numbers.values())) < 2:
        return set()
    top = max(numbers.values()) if end == "high" else min(numbers.values())
    return {i for i, value in numbers.items() if value == top}


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


Numbers = dict[str, dict[str, Estimate]]
"""By attribute, and `average`: numbers by name, as in `cp_agents.evaluation.profile_sums`."""

MethodKind = Literal["constant", "trained", "recorded", "one_sample", "majority", "backend"]


class MethodResult(BaseModel):
    """What one method reached on one data set."""

    name: str
    kind: MethodKind
    model: str = ""
    """Which model answered, as the run has it; of a method without a run empty."""
    run: str | None = None
    """The run in the store that lies beside the results."""
    samples: int | None = None
    """M, of a method that draws samples."""
    unanswered: int = 0
    """Users that the method has no profile of; they count as unanswered."""
    numbers: Numbers
    difference: dict[str, Estimate] | None = None
    """macro_f1 by attribute and their `average`, less that of the reference, with p; None for the reference itself."""


class DatasetResult(BaseModel):
    """One data set's table."""

    name: str
    licence: str = ""
    citation: str = ""
    data: str
    """16 hex digits over users.jsonl and gold.jsonl."""
    evaluated: str
    """16 hex digits over `data`, the truth's field, tau and the users: alike where numbers may stand side by side."""
    truth_field: str
    split: str
    tau: float
    folds: int
    """Of cross-validated baselines; 0 where they were trained on the other splits."""
    users: int
    """Evaluated users: those with a record and gold."""
    labelled: dict[str, int]
    """Of these, users whose gold is not NA, by attribute."""
    reference: str
    """The method that the others are compared with."""
    methods: list[MethodResult]
    notes: list[str] = Field(default_factory=list)


class BenchResults(BaseModel):
    """What `bench run` found. Written as results.json; the same for the same data, samples and version."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    version: str
    """Of cp-agents."""
    taxonomy: str
    backends: list[str]
    samples: int
    seed: int
    draws: int
    """Bootstrap resamples behind each 95 % interval."""
    datasets: list[DatasetResult]
