"""One contract for every backend: what `backends/base.py` promises, whoever answers.

A kind says how it is built in a situation (`Mood`) and in which moods it can be at all: the lexicon cannot hang, and
a recording cannot be locked. What is special to one backend is in the tests of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import sqlite3
import ssl
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import ModelAPIError, ModelAuthenticationError
from langchain_core.messages import AIMessage, BaseMessage
from pydantic import SecretStr
from tenacity import wait_none

from cp_agents import Profiler, TraceStore
from cp_agents.backends.base import Backend, SampleRequest, cache_keys
from cp_agents.backends.ensemble import EnsembleBackend
from cp_agents.backends.langchain import from_langchain
from cp_agents.backends.lexicon import LexiconBackend
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.backends.replay import ReplayBackend
from cp_agents.backends.vllm_server import VllmServerBackend
from cp_agents.cues import assemble_cues
from cp_agents.errors import BackendError, CpAgentsError, ErrorType
from cp_agents.graph import Fanout
from cp_agents.prompts.render import FENCE_CLOSE, FENCE_OPEN
from cp_agents.schema import Completion, Match, Message, UserRecord
from cp_agents.taxonomy import Taxonomy, load_taxonomy
from tests.chat_models import HttpChatModel, ScriptedChatModel
from tests.loopback import Answers, LoopbackConfig, LoopbackServer, Reply, cue_block, error_body
from tests.support import PETS

KEY = "sk-contract-0123456789abcdef"
M = 5
USERS = 20
TAXONOMY = load_taxonomy()
ANSWERS = Answers(TAXONOMY)


def record(user: int = 0) -> dict[str, Any]:
    """A record in several scripts; no other user has the lines of this one."""
    u = f"{user:02}"
    return {
        "user_id": f"用户-{u}-🧵",
        "watched": [f"婴儿车 评测 🍼 第{u}期", {"text": f"Pram tests, part {u}", "count": 3}],
        "posted": [f"Ребёнок спит в {u} часов", f"טיול {u} عائلة"],
        "self_reported": {"gender": "女", "city": f"Ōsaka {u}"},
    }


@cache
def block(user: int = 0) -> str:
    return assemble_cues(UserRecord.from_dict(record(user))).text


def request(user: int = 0, indices: tuple[int, ...] = tuple(range(M)), **options: Any) -> SampleRequest:
    messages = (
        Message("system", "Tag."),
        Message("user", f"{FENCE_OPEN}\n{block(user)}\n{FENCE_CLOSE}"),
    )
    options = {"max_tokens": 48, **options}
    return SampleRequest(messages, indices, record_key=record(user)["user_id"], **options)


# --- the backends, and the situations in which they are put ---


class Mood(Enum):
    """What whoever answers is like."""

    WELL = auto()
    CUT = auto()
    """Stops at the token limit."""
    REFUSING = auto()
    FAILING = auto()
    """Transiently, with a message that quotes the key and the prompt."""
    LOCKED = auto()
    """Refuses the key, and quotes it."""
    HANGING = auto()


@dataclass(frozen=True)
class Situation:
    mood: Mood = Mood.WELL
    version: int = 0
    """Another version is another endpoint, model or revision, with all else equal."""
    reply: Reply | None = None
    """What an HTTP endpoint answers to everything."""
    folder: Path = Path()
    """For files of the test."""
    shared: Path = Path()
    """For files that take long to make."""

    timeout_s: float = 20.0


Build = Callable[[AsyncExitStack, Situation], Awaitable[Backend]]


@dataclass(frozen=True)
class Kind:
    name: str
    build: Build
    moods: frozenset[Mood]
    http: bool
    quotes: bool
    """Whether its evidence is taken from the record."""
    taxonomy: Taxonomy = TAXONOMY

    def profiler(self, backend: Backend, **options: Any) -> Profiler:
        options = {"samples": M, "min_survivors": 1, "max_tokens": 48, **options}
        return Profiler(backend=backend, taxonomy=self.taxonomy, **options)


KINDS: list[Kind] = []


def kind(
    name: str, *moods: Mood, http: bool = False, quotes: bool = True, **more: Any
) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        KINDS.append(Kind(name, build, frozenset(moods), http, quotes, **more))
        return build

    return add


async def endpoint(stack: AsyncExitStack, it: Situation, honour_n: bool = True) -> LoopbackServer:
    config = LoopbackConfig(
        honour_n=honour_n,
        p_length=float(it.mood is Mood.CUT),
        p_refusal=float(it.mood is Mood.REFUSING),
        p_hang=float(it.mood is Mood.HANGING),
        api_key="another key" if it.mood is Mood.LOCKED else None,
    )
    if it.mood is Mood.FAILING:
        config.script = lambda body, _: Reply(error_body(f"{KEY} could not read {body['messages']}"), 500)
    if it.reply is not None:
        config.script = lambda *_: it.reply
    return await stack.enter_async_context(LoopbackServer(config))


async def openai(stack: AsyncExitStack, it: Situation, honour_n: bool = True) -> Backend:
    server = await endpoint(stack, it, honour_n)
    backend = OpenAIBackend(
        "loopback", base_url=server.url, api_key=KEY, timeout_s=it.timeout_s, max_attempts=2
    )
    stack.push_async_callback(backend.aclose)
    return backend


@kind("openai with n", *Mood, http=True)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    return await openai(stack, it)


@kind("openai without n", *Mood, http=True)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    return await openai(stack, it, honour_n=False)


@kind("vllm-server", *Mood, http=True)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    server = await endpoint(stack, it)
    # It waits for the server, so it cannot be made on the server's loop.
    backend = await asyncio.to_thread(
        VllmServerBackend, server.url, TAXONOMY, api_key=KEY, timeout_s=it.timeout_s
    )
    stack.push_async_callback(backend.aclose)
    return backend


@kind("langchain over HTTP", *Mood, http=True)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    server = await endpoint(stack, it)
    chat_model = HttpChatModel(base_url=server.url, api_key=SecretStr(KEY))
    stack.push_async_callback(chat_model.aclose)
    return from_langchain(chat_model, timeout_s=it.timeout_s)


@kind("langchain", *Mood)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    def say(messages: list[BaseMessage], call: int) -> Any:
        cues = cue_block([{"role": "user", "content": messages[-1].content}])
        text = ANSWERS(cues, call)
        match it.mood:
            case Mood.CUT:
                return AIMessage(text[: len(text) // 2], response_metadata={"stop_reason": "max_tokens"})
            case Mood.REFUSING:
                return AIMessage("", additional_kwargs={"refusal": "I will not."})
            case Mood.FAILING:
                return ModelAPIError(f"{KEY} could not read {cues}")
            case Mood.LOCKED:
                return ModelAuthenticationError(f"wrong key {KEY}")
            case Mood.HANGING:
                return asyncio.sleep(60)
        return text

    chat_model = ScriptedChatModel(script=say, temperature=1.0 + it.version, api_key=SecretStr(KEY))
    return from_langchain(chat_model, timeout_s=it.timeout_s)


@kind("ensemble", *Mood, http=True)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    return EnsembleBackend([await openai(stack, it), await openai(stack, it, honour_n=False)])


@kind("ensemble with one bad member", Mood.LOCKED, http=True)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    return EnsembleBackend([await openai(stack, replace(it, mood=Mood.WELL)), await openai(stack, it)])


@cache
def built_in_lexicon() -> LexiconBackend:
    return LexiconBackend(TAXONOMY)


@kind("lexicon", Mood.WELL)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    if not it.version:
        return built_in_lexicon()
    own = it.folder / "own.yaml"
    own.write_text("attributes: {gender: {tags: {Female: {2: pram}}}}", encoding="utf-8")
    return LexiconBackend(TAXONOMY, own)


@kind("replay", Mood.WELL, Mood.CUT)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    path = it.folder / "recorded.jsonl"
    cut = it.mood is Mood.CUT
    lines = []
    for user in range(USERS):
        texts = [ANSWERS(block(user), 100 * it.version + i) for i in range(M)]
        samples = [
            {"text": t[: len(t) // 2], "finish_reason": "length"} if cut else {"text": t} for t in texts
        ]
        lines.append(json.dumps({"user_id": record(user)["user_id"], "samples": samples}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return ReplayBackend(path)


@kind("plugin", Mood.WELL)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    folder = str(Path(__file__).parent.parent / "cookbook" / "backend_plugin")
    sys.path.insert(0, folder)
    stack.callback(sys.path.remove, folder)
    from cp_agents_selfreport import SelfReportBackend  # type: ignore[import-not-found]

    backend: Backend = SelfReportBackend(TAXONOMY, 3 + it.version)
    return backend


@kind(
    "transformers", Mood.WELL, Mood.CUT, quotes=False, taxonomy=PETS
)  # a short prompt: it reads byte by byte
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    for package in ("torch", "transformers", "peft", "gguf", "psutil"):
        pytest.importorskip(package)
    import torch

    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)  # a model this small gains nothing from more, and loses much on a busy machine
    from cp_agents.backends.transformers import TransformersBackend
    from tests.test_transformers_backend import make_adapter, make_model

    base = it.shared / "tiny"
    if not base.exists():
        make_model(base, context=8192)
    made = it.shared / f"adapter-{it.version}"
    if not made.exists():
        make_adapter(base, made, seed=it.version)
    # The same name, with other weights in it.
    adapter = shutil.copytree(made, it.folder / "adapter", dirs_exist_ok=True)
    backend = TransformersBackend(f"{base}+{adapter}", dtype="float32", device="cpu")
    stack.push_async_callback(backend.aclose)
    return backend


def only_with_vllm() -> None:
    if os.environ.get("CP_AGENTS_TEST_VLLM") != "1":
        pytest.skip("it takes vLLM and minutes: make test-vllm")


@kind("vllm for real", Mood.WELL, Mood.CUT, quotes=False, taxonomy=PETS)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    only_with_vllm()
    from tests.vllm.serving import engine

    backend = engine(it.shared / "vllm", it.version)
    if it.version:  # two engines are enough
        stack.push_async_callback(backend.aclose)
    return backend


@kind("vllm-server for real", Mood.WELL, Mood.CUT, quotes=False, taxonomy=PETS)
async def _(stack: AsyncExitStack, it: Situation) -> Backend:
    only_with_vllm()
    from tests.vllm.serving import adapter_in, server_url

    adapter = str(adapter_in(it.folder, it.version))
    backend = await asyncio.to_thread(
        VllmServerBackend, server_url(), PETS, adapter=adapter, options={"wait": 180}
    )
    stack.push_async_callback(backend.aclose)
    return backend


def every(mood: Mood = Mood.WELL, *, http: bool = False) -> Any:
    """Parametrise with all kinds that can be in `mood`; with `http`, those that ask an HTTP endpoint."""
    found = [k for k in KINDS if mood in k.moods and (k.http or not http)]
    return pytest.mark.parametrize("kind", found, ids=lambda k: k.name)


Make = Callable[..., Awaitable[Backend]]


@pytest.fixture
async def make(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Make]:
    """`backend = await make(kind, mood=..., version=..., reply=...)`."""
    folders = {"folder": tmp_path, "shared": tmp_path_factory.getbasetemp()}
    async with AsyncExitStack() as stack:
        yield lambda kind, **situation: kind.build(stack, Situation(**folders, **situation))


_tls_context = cache(ssl.create_default_context)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits between attempts, and one TLS context for all clients: they take 30 ms each and nobody speaks TLS."""
    monkeypatch.setattr("cp_agents.backends.openai._BACKOFF", wait_none())
    monkeypatch.setattr("ssl.create_default_context", _tls_context)


