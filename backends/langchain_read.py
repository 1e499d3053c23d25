"""What LangChain says, in our words: a chat model's identity, its messages and its exceptions. No calls."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple, cast

from langchain_core import exceptions as lc
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, SecretStr

from cp_agents.backends.base import Identity
from cp_agents.backends.chat import Asked, CallError, read_error
from cp_agents.errors import ErrorType
from cp_agents.schema import Usage

# Singular "token": max_tokens is no secret.
_SECRET_NAME = re.compile(
    r"(key|token|secret|passw(or)?d|credentials?|auth|authorization|cookie)$", re.IGNORECASE
)
_URL_SECRET = re.compile(r"(?<=://)([^/@\s]+)@")


class Description(NamedTuple):
    """Who a chat model is, and what of it must never be shown."""

    identity: Identity
    secrets: str
    """Its keys and passwords, one a line."""


def describe(chat_model: BaseChatModel, bound: Mapping[str, Any]) -> Description:
    """The identity of `chat_model` with the arguments `bound` to it.

    The revision is a hash of its class, of what it says identifies it and of all parameters that it declares
    (endpoint and temperature among them), keys and passwords left out: another parameter is another identity,
    another key is not.
    """
    secrets: list[str] = []
    kind = type(chat_model)
    identifying = dict(chat_model._identifying_params)
    parameters = [
        f"{kind.__module__}.{kind.__qualname__}",
        _plain(chat_model, secrets),
        _plain(identifying, secrets),
        _plain(bound, secrets),
    ]
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode(errors="replace")).hexdigest()[:12]
    named = (
        chat_model._get_ls_params(**bound).get("ls_model_name"),
        *map(identifying.get, ("model_name", "model")),
    )
    model = next((name for name in named if isinstance(name, str) and name), kind.__name__)
    return Description(Identity("langchain", model, revision=digest), "\n".join(secrets))


def _plain(value: object, secrets: list[str], name: str = "") -> Any:
    """`value` as plain JSON; what is secret goes to `secrets`, and of other objects only their type's name stays."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, SecretStr):
        secrets.append(value.get_secret_value())
        return None
    if isinstance(value, str):
        secrets.extend(_URL_SECRET.findall(value))
        if not _SECRET_NAME.search(name):
            return _URL_SECRET.sub("", value)
        secrets.append(value)
        return None
    if isinstance(value, BaseModel):
        # Excluded are callbacks, clients and the like.
        fields = type(value).model_fields.items()
        value = {field: getattr(value, field, None) for field, info in fields if not info.exclude}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, secrets, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, secrets, name) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else type(value).__qualname__


class Answer(NamedTuple):
    """A chat model's message, taken apart."""

    text: str
    reasoning: str
    finish_reason: str | None
    """stop, length, content_filter, refusal; or the provider's own word where it means none of these."""
    refusal: bool
    usage: Usage | None
    """None where the model counted nothing."""


def read_message(message: BaseMessage) -> Answer:
    """Read an answer: content as text or as blocks, reasoning kept apart, finish reason and usage."""
    finish = _finish_reason(message.response_metadata)
    reasoning, refusals = [], [message.additional_kwargs.get("refusal")]
    for block in cast("list[dict[str, Any]]", message.content_blocks):
        # Blocks of providers that langchain-core does not know come wrapped.
        raw = block["value"] if block.get("type") == "non_standard" else block
        reasoning += [raw.get("reasoning"), raw.get("thinking")]
        refusals.append(raw.get("refusal"))
    # Some packages say it in both places.
    refused = next((text for text in refusals if isinstance(text, str) and text), "")
    return Answer(
        text=str(message.text) or refused,
        reasoning="\n".join(text for text in reasoning if isinstance(text, str) and text),
        finish_reason=finish,
        refusal=bool(refused) or finish == "refusal",
        usage=_usage(message),
    )


_FINISH = {
    **dict.fromkeys(
        ("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed"), "stop"
    ),
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
        "length",
    ),
    **dict.fromkeys(
        (
            "content_filter",
            "content_filtered",
            "safety",
            "prohibited_content",
            "blocklist",
            "guardrail_intervened",
        ),
        "content_filter",
    ),
}


