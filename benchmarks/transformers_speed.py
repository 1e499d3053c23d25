"""Samples a second of the transformers backend, beside ten separate `generate` calls for each record.

    python benchmarks/transformers_speed.py [--model smollm2] [--records 1 4] [--answer 64] [--prompt 0]
                                            [--dtype bfloat16 float32] [--threads 2]

The real prompt of invented users, M = 10 samples, one process, the same weights, dtype, temperature and top_p. Answers
have exactly --answer tokens on both sides, so that luck with short ones counts for neither. --prompt cuts prompts to
so many tokens (0: not at all). A first, short call warms both sides up; the backend's cache of the instructions is
emptied before each row, so that it pays for them once in each. Processor time is given beside the clock's, for
machines that others use too.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import records
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.hf_attention import IMPLEMENTATION
from cp_agents.backends.hf_engine import Engine
from cp_agents.backends.hf_files import find_model
from cp_agents.backends.hf_model import ChatModel, Encoded
from cp_agents.backends.transformers import TransformersBackend
from cp_agents.cues import assemble_cues
from cp_agents.prompts.render import load_prompt
from cp_agents.schema import UserRecord
from cp_agents.taxonomy import load_taxonomy

SAMPLES = 10
TEMPERATURE, TOP_P = 1.0, 0.95


def requests(count: int, answer: int) -> list[SampleRequest]:
    """What the profiler would ask for."""
    prompt = load_prompt(load_taxonomy())
    return [
        SampleRequest(
            prompt.messages(assemble_cues(UserRecord.from_dict(user)).text),
            tuple(range(SAMPLES)),
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=answer,
        )
        for user in records(count)
    ]


class Watch:
    """Seconds by the clock and of the processor."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float]:
        return time.perf_counter() - self._started[0], time.process_time() - self._started[1]


def generate(chat: ChatModel, prompt: Encoded, answer: int, calls: int) -> tuple[float, float]:
    """Seconds of `calls` separate calls."""
    model: Any = chat._model
    ids = torch.tensor([prompt.ids], device=model.device)
    watch = Watch()
    for _ in range(calls):
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            max_new_tokens=answer,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert made.shape[1] == ids.shape[1] + answer
    return watch.stop()


async def backend(
    model: str, chat: ChatModel, asked: list[SampleRequest], max_rows: int
) -> tuple[tuple[float, float], int]:
    """Seconds for all samples of all requests at once, and prompt tokens that were read for them."""
    one = TransformersBackend(model)
    one._engine = Engine(lambda: chat, max_rows=max_rows, sampler="transformers")  # weights that are at hand

    async def draw(request: SampleRequest) -> int:
        fresh = 0
        async for completion in one.sample(request):
            assert completion.usage.completion_tokens == request.max_tokens, completion
            fresh += completion.usage.prompt_tokens - completion.usage.cached_tokens
        return fresh

    watch = Watch()
    fresh = sum(await asyncio.gather(*map(draw, asked)))
    seconds = watch.stop()
    await one.aclose()
    return seconds, fresh


def cut(chat: ChatModel, first: SampleRequest, tokens: int) -> None:
    """Leave out the beginning of the instructions, so that the prompt of `first` has so many tokens."""
    encode = chat.encode
    drop = max(0, len(encode(first.messages).ids) - tokens)

    def shorter(messages: Any) -> Encoded:
        whole = encode(messages)
        return Encoded(whole.ids[drop:], whole.shared - drop, whole.thinking)

    chat.encode = shorter  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--records", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--calls", type=int, default=SAMPLES, help="separate calls that are really made")
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    title = f"{args.model} on {device}, {args.threads} threads, answers of {args.answer} tokens"
    table = Table(title=title, title_justify="left")
    for column in ("dtype", "records", "prompt", "read", "generate", "backend", "faster", "less CPU"):
        table.add_column(column, justify="right")
    for dtype in args.dtype:
        chat = ChatModel(find_model(args.model), device=device, dtype=dtype, stop="")
        chat.ends = frozenset()
        asked = requests(max(args.records), args.answer)
        if args.prompt:
            cut(chat, asked[0], args.prompt)
        warm = [SampleRequest(asked[0].messages, (0,), max_tokens=2)]
        asyncio.run(backend(args.model, chat, warm, args.max_rows))
        rows = {}
        for count in args.records:
            chat.rows.clear()
            rows[count] = asyncio.run(backend(args.model, chat, asked[:count], args.max_rows))
            print(f"{dtype}, {count} records: {rows[count]}", file=sys.stderr)
        chat._model.set_attn_implementation("sdpa")
        prompt = chat.encode(asked[0].messages)
        generate(chat, prompt, 2, 1)
        separate = [seconds / args.calls for seconds in generate(chat, prompt, args.answer, args.calls)]
        print(f"{dtype}, a separate call: {separate}", file=sys.stderr)
        chat._model.set_attn_implementation(IMPLEMENTATION)
        for count, (seconds, fresh) in rows.items():
            each = [taken / (count * SAMPLES) for taken in seconds]
            table.add_row(
                dtype,
                str(count),
                str(len(prompt.ids)),
                str(fresh),
                f"{1 / separate[0]:.2f}/s",
                f"{1 / each[0]:.2f}/s",
                f"{separate[0] / each[0]:.1f}x",
                f"{separate[1] / each[1]:.1f}x",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
