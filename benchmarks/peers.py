"""Records a second of cp-agents beside other libraries' ways of sending the same prompts, in one run.

    make bench-peers        # sets up an environment for the peers and runs this
    python benchmarks/peers.py PEERS_PYTHON [--records 100] [--concurrency 16] [--way dspy ...]

One loopback server that ignores n, no latency, M = 10: ten requests a record, the same messages and the same answer for
all, as many requests in flight. cp-agents does its whole work (cues, parsing, grounding, store on disk, vote,
calibration, profile); the peers send and give back texts, see `benchmarks/peer_ways.py`. Each round measures every way
once; the table gives the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import SAMPLES, prompts, records, through_graph
from cp_agents import __version__
from tests.loopback import server_process

WAYS = ("langgraph-send", "langchain-abatch", "instructor", "dspy", "langextract", "curator", "distilabel")
_PATIENCE_S = 300


def own(url: str, count: int, concurrency: int) -> tuple[float, str]:
    """Records a second through our graph, after a tenth of them has warmed up what there is to warm up."""

    async def measure() -> float:
        await through_graph(url, records(max(2, count // 10)), concurrency, False, "node")
        seconds, _ = await through_graph(url, records(count), concurrency, False, "node")
        return seconds

    return count / asyncio.run(measure()), __version__


def peer(python: str, way: str, url: str, prompts_file: Path, concurrency: int) -> tuple[float, str]:
    """Records a second of a peer, in a process of its own. Raises `RuntimeError` with its last words."""
    script = Path(__file__).with_name("peer_ways.py")
    done = subprocess.run(
        [python, str(script), way, url, str(prompts_file), str(concurrency * SAMPLES)],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
    if done.returncode != 0:
        raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-1:]))
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["records_s"], found["version"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", help="python of the environment that has benchmarks/peers.txt")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, server_process("--no-n") as url:
        prompts_file = Path(folder) / "prompts.json"
        prompts_file.write_text(json.dumps(prompts(records(options.records))), encoding="utf-8")
        for _ in range(options.rounds):
            for way in ("cp-agents", *options.way):
                try:
                    rate, versions[way] = (
                        own(url, options.records, options.concurrency)
                        if way == "cp-agents"
                        else peer(options.python, way, url, prompts_file, options.concurrency)
                    )
                    rates.setdefault(way, []).append(rate)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    print(f"{way}: {error}", file=sys.stderr)
    table = Table(
        title=f"{options.records} records, M={SAMPLES}, n ignored, {options.concurrency * SAMPLES} requests in flight",
        title_justify="left",
    )
    for name in ("way", "version", "records/s", "cp-agents is"):
        table.add_column(name, justify="left" if name in ("way", "version") else "right")
    ours = statistics.median(rates["cp-agents"])
    for way, found in rates.items():
        rate = statistics.median(found)
        table.add_row(way, versions[way], f"{rate:.1f}", f"{ours / rate:.2f}x")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
