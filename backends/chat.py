"""The chat completions API as it is spoken: requests to write, replies and errors to read.

No client and no network. Endpoints differ in the parameters that they take and in the shape of their errors
(OpenAI, vLLM, llama.cpp, FastAPI, gateways), so the first are learned and everything is read tolerantly.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from cp_agents.backends.base import SampleRequest
from cp_agents.backends.tag_logprobs import TOP, TagToken, read_openai
from cp_agents.cues import estimate_tokens
from cp_agents.errors import BackendError, ErrorType


def successive(indices: Iterable[int], longest: int | None = None) -> list[range]:
    """`indices` as runs of successive ones, each at most `longest` long.

    A run is one request with one seed: endpoints that know seeds draw choice j of it with seed + j, which is
    what a request of its own would have been given.
    """
    runs: list[range] = []
    for index in sorted(set(indices)):
        if runs and runs[-1].stop == index and (longest is None or len(runs[-1]) < longest):
            runs[-1] = range(runs[-1].start, index + 1)
        else:
            runs.append(range(index, index + 1))
    return runs


class Prompt:
    """A request's messages, encoded once for all of its calls."""

    def __init__(self, request: SampleRequest) -> None:
        self.request = request
        self._head = _json({"messages": [m.as_dict() for m in request.messages]})[:-1]

    @property
    def private(self) -> str:
        """What the user wrote: the last user message."""
        return next((m.content for m in reversed(self.request.messages) if m.role == "user"), "")

    @cached_property
    def tokens(self) -> int:
        """Estimated tokens of the messages."""
        return sum(estimate_tokens(m.content) for m in self.request.messages)

    def encode(self, fields: Mapping[str, Any]) -> bytes:
        """The request body with `fields` (at least one) besides the messages."""
        return self._head + b"," + _json(fields)[1:]


def _json(value: object) -> bytes:
    # A lone surrogate has no UTF-8; one broken character must not lose the record.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


_LOGPROBS = ("logprobs", "top_logprobs")


class Dialect:
    """The optional parameters that an endpoint takes, learned from its refusals and never from a model's name."""

    def __init__(self, given: Collection[str] = ()) -> None:
        """Leaves alone what the user has `given` in so many words."""
        if "max_completion_tokens" in given:
            given = {*given, "max_tokens"}
        self._wire = {
            n: n for n in ("temperature", "top_p", "max_tokens", "seed", *_LOGPROBS) if n not in given
        }

    def parameters(self, request: SampleRequest, run: range) -> dict[str, Any]:
        """The parameters of a call for the sample indices in `run`, as this endpoint calls them."""
        values = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "seed": request.seed + run.start,
        }
        if request.score_tags is not None:
            values |= {"logprobs": True, "top_logprobs": TOP}
        return {wire: values[name] for name, wire in self._wire.items() if name in values}

    @property
    def takes_logprobs(self) -> bool:
        """Whether log-probabilities have not been refused."""
        return "logprobs" in self._wire

    def learn(self, refused: str) -> str | None:
        """Rename or leave out what was refused; says so, or gives None where another call has learned it already."""
        for name, wire in self._wire.items():
            if wire != refused:
                continue
            if refused == "max_tokens":
                self._wire[name] = "max_completion_tokens"
                return "the endpoint takes max_completion_tokens in place of max_tokens"
            del self._wire[name]
            if name == "logprobs":
                self._wire.pop("top_logprobs", None)
                return "the endpoint gives no log-probabilities: its answers come without"
            return f"the endpoint does not take {refused}: its own default is in force"
        return None


class Choice(NamedTuple):
    """One answer of a reply."""

    text: str
    reasoning: str
    finish_reason: str | None
    refusal: bool
    tokens: Sequence[TagToken] = ()
    """With their log-probabilities, where the endpoint gives them."""


class Reply(NamedTuple):
    """A chat completion: choices by their position in the request, and the usage object as it came."""

    choices: dict[int, Choice]
    usage: object


class Asked(NamedTuple):
    """What a request was about, to understand why it was refused."""

    model: str
    n: int
    parameters: Sequence[str]
    """Names of its optional parameters."""
    private: str
    """What the user wrote."""


class CallError(BackendError):
    """A call that brought no answer, and what its caller can do about it."""

    def __init__(
        self,
        message: str,
        error_type: ErrorType,
        *,
        retry_after: float | None = None,
        unsupported: str | None = None,
        rejects_n: bool = False,
        filtered: bool = False,
    ) -> None:
        super().__init__(message, error_type)
        self.retry_after = retry_after
        """Seconds after which the endpoint wants to be asked again."""
        self.unsupported = unsupported
        """The parameter of the request that this endpoint does not know."""
        self.rejects_n = rejects_n
        """Whether it takes exception to several choices in one request."""
        self.filtered = filtered
        """Whether its content filter withheld the answer: an outcome, not a failure."""