async def draw(backend: Backend, wanted: SampleRequest) -> list[Completion]:
    return [completion async for completion in backend.sample(wanted)]


async def draw_until_error(
    backend: Backend, wanted: SampleRequest
) -> tuple[list[Completion], Exception | None]:
    landed: list[Completion] = []
    try:
        async for completion in backend.sample(wanted):
            landed.append(completion)
    except Exception as error:
        return landed, error
    return landed, None


# --- samples ---


@every()
async def test_exactly_one_completion_for_every_index(kind: Kind, make: Make) -> None:
    backend = await make(kind)
    assert isinstance(backend, Backend)
    drawn = await draw(backend, request())
    assert sorted(c.index for c in drawn) == list(range(M))
    for completion in drawn:
        assert completion.error_type is None
        assert completion.error_message is None
        assert completion.text or not kind.quotes
        assert not completion.refusal
        assert completion.finish_reason in ("stop", "length", None)
        assert completion.latency_s >= 0
        assert min(completion.usage.model_dump().values()) >= 0
        assert completion.usage.cached_tokens <= completion.usage.prompt_tokens
    await backend.aclose()


@every()
@pytest.mark.parametrize("indices", [(), (3,), (4, 0, 2), (1, 2)])
async def test_any_subset_of_indices_in_any_order(kind: Kind, make: Make, indices: tuple[int, ...]) -> None:
    backend = await make(kind)
    whole = {c.index: c for c in await draw(backend, request(seed=7))}
    part = await draw(backend, request(seed=7, indices=indices))
    assert sorted(c.index for c in part) == sorted(indices)
    if backend.capabilities.seed:
        again = await make(kind)
        for completion in [*part, *await draw(again, request(seed=7, indices=indices))]:
            assert completion.text == whole[completion.index].text, (
                "a sample is a function of request and index"
            )