def _finish_reason(metadata: Mapping[str, Any]) -> str | None:
    said = [metadata.get(name) for name in ("finish_reason", "stop_reason", "stopReason", "done_reason")]
    if isinstance(incomplete := metadata.get("incomplete_details"), Mapping):
        said.append(incomplete.get("reason"))
    reason = next((word for word in said if isinstance(word, str) and word), None)
    return None if reason is None else _FINISH.get(reason.lower(), reason)


def _usage(message: BaseMessage) -> Usage | None:
    counted = message.usage_metadata if isinstance(message, AIMessage) else None
    if not counted or not (counted["input_tokens"] or counted["output_tokens"]):
        return None
    prompt = counted["input_tokens"]
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=counted["output_tokens"],
        cached_tokens=min(prompt, counted.get("input_token_details", {}).get("cache_read") or 0),
        reasoning_tokens=counted.get("output_token_details", {}).get("reasoning") or 0,
    )


_TYPED: tuple[tuple[type[Exception], ErrorType], ...] = (
    (lc.ContextOverflowError, ErrorType.CONTEXT_LENGTH),
    (lc.ModelAuthenticationError, ErrorType.AUTH),
    (lc.ModelPermissionDeniedError, ErrorType.AUTH),
    (lc.ModelNotFoundError, ErrorType.NOT_FOUND),
    (lc.ModelRateLimitError, ErrorType.RATE_LIMITED),
    (lc.ModelTimeoutError, ErrorType.TIMEOUT),
    (TimeoutError, ErrorType.TIMEOUT),
    (lc.ModelConnectionError, ErrorType.CONNECTION),
    (ConnectionError, ErrorType.CONNECTION),
    (lc.ModelAPIError, ErrorType.SERVER),
    (json.JSONDecodeError, ErrorType.SERVER),  # 200 with something that is no answer
    (lc.ModelInvalidRequestError, ErrorType.BAD_REQUEST),
)
_SENTENCES = {
    ErrorType.CONTEXT_LENGTH: "says that the prompt is too long",
    ErrorType.AUTH: "was refused: the key is missing, wrong or not allowed to use it",
    ErrorType.NOT_FOUND: "does not exist at its endpoint",
    ErrorType.RATE_LIMITED: "is rate limited",
    ErrorType.TIMEOUT: "gave no answer in time",
    ErrorType.CONNECTION: "could not be reached or hung up",
    ErrorType.SERVER: "failed",
    ErrorType.BAD_REQUEST: "refused the request",
    ErrorType.INTERNAL: "failed in an unforeseen way",
}


def read_exception(error: Exception, asked: Asked, secrets: str) -> CallError:
    """Type what a chat model raised, by its HTTP status if it has one, else by the classes of it and its causes.

    The message quotes the exception only as `read_error` does: nothing of the prompt, nothing of `secrets`.
    """
    status = _status(error)
    if status is not None and not isinstance(error, lc.ContextOverflowError):
        return read_error(status, {}, getattr(error, "body", None) or str(error), asked, secrets)
    kind = _error_type(error)
    return CallError(f"the chat model {_SENTENCES[kind]} ({type(error).__name__})", kind)


def _status(error: Exception) -> int | None:
    places = (error, "status_code"), (getattr(error, "response", None), "status_code"), (error, "code")
    codes = (getattr(place, name, None) for place, name in places)
    return next((code for code in codes if type(code) is int and 400 <= code < 600), None)


def _error_type(error: Exception) -> ErrorType:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    for types, kind in _TYPED:
        if any(isinstance(link, types) for link in chain):
            return kind
    # HTTP clients have exceptions of their own, which share their names and nothing else.
    names = " ".join(parent.__name__ for link in chain for parent in type(link).__mro__)
    if "Timeout" in names:
        return ErrorType.TIMEOUT
    return (
        ErrorType.CONNECTION
        if re.search(r"Connect|NetworkError|ProtocolError", names)
        else ErrorType.INTERNAL
    )
