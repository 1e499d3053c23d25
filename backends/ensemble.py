"""`ensemble:SPEC,SPEC,...`: several teachers share the M samples of every record.

Sample i is drawn by member i % k, in the order in which the k members are named; naming one twice gives it two
turns. Each sample names the member that drew it, which is what the vote `dawid_skene` learns skills from.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cp_agents.backends.base import Backend, Capabilities, Identity, SampleRequest
from cp_agents.backends.probe import probe
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Completion

if TYPE_CHECKING:
    from cp_agents.backends.registry import BackendOptions

SEED_STRIDE = 1000
"""Between the seeds of two members: the most samples that a record can have."""


class EnsembleBackend:
    """Shares the samples among `members` in turn.

    Member m draws sample i as its own sample i // k, so that one that draws several samples in one request still
    can, and with seeds from `seed + 1000 * m` on, so that a model that is named twice does not repeat itself.
    A member's failures are those of its samples alone, except for one that ends the run. Raises `InputError` for
    fewer than two members.
    """

    def __init__(self, members: Sequence[Backend]) -> None:
        if len(members) < 2:
            raise InputError(f"an ensemble needs two or more members, found {len(members)}")
        self._members = tuple(members)
        identities = [member.identity for member in self._members]
        self._samplers = _samplers(identities)
        whole = "\x1e".join(
            "\x1f".join((one.kind, one.endpoint, one.model, one.revision)) for one in identities
        )
        self._identity = Identity(
            "ensemble", ",".join(self._samplers), revision=hashlib.sha256(whole.encode()).hexdigest()[:12]
        )

    def __repr__(self) -> str:
        return f"EnsembleBackend({self._identity.model!r})"

    @property
    def members(self) -> tuple[Backend, ...]:
        """The backends that share the samples."""
        return self._members

    @property
    def identity(self) -> Identity:
        """The members' names; the revision covers their identities and their order."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """What all members can do."""
        each = [member.capabilities for member in self._members]
        return Capabilities(
            n=_of_all([one.n for one in each]),
            seed=all(one.seed for one in each),
            retries=all(one.retries for one in each),
            by_record=any(one.by_record for one in each),
            logprobs=_of_all([one.logprobs for one in each]),
            structured_output=_of_all([one.structured_output for one in each]),
            prefix_cache=_of_all([one.prefix_cache for one in each]),
            max_context=min((one.max_context for one in each if one.max_context is not None), default=None),
        )

    async def probe(self) -> Capabilities:
        """What all members can do, each asked in turn. Raises the first `BackendError`."""
        for member in self._members:
            await probe(member)
        return self.capabilities

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index, each as it lands; leaving early cancels what is in flight.

        Raises a member's `BackendError` where it ends the run, after the samples of the others have landed.
        """
        landed: asyncio.Queue[Completion | None] = asyncio.Queue()
        shares: dict[int, list[int]] = {}
        for index in request.indices:
            shares.setdefault(index % len(self._members), []).append(index)

        async def run(turn: int, indices: list[int]) -> None:
            try:
                async for completion in self._share(turn, replace(request, indices=tuple(indices))):
                    landed.put_nowait(completion)
            finally:
                landed.put_nowait(None)

        tasks = [asyncio.create_task(run(turn, indices)) for turn, indices in shares.items()]
        try:
            for _ in tasks:
                while (completion := await landed.get()) is not None:
                    yield completion
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        """Close all members, also after one that fails to."""
        async with contextlib.AsyncExitStack() as stack:
            for member in self._members:
                stack.push_async_callback(member.aclose)

    async def _share(self, turn: int, request: SampleRequest) -> AsyncIterator[Completion]:
        """One member's samples: exactly one per index of `request`, whatever the member does, or a fatal error."""
        k = len(self._members)
        member = self._members[turn]
        waiting = set(request.indices)
        own = replace(
            request,
            indices=tuple(index // k for index in request.indices),
            seed=request.seed + SEED_STRIDE * turn,
        )
        kind, message = ErrorType.INTERNAL, "the backend gave no completion"
        try:
            async for completion in member.sample(own):
                if (index := completion.index * k + turn) in waiting:
                    waiting.discard(index)
                    # A member that names its samplers itself (a recording, another ensemble) knows better.
                    named = completion.sampler not in ("", member.identity.sampler)
                    sampler = completion.sampler if named else self._samplers[turn]
                    yield completion.model_copy(update={"index": index, "sampler": sampler})
        except BackendError as error:
            if error.error_type.is_fatal:
                raise
            kind, message = error.error_type, str(error)
        except Exception as error:
            message = f"the backend failed in an unforeseen way ({type(error).__name__})"
        for index in sorted(waiting):
            yield Completion(
                index=index, sampler=self._samplers[turn], error_type=kind, error_message=message
            )


def _of_all(each: Sequence[bool | None]) -> bool | None:
    """Whether all can, None where it is not known of some."""
    return False if False in each else None if None in each else True


def _samplers(identities: Sequence[Identity]) -> list[str]:
    """A name for each member, the same only for the same identity: the vote tells teachers apart by it."""
    names = []
    for one in identities:
        twins = {other for other in identities if other.sampler == one.sampler}
        marks = [one.endpoint] if len({twin.endpoint for twin in twins}) > 1 else []
        marks += [one.revision] if len({twin.revision for twin in twins}) > 1 else []
        names.append("@".join([one.sampler, *marks]))
    return names


def from_spec(rest: str, options: BackendOptions) -> EnsembleBackend:
    """`ensemble:SPEC,SPEC,...`: a comma always separates members, so a spec that holds one cannot be named here.

    All members get the same options: one base URL, one budget for them together, limits per minute for each.
    """
    from cp_agents.backends.registry import resolve_backend

    specs = [spec.strip() for spec in rest.split(",")]
    if len(specs) < 2 or not all(specs):
        raise InputError("ensemble needs two or more backends, as in ensemble:openai:MODEL_A,openai:MODEL_B")
    members = []
    for spec in specs:
        try:
            members.append(resolve_backend(spec, options))
        except InputError as error:
            raise InputError(f"ensemble member {spec!r}: {error}") from None
    return EnsembleBackend(members)
