"""cp-agents: agentic user profiling with confidence, evidence and abstention.

An open implementation of Conf-Profile (confidence-driven, label-free user profiling) on LangGraph. The names
below are imported when they are first used, so that `import cp_agents` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Calibrator": "cp_agents.calibration",
    "CpAgentsError": "cp_agents.errors",
    "InputError": "cp_agents.errors",
    "Profile": "cp_agents.schema",
    "Profiler": "cp_agents.profiler",
    "ProfilingContext": "cp_agents.graph",
    "ReviewPolicy": "cp_agents.routing",
    "Taxonomy": "cp_agents.taxonomy",
    "TraceStore": "cp_agents.stores.traces",
    "UserRecord": "cp_agents.schema",
    "build_graph": "cp_agents.graph",
    "compile_graph": "cp_agents.graph",
    "forget": "cp_agents.stores.forget",
    "from_langchain": "cp_agents.backends.langchain",
    "load_taxonomy": "cp_agents.taxonomy",
    "replay": "cp_agents.relabel",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from cp_agents.backends.langchain import from_langchain as from_langchain
    from cp_agents.calibration import Calibrator as Calibrator
    from cp_agents.errors import CpAgentsError as CpAgentsError
    from cp_agents.errors import InputError as InputError
    from cp_agents.graph import ProfilingContext as ProfilingContext
    from cp_agents.graph import build_graph as build_graph
    from cp_agents.graph import compile_graph as compile_graph
    from cp_agents.profiler import Profiler as Profiler
    from cp_agents.relabel import replay as replay
    from cp_agents.routing import ReviewPolicy as ReviewPolicy
    from cp_agents.schema import Profile as Profile
    from cp_agents.schema import UserRecord as UserRecord
    from cp_agents.stores.forget import forget as forget
    from cp_agents.stores.traces import TraceStore as TraceStore
    from cp_agents.taxonomy import Taxonomy as Taxonomy
    from cp_agents.taxonomy import load_taxonomy as load_taxonomy


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cp_agents' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
