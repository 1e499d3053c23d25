"""What a run took, and what went wrong in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cp_agents.errors import ErrorType
from cp_agents.evaluation.effort import pace
from cp_agents.report.model import CallStats, ErrorStats
from cp_agents.stores.stats import run_stats
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

_STEPS = 20
_FINEST_S = 1e-4  # the store keeps latencies to this: narrower steps would show its rounding


def calls_of(store: TraceStore, run_id: str) -> CallStats:
    """Samples, tokens, cost and time of the whole run, what was not finished included."""
    stats = next(row for row in run_stats(store) if row["run"] == run_id)
    [(reasoning, estimated)] = store.rows(
        "select coalesce(sum(s.reasoning_tokens), 0), coalesce(max(s.usage_estimated), 0)"
        " from samples s join records r using (record_id) where r.run_id = ?",
        (run_id,),
    )
    seconds = [
        row[0]
        for row in store.rows(
            "select s.latency_s from samples s join records r using (record_id)"
            " where r.run_id = ? and s.from_cache is null and s.error_type is null and s.latency_s > 0",
            (run_id,),
        )
    ]
    tokens = [row[0] for row in store.rows("select tokens from records where run_id = ?", (run_id,))]
    speed = pace(store, run_id)
    edges, counts = histogram(seconds)
    reused = stats["from_cache"] or 0
    return CallStats(
        samples=stats["samples"] - reused,
        reused=reused,
        failed=stats["failed"] or 0,
        prompt_tokens=stats["prompt_tokens"] or 0,
        cached_tokens=stats["cached_tokens"] or 0,
        completion_tokens=stats["completion_tokens"] or 0,
        reasoning_tokens=reasoning,
        tokens_estimated=bool(estimated),
        cost_usd=stats["cost_usd"],
        unpriced=stats["unpriced"] or 0,
        cost_per_record=stats["cost_per_record"],
        cost_per_answer=stats["cost_per_accepted"],
        wall_s=speed.wall_s,
        samples_per_s=speed.samples_per_s,
        pace_basis=speed.basis,
        latency_n=len(seconds),
        latency=_quantiles(seconds, (10, 50, 90, 99)),
        latency_edges=edges,
        latency_counts=counts,
        cue_tokens=_quantiles(tokens, (10, 50, 90)),
    )


def histogram(seconds: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges and counts of about twenty round steps from 0 to the 99th percentile; the last takes all above it."""
    if not seconds:
        return [], []
    values = np.asarray(seconds, np.float64)
    most = float(np.quantile(values, 0.99))
    step = max(_FINEST_S, _round_up(most / _STEPS))
    steps = max(1, math.ceil(round(most / step, 6)))
    of_step = np.clip(np.ceil(np.round(values / step, 6)).astype(int) - 1, 0, steps - 1)
    counts = np.bincount(of_step, minlength=steps)
    return [round(i * step, 6) for i in range(steps + 1)], [int(c) for c in counts]


def nice_top(value: float) -> float:
    """A round end of an axis for values of up to `value`."""
    return max(1.0, _round_up(value))


def _round_up(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `value`."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _quantiles(values: Sequence[float], percents: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, percents)
    return {f"p{p}": float(v) for p, v in zip(percents, found, strict=True)} | {"max": float(max(values))}


def errors_of(store: TraceStore, run_id: str, taxonomy: Taxonomy) -> ErrorStats:
    """Samples by outcome, answers by attribute and outcome, failed calls by type."""
    of_run = "from records r join samples s using (record_id)"
    outcomes = store.rows(
        f"select s.outcome, count(*) {of_run} where r.run_id = ? group by 1 order by 2 desc, 1", (run_id,)
    )
    answers: list[tuple[Any, ...]] = store.rows(
        f"select p.attribute, p.outcome, count(*) {of_run} join predictions p using (sample_id)"
        " where r.run_id = ? group by 1, 2",
        (run_id,),
    )
    failed = store.rows(
        f"select s.error_type, count(*) {of_run} where r.run_id = ? and s.error_type is not null"
        " group by 1 order by 2 desc, 1",
        (run_id,),
    )
    by_attribute: dict[str, dict[str, int]] = {name: {} for name in taxonomy.names}
    for attribute, outcome, count in answers:
        if attribute in by_attribute:
            by_attribute[attribute][outcome] = count
    return ErrorStats(
        outcomes=dict(outcomes),
        by_attribute=by_attribute,
        errors=[(kind, count, not ErrorType(kind).is_final) for kind, count in failed],
    )
