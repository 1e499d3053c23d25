"""Batches in the trace store: what was handed over, under which id, and which answers are still to come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from cp_agents.stores.traces import TraceStore, now

SUBMITTING = "submitting"
"""Being handed over: perhaps the endpoint has it already."""
WRITTEN = "written"
"""A file of requests; nobody waits for it."""
LOST = "lost"
"""The endpoint does not know it any more."""
FAILED = "failed"
"""The endpoint's word for a batch that it did not take."""


class BatchRequest(NamedTuple):
    """One request of a batch: the samples `first`..`first + samples - 1` of a record."""

    custom_id: str
    record_id: int
    first: int
    samples: int

    @property
    def indices(self) -> range:
        """The sample indices."""
        return range(self.first, self.first + self.samples)


class BatchRow(NamedTuple):
    """A stored batch."""

    key: str
    batch_id: str | None
    status: str
    requests: int
    created_at: str


def put_batch(
    store: TraceStore,
    run_id: str,
    key: str,
    requests: Iterable[BatchRequest],
    *,
    status: str = SUBMITTING,
    language: str | None = None,
) -> None:
    """Note a batch and what it asks for, before it is handed over."""
    rows = [(r.custom_id, key, r.record_id, r.first, r.samples) for r in requests]
    with store.transaction() as conn:
        conn.execute(
            "insert into batches (batch_key, run_id, status, requests, language, created_at)"
            " values (?, ?, ?, ?, ?, ?)",
            (key, run_id, status, len(rows), language, now()),
        )
        conn.executemany("insert into batch_requests values (?, ?, ?, ?, ?)", rows)


def note_batch(store: TraceStore, key: str, batch_id: str | None, status: str) -> None:
    """Note what the endpoint says of a batch that is waited for."""
    with store.transaction() as conn:
        conn.execute(
            "update batches set batch_id = coalesce(?, batch_id), status = ? where batch_key = ?",
            (batch_id, status, key),
        )


def close_batch(store: TraceStore, key: str, status: str) -> None:
    """Nobody waits for the batch any more: its results are stored, or it will have none."""
    with store.transaction() as conn:
        conn.execute("update batches set status = ?, closed_at = ? where batch_key = ?", (status, now(), key))
        conn.execute("delete from batch_requests where batch_key = ?", (key,))


def drop_batch(store: TraceStore, key: str) -> None:
    """Forget a batch that never reached the endpoint."""
    with store.transaction() as conn:
        conn.execute("delete from batch_requests where batch_key = ?", (key,))
        conn.execute("delete from batches where batch_key = ?", (key,))


def open_batches(store: TraceStore, run_id: str) -> list[BatchRow]:
    """A run's batches that are waited for, oldest first; files are not."""
    found = store.rows(
        "select batch_key, batch_id, status, requests, created_at from batches where run_id = ?"
        " and closed_at is null and status <> ? order by rowid",
        (run_id, WRITTEN),
    )
    return [BatchRow(*row) for row in found]


def requests_of(store: TraceStore, key: str) -> dict[str, BatchRequest]:
    """What a batch asks for, by custom id. Requests of users who were forgotten meanwhile are gone."""
    found = store.rows(
        "select custom_id, record_id, first_index, samples from batch_requests where batch_key = ?", (key,)
    )
    return {row[0]: BatchRequest(*row) for row in found}


def awaited(store: TraceStore, run_id: str) -> dict[int, list[BatchRequest]]:
    """All requests of a run's open batches, by record."""
    waiting: dict[int, list[BatchRequest]] = {}
    for batch in open_batches(store, run_id):
        for request in requests_of(store, batch.key).values():
            waiting.setdefault(request.record_id, []).append(request)
    return waiting


def written_run(store: TraceStore, custom_ids: Iterable[str]) -> dict[str, Any] | None:
    """The newest written batch that asks one of `custom_ids`: its `batch_key`, `run_id` and `language`."""
    for custom_id in custom_ids:
        found = store.query(
            "select b.batch_key, b.run_id, b.language from batch_requests r join batches b using (batch_key)"
            " where r.custom_id = ? and b.status = ? order by b.rowid desc limit 1",
            (custom_id, WRITTEN),
        )
        if found:
            return found[0]
    return None


def written_requests(store: TraceStore, run_id: str) -> dict[str, BatchRequest]:
    """What all written batches of a run ask for, by custom id; also what has been answered since."""
    found = store.rows(
        "select r.custom_id, r.record_id, r.first_index, r.samples from batch_requests r"
        " join batches b using (batch_key) where b.run_id = ? and b.status = ?",
        (run_id, WRITTEN),
    )
    return {row[0]: BatchRequest(*row) for row in found}


def all_batches(store: TraceStore) -> list[dict[str, Any]]:
    """Every batch with its run, newest first."""
    return store.query(
        "select run_id as run, coalesce(batch_id, '') as batch, requests, status, created_at as submitted,"
        " coalesce(closed_at, '') as closed from batches order by rowid desc"
    )
