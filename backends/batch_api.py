"""The batch API of OpenAI-compatible endpoints: a file of requests in, files of answers and errors out.

`ChatLines` writes the lines of an input file and reads those of an output or error file, for one model and with
no network; `vllm run-batch` takes and gives the same lines. `BatchAPI` is /v1/files and /v1/batches.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import openai
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from cp_agents.backends.chat import Asked, CallError, Prompt, read_error, read_reply
from cp_agents.errors import ErrorType
from cp_agents.schema import Completion

if TYPE_CHECKING:
    from openai.types import Batch

    from cp_agents.backends.openai import OpenAIBackend
    from cp_agents.backends.usage import Prices

T = TypeVar("T")

ROUTE: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MAX_REQUESTS = 50_000
"""Requests that the API takes in one file."""
MAX_BYTES = 200_000_000
"""Size of a file that the API takes."""
KEY_FIELD = "cp_agents"
"""Metadata field that holds our own key of a batch."""

_TRANSFER_TIMEOUT_S = 1800.0
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_CLOCKS_APART_S = 86_400
_MOST_QUOTED = 160
_ERROR_TYPES = {
    "batch_expired": ErrorType.TIMEOUT,
    "request_timeout": ErrorType.TIMEOUT,
    "batch_cancelled": ErrorType.CANCELLED,
}
_WHY_MISSING = {
    "expired": (ErrorType.TIMEOUT, "the batch expired before this request was answered"),
    "cancelled": (ErrorType.CANCELLED, "the batch was cancelled before this request was answered"),
}


class Line(NamedTuple):
    """One line of an output or error file."""

    custom_id: str
    status: int | None
    """HTTP status; None for a failure that is none of HTTP's."""
    body: Any
    code: str
    """What the line's error object says, "" where it says nothing."""


def read_line(raw: bytes) -> Line | None:
    """A result line of the batch API or of `vllm run-batch`; None for what is no such line."""
    try:
        row = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        return None
    response, error = row.get("response"), row.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    code = code if isinstance(code, str) and re.fullmatch(r"[A-Za-z][\w.-]{2,48}", code) else ""
    if not isinstance(response, dict):
        return Line(row["custom_id"], None, None, code)
    status, body = response.get("status_code"), response.get("body")
    return Line(row["custom_id"], status if isinstance(status, int) else 200, body or error, code)


class ChatLines:
    """Request lines and result lines of one chat model, with the parameters that its backend has learned.

    `prices`, in USD per million tokens, are those of batched requests.
    """

    def __init__(self, backend: OpenAIBackend, prices: Prices | None) -> None:
        self._backend = backend
        self._prices = prices

    def write(self, custom_id: str, prompt: Prompt, run: range) -> bytes:
        """The line that asks for the samples in `run`, with its line break."""
        backend = self._backend
        several = {"n": len(run)} if len(run) > 1 else {}
        parameters = backend.attempts.dialect.parameters(prompt.request, run)
        body = prompt.encode(
            {"model": backend.identity.model, **several, **parameters, **backend.attempts.extra}
        )
        return b'{"custom_id":"%b","method":"POST","url":"%b","body":%b}\n' % (
            custom_id.encode(), ROUTE.encode(), body,
        )  # fmt: skip

    def read(self, line: Line, prompt: Prompt, run: range) -> list[Completion]:
        """One completion per sample that was asked for; what failed is typed.

        Raises `CallError` for a failure that every other request would share.
        """
        backend = self._backend
        private = prompt.private
        asked = Asked(
            backend.identity.model,
            len(run),
            list(backend.attempts.dialect.parameters(prompt.request, run)),
            private,
        )
        try:
            if line.status is None:
                kind = _ERROR_TYPES.get(line.code, ErrorType.SERVER)
                raise CallError(f"the batch did not answer this request{_in_brackets(line.code)}", kind)
            if line.status != 200:
                raise read_error(line.status, {}, line.body, asked, backend.attempts.endpoint._key)
            reply = read_reply(json.dumps(line.body).encode(), len(run))
        except CallError as error:
            if error.error_type.is_fatal:
                raise
            return [backend.attempts.failure(index, error) for index in run]
        found = backend.attempts.completions(prompt, run, reply, 0.0)
        if self._prices is not None:
            found = [c.model_copy(update={"cost_usd": self._prices.cost(c.usage)}) for c in found]
        short = CallError(f"the endpoint gave {len(found)} of {len(run)} answers", ErrorType.SERVER)
        there = {completion.index for completion in found}
        return [*found, *(backend.attempts.failure(index, short) for index in run if index not in there)]

    def missing(self, status: str, run: range) -> list[Completion]:
        """Failures for a request without a line in the results of a batch that ended as `status`."""
        kind, why = _WHY_MISSING.get(
            status, (ErrorType.SERVER, "the results of the batch have no line for this request")
        )
        return [self._backend.attempts.failure(index, CallError(why, kind)) for index in run]


