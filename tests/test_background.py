"""The background loop: one loop for all callers without one, with their context and their exceptions."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from cp_agents.background import background_loop, run_sync

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_results_exceptions_and_context_come_through() -> None:
    async def read() -> str:
        await asyncio.sleep(0)
        return variable.get()

    async def fail() -> None:
        raise LookupError("lost")

    token = variable.set("mine")
    assert run_sync(read()) == "mine"
    variable.reset(token)
    assert run_sync(read()) == "unset"
    with pytest.raises(LookupError, match="lost"):
        run_sync(fail())


async def test_it_works_beside_a_running_loop_and_from_many_threads() -> None:
    async def which() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    found: list[asyncio.AbstractEventLoop] = []
    threads = [threading.Thread(target=lambda: found.append(run_sync(which()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert set(found) == {background_loop()}
    assert asyncio.get_running_loop() not in found
