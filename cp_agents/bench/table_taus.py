"""Table 7: every attribute at every tau."""

from __future__ import annotations

from collections.abc import Mapping

from cp_agents.bench.paper import estimate, paper
from cp_agents.bench.results import Cell, Estimate, Grid, Row
from cp_agents.bench.tables import Result, Source, cells, notes_of, tests_grid, versus
from cp_agents.evaluation.outcomes import Outcomes
from cp_agents.evaluation.profile_sums import AVERAGE, ProfileMetrics, parts
from cp_agents.evaluation.statistics import Interval
from cp_agents.schema import CONFIDENCE_LEVELS

_KEYS = ("selective_accuracy", "coverage", "paper_f1")
_PAPER = {"sft": "SFT", "sft_rl": "SFT+RL"}


def table_taus(source: Source) -> Result:
    """Per attribute and tau the paper's three numbers, ours and the paper's; and how the averages move with tau."""
    voted = source.voted()
    named = {f"run {source.run.run_id}": voted} | {f"student {n}": o for n, o in source.students.items()}
    grids = [_grid(source, name, o) for name, o in named.items()]
    rising = []
    metrics = ProfileMetrics(voted)
    first, *others = CONFIDENCE_LEVELS
    for tau in others:
        found = source.draws.differences(metrics, parts(voted, tau), parts(voted, first))
        rising.append(Row(label=f"tau {tau} - tau {first}", cells=cells(found)))
    for name, said in source.students.items():
        rising += [
            versus(source, f"tau {tau}, student {name} - run", said, voted, tau) for tau in CONFIDENCE_LEVELS
        ]
    grids.append(tests_grid("means over the attributes, paired tests", rising))
    return Result(
        name="table 7",
        run=source.run.run_id,
        users=len(source.gold),
        grids=grids,
        notes=notes_of(
            source,
            "P: selective accuracy = correct / answered, R: coverage = answered / labelled, F1: their harmonic mean."
            " The paper's average F1 here is the mean of the F1s; its tables 2 and 4 have the F1 of the means",
            students="students after SFT and after SFT and RL",
        ),
    )


def at_every_tau(source: Source, said: Mapping[str, Outcomes]) -> list[dict[str, Interval]]:
    """The metrics at tau 1 to 5 with intervals."""
    return [source.draws.intervals(ProfileMetrics(said), parts(said, tau)) for tau in CONFIDENCE_LEVELS]


def _grid(source: Source, title: str, said: Mapping[str, Outcomes]) -> Grid:
    known = paper()["table_7"]
    found = at_every_tau(source, said)
    rows = []
    for name in said:
        for i, tau in enumerate(CONFIDENCE_LEVELS):
            ours: list[Cell] = [Estimate.of(found[i][f"{name}.{key}"]) for key in _KEYS]
            rows.append(Row(label=f"{name}, tau {tau}", cells=[*ours, *_theirs(known, name, i)]))
    for i, tau in enumerate(CONFIDENCE_LEVELS):
        numbers = found[i]
        ours = [Estimate.of(numbers[f"{AVERAGE}.{key}"]) for key in ("selective_accuracy", "coverage")]
        mean = Estimate.of(numbers[f"{AVERAGE}.paper_f1_mean"])
        rows.append(Row(label=f"average, tau {tau}", cells=[*ours, mean, *_theirs(known, AVERAGE, i)]))
    for i, tau in enumerate(CONFIDENCE_LEVELS):
        of_means = Estimate.of(found[i][f"{AVERAGE}.paper_f1_of_means"])
        theirs: list[Cell] = []
        for stage in _PAPER:
            p, r = (known[stage][AVERAGE][key][i] for key in ("precision", "recall"))
            theirs += [None, None, estimate(2 * p * r / (p + r))]
        rows.append(Row(label=f"F1 of the averages, tau {tau}", cells=[None, None, of_means, *theirs]))
    heads = [f"paper, {stage}: {key}" for stage in _PAPER.values() for key in ("P", "R", "F1")]
    return Grid(
        title=f"table 7: {title}", label="attribute", columns=["P", "R (coverage)", "F1", *heads], rows=rows
    )


def _theirs(known: Mapping[str, Mapping[str, Mapping[str, list[float]]]], name: str, i: int) -> list[Cell]:
    return [
        estimate(known[stage][name][key][i]) if name in known[stage] else None
        for stage in _PAPER
        for key in ("precision", "recall", "f1")
    ]