class BatchState(NamedTuple):
    """What the endpoint says of a batch."""

    batch_id: str
    status: str
    input_file: str
    result_files: tuple[str, ...]
    """Of answers and of errors, those that there are."""
    answered: int
    message: str
    """Why it was not taken, "" otherwise."""
    over_limit: bool
    """Whether it was not taken because too much was in the queue."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in _ENDED


class BatchAPI:
    """Files and batches of the endpoint that `backend` speaks to. Every method raises `CallError`."""

    def __init__(self, backend: OpenAIBackend) -> None:
        self._backend = backend
        self._endpoint = backend.attempts.endpoint

    async def upload(self, path: Path, key: str) -> str:
        """Upload an input file; its id."""
        name = f"cp-agents-{key}.jsonl"

        async def call(client: openai.AsyncOpenAI) -> str:
            content = await asyncio.to_thread(path.read_bytes)
            return (await client.files.create(file=(name, content), purpose="batch")).id

        return await self._insist(call, _TRANSFER_TIMEOUT_S)

    async def create(self, file_id: str, key: str, since: float) -> BatchState:
        """Make a batch of an input file, once: before it is tried again, the endpoint is asked whether it has it.

        `since` is a Unix time before which it cannot have been made.
        """

        asked = False

        async def call(client: openai.AsyncOpenAI) -> BatchState:
            nonlocal asked
            if asked and (found := await self._find(client, key, since)) is not None:
                return found
            asked = True
            return self._state(
                await client.batches.create(
                    input_file_id=file_id,
                    endpoint=ROUTE,
                    completion_window="24h",
                    metadata={KEY_FIELD: key},
                )
            )

        return await self._insist(call)

    async def find(self, key: str, since: float) -> BatchState | None:
        """The batch that was made with `key`, if the endpoint has it."""
        return await self._insist(lambda client: self._find(client, key, since))

    async def _find(self, client: openai.AsyncOpenAI, key: str, since: float) -> BatchState | None:
        try:
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get(KEY_FIELD) == key:
                    return self._state(batch)
                if batch.created_at < since - _CLOCKS_APART_S:
                    return None
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405):  # an endpoint without a list
                raise
        return None

    async def retrieve(self, batch_id: str) -> BatchState:
        """How a batch stands, asked once: whoever polls asks again anyway."""
        return await self._ask(lambda client: self._retrieve(client, batch_id))

    async def _retrieve(self, client: openai.AsyncOpenAI, batch_id: str) -> BatchState:
        return self._state(await client.batches.retrieve(batch_id))

    async def download(self, file_id: str, path: Path) -> None:
        """Save a file of results."""

        async def call(client: openai.AsyncOpenAI) -> None:
            async with client.files.with_streaming_response.content(file_id) as response:
                with path.open("wb") as file:
                    async for chunk in response.iter_bytes():
                        file.write(chunk)

        await self._insist(call, _TRANSFER_TIMEOUT_S)

    async def delete(self, file_id: str) -> None:
        """Delete a file at the endpoint."""

        async def call(client: openai.AsyncOpenAI) -> None:
            await client.files.delete(file_id)

        await self._ask(call)

    def _state(self, batch: Batch) -> BatchState:
        errors = (batch.errors.data if batch.errors is not None else None) or []
        code, said = (errors[0].code or "", errors[0].message or "") if errors else ("", "")
        key = self._endpoint._key
        said = "" if key and key in said else " ".join(said.split())[:_MOST_QUOTED]
        return BatchState(
            batch_id=batch.id,
            status=batch.status,
            input_file=batch.input_file_id,
            result_files=tuple(f for f in (batch.output_file_id, batch.error_file_id) if f),
            answered=batch.request_counts.completed if batch.request_counts is not None else 0,
            message=": ".join(filter(None, (code, said))),
            over_limit=batch.status == "failed" and re.search(r"limit|quota_exceeded", code) is not None,
        )

    async def _insist(
        self, call: Callable[[openai.AsyncOpenAI], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        """`_ask`, and again after a failure that may pass."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, CallError) and e.is_retryable),
            stop=stop_after_attempt(self._backend.max_attempts),
            wait=wait_exponential(multiplier=0.5, max=30.0) + wait_random(0.0, 0.5),
            sleep=asyncio.sleep,
            reraise=True,
        )
        return await retrying(self._ask, call, timeout_s)

    async def _ask(
        self, call: Callable[[openai.AsyncOpenAI], Awaitable[T]], timeout_s: float | None = None
    ) -> T:
        endpoint, model = self._endpoint, self._backend.identity.model
        line = await endpoint.line()
        try:
            async with asyncio.timeout(timeout_s or endpoint._timeout_s):
                return await call(line.client)
        except openai.NotFoundError:
            failure = CallError(
                "the endpoint has no such batch or file, or no batch API (404)", ErrorType.NOT_FOUND
            )
        except openai.APIStatusError as error:
            if error.status_code == 413:
                why = "the endpoint takes no file of this size (413): make the batches smaller"
                raise CallError(why, ErrorType.BAD_REQUEST) from None
            asked = Asked(model, 1, (), "")
            failure = read_error(error.status_code, error.response.headers, error.body, asked, endpoint._key)
        except Exception as error:
            failure = endpoint._lost(error)
        raise failure


def _in_brackets(code: str) -> str:
    return f" ({code})" if code else ""