@every()
async def test_twenty_records_at_once_are_not_mixed_up(kind: Kind, make: Make) -> None:
    backend = await make(kind)
    drawn = await asyncio.gather(*(draw(backend, request(user)) for user in range(USERS)))
    quoted = 0
    for user, completions in enumerate(drawn):
        assert sorted(c.index for c in completions) == list(range(M))
        assert all(c.error_type is None for c in completions)
        for evidence in re.findall("<evidence>([^<]+)</evidence>", "".join(c.text for c in completions)):
            quoted += 1
            if kind.quotes:
                assert all(part in block(user) for part in evidence.split("; ")), "no line of another user"
    assert quoted > 0 or not kind.quotes


# --- what a sample can be, short of an answer ---


@every(Mood.CUT)
async def test_an_answer_that_was_cut_says_so(kind: Kind, make: Make) -> None:
    backend = await make(kind, mood=Mood.CUT)
    drawn = await draw(backend, request(max_tokens=3))
    assert [(c.finish_reason, c.error_type) for c in drawn] == [("length", None)] * M


@every(Mood.REFUSING)
async def test_a_refusal_is_marked_and_no_failure(kind: Kind, make: Make) -> None:
    drawn = await draw(await make(kind, mood=Mood.REFUSING), request())
    assert [(c.refusal, c.error_type) for c in drawn] == [(True, None)] * M
    assert all(c.text for c in drawn), "in its own words"


