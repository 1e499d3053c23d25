"""Find a backend by its spec: `kind` or `kind:rest`. Adapters are imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from cp_agents.backends.base import Backend
from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy


@dataclass(frozen=True)
class BackendOptions:
    """What a run knows that an adapter may need."""

    taxonomy: Taxonomy
    base_url: str | None = None
    timeout_s: float = 120.0
    n: str = "probe"
    """Whether the endpoint draws several samples in one request: probe, yes or no."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_usd: float | None = None
    budget_tokens: int | None = None
    prices: dict[str, float] | None = None
    """USD per million tokens: prompt, completion, and cached where it differs."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Passed through in the request body of OpenAI-compatible endpoints."""


Factory = Callable[[str, BackendOptions], Backend]

_BUILT_IN: dict[str, str] = {
    "lexicon": "cp_agents.backends.lexicon:from_spec",
    "openai": "cp_agents.backends.openai:from_spec",
    "replay": "cp_agents.backends.replay:from_spec",
}


def kinds() -> list[str]:
    """Names that can stand before the colon."""
    return sorted(_BUILT_IN)


def resolve_backend(spec: str | Backend, options: BackendOptions) -> Backend:
    """The backend that `spec` names; a backend object is returned as it is.

    Raises `InputError` for an unknown kind or an argument that the kind cannot use.
    """
    if not isinstance(spec, str):
        return spec
    kind, _, rest = spec.partition(":")
    if kind not in _BUILT_IN:
        raise InputError(
            f"unknown backend {spec!r}: expected one of {', '.join(kinds())}, as in openai:MODEL"
        )
    module, _, name = _BUILT_IN[kind].partition(":")
    factory: Factory = getattr(import_module(module), name)
    return factory(rest, options)
