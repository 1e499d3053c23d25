"""The langchain backend: any chat model that an app has, its messages, its errors, its callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core import exceptions as lc
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run
from langgraph.graph import END, START, StateGraph
from pydantic import SecretStr

from cp_agents import Profiler
from cp_agents.backends.base import Backend, SampleRequest
from cp_agents.backends.chat import Asked
from cp_agents.backends.langchain import LangChainBackend, from_langchain
from cp_agents.backends.langchain_read import read_exception, read_message
from cp_agents.backends.limits import Budget
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.usage import Prices
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.graph import Fanout
from cp_agents.schema import Completion, Message, Usage
from tests.chat_models import BlockingChatModel, ScriptedChatModel
from tests.support import PETS, RECORD, answer

KEY = "sk-model-0123456789abcdef"


def request(m: int = 4, **options: Any) -> SampleRequest:
    messages = (
        Message("system", "Tag."),
        Message("user", "Example 例"),
        Message("assistant", "<tag>"),
        Message("user", "<record>\n[posted]\n- my cat 🐈 sleeps\n</record>"),
    )
    return SampleRequest(messages, tuple(range(m)), **options)


async def draw(backend: Backend, wanted: SampleRequest) -> list[Completion]:
    return sorted([c async for c in backend.sample(wanted)], key=lambda c: c.index)


def model(script: Callable[..., Any] = lambda messages, call: "fine", **fields: Any) -> ScriptedChatModel:
    return ScriptedChatModel(script=script, **fields)


# --- calls ---


async def test_one_call_a_sample_with_the_messages_as_they_are() -> None:
    chat = model(lambda messages, call: f"answer {call}")
    backend = from_langchain(chat)
    drawn = await draw(backend, request(3, temperature=0.3, seed=9))
    assert sorted(c.text for c in drawn) == ["answer 0", "answer 1", "answer 2"]
    assert [c.index for c in drawn] == [0, 1, 2]
    assert {(c.finish_reason, c.sampler) for c in drawn} == {("stop", "langchain:scripted-chat")}
    assert all(c.latency_s > 0 for c in drawn)
    assert [(m.type, m.content) for m in chat.calls[0]] == [
        ("system", "Tag."),
        ("human", "Example 例"),
        ("ai", "<tag>"),
        ("human", "<record>\n[posted]\n- my cat 🐈 sleeps\n</record>"),
    ]
    assert chat.arguments == [{"stop": None}] * 3, "the model keeps the settings that it was made with"
    assert isinstance(backend, Backend)
    assert not any([backend.capabilities.n, backend.capabilities.seed, backend.capabilities.retries])
    await backend.aclose()


async def test_calls_run_at_the_same_time_and_land_as_they_come() -> None:
    async def slow(call: int) -> str:
        await asyncio.sleep(0.15 - 0.05 * call)
        return str(call)

    backend = from_langchain(model(lambda messages, call: slow(call)))
    assert [c.text async for c in backend.sample(request(3))] == ["2", "1", "0"]


async def test_a_model_without_async_serves() -> None:
    drawn = await draw(from_langchain(BlockingChatModel(text="from a thread")), request(3))
    assert [c.text for c in drawn] == ["from a thread"] * 3


async def test_what_is_bound_to_the_model_stays_bound() -> None:
    chat = model()
    bound = chat.bind(logprobs=True).with_config(tags=["teacher"]).bind(stop=["</end>"])
    await draw(from_langchain(bound), request(1))
    assert chat.arguments == [{"stop": ["</end>"], "logprobs": True}]


async def test_retries_that_are_bound_to_the_model_act() -> None:
    chat = model(lambda messages, call: lc.ModelRateLimitError("slow down") if call == 0 else "fine")
    backend = from_langchain(chat.with_retry(wait_exponential_jitter=False))
    assert [c.text for c in await draw(backend, request(1))] == ["fine"]


async def test_the_cache_of_langchain_does_not_make_all_samples_the_same() -> None:
    set_llm_cache(InMemoryCache())
    try:
        for cache in (None, True, InMemoryCache()):
            chat = model(lambda messages, call: str(call), cache=cache)
            backend = from_langchain(chat.bind(x=1))
            texts = [c.text for _ in range(2) for c in await draw(backend, request(3))]
            assert sorted(texts) == ["0", "1", "2", "3", "4", "5"]
            assert chat.cache is cache, "the app's own model is left alone"
    finally:
        set_llm_cache(None)


async def test_a_lone_surrogate_loses_nothing() -> None:
    def script(messages: list[Any], call: int) -> str:
        return messages[-1].content.encode().decode()  # as a client does on the way out

    [completion] = await draw(
        from_langchain(model(script)), SampleRequest((Message("user", "cat \ud83d 猫"),), (0,))
    )
    assert completion.text == "cat ? 猫"


async def test_cancelling_and_leaving_early_leave_no_call_behind() -> None:
    ended = []

    async def hang() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)
        return ""

    before = asyncio.all_tasks()
    backend = from_langchain(model(lambda messages, call: hang() if call else "first"))
    task = asyncio.create_task(draw(backend, request(4)))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 3
    backend = from_langchain(model(lambda messages, call: hang() if call else "first"))
    async with contextlib.aclosing(backend.sample(request(4))) as samples:
        assert (await anext(samples)).text == "first"
    assert len(ended) == 6
    assert asyncio.all_tasks() == before


# --- what a message holds ---


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        (AIMessage("plain 猫"), "plain 猫", ""),
        (AIMessage([{"type": "text", "text": "a"}, "b", {"type": "text", "text": "c"}]), "abc", ""),
        (
            AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "a"}]),
            "a",
            "hm",
        ),
        (
            AIMessage(
                [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}]
            ),
            "a",
            "hm",
        ),
        (
            AIMessage(
                [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
                response_metadata={"model_provider": "anthropic"},
            ),
            "a",
            "hm",
        ),
        (
            AIMessage(
                [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
                    {"type": "text", "text": "a"},
                ],
                response_metadata={"model_provider": "openai"},
            ),
            "a",
            "short",
        ),
        (AIMessage("a", additional_kwargs={"reasoning_content": "step by step"}), "a", "step by step"),
        (AIMessage([{"type": "redacted_thinking", "data": "x"}, {"type": "image", "url": "u"}]), "", ""),
        (AIMessage(""), "", ""),
    ],
)
def test_text_and_reasoning_are_kept_apart(message: AIMessage, text: str, reasoning: str) -> None:
    read = read_message(message)
    assert (read.text, read.reasoning, read.refusal) == (text, reasoning, False)


@pytest.mark.parametrize(
    ("metadata", "finish"),
    [
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "SAFETY"}, "content_filter"),
        ({"done_reason": "length"}, "length"),
        ({"stopReason": "guardrail_intervened"}, "content_filter"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"finish_reason": "pondering"}, "pondering"),
        ({"finish_reason": None}, None),
        ({}, None),
    ],
)
def test_finish_reasons_of_several_providers(metadata: dict[str, Any], finish: str | None) -> None:
    assert read_message(AIMessage("x", response_metadata=metadata)).finish_reason == finish


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", additional_kwargs={"refusal": "I will not."}),
        AIMessage(
            [{"type": "refusal", "refusal": "I will not."}], additional_kwargs={"refusal": "I will not."}
        ),
        AIMessage([{"type": "refusal", "refusal": "I will not."}]),
        AIMessage("I will not.", response_metadata={"stop_reason": "refusal"}),
    ],
)
def test_refusals(message: AIMessage) -> None:
    read = read_message(message)
    assert read.refusal
    assert read.text == "I will not."


async def test_usage_and_cost() -> None:
    counted = AIMessage(
        "x",
        usage_metadata={
            "input_tokens": 900,
            "output_tokens": 200,
            "total_tokens": 1100,
            "input_token_details": {"cache_read": 600},
            "output_token_details": {"reasoning": 150},
        },
    )
    prices = Prices(prompt=10.0, completion=20.0, cached=1.0)
    drawn = await draw(LangChainBackend(model(lambda *_: counted), prices=prices), request(2))
    usage = Usage(prompt_tokens=900, completion_tokens=200, cached_tokens=600, reasoning_tokens=150)
    assert [c.usage for c in drawn] == [usage, usage], "every call has a prompt of its own"
    assert drawn[0].cost_usd == pytest.approx((300 * 10 + 600 + 200 * 20) / 1e6)
    [estimated] = await draw(LangChainBackend(model(lambda *_: "four words of text")), request(1))
    assert estimated.usage.estimated
    assert estimated.usage.prompt_tokens > 0 < estimated.usage.completion_tokens
    assert estimated.cost_usd is None


async def test_a_budget_ends_the_run_and_limits_space_the_calls() -> None:
    backend = LangChainBackend(model(), budget=Budget(max_tokens=10))
    assert len(await draw(backend, request(2))) == 2
    with pytest.raises(BackendError) as error:
        await draw(backend, request(2))
    assert error.value.error_type is ErrorType.BUDGET
    with pytest.raises(InputError, match="prices"):
        LangChainBackend(model(), budget=Budget(max_usd=1.0))
    backend = LangChainBackend(model(), requests_per_minute=600)
    started = time.monotonic()
    assert len(await draw(backend, request(12))) == 12
    assert time.monotonic() - started > 0.15, "a burst of ten, then ten a second"


# --- errors ---


class WithStatus(Exception):
    """What provider packages raise."""

    def __init__(self, status: int, body: object = None, text: str = "") -> None:
        super().__init__(text)
        self.status_code = status
        self.body = body


class ReadTimeout(Exception):
    """An HTTP client's own."""