@every(Mood.FAILING)
async def test_a_call_that_fails_for_good_is_a_typed_completion(kind: Kind, make: Make) -> None:
    drawn = await draw(await make(kind, mood=Mood.FAILING), request())
    assert sorted(c.index for c in drawn) == list(range(M))
    for completion in drawn:
        assert completion.error_type is ErrorType.SERVER
        assert completion.error_type.is_retryable
        assert completion.text == ""
        assert completion.error_message
        assert "\n" not in completion.error_message


@every(Mood.HANGING)
async def test_a_call_that_hangs_times_out(kind: Kind, make: Make) -> None:
    backend = await make(kind, mood=Mood.HANGING, timeout_s=0.1)
    drawn = await asyncio.wait_for(draw(backend, request()), 5)
    assert [c.error_type for c in drawn] == [ErrorType.TIMEOUT] * M
    assert sorted(c.index for c in drawn) == list(range(M))


@every(Mood.LOCKED)
async def test_what_would_fail_every_call_ends_the_run(kind: Kind, make: Make) -> None:
    landed, error = await draw_until_error(await make(kind, mood=Mood.LOCKED), request())
    assert isinstance(error, BackendError)
    assert isinstance(error, CpAgentsError)
    assert (error.error_type, error.is_retryable) == (ErrorType.AUTH, False)
    assert all(c.error_type is None for c in landed), "what landed before is good"


