"""Find a backend by its spec: `kind` or `kind:rest`. Adapters are imported only when they are asked for.

Other packages add kinds by the entry point group `cp_agents.backends`: the name is the kind, the value a factory
`(rest, options) -> Backend`. The kinds below cannot be taken over, and CP_AGENTS_DISABLE_PLUGINS=1 turns all
others off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cp_agents.backends.base import Backend
from cp_agents.backends.limits import Budget
from cp_agents.backends.usage import Prices
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.prices import PriceList, prices_for
from cp_agents.taxonomy import Taxonomy

if TYPE_CHECKING:
    from cp_agents.stores.traces import TraceStore


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
    """USD per million tokens: prompt, completion, and cached where it differs. They go before `price_list`."""
    price_list: PriceList | None = None
    """Prices by model, see `cp_agents.prices`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Passed through in the request body of OpenAI-compatible endpoints."""
    store: TraceStore | str | Path | None = None
    """Where students are registered: the run's own store."""

    @cached_property
    def budget(self) -> Budget | None:
        """What may be spent, as one purse for all backends that are made with these options; None if unlimited."""
        if self.budget_usd is None and self.budget_tokens is None:
            return None
        return Budget(self.budget_usd, self.budget_tokens)

    def derived(self, extra: dict[str, Any]) -> BackendOptions:
        """The same options with another `extra`, on the same purse."""
        options = replace(self, extra=extra)
        options.__dict__["budget"] = self.budget
        return options

    def prices_of(self, spec: str) -> Prices | None:
        """What the model `spec`, as in openai:MODEL, costs; None where nobody has said."""
        return prices_for(spec, self.prices, self.price_list)


Factory = Callable[[str, BackendOptions], Backend]

PLUGIN_GROUP = "cp_agents.backends"
"""Entry points of this group are backends of other packages."""

_BUILT_IN: dict[str, str] = {
    "ensemble": "cp_agents.backends.ensemble:from_spec",
    "langchain": "cp_agents.backends.langchain:from_spec",
    "lexicon": "cp_agents.backends.lexicon:from_spec",
    "openai": "cp_agents.backends.openai:from_spec",
    "replay": "cp_agents.backends.replay:from_spec",
    "student": "cp_agents.backends.student:from_spec",
    "transformers": "cp_agents.backends.transformers:from_spec",
    "vllm": "cp_agents.backends.vllm:from_spec",
    "vllm-server": "cp_agents.backends.vllm_server:from_spec",
}


def kinds() -> list[str]:
    """Names that can stand before the colon: our own and those of installed plugins, which are not loaded."""
    return sorted({*_BUILT_IN, *(plugin.name for plugin in _plugins())})


def resolve_backend(spec: str | Backend, options: BackendOptions) -> Backend:
    """The backend that `spec` names; a backend object is returned as it is.

    Raises `InputError` for an unknown kind, an argument that the kind cannot use, or a plugin that does not work.
    """
    if not isinstance(spec, str):
        return spec
    kind, _, rest = spec.partition(":")
    if kind in _BUILT_IN:
        module, _, name = _BUILT_IN[kind].partition(":")
        factory: Factory = getattr(import_module(module), name)
        return factory(rest, options)
    found = [plugin for plugin in _plugins() if plugin.name == kind]
    if not found:
        raise InputError(
            f"unknown backend {spec!r}: expected one of {', '.join(kinds())}, as in openai:MODEL"
        )
    if len(found) > 1:
        owners = " and ".join(sorted(_owner(plugin) for plugin in found))
        raise InputError(f"several packages bring a backend {kind!r} ({owners}): uninstall all but one")
    return _from_plugin(found[0], rest, options)


def _plugins() -> list[EntryPoint]:
    if os.environ.get("CP_AGENTS_DISABLE_PLUGINS", "0") not in ("", "0"):
        return []
    return [plugin for plugin in entry_points(group=PLUGIN_GROUP) if plugin.name not in _BUILT_IN]


def _from_plugin(plugin: EntryPoint, rest: str, options: BackendOptions) -> Backend:
    """A plugin's backend. Whatever goes wrong in foreign code ends as one sentence that names its package."""
    try:
        backend: Backend = plugin.load()(rest, options)
        fits = isinstance(backend, Backend)
    except CpAgentsError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"the backend {plugin.name!r} of the package {_owner(plugin)} does not work ({why})"
        ) from error
    if not fits:
        raise InputError(
            f"the backend {plugin.name!r} of the package {_owner(plugin)} is no backend: expected an object with"
            f" identity, capabilities, sample and aclose, found {type(backend).__name__}"
        )
    return backend


def _owner(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist is not None else plugin.module