class RemoteProtocolError(Exception):
    """Another one."""


class WithResponse(Exception):
    """httpx.HTTPStatusError and its like."""

    class response:
        status_code = 503


def caused(by: BaseException) -> Exception:
    error = RuntimeError("wrapped")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WithStatus(401), ErrorType.AUTH),
        (WithStatus(403), ErrorType.AUTH),
        (WithStatus(402), ErrorType.BUDGET),
        (WithStatus(429, {"error": {"code": "insufficient_quota", "message": ""}}), ErrorType.BUDGET),
        (WithStatus(404), ErrorType.NOT_FOUND),
        (WithStatus(429), ErrorType.RATE_LIMITED),
        (WithStatus(400), ErrorType.BAD_REQUEST),
        (WithStatus(413), ErrorType.CONTEXT_LENGTH),
        (WithStatus(400, text="prompt is too long: 9000 tokens"), ErrorType.CONTEXT_LENGTH),
        (WithStatus(500), ErrorType.SERVER),
        (WithStatus(529), ErrorType.SERVER),
        (WithResponse(), ErrorType.SERVER),
        (WithStatus(0), ErrorType.INTERNAL),
        (lc.ContextOverflowError("too long"), ErrorType.CONTEXT_LENGTH),
        (lc.ModelAuthenticationError("key"), ErrorType.AUTH),
        (lc.ModelPermissionDeniedError("key"), ErrorType.AUTH),
        (lc.ModelNotFoundError("model"), ErrorType.NOT_FOUND),
        (lc.ModelRateLimitError("slow"), ErrorType.RATE_LIMITED),
        (lc.ModelTimeoutError("slow"), ErrorType.TIMEOUT),
        (lc.ModelConnectionError("gone"), ErrorType.CONNECTION),
        (lc.ModelAPIError("5xx"), ErrorType.SERVER),
        (lc.ModelInvalidRequestError("4xx"), ErrorType.BAD_REQUEST),
        (TimeoutError(), ErrorType.TIMEOUT),
        (ReadTimeout(), ErrorType.TIMEOUT),
        (caused(TimeoutError()), ErrorType.TIMEOUT),
        (ConnectionResetError(), ErrorType.CONNECTION),
        (RemoteProtocolError(), ErrorType.CONNECTION),
        (caused(ConnectionRefusedError()), ErrorType.CONNECTION),
        (json.JSONDecodeError("no JSON", "<html>", 0), ErrorType.SERVER),
        (KeyError("choices"), ErrorType.INTERNAL),
    ],
)
async def test_exceptions_are_typed(error: Exception, kind: ErrorType) -> None:
    typed = read_exception(error, Asked("m", 1, (), "private words"), "")
    assert typed.error_type is kind
    assert "\n" not in str(typed)
    backend = from_langchain(model(lambda *_: error))
    if kind.is_fatal:
        with pytest.raises(BackendError) as raised:
            await draw(backend, request(2))
        assert raised.value.error_type is kind
        assert raised.value.__cause__ is raised.value.__context__ is None, "provider exceptions hold prompts"
    else:
        drawn = await draw(backend, request(2))
        assert [c.error_type for c in drawn] == [kind, kind]
        assert {c.error_message for c in drawn} == {str(typed)}


