"""Records a second through the graph, beside bare loops that send the same requests, in one run.

    python benchmarks/throughput.py [--records 200] [--concurrency 16] [--latency 0 0.05]

Against the loopback server of the tests, in a process of its own. M = 10 samples, six attributes. The bare
loops render and send the same prompts and read the texts; they parse, vote and store nothing. Every row is
the best of --repeat runs, because the machine is shared with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from cp_agents.cues import assemble_cues
from cp_agents.profiler import Profiler
from cp_agents.prompts.render import load_prompt
from cp_agents.schema import UserRecord
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy
from tests.loopback import server_process

SAMPLES = 10
PARAMETERS = {"model": "m", "temperature": 1.0, "top_p": 0.95, "max_tokens": 1200}


def records(count: int) -> list[dict[str, Any]]:
    """Users with a dozen cues each."""
    topics = [
        "stroller review",
        "exam revision",
        "truck repair",
        "stock prices",
        "garden tools",
        "nursing shift",
    ]
    return [
        {
            "user_id": f"user-{i}",
            "watched": [f"{topics[(i + k) % 6]} part {k} of user {i}" for k in range(8)],
            "searched": [f"how to {topics[(i * k) % 6]}" for k in range(1, 5)],
            "self_reported": {"gender": "Female" if i % 2 else "Male", "region": "north"},
        }
        for i in range(count)
    ]


def prompts(users: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """The very messages that the profiler sends."""
    prompt = load_prompt(load_taxonomy())
    return [
        [m.as_dict() for m in prompt.messages(assemble_cues(UserRecord.from_dict(u)).text)] for u in users
    ]


async def bounded(count: int, concurrency: int, one: Callable[[int], Awaitable[None]]) -> float:
    """Seconds to run `one(i)` for all i with at most `concurrency` at a time."""
    todo = iter(range(count))
    started = time.perf_counter()

    async def work() -> None:
        for i in todo:
            await one(i)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.perf_counter() - started


async def bare_openai(
    url: str, messages: list[list[dict[str, str]]], concurrency: int, honour_n: bool, client: Any
) -> float:
    """The openai SDK alone."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=client) as api:

        async def call(i: int, **extra: Any) -> list[str]:
            done = await api.chat.completions.create(messages=messages[i], **PARAMETERS, **extra)  # type: ignore[call-overload]
            return [choice.message.content for choice in done.choices]

        async def one(i: int) -> None:
            if honour_n:
                await call(i, n=SAMPLES, seed=0)
            else:
                await asyncio.gather(*(call(i, seed=k) for k in range(SAMPLES)))

        return await bounded(len(messages), concurrency, one)


async def bare_aiohttp(
    url: str, messages: list[list[dict[str, str]]], concurrency: int, honour_n: bool
) -> float:
    """aiohttp alone: what the machine can do at most."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(i: int, **extra: Any) -> list[str]:
            body = {"messages": messages[i], **PARAMETERS, **extra}
            async with session.post(f"{url}/chat/completions", json=body) as reply:
                done = await reply.json()
            return [choice["message"]["content"] for choice in done["choices"]]

        async def one(i: int) -> None:
            if honour_n:
                await call(i, n=SAMPLES, seed=0)
            else:
                await asyncio.gather(*(call(i, seed=k) for k in range(SAMPLES)))

        return await bounded(len(messages), concurrency, one)


async def through_graph(
    url: str, users: list[dict[str, Any]], concurrency: int, honour_n: bool, fanout: str
) -> tuple[float, float]:
    """Seconds through the whole graph with a store on disk, and the store's bytes a record beyond raw text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.db"
        profiler = Profiler(backend="openai:m", base_url=url, store=path, n="yes" if honour_n else "no")
        started = time.perf_counter()
        profiles, report = await profiler.aprofile_many(users, concurrency=concurrency, fanout=fanout)
        seconds = time.perf_counter() - started
        assert len(profiles) == len(users), report.failed
        assert report.meter.outcomes["ok"] == SAMPLES * len(users), report.meter
        await profiler.aclose()
        with TraceStore(path) as store:
            store.db.execute("pragma wal_checkpoint(truncate)")
            [raw] = store.rows(
                "select (select sum(length(cast(text as blob))) from samples)"
                " + (select sum(length(cast(cues as blob))) from records)"
            )
        return seconds, (path.stat().st_size - raw[0]) / len(users)


async def measure(options: argparse.Namespace) -> Table:
    users = records(options.records)
    messages = prompts(users)
    table = Table(
        title=f"{options.records} records, M={SAMPLES}, concurrency {options.concurrency}",
        title_justify="left",
    )
    for name in ("latency", "n", "way", "records/s", "of the bare openai loop", "store KB/record"):
        table.add_column(name, justify="left" if name in ("n", "way") else "right")
    for latency in options.latency:
        for honour_n in (True, False):
            with server_process("--latency", str(latency), *([] if honour_n else ["--no-n"])) as url:
                await bare_aiohttp(url, messages, options.concurrency, honour_n)  # fills the server's cache
                ways = _ways(url, users, messages, options.concurrency, honour_n)
                base = 0.0
                for way, run in ways.items():
                    tries = [await run() for _ in range(options.repeat)]
                    rate = len(users) / min(seconds for seconds, _ in tries)
                    size = tries[-1][1]
                    base = base or rate
                    table.add_row(
                        f"{latency * 1000:.0f} ms", "honoured" if honour_n else "ignored", way, f"{rate:.1f}",
                        f"{rate / base:.2f}", "" if size is None else f"{size / 1024:.1f}",
                    )  # fmt: skip
                table.add_section()
    return table


def _ways(
    url: str,
    users: list[dict[str, Any]],
    messages: list[list[dict[str, str]]],
    concurrency: int,
    honour_n: bool,
) -> dict[str, Callable[[], Awaitable[tuple[float, float | None]]]]:
    """What is compared: each gives seconds, and the store's bytes a record where there is a store."""
    common = (concurrency, honour_n)

    async def sdk() -> tuple[float, None]:
        return await bare_openai(url, messages, *common, client=None), None

    async def sdk_aiohttp() -> tuple[float, None]:
        return await bare_openai(url, messages, *common, client=openai.DefaultAioHttpClient()), None

    async def plain() -> tuple[float, None]:
        return await bare_aiohttp(url, messages, *common), None

    return {
        "bare openai SDK": sdk,
        "bare openai SDK, aiohttp transport": sdk_aiohttp,
        "bare aiohttp": plain,
        "cp-agents, fanout node": lambda: through_graph(url, users, *common, "node"),
        "cp-agents, fanout send": lambda: through_graph(url, users, *common, "send"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--repeat", type=int, default=2)
    Console(width=120).print(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
