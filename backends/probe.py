"""Finding out what a backend can do, and what an endpoint's replies to a few small questions tell of it.

A backend that can find out has a coroutine `probe() -> Capabilities`; what the others declare is all there is to know.
"""

from __future__ import annotations

import json
from typing import Any, Protocol, runtime_checkable

from cp_agents.backends.base import Backend, Capabilities, SampleRequest
from cp_agents.backends.chat import Choice
from cp_agents.schema import Message
from cp_agents.taxonomy import Attribute, Tag, Taxonomy

_YES_OR_NO = Taxonomy(
    name="probe", attributes=[Attribute(name="said", tags=[Tag(name="yes"), Tag(name="no")])]
)
QUESTION = SampleRequest(
    messages=(Message("user", "Answer with one word: yes."),), indices=(0,), max_tokens=64, score_tags=_YES_OR_NO
)  # fmt: skip
"""Costs a few tokens and holds nothing of anybody."""

_MAYBE = {"answer": "maybe"}
IN_FORM: dict[str, Any] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"answer": {"type": "string", "enum": ["maybe"]}},
                "required": ["answer"],
                "additionalProperties": False,
            },
        },
    }
}
"""Holds the answer to a form that the question does not lead to: who gives it was held to it."""

_CONTEXT = ("max_model_len", "context_length", "context_window", "max_context_length", "n_ctx", "n_ctx_train")
"""What servers and gateways call the length of a model's context in their list of models."""


@runtime_checkable
class Probing(Protocol):
    """A backend that finds out what it can do."""

    async def probe(self) -> Capabilities:
        """Ask, and say what it can do. Raises `BackendError` where nobody answers."""
        ...


async def probe(backend: Backend) -> Capabilities:
    """What `backend` can do: found out where it knows how to, else as it declares. Raises `BackendError`."""
    return await backend.probe() if isinstance(backend, Probing) else backend.capabilities


def keeps_form(choice: Choice) -> bool | None:
    """Whether an answer to IN_FORM was held to its form; None where it ended too early to tell."""
    try:
        return bool(json.loads(choice.text) == _MAYBE)
    except ValueError:
        return None if choice.finish_reason == "length" else False


def context_of(models: object, model: str) -> int | None:
    """The context of `model`, in tokens, by an endpoint's list of models; None where it does not say."""
    cards = models.get("data") if isinstance(models, dict) else None
    for card in cards if isinstance(cards, list) else []:
        if isinstance(card, dict) and card.get("id") == model:
            told = {**(card["meta"] if isinstance(card.get("meta"), dict) else {}), **card}
            found = next((told[name] for name in _CONTEXT if name in told), None)
            return found if type(found) is int and found > 0 else None
    return None
