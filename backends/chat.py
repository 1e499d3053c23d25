"""What OpenAI-compatible endpoints say: replies, refusals of a request, and which of them may be tried again.

Pure functions over decoded JSON and headers; they know no client. Endpoints differ in the shape of errors
(OpenAI, vLLM, llama.cpp, FastAPI, gateways), so everything is read tolerantly.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from cp_agents.errors import BackendError, ErrorType


class Choice(NamedTuple):
    """One answer of a reply."""

    text: str
    reasoning: str
    finish_reason: str | None
    refusal: bool


class Reply(NamedTuple):
    """A chat completion: choices by their position in the request, and the usage object as it came."""

    choices: dict[int, Choice]
    usage: object


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


def read_reply(body: object, asked: int) -> Reply:
    """Read a chat completion of at most `asked` choices. Raises a retryable `CallError` for anything else."""
    if isinstance(body, str):  # JSON under another content type
        try:
            body = json.loads(body)
        except ValueError:
            body = None
    found = body.get("choices") if isinstance(body, dict) else None
    choices: dict[int, Choice] = {}
    if isinstance(found, list):
        read = [(c.get("index"), choice) for c in found if isinstance(c, dict) and (choice := _choice(c))]
        positions = [index for index, _ in read]
        if not _distinct(positions, asked):  # some gateways number every choice 0
            positions = list(range(len(read)))
        choices = {p: choice for p, (_, choice) in zip(positions, read, strict=True) if p < asked}
    if not choices:
        raise CallError("the endpoint's reply is not a chat completion", ErrorType.SERVER)
    return Reply(choices, body.get("usage") if isinstance(body, dict) else None)


def _distinct(positions: list[Any], asked: int) -> bool:
    return len(set(positions)) == len(positions) and all(type(p) is int and 0 <= p < asked for p in positions)


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
    )


def _text(content: object) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def read_error(
    status: int,
    headers: Mapping[str, str],
    body: object,
    *,
    model: str,
    sent: Collection[str],
    asked: int,
    private: str,
    secret: str,
) -> CallError:
    """Type an HTTP error. `sent` are the names of optional parameters in the request, `asked` its n.

    The message quotes the endpoint only where the quotation holds nothing of `private` (what the user wrote) or
    `secret` (the key): endpoints like to repeat both.
    """
    said = _ErrorText.read(body)
    code = f", {said.code}" if re.fullmatch(r"[A-Za-z][\w.-]{2,48}", said.code) else ""
    quotation = _quotation(said.message, private, secret)
    refused = f"the endpoint refused the request ({status}{code})" + (f": {quotation}" if quotation else "")
    wait = retry_after(headers)
    if status in (400, 403, 422, 451) and _FILTERED.search(f"{said.code} {said.message if status != 422 else ''}"):
        return CallError("the endpoint's content filter withheld the answer", ErrorType.BAD_REQUEST, filtered=True)
    if status in (401, 403):
        return CallError(f"the endpoint refused the key for model {model!r} ({status})", ErrorType.AUTH)
    if status == 404:
        where = f"the endpoint has no model {model!r} or no such route (404)"
        return CallError(f"{where}; base URLs usually end in /v1", ErrorType.NOT_FOUND)
    if status == 402 or said.code == "insufficient_quota":
        return CallError(f"the endpoint says that the account's quota is spent ({status})", ErrorType.BUDGET)
    if status == 429:
        return CallError("the endpoint is rate limited (429)", ErrorType.RATE_LIMITED, retry_after=wait)
    if status == 413 or _CONTEXT_LENGTH.search(f"{said.code} {said.message}"):
        return CallError(f"the prompt is too long for the model: {refused}", ErrorType.CONTEXT_LENGTH)
    rejects_n = asked > 1 and (said.param == "n" or _ABOUT_N.search(said.message) is not None)
    if status == 408 or status >= 500:
        message = f"the endpoint failed ({status})"
        return CallError(message, ErrorType.SERVER, retry_after=wait, rejects_n=rejects_n)
    unsupported = None if rejects_n else _unsupported(said, sent)
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


def _unsupported(said: _ErrorText, sent: Collection[str]) -> str | None:
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
    windows = {quoted[i : i + 8] for i in range(max(1, len(quoted) - 7))}
    if any(window in private for window in windows) or any(ord(c) > 127 and c in private for c in quoted):
        return ""
    if any(secret[i : i + 6] in quoted for i in range(max(1, len(secret) - 5))) or re.search(r"\b(sk|Bearer)\b", quoted):
        return ""
    return quoted


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
