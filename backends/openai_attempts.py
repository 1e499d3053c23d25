"""One request for samples of `openai:MODEL`: what is sent, what is learned of the endpoint, and what came of it."""

from __future__ import annotations

import logging
import time
from typing import Any

from cp_agents.backends.chat import Asked, CallError, Dialect, Prompt, Reply, read_reply
from cp_agents.backends.endpoint import Endpoint, Line
from cp_agents.backends.limits import Limits
from cp_agents.backends.openai_facts import Facts
from cp_agents.backends.probe import IN_FORM, QUESTION, context_of, keeps_form
from cp_agents.backends.tag_logprobs import scored
from cp_agents.backends.usage import Prices, estimate_usage, read_usage
from cp_agents.cues import estimate_tokens
from cp_agents.errors import ErrorType
from cp_agents.schema import Completion
from cp_agents.taxonomy import Taxonomy

log = logging.getLogger(__name__)


class Attempts:
    """Requests for samples of one model at one endpoint, each made once; `answered` is when the last reply came.

    `taxonomy`: whose tags' probabilities are wanted always.
    """

    def __init__(
        self,
        model: str,
        endpoint: Endpoint,
        facts: Facts,
        *,
        limits: Limits,
        prices: Prices | None,
        extra: dict[str, Any],
    ) -> None:
        self.model = model
        self.endpoint = endpoint
        self.facts = facts
        self.extra = extra
        self.dialect = Dialect(given=extra)
        self.limits = limits
        self.taxonomy: Taxonomy | None = None
        self.answered = -float("inf")
        self._prices = prices
        self._drawn = self._drawn_tokens = 0

    async def make(self, line: Line, prompt: Prompt, run: range) -> list[Completion]:
        """Completions for `run`, or for a part of it where the endpoint draws fewer samples at a time.

        A parameter that the endpoint does not know is left out at once and for good. Raises `CallError`.
        """
        doubtful = False
        try:
            completions = await self._negotiate(line, prompt, run)
            doubtful = self.facts.doubts_n
            return completions
        finally:
            if line.probed is not None and not doubtful:
                line.probed.set()

    async def probe(self, line: Line) -> None:
        """Ask a question of a few tokens until it is known what the endpoint can do. Raises `CallError`."""
        prompt, facts = Prompt(QUESTION), self.facts
        try:
            await self.make(line, prompt, range(1 if facts.n is False else 2))
            if facts.doubts_n:
                await self.make(line, prompt, range(2))
        except CallError as error:
            if not error.rejects_n:
                raise
            facts.n = False
            await self.make(line, prompt, range(1))
        if facts.structured_output is None:
            fields = {"model": self.model, **self.dialect.parameters(prompt.request, range(1)), **self.extra}
            asked = Asked(self.model, 1, list(fields), prompt.private)
            try:
                reply = await self.endpoint.post(line, prompt.encode({**fields, **IN_FORM}), asked)
                facts.structured_output = keeps_form(read_reply(reply, 1).choices[0])
            except CallError as error:
                facts.structured_output = False if error.error_type is ErrorType.BAD_REQUEST else None
        facts.max_context = context_of(await self.endpoint.models(line), self.model)

    def completions(
        self, prompt: Prompt, run: range, reply: Reply, latency_s: float, booked: int = 0
    ) -> list[Completion]:
        """What a reply brought for `run`, counted; `booked` are the tokens that were reserved for it."""
        positions = sorted(reply.choices)
        choices = [reply.choices[p] for p in positions]
        usages = read_usage(reply.usage, len(choices)) or estimate_usage(
            prompt.tokens, [estimate_tokens(choice.reasoning + choice.text) for choice in choices]
        )
        costs = [None if self._prices is None else self._prices.cost(usage) for usage in usages]
        if any(usage.cached_tokens for usage in usages):
            self.facts.prefix_cache = True
        self._drawn += len(choices)
        self._drawn_tokens += sum(usage.completion_tokens for usage in usages)
        self.limits.settle(booked, usages, costs)
        completions = [
            Completion(
                index=run[position],
                text=choice.text,
                reasoning=choice.reasoning,
                finish_reason=choice.finish_reason,
                refusal=choice.refusal,
                usage=usage,
                latency_s=latency_s,
                cost_usd=cost,
                sampler=self.facts.sampler,
            )
            for position, choice, usage, cost in zip(positions, choices, usages, costs, strict=True)
        ]
        taxonomy = prompt.request.score_tags or self.taxonomy
        if taxonomy is None:
            return completions
        return [
            scored(completion, choice.tokens, taxonomy) if choice.tokens else completion
            for completion, choice in zip(completions, choices, strict=True)
        ]

    def failure(self, index: int, error: CallError, latency_s: float = 0.0) -> Completion:
        """What is stored of a sample that did not come."""
        if error.filtered:
            return Completion(
                index=index, finish_reason="content_filter", latency_s=latency_s, sampler=self.facts.sampler
            )
        return Completion(
            index=index,
            latency_s=latency_s,
            sampler=self.facts.sampler,
            error_type=error.error_type,
            error_message=str(error),
        )

    async def _negotiate(self, line: Line, prompt: Prompt, run: range) -> list[Completion]:
        while True:
            parameters = self.dialect.parameters(prompt.request, run)
            try:
                return await self._send(line, prompt, run, parameters)
            except CallError as error:
                if error.unsupported is not None:
                    self._learn(error.unsupported)
                    continue
                if error.error_type is not ErrorType.BAD_REQUEST or error.rejects_n or error.filtered:
                    raise
                if "logprobs" not in parameters or self.facts.logprobs is not None:
                    raise
            # Some endpoints do not say what they refuse: it was the log-probabilities if it goes without them.
            plain = {k: v for k, v in parameters.items() if k not in ("logprobs", "top_logprobs")}
            completions = await self._send(line, prompt, run, plain)
            self._learn("logprobs")
            return completions

    def _learn(self, refused: str) -> None:
        if change := self.dialect.learn(refused):
            log.warning("%s: %s", self.facts.sampler, change)
        if not self.dialect.takes_logprobs and "logprobs" not in self.extra:
            self.facts.logprobs = False

    async def _send(
        self, line: Line, prompt: Prompt, run: range, parameters: dict[str, Any]
    ) -> list[Completion]:
        several = {"n": len(run)} if len(run) > 1 else {}
        content = prompt.encode({"model": self.model, **several, **parameters, **self.extra})
        asked = Asked(self.model, len(run), list(parameters), prompt.private)
        async with line.slots:
            booked = self._expected_tokens(prompt, run) if self.limits.counts_tokens else 0
            await self.limits.admit(booked)
            started = time.perf_counter()
            answer = await self.endpoint.post(line, content, asked)
            landed = self.answered = time.perf_counter()
        reply = read_reply(answer, len(run))
        if parameters.get("logprobs") or self.extra.get("logprobs"):
            self.facts.see_logprobs(reply)
        self.facts.see_choices(len(run), len(reply.choices))
        return self.completions(prompt, run, reply, landed - started, booked)

    def _expected_tokens(self, prompt: Prompt, run: range) -> int:
        """What a request will count against a tokens-per-minute limit, by the answers so far."""
        return prompt.tokens + round(len(run) * self._drawn_tokens / max(1, self._drawn))
