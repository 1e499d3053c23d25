"""What holds calls back: requests and tokens per minute, a shared cooldown, a budget.

Nothing here knows HTTP or a model. Time comes in as `clock` and `sleep`, so that tests need not wait.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Usage

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


def check_positive(what: str, value: object) -> None:
    """Raise `InputError` that names `what` unless `value` is a finite number above 0 (NaN compares as neither)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        shown = f"{value:g}" if isinstance(value, float) else repr(value)[:40]
        raise InputError(f"{what} should be above 0, found {shown}")


class TokenBucket:
    """At most `per_minute` units started in any 60 seconds, with bursts of one second's worth.

    `reserve` books at once and says how long to wait, so callers are served in the order in which they asked.
    An amount larger than a burst waits for a full bucket and leaves it in debt.
    """

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        check_positive("a limit per minute", per_minute)
        self._burst = max(1.0, per_minute / 60)
        # A full bucket is spent on top of what flows in during a minute: the flow makes room for it.
        self._per_second = (per_minute - (self._burst - 1)) / 60
        self._clock = clock
        self._level = self._burst
        self._at = clock()

    def reserve(self, amount: float = 1.0) -> float:
        """Book `amount` units; returns the seconds (0 or more) after which they may be used."""
        self._refill()
        wait = max(0.0, (min(amount, self._burst) - self._level) / self._per_second)
        self._level -= amount
        return wait

    def give_back(self, amount: float) -> None:
        """Undo a booking that was not used; a negative amount books what was used beyond it."""
        self._refill()
        self._level = min(self._burst, self._level + amount)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now


class Budget:
    """Tokens (prompt + completion) and USD that may be spent; shared by all backends that are given it.

    What is in flight when the budget is spent finishes and is counted, so the end can lie above the limit by
    that much.
    """

    def __init__(self, max_usd: float | None = None, max_tokens: int | None = None) -> None:
        for name, limit in (("max_usd", max_usd), ("max_tokens", max_tokens)):
            if limit is not None:
                check_positive(f"the budget's {name}", limit)
        self.max_usd = max_usd
        self.max_tokens = max_tokens
        self.usd = 0.0
        self.tokens = 0

    def add(self, usage: Usage, cost_usd: float | None) -> None:
        """Count what a finished call used."""
        self.tokens += usage.prompt_tokens + usage.completion_tokens
        self.usd += cost_usd or 0.0

    def check(self) -> None:
        """Raise `BackendError` (`ErrorType.BUDGET`) when nothing is left."""
        if self.max_usd is not None and self.usd >= self.max_usd:
            raise BackendError(f"the budget of {self.max_usd:g} USD is spent", ErrorType.BUDGET)
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            raise BackendError(f"the budget of {self.max_tokens} tokens is spent", ErrorType.BUDGET)


class Limits:
    """The gate before every call of one backend."""

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: Budget | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._requests = None if requests_per_minute is None else TokenBucket(requests_per_minute, clock)
        self._tokens = None if tokens_per_minute is None else TokenBucket(tokens_per_minute, clock)
        self._budget = budget
        self._clock = clock
        self._sleep = sleep
        self._cool_until = -float("inf")

    @property
    def counts_tokens(self) -> bool:
        """Whether `admit` needs an estimate of tokens."""
        return self._tokens is not None

    def cool_down(self, seconds: float) -> None:
        """Let nobody start for `seconds`: the endpoint has said that it is too much for it."""
        self._cool_until = max(self._cool_until, self._clock() + seconds)

    async def admit(self, tokens: int = 0) -> None:
        """Wait until a call of about `tokens` tokens may start.

        Raises `BackendError` (`ErrorType.BUDGET`) when the budget is spent.
        """
        while True:
            if self._budget is not None:
                self._budget.check()
            if (rest := self._cool_until - self._clock()) > 0:
                # Spread out, lest all who waited fall upon the endpoint in the same instant.
                await self._sleep(rest * random.uniform(1.0, 1.25))
                continue
            if (wait := self._reserve(tokens)) <= 0:
                return
            try:
                await self._sleep(wait)
            except asyncio.CancelledError:
                self._give_back(tokens)
                raise
            if self._cool_until <= self._clock():
                if self._budget is not None:
                    self._budget.check()
                return
            # A cooldown has begun meanwhile: starts that were booked in it would bunch up at its end.
            self._give_back(tokens)

    def settle(self, booked: int, usages: Sequence[Usage], costs: Sequence[float | None]) -> None:
        """Count what the samples of a finished call used, for which `booked` tokens were reserved."""
        if self._tokens is not None:
            self._tokens.give_back(booked - sum(u.prompt_tokens + u.completion_tokens for u in usages))
        if self._budget is not None:
            for usage, cost in zip(usages, costs, strict=True):
                self._budget.add(usage, cost)

    def _reserve(self, tokens: int) -> float:
        wait = 0.0 if self._requests is None else self._requests.reserve()
        return wait if self._tokens is None else max(wait, self._tokens.reserve(tokens))

    def _give_back(self, tokens: int) -> None:
        if self._requests is not None:
            self._requests.give_back(1)
        if self._tokens is not None:
            self._tokens.give_back(tokens)