async def test_a_fatal_error_waits_for_the_samples_in_flight() -> None:
    async def late() -> str:
        await asyncio.sleep(0.05)
        return "paid for"

    backend = from_langchain(model(lambda messages, call: late() if call else WithStatus(401)))
    landed: list[str] = []

    async def run() -> None:
        async for completion in backend.sample(request(3)):
            landed.append(completion.text)

    with pytest.raises(BackendError):
        await run()
    assert landed == ["paid for"] * 2


async def test_a_filtered_prompt_is_an_outcome() -> None:
    filtered = WithStatus(400, {"error": {"code": "content_filter", "message": "filtered"}})
    [completion] = await draw(from_langchain(model(lambda *_: filtered)), request(1))
    assert (completion.finish_reason, completion.error_type) == ("content_filter", None)


async def test_a_hanging_call_times_out_and_one_that_answers_nonsense_fails_alone() -> None:
    async def hang() -> str:
        await asyncio.sleep(60)
        return ""

    says = [lambda: "fine", hang, lambda: 3]
    backend = from_langchain(model(lambda messages, call: says[call]()), timeout_s=0.05)
    drawn = await draw(backend, request(3))
    assert Counter(c.error_type for c in drawn) == Counter([None, ErrorType.TIMEOUT, ErrorType.INTERNAL])
    with pytest.raises(InputError, match="timeout_s"):
        from_langchain(model(), timeout_s=0)


