"""vLLM's `AsyncLLM`: how it is started, asked and understood when it fails. The only module that imports vllm.

Everything here runs on the background event loop, to which the engine belongs for its whole life.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import logging
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.backends.hf_files import ModelFiles
from cp_agents.errors import BackendError, ErrorType
from cp_agents.schema import Message

log = logging.getLogger(__name__)

OF_THE_MACHINE = frozenset(
    {
        "block_size", "cpu_offload_gb", "data_parallel_size", "disable_log_stats", "distributed_executor_backend",
        "enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len",
        "max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size", "stream_interval",
        "tensor_parallel_size",
    }
)  # fmt: skip
"""Engine arguments that say how to compute and not what: a run can be resumed with others."""
TEMPLATE = "chat_template_kwargs"
CANNOT_SERVE = ErrorType.NOT_FOUND
"""An engine that cannot start, or has died, has no answer for any other prompt either."""
_AT_THE_END = 1 << 30
"""A stream interval that no answer reaches: the engine then speaks of a sample at its first token and when it is
complete, not at every token."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SHUTDOWN_S = 10.0
_PERHAPS_MEMORY = re.compile(r"memory|kv cache|initialization failed", re.IGNORECASE)
_TOO_LONG = re.compile(r"context length|longer than the maximum|max_model_len", re.IGNORECASE)


class Vllm(NamedTuple):
    """What is used of vllm."""

    AsyncEngineArgs: Any
    AsyncLLM: Any
    LoRARequest: Any
    RequestOutputKind: Any
    SamplingParams: Any
    StructuredOutputsParams: Any
    platform: Any


class Running(NamedTuple):
    """A started engine."""

    vllm: Vllm
    llm: Any
    """The `AsyncLLM`."""
    tokenizer: Any
    max_model_len: int
    sampling: dict[str, Any]
    lora: Any
    takes_seeds: bool
    """False on a CPU with chunked prefill: rewinding a seeded generator, for a prompt that does not fit into a step, is
    made for GPUs and kills the engine."""


class Engine:
    """Starts once, when it is first needed; a failure to start is remembered and raised to everybody.

    `options` are vLLM's engine arguments and sampling parameters by their names, and `chat_template_kwargs`.
    """

    def __init__(self, files: ModelFiles, options: Mapping[str, Any]) -> None:
        self._files = files
        self._options = options
        self._starting: asyncio.Task[Running] | None = None

    async def running(self) -> Running:
        """The started engine. Raises `BackendError` that ends the run where it cannot start."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """Stop the engine's processes, if there are any."""
        starting, self._starting = self._starting, None
        if starting is not None:
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                await asyncio.to_thread(starting.result().llm.shutdown, timeout=_SHUTDOWN_S)
            del starting
            gc.collect()  # the engine lies in cycles with what it has allocated

    async def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, through the model's own chat template."""
        running = await self.running()
        template = self._options.get(TEMPLATE) or {}
        text = running.tokenizer.apply_chat_template(
            [message.as_dict() for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            **template,
        )
        ids: list[int] = running.tokenizer.encode(text, add_special_tokens=False)
        return ids

    async def generate(
        self, ids: list[int], structured: Mapping[str, str], **sampling: Any
    ) -> AsyncIterator[Any]:
        """vLLM's `RequestOutput`s for a prompt: each sample's first token, then the rest of it when it is complete."""
        running = await self.running()
        vllm = running.vllm
        params = vllm.SamplingParams(
            **running.sampling,
            **sampling,
            structured_outputs=vllm.StructuredOutputsParams(**structured) if structured else None,
            output_kind=vllm.RequestOutputKind.DELTA,
        )
        prompt = {"type": "token", "prompt_token_ids": ids}
        async for output in running.llm.generate(prompt, params, uuid.uuid4().hex, lora_request=running.lora):
            yield output

    async def _start(self) -> Running:
        started = time.perf_counter()
        try:
            # Two calls: something that vLLM imports keeps the frames that it was imported from, with all that is in
            # them; the engine should not be.
            vllm = await asyncio.to_thread(_import)
            running = await asyncio.to_thread(self._make, vllm)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(_why_not_started(error), CANNOT_SERVE) from error
        log.info("vLLM was ready after %.0f s", time.perf_counter() - started)
        return running

    def _make(self, vllm: Vllm) -> Running:
        known = {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)}
        arguments, sampling = sort_out(self._options, known, set(vllm.SamplingParams.__struct_fields__))
        vllm.SamplingParams(**sampling)  # what cannot be is said before minutes are spent on the weights
        lora = None
        if (adapter := self._files.adapter) is not None:
            rank = adapter_rank(adapter)
            arguments = {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": next((r for r in _LORA_RANKS if r >= rank), rank),
            } | arguments
            lora = vllm.LoRARequest(adapter.name, 1, str(adapter.resolve()))
        fixed = {
            "model": str(self._files.folder.resolve()),
            "tokenizer": str(self._files.tokenizer_folder.resolve()),
            "stream_interval": _AT_THE_END,
        }
        args = vllm.AsyncEngineArgs(**({"enable_prefix_caching": True} | arguments | fixed))
        llm = vllm.AsyncLLM.from_engine_args(args)
        chunked = llm.vllm_config.scheduler_config.enable_chunked_prefill
        return Running(
            vllm,
            llm,
            llm.get_tokenizer(),
            llm.model_config.max_model_len,
            sampling,
            lora,
            takes_seeds=not (vllm.platform.is_cpu() and chunked),
        )


