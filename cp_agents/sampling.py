"""Draw a record's samples: from the store where they are, from the cache, else from the backend.

Every sample is parsed, grounded and committed when it lands, good or with a typed error.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from cp_agents.backends.base import SampleRequest, cache_keys
from cp_agents.confidence import needs_probability
from cp_agents.errors import BackendError, CpAgentsError, ErrorType
from cp_agents.grounding import CueIndex, ground
from cp_agents.parsing import parse_completion
from cp_agents.schema import Completion, Outcome, Usage
from cp_agents.stores.traces import NewSample, StoredSample

if TYPE_CHECKING:
    from cp_agents.graph import ProfilingContext

_MOST_OF_A_MESSAGE = 300


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
    landing = Landing(ctx, record_id, missing)
    if reused := landing.cached():
        for sample in landing.store(reused):
            yield sample
    left = sorted(set(missing) - {sample.completion.index for sample in reused})
    if not left:
        return
    waiting = set(left)
    retries_itself = ctx.backend.capabilities.retries

    def failures(kind: ErrorType, message: str) -> list[StoredSample]:
        return landing.store([landing.failure(index, kind, message) for index in sorted(waiting)])

    try:
        async for group in landed_together(ctx.backend.sample(replace(landing.request, indices=tuple(left)))):
            for completion in group:
                kind = completion.error_type
                if raise_retryable and kind is not None and kind.is_retryable and not retries_itself:
                    raise BackendError(completion.error_message or kind.value, kind)
            # An index that nobody asked for, or a second answer to one, has no place to go.
            wanted = {c.index: c for c in group if c.index in waiting}
            stored_now = landing.store([landing.landed(completion) for completion in wanted.values()])
            waiting -= set(wanted)
            for sample in stored_now:
                yield sample
    except BackendError as error:
        if error.error_type.is_fatal or raise_retryable:
            raise
        for sample in failures(error.error_type, str(error)):
            yield sample
    except Exception as error:
        # A fault of the adapter itself must not lose the record: it becomes typed rows like any other failure.
        if raise_retryable:
            raise
        for sample in failures(ErrorType.INTERNAL, describe(error)):
            yield sample
    else:
        if waiting:
            for sample in failures(ErrorType.INTERNAL, "the backend gave no completion"):
                yield sample


def pending(ctx: ProfilingContext, record_id: int) -> SampleRequest | None:
    """What is still to be asked for of a record, for those who ask by another way than `draw`; None if nothing.

    Finished samples count as there, and what the cache has is stored.
    """
    stored = ctx.store.samples(record_id)
    missing = [i for i in range(ctx.settings.samples) if i not in stored or not stored[i].is_final]
    if not missing:
        return None
    landing = Landing(ctx, record_id, missing)
    reused = landing.cached()
    landing.store(reused)
    left = sorted(set(missing) - {sample.completion.index for sample in reused})
    return replace(landing.request, indices=tuple(left)) if left else None


def describe(error: BaseException) -> str:
    """What is stored of an exception: our own sentence, else only its type, whose words may quote a record or a key."""
    return str(error) if isinstance(error, CpAgentsError) else f"{type(error).__name__} in the backend"


def store_failure(ctx: ProfilingContext, record_id: int, index: int, kind: ErrorType, message: str) -> None:
    """Store a typed failure in place of a sample."""
    landing = Landing(ctx, record_id, [index])
    landing.store([landing.failure(index, kind, message)])


async def landed_together(completions: AsyncIterator[Completion]) -> AsyncIterator[list[Completion]]:
    """Group what arrives without waiting in between, as the choices of one reply do: one commit serves them."""
    following: asyncio.Task[Completion] = asyncio.ensure_future(anext(completions))
    try:
        while True:
            try:
                group = [await following]
            except StopAsyncIteration:
                return
            ended: BaseException | None = None
            while ended is None:
                following = asyncio.ensure_future(anext(completions))
                await asyncio.sleep(0)
                if not following.done():
                    break
                if (ended := following.exception()) is None:
                    group.append(following.result())
            yield group
    finally:
        if not following.done():
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await following
        if (close := getattr(completions, "aclose", None)) is not None:
            await close()


def _is_scored(sample: NewSample) -> bool:
    """Whether a sample has probabilities, or says nothing that could have one."""
    usable = [said for said in sample.predictions.values() if said.outcome is Outcome.OK]
    return not usable or any(said.probability is not None for said in usable)


@lru_cache(maxsize=256)
def _index(cues: str) -> CueIndex:
    """Shared by a record's samples, which in fan-out arrive on separate branches."""
    return CueIndex(cues)


