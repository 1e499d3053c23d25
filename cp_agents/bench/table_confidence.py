"""Table 5: every sample judged by its own confidence, against the vote judged by its calibrated frozen one."""

from __future__ import annotations

import numpy as np

from cp_agents.bench.paper import paper, paper_row
from cp_agents.bench.results import Row
from cp_agents.bench.stored import sample_outcomes
from cp_agents.bench.tables import (
    Result,
    Source,
    averages,
    cells,
    grid,
    notes_of,
    tests_grid,
    versus,
)
from cp_agents.evaluation.profile_sums import ProfileMetrics, parts
from cp_agents.schema import CONFIDENCE_LEVELS


def table_confidence(source: Source) -> Result:
    """Averages at every tau, by self-stated and by frozen confidence."""
    frozen = source.voted()
    metrics = ProfileMetrics(frozen)
    samples = sample_outcomes(source.run, source.gold)
    # pooled: every sample of a user counts for 1 / M of an answer
    own = {tau: np.mean([parts(o, tau) for o in samples], axis=0) for tau in CONFIDENCE_LEVELS}
    rows = [averages(source, f"self, tau {tau}", metrics, own[tau]) for tau in CONFIDENCE_LEVELS]
    rows += [averages(source, f"frozen, tau {tau}", metrics, parts(frozen, tau)) for tau in CONFIDENCE_LEVELS]
    rows += [
        averages(source, f"student {name}, tau {tau}", ProfileMetrics(said), parts(said, tau))
        for name, said in source.students.items()
        for tau in CONFIDENCE_LEVELS
    ]
    for name, numbers in paper()["table_5"].items():
        for i, tau in enumerate(CONFIDENCE_LEVELS):
            at = {key: values[i] for key, values in numbers.items()}
            rows.append(paper_row(f"{name}, tau {tau}", at, ["precision", "recall", "", "", "", ""]))
    first, last = CONFIDENCE_LEVELS[0], CONFIDENCE_LEVELS[-1]
    difference = source.draws.differences
    tests = [
        Row(label=f"tau {tau}, frozen - self", cells=cells(difference(metrics, parts(frozen, tau), own[tau])))
        for tau in CONFIDENCE_LEVELS
    ]
    tests.append(
        Row(label=f"self, tau {last} - tau {first}", cells=cells(difference(metrics, own[last], own[first])))
    )
    moved = difference(metrics, parts(frozen, last), parts(frozen, first))
    tests.append(Row(label=f"frozen, tau {last} - tau {first}", cells=cells(moved)))
    if {"self", "frozen"} <= set(source.students):
        a, b = source.students["frozen"], source.students["self"]
        tests += [versus(source, f"tau {tau}, student frozen - self", a, b, tau) for tau in CONFIDENCE_LEVELS]
    return Result(
        name="table 5",
        run=source.run.run_id,
        users=len(source.gold),
        grids=[
            grid(
                "table 5: self-stated against frozen confidence, means over the attributes", rows, best=False
            ),
            tests_grid("paired tests", tests),
        ],
        notes=notes_of(
            source,
            "self: every single sample judged by the confidence that it stated (capped where its evidence stands"
            " nowhere in the record), all samples pooled; frozen: the vote judged by its calibrated level",
            "not measured from traces: whether a student inflates its confidence when it is rewarded by it; give"
            " students as --student self=RUN --student frozen=RUN",
            students="students after RL, rewarded by their own or by a frozen confidence",
        ),
    )
