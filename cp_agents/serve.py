"""The graph for a LangGraph server (`langgraph.json`), set up from the environment.

CP_AGENTS_BACKEND (default lexicon), CP_AGENTS_STORE (default traces.db), CP_AGENTS_BASE_URL,
CP_AGENTS_SAMPLES (default 10), CP_AGENTS_TAXONOMY (default profilebench). The server brings its own
checkpointer, so review questions are interrupts that its clients answer.
"""

from __future__ import annotations

import os
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from cp_agents.errors import InputError
from cp_agents.profiler import Profiler


def graph() -> CompiledStateGraph[Any, Any, Any, Any]:
    """The compiled profiling graph. Raises `InputError` for settings that cannot be."""
    env = os.environ
    samples = env.get("CP_AGENTS_SAMPLES", "10")
    if not samples.isdigit():
        raise InputError(f"CP_AGENTS_SAMPLES should be a whole number, found {samples!r}")
    return Profiler(
        backend=env.get("CP_AGENTS_BACKEND", "lexicon"),
        store=env.get("CP_AGENTS_STORE", "traces.db"),
        base_url=env.get("CP_AGENTS_BASE_URL"),
        samples=int(samples),
        taxonomy=env.get("CP_AGENTS_TAXONOMY", "profilebench"),
    ).graph
