"""`openai:MODEL`: any endpoint that speaks the chat completions API, through the openai SDK.

Requests go through the SDK's `post`, which its `chat.completions.create` ends in as well: at ten samples a
request, walking the type annotations of the messages and building response models would cost three times as
much processor time as the call itself. The SDK's own retries are off, because they know nothing of a cooldown
that other calls should share.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.chat import CallError, Choice, Reply, read_error, read_reply
from cp_agents.backends.limits import Budget, Limits
from cp_agents.backends.usage import Prices, share_usage
from cp_agents.cues import estimate_tokens
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Completion, Usage

if TYPE_CHECKING:
    import httpx2

    from cp_agents.backends.registry import BackendOptions

log = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://api.openai.com/v1"
LONGEST_WAIT_S = 300.0
"""A Retry-After beyond this is a quota, not a rate: the sample fails instead of holding up the run."""
_CONNECT_TIMEOUT_S = 10.0
_BACKOFF = wait_exponential_jitter(initial=0.5, max=30.0, jitter=0.5)


class OpenAIBackend:
    """Draws samples from an OpenAI-compatible endpoint.

    `n` says whether the endpoint draws several samples in one request: "yes", "no", or "probe", which finds out
    with the first request and wastes nothing of it. `timeout_s` bounds one attempt from the moment it is sent;
    `max_attempts` counts the first. `max_connections` bounds the requests in flight. `prices` in USD per million
    tokens; `extra_body` is merged into every request. The key is `api_key`, else OPENAI_API_KEY; endpoints other
    than OpenAI's own may do without.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        n: Literal["probe", "yes", "no"] = "probe",
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
        for name, value in (("timeout_s", timeout_s), ("max_attempts", max_attempts), ("max_connections", max_connections)):
            if value <= 0:
                raise InputError(f"{name} should be above 0, found {value:g}")
        if reserved := sorted({"model", "messages", "n", "stream"} & set(extra_body or ())):
            raise InputError(f"the extra request body cannot set {', '.join(reserved)}")
        if budget is not None and budget.max_usd is not None and prices is None:
            raise InputError("a budget in USD needs prices (USD per million prompt and completion tokens)")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        api_key = api_key or os.environ.get("OPENAI_API_KEY") or None
        if base_url is None and api_key is None:
            raise InputError("no API key: set OPENAI_API_KEY, or give the base URL of an endpoint that needs none")
        self._base_url = base_url or DEFAULT_BASE_URL
        self._identity = Identity("openai", model, _public_url(self._base_url), revision)
        self._key = api_key or ""
        self._n: bool | None = {"probe": None, "yes": True, "no": False}[n]
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._max_connections = max_connections
        self._limits = Limits(
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, budget=budget
        )
        self._prices = prices
        self._extra = dict(extra_body or {})
        self._http_client = http_client
        self._dialect = Dialect()
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"OpenAIBackend({self._identity.model!r}, base_url={self._identity.endpoint!r})"

    @property
    def identity(self) -> Identity:
        """Model and endpoint; the endpoint without user name, password or query."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """`n` is True once it is declared or found. Seeds are sent, but no endpoint vouches for them."""
        return Capabilities(n=self._n is True, seed=False, retries=True)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index, each as it lands; leaving early cancels what is in flight.

        Raises `BackendError` for errors that end the run, after the samples in flight have landed.
        """
        line = self._line()
        prompt = _Prompt(request, self._identity.model)
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
                    probe = line.probed = asyncio.Event()  # the first request finds out, the others wait for it
                else:
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
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.client.close()

    def _line(self) -> _Line:
        """The connections of the running loop: those of another loop cannot be used in it."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for other in [known for known in self._lines if known.is_closed()]:
                del self._lines[other]
            transport = openai.DefaultAioHttpClient if find_spec("aiohttp") else openai.DefaultAsyncHttpxClient
            client = openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self._base_url,
                max_retries=0,
                # asyncio.timeout bounds an attempt as a whole; a read timeout starts anew with every byte.
                timeout=openai.Timeout(None, connect=min(_CONNECT_TIMEOUT_S, self._timeout_s)),
                http_client=self._http_client or transport(),
            )
            line = self._lines[loop] = _Line(client, asyncio.Semaphore(self._max_connections))
        return line

    async def _call(self, line: _Line, prompt: _Prompt, run: range) -> list[Completion]:
        """Completions for `run`, or for a part of it where the endpoint draws fewer samples at a time."""
        started = time.perf_counter()
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_help),
            stop=stop_after_attempt(self._max_attempts),
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
        """Seconds before the next attempt; what a rate limit asks for holds back every other call, too."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, CallError) else None
        seconds = _BACKOFF(state) if asked is None else asked
        if asked is not None or (isinstance(error, CallError) and error.error_type is ErrorType.RATE_LIMITED):
            self._limits.cool_down(seconds)
        return seconds

    async def _attempt(self, line: _Line, prompt: _Prompt, run: range) -> list[Completion]:
        """One attempt; a parameter that the endpoint does not know is left out at once and for good."""
        try:
            while True:
                parameters = self._dialect.parameters(prompt.request)
                try:
                    return await self._send(line, prompt, run, parameters)
                except CallError as error:
                    if error.unsupported is None:
                        raise
                    self._dialect.learn(error.unsupported, self._identity.model)
        finally:
            if line.probed is not None:
                line.probed.set()

    async def _send(
        self, line: _Line, prompt: _Prompt, run: range, parameters: dict[str, Any]
    ) -> list[Completion]:
        body = {**parameters, **self._extra}
        if "seed" in body and "seed" not in self._extra:
            body["seed"] += run.start
        if len(run) > 1:
            body["n"] = len(run)
        async with line.slots:
            booked = self._estimate(prompt, run) if self._limits.counts_tokens else 0
            await self._limits.admit(booked)
            started = time.perf_counter()
            reply = read_reply(await self._post(line, prompt.encode(body), prompt, parameters, len(run)), len(run))
            latency = time.perf_counter() - started
        if len(run) > 1:
            self._n = len(reply.choices) == len(run)
        return self._completions(prompt, run, reply, booked, latency)

    async def _post(
        self, line: _Line, content: bytes, prompt: _Prompt, sent: Collection[str], asked: int
    ) -> object:
        """The decoded reply. Raises `CallError`, which has let go of the request and its headers."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await line.client.post("/chat/completions", cast_to=object, content=content)
        except openai.APIStatusError as error:
            raise read_error(
                error.status_code,
                error.response.headers,
                error.body,
                model=self._identity.model,
                sent=sent,
                asked=asked,
                private=prompt.private,
                secret=self._key,
            ) from None
        except TimeoutError:
            raise CallError(f"no answer within {self._timeout_s:g} s", ErrorType.TIMEOUT) from None
        except openai.APIConnectionError as error:
            raise _unreachable(error) from None
        except ValueError:
            raise CallError("the endpoint's reply is not JSON", ErrorType.SERVER) from None
        except Exception as error:
            # aiohttp has errors that the SDK does not translate.
            kind = ErrorType.CONNECTION if type(error).__module__.startswith("aiohttp") else ErrorType.INTERNAL
            raise CallError(f"the call failed ({type(error).__name__})", kind) from None

    def _completions(
        self, prompt: _Prompt, run: range, reply: Reply, booked: int, latency_s: float
    ) -> list[Completion]:
        choices = sorted(reply.choices.items())
        estimates = [estimate_tokens(choice.reasoning + choice.text) for _, choice in choices]
        ...
