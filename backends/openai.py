"""`openai:MODEL`: samples from any endpoint that speaks the chat completions API.

What it decides: how many requests a record's samples take (n), when a failed call is tried again, and what
each sample is when all is said.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_exponential,
    wait_random,
)

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.chat import Asked, CallError, Dialect, Prompt, Reply, read_reply, successive
from cp_agents.backends.endpoint import Endpoint, Line
from cp_agents.backends.limits import Budget, Limits
from cp_agents.backends.probe import IN_FORM, QUESTION, context_of, keeps_form
from cp_agents.backends.tag_logprobs import scored
from cp_agents.backends.usage import Prices, estimate_usage, read_usage
from cp_agents.cues import estimate_tokens
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Completion
from cp_agents.taxonomy import Taxonomy

if TYPE_CHECKING:
    import httpx2

    from cp_agents.backends.registry import BackendOptions

log = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://api.openai.com/v1"
PATIENCE_S = 300.0
"""How long an endpoint may answer nothing but 429. A Retry-After beyond it is a quota and not a rate."""
_BACKOFF = wait_exponential(multiplier=0.5, max=30.0) + wait_random(0.0, 0.5)


class OpenAIBackend:
    """Draws samples from an OpenAI-compatible endpoint.

    `n` says whether the endpoint draws several samples in one request: "yes", "no", or "probe", which finds out
    with the first request and wastes nothing of it. `timeout_s` bounds one attempt from the moment it is sent;
    `max_attempts` counts the first, and no attempt that was rate limited: those go on for as long as the endpoint
    answers others (see PATIENCE_S). `max_connections` bounds the requests in flight. `prices` in USD per million
    tokens; `extra_body` is merged into every request. The key is `api_key`, else OPENAI_API_KEY; endpoints other
    than OpenAI's own may do without.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        n: str = "probe",
        timeout_s: float = 120.0,
        max_attempts: int = 6,
        max_connections: int = 256,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
        extra_body: dict[str, Any] | None = None,
        revision: str = "",
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        if not model.strip():
            raise InputError("the openai backend needs a model name, as in openai:MODEL")
        if n not in ("probe", "yes", "no"):
            raise InputError(f"n should be probe, yes or no, found {n!r}")
        bounds = {"timeout_s": timeout_s, "max_attempts": max_attempts, "max_connections": max_connections}
        for name, value in bounds.items():
            if value <= 0:
                raise InputError(f"{name} should be above 0, found {value:g}")
        if reserved := sorted({"model", "messages", "n", "stream"} & set(extra_body or ())):
            raise InputError(f"the extra request body cannot set {', '.join(reserved)}")
        if budget is not None and budget.max_usd is not None and prices is None:
            raise InputError("a budget in USD needs prices (USD per million prompt and completion tokens)")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        if base_url is None and api_key is None:
            raise InputError(
                "no API key: set OPENAI_API_KEY, or give the base URL of an endpoint that needs none"
            )
        self._endpoint = Endpoint(
            base_url or DEFAULT_BASE_URL,
            api_key or "",
            timeout_s=timeout_s,
            max_connections=max_connections,
            http_client=http_client,
        )
        self._identity = Identity(
            "openai", model, self._endpoint.public_url, _revision(revision, base_url or "", extra_body)
        )
        self._logprobs: bool | None = None
        self._taxonomy: Taxonomy | None = None  # of subclasses that are told to ask for probabilities always
        self._declared = n != "probe"
        self._structured: bool | None = None
        self._caches: bool | None = None
        self._context: int | None = None
        self._n: bool | None = {"probe": None, "yes": True, "no": False}[n]
        self._max_attempts = max_attempts
        self._limits = Limits(
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, budget=budget
        )
        self._prices = prices
        self._extra = dict(extra_body or {})
        self._dialect = Dialect(given=self._extra)
        self._drawn = self._drawn_tokens = 0
        self._answered = -float("inf")

    def __repr__(self) -> str:
        return f"OpenAIBackend({self._identity.model!r}, base_url={self._identity.endpoint!r})"

    @property
    def identity(self) -> Identity:
        """Model and endpoint; the endpoint without user name, password or query."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """`n` is known once it is declared or found, `logprobs` once they were asked for, the rest by `probe`. Seeds
        are sent, but no endpoint vouches for them."""
        return Capabilities(
            n=self._n,
            seed=False,
            retries=True,
            logprobs=self._logprobs,
            structured_output=self._structured,
            prefix_cache=self._caches,
            max_context=self._context,
        )

    def found(self) -> Capabilities | None:
        """What the endpoint was found to be able to do; None before it has answered, and where n was declared."""
        return None if self._declared or self._n is None else self.capabilities

    def recall(self, known: Capabilities) -> None:
        """Take what was found out earlier for what is not known yet, so that no request is spent on it.

        What an answer comes with (log-probabilities) is seen anew: it costs nothing.
        """
        self._n = known.n if self._n is None else self._n
        self._structured = known.structured_output if self._structured is None else self._structured
        self._caches = known.prefix_cache if self._caches is None else self._caches
        self._context = self._context or known.max_context

    async def probe(self) -> Capabilities:
        """Find out what the endpoint can do, by two or three requests of a few tokens, each tried once.

        Raises `BackendError` where it does not answer, or not for this key or model.
        """
        line = await self._endpoint.line()
        prompt = Prompt(QUESTION)
        try:
            await self._attempt(line, prompt, range(1 if self._n is False else 2))
        except CallError as error:
            if not error.rejects_n:
                raise
            self._n = False
            await self._attempt(line, prompt, range(1))
        model = self._identity.model
        if self._structured is None:
            fields = {"model": model, **self._dialect.parameters(prompt.request, range(1)), **self._extra}
            asked = Asked(model, 1, list(fields), prompt.private)
            try:
                reply = await self._endpoint.post(line, prompt.encode({**fields, **IN_FORM}), asked)
                self._structured = keeps_form(read_reply(reply, 1).choices[0])
            except CallError as error:
                self._structured = False if error.error_type is ErrorType.BAD_REQUEST else None
        self._context = context_of(await self._endpoint.models(line), model)
        return self.capabilities

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index, each as it lands; leaving early cancels what is in flight.

        Raises `BackendError` for errors that end the run, after the samples in flight have landed.
        """
        line = await self._endpoint.line()
        prompt = Prompt(request)
        landed: asyncio.Queue[asyncio.Task[list[Completion]]] = asyncio.Queue()
        runs: dict[asyncio.Task[list[Completion]], range] = {}
        probe: asyncio.Event | None = None
        fatal: BackendError | None = None

        def start(run: range) -> None:
            task = asyncio.create_task(self._call(line, prompt, run))
            runs[task] = run
            task.add_done_callback(landed.put_nowait)

        try:
            if len(request.indices) > 1 and self._n is None:
                if line.probed is None:
                    probe = line.probed = asyncio.Event()
                else:  # the first request finds out, the others wait for it
                    await line.probed.wait()
            for run in successive(request.indices, 1 if self._n is False else None):
                start(run)
            while runs:
                task = await landed.get()
                run = runs.pop(task)
                try:
                    completions = task.result()
                except BackendError as error:
                    fatal = fatal or error
                    continue
                for completion in completions:
                    yield completion
                if fatal is None:
                    for index in sorted(set(run).difference(c.index for c in completions)):
                        start(range(index, index + 1))
        finally:
            if probe is not None:
                probe.set()
            for task in runs:
                task.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
        if fatal is not None:
            raise fatal

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._endpoint.aclose()

    async def _call(self, line: Line, prompt: Prompt, run: range) -> list[Completion]:
        """Completions for `run`, or for a part of it where the endpoint draws fewer samples at a time."""
        started = time.perf_counter()
        failures = 0

        def give_up(state: RetryCallState) -> bool:
            nonlocal failures
            if _failure_of(state).error_type is ErrorType.RATE_LIMITED:
                return time.perf_counter() - max(started, self._answered) >= PATIENCE_S
            failures += 1
            return failures >= self._max_attempts

        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_help),
            stop=give_up,
            wait=self._wait,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return await retrying(self._attempt, line, prompt, run)
        except CallError as error:
            if error.error_type.is_fatal:
                raise
            if error.rejects_n:
                self._n = False
                return []
            return [self._failure(index, error, time.perf_counter() - started) for index in run]

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next attempt. A rate limit holds back every call: the gate sees to that wait."""
        error = _failure_of(state)
        if error.error_type is ErrorType.RATE_LIMITED or error.retry_after:
            self._limits.cool_down(error.retry_after or _BACKOFF(state))
            return 0.0
        return _BACKOFF(state)

    async def _attempt(self, line: Line, prompt: Prompt, run: range) -> list[Completion]:
        """One attempt; a parameter that the endpoint does not know is left out at once and for good."""
        try:
            while True:
                parameters = self._dialect.parameters(prompt.request, run)
                try:
                    return await self._send(line, prompt, run, parameters)
                except CallError as error:
                    if error.unsupported is not None:
                        self._learn(error.unsupported)
                        continue
                    if error.error_type is not ErrorType.BAD_REQUEST or error.rejects_n or error.filtered:
                        raise
                    if "logprobs" not in parameters or self._logprobs is not None:
                        raise
                # Some endpoints do not say what they refuse: it was the log-probabilities if it goes without them.
                plain = {k: v for k, v in parameters.items() if k not in ("logprobs", "top_logprobs")}
                completions = await self._send(line, prompt, run, plain)
                self._learn("logprobs")
                return completions
        finally:
            if line.probed is not None:
                line.probed.set()

    def _learn(self, refused: str) -> None:
        if change := self._dialect.learn(refused):
            log.warning("%s: %s", self._identity.sampler, change)
        if not self._dialect.takes_logprobs and "logprobs" not in self._extra:
            self._logprobs = False

    async def _send(
        self, line: Line, prompt: Prompt, run: range, parameters: dict[str, Any]
    ) -> list[Completion]:
        model = self._identity.model
        several = {"n": len(run)} if len(run) > 1 else {}
        content = prompt.encode({"model": model, **several, **parameters, **self._extra})
        asked = Asked(model, len(run), list(parameters), prompt.private)
        async with line.slots:
            booked = self._expected_tokens(prompt, run) if self._limits.counts_tokens else 0
            await self._limits.admit(booked)
            started = time.perf_counter()
            answer = await self._endpoint.post(line, content, asked)
            landed = self._answered = time.perf_counter()
        reply = read_reply(answer, len(run))
        if parameters.get("logprobs") or self._extra.get("logprobs"):
            self._look_for_logprobs(reply)
        if len(reply.choices) < len(run):
            self._n = False
        elif several and self._n is None:
            self._n = True
        return self._completions(prompt, run, reply, booked, landed - started)

    def _look_for_logprobs(self, reply: Reply) -> None:
        """Whether the endpoint gives what it was asked for, or says nothing of it."""
        if any(choice.tokens for choice in reply.choices.values()):
            self._logprobs = True
        elif self._logprobs is None and any(choice.text for choice in reply.choices.values()):
            self._logprobs = False
            log.warning("%s: the endpoint ignores logprobs: its answers come without", self._identity.sampler)

    def _completions(
        self, prompt: Prompt, run: range, reply: Reply, booked: int, latency_s: float
    ) -> list[Completion]:
        positions = sorted(reply.choices)
        choices = [reply.choices[p] for p in positions]
        usages = read_usage(reply.usage, len(choices)) or estimate_usage(
            prompt.tokens, [estimate_tokens(choice.reasoning + choice.text) for choice in choices]
        )
        costs = [None if self._prices is None else self._prices.cost(usage) for usage in usages]
        if any(usage.cached_tokens for usage in usages):
            self._caches = True
        self._drawn += len(choices)
        self._drawn_tokens += sum(usage.completion_tokens for usage in usages)
        self._limits.settle(booked, usages, costs)
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
                sampler=self._identity.sampler,
            )
            for position, choice, usage, cost in zip(positions, choices, usages, costs, strict=True)
        ]
        taxonomy = prompt.request.score_tags or self._taxonomy
        if taxonomy is None:
            return completions
        return [
            scored(completion, choice.tokens, taxonomy) if choice.tokens else completion
            for completion, choice in zip(completions, choices, strict=True)
        ]

    def _failure(self, index: int, error: CallError, latency_s: float) -> Completion:
        if error.filtered:
            return Completion(
                index=index,
                finish_reason="content_filter",
                latency_s=latency_s,
                sampler=self._identity.sampler,
            )
        return Completion(
            index=index,
            latency_s=latency_s,
            sampler=self._identity.sampler,
            error_type=error.error_type,
            error_message=str(error),
        )

    def _expected_tokens(self, prompt: Prompt, run: range) -> int:
        """What a request will count against a tokens-per-minute limit, by the answers so far."""
        return prompt.tokens + round(len(run) * self._drawn_tokens / max(1, self._drawn))


def _failure_of(state: RetryCallState) -> CallError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, CallError), "nothing else is tried again"
    return error


def _may_help(error: BaseException) -> bool:
    """Whether another attempt may bring an answer."""
    if not isinstance(error, CallError) or error.rejects_n:
        return False
    return error.is_retryable and (error.retry_after or 0.0) <= PATIENCE_S


def _revision(given: str, base_url: str, extra_body: dict[str, Any] | None) -> str:
    """What decides the answers beside model and endpoint: the given revision, extra parameters, the URL's query."""
    query = urlsplit(base_url).query
    # Log-probabilities are reported beside an answer and do not change it.
    extra = {
        k: v for k, v in (extra_body or {}).items() if k not in ("logprobs", "top_logprobs") and v is not None
    }
    if not query and not extra:
        return given
    canonical = json.dumps([query, extra], sort_keys=True, default=str)
    return "+".join(filter(None, (given, hashlib.sha256(canonical.encode()).hexdigest()[:12])))


def from_spec(model: str, options: BackendOptions) -> OpenAIBackend:
    """`openai:MODEL`."""
    return OpenAIBackend(
        model,
        base_url=options.base_url,
        n=options.n,
        timeout_s=options.timeout_s,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        budget=options.budget,
        prices=options.prices_of(f"openai:{model}"),
        extra_body=options.extra,
    )
