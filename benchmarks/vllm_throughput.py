"""Tokens a second through the graph, beside the same prompts sent straight to vLLM, in one run on one engine.

    python benchmarks/vllm_throughput.py MODEL[+ADAPTER] [--records 2] [--samples 10] [--rounds 5] [--minutes 6]

Straight: all prompts at once into vLLM's own `AsyncLLM`, M samples each, the texts thrown away. Through the graph:
`Profiler.profile_many` with the vllm backend, every sample parsed, grounded and stored, all attributes voted on. Both
are constrained to the wire format, so that the graph has real answers to work on. The two take turns and each begins
with an empty prefix cache. On a machine that others use as well the clock says little, so two ratios are shown: answer
tokens by second, the median over neighbours in time, and by second of processor time, of this process and the engine's
together, over all rounds. "own" is this process alone, in which all of the graph's work is. Prompt tokens are counted
by vLLM (`vllm:prompt_tokens_by_source`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.throughput import prompts, records
from cp_agents.backends.vllm import VllmBackend
from cp_agents.backends.vllm_options import split_options
from cp_agents.backends.wire_grammar import wire_regex
from cp_agents.profiler import Profiler
from cp_agents.taxonomy import load_taxonomy

TOP_P = 1.0
"""vLLM on a CPU sorts the whole vocabulary for any other, which would hide what the graph costs."""


class Round(NamedTuple):
    seconds: float
    written: int
    """Tokens of all answers."""
    computed: int
    """Prompt tokens that went through the model."""
    own: float
    """Seconds of processor time of this process."""
    cpu: float
    """The same with the engine's processes."""


def cpu_times() -> tuple[float, float]:
    """Processor seconds so far: of this process, and with those of the engine."""
    import psutil

    this = psutil.Process()
    used = [sum(one.cpu_times()[:2]) for one in (this, *this.children(recursive=True))]
    return used[0], sum(used)


def counted() -> Counter[str]:
    """Prompt tokens so far, by where they came from."""
    from vllm.v1.metrics.reader import get_metrics_snapshot

    found: Counter[str] = Counter()
    for metric in get_metrics_snapshot():
        if metric.name == "vllm:prompt_tokens_by_source":
            found[metric.labels["source"]] += metric.value
    return found


async def straight(
    backend: VllmBackend, messages: list[Any], args: argparse.Namespace, regex: str, most: int | None = None
) -> int:
    """Tokens that vLLM wrote to the prompts, `most` to each sample."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    async def use(llm: Any) -> int:
        tokenizer = llm.get_tokenizer()

        async def one(said: list[dict[str, str]]) -> int:
            text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            params = SamplingParams(
                n=args.samples,
                top_p=TOP_P,
                max_tokens=most or args.max_tokens,
                structured_outputs=StructuredOutputsParams(regex=regex),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = {"type": "token", "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}
            outputs = [output async for output in llm.generate(prompt, params, uuid.uuid4().hex)]
            return sum(len(choice.token_ids) for choice in outputs[-1].outputs)

        return sum(await asyncio.gather(*map(one, messages)))

    return await backend.on_engine(use)


async def through_graph(backend: VllmBackend, users: list[Any], args: argparse.Namespace) -> int:
    """Tokens that vLLM wrote when the profiler asked it."""
    profiler = Profiler(backend, samples=args.samples, top_p=TOP_P, max_tokens=args.max_tokens)
    _, report = await profiler.aprofile_many(users, concurrency=len(users))
    assert not report.failed, report.failed
    assert report.meter.outcomes == {"ok": len(users) * args.samples}, report.meter.outcomes
    return report.meter.completion_tokens


async def measure(args: argparse.Namespace) -> None:
    taxonomy = load_taxonomy()
    regex = wire_regex(taxonomy, evidence_chars=args.evidence_chars)
    model, options = split_options(args.model)
    given = {"max_model_len": 4096, "enforce_eager": True, "block_size": 32} | options
    backend = VllmBackend(
        model, taxonomy, options={**given, "seeds": False, "structured_outputs": {"regex": regex}}
    )
    users = records(args.records)
    messages = prompts(users)
    await straight(backend, messages[:1], args, regex, most=8)  # everything is compiled and loaded
    rounds: dict[str, list[Round]] = {"straight": [], "graph": []}
    end = time.perf_counter() + 60 * args.minutes
    for number in range(args.rounds):
        if number and time.perf_counter() > end:
            break
        order = ("straight", "graph") if number % 2 == 0 else ("graph", "straight")
        for way in order:
            await backend.on_engine(lambda llm: llm.reset_prefix_cache())
            before, used, started = counted(), cpu_times(), time.perf_counter()
            if way == "straight":
                written = await straight(backend, messages, args, regex)
            else:
                written = await through_graph(backend, users, args)
            seconds = time.perf_counter() - started
            own, cpu = (now - then for now, then in zip(cpu_times(), used, strict=True))
            computed = (counted() - before)["local_compute"]
            rounds[way].append(Round(seconds, written, computed, own, cpu))
            print(f"{number + 1} {way}: {written} tokens in {seconds:.1f} s", file=sys.stderr, flush=True)

    async def length(llm: Any) -> int:
        tokenizer = llm.get_tokenizer()
        return sum(
            len(tokenizer.apply_chat_template(m, return_dict=False, add_generation_prompt=True))
            for m in messages
        )

    whole = await backend.on_engine(length)
    await backend.aclose()
    show(rounds, whole, args)


def show(rounds: dict[str, list[Round]], prompt_tokens: int, args: argparse.Namespace) -> None:
    per_cpu = {way: sum(r.written for r in of) / sum(r.cpu for r in of) for way, of in rounds.items()}
    table = Table(
        "way", "answer tokens/s, by round", "per CPU s", "CPU s", "own", "prompt tokens computed", "of"
    )
    for way, found in rounds.items():
        table.add_row(
            way,
            ", ".join(f"{r.written / r.seconds:.0f}" for r in found),
            f"{per_cpu[way]:.1f}",
            f"{median(r.cpu for r in found):.1f}",
            f"{median(r.own for r in found):.2f}",
            f"{median(r.computed for r in found):,.0f}",
            f"{prompt_tokens:,}",
        )
    console = Console(width=110)
    console.print(table)
    pairs = zip(rounds["graph"], rounds["straight"], strict=True)
    by_clock = median((g.written / g.seconds) / (s.written / s.seconds) for g, s in pairs)
    by_cpu = per_cpu["graph"] / per_cpu["straight"]
    console.print(f"graph / straight = {by_clock:.3f} by the clock, {by_cpu:.3f} by processor time")
    console.print(
        f"{args.records} records x {args.samples} samples; 'of': every prompt's tokens, counted once"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as behind vllm:, options and all")
    parser.add_argument("--records", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=6.0, help="no round begins after these")
    parser.add_argument("--max-tokens", type=int, default=600)
    parser.add_argument("--evidence-chars", type=int, default=24)
    asyncio.run(measure(parser.parse_args()))
