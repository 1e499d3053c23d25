"""Table 2: ways to vote over the same samples."""

from __future__ import annotations

import numpy as np

from cp_agents.bench.paper import paper, paper_row
from cp_agents.bench.results import Row
from cp_agents.bench.stored import sample_outcomes
from cp_agents.bench.tables import (
    Result,
    Source,
    averages,
    grid,
    notes_of,
    student_rows,
    tests_grid,
    versus,
)
from cp_agents.bench.tables import cells as cells_of
from cp_agents.evaluation.profile_sums import MeanOverSamples, ProfileMetrics, parts
from cp_agents.voting import METHODS, VoteMethod

REFERENCES: tuple[VoteMethod, ...] = ("majority", "weighted")
_NAMES: dict[VoteMethod, str] = {
    "mean": "vote by mean confidence",
    "majority": "majority",
    "weighted": "weighted",
    "softmax": "softmax (temperature 1)",
    "dawid_skene": "Dawid-Skene",
}
_SINGLE = "single samples"


def table_votes(source: Source) -> Result:
    """Averages at tau 1 of each way to vote, and each against majority and weighted."""
    voted = {method: source.voted(method) for method in METHODS}
    metrics = ProfileMetrics(voted["weighted"])
    single = np.hstack([parts(o, 1) for o in sample_outcomes(source.run, source.gold)])
    over_samples = MeanOverSamples(metrics)
    rows = [averages(source, _SINGLE, over_samples, single)]
    rows += [averages(source, _NAMES[method], metrics, parts(o, 1)) for method, o in voted.items()]
    rows += student_rows(source, 1)
    printed = {"selective_accuracy": "precision", "coverage": "recall", "paper_f1_of_means": "f1"}
    for name, numbers in paper()["table_2"].items():
        label = {"mean": "Mean", "majority": "Majority-Voted", "weighted": "Confidence-Voted"}[name]
        rows.append(paper_row(label, numbers, [*printed.values(), "", "", ""]))
    samples = single.shape[1] // metrics.width
    tests = []
    for reference in REFERENCES:
        # the same vote once for each sample, so that both sides have the same columns
        repeated = np.tile(parts(voted[reference], 1), samples)
        found = source.draws.differences(over_samples, single, repeated)
        tests.append(Row(label=f"{_SINGLE} - {reference}", cells=cells_of(found)))
        tests += [
            versus(source, f"{_NAMES[method]} - {reference}", o, voted[reference], 1)
            for method, o in voted.items()
            if method != reference and (method not in REFERENCES or reference == "majority")
        ]
    students = list(source.students.items())
    tests += [
        versus(source, f"student {name} - student {students[0][0]}", said, students[0][1], 1)
        for name, said in students[1:]
    ]
    return Result(
        name="table 2",
        run=source.run.run_id,
        users=len(source.gold),
        grids=[
            grid("table 2: ways to vote, tau 1, means over the attributes", rows),
            tests_grid("paired tests", tests),
        ],
        notes=notes_of(
            source,
            'the paper does not say what its "Mean" is: it may be the mean of single samples\' metrics, or a vote by'
            " the mean confidence of a tag's samples; both are shown",
            "the paper's F1 of Mean and Confidence-Voted is that of the printed P and R; of Majority-Voted it is not"
            " (that would be .6719)",
            students="students trained by SFT on each vote",
        ),
    )