@pytest.mark.parametrize(
    "leak",
    [
        WithStatus(401, text=f"Incorrect API key: {KEY}"),
        WithStatus(400, {"error": {"message": f"odd key {KEY[3:]}", "code": KEY}}),
        WithStatus(400, text="cannot tokenise 'my cat 🐈 sleeps'"),
        ValueError(KEY),
        lc.ModelAPIError(f"{KEY} my cat 🐈 sleeps"),
        lc.ModelAuthenticationError(KEY),
    ],
)
async def test_neither_key_nor_prompt_is_told(leak: Exception, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    backend = from_langchain(model(lambda *_: leak, api_key=SecretStr(KEY), temperature=0))
    told = repr(backend) + repr(backend.identity)
    try:
        told += "".join(repr(c) for c in await draw(backend, request(1)))
    except BackendError as error:
        told += repr(error)
    told += caplog.text
    for part in (KEY, KEY[3:14], "my cat", "🐈"):
        assert part not in told


# --- identity ---


def test_identity_follows_the_parameters_and_not_the_key() -> None:
    def identity(chat: Any) -> Any:
        return from_langchain(chat).identity

    base = identity(model(temperature=0.7))
    assert base == identity(model(temperature=0.7))
    assert (base.kind, base.model, base.endpoint) == ("langchain", "scripted-chat", "")
    assert len(base.revision) == 12
    assert base == identity(model(temperature=0.7, api_key=SecretStr(KEY))), "another key, the same teacher"
    others = [
        identity(model(temperature=0.8)),
        identity(model(temperature=0.7, model="other")),
        identity(model(temperature=0.7).bind(top_p=0.5)),
        identity(BlockingChatModel(text="a")),
        identity(BlockingChatModel(text="b")),
    ]
    assert len({base, *others}) == 6
    assert others[1].model == "other"
    assert others[3].model == "BlockingChatModel"
    tagged = model(temperature=0.7).with_config(tags=["x"])
    assert identity(tagged) == base, "what only traces see is no part of it"


@pytest.mark.parametrize("field", ["api_key", "x-api-key", "Authorization", "access_token", "client_secret"])
def test_secrets_in_free_form_parameters_stay_out(field: str) -> None:
    class Free(BlockingChatModel):
        options: dict[str, Any]

    def identity(**options: Any) -> Any:
        return from_langchain(Free(text="", options=options)).identity

    assert identity(headers={field: KEY}) == identity(headers={field: "another"})
    assert identity(url="https://me:one@host/v1") == identity(url="https://me:two@host/v1")
    assert identity(url="https://me:one@host/v1") != identity(url="https://me:one@host/v2")
    assert identity(max_tokens=5) != identity(max_tokens=6)


def test_a_model_at_temperature_zero_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    from_langchain(model(temperature=1.0))
    assert not caplog.records
    from_langchain(model(temperature=0))
    assert "temperature 0" in caplog.text


def test_only_chat_models_are_taken() -> None:
    for other in (RunnableLambda(str), "gpt", FakeListChatModel, RunnableLambda(str).with_retry()):
        with pytest.raises(InputError, match="chat model"):
            from_langchain(other)  # type: ignore[arg-type]


# --- in a graph: callbacks, traces, retries ---


class Heard(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended = 0

    async def on_chat_model_start(self, serialized: Any, messages: Any, **_: Any) -> None:
        self.started.append(messages[0][-1].content)

    async def on_llm_end(self, response: Any, **_: Any) -> None:
        self.ended += 1


def chat_runs(run: Run) -> Iterator[tuple[str, Run]]:
    """The chat model runs below `run`, each with the name of its parent."""
    for child in run.child_runs:
        if child.run_type in ("llm", "chat_model"):
            yield run.name, child
        yield from chat_runs(child)


@pytest.mark.parametrize("fanout", ["send", "node"])
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_callbacks_of_the_graph_reach_the_model(fanout: Fanout, how: str) -> None:
    own, given, tracer = Heard(), Heard(), RunCollectorCallbackHandler()
    chat = model(lambda *_: answer()).with_config(callbacks=[own])
    profiler = Profiler(backend=from_langchain(chat), taxonomy=PETS, samples=3, fanout=fanout)
    config: Any = {"callbacks": [given, tracer], "tags": ["mine"]}
    if how == "invoke":
        result = await asyncio.to_thread(profiler.graph.invoke, {"record": RECORD}, config)
    else:
        result = await profiler.graph.ainvoke({"record": RECORD}, config)
    assert result["profile"]["profile"]["pet"]["tag"] == "Cat"
    for handler in (own, given):
        assert len(handler.started) == handler.ended == 3
        assert "my cat sleeps all day" in handler.started[0]
    [root] = tracer.traced_runs
    assert root.name == "profile_user"
    traced = list(chat_runs(root))
    assert [parent for parent, _ in traced] == ["sample"] * 3
    assert all("mine" in (run.tags or []) for _, run in traced)
    assert len({run.id for _, run in traced}) == 3


class App(TypedDict, total=False):
    record: dict[str, Any]
    profile: dict[str, Any]


async def test_callbacks_reach_the_model_in_an_embedded_graph_and_tokens_stream() -> None:
    heard = Heard()
    profiler = Profiler(
        backend=from_langchain(FakeListChatModel(responses=[answer()])), taxonomy=PETS, samples=2
    )
    builder = StateGraph(App)
    builder.add_node("profile_user", profiler.graph)
    builder.add_edge(START, "profile_user")
    builder.add_edge("profile_user", END)
    app = builder.compile()
    chunks = [
        part
        async for part in app.astream(
            {"record": RECORD}, {"callbacks": [heard]}, stream_mode="messages", subgraphs=True
        )
    ]
    assert len(heard.started) == heard.ended == 2
    streamed = "".join(str(chunk.text) for _, (chunk, _) in chunks)
    assert len(streamed) == 2 * len(answer())


async def test_an_app_that_calls_the_profiler_in_a_node_of_its_own_keeps_its_trace() -> None:
    tracer = RunCollectorCallbackHandler()
    profiler = Profiler(backend=from_langchain(model(lambda *_: answer())), taxonomy=PETS, samples=2)

    async def node(_: Any) -> int:
        profiles, _report = await profiler.aprofile_many(
            [RECORD, {**RECORD, "user_id": "u2"}], calibrate=None
        )
        return len(profiles)

    assert await RunnableLambda(node).ainvoke(None, {"callbacks": [tracer]}) == 2
    [root] = tracer.traced_runs
    assert len(list(chat_runs(root))) == 4


async def test_the_graphs_retry_policy_acts_on_transient_failures() -> None:
    failing = model(lambda messages, call: lc.ModelRateLimitError("slow") if call < 2 else answer())
    profiler = Profiler(backend=from_langchain(failing), taxonomy=PETS, samples=2)
    profile = await profiler.aprofile(RECORD)
    assert profile["pet"].survivors == 2
    assert len(failing.calls) == 4


# --- langchain:MODULE:OBJECT ---


APP = """
from tests.chat_models import BlockingChatModel

teacher = BlockingChatModel(text="here")

def make():
    return BlockingChatModel(text="made")

def broken():
    raise ValueError("set MY_KEY first\\nand more")

class Models:
    small = BlockingChatModel(text="dotted")

class NoArguments(BlockingChatModel):
    text: str = "class"

number = 3
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an app's module in the current directory, which is not on Python's path."""
    (tmp_path / "the_app_of_a_user.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield "the_app_of_a_user"
    sys.modules.pop("the_app_of_a_user", None)


@pytest.mark.parametrize(
    ("name", "text"),
    [("teacher", "here"), ("make", "made"), ("Models.small", "dotted"), ("NoArguments", "class")],
)
async def test_a_spec_loads_a_model_or_makes_one(app: str, name: str, text: str) -> None:
    options = BackendOptions(
        taxonomy=PETS, prices={"prompt": 1.0, "completion": 1.0}, budget_usd=1.0, timeout_s=5.0
    )
    backend = resolve_backend(f"langchain:{app}:{name}", options)
    [completion] = await draw(backend, request(1))
    assert completion.text == text
    assert completion.cost_usd > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("langchain", "langchain:MODULE:OBJECT"),
        ("langchain:{app}", "langchain:MODULE:OBJECT"),
        ("langchain::teacher", "langchain:MODULE:OBJECT"),
        ("langchain:no_such_module_here:x", "No module named 'no_such_module_here'"),
        ("langchain:{app}:nobody", "no attribute 'nobody'"),
        ("langchain:{app}:number", "found int"),
        ("langchain:{app}:broken", r"ValueError: set MY_KEY first\)$"),
    ],
)
def test_a_spec_that_leads_nowhere_says_so(app: str, spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        resolve_backend(spec.format(app=app), BackendOptions(taxonomy=PETS))
    assert "\n" not in str(error.value)


def test_the_spec_is_what_the_run_remembers(app: str) -> None:
    profiler = Profiler(backend=f"langchain:{app}:teacher", taxonomy=PETS)
    assert profiler.store.run()["backend"] == f"langchain:{app}:teacher"
    assert profiler.run_id.startswith("langchain-")
