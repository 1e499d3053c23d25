"""Many records through the graph: bounded concurrency, resume, drain, one relabelling at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from cp_agents import decide
from cp_agents.calibration import Calibrator
from cp_agents.confidence import NoProbabilitiesError
from cp_agents.errors import BackendError, CpAgentsError, ErrorType
from cp_agents.graph import Fanout, ProfileInput, ProfilingContext, compile_graph
from cp_agents.meter import Meter
from cp_agents.relabel import Decided, relabel
from cp_agents.schema import Profile, Status, UserRecord
from cp_agents.settings import assemble_for
from cp_agents.stores.endpoints import remember
from cp_agents.stores.held import held
from cp_agents.stores.reviews import requeue
from cp_agents.stores.stats import Sampling, sampling_of
from cp_agents.stores.traces import TraceStore, cues_hash
from cp_agents.voting import VoteMethod

log = logging.getLogger(__name__)

_DEAD_AFTER = 20  # failed samples, with no answer ever


@dataclass
class BatchReport:
    """What a batch run did."""

    run_id: str
    done: int = 0
    """Records with a profile, those of earlier attempts included."""
    resumed: int = 0
    """Of these, records that an earlier attempt had finished."""
    failed: dict[str, str] = field(default_factory=dict)
    """Records that could not be profiled at all: user id and why."""
    stopped: bool = False
    """Whether the run was asked to stop before the last record."""
    seconds: float = 0.0
    meter: Meter = field(default_factory=Meter)
    calibrator: Calibrator | None = None
    statuses: dict[str, int] = field(default_factory=dict)
    """Attributes by status, over all records."""
    sampling: Sampling | None = None
    """How many samples a record was asked for, where sampling was adaptive."""


class StoredRecord(NamedTuple):
    """A record that another run of the same store has; its cues are taken as they stand there."""

    record_id: int
    user_id: str
    cues_hash: str


def stored_records(
    store: TraceStore, run_id: str, users: Collection[str] | None = None
) -> list[StoredRecord]:
    """The records of a stored run in order of arrival, to be profiled again; only those of `users` if given."""
    found = store.rows(
        "select record_id, user_id, cues from records where run_id = ? order by record_id", (run_id,)
    )
    return [
        StoredRecord(record_id, user_id, cues_hash(cues))
        for record_id, user_id, cues in found
        if users is None or user_id in users
    ]


class Stop:
    """A request to drain: no new record is started, those in flight finish."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> None:
        self.requested = True


async def run_batch(
    ctx: ProfilingContext,
    records: Iterable[Mapping[str, Any] | StoredRecord],
    *,
    concurrency: int = 16,
    fanout: Fanout = "node",
    calibrator: Calibrator | Literal["fit"] | None = "fit",
    stop: Stop | None = None,
    on_record: Callable[[BatchReport], None] = lambda _: None,
) -> BatchReport:
    """Profile `records` and store the profiles.

    A record whose samples are all stored is not asked for again. Raises `BackendError` for an error that
    would fail every call, and `NoProbabilitiesError` where votes were to be weighed by what the backend turns out
    not to give; what had landed by then is kept. Raises `InputError` where another process works on the run. When
    all records are done and none was left out, the run's votes are calibrated and its profiles labelled again (see
    `relabel`).
    """
    ctx = replace(ctx, meter=Meter())  # counts this batch alone
    report = BatchReport(run_id=ctx.run_id, meter=ctx.meter)
    graph = compile_graph(ctx, fanout=fanout)
    stop = stop or Stop()
    fatal: list[CpAgentsError] = []
    finished = ctx.store.finished(ctx.run_id, ctx.settings.samples)
    started = time.monotonic()
    pending: Iterator[Mapping[str, Any] | StoredRecord] = iter(records)

    async def work() -> None:
        while not stop.requested and not fatal:
            raw = next(pending, None)
            if raw is None:
                return
            user_id, given = _graph_input(raw)
            try:
                if _is_finished(ctx, raw, finished):
                    report.resumed += 1
                else:
                    await graph.ainvoke(given, context=ctx)
                report.done += 1
            except BackendError as error:
                if error.error_type.is_fatal:
                    fatal.append(error)
                    return
                report.failed[user_id] = str(error)
            except NoProbabilitiesError as error:
                fatal.append(error)
                return
            except CpAgentsError as error:
                report.failed[user_id] = str(error)
            except Exception as error:
                # One record that nobody foresaw must not end the run for all the others.
                report.failed[user_id] = f"{type(error).__name__} while profiling this record"
            if (dead := _nobody_answers(report, ctx.settings.samples)) is not None:
                fatal.append(dead)
            report.seconds = time.monotonic() - started
            on_record(report)

    try:
        with held(ctx.store, ctx.run_id):
            await asyncio.gather(*(work() for _ in range(max(1, concurrency))))
    finally:
        report.seconds = time.monotonic() - started
        _remember(ctx)
    if fatal:
        raise fatal[0]
    report.stopped = stop.requested and next(pending, None) is not None
    if not report.stopped:
        report.calibrator = label_run(ctx, calibrator)
        report.statuses = statuses(ctx.store, ctx.run_id)
        report.sampling = sampling_of(ctx.store, ctx.run_id) if ctx.settings.adaptive else None
    return report


