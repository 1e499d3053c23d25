"""What a store holds: runs, tokens, cost, errors, sizes."""

from __future__ import annotations

from typing import Any, NamedTuple

from cp_agents.schema import NA
from cp_agents.stores.traces import TraceStore


class Sampling(NamedTuple):
    """How many samples the records of a run were asked for."""

    mean: float
    """A record."""
    stops: dict[str, int]
    """Records by why no more were drawn: the rule of adaptive sampling, or "all"."""


class TableSize(NamedTuple):
    """A table's rows, and the bytes of its pages with those of its indices."""

    table: str
    rows: int
    bytes: int


def run_stats(store: TraceStore) -> list[dict[str, Any]]:
    """One row a run. Tokens and cost are of calls made, not of answers reused; latency is of samples, in s.

    `accepted` counts the attributes that the profiles answer, people's answers included. `unpriced` answers were
    drawn without a price: where there are any, the costs are lower bounds. `asked_per_record` and `stops` are of runs
    with adaptive sampling, None elsewhere, see `sampling_of`.
    """
    found = store.query(
        """
        select u.run_id as run, u.backend, u.settings ->> 'adaptive' as adaptive, u.samples as most_samples,
               count(distinct r.record_id) as records, count(s.sample_id) as samples,
               sum(s.from_cache is not null) as from_cache,
               sum(s.error_type is not null) as failed,
               round(avg(s.latency_s), 3) as mean_latency_s,
               sum(s.prompt_tokens) as prompt_tokens, sum(s.cached_tokens) as cached_tokens,
               sum(s.completion_tokens) as completion_tokens, round(sum(s.cost_usd), 4) as cost_usd,
               round(sum(s.cost_usd) / count(distinct r.record_id), 6) as cost_per_record,
               sum(s.cost_usd) as exact_cost,
               sum(s.sample_id is not null and s.from_cache is null and s.error_type is null
                   and s.cost_usd is null) as unpriced
        from runs u left join records r using (run_id) left join samples s using (record_id)
        group by u.run_id order by u.rowid
        """
    )
    outcomes = store.rows(
        "select r.run_id, s.outcome, count(*) from samples s join records r using (record_id)"
        " group by 1, 2 order by 1, 2"
    )
    accepted = dict(
        store.rows(
            "select run_id, count(*) from profile_attributes"
            " where status = 'accepted' or (status = 'reviewed' and tag <> ?) group by run_id",
            (NA,),
        )
    )
    for run in found:
        run["accepted"] = number = accepted.get(run["run"], 0)
        cost = run.pop("exact_cost")
        run["cost_per_accepted"] = round(cost / number, 6) if cost is not None and number else None
        sampling = sampling_of(store, run["run"]) if run["adaptive"] else None
        run["asked_per_record"] = sampling.mean if sampling else None
        run["stops"] = ", ".join(f"{k} {n:,}" for k, n in sampling.stops.items()) if sampling else None
        run["outcomes"] = ", ".join(
            f"{name} {count:,}" for run_id, name, count in outcomes if run_id == run["run"]
        )
    return found


def sampling_of(store: TraceStore, run_id: str) -> Sampling | None:
    """How many samples a record of the run was asked for, over those with a profile; None where there is none."""
    found = store.rows(
        "select coalesce(r.stop_reason, 'all') as reason, count(*), sum(coalesce(r.asked, u.samples))"
        " from runs u join records r using (run_id) join profiles using (record_id) where u.run_id = ?"
        " group by reason order by reason",
        (run_id,),
    )
    if not found:
        return None
    records = sum(count for _, count, _ in found)
    stops = {reason: count for reason, count, _ in found}
    return Sampling(round(sum(asked for *_, asked in found) / records, 3), stops)


def table_sizes(store: TraceStore) -> list[TableSize]:
    """Rows and bytes of every table, largest first."""
    tables = [t for t in store.db.table_names() if not t.startswith(("sqlite_", "_"))]
    sizes = dict(
        store.rows(
            "select m.tbl_name, sum(d.pgsize) from dbstat d join sqlite_master m on m.name = d.name group by m.tbl_name"
        )
    )
    found = [TableSize(t, store.rows(f"select count(*) from {t}")[0][0], sizes.get(t, 0)) for t in tables]
    return sorted(found, key=lambda size: -size.bytes)
