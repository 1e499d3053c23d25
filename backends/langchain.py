"""`langchain:MODULE:OBJECT` and `from_langchain(chat_model)`: the chat model that an app already has.

The model keeps what it was made with: temperature, top_p, token limit, stop words, retries. A run's sampling settings
are not passed on, because what a chat model takes cannot be told without guessing by its name. Callbacks and
tracing of the graph node in which it runs reach every call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.base import RunnableBindingBase

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.chat import Asked, CallError
from cp_agents.backends.langchain_read import Answer, describe, read_exception, read_message
from cp_agents.backends.limits import Budget, Limits
from cp_agents.backends.probe import QUESTION
from cp_agents.backends.usage import Prices, estimate_usage
from cp_agents.cues import estimate_tokens
from cp_agents.errors import BackendError, InputError
from cp_agents.schema import Completion, Message

if TYPE_CHECKING:
    from cp_agents.backends.registry import BackendOptions

log = logging.getLogger(__name__)

ChatModel = Runnable[Any, Any]
"""A `BaseChatModel`, or one with arguments, a config or retries bound to it."""

_ROLES: dict[str, type[BaseMessage]] = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}


class LangChainBackend:
    """Draws samples from a LangChain chat model, one call a sample, all at once.

    Takes the model as it is when handed over: a later change of its fields has no effect. LangChain's own cache is
    bypassed, for it would give every sample of a record the same answer. `timeout_s` bounds one call; for a model
    without an async implementation, which LangChain runs on a few threads, that includes the wait for a thread.
    `prices` in USD per million tokens. Raises `InputError` for anything that is no chat model.
    """

    def __init__(
        self,
        chat_model: ChatModel,
        *,
        timeout_s: float = 120.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
    ) -> None:
        if timeout_s <= 0:
            raise InputError(f"timeout_s should be above 0, found {timeout_s:g}")
        if budget is not None and budget.max_usd is not None and prices is None:
            raise InputError("a budget in USD needs prices (USD per million prompt and completion tokens)")
        innermost, bound = _innermost(chat_model)
        self._chat_model = _without_cache(chat_model)
        self._identity, self._secrets = describe(innermost, bound)
        self._timeout_s = timeout_s
        self._limits = Limits(
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, budget=budget
        )
        self._prices = prices
        if innermost._get_ls_params(**bound).get("ls_temperature") == 0:
            log.warning("%s has temperature 0: its samples will hardly differ", self._identity.sampler)

    def __repr__(self) -> str:
        return f"LangChainBackend({self._identity.model!r})"

    @property
    def identity(self) -> Identity:
        """The model's name; the revision covers its class and parameters, without keys."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """Nothing is assumed. Failures are left to LangGraph's RetryPolicy."""
        return Capabilities(n=False, seed=False, retries=False, structured_output=None, prefix_cache=None)

    async def probe(self) -> Capabilities:
        """Ask the model once. Raises `BackendError` where it does not answer."""
        async for completion in self.sample(QUESTION):
            if completion.error_type is not None:
                raise BackendError(completion.error_message or "no answer", completion.error_type)
        return self.capabilities

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index, each as it lands; leaving early cancels what is in flight.

        Raises `BackendError` for errors that end the run, after the samples in flight have landed.
        """
        prompt = [_message(message) for message in request.messages]
        # Given, it is merged with a config that is bound to the model; left to the context, that one would hide it.
        config = ensure_config()
        tasks = [asyncio.create_task(self._draw(prompt, index, config)) for index in request.indices]
        fatal: BackendError | None = None
        try:
            for landed in asyncio.as_completed(tasks):
                try:
                    completion = await landed
                except BackendError as error:
                    fatal = fatal or error
                else:
                    yield completion
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if fatal is not None:
            raise fatal

    async def aclose(self) -> None:
        """Nothing to free: the model belongs to the app."""

    async def _draw(self, prompt: Sequence[BaseMessage], index: int, config: RunnableConfig) -> Completion:
        expected = sum(estimate_tokens(str(message.content)) for message in prompt)
        await self._limits.admit(expected)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = read_message(await self._chat_model.ainvoke(prompt, config))
        except Exception as error:
            asked = Asked(self._identity.model, 1, (), str(prompt[-1].content))
            failure = read_exception(error, asked, self._secrets)
        else:
            return self._completion(index, answer, expected, time.perf_counter() - started)
        # Out here it drags along no exception of the provider's, which holds the prompt and perhaps the key.
        return self._failure(index, failure, time.perf_counter() - started)

    def _completion(self, index: int, answer: Answer, expected: int, latency_s: float) -> Completion:
        usage = answer.usage
        if usage is None:
            [usage] = estimate_usage(expected, [estimate_tokens(answer.reasoning + answer.text)])
        cost = None if self._prices is None else self._prices.cost(usage)
        self._limits.settle(expected, [usage], [cost])
        return Completion(
            index=index,
            text=answer.text,
            reasoning=answer.reasoning,
            finish_reason=answer.finish_reason,
            refusal=answer.refusal,
            usage=usage,
            latency_s=latency_s,
            cost_usd=cost,
            sampler=self._identity.sampler,
        )

    def _failure(self, index: int, error: CallError, latency_s: float) -> Completion:
        if error.error_type.is_fatal:
            raise error
        failed = Completion(index=index, latency_s=latency_s, sampler=self._identity.sampler)
        if error.filtered:
            return failed.model_copy(update={"finish_reason": "content_filter"})
        return failed.model_copy(update={"error_type": error.error_type, "error_message": str(error)})