def _remember(ctx: ProfilingContext) -> None:
    """Keep what was found out of the endpoint. It only saves a later run a request, so it must not hide an error."""
    try:
        remember(ctx.store, ctx.backend)
    except Exception as error:
        log.warning("what was found out of the endpoint could not be kept (%s)", type(error).__name__)


def label_run(ctx: ProfilingContext, calibrator: Calibrator | Literal["fit"] | None) -> Calibrator | None:
    """Decide a finished run as a whole, store its profiles and queue what needs review."""
    decided, used = relabel(ctx.store, ctx.run_id, ctx.taxonomy, ctx.settings, calibrator)
    store_decided(ctx.store, ctx.settings.vote, decided)
    if used is not None:
        ctx.store.put_calibrator(used.id, used.kind, used.to_json(), ctx.run_id)
    ctx.store.finish_run(ctx.run_id, used.id if used else None)
    return used


def store_decided(store: TraceStore, vote: VoteMethod, decided: Iterable[Decided], batch: int = 500) -> None:
    """Store decided records in batches, and let the review queue follow."""
    iterator = iter(decided)
    while part := list(islice(iterator, batch)):
        store.put_profiles((d.record_id, decide.vote_rows(d.tallies, vote), d.profile) for d in part)
        requeue(store, {d.record_id: d.profile for d in part})


def _graph_input(raw: Mapping[str, Any] | StoredRecord) -> tuple[str, ProfileInput]:
    if isinstance(raw, StoredRecord):
        return raw.user_id, {"stored": raw.record_id}
    return str(raw.get("user_id")), {"record": dict(raw)}


def _nobody_answers(report: BatchReport, samples: int) -> BackendError | None:
    """After a few records without one answer the endpoint is taken for dead, rather than asked for hours."""
    meter = report.meter
    lost = sum(meter.errors[kind.value] for kind in (ErrorType.CONNECTION, ErrorType.TIMEOUT))
    if lost < max(_DEAD_AFTER, 2 * samples) or lost < meter.samples:
        return None
    return BackendError(
        f"none of {lost} samples got an answer (connection failed or timed out): is the endpoint up?"
        " What was asked for is asked for again by the same command",
        ErrorType.CONNECTION,
    )


def _is_finished(
    ctx: ProfilingContext, raw: Mapping[str, Any] | StoredRecord, finished: Mapping[str, str]
) -> bool:
    if isinstance(raw, StoredRecord):
        return finished.get(raw.user_id) == raw.cues_hash
    if raw.get("user_id") not in finished or ctx.settings.history == "select":
        return False  # of a selection only the graph knows what it chose; it finds that, and the samples, in the store
    record = UserRecord.from_dict(raw)
    cues = assemble_for(ctx.settings, record)
    return finished[record.user_id] == cues_hash(cues.text)


def statuses(store: TraceStore, run_id: str) -> dict[str, int]:
    """Attributes of a run's profiles by status."""
    found = dict.fromkeys((status.value for status in Status), 0)
    rows = store.rows(
        "select status, count(*) from profile_attributes where run_id = ? group by status", (run_id,)
    )
    return found | dict(rows)


def profiles_in_order(store: TraceStore, run_id: str, user_ids: Iterable[str]) -> Iterator[Profile]:
    """The run's profiles in the order of `user_ids`; users without one are left out."""
    profiles = {profile.user_id: profile for _, profile in store.profiles(run_id)}
    return (profiles[user_id] for user_id in user_ids if user_id in profiles)
