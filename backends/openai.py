"""`openai:MODEL`: samples from any endpoint that speaks the chat completions API.

What it decides: how many requests a record's samples take (n), when a failed call is tried again, and what
each sample is when all is said. `openai_attempts` makes the requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.chat import CallError, Prompt, successive
from cp_agents.backends.endpoint import Endpoint, Line
from cp_agents.backends.limits import Budget, Limits
from cp_agents.backends.openai_attempts import Attempts
from cp_agents.backends.openai_facts import Facts
from cp_agents.backends.usage import Prices
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Completion

if TYPE_CHECKING:
    import httpx2

    from cp_agents.backends.registry import BackendOptions

DEFAULT_BASE_URL = "https://api.openai.com/v1"
PATIENCE_S = 300.0
"""How long an endpoint may answer nothing but 429. A Retry-After beyond it is a quota and not a rate."""
_BACKOFF = wait_exponential(multiplier=0.5, max=30.0) + wait_random(0.0, 0.5)


class OpenAIBackend:
    """Draws samples from an OpenAI-compatible endpoint.

    `n` says whether the endpoint draws several samples in one request: "yes", "no", or "probe", which finds out
    with the first requests and wastes nothing of them. `timeout_s` bounds one attempt from the moment it is sent;
    `max_attempts` counts the first, and no attempt that was rate limited: those go on for as long as the endpoint
    answers others (see PATIENCE_S). `max_connections` bounds the requests in flight. `prices` in USD per million
    tokens; `extra_body` is merged into every request. The key is `api_key`, else OPENAI_API_KEY; endpoints other
    than OpenAI's own may do without.
    """

    kind = "openai"

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
            self.kind, model, self._endpoint.public_url, _revision(revision, base_url or "", extra_body)
        )
        self.facts = Facts(
            self._identity.sampler, n={"probe": None, "yes": True, "no": False}[n], declared=n != "probe"
        )
        self.max_attempts = max_attempts
        self.attempts = Attempts(
            model,
            self._endpoint,
            self.facts,
            limits=Limits(
                requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, budget=budget
            ),
            prices=prices,
            extra=dict(extra_body or {}),
        )

    def __repr__(self) -> str:
        return f"OpenAIBackend({self._identity.model!r}, base_url={self._identity.endpoint!r})"

    @property
    def identity(self) -> Identity:
        """Model and endpoint; the endpoint without user name, password or query."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """`n` is known once it is declared or found, `logprobs` once they were asked for, the rest by `probe`."""
        return self.facts.capabilities()

    def found(self) -> Capabilities | None:
        """What the endpoint was found to be able to do; None before it has answered, and where n was declared."""
        return None if self.facts.declared or self.facts.n is None else self.capabilities

    def recall(self, known: Capabilities) -> None:
        """Take what was found out earlier for what is not known yet, so that no request is spent on it."""
        self.facts.recall(known)

    async def probe(self) -> Capabilities:
        """Find out what the endpoint can do, by two to four requests of a few tokens, each tried once.

        Raises `BackendError` where it does not answer, or not for this key or model.
        """
        await self.attempts.probe(await self._endpoint.line())
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
            if len(request.indices) > 1 and self.facts.n is None:
                if line.probed is None:
                    probe = line.probed = asyncio.Event()
                else:  # one record finds out, the others wait for it
                    await line.probed.wait()
            for run in successive(request.indices, self._longest):
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
                    missing = set(run).difference(c.index for c in completions)
                    for again in successive(missing, self._longest):
                        start(again)
        finally:
            if probe is not None:
                probe.set()
            for task in runs:
                task.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
        if fatal is not None:
            raise fatal

    @property
    def _longest(self) -> int | None:
        """Most samples that one request is made for; None where there is no bound."""
        return 1 if self.facts.n is False else None

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._endpoint.aclose()

    async def _call(self, line: Line, prompt: Prompt, run: range) -> list[Completion]:
        """Completions for `run`, or for a part of it where the endpoint draws fewer samples at a time."""
        started = time.perf_counter()
        try:
            return await self._insist(line, prompt, run, started)
        except CallError as error:
            if error.error_type.is_fatal:
                raise
            if error.rejects_n:
                self.facts.n = False
                return []
            return [self.attempts.failure(index, error, time.perf_counter() - started) for index in run]

    async def _insist(self, line: Line, prompt: Prompt, run: range, started: float) -> list[Completion]:
        """An attempt, and another while that may help. Raises the last `CallError`."""
        try:
            return await self.attempts.make(line, prompt, run)
        except CallError as error:
            first: CallError | None = error
        # Setting up the retries costs as much as sending a request, and nearly none needs them.

        async def attempt() -> list[Completion]:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            return await self.attempts.make(line, prompt, run)

        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_help),
            stop=self._giving_up(started),
            wait=self._wait,
            sleep=asyncio.sleep,
            reraise=True,
        )
        return await retrying(attempt)

    def _giving_up(self, started: float) -> Callable[[RetryCallState], bool]:
        failures = 0

        def give_up(state: RetryCallState) -> bool:
            nonlocal failures
            if _failure_of(state).error_type is ErrorType.RATE_LIMITED:
                return time.perf_counter() - max(started, self.attempts.answered) >= PATIENCE_S
            failures += 1
            return failures >= self.max_attempts

        return give_up

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next attempt. A rate limit holds back every call: the gate sees to that wait."""
        error = _failure_of(state)
        if error.error_type is ErrorType.RATE_LIMITED or error.retry_after:
            self.attempts.limits.cool_down(error.retry_after or _BACKOFF(state))
            return 0.0
        return _BACKOFF(state)


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
