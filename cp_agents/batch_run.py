"""A run by a provider's batch API: submit what is missing, wait, and land the results as live samples land.

A batch is noted in the store before it is handed over, with what it asks for, and its id as soon as there is one.
So a run that was killed at any moment goes on where it stopped: it asks for nothing that was submitted. In the one
gap, between the endpoint's taking a batch and our noting its id, the batch is found again by the key that was
sent along with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cp_agents import batch_requests, sampling
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.batch_api import MAX_BYTES, MAX_REQUESTS, BatchAPI, BatchState, ChatLines
from cp_agents.backends.chat import CallError
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.backends.usage import Prices
from cp_agents.calibration import Calibrator
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.graph import ProfilingContext
from cp_agents.runner import BatchReport, Stop, label_run, statuses
from cp_agents.stores import batches
from cp_agents.stores.batches import BatchRequest, BatchRow
from cp_agents.stores.held import held

_SLOWEST_POLL_S = 60.0
_PATIENCE_S = 3600.0
"""How long an endpoint may be out of reach while batches are awaited."""


async def run_by_batches(
    ctx: ProfilingContext,
    records: Iterable[Mapping[str, Any]],
    *,
    calibrator: Calibrator | Literal["fit"] | None = "fit",
    prices: Prices | None = None,
    batch_size: int = MAX_REQUESTS,
    stop: Stop | None = None,
    on_record: Callable[[BatchReport], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    poll_s: float = 2.0,
) -> BatchReport:
    """Profile `records` through the batch API of the endpoint that `ctx.backend` speaks to, an `openai:MODEL`.

    Like `run_batch`, with the same run: a run can be begun by the one and finished by the other. The first record
    that has samples missing is drawn live, so that a wrong key, a wrong model or a parameter that the endpoint
    does not take shows before anything waits for hours. All others go out in batches of at most `batch_size`
    requests, with n samples each where the endpoint honours n. `prices` are those of batched requests; without
    them the backend's own count. `poll_s` is the first wait between two looks, longer while nothing happens.

    `stop` ends the waiting; the batches go on at the endpoint, and the same call collects them later. Failed
    requests, and those that a batch left unanswered, are stored as typed failures; the same call asks for them
    again where that may help. Raises `InputError` for a backend without a batch API and for a run that another process
    works on, and `BackendError` for an
    error that would fail every request or a batch as a whole, after all results that there are have been stored.
    """
    if not isinstance(ctx.backend, OpenAIBackend):
        raise InputError(f"{ctx.backend.identity.sampler} has no batch API: expected an openai:MODEL backend")
    batch_requests.check_all_at_once(ctx)
    if not 1 <= batch_size <= MAX_REQUESTS:
        raise InputError(f"a batch should have 1 to {MAX_REQUESTS} requests, found {batch_size}")
    run = _Run(ctx, ctx.backend, prices, batch_size, stop or Stop(), say)
    report = run.report
    started = time.monotonic()
    try:
        with held(ctx.store, ctx.run_id):
            await run.adopt()
            run.enter(records)
            await run.probe()
            await run.submit()
            await run.wait(poll_s, lambda: on_record(report))
    finally:
        report.seconds = time.monotonic() - started
    if run.error is not None:
        raise run.error
    run.count_done()
    report.stopped = bool(batches.open_batches(ctx.store, ctx.run_id))
    if not report.stopped:
        report.calibrator = label_run(ctx, calibrator)
        report.statuses = statuses(ctx.store, ctx.run_id)
    return report


class _Part(NamedTuple):
    path: Path
    requests: list[BatchRequest]


class _Run:
    def __init__(
        self,
        ctx: ProfilingContext,
        backend: OpenAIBackend,
        prices: Prices | None,
        batch_size: int,
        stop: Stop,
        say: Callable[[str], None],
    ) -> None:
        self.ctx = ctx
        self.api = BatchAPI(backend)
        self.lines = ChatLines(backend, prices)
        self.batch_size = batch_size
        self.stop = stop
        self.say = say
        self.report = BatchReport(run_id=ctx.run_id, meter=ctx.meter)
        self.ids: list[int] = []
        self.unfinished: set[int] = set()
        """Records of which samples were missing or awaited at some time of this attempt."""
        self.error: BackendError | None = None
        """Of what would fail again. What the endpoint has is collected first."""
        self.refused: BackendError | None = None
        """A batch was not taken because there were too many: one may be taken when another is done."""

    async def adopt(self) -> None:
        """Find batches that an earlier attempt handed over and did not live to note."""
        for row in batches.open_batches(self.ctx.store, self.ctx.run_id):
            if row.batch_id is None:
                found = await self.api.find(row.key, datetime.fromisoformat(row.created_at).timestamp())
                if found is None:
                    batches.drop_batch(self.ctx.store, row.key)
                else:
                    batches.note_batch(self.ctx.store, row.key, found.batch_id, found.status)
                    self.say(f"{found.batch_id}: found again")

    def enter(self, records: Iterable[Mapping[str, Any]]) -> None:
        entered = batch_requests.enter_records(self.ctx, records)
        self.ids, self.report.failed = entered.ids, entered.failed
        self.unfinished.update(batches.awaited(self.ctx.store, self.ctx.run_id))

    def missing(self) -> Iterator[tuple[int, SampleRequest]]:
        awaited = batches.awaited(self.ctx.store, self.ctx.run_id)
        for record_id, request in batch_requests.missing_samples(self.ctx, self.ids, awaited):
            self.unfinished.add(record_id)
            yield record_id, request

    async def probe(self) -> None:
        """Draw the first incomplete record live: the backend learns what the endpoint takes."""
        first = next(self.missing(), None)
        if first is not None:
            record_id, request = first
            async for _ in sampling.draw(self.ctx, record_id, request.indices):
                pass

    async def submit(self) -> None:
        """Hand over all that is missing and not awaited."""
        with tempfile.TemporaryDirectory(prefix="cp-agents-") as folder:
            for part in self._parts(Path(folder)):
                await self._hand_over(part)
                if self.refused is not None:
                    return

    def _parts(self, folder: Path) -> Iterator[_Part]:
        """Input files within the limits; each is gone when the next is asked for."""
        n = self.ctx.backend.capabilities.n is True
        lines = batch_requests.request_lines(self.ctx, self.lines, self.missing(), n=n)
        following = next(lines, None)
        while following is not None:
            part, size = _Part(folder / "requests.jsonl", []), 0
            with part.path.open("wb") as file:
                while following is not None and len(part.requests) < self.batch_size:
                    request, line = following
                    if part.requests and size + len(line) > MAX_BYTES:
                        break
                    part.requests.append(request)
                    size += file.write(line)
                    following = next(lines, None)
            yield part

    async def _hand_over(self, part: _Part) -> None:
        store, key, since = self.ctx.store, secrets.token_hex(8), time.time()
        batches.put_batch(store, self.ctx.run_id, key, part.requests)
        file_id = None
        try:
            file_id = await self.api.upload(part.path, key)
            state = await self.api.create(file_id, key, since)
        except CallError as error:
            # After a timeout the endpoint may have it all the same: the next attempt asks, and drops it if not.
            if not error.is_retryable or error.error_type is ErrorType.RATE_LIMITED:
                batches.drop_batch(store, key)
                await self._delete(file_id)
            if error.error_type is ErrorType.RATE_LIMITED and batches.open_batches(store, self.ctx.run_id):
                self.refused = error
                return
            raise
        batches.note_batch(store, key, state.batch_id, state.status)
        self.say(f"{state.batch_id}: {len(part.requests):,} requests submitted")

    async def wait(self, poll_s: float, on_record: Callable[[], None]) -> None:
        """Look after the batches until all are collected or a stop is requested."""
        delay, heard = poll_s, time.monotonic()
        seen: dict[str, tuple[str, int]] = {}
        while rows := batches.open_batches(self.ctx.store, self.ctx.run_id):
            collected, news = False, False
            for row in rows:
                try:
                    state = await self._look(row)
                except CallError as error:
                    if not error.is_retryable or time.monotonic() - heard > _PATIENCE_S:
                        raise
                    continue
                heard = time.monotonic()
                if state is None:
                    continue
                news |= seen.get(row.key) != (state.status, state.answered)
                seen[row.key] = state.status, state.answered
                if state.status != row.status:
                    batches.note_batch(self.ctx.store, row.key, None, state.status)
                    self.say(
                        f"{row.batch_id}: {state.status}, {state.answered:,} of {row.requests:,} answered"
                    )
                if state.has_ended:
                    collected |= await self._collect(row, state)
                    self.count_done()
                    on_record()
            if self.refused is not None and collected and self.error is None:
                self.refused = None
                await self.submit()
            if self.refused is not None and not batches.open_batches(self.ctx.store, self.ctx.run_id):
                raise self.refused
            delay = poll_s if news else min(1.5 * delay, _SLOWEST_POLL_S)
            until = time.monotonic() + delay
            while batches.open_batches(self.ctx.store, self.ctx.run_id) and time.monotonic() < until:
                if self.stop.requested:
                    return
                await asyncio.sleep(min(0.2, delay))

    async def _look(self, row: BatchRow) -> BatchState | None:
        """How the batch stands; None where the endpoint does not know it any more."""
        assert row.batch_id is not None
        try:
            return await self.api.retrieve(row.batch_id)
        except CallError as error:
            if error.error_type is not ErrorType.NOT_FOUND:
                raise
        batches.close_batch(self.ctx.store, row.key, batches.LOST)
        self.error = self.error or BackendError(
            f"the endpoint does not know {row.batch_id} any more, which was submitted at {row.created_at};"
            " to submit its requests anew, run the same command again",
            ErrorType.NOT_FOUND,
        )
        return None

    async def _collect(self, row: BatchRow, state: BatchState) -> bool:
        """Store the results of a batch that has ended; whether there were any."""
        store = self.ctx.store
        if state.status == batches.FAILED and not state.result_files:
            batches.close_batch(store, row.key, state.status)
            await self._delete(state.input_file)
            why = f"the endpoint did not take {state.batch_id}: {state.message or 'it does not say why'}"
            if state.over_limit:
                self.refused = BackendError(why, ErrorType.RATE_LIMITED)
            else:
                self.error = self.error or BackendError(why, ErrorType.BAD_REQUEST)
            return False
        landed = batch_requests.Landed(self.ctx, self.lines, batches.requests_of(store, row.key))
        with tempfile.TemporaryDirectory(prefix="cp-agents-") as folder:
            for file_id in state.result_files:
                path = Path(folder) / "results.jsonl"
                try:
                    await self.api.download(file_id, path)
                except CallError as error:
                    if error.error_type is not ErrorType.NOT_FOUND:
                        raise
                    continue  # kept no longer: its lines are missing
                landed.file(path)
        landed.missing(state.status)
        batches.close_batch(store, row.key, state.status)
        strange = f", {landed.strange:,} lines ignored" if landed.strange else ""
        self.say(
            f"{state.batch_id}: {landed.answers:,} samples stored, {landed.failures:,} failures{strange}"
        )
        self.error = self.error or landed.fatal
        for file_id in (state.input_file, *state.result_files):
            await self._delete(file_id)  # they hold what users wrote, and nobody needs them any more
        return True

    async def _delete(self, file_id: str | None) -> None:
        if file_id is not None:
            with contextlib.suppress(CallError):
                await self.api.delete(file_id)

    def count_done(self) -> None:
        """Records of which nothing is awaited."""
        awaited = batches.awaited(self.ctx.store, self.ctx.run_id)
        self.report.done = sum(record_id not in awaited for record_id in self.ids)
        self.report.resumed = sum(record_id not in self.unfinished for record_id in self.ids)
