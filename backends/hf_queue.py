"""The line in front of a model: samples by prompt, and which prompts are worth reading next. No model is touched."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cp_agents.backends.base import SampleRequest
from cp_agents.errors import BackendError
from cp_agents.schema import Completion, Usage

if TYPE_CHECKING:
    import numpy as np

    from cp_agents.backends.hf_model import Encoded
    from cp_agents.backends.hf_rows import ReadPrompt
    from cp_agents.backends.hf_scores import TagScores

Landed = Callable[[Completion | BackendError], None]

_SIMILAR = 1.25
"""Prompts are read together if the longest is at most this much longer than the shortest."""
_READ_TOKENS = 8192
"""Most tokens of prompts, padding included, that are read in one forward pass."""


@dataclass(eq=False)
class Call:
    """The samples of one request on their way."""

    request: SampleRequest
    landed: Landed
    cancelled: bool = False

    def cancel(self) -> None:
        """Whatever of it still runs ends with the next step, and nothing more lands."""
        self.cancelled = True

    def land(self, result: Completion | BackendError) -> None:
        """Hand a result to the caller, unless it has left."""
        if not self.cancelled:
            try:
                self.landed(result)
            except RuntimeError:  # its event loop is closed
                self.cancelled = True


@dataclass(eq=False)
class Draw:
    """One sample."""

    call: Call
    index: int
    limit: int
    """Most tokens of the answer: max_tokens, or what the model's context leaves."""
    bears_prompt: bool
    """Whether the prompt's tokens are counted on it."""
    tokens: list[int] = field(default_factory=list)
    uniforms: np.random.Generator | None = None
    scores: TagScores | None = None
    """Where probabilities of tags are wanted."""
    usage: Usage = field(default_factory=Usage)
    has_landed: bool = False
    started: float = 0.0

    def land(self, completion: Completion) -> None:
        """Hand the result to the caller, once."""
        if not self.has_landed:
            self.has_landed = True
            self.call.land(completion)


@dataclass(eq=False)
class Line:
    """The samples that share a prompt: those that wait, and how many run."""

    prompt: Encoded
    waiting: deque[Draw] = field(default_factory=deque)
    running: int = 0
    read: ReadPrompt | None = None
    counted: bool = False
    """Whether a sample bears the prompt's tokens as newly read; later ones bear them as cached."""


class Queue:
    """All samples that have not landed, by prompt, the prompt that has waited longest first."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, ...], Line] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._lines.values()))

    def add(self, call: Call, prompt: Encoded, room: int) -> None:
        """Put the samples of a call in line; `room` is what the model's context leaves for an answer, in tokens."""
        line = self._lines.setdefault(prompt.ids, Line(prompt))
        for position, index in enumerate(call.request.indices):
            line.waiting.append(Draw(call, index, min(call.request.max_tokens, room), position == 0))

    def drop_cancelled(self) -> None:
        """Forget the waiting samples of callers that have left."""
        for line in self._lines.values():
            if any(draw.call.cancelled for draw in line.waiting):
                line.waiting = deque(draw for draw in line.waiting if not draw.call.cancelled)

    def forget_done(self) -> None:
        """Forget prompts of which nothing waits or runs, and so free what was read of them."""
        for ids in [ids for ids, line in self._lines.items() if not (line.waiting or line.running)]:
            del self._lines[ids]

    def longest_answer(self) -> int:
        """Most tokens that a waiting sample may come to."""
        return max((line.waiting[0].limit for line in self._lines.values() if line.waiting), default=1)

    def to_read(self, free: int, running: int) -> list[Line]:
        """Prompts to read now, in one pass, for `free` rows beside those that are `running`; perhaps none.

        They wait until a quarter of the rows is free, so that prompts are read in batches, unless fewer rows take all
        that wait. Chosen are the prompt that has waited longest, and others with the same head and a similar length.
        """
        unread = [line for line in self._lines.values() if line.read is None and line.waiting]
        waiting = sum(len(line.waiting) for line in unread)
        if not 0 < min(waiting, (running + free) // 4 or 1) <= free:
            return []
        first, *others = unread
        shortest = longest = first.prompt.own
        chosen = [first]
        free -= len(first.waiting)
        for line in others:
            short, long = min(shortest, line.prompt.own), max(longest, line.prompt.own)
            fits = long <= short * _SIMILAR and long * (len(chosen) + 1) <= _READ_TOKENS
            if free > 0 and fits and line.prompt.head == first.prompt.head:
                chosen.append(line)
                shortest, longest, free = short, long, free - len(line.waiting)
        return chosen

    def clear(self) -> list[Draw]:
        """Forget everything; what was waiting."""
        waiting = [draw for line in self._lines.values() for draw in line.waiting]
        self._lines.clear()
        return waiting

    def give_up_first(self) -> list[Draw]:
        """Forget the first prompt; what was waiting for it."""
        return list(self._lines.pop(next(iter(self._lines))).waiting)