def _import() -> Vllm:
    # vLLM would otherwise write its progress to standard output, which is the application's, and report home.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    parameters = import_module("vllm.sampling_params")
    return Vllm(
        import_module("vllm.engine.arg_utils").AsyncEngineArgs,
        import_module("vllm.v1.engine.async_llm").AsyncLLM,
        import_module("vllm.lora.request").LoRARequest,
        parameters.RequestOutputKind,
        parameters.SamplingParams,
        parameters.StructuredOutputsParams,
        import_module("vllm.platforms").current_platform,
    )


def sort_out(
    options: Mapping[str, Any], arguments: set[str], sampling: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options as engine arguments and sampling parameters. Raises `BackendError` for one that is neither."""
    known = arguments | {name for name in sampling if not name.startswith("_")}
    options = {name: value for name, value in options.items() if name != TEMPLATE}
    for name in options:
        if name not in known:
            near = get_close_matches(name, [*known, "structured", "logprobs"], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise BackendError(f"vLLM has no option {name!r}{hint}", CANNOT_SERVE)
    return (
        {name: value for name, value in options.items() if name in arguments},
        {name: value for name, value in options.items() if name not in arguments},
    )


def adapter_rank(folder: Path) -> int:
    """The largest LoRA rank in a PEFT adapter. Raises `BackendError` where it does not say."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {"": 0}).values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackendError(f"the adapter {folder.name} does not say its rank (r)", CANNOT_SERVE) from None


def read_failure(error: Exception) -> tuple[ErrorType, str]:
    """What a failed request was about. Messages of vLLM's own are quoted: prompts reach it as numbers."""
    name, said = type(error).__name__, " ".join(str(error).split())[:200]
    if name == "EngineDeadError":
        message = "vLLM's engine has died (its log says why): the same run, started again, goes on from here"
        return CANNOT_SERVE, message
    if _TOO_LONG.search(said):
        return ErrorType.CONTEXT_LENGTH, f"the prompt is too long for the model: {said}"
    if isinstance(error, ValueError) or "Validation" in name:
        return ErrorType.BAD_REQUEST, f"vLLM refused the request: {said}"
    return ErrorType.INTERNAL, f"vLLM failed in an unforeseen way ({name}: {said})"


def _why_not_started(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    message = f"vLLM could not start ({type(error).__name__}: {said}), its log says why"
    # What happens in the engine's own process does not come back with the exception.
    if isinstance(error, MemoryError) or _PERHAPS_MEMORY.search(said):
        message += (
            "; where memory was short, a smaller max_model_len or max_num_seqs or another gpu_memory_utilization (on a "
            "CPU: a smaller VLLM_CPU_KVCACHE_SPACE) may help"
        )
    return message