ERRORS = [
    (Reply(error_body("bad key"), 401), ErrorType.AUTH),
    (Reply(error_body("not yours"), 403), ErrorType.AUTH),
    (Reply(error_body("pay first"), 402), ErrorType.BUDGET),
    (Reply(error_body("quota", "insufficient_quota"), 429), ErrorType.BUDGET),
    (Reply(error_body("no model"), 404), ErrorType.NOT_FOUND),
    (Reply(error_body("odd request"), 400), ErrorType.BAD_REQUEST),
    (
        Reply(error_body("maximum context length is 5", "context_length_exceeded"), 400),
        ErrorType.CONTEXT_LENGTH,
    ),
    (Reply(b"too large", 413), ErrorType.CONTEXT_LENGTH),
    (Reply(error_body("slow"), 429, {"Retry-After": "9999"}), ErrorType.RATE_LIMITED),
    (Reply(error_body("sorry"), 500), ErrorType.SERVER),
    (Reply(b"<html>", 503), ErrorType.SERVER),
    (Reply(b"<html>", 200), ErrorType.SERVER),
    (Reply(hang_up=True), ErrorType.CONNECTION),
    (Reply(hang=True), ErrorType.TIMEOUT),
]


@every(http=True)
@pytest.mark.parametrize(
    ("reply", "expected"), ERRORS, ids=lambda value: str(getattr(value, "status", value))
)
async def test_errors_are_of_one_small_hierarchy(
    kind: Kind, make: Make, reply: Reply, expected: ErrorType
) -> None:
    landed, error = await draw_until_error(
        await make(kind, reply=reply, timeout_s=0.1 if reply.hang else 20.0), request()
    )
    if expected.is_fatal:
        assert isinstance(error, BackendError)
        assert error.error_type is expected
        assert error.is_retryable is expected.is_retryable is False
    else:
        assert error is None
        assert [c.error_type for c in landed] == [expected] * M


# --- cancellation ---


def running() -> set[asyncio.Task[Any]]:
    """All tasks but those of the loopback server."""
    return {task for task in asyncio.all_tasks() if "aiohttp" not in repr(task)}


