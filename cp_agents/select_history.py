"""Ask the teacher which entries of a long history tell who the user is: level by level, part by part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cp_agents.backends.base import SampleRequest, cache_keys
from cp_agents.cues import EntryKey
from cp_agents.errors import BackendError, InputError
from cp_agents.prompts.select import load_select_prompt
from cp_agents.schema import Completion, UserRecord
from cp_agents.selection import Line, Part, fits, is_long, lines_of, parts_of, read_choice
from cp_agents.stores.selections import store_choice, stored_choice

if TYPE_CHECKING:
    from cp_agents.graph import ProfilingContext

AT_ONCE = 8
"""Parts of one record in flight."""
_MAX_TOKENS = 400
_LEVELS = 8


@runtime_checkable
class Chooser(Protocol):
    """A backend that chooses without a prompt."""

    def choose(self, part: Part) -> list[Line]:
        """At most `part.most` of its lines."""
        ...


def check_chooser(ctx: ProfilingContext) -> None:
    """Raises `InputError` where the backend cannot be asked: a recording answers for a record, not for a prompt."""
    if ctx.backend.capabilities.by_record:
        raise InputError(
            f"{ctx.backend.identity.sampler} holds recorded answers and cannot choose from a long history:"
            " take --history condense or truncate"
        )


async def select_history(ctx: ProfilingContext, record: UserRecord) -> list[EntryKey]:
    """The entries to put foremost; none where the whole history fits the cue block.

    A part whose answer cannot be read, or whose call failed, keeps what the rules would: its latest lines. Answers
    are kept in the store; the same part is not asked for again. Raises `BackendError` for what would fail every call.
    """
    budget = ctx.settings.token_budget
    lines = lines_of(record, budget)
    if not is_long(lines, budget):
        return []
    check_chooser(ctx)
    gate = asyncio.Semaphore(AT_ONCE)
    for _ in range(_LEVELS):
        if fits(lines, budget):
            break
        parts = parts_of(lines, budget)
        chosen = await asyncio.gather(*(_choose(ctx, record.user_id, part, gate) for part in parts))
        kept = [line for some in chosen for line in some]
        if len(kept) >= len(lines):
            break
        lines = kept
    return [line.key for line in lines]


async def _choose(ctx: ProfilingContext, user_id: str, part: Part, gate: asyncio.Semaphore) -> list[Line]:
    if isinstance(ctx.backend, Chooser):
        return ctx.backend.choose(part)
    prompt = load_select_prompt(ctx.taxonomy, ctx.prompt.language)
    request = SampleRequest(
        prompt.messages(part.text, part.most),
        indices=(0,),
        temperature=0.0,
        top_p=1.0,
        max_tokens=_MAX_TOKENS,
        seed=ctx.settings.seed,
    )
    [key] = cache_keys(ctx.backend.identity, request.canonical(), (0,)).values()
    known = stored_choice(ctx.store, key)
    if known is not None:
        return [part.lines[number - 1] for number in known]
    async with gate:
        answer = await _ask(ctx, request)
    if answer is None or answer.error_type is not None:
        return list(part.lines[-part.most :])
    ctx.meter.spend(answer)
    kept = read_choice(answer.text, part)
    if kept is None:
        return list(part.lines[-part.most :])
    numbers = [part.lines.index(line) + 1 for line in kept]
    store_choice(ctx.store, key, user_id, numbers, answer)
    return kept


async def _ask(ctx: ProfilingContext, request: SampleRequest) -> Completion | None:
    try:
        async for completion in ctx.backend.sample(request):
            return completion
    except BackendError as error:
        if error.error_type.is_fatal:
            raise
    return None
