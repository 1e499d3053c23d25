"""Results of several `bench run`s side by side, data set by data set, and refused where the data is not the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from cp_agents.bench.results import BenchResults, DatasetResult, Grid, MethodResult
from cp_agents.bench.table1 import metric_grid
from cp_agents.errors import InputError, first_fault
from cp_agents.evaluation.profile_sums import AVERAGE
from cp_agents.files import read_text

RESULTS, TABLES = "results.json", "results.md"
"""What `bench run` writes into its folder."""


class Entry(NamedTuple):
    """The results in one folder."""

    name: str
    """The folder's, to tell equal methods apart."""
    results: BenchResults


def load_results(folder: str | Path) -> Entry:
    """The results in a folder of `bench run`, or in a results file. Raises `InputError` where there are none."""
    folder = Path(folder)
    path = folder / RESULTS if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"{folder} holds no {RESULTS}: `bench run --out {folder}` makes one")
    try:
        found = BenchResults.model_validate_json(read_text(path))
    except ValidationError as error:
        raise InputError(f"{path}: no results of `bench run` ({first_fault(error)})") from None
    return Entry((folder if folder.is_dir() else folder.parent).resolve().name, found)


def leaderboards(entries: Sequence[Entry], metric: str) -> list[Grid]:
    """One table a data set, best average first.

    A method that is in several results with the same numbers is shown once; where its numbers differ, the folder's
    name tells them apart. Raises `InputError` where a data set of the same name is not the same in all.
    """
    return [_leaderboard(found, metric) for found in _by_dataset(entries).values()]


def _by_dataset(entries: Sequence[Entry]) -> dict[str, list[tuple[str, DatasetResult]]]:
    found: dict[str, list[tuple[str, DatasetResult]]] = {}
    for entry in entries:
        for result in entry.results.datasets:
            found.setdefault(result.name, []).append((entry.name, result))
    for name, results in found.items():
        (first, one), *others = results
        for second, other in others:
            if why := _differ(one, other):
                raise InputError(f"{first} and {second} cannot stand side by side on {name}: {why}")
    return found


def _differ(a: DatasetResult, b: DatasetResult) -> str | None:
    """What keeps the numbers of two results apart; None where nothing does."""
    if a.data != b.data:
        return f"the data is not the same (users and gold {a.data} and {b.data})"
    if (a.truth_field, a.tau) != (b.truth_field, b.tau):
        return f"gold field {a.truth_field} at tau {a.tau:g}, and {b.truth_field} at tau {b.tau:g}"
    if a.evaluated != b.evaluated:
        return f"other users were evaluated ({a.users:,} of split {a.split}, {b.users:,} of split {b.split})"
    if a.labelled != b.labelled:
        return "the attributes are not the same"
    return None


def _leaderboard(results: Sequence[tuple[str, DatasetResult]], metric: str) -> Grid:
    methods: list[tuple[str, MethodResult]] = []
    for where, result in results:
        for method in result.methods:
            if not any(m.name == method.name and m.numbers == method.numbers for _, m in methods):
                methods.append((where, method))
    names = [m.name for _, m in methods]
    shown = [
        m.model_copy(update={"name": f"{m.name} ({where})"}) if names.count(m.name) > 1 else m
        for where, m in methods
    ]
    key = "paper_f1_mean" if metric == "paper_f1" else metric
    shown.sort(key=lambda m: -(m.numbers[AVERAGE][key].value or 0.0))
    first = results[0][1]
    grid = metric_grid(first.model_copy(update={"methods": shown}), metric)
    notes = [
        f"data {first.data}, gold field {first.truth_field}, split {first.split}; in brackets 95 % bootstrap"
        " intervals over users",
        "(labels): has learned from gold",
    ]
    return grid.model_copy(update={"notes": notes})
