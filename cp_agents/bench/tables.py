"""The paper's tables from stored runs: what they share, and where each is made.

A table takes the samples of one run, which stands for the teacher, beside gold; runs of students, where there are any,
come under names. No model is called. Ours and the paper's numbers stand in one grid, and the notes say what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from cp_agents.bench.paper import paper
from cp_agents.bench.results import Cell, Estimate, Grid, Row
from cp_agents.bench.stored import StoredRun, common_gold, load_run, outcomes
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import Outcomes, read_outcomes
from cp_agents.evaluation.profile_sums import AVERAGE, ProfileMetrics, parts, users_of
from cp_agents.evaluation.statistics import DRAWS, Difference, Interval
from cp_agents.evaluation.sums import Draws, FloatArray
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod

COLUMNS = {
    "selective_accuracy": "selective accuracy (P)",
    "coverage": "coverage (R)",
    "paper_f1_of_means": "F1 of means",
    "paper_f1_mean": "mean of F1s",
    "macro_f1": "macro_f1",
    "true_recall": "true_recall",
}
"""The averages that tables show, and their headings."""
BEST: list[Literal["high", "low"] | None] = ["high"] * len(COLUMNS)


class Result(BaseModel):
    """A table, or the numbers of a figure: grids and notes, in 0..1."""

    name: str
    run: str
    users: int
    """Users of the run with gold, over whom everything is counted."""
    grids: list[Grid]
    notes: list[str]


class Source(NamedTuple):
    """What a table is made from."""

    run: StoredRun
    gold: Gold
    """Of the users that the run and all students have."""
    students: dict[str, dict[str, Outcomes]]
    """What students' runs say, as they were calibrated, by the name that the user gave them."""
    draws: Draws

    def voted(self, method: VoteMethod | None = None, *, calibrated: bool = True) -> dict[str, Outcomes]:
        """The run's votes beside gold; by its own method by default."""
        votes = self.run.votes(method)
        return outcomes(self.run, self.gold, votes, self.run.levels(votes, calibrated=calibrated))


def load_source(
    store: TraceStore,
    run_id: str | None,
    gold: Gold,
    students: Mapping[str, str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Source:
    """A run, its gold, and students' runs `{name: run_id}` of the same store.

    Raises `StoreError` for a run that is not there, `InputError` for runs of other closed sets, without profiles or
    without a common user in gold.
    """
    run = load_run(store, run_id)
    shared = common_gold(gold, [run])
    profiles = {
        name: _profiles(store, name, student, run.taxonomy) for name, student in (students or {}).items()
    }
    for name, found in profiles.items():
        shared = {user: truth for user, truth in shared.items() if user in found}
        if not shared:
            raise InputError(f"student {name}, gold and run {run.run_id} have no user in common")
    said = {name: read_outcomes(found, shared, run.taxonomy) for name, found in profiles.items()}
    whole = read_outcomes({}, shared, run.taxonomy)
    if not any(found.labelled.any() for found in whole.values()):
        raise InputError(
            f"gold names no tag of taxonomy {run.taxonomy.name} for the users of run {run.run_id}"
        )
    return Source(run, shared, said, Draws(len(users_of(whole)), draws=draws, seed=seed))


def averages(
    source: Source, label: str, metrics: Callable[[FloatArray], Mapping[str, FloatArray]], added: FloatArray
) -> Row:
    """One row of averages over the attributes, with intervals."""
    return Row(label=label, cells=cells(source.draws.intervals(metrics, added)))


def versus(
    source: Source, label: str, a: Mapping[str, Outcomes], b: Mapping[str, Outcomes], tau: float
) -> Row:
    """One row of differences a - b of the averages at `tau`, each with interval and p."""
    found = source.draws.differences(ProfileMetrics(a), parts(a, tau), parts(b, tau))
    return Row(label=label, cells=cells(found))


def cells(found: Mapping[str, Interval] | Mapping[str, Difference], prefix: str = "average") -> list[Cell]:
    """The cells of `COLUMNS`."""
    return [Estimate.of(found[f"{prefix}.{key}"]) for key in COLUMNS]


def grid(title: str, rows: Sequence[Row], *, label: str = "method", best: bool = True) -> Grid:
    """A grid with `COLUMNS`."""
    return Grid(
        title=title,
        label=label,
        columns=list(COLUMNS.values()),
        rows=list(rows),
        best=list(BEST) if best else [],
    )


def tests_grid(title: str, rows: Sequence[Row]) -> Grid:
    """Differences with `COLUMNS`."""
    return grid(title, rows, label="difference", best=False)


def notes_of(source: Source, *more: str, students: str = "") -> list[str]:
    """What differs from the paper, in plain words; `students` says what the paper's numbers are of."""
    run, known = source.run, paper()
    labelled = read_outcomes({}, source.gold, run.taxonomy)
    counts = [int(o.labelled.sum()) for o in labelled.values()]
    least, most = min(counts), max(counts)
    labelled_users = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    notes = [
        f"data: {len(source.gold):,} users with gold, {labelled_users} of them labelled on an attribute; the paper's:"
        f" {known['data']}",
        f"teacher: {run.backend}, {run.settings.samples} samples a user; the paper's: {known['teacher']}, 10 samples",
    ]
    theirs = set(next(iter(known["table_1"].values()))) - {AVERAGE}
    if set(labelled) != theirs:
        notes.append(
            f"attributes: {', '.join(labelled)}; the paper's numbers are means over {', '.join(sorted(theirs))}"
        )
    if students:
        notes.append(
            f"ours are {'the votes and the students named' if source.students else 'the votes themselves'},"
            f" the paper's {students} (base model {known['base_model']})"
        )
    notes += more
    notes.append(
        "in brackets 95 % bootstrap intervals over users; p of a randomisation test that swaps two methods' answers"
        " per user"
    )
    return notes


def student_rows(source: Source, tau: float) -> list[Row]:
    """The students' averages at `tau`."""
    return [
        averages(source, f"student {name}", ProfileMetrics(said), parts(said, tau))
        for name, said in source.students.items()
    ]


def _profiles(
    store: TraceStore, name: str, run_id: str, taxonomy: Taxonomy
) -> dict[str, dict[str, dict[str, object]]]:
    row = store.run(run_id)
    theirs = Taxonomy.model_validate_json(row["taxonomy"])
    if [(a.name, set(a.names)) for a in theirs.attributes] != [
        (a.name, set(a.names)) for a in taxonomy.attributes
    ]:
        raise InputError(
            f"student {name}: run {run_id} has other attributes or tags than taxonomy {taxonomy.name}"
        )
    found = {p.user_id: p.to_json()["profile"] for _, p in store.profiles(row["run_id"])}
    if not found:
        raise InputError(
            f"student {name}: run {run_id} holds no profiles; profile its users to the end first"
        )
    return found
