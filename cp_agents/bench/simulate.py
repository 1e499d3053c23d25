"""When does the weighted vote beat the majority, and when does it hurt? Over simulated samplers of known skill."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from cp_agents.bench.results import Cell, Estimate, Grid, Row
from cp_agents.bench.stored import StoredRun, outcomes
from cp_agents.evaluation.outcomes import Outcomes
from cp_agents.evaluation.profile_sums import ProfileMetrics, parts
from cp_agents.evaluation.simulator import STATED, Sampler, Simulation, simulate, simulated_taxonomy
from cp_agents.evaluation.statistics import DRAWS, Difference
from cp_agents.evaluation.sums import Draws
from cp_agents.settings import ProfileSettings
from cp_agents.voting import VoteMethod

JUDGED = "true_recall"
"""What a verdict goes by: the share of all users who get the right tag. It cannot be had by answering less."""
_KEYS = ("selective_accuracy", "coverage", JUDGED)
_COMPARED: tuple[VoteMethod, ...] = ("majority", "weighted")
BETTER, WORSE, EQUAL = "weighted better", "weighted worse", "no difference"


def as_run(simulation: Simulation) -> StoredRun:
    """The simulated samples as a run, for whatever takes a stored one."""
    samples = simulation.ballots.tags.shape[2]
    settings = ProfileSettings(samples=samples, min_survivors=1)
    return StoredRun(
        "simulated", "simulator", simulation.taxonomy, settings, simulation.users, simulation.ballots
    )


def compare_votes(
    simulation: Simulation, *, draws: int = DRAWS, seed: int = 0
) -> tuple[dict[VoteMethod, dict[str, float]], dict[str, Difference]]:
    """The averages of `majority` and `weighted` at tau 1, and weighted less majority with intervals and p."""
    run = as_run(simulation)
    said: dict[VoteMethod, dict[str, Outcomes]] = {}
    for method in _COMPARED:
        votes = run.votes(method)
        said[method] = outcomes(run, simulation.gold, votes, run.levels(votes))
    metrics = ProfileMetrics(said["weighted"])
    added = {method: parts(o, 1) for method, o in said.items()}
    drawn = Draws(len(simulation.users), draws=draws, seed=seed)
    whole = {method: metrics(a.sum(axis=0, keepdims=True)) for method, a in added.items()}
    numbers = {method: {k: float(found[f"average.{k}"][0]) for k in _KEYS} for method, found in whole.items()}
    gaps = drawn.differences(metrics, added["weighted"], added["majority"])
    return numbers, {key: gaps[f"average.{key}"] for key in _KEYS}


def verdict(gap: Difference) -> str:
    """Whether the interval of the difference excludes 0, and on which side it lies."""
    return BETTER if gap.low > 0 else WORSE if gap.high < 0 else EQUAL


def simulation_grid(
    base: Sampler,
    *,
    skills: Sequence[float] = (0.4, 0.6, 0.8),
    samples: Sequence[int] = (10,),
    correlations: Sequence[float] = (0.2,),
    na_rates: Sequence[float] = (0.0, 0.3),
    overconfident: Sequence[str] = ("A",),
    pull: float = 0.6,
    tags: int = 5,
    users: int = 1000,
    draws: int = DRAWS,
    seed: int = 0,
) -> Grid:
    """Every kind of stated confidence, and a sampler overconfident on a tag, under every setting.

    The overconfident sampler states 3 on other tags, and `pull` of its wrong answers name the tag. Raises what
    `simulate` raises.
    """
    taxonomy = simulated_taxonomy(tags)
    kinds: dict[str, dict[str, object]] = {kind: {"stated": kind} for kind in STATED}
    if overconfident:
        share = pull / len(overconfident)
        kinds[f"sure of {' and '.join(overconfident)}"] = {
            "stated": "flat",
            "overconfident": tuple(overconfident),
            "pull": dict.fromkeys(overconfident, share),
        }
    rows = []
    for name, changed in kinds.items():
        for skill, m, correlation, na_rate in product(skills, samples, correlations, na_rates):
            update = {**changed, "skill": skill, "correlation": correlation, "na_rate": na_rate}
            sampler = Sampler.model_validate(base.model_dump() | update)
            simulation = simulate(sampler, users=users, samples=m, taxonomy=taxonomy, seed=seed)
            numbers, gaps = compare_votes(simulation, draws=draws, seed=seed)
            cells: list[Cell] = [
                f"{skill:g}",
                str(m),
                f"{correlation:g}",
                f"{na_rate:g}",
                Estimate.of(numbers["majority"][JUDGED]),
                Estimate.of(numbers["weighted"][JUDGED]),
                *(Estimate.of(gaps[key]) for key in (JUDGED, "selective_accuracy", "coverage")),
                verdict(gaps[JUDGED]),
            ]
            rows.append(Row(label=name, cells=cells))
    return Grid(
        title=f"weighted less majority, {users:,} simulated users, {tags} tags",
        label="confidence",
        columns=[
            "skill",
            "M",
            "correlation",
            "NA",
            "right by majority",
            "right by weighted",
            "difference",
            "selective accuracy",
            "coverage",
            "verdict",
        ],
        rows=rows,
        notes=notes(pull if overconfident else None),
    )


def notes(pull: float | None) -> list[str]:
    """How to read the grid."""
    found = [
        "right: share of all users who get the right tag; the verdict goes by it: better or worse where the 95 %"
        " bootstrap interval of the difference excludes 0",
        "informative: stated higher when right; flat: always 3; noisy: says nothing of being right; inverted: higher"
        " when wrong. NA: share of samples that say NA, with confidence 1 unless told otherwise",
    ]
    if pull is not None:
        found.append(
            f"sure of: names the tag always with 5 and others with 3, and {pull:.0%} of its wrong answers name it"
        )
    return found
