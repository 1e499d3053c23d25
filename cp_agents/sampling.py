"""Draw a record's samples: from the store where they are, from the cache, else from the backend.

Every sample is parsed, grounded and committed when it lands, good or with a typed error.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from cp_agents.backends.base import SampleRequest, cache_keys
from cp_agents.errors import BackendError, ErrorType
from cp_agents.grounding import CueIndex, ground
from cp_agents.parsing import parse_completion
from cp_agents.schema import Completion, Usage
from cp_agents.stores.traces import StoredSample

if TYPE_CHECKING:
    from cp_agents.graph import ProfilingContext


async def draw(
    ctx: ProfilingContext, record_id: int, indices: Iterable[int], *, raise_retryable: bool = False
) -> AsyncIterator[StoredSample]:
    """Yield one stored sample per index, each as it lands.

    Finished samples of an earlier attempt are kept and no call is made for them. With `raise_retryable`, a
    transient failure of a backend that does not retry itself is raised as `BackendError` instead of stored,
    so that LangGraph's RetryPolicy can act. Raises `BackendError` for errors that end the run.
    """
    stored = ctx.store.samples(record_id)
    missing = []
    for index in indices:
        if index in stored and stored[index].is_final:
            ctx.meter.reused += 1
            yield stored[index]
        else:
            missing.append(index)
    if not missing:
        return
    user_id, cues, _ = ctx.store.record(record_id)
    request = _request(ctx, user_id, cues, tuple(missing))
    landing = _Landing(ctx, record_id, cues, request)
    for index, (sample_id, completion) in landing.cached(missing).items():
        missing.remove(index)
        yield landing.store(
            completion.model_copy(update={"index": index, "usage": Usage()}), from_cache=sample_id
        )
    if not missing:
        return
    left = set(missing)
    retries_itself = ctx.backend.capabilities.retries
    try:
        async for completion in ctx.backend.sample(_request(ctx, user_id, cues, tuple(missing))):
            left.discard(completion.index)
            kind = completion.error_type
            if raise_retryable and kind is not None and kind.is_retryable and not retries_itself:
                raise BackendError(completion.error_message or kind.value, kind)
            yield landing.store(completion)
    except BackendError as error:
        if error.error_type.is_fatal or raise_retryable:
            raise
        for index in sorted(left):
            yield landing.store(landing.failure(index, error.error_type, str(error)))
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        # A fault of the adapter itself must not lose the record: it becomes typed rows like any other failure.
        if raise_retryable:
            raise
        for index in sorted(left):
            yield landing.store(
                landing.failure(index, ErrorType.INTERNAL, f"{type(error).__name__}: {error}")
            )
    else:
        for index in sorted(left):
            yield landing.store(landing.failure(index, ErrorType.INTERNAL, "the backend gave no completion"))


def store_failure(
    ctx: ProfilingContext, record_id: int, index: int, kind: ErrorType, message: str
) -> StoredSample:
    """Store a typed failure in place of a sample."""
    user_id, cues, _ = ctx.store.record(record_id)
    landing = _Landing(ctx, record_id, cues, _request(ctx, user_id, cues, (index,)))
    return landing.store(landing.failure(index, kind, message))


def _request(ctx: ProfilingContext, user_id: str, cues: str, indices: tuple[int, ...]) -> SampleRequest:
    settings = ctx.settings
    return SampleRequest(
        messages=ctx.prompt.messages(cues),
        indices=indices,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        record_key=user_id,
    )


@lru_cache(maxsize=256)
def _index(cues: str) -> CueIndex:
    """Shared by a record's samples, which in fan-out arrive on separate branches."""
    return CueIndex(cues)


class _Landing:
    """Parses, grounds and stores the samples of one record."""

    def __init__(self, ctx: ProfilingContext, record_id: int, cues: str, request: SampleRequest) -> None:
        self._ctx = ctx
        self._record_id = record_id
        self._cues = cues
        self._keys = dict(zip(request.indices, cache_keys(ctx.backend.identity, request), strict=True))
        self._prompt_hash = hashlib.sha256(request.canonical().encode()).hexdigest()[:16]

    def cached(self, indices: Iterable[int]) -> dict[int, tuple[int, Completion]]:
        """Earlier answers to the very same request, by index."""
        found = self._ctx.store.cached([self._keys[i] for i in indices])
        return {i: found[key] for i, key in self._keys.items() if key in found}

    def store(self, completion: Completion, from_cache: int | None = None) -> StoredSample:
        """Parse, ground and commit one completion."""
        if not completion.sampler:
            completion = completion.model_copy(update={"sampler": self._ctx.backend.identity.sampler})
        parsed = parse_completion(completion, self._ctx.taxonomy)
        predictions = ground(parsed, _index(self._cues), cap=self._ctx.settings.evidence_cap)
        if parsed.reasoning and parsed.reasoning != completion.reasoning:
            completion = completion.model_copy(update={"reasoning": parsed.reasoning})
        if from_cache is None:
            self._ctx.meter.add(completion, parsed.outcome)
        else:
            self._ctx.meter.reused += 1
        sample_id = self._ctx.store.add_sample(
            self._record_id,
            completion,
            parsed.outcome,
            predictions,
            prompt_hash=self._prompt_hash,
            cache_key=None if from_cache is not None else self._keys.get(completion.index),
            from_cache=from_cache,
        )
        return StoredSample(sample_id, completion.index, parsed.outcome, completion.error_type)

    def failure(self, index: int, kind: ErrorType, message: str) -> Completion:
        """A completion that says why there is none."""
        return Completion(index=index, error_type=kind, error_message=message[:300])
