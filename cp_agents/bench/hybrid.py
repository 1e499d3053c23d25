"""The ablation of hybrid supervision: what k labels are worth, measured on the users that were not labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents import decide
from cp_agents.calibrate import gold_tags
from cp_agents.errors import InputError
from cp_agents.evaluation.metrics import average_metrics, threshold_metrics
from cp_agents.evaluation.outcomes import Outcomes
from cp_agents.evaluation.statistics import Interval
from cp_agents.open_sets import refuse_open
from cp_agents.relabel import load_ballots, stored_run
from cp_agents.schema import NA
from cp_agents.stores.traces import TraceStore
from cp_agents.tag_weights import check_tag_weights, learn_tag_weights
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod

KS = (0, 10, 25, 50, 100, 200)
METRICS = ("selective_accuracy", "coverage", "macro_f1")


class HybridRow(NamedTuple):
    """One number of labels: means over the draws of who is labelled, with the 2.5 and 97.5 percentiles of the draws."""

    k: int
    numbers: dict[str, Interval]
    """By metric, the mean over the attributes at tau 1."""
    gain: Interval
    """macro_f1 less that of the label-free vote on the same users."""


def hybrid_rows(
    store: TraceStore,
    run_id: str | None,
    gold: Mapping[str, Mapping[str, str]],
    *,
    ks: Sequence[int] | None = None,
    draws: int,
    seed: int = 0,
) -> list[HybridRow]:
    """A row per k: weights from k random users, the vote of the others against their gold, `draws` times over.

    The others are the same for every k of a draw: all but the largest k. `ks` are by default those of `KS` that leave
    half of the users. No model call.
    Raises `InputError` where the largest k leaves fewer users to test on than it takes, or gold names no tag.
    """
    run, taxonomy, settings = stored_run(store, run_id)
    refuse_open(taxonomy, "tag weights")
    check_tag_weights({name: {} for name in taxonomy.names}, taxonomy, settings.vote)
    records, ballots = load_ballots(store, run, taxonomy, settings.samples, settings.confidence)
    known = gold_tags(gold, records, taxonomy, run)
    heard = np.asarray((ballots.tags >= 0).any(axis=(0, 2)))  # a recording need not hold every user
    rows = np.array([i for i, record in enumerate(records) if record[0] in known and heard[i]], np.int64)
    ks = ks or [k for k in KS if 2 * k <= len(rows)]
    most = max(ks)
    if len(rows) < 2 * most:
        raise InputError(
            f"{most} labels would leave {max(0, len(rows) - most)} of the {len(rows)} users with gold and answers to"
            " test on: ask for fewer"
        )
    truth = np.full(ballots.tags.shape[:2], -1, np.int64)
    for row, record in enumerate(records):
        for name, tag in known.get(record[0], {}).items():
            truth[taxonomy.names.index(name), row] = taxonomy[name].codes[tag]
    na = np.array([attribute.codes[NA] for attribute in taxonomy.attributes])[:, None]
    if not ((truth >= 0) & (truth != na))[:, rows].any():
        raise InputError(
            f"gold names no tag of taxonomy {taxonomy.name} for the users of run {run} that have answers"
        )
    needed = max(1, min(settings.min_survivors, settings.samples))
    found: dict[int, list[dict[str, float]]] = {k: [] for k in ks}
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        order = rng.permutation(rows)
        rest = order[most:]
        free = _measure(_some(ballots, rest), truth[:, rest], taxonomy, settings.vote, needed)
        for k in ks:
            chosen = order[:k]
            some = _some(ballots, chosen)
            weights = learn_tag_weights(some.tags, some.confidence, truth[:, chosen], taxonomy) if k else {}
            weighed = decide.reweighed(_some(ballots, rest), taxonomy, weights)
            numbers = _measure(weighed, truth[:, rest], taxonomy, settings.vote, needed)
            found[k].append({**numbers, "gain": numbers["macro_f1"] - free["macro_f1"]})
    return [
        HybridRow(k, {name: _spread(each, name) for name in METRICS}, _spread(each, "gain"))
        for k, each in found.items()
    ]


def _some(ballots: decide.Ballots, rows: NDArray[np.int64]) -> decide.Ballots:
    return ballots.rows(rows)


def _measure(
    ballots: decide.Ballots, truth: NDArray[np.int64], taxonomy: Taxonomy, vote: VoteMethod, needed: int
) -> dict[str, float]:
    """The means over the attributes at tau 1; fewer than `needed` survivors give no answer, as in a profile."""
    votes = decide.count(ballots, taxonomy, vote)
    n = truth.shape[1]
    rows = []
    for k, attribute in enumerate(taxonomy.attributes):
        na = attribute.codes[NA]
        asked = truth[k] >= 0
        winner = np.where((votes.winner[k] >= 0) & (votes.survivors[k] >= needed), votes.winner[k], na)
        outcomes = Outcomes(
            attribute, (), np.where(asked, truth[k], na), winner, np.ones(n), np.ones(n, bool)
        )
        if outcomes.labelled.any():
            rows.append(threshold_metrics(outcomes, 1))
    average = average_metrics(1, rows)
    return {name: getattr(average, name) or 0.0 for name in METRICS}


def _spread(each: Sequence[Mapping[str, float]], name: str) -> Interval:
    values = np.array([row[name] for row in each])
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
