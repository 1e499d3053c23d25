"""The ensemble: members take turns, answer under their own names, and fail on their own."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents import Profiler, replay
from cp_agents.backends.base import Backend, Capabilities, Identity, SampleRequest
from cp_agents.backends.ensemble import SEED_STRIDE, EnsembleBackend
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Completion, Message
from tests.loopback import LoopbackConfig, LoopbackServer
from tests.support import PETS, RECORD, ScriptedBackend, answer

OPTIONS = BackendOptions(taxonomy=PETS)


class Member(ScriptedBackend):
    """A scripted backend with a name, which keeps the requests that it was given."""

    def __init__(
        self, name: str, script: Any = lambda i: answer(), revision: str = "1", **options: Any
    ) -> None:
        super().__init__(script, **options)
        self.name = name
        self.revision = revision
        self.requests: list[SampleRequest] = []

    @property
    def identity(self) -> Identity:
        return Identity("scripted", self.name, revision=self.revision)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        self.requests.append(request)
        async for completion in super().sample(request):
            yield completion


def request(*indices: int, seed: int = 0) -> SampleRequest:
    return SampleRequest((Message("user", "hello"),), indices, seed=seed)


async def draw(backend: Backend, wanted: SampleRequest) -> list[Completion]:
    return sorted([c async for c in backend.sample(wanted)], key=lambda c: c.index)


def failing(kind: ErrorType) -> Any:
    return lambda i: BackendError("told so", kind)


async def test_members_take_turns_by_index() -> None:
    members = [Member(name, lambda i, n=name: f"{n}{i}") for name in "abc"]
    backend = EnsembleBackend(members)
    drawn = await draw(backend, request(*range(7), seed=5))
    assert [c.index for c in drawn] == list(range(7))
    assert [c.text for c in drawn] == ["a0", "b0", "c0", "a1", "b1", "c1", "a2"]
    assert [c.sampler for c in drawn] == [f"scripted:{'abc'[i % 3]}" for i in range(7)]
    assert [m.requests[0].indices for m in members] == [(0, 1, 2), (0, 1), (0, 1)], "one request each"
    assert [m.requests[0].seed for m in members] == [5, 5 + SEED_STRIDE, 5 + 2 * SEED_STRIDE]
    assert isinstance(backend, Backend)
    await backend.aclose()
    assert all(m.closed for m in members)


@given(indices=st.lists(st.integers(0, 30), unique=True), k=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_any_subset_in_any_order_gives_the_same_samples(indices: list[int], k: int) -> None:
    backend = EnsembleBackend([Member(str(j), lambda i, j=j: f"{j}/{i}") for j in range(k)])
    drawn = asyncio.run(draw(backend, request(*indices)))
    assert {c.index: c.text for c in drawn} == {i: f"{i % k}/{i // k}" for i in indices}
    assert len(drawn) == len(indices)


async def test_members_that_draw_several_at_once_still_do() -> None:
    async with LoopbackServer(LoopbackConfig()) as server:
        teachers = [OpenAIBackend(name, base_url=server.url, n="yes") for name in ("big", "small")]
        backend = EnsembleBackend(teachers)
        drawn = await draw(backend, request(*range(10)))
        assert sorted((body["model"], body["n"]) for body in server.bodies) == [("big", 5), ("small", 5)]
        assert Counter(c.sampler for c in drawn) == {"openai:big": 5, "openai:small": 5}
        assert len({c.text for c in drawn}) > 5, "the members do not draw the same seeds"
        await backend.aclose()


async def test_members_work_at_the_same_time_and_land_as_they_come() -> None:
    class Slow(Member):
        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            await asyncio.sleep(0.05 if self.name == "a" else 0.01)
            async for completion in super().sample(request):
                yield completion

    backend = EnsembleBackend([Slow("a"), Slow("b")])
    assert [c.index async for c in backend.sample(request(0, 1))] == [1, 0]


# --- failures ---


async def test_a_members_failures_are_its_own() -> None:
    class Faulty(Member):
        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            yield Completion(index=request.indices[0], text="one")
            yield Completion(index=request.indices[0], text="the same again")
            yield Completion(index=99, text="nobody asked")
            raise RuntimeError("bug with the key sk-123")

    class Raising(Member):
        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            raise BackendError("overloaded", ErrorType.SERVER)
            yield

    class Lazy(Member):
        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            return
            yield

    members = [
        Member("good"),
        Member("limited", failing(ErrorType.RATE_LIMITED)),
        Faulty("bug"),
        Raising("r"),
        Lazy("lazy"),
    ]
    drawn = await draw(EnsembleBackend(members), request(*range(10)))
    assert [c.index for c in drawn] == list(range(10))
    kinds = [c.error_type for c in drawn]
    assert kinds[:5] == [None, ErrorType.RATE_LIMITED, None, ErrorType.SERVER, ErrorType.INTERNAL]
    assert kinds[5:] == [
        None,
        ErrorType.RATE_LIMITED,
        ErrorType.INTERNAL,
        ErrorType.SERVER,
        ErrorType.INTERNAL,
    ]
    assert drawn[2].text == "one"
    assert "RuntimeError" in str(drawn[7].error_message)
    assert "sk-123" not in str(drawn[7].error_message)
    assert drawn[8].error_message == "overloaded"
    assert [c.sampler for c in drawn[5:]] == [f"scripted:{m.name}" for m in members]


async def test_a_fatal_error_of_one_member_ends_the_run_after_the_others_have_landed() -> None:
    class Late(Member):
        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            await asyncio.sleep(0.02)
            async for completion in super().sample(request):
                yield completion

    backend = EnsembleBackend([Member("locked", failing(ErrorType.AUTH)), Late("fine")])
    landed: list[int] = []

    async def run() -> None:
        async for completion in backend.sample(request(0, 1, 2, 3)):
            landed.append(completion.index)

    with pytest.raises(BackendError) as error:
        await run()
    assert error.value.error_type is ErrorType.AUTH
    assert landed == [1, 3]


async def test_leaving_early_and_cancelling_leave_nothing_behind() -> None:
    class Hanging(Member):
        ended = 0

        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            try:
                await asyncio.sleep(60)
            finally:
                Hanging.ended += 1
            yield Completion(index=0)

    before = asyncio.all_tasks()
    backend = EnsembleBackend([Member("a"), Hanging("b"), Hanging("c")])
    async with contextlib.aclosing(backend.sample(request(0, 1, 2))) as samples:
        assert (await anext(samples)).index == 0
    assert Hanging.ended == 2
    task = asyncio.create_task(draw(backend, request(0, 1, 2)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Hanging.ended == 4
    assert asyncio.all_tasks() == before


async def test_closing_goes_on_after_a_member_that_cannot() -> None:
    class Stuck(Member):
        async def aclose(self) -> None:
            raise RuntimeError("stuck")

    members = [Member("a"), Stuck("b"), Member("c")]
    with pytest.raises(RuntimeError, match="stuck"):
        await EnsembleBackend(members).aclose()
    assert members[0].closed
    assert members[2].closed


# --- who is who ---


def test_the_identity_covers_every_member_and_the_order() -> None:
    def identity(*members: Member) -> Identity:
        return EnsembleBackend(members).identity

    base = identity(Member("a"), Member("b"))
    assert (base.kind, base.model) == ("ensemble", "scripted:a,scripted:b")
    assert base.sampler == "ensemble:scripted:a,scripted:b"
    assert base == identity(Member("a"), Member("b"))
    others = {
        identity(Member("b"), Member("a")),
        identity(Member("a"), Member("b", revision="2")),
        identity(Member("a"), Member("b"), Member("b")),
    }
    assert len({base, *others}) == 4
    assert repr(EnsembleBackend([Member("a"), Member("b")])) == "EnsembleBackend('scripted:a,scripted:b')"


async def test_teachers_of_the_same_name_are_told_apart() -> None:
    backend = EnsembleBackend([Member("a"), Member("a", revision="2"), Member("b"), Member("b")])
    drawn = await draw(backend, request(0, 1, 2, 3))
    assert [c.sampler for c in drawn] == [
        "scripted:a@1",
        "scripted:a@2",
        "scripted:b",
        "scripted:b",
    ], "the same teacher twice is one teacher"
    hosts = [OpenAIBackend("m", base_url=f"http://127.0.0.1:{port}/v1") for port in (1, 2)]
    assert EnsembleBackend(hosts).identity.model == (
        "openai:m@http://127.0.0.1:1/v1,openai:m@http://127.0.0.1:2/v1"
    )


async def test_a_member_that_names_its_samplers_is_believed() -> None:
    recorded = Member("tape", lambda i: Completion(index=i, text="x", sampler="openai:once"))
    inner = EnsembleBackend([Member("a"), Member("b")])
    drawn = await draw(EnsembleBackend([recorded, inner]), request(*range(4)))
    assert [c.sampler for c in drawn] == ["openai:once", "scripted:a", "openai:once", "scripted:b"]


@pytest.mark.parametrize("can", ["n", "seed", "retries"])
def test_it_can_do_what_all_members_can(can: str) -> None:
    class Partial(Member):
        @property
        def capabilities(self) -> Capabilities:
            return replace(Capabilities(n=True, seed=True, retries=True), **{can: False})

    assert EnsembleBackend([Member("a"), Member("b")]).capabilities == Capabilities(True, True, True)
    mixed = EnsembleBackend([Member("a"), Partial("b")]).capabilities
    assert mixed == Partial("b").capabilities


# --- specs ---


async def test_a_spec_names_the_members(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"user_id": "u1", "samples": [{{"text": "{name}"}}]}}\n')
    spec = f"ensemble:replay:{tmp_path}/a.jsonl, replay:{tmp_path}/b.jsonl"
    drawn = await draw(resolve_backend(spec, OPTIONS), replace(request(0, 1, 2), record_key="u1"))
    assert [(c.text, c.sampler) for c in drawn[:2]] == [("a", "replay:a.jsonl"), ("b", "replay:b.jsonl")]
    assert drawn[2].error_type is ErrorType.NOT_RECORDED
    assert drawn[2].index == 2


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", "two or more"),
        ("openai:a", "two or more"),
        ("openai:a,", "two or more"),
        ("openai:a,b.jsonl", r"member 'b.jsonl': unknown backend"),
        ("openai:a,replay:no,where.jsonl", "member 'replay:no'"),
        ("openai:a,ensemble:openai:b", "member 'ensemble:openai:b'.*two or more"),
    ],
)
def test_a_spec_that_is_no_ensemble_says_so(rest: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve_backend(f"ensemble:{rest}", replace(OPTIONS, base_url="http://127.0.0.1:1/v1"))
    with pytest.raises(InputError, match="two or more"):
        EnsembleBackend([Member("a")])


async def test_members_spend_from_one_budget() -> None:
    async with LoopbackServer(LoopbackConfig()) as server:
        options = replace(OPTIONS, base_url=server.url, budget_tokens=400)
        backend = resolve_backend("ensemble:openai:a,openai:b", options)
        [first] = await draw(backend, request(0))
        assert 0 < first.usage.completion_tokens < 200
        await draw(backend, request(*range(2, 20, 2)))
        with pytest.raises(BackendError) as error:
            await draw(backend, request(1))
        assert error.value.error_type is ErrorType.BUDGET, "b has drawn nothing: a has spent it all"
        await backend.aclose()


# --- voting over samplers ---


class Teacher:
    """Answers about made-up users: knows with probability `skill`, else guesses."""

    def __init__(self, name: str, skill: float) -> None:
        self.identity = Identity("teacher", name)
        self.capabilities = Capabilities(n=True, seed=True, retries=True)
        self._skill = skill

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        for index in request.indices:
            drawn = random.Random(f"{self.identity.model} {request.record_key} {index}")
            tag = truth(request.record_key)
            if drawn.random() > self._skill:
                tag = drawn.choice(["Cat", "Dog", "Fish"])
            yield Completion(index=index, text=answer(tag), finish_reason="stop")

    async def aclose(self) -> None:
        pass


def truth(user_id: str) -> str:
    return random.Random(user_id).choice(["Cat", "Dog", "Fish"])


@pytest.mark.parametrize("fanout", ["node", "send"])
def test_dawid_skene_finds_the_good_teacher_and_beats_the_majority(fanout: Any) -> None:
    teachers = [Teacher("expert", 0.9), *(Teacher(name, 0.05) for name in ("guesser", "dreamer", "parrot"))]
    profiler = Profiler(
        EnsembleBackend(teachers), taxonomy=PETS, samples=8, vote="dawid_skene", run="teachers"
    )
    users = [{**RECORD, "user_id": f"u{i}", "saved": [f"recipe {i}"]} for i in range(60)]
    profiles, report = profiler.profile_many(users, fanout=fanout, calibrate=None)
    assert report.done == 60

    def accuracy(found: Any) -> float:
        return sum(p["pet"].voted == truth(p.user_id) for p in found) / 60

    rows = profiler.store.rows("select sampler, count(*) from samples group by 1 order by 1")
    assert dict(rows) == {f"teacher:{name}": 120 for name in ("expert", "guesser", "dreamer", "parrot")}
    learned = accuracy(profiles)
    majority = accuracy(replay(profiler.store, vote="majority", calibrator=None))
    assert learned >= majority + 0.1, "who is right more often is learned from who agrees with whom"
