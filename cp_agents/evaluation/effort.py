"""What a stored run took: tokens, money, time."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from pydantic import BaseModel

from cp_agents.stores.traces import TraceStore

PAUSE_S = 60
"""A run in which nothing landed for longer than this, and than twice its slowest call, was interrupted."""

_RECORDS = (
    " from samples s join records r using (record_id) where r.run_id = ? and exists (select 1 from records o"
    " join profiles p using (record_id) where o.run_id = ? and o.user_id = r.user_id)"
)


class Effort(BaseModel):
    """Of the samples that a run drew for the users that another run has too.

    Samples reused from an earlier run cost nothing and are in none of the numbers but `reused`.
    """

    samples: int
    """Calls made, failed ones included; n answers of one request count n."""
    reused: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    """The part of `prompt_tokens` that the endpoint read from its prefix cache."""
    completion_tokens: int
    reasoning_tokens: int
    tokens_estimated: bool
    """Whether any count is an estimate from the text's length."""
    cost_usd: float | None
    """None where no sample has a price; a lower bound where some have none (`unpriced`)."""
    unpriced: int
    """Answers that were drawn without a price."""
    cost_per_record: float | None
    cost_per_accepted: float | None
    """Per accepted attribute."""
    mean_latency_s: float | None
    """What an answer waited for, over answers of which it is known; answers of one request share its latency."""
    in_turn_per_s: float | None
    """1 / `mean_latency_s`: answers a second if they came one after the other."""


class Pace(NamedTuple):
    """How fast a whole run went by the clock."""

    wall_s: float | None
    samples_per_s: float | None
    basis: str
    """What the numbers are, or why there are none."""


def effort(store: TraceStore, run_id: str, other: str, users: int, accepted: int) -> Effort:
    """The effort of `run_id` for the users that `other` has a profile of: `users`, with `accepted` attributes."""
    [row] = store.query(
        "select coalesce(sum(s.from_cache is null), 0) as samples, coalesce(sum(s.from_cache is not null), 0)"
        " as reused, coalesce(sum(s.error_type is not null), 0) as failed,"
        " coalesce(sum(s.prompt_tokens), 0) as prompt_tokens, coalesce(sum(s.cached_tokens), 0) as cached_tokens,"
        " coalesce(sum(s.completion_tokens), 0) as completion_tokens,"
        " coalesce(sum(s.reasoning_tokens), 0) as reasoning_tokens,"
        " coalesce(max(s.usage_estimated), 0) as tokens_estimated,"
        " sum(case when s.from_cache is null then s.cost_usd end) as cost_usd,"
        " coalesce(sum(s.from_cache is null and s.error_type is null and s.cost_usd is null), 0) as unpriced,"
        " avg(case when s.from_cache is null and s.error_type is null and s.latency_s > 0 then s.latency_s end)"
        f" as mean_latency_s{_RECORDS}",
        (run_id, other),
    )
    cost, latency = row["cost_usd"], row["mean_latency_s"]
    return Effort(
        **row,
        cost_per_record=None if cost is None else cost / users,
        cost_per_accepted=None if cost is None or not accepted else cost / accepted,
        in_turn_per_s=1 / latency if latency else None,
    )


def pace(store: TraceStore, run_id: str) -> Pace:
    """Samples a second of the whole run, from its start to its last sample, where that is honest to say.

    A run may have been stopped and gone on later: then there is no such number. Neither is there for a short run
    in an older store, whose stamps are whole seconds.
    """
    started = str(store.run(run_id)["created_at"])
    landed = store.rows(
        "select s.created_at, count(*), max(s.latency_s) from samples s join records r using (record_id)"
        " where r.run_id = ? and s.from_cache is null group by 1 order by 1",
        (run_id,),
    )
    if not landed:
        return Pace(None, None, "unknown: no sample was drawn, all were reused")
    stamps = [datetime.fromisoformat(stamp) for stamp in (started, *(row[0] for row in landed))]
    wall = (stamps[-1] - stamps[0]).total_seconds()
    coarse = not any(stamp.microsecond for stamp in stamps)
    drawn = sum(row[1] for row in landed)
    if store.rows("select 1 from batches where run_id = ? limit 1", (run_id,)):
        basis = f"{drawn:,} samples, and the waiting for provider batches with them"
        return Pace(wall, drawn / wall if wall else None, basis)
    pause = max((after - before).total_seconds() for before, after in pairwise(stamps))
    if pause > max(PAUSE_S, 2 * max(row[2] or 0.0 for row in landed)):
        return Pace(wall, None, f"unknown: nothing landed for {pause:,.0f} s, so the run was interrupted")
    if coarse and wall < 2:
        return Pace(wall, None, "unknown: over in less than 2 s, and the store's stamps are whole seconds")
    basis = f"{drawn:,} samples from the run's start to its last sample{', ± 1 s' if coarse else ''}"
    return Pace(wall, drawn / wall if wall else None, basis)