class Landing:
    """Parses, grounds and stores samples of one record."""

    def __init__(self, ctx: ProfilingContext, record_id: int, indices: list[int]) -> None:
        record = ctx.store.record(record_id)
        self._cues = record.cues
        self.request = SampleRequest(
            messages=ctx.prompt.messages(record.cues),
            indices=tuple(indices),
            temperature=ctx.settings.temperature,
            top_p=ctx.settings.top_p,
            max_tokens=ctx.settings.max_tokens,
            seed=ctx.settings.seed,
            record_key=record.user_id,
            score_tags=ctx.taxonomy if needs_probability(ctx.settings.confidence) else None,
        )
        canonical = self.request.canonical()
        self._ctx = ctx
        self._record_id = record_id
        whose = f"\x1f{record.user_id}" if ctx.backend.capabilities.by_record else ""
        self._keys = cache_keys(ctx.backend.identity, canonical + whose, indices)
        self._prompt_hash = hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def cached(self) -> list[NewSample]:
        """Earlier answers to the very same request, as new samples that cost nothing.

        Where probabilities are wanted and may be had, one that was given when nobody asked for them is no answer.
        """
        unscored = self.request.score_tags is None or self._ctx.backend.capabilities.logprobs is False
        found = self._ctx.store.cached(list(self._keys.values()))
        samples = []
        for index, key in self._keys.items():
            if key in found:
                sample_id, completion = found[key]
                completion = completion.model_copy(update={"index": index, "usage": Usage()})
                sample = self._read(completion)._replace(cache_key=None, from_cache=sample_id)
                if unscored or _is_scored(sample):
                    samples.append(sample)
        self._ctx.meter.reused += len(samples)
        return samples

    def landed(self, completion: Completion) -> NewSample:
        """What a backend has just given, read and counted."""
        sample = self._read(completion)
        self._ctx.meter.add(sample.completion, sample.outcome)
        return sample

    def failure(self, index: int, kind: ErrorType, message: str) -> NewSample:
        """A sample that says why there is none."""
        return self.landed(
            Completion(index=index, error_type=kind, error_message=message[:_MOST_OF_A_MESSAGE])
        )

    def store(self, samples: list[NewSample]) -> list[StoredSample]:
        """Commit samples in one transaction."""
        return self._ctx.store.add_samples(self._record_id, self._prompt_hash, samples)

    def _read(self, completion: Completion) -> NewSample:
        parsed = parse_completion(completion, self._ctx.taxonomy)
        predictions = ground(parsed, _index(self._cues), cap=self._ctx.settings.evidence_cap)
        for name, written in completion.probabilities.items():
            said = predictions.get(name)
            # The tokens may be of another answer than the one that counts.
            if said is not None and said.outcome is Outcome.OK and said.tag == written.tag:
                said.probability = written.probability
        changes = {}
        if not completion.sampler:
            changes["sampler"] = self._ctx.backend.identity.sampler
        if parsed.reasoning and parsed.reasoning != completion.reasoning:
            changes["reasoning"] = parsed.reasoning
        if changes:
            completion = completion.model_copy(update=changes)
        return NewSample(completion, parsed.outcome, predictions, self._keys[completion.index])
