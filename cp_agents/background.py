"""One event loop on a thread of its own, for callers without a loop.

Backends keep connections that belong to a loop; a new loop per call would throw them away.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop, started on first use."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="cp-agents", daemon=True).start()
        return _loop


def run_sync(awaitable: Awaitable[T]) -> T:
    """Run `awaitable` on the background loop and wait for it; context variables go along."""
    loop = background_loop()
    context = contextvars.copy_context()

    async def wait() -> T:
        return await awaitable

    # run_coroutine_threadsafe would take the loop thread's context; LangGraph keeps its runtime in ours.
    done: threading.Event = threading.Event()
    task: list[asyncio.Task[T]] = []

    def start() -> None:
        task.append(loop.create_task(wait(), context=context))
        task[0].add_done_callback(lambda _: done.set())

    loop.call_soon_threadsafe(start)
    try:
        done.wait()
    except BaseException:
        _cancel(loop, task)
        raise
    return task[0].result()


def _cancel(loop: asyncio.AbstractEventLoop, task: list[asyncio.Task[Any]]) -> None:
    loop.call_soon_threadsafe(lambda: [t.cancel() for t in task])
