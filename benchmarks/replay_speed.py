"""How much faster `replay` decides stored records than the graph with an instant backend.

python benchmarks/replay_speed.py [--records 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import records
from cp_agents import Profiler, replay
from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.files import write_jsonl
from cp_agents.schema import Completion
from cp_agents.taxonomy import load_taxonomy
from tests.loopback import Answers


class InstantBackend:
    """Answers at once, from memory."""

    def __init__(self) -> None:
        self._answers = Answers(load_taxonomy())
        self.identity = Identity(kind="instant", model="m")
        self.capabilities = Capabilities(n=True, seed=True, retries=True)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        block = request.messages[-1].content.split("<record>\n")[1].split("\n</record>")[0]
        for index in request.indices:
            yield Completion(
                index=index, text=self._answers(block, request.seed + index), finish_reason="stop"
            )

    async def aclose(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        profiler = Profiler(backend=InstantBackend(), store=Path(folder) / "traces.db")
        started = time.perf_counter()
        asyncio.run(profiler.aprofile_many(records(count), calibrate=None))
        graph = time.perf_counter() - started
        started = time.perf_counter()
        done = write_jsonl(
            Path(folder) / "out.jsonl",
            (p.to_json() for p in replay(profiler.store, vote="majority", tau=["3"])),
        )
        again = time.perf_counter() - started
    print(
        f"{count} records x 10 samples: graph {graph:.1f} s, replay {again:.2f} s ({done} lines), {graph / again:.1f}x"
    )


if __name__ == "__main__":
    main()
