"""`vllm:MODEL[+ADAPTER]`: vLLM's engine inside this program, all records in one continuous batch.

MODEL is a folder of weights or a hub name ORG/NAME that is in the local model cache, ADAPTER a folder in PEFT's
format, as for `transformers`. The engine starts with the first sample: what is stored already needs no model. It
lives on the background event loop, so that callers may come and go with loops of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.chat import successive
from cp_agents.backends.hf_files import find_model
from cp_agents.backends.limits import Budget, Limits
from cp_agents.backends.tag_logprobs import TOP, TagToken, scored
from cp_agents.backends.usage import Prices
from cp_agents.backends.vllm_engine import OF_THE_MACHINE, TEMPLATE, Engine, read_failure
from cp_agents.backends.vllm_options import digest, read_options, split_options
from cp_agents.background import background_loop
from cp_agents.errors import BackendError, ErrorType, InputError, MissingExtraError
from cp_agents.schema import Completion, Usage
from cp_agents.taxonomy import Taxonomy

if TYPE_CHECKING:
    from cp_agents.backends.registry import BackendOptions

T = TypeVar("T")


class VllmBackend:
    """Draws samples from vLLM.

    Of `options`, `structured` (regex, grammar or none) and `logprobs` (alternatives to each token of a tag, 0 to 20)
    are ours, as is `seeds` (whether samples have one; by default except on a CPU with chunked prefill, where vLLM
    dies of them); `chat_template_kwargs` goes to the model's chat template, and the rest are vLLM's sampling parameters
    (`top_k`, ...) and engine arguments (`max_model_len`, ...) by their names. `hub` is the base URL of a model hub,
    without which no network is touched; `prices` are in USD per million tokens. Raises `MissingExtraError` without
    vLLM, and `InputError` for a model that is not there or has no chat template, and for options that cannot be.
    """

    def __init__(
        self,
        model: str,
        taxonomy: Taxonomy,
        *,
        options: Mapping[str, Any] | None = None,
        hub: str | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
    ) -> None:
        if find_spec("vllm") is None:
            raise MissingExtraError("the vllm backend", "vllm")
        if not model.strip():
            raise InputError("the vllm backend needs a model, as in vllm:MODEL or vllm:MODEL+ADAPTER")
        if budget is not None and budget.max_usd is not None and prices is None:
            raise InputError("a budget in USD needs prices (USD per million prompt and completion tokens)")
        self._taxonomy = taxonomy
        self._options = read_options(options or {}, taxonomy)
        files = find_model(model, hub)
        if files.gguf is not None:
            raise InputError(
                f"{model} is a GGUF file, which vLLM does not serve well: save it as safetensors"
            )
        if not files.has_chat_template() and "chat_template" not in self._options.others.get(TEMPLATE, {}):
            raise InputError(
                f"{model} has no chat template, so it cannot be asked: use a chat or instruct model"
            )
        bearing = {name: value for name, value in self._options.others.items() if name not in OF_THE_MACHINE}
        revision = digest(files.revision(), self._options.structured_outputs, bearing)
        self._identity = Identity("vllm", model, revision=revision)
        self._context = files.max_context()
        self._engine = Engine(files, self._options.others)
        self._limits = Limits(budget=budget)
        self._prices = prices

    def __repr__(self) -> str:
        return f"VllmBackend({self._identity.model!r})"

    @property
    def identity(self) -> Identity:
        """The model as it was named; the revision hashes its files, the adapter's, and the options that bear on what
        is answered."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """Samples have seeds where vLLM bears them, but rounding depends on what else is in the batch: the same seed is
        sure to give the same sample only where vLLM computes batch-invariantly (VLLM_BATCH_INVARIANT=1)."""
        seed = os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"
        return Capabilities(
            n=True,
            seed=seed,
            logprobs=True,
            structured_output=True,
            prefix_cache=bool(self._options.others.get("enable_prefix_caching", True)),
            max_context=self._options.others.get("max_model_len") or self._context,
        )

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index, each as it lands; leaving early aborts what is in flight.

        Raises `BackendError` where the engine cannot start or has died, which ends the run.
        """
        ours = asyncio.get_running_loop()
        landed: asyncio.Queue[Completion | None] = asyncio.Queue()

        def put(completion: Completion | None) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop has gone, and the caller with it
                ours.call_soon_threadsafe(landed.put_nowait, completion)

        async def draw() -> None:
            try:
                await self._draw(request, put)
            finally:
                put(None)

        drawing = asyncio.run_coroutine_threadsafe(draw(), background_loop())
        try:
            while (completion := await landed.get()) is not None:
                yield completion
            await asyncio.wrap_future(drawing)
        finally:
            drawing.cancel()

    async def on_engine(self, use: Callable[[Any], Awaitable[T]]) -> T:
        """Hand vLLM's `AsyncLLM` to `use` on the event loop that it belongs to: `reset_prefix_cache`, `sleep`, ..."""

        async def call() -> T:
            return await use((await self._engine.running()).llm)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), background_loop()))

    async def aclose(self) -> None:
        """Stop the engine and free its memory; a further sample starts it again."""
        stopping = asyncio.run_coroutine_threadsafe(self._engine.stop(), background_loop())
        await asyncio.wrap_future(stopping)

    async def _draw(self, request: SampleRequest, put: Callable[[Completion], None]) -> None:
        await self._limits.admit()
        running = await self._engine.running()
        seeds = running.takes_seeds if self._options.seeds is None else self._options.seeds
        ids = await self._engine.tokens(request.messages)
        if len(ids) >= running.max_model_len:
            message = (
                f"the prompt of {len(ids)} tokens is too long for the model: it takes {running.max_model_len}"
            )
            for index in request.indices:
                put(self._failure(index, ErrorType.CONTEXT_LENGTH, message, 0.0))
            return
        # vLLM draws the most probable tokens once only.
        runs = successive(request.indices, 1 if request.temperature == 0 else None)
        ended = await asyncio.gather(
            *(self._call(ids, request, run, put, seeds=seeds) for run in runs), return_exceptions=True
        )
        for error in ended:
            if error is not None:
                raise error

    async def _call(
        self,
        ids: list[int],
        request: SampleRequest,
        run: range,
        put: Callable[[Completion], None],
        *,
        seeds: bool,
    ) -> None:
        """The samples of `run`, whose prompt is computed once: choice j of a request has the seed `seed + j`."""
        started = time.perf_counter()
        landing = {position: _Landing() for position in range(len(run))}
        cached: int | None = None
        try:
            async for output in self._engine.generate(
                ids,
                self._options.structured_outputs,
                n=len(run),
                seed=request.seed + run.start if seeds else None,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_tokens,
                logprobs=self._options.logprobs or (TOP if request.score_tags is not None else None),
            ):
                if (
                    cached is None
                ):  # the first word is of the first sample, which fills the cache for the others
                    cached = output.num_cached_tokens or 0
                for piece in output.outputs:
                    landing[piece.index].add(piece)
                    if piece.finish_reason is not None:
                        # Of a request that draws several, the prompt is counted on the first.
                        prompt = (len(ids), cached) if piece.index == 0 else (0, 0)
                        done = landing.pop(piece.index)
                        put(self._completion(run[piece.index], done, prompt, time.perf_counter() - started))
            kind, message = ErrorType.INTERNAL, "vLLM ended the request before the sample was complete"
        except Exception as error:
            kind, message = read_failure(error)
            if kind.is_fatal:
                raise BackendError(message, kind) from error
        for position in landing:
            put(self._failure(run[position], kind, message, time.perf_counter() - started))

    def _completion(
        self, index: int, landing: _Landing, prompt: tuple[int, int], latency_s: float
    ) -> Completion:
        if landing.finish_reason in ("abort", "error"):
            kind = ErrorType.CANCELLED if landing.finish_reason == "abort" else ErrorType.SERVER
            return self._failure(index, kind, f"vLLM gave the sample up ({landing.finish_reason})", latency_s)
        usage = Usage(prompt_tokens=prompt[0], cached_tokens=prompt[1], completion_tokens=landing.tokens)
        cost = None if self._prices is None else self._prices.cost(usage)
        self._limits.settle(0, [usage], [cost])
        completion = Completion(
            index=index,
            text="".join(landing.texts),
            finish_reason=landing.finish_reason,
            usage=usage,
            latency_s=latency_s,
            cost_usd=cost,
            sampler=self.identity.sampler,
        )
        return completion if not landing.scored else scored(completion, landing.scored, self._taxonomy)

    def _failure(self, index: int, kind: ErrorType, message: str, latency_s: float) -> Completion:
        return Completion(
            index=index,
            latency_s=latency_s,
            sampler=self.identity.sampler,
            error_type=kind,
            error_message=message,
        )


class _Landing:
    """A sample whose pieces arrive."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens = 0
        self.scored: list[TagToken] = []
        self.finish_reason: str | None = None

    def add(self, piece: Any) -> None:
        """Take in a `CompletionOutput` that holds what is new."""
        self.texts.append(piece.text)
        self.tokens += len(piece.token_ids)
        self.finish_reason = piece.finish_reason
        for drawn, candidates in zip(piece.token_ids, piece.logprobs or (), strict=False):
            chosen = candidates[drawn]
            # What a constraint forbids has no probability.
            top = {c.decoded_token or "": c.logprob for c in candidates.values() if c.logprob > -math.inf}
            self.scored.append(TagToken(chosen.decoded_token or "", chosen.logprob, top))


def from_spec(rest: str, options: BackendOptions) -> VllmBackend:
    """`vllm:MODEL[+ADAPTER][?name=value&...]`; `options.extra` may hold further options, `base_url` a model hub."""
    model, own = split_options(rest)
    return VllmBackend(
        model,
        options.taxonomy,
        options={**options.extra, **own},
        hub=options.base_url,
        budget=options.budget,
        prices=options.prices_of(f"vllm:{model}"),
    )
