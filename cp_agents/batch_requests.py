"""What a run still has to ask for, as lines of a batch file; and result lines, landed as live samples land."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cp_agents import sampling
from cp_agents.backends.base import SampleRequest, cache_keys
from cp_agents.backends.batch_api import ChatLines, Line, read_line
from cp_agents.backends.chat import CallError, Prompt, successive
from cp_agents.errors import CpAgentsError, InputError, StoreError
from cp_agents.schema import Completion, UserRecord
from cp_agents.settings import assemble_for
from cp_agents.stores.batches import BatchRequest

if TYPE_CHECKING:
    from cp_agents.graph import ProfilingContext

_LINES_A_COMMIT = 200
_Read = Callable[[Prompt, range], list[Completion]]


class Entered(NamedTuple):
    """Records that are in the store now."""

    ids: list[int]
    failed: dict[str, str]
    """Records that could not be read: user id and why."""


def check_all_at_once(ctx: ProfilingContext) -> None:
    """Raises `InputError` for what asks before it goes on: a batch is drawn as a whole."""
    if ctx.settings.adaptive is not None:
        raise InputError(
            "adaptive sampling draws wave by wave and a batch draws all samples at once: choose one of the two"
        )
    if ctx.settings.history == "select":
        raise InputError(
            "the history select asks the teacher before samples are drawn, and a batch draws all at once: choose one"
        )


def enter_records(ctx: ProfilingContext, records: Iterable[Mapping[str, Any]]) -> Entered:
    """Assemble the cues of `records` and put them into the run."""
    entered = Entered([], {})
    iterator = iter(records)
    while part := list(islice(iterator, _LINES_A_COMMIT)):
        with ctx.store.transaction():
            for raw in part:
                try:
                    record = UserRecord.from_dict(dict(raw))
                    cues = assemble_for(ctx.settings, record)
                    entered.ids.append(ctx.store.put_record(ctx.run_id, record.user_id, cues))
                except CpAgentsError as error:
                    entered.failed[str(raw.get("user_id"))] = str(error)
    return entered


def missing_samples(
    ctx: ProfilingContext, ids: Iterable[int], awaited: Mapping[int, list[BatchRequest]]
) -> Iterator[tuple[int, SampleRequest]]:
    """Per record what nobody has answered and nobody is being asked for; `awaited` as in `stores.batches`."""
    for record_id in ids:
        request = sampling.pending(ctx, record_id)
        if request is None:
            continue
        canonical = request.canonical() if record_id in awaited else ""
        asked = {
            index
            for waiting in awaited.get(record_id, ())
            # Another id: the record has changed since, and the answers will not be about it.
            if custom_id(ctx, record_id, canonical, waiting.indices) == waiting.custom_id
            for index in waiting.indices
        }
        left = tuple(index for index in request.indices if index not in asked)
        if left:
            yield record_id, replace(request, indices=left)


def request_lines(
    ctx: ProfilingContext, lines: ChatLines, missing: Iterable[tuple[int, SampleRequest]], *, n: bool
) -> Iterator[tuple[BatchRequest, bytes]]:
    """Requests with their lines: one a sample or, where the endpoint draws several, one a record."""
    for record_id, request in missing:
        prompt, canonical = Prompt(request), request.canonical()
        for run in successive(request.indices, None if n else 1):
            name = custom_id(ctx, record_id, canonical, run)
            yield BatchRequest(name, record_id, run.start, len(run)), lines.write(name, prompt, run)


def custom_id(ctx: ProfilingContext, record_id: int, canonical: str, indices: range) -> str:
    """32 hex digits that say which samples of which record of which run a request asks for, and to what prompt.

    `canonical` is `SampleRequest.canonical()`. The record goes in by its number in the store: from the id, nobody
    learns or guesses a user's name.
    """
    [key] = cache_keys(ctx.backend.identity, canonical, [indices.start]).values()
    parts = (ctx.run_id, str(record_id), key, str(len(indices)))
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


class Landed:
    """Lands result lines in any order and keeps count; nothing that is stored already is replaced."""

    def __init__(self, ctx: ProfilingContext, lines: ChatLines, requests: Mapping[str, BatchRequest]) -> None:
        self._ctx = ctx
        self._lines = lines
        self._left = dict(requests)
        self.answers = 0
        self.failures = 0
        """Samples that were stored as a typed failure."""
        self.strange = 0
        """Lines that are no result line, or answer nothing that is being waited for."""
        self.fatal: CallError | None = None
        """The first failure that every other request of the run would share; nothing is stored for it."""

    def file(self, path: Path) -> None:
        """Land all lines of a file of results."""
        with path.open("rb") as rows:
            while part := list(islice(rows, _LINES_A_COMMIT)):
                with self._ctx.store.transaction():
                    for raw in part:
                        if raw.strip():
                            self._land(read_line(raw))

    def missing(self, status: str) -> None:
        """Type the failures of what had no line in a batch that ended as `status`."""
        with self._ctx.store.transaction():
            for request in self._left.values():
                self._store(request, lambda prompt, run: self._lines.missing(status, run))
        self._left.clear()

    def _land(self, line: Line | None) -> None:
        request = self._left.pop(line.custom_id, None) if line is not None else None
        if line is None or request is None:
            self.strange += 1
            return
        try:
            self._store(request, lambda prompt, run: self._lines.read(line, prompt, run))
        except CallError as error:
            self.fatal = self.fatal or error

    def _store(self, request: BatchRequest, read: _Read) -> None:
        ctx, record_id = self._ctx, request.record_id
        stored = ctx.store.samples(record_id)
        wanted = [i for i in request.indices if i not in stored or not stored[i].is_final]
        if not wanted:
            return
        with contextlib.suppress(StoreError):  # the user was forgotten while the batch was away
            landing = sampling.Landing(ctx, record_id, wanted)
            canonical = landing.request.canonical()
            if custom_id(ctx, record_id, canonical, request.indices) != request.custom_id:
                self.strange += 1
                return
            found = read(Prompt(landing.request), request.indices)
            samples = [landing.landed(c) for c in found if c.index in wanted]
            landing.store(samples)
            failed = sum(sample.completion.error_type is not None for sample in samples)
            self.failures += failed
            self.answers += len(samples) - failed