@every(Mood.HANGING)
async def test_cancelling_leaves_no_task_behind(kind: Kind, make: Make) -> None:
    backend = await make(kind, mood=Mood.HANGING)
    before = running()
    task = asyncio.create_task(draw(backend, request()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running() == before


@every()
async def test_leaving_early_leaves_no_task_behind(kind: Kind, make: Make) -> None:
    backend = await make(kind)
    await draw(backend, request(1, indices=(0,)))
    before = running()
    samples = backend.sample(request())
    first = await anext(samples)
    assert first.error_type is None
    if isinstance(samples, AsyncGenerator):
        await samples.aclose()
    assert running() == before
    assert len(await draw(backend, request())) == M, "and it is fit for more"


# --- identity and cache ---


@every()
async def test_the_identity_is_stable_and_part_of_the_cache_key(kind: Kind, make: Make) -> None:
    backend = await make(kind)
    identity = backend.identity
    await draw(backend, request())
    assert backend.identity == identity
    assert {identity: 1}[backend.identity] == 1
    assert identity.kind
    assert identity.sampler.startswith(identity.kind)
    if not kind.http:
        assert (await make(kind)).identity == identity
    assert (await make(kind, version=1)).identity != identity
    canonical = request().canonical()
    keys = {*cache_keys(identity, canonical, range(M)).values()}
    for part in ("kind", "model", "endpoint", "revision"):
        other = replace(identity, **{part: getattr(identity, part) + "x"})
        keys |= {*cache_keys(other, canonical, range(M)).values()}
    assert len(keys) == 5 * M


@every()
async def test_another_endpoint_or_revision_gets_every_request_and_no_stale_answer(
    kind: Kind, make: Make, tmp_path: Path
) -> None:
    store = TraceStore(tmp_path / "traces.db")

    async def run(name: str, backend: Backend) -> Profiler:
        profiler = kind.profiler(backend, store=store, run=name)
        await profiler.aprofile(record())
        return profiler

    first = await make(kind)
    assert (await run("one", first)).context.meter.samples == M
    again = (await run("two", first)).context.meter
    assert (again.samples, again.reused) == (0, M), "the very same request is answered from the store"
    moved = await run("one", await make(kind, version=1))
    assert (moved.context.meter.samples, moved.context.meter.reused) == (M, 0)
    assert moved.run_id != "one", "the run of the same name is not overwritten"
    stale = "select count(*) from samples s join records r using (record_id) where r.run_id = ? and from_cache > 0"
    assert store.rows(stale, (moved.run_id,)) == [(0,)]
    store.close()


# --- secrets ---


@pytest.mark.parametrize("mood", [Mood.WELL, Mood.FAILING, Mood.LOCKED], ids=lambda mood: mood.name.lower())
@pytest.mark.parametrize("kind", [k for k in KINDS if Mood.FAILING in k.moods], ids=lambda k: k.name)
async def test_no_key_in_any_log_repr_error_or_store(
    kind: Kind, make: Make, mood: Mood, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    backend = await make(kind, mood=mood)
    path = tmp_path / "traces.db"
    store = TraceStore(path)
    told = [repr(backend), str(backend), repr(backend.identity), repr(backend.capabilities)]
    profiler = kind.profiler(backend, store=store)
    try:
        profiles, report = await profiler.aprofile_many([record()])
        told += [repr(profiles), repr(report)]
    except BackendError as error:
        told += ["".join(traceback.format_exception(error)), repr(error), repr(error.__dict__)]
    landed, error = await draw_until_error(backend, request())
    told += [repr(landed), repr(error)]
    told += [r.getMessage() for r in caplog.records]
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        told += list(db.iterdump())
    text = "\n".join(told)
    for part in (KEY, KEY[3:], KEY[:12], KEY[-12:]):
        assert part not in text


# --- the whole way ---


@every()
@pytest.mark.parametrize("fanout", ["send", "node"])
async def test_a_whole_record_through_the_graph(kind: Kind, make: Make, fanout: Fanout) -> None:
    backend = await make(kind)
    profiler = kind.profiler(backend, fanout=fanout)
    profile = await profiler.aprofile(record())
    assert list(profile) == list(kind.taxonomy.names)
    rows = profiler.store.rows("select sample_index, sampler, error_type from samples order by 1")
    assert [row[0] for row in rows] == list(range(M))
    assert all(sampler and error is None for _, sampler, error in rows)
    if kind.quotes:
        cues = profiler.store.record(1)[1]
        found = [item for attribute in profile for item in profile[attribute].evidence]
        evidence = [item for item in found if item.match is not Match.UNGROUNDED]
        assert any(not item.text.isascii() for item in evidence)
        assert all(cues[e.start : e.end] == e.text for e in evidence), "grounded, in any script"


@every(Mood.LOCKED)
async def test_a_run_that_cannot_go_on_raises_through_the_graph(kind: Kind, make: Make) -> None:
    profiler = kind.profiler(await make(kind, mood=Mood.LOCKED))
    with pytest.raises(BackendError) as error:
        await profiler.aprofile_many([record(user) for user in range(3)])
    assert error.value.error_type is ErrorType.AUTH


@every()
def test_it_works_without_an_event_loop_of_ones_own(
    kind: Kind, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`profile` runs on a background loop; `asyncio.run` brings a new one each time."""

    async def alone(user: int) -> int:
        async with AsyncExitStack() as stack:
            backend = await kind.build(
                stack, Situation(folder=tmp_path, shared=tmp_path_factory.getbasetemp())
            )
            return len(await draw(backend, request(user)))

    assert [asyncio.run(alone(user)) for user in range(2)] == [M, M]
