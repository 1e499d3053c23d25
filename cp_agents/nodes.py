"""Graph nodes that serve `invoke` and `ainvoke` alike.

LangGraph runs a plain function on a worker thread under `ainvoke`, and cannot run a coroutine under `invoke`.
Our pure steps take well under a millisecond, less than the hop to a thread and back; our one waiting step
needs an event loop that outlives the call. So the graph's nodes are Runnables that say how for both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from cp_agents.background import run_sync

State = Any


class Step(Runnable[State, Any]):
    """A quick function of state and config, run where it is called."""

    def __init__(self, function: Callable[[State, RunnableConfig], Any]) -> None:
        self.name = function.__name__
        self._function = function

    def invoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        """Run it."""
        return self._function(input, config or {})

    async def ainvoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        """Run it, on the loop's own thread."""
        return self._function(input, config or {})


class Waiting(Runnable[State, Any]):
    """A coroutine function of state; without a running loop it runs on the background loop."""

    def __init__(self, function: Callable[[State], Awaitable[Any]]) -> None:
        self.name = function.__name__
        self._function = function

    def invoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        """Run it on the background loop and wait."""
        return run_sync(self._function(input))

    async def ainvoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        """Await it."""
        return await self._function(input)