def from_langchain(chat_model: ChatModel, *, timeout_s: float = 120.0) -> LangChainBackend:
    """A backend that asks `chat_model`: any `BaseChatModel`, also after `.bind`, `.with_config` or `.with_retry`.

    Profiler(backend=from_langchain(ChatOpenAI(model="...", temperature=1.0)))
    """
    return LangChainBackend(chat_model, timeout_s=timeout_s)


def _innermost(model: object) -> tuple[BaseChatModel, dict[str, Any]]:
    """The chat model inside its bindings, and the arguments that they pass to it."""
    if isinstance(model, BaseChatModel):
        return model, {}
    if isinstance(model, RunnableBindingBase):
        innermost, bound = _innermost(model.bound)
        return innermost, {**bound, **model.kwargs}
    raise InputError(f"expected a LangChain chat model (a BaseChatModel), found {type(model).__name__}")


def _without_cache(model: ChatModel) -> ChatModel:
    if isinstance(model, BaseChatModel):
        return model.model_copy(update={"cache": False})
    assert isinstance(model, RunnableBindingBase), "checked by _innermost"
    return model.model_copy(update={"bound": _without_cache(model.bound)})


def _message(message: Message) -> BaseMessage:
    # A lone surrogate has no UTF-8; one broken character must not lose the record.
    return _ROLES[message.role](content=message.content.encode(errors="replace").decode())


def from_spec(rest: str, options: BackendOptions) -> LangChainBackend:
    """`langchain:MODULE:OBJECT`: a chat model, or something that makes one when called without arguments.

    The module is looked for where Python looks, and in the current directory. The model brings its own endpoint, so
    `base_url`, `n` and `extra` have no meaning here.
    """
    return LangChainBackend(
        _load(rest),
        timeout_s=options.timeout_s,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        budget=options.budget,
        prices=options.prices_of(f"langchain:{rest}"),
    )


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    if not module or not name:
        raise InputError(
            "langchain needs a chat model: langchain:MODULE:OBJECT, as in langchain:my_app.models:teacher"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found = attrgetter(name)(import_module(module))
        return found() if callable(found) and not isinstance(found, Runnable) else found
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"langchain:{path} cannot be loaded ({type(error).__name__}: {why})") from error