def read_reply(content: bytes, asked: int) -> Reply:
    """Read a chat completion of at most `asked` choices. Raises a retryable `CallError` for anything else."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    found = body.get("choices") if isinstance(body, dict) else None
    choices: dict[int, Choice] = {}
    if isinstance(found, list):
        read = [(c.get("index"), choice) for c in found if isinstance(c, dict) and (choice := _choice(c))]
        choices = {p: choice for p, choice in read if type(p) is int and 0 <= p < asked}
        if len(choices) < min(len(read), asked):  # some gateways number every choice 0, or none
            choices = dict(enumerate(choice for _, choice in read[:asked]))
    if not choices:
        raise CallError("the endpoint's reply is not a chat completion", ErrorType.SERVER)
    return Reply(choices, body.get("usage") if isinstance(body, dict) else None)


def _choice(raw: dict[str, Any]) -> Choice | None:
    message = raw.get("message")
    if not isinstance(message, dict):
        return None
    text, refusal = _text(message.get("content")), _text(message.get("refusal"))
    finish = raw.get("finish_reason")
    return Choice(
        text=text or refusal,
        reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")),
        finish_reason=finish if isinstance(finish, str) else None,
        refusal=bool(refusal) or finish == "refusal",
        tokens=read_openai(raw.get("logprobs")),
    )


def _text(content: object) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def read_error(status: int, headers: Mapping[str, str], body: object, asked: Asked, secret: str) -> CallError:
    """Type an HTTP error.

    The message quotes the endpoint only where the quotation holds nothing of what the user wrote and nothing of
    `secret` (the key): endpoints like to repeat both.
    """
    said = _ErrorText.read(body)
    code, quotation = (_quotation(text, asked.private, secret) for text in (said.code, said.message))
    code = f", {code}" if re.fullmatch(r"[A-Za-z][\w.-]{2,48}", code) else ""
    refused = f"the endpoint refused the request ({status}{code})" + (f": {quotation}" if quotation else "")
    wait = retry_after(headers)
    if status in (400, 403, 422, 451) and _FILTERED.search(
        f"{said.code} {said.message if status != 422 else ''}"
    ):
        return CallError(
            "the endpoint's content filter withheld the answer", ErrorType.BAD_REQUEST, filtered=True
        )
    if status in (401, 403):
        return CallError(f"the endpoint refused the key for model {asked.model!r} ({status})", ErrorType.AUTH)
    if status == 404:
        where = f"the endpoint has no model {asked.model!r} or no such route (404)"
        return CallError(f"{where}; base URLs usually end in /v1", ErrorType.NOT_FOUND)
    if status == 402 or said.code == "insufficient_quota":
        return CallError(f"the endpoint says that the account's quota is spent ({status})", ErrorType.BUDGET)
    if status == 429:
        return CallError("the endpoint is rate limited (429)", ErrorType.RATE_LIMITED, retry_after=wait)
    if status == 413 or _CONTEXT_LENGTH.search(f"{said.code} {said.message}"):
        return CallError(f"the prompt is too long for the model: {refused}", ErrorType.CONTEXT_LENGTH)
    rejects_n = asked.n > 1 and (said.param == "n" or _ABOUT_N.search(said.message) is not None)
    if status == 408 or status >= 500:
        message = f"the endpoint failed ({status})"
        return CallError(message, ErrorType.SERVER, retry_after=wait, rejects_n=rejects_n)
    unsupported = None if rejects_n else _unsupported(said, asked.parameters)
    return CallError(refused, ErrorType.BAD_REQUEST, unsupported=unsupported, rejects_n=rejects_n)


_FILTERED = re.compile(
    r"content[_ ](filter|policy|management)|responsible ?ai|data_inspection|moderation|flagged", re.IGNORECASE
)
_CONTEXT_LENGTH = re.compile(
    r"context[_ ](length|window|size)|(prompt|input|request|message)s? (is|are) too (long|large)|"
    r"too many (input )?tokens|reduce the length",
    re.IGNORECASE,
)
_ABOUT_N = re.compile(r"(?<![\w\\])n(?!\w)|\bbest_of\b|one completion choice|multiple (choices|completions)")
_UNSUPPORTED = re.compile(
    r"unsupported|not? support|n't support|unrecogni[sz]ed|unknown|unexpected|not (permitted|allowed|accepted)|"
    r"extra (inputs|fields)|cannot both|only one of",
    re.IGNORECASE,
)


class _ErrorText(NamedTuple):
    code: str
    param: str
    message: str

    @classmethod
    def read(cls, body: object) -> _ErrorText:
        if isinstance(body, dict) and isinstance(body.get("error"), dict | str):
            body = body["error"]
        if isinstance(body, dict) and isinstance(body.get("detail"), list | str):
            body = body["detail"]
        if isinstance(body, list):  # FastAPI: [{"loc": ["body", "seed"], "msg", "type"}]
            body = body[0] if body else None
        if not isinstance(body, dict):
            return cls("", "", body if isinstance(body, str) else "")
        place = body.get("loc")
        param = body.get("param") or (place[-1] if isinstance(place, list) and place else "")
        code = body.get("code") if isinstance(body.get("code"), str) else body.get("type")
        message = body.get("message") or body.get("msg") or ""
        return cls(str(code or ""), str(param), f"{param}: {message}" if place else str(message))


def _unsupported(said: _ErrorText, sent: Sequence[str]) -> str | None:
    # Log-probabilities are asked for with a number of alternatives that is ours: any word against them is a refusal.
    about = f"{said.param} {said.message}".lower()
    if refused := [name for name in reversed(_LOGPROBS) if name in sent and re.search(rf"\b{name}\b", about)]:
        return refused[0]
    # A value out of range also names the parameter: that is the user's mistake and must not be papered over.
    if not _UNSUPPORTED.search(f"{said.code} {said.message}".replace("_", " ")):
        return None
    if said.param in sent:
        return said.param
    named = [name for name in sent if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said.message)]
    return named[-1] if named else None


def _quotation(message: str, private: str, secret: str) -> str:
    """The first words of an endpoint's message, or nothing where they could give something away."""
    quoted = " ".join(message.split())[:160]
    tells = (
        _shares(quoted, private, 8)
        or any(ord(c) > 127 and c in private for c in quoted)
        or _shares(quoted, secret, 6)
        or re.search(r"\b(sk-|Bearer )", quoted) is not None
    )
    return "" if tells else quoted


def _shares(a: str, b: str, length: int) -> bool:
    """Whether some `length` successive characters of `a` stand in `b`."""
    return any(a[i : i + length] in b for i in range(len(a) - length + 1))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) asks to wait; None without it."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())
