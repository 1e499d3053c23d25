"""The openai backend against a real server on the loopback interface."""

import asyncio
import contextlib
import email.utils
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import test_utils, web
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_none

from cp_agents.backends.base import Backend, SampleRequest
from cp_agents.backends.chat import Asked, CallError, Dialect, read_error, read_reply, retry_after, successive
from cp_agents.backends.limits import Budget
from cp_agents.backends.openai import OpenAIBackend, from_spec
from cp_agents.backends.registry import BackendOptions
from cp_agents.backends.usage import Prices
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Completion, Message
from cp_agents.taxonomy import load_taxonomy
from tests.loopback import (
    LoopbackConfig,
    LoopbackServer,
    Reply,
    completion_body,
    error_body,
    quotable,
    running_server,
    server_process,
)

KEY = "sk-loopback-0123456789abcdef"
SECRET = "婴儿车 Baby stroller with a very rare name"
Serve = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cp_agents.backends.openai._BACKOFF", wait_none())


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`server, backend = await serve(config, **options of the backend)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            config: LoopbackConfig | None = None, **options: Any
        ) -> tuple[LoopbackServer, OpenAIBackend]:
            server = await stack.enter_async_context(LoopbackServer(config))
            options.setdefault("base_url", server.url)
            backend = OpenAIBackend("loopback", **options)
            stack.push_async_callback(backend.aclose)
            return server, backend

        yield start


def request(
    m: int = 10, *, user: int = 0, indices: tuple[int, ...] | None = None, **options: Any
) -> SampleRequest:
    block = f"[watched]\n- {SECRET} {user} (x3)\n- [2024-05-03] Comparing prams (40.5)"
    messages = (Message("system", "Tag."), Message("user", f"Here:\n<record>\n{block}\n</record>\nAnswer."))
    return SampleRequest(messages, tuple(range(m)) if indices is None else indices, **options)


async def draw(backend: OpenAIBackend, wanted: SampleRequest) -> list[Completion]:
    return sorted([c async for c in backend.sample(wanted)], key=lambda c: c.index)


async def draw_until_error(
    backend: OpenAIBackend, wanted: SampleRequest
) -> tuple[list[Completion], BackendError]:
    landed: list[Completion] = []
    try:
        async for completion in backend.sample(wanted):
            landed.append(completion)
    except BackendError as error:
        return sorted(landed, key=lambda c: c.index), error
    raise AssertionError("no error ended the run")


def texts(completions: list[Completion]) -> list[str]:
    return [c.text for c in completions]


def kinds(completions: list[Completion]) -> set[ErrorType | None]:
    return {c.error_type for c in completions}


def always(*replies: Reply) -> Callable[[dict[str, Any], int], Reply | None]:
    """A script that gives one reply after the other, over all requests, and the last for ever."""
    left = list(replies)
    return lambda body, attempt: left.pop(0) if len(left) > 1 else left[0]


def once(*replies: Reply) -> Callable[[dict[str, Any], int], Reply | None]:
    """A script that gives each reply once and then answers as usual."""
    left = list(replies)
    return lambda body, attempt: left.pop(0) if left else None


def said(*answers: str, **message: Any) -> Reply:
    return Reply(completion_body(list(answers), **message))


# --- n ---


async def test_samples_are_the_same_with_n_honoured_and_ignored(serve: Serve) -> None:
    honouring, several = await serve(LoopbackConfig())
    ignoring, singly = await serve(LoopbackConfig(honour_n=False))
    for user in range(3):
        a, b = await draw(several, request(user=user)), await draw(singly, request(user=user))
        assert [c.index for c in a] == [c.index for c in b] == list(range(10))
        assert texts(a) == texts(b)
        assert len(set(texts(a))) > 1
    assert [r.n for r in honouring.requests] == [10, 10, 10]
    assert [r.n for r in ignoring.requests] == [10, 9] + [1] * 28, "what the probes brought is used"
    assert several.capabilities.n
    assert not singly.capabilities.n
    assert isinstance(several, Backend)
    assert several.capabilities.retries


async def test_one_record_finds_out_while_the_others_wait(serve: Serve) -> None:
    server, backend = await serve(LoopbackConfig(honour_n=False, latency_s=0.03))
    drawn = await asyncio.gather(*(draw(backend, request(user=user)) for user in range(8)))
    assert all(len(completions) == 10 for completions in drawn)
    assert Counter(r.n for r in server.requests) == {10: 1, 9: 1, 1: 78}
    for probe in (0, 1):
        finished = server.requests[probe].finished
        assert min(r.received for r in server.requests[probe + 1 :]) >= finished


@pytest.mark.parametrize("short", [1, 2, 9])
@pytest.mark.parametrize("n", ["probe", "yes"])
async def test_a_short_reply_is_asked_to_be_completed_and_settles_nothing(
    serve: Serve, n: str, short: int
) -> None:
    few = said(*(f"answer {i}" for i in range(short)))
    server, backend = await serve(LoopbackConfig(script=once(few)), n=n)
    got = await draw(backend, request())
    assert texts(got)[:short] == [f"answer {i}" for i in range(short)]
    assert [r.n for r in server.requests] == [10, 10 - short]
    assert [r.seed for r in server.requests] == [0, short]
    assert len(await draw(backend, request(user=1))) == 10
    assert [r.n for r in server.requests][2:] == [10]
    assert backend.capabilities.n is True


async def test_an_endpoint_that_draws_a_few_at_a_time(serve: Serve) -> None:
    def four_at_most(body: dict[str, Any], _: int) -> Reply:
        return said(*(f"answer {body['seed'] + i}" for i in range(min(4, body.get("n", 1)))))

    server, backend = await serve(LoopbackConfig(script=four_at_most))
    assert texts(await draw(backend, request())) == [f"answer {i}" for i in range(10)]
    assert [r.n for r in server.requests] == [10, 6, 2]
    assert backend.capabilities.n


async def test_a_probe_that_fails_or_is_cancelled_holds_nobody_up(serve: Serve) -> None:
    server, backend = await serve(
        LoopbackConfig(script=once(Reply(hang=True))), timeout_s=0.5, max_attempts=2
    )
    first = asyncio.create_task(draw(backend, request()))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(draw(backend, request(user=user))) for user in (1, 2)]
    await asyncio.sleep(0.05)
    assert len(server.requests) == 1
    first.cancel()
    for completions in await asyncio.gather(*others):
        assert kinds(completions) == {None}
    server, backend = await serve(LoopbackConfig(script=always(Reply(status=500))), max_attempts=1)
    drawn = await asyncio.gather(*(draw(backend, request(user=user)) for user in range(4)))
    assert all(kinds(completions) == {ErrorType.SERVER} for completions in drawn)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(error_body("n must be 1 when using greedy sampling, got 10."), 400),
        Reply(error_body("Only one completion choice is allowed"), 400),
        Reply(
            {"detail": [{"loc": ["body", "n"], "msg": "Extra inputs are not permitted", "type": "extra"}]},
            422,
        ),
        Reply({"object": "error", "message": "`n` > 1 is not supported", "code": 400}, 400),
        Reply({"error": {"code": 500, "message": "Only one completion choice is allowed"}}, 500),
    ],
)
async def test_an_endpoint_that_refuses_n_is_asked_singly(serve: Serve, refusal: Reply) -> None:
    server, backend = await serve(LoopbackConfig(script=lambda body, _: refusal if "n" in body else None))
    assert kinds(await draw(backend, request())) == {None}
    assert len(await draw(backend, request(user=1))) == 10
    assert [r.n for r in server.requests] == [10] + [1] * 20


async def test_n_can_be_declared(serve: Serve) -> None:
    server, backend = await serve(n="no")
    await draw(backend, request(3))
    assert not any("n" in body for body in server.bodies)
    server, backend = await serve(n="yes")
    assert backend.capabilities.n
    await asyncio.gather(*(draw(backend, request(3, user=user)) for user in range(3)))
    assert [r.n for r in server.requests] == [3, 3, 3]


async def test_an_endpoint_that_stops_honouring_n_loses_nothing(serve: Serve) -> None:
    server, backend = await serve(LoopbackConfig())
    await draw(backend, request(4))
    expected = texts(await draw(backend, request(4, user=1)))
    server.config.honour_n = False
    assert texts(await draw(backend, request(4, user=1))) == expected
    assert not backend.capabilities.n


async def test_gaps_get_the_samples_that_they_would_have_had(serve: Serve) -> None:
    server, backend = await serve()
    whole = texts(await draw(backend, request(seed=7)))
    some = await draw(backend, request(indices=(8, 2, 3, 9, 5), seed=7))
    assert [c.index for c in some] == [2, 3, 5, 8, 9]
    assert texts(some) == [whole[c.index] for c in some]
    assert sorted((r.seed, r.n) for r in server.requests[1:]) == [(9, 2), (12, 1), (15, 2)]


@given(st.lists(st.integers(0, 60)), st.none() | st.integers(1, 5))
def test_runs_cover_the_indices_once(indices: list[int], longest: int | None) -> None:
    runs = successive(indices, longest)
    assert [i for run in runs for i in run] == sorted(set(indices))
    assert all(run and (longest is None or len(run) <= longest) for run in runs)


@settings(deadline=None, max_examples=20)
@given(
    indices=st.sets(st.integers(0, 12), min_size=1, max_size=10),
    cap=st.integers(1, 12),
    numbering=st.sampled_from(["right", "reversed", "zero", "none"]),
    n=st.sampled_from(["probe", "yes", "no"]),
)
def test_every_index_gets_exactly_one_completion(indices: set[int], cap: int, numbering: str, n: str) -> None:
    def script(body: dict[str, Any], _: int) -> Reply:
        count = min(body.get("n", 1), cap)
        reply = completion_body([str(body["seed"] + j) for j in range(count)])
        for choice in reply["choices"]:
            if numbering == "zero":
                choice["index"] = 0
            elif numbering == "none":
                del choice["index"]
        if numbering == "reversed":
            reply["choices"].reverse()
        return Reply(reply)

    async def run() -> list[Completion]:
        async with LoopbackServer(LoopbackConfig(script=script)) as server:
            backend = OpenAIBackend("loopback", base_url=server.url, n=n)
            return await draw(backend, request(indices=tuple(indices), seed=100))

    completions = asyncio.run(run())
    assert [c.index for c in completions] == sorted(indices)
    assert texts(completions) == [str(100 + i) for i in sorted(indices)]


# --- what a sample is ---


async def test_reply_fields_arrive_where_they_belong(serve: Serve) -> None:
    choices = [
        {
            "index": 0,
            "message": {"content": "<think>hm</think>A", "reasoning_content": "R"},
            "finish_reason": "stop",
        },
        {"index": 1, "message": {"content": None, "reasoning": "long"}, "finish_reason": "length"},
        {"index": 2, "message": {"content": None, "refusal": "I can't."}, "finish_reason": "stop"},
        {"index": 3, "message": {"content": "", "refusal": None}, "finish_reason": "content_filter"},
        {"index": 4, "message": {"content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}},
    ]
    _, backend = await serve(LoopbackConfig(script=always(Reply({"choices": choices}))))
    got = await draw(backend, request(5))
    assert [(c.text, c.reasoning, c.finish_reason, c.refusal) for c in got] == [
        ("<think>hm</think>A", "R", "stop", False),
        ("", "long", "length", False),
        ("I can't.", "", "stop", True),
        ("", "", "content_filter", False),
        ("AB", "", None, False),
    ]
    assert kinds(got) == {None}
    assert {c.sampler for c in got} == {"openai:loopback"}


@pytest.mark.parametrize("where", ["code", "message"])
async def test_a_prompt_that_is_filtered_is_an_outcome_and_no_failure(serve: Serve, where: str) -> None:
    body = (
        error_body("No.", "content_filter")
        if where == "code"
        else error_body("Flagged by our content policy")
    )
    server, backend = await serve(LoopbackConfig(script=always(Reply(body, 400))))
    got = await draw(backend, request(3))
    assert [(c.finish_reason, c.error_type, c.text) for c in got] == [("content_filter", None, "")] * 3
    assert len(server.requests) == 1


async def test_any_script_goes_there_and_back(serve: Serve) -> None:
    told = '性别：女 🧑🏽‍🚀 \u202eabc \x00 "quoted" \\n é'

    def echo(body: dict[str, Any], _: int) -> Reply:
        return said(body["messages"][-1]["content"])

    _, backend = await serve(LoopbackConfig(script=echo))
    (got,) = await draw(backend, SampleRequest((Message("user", told),), (0,)))
    assert got.text == told
    (got,) = await draw(backend, SampleRequest((Message("user", "half a pair: \ud83e."),), (0,)))
    assert got.text == "half a pair: ?."


async def test_usage_and_cost_are_shared_among_the_samples(serve: Serve) -> None:
    usage = {
        "prompt_tokens": 900,
        "completion_tokens": 101,
        "prompt_tokens_details": {"cached_tokens": 500},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    _, backend = await serve(
        LoopbackConfig(script=always(said("a", "b", "c", usage=usage))), prices=Prices(1.0, 10.0, 0.1)
    )
    got = await draw(backend, request(3))
    assert [c.usage.prompt_tokens for c in got] == [900, 0, 0]
    assert [c.usage.completion_tokens for c in got] == [34, 34, 33]
    assert [c.usage.reasoning_tokens for c in got] == [2, 1, 1]
    assert got[0].cost_usd == pytest.approx((400 + 50 + 340) / 1e6)
    assert got[2].cost_usd == pytest.approx(330 / 1e6)


async def test_usage_that_the_endpoint_keeps_to_itself_is_estimated(serve: Serve) -> None:
    _, backend = await serve(LoopbackConfig(usage=False))
    got = await draw(backend, request(2))
    assert all(c.usage.estimated and c.usage.completion_tokens > 50 for c in got)
    assert got[0].usage.prompt_tokens > 10
    assert got[1].usage.prompt_tokens == 0
    assert got[0].cost_usd is None


async def test_latency_is_that_of_the_answer(serve: Serve) -> None:
    _, backend = await serve(LoopbackConfig(latency_s=0.05, script=once(Reply(status=500, delay_s=0.4))))
    got = await draw(backend, request(2))
    assert all(0.05 <= c.latency_s < 0.4 for c in got)


# --- failures ---


@pytest.mark.parametrize(
    "broken",
    [
        Reply(status=500),
        Reply(status=503, body=b"<html>busy</html>"),
        Reply(error_body("slow down"), 429),
        Reply(b"<html>login</html>"),
        Reply(b'{"choices": [{"mess'),
        Reply(b""),
        Reply(b"[1]"),
        Reply({"choices": []}),
        Reply({"choices": None}),
        Reply({"choices": [{"index": 0, "text": "completions, not chat"}]}),
        Reply({"error": {"message": "in a 200", "code": 502}}),
        Reply(hang_up=True),
        Reply(hang=True),
    ],
)
async def test_a_transient_failure_is_tried_again_from_the_original_prompt(
    serve: Serve, broken: Reply
) -> None:
    server, backend = await serve(LoopbackConfig(script=once(broken, broken)), timeout_s=0.4)
    got = await draw(backend, request(3))
    assert kinds(got) == {None}
    assert len(server.requests) == 3
    assert len({r.body for r in server.requests}) == 1


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (Reply(status=500), ErrorType.SERVER),
        (Reply(b"<html>"), ErrorType.SERVER),
        (Reply(hang=True), ErrorType.TIMEOUT),
        (Reply(status=408), ErrorType.SERVER),
        (Reply(hang_up=True), ErrorType.CONNECTION),
    ],
)
async def test_a_failure_that_stays_becomes_typed_samples(
    serve: Serve, broken: Reply, kind: ErrorType
) -> None:
    server, backend = await serve(LoopbackConfig(script=always(broken)), timeout_s=0.5, max_attempts=2)
    got = await draw(backend, request(3))
    assert [(c.index, c.error_type, c.text) for c in got] == [(i, kind, "") for i in range(3)]
    assert all(c.error_message and len(c.error_message) < 200 for c in got)
    assert len(server.requests) == 2


async def test_nothing_listening_is_a_connection_error(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for installed in (True, False):
        monkeypatch.setattr(
            "cp_agents.backends.endpoint.find_spec", lambda name, found=installed: found or None
        )
        backend = OpenAIBackend("m", base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", max_attempts=2)
        assert kinds(await draw(backend, request(2))) == {ErrorType.CONNECTION}
        await backend.aclose()


async def test_without_aiohttp_the_default_transport_serves(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cp_agents.backends.endpoint.find_spec", lambda name: None)
    script = once(Reply(hang=True), Reply(hang_up=True), Reply(status=500))
    _, backend = await serve(LoopbackConfig(script=script), timeout_s=0.2)
    assert kinds(await draw(backend, request(3))) == {None}


async def test_a_rate_limit_holds_every_call_for_as_long_as_it_asks(serve: Serve) -> None:
    limited = Reply(error_body("slow down"), 429, {"Retry-After": "0.3"})
    server, backend = await serve(LoopbackConfig(script=once(limited)), n="no")
    first = asyncio.create_task(draw(backend, request(1)))
    async with asyncio.timeout(10):
        while not server.requests or server.requests[0].finished is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # the answer is read
    assert len(server.requests) == 1
    got = await asyncio.gather(first, *(draw(backend, request(2, user=user)) for user in range(1, 6)))
    assert all(kinds(completions) == {None} for completions in got)
    told = server.requests[0].finished
    assert all(r.received - told >= 0.29 for r in server.requests[1:])


async def test_rate_limited_calls_go_on_while_the_endpoint_answers_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cp_agents.backends.openai.PATIENCE_S", 1.0)
    calls, is_open = 0, True

    def one_in_four(body: dict[str, Any], _: int) -> Reply | None:
        nonlocal calls
        calls += 1
        if is_open and calls % 4 == 0:
            return None
        return Reply(error_body("slow down"), 429, {"Retry-After": "0.01"})

    server, backend = await serve(LoopbackConfig(script=one_in_four), n="no", max_attempts=2)
    assert kinds(await draw(backend, request(12))) == {None}
    assert max(Counter(r.body for r in server.requests).values()) > 2
    is_open, closed = False, time.time()
    assert kinds(await draw(backend, request(2, user=1))) == {ErrorType.RATE_LIMITED}
    assert time.time() - closed < 10  # the wall clock also measures what else the machine is doing


async def test_a_wait_that_is_a_quota_fails_at_once(serve: Serve) -> None:
    limited = Reply(error_body("come back tomorrow"), 429, {"Retry-After": "86400"})
    server, backend = await serve(LoopbackConfig(script=always(limited)))
    began = time.perf_counter()
    assert kinds(await draw(backend, request(4))) == {ErrorType.RATE_LIMITED}
    assert kinds(await draw(backend, request(4, user=1))) == {ErrorType.RATE_LIMITED}
    assert time.perf_counter() - began < 1
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "40", "retry-after": "9"}, 0.04),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_in_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date_to_come() -> None:
    assert retry_after(
        {"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)}
    ) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(error_body("bad key", "invalid_api_key"), 401), ErrorType.AUTH),
        (Reply(error_body("not allowed"), 403), ErrorType.AUTH),
        (Reply(error_body("no such model", "model_not_found"), 404), ErrorType.NOT_FOUND),
        (Reply(error_body("pay first"), 402), ErrorType.BUDGET),
        (Reply(error_body("You exceeded your current quota", "insufficient_quota"), 429), ErrorType.BUDGET),
    ],
)
async def test_what_would_fail_every_call_ends_the_run(serve: Serve, reply: Reply, kind: ErrorType) -> None:
    server, backend = await serve(LoopbackConfig(script=always(reply)))
    with pytest.raises(BackendError) as caught:
        await draw(backend, request())
    assert caught.value.error_type is kind
    assert len(server.requests) == 1


async def test_samples_in_flight_land_before_the_run_ends(serve: Serve) -> None:
    def script(body: dict[str, Any], _: int) -> Reply | None:
        if body["seed"] == 2:
            return Reply(status=401)
        return Reply(completion_body(["late"]), delay_s=0.05)

    _, backend = await serve(LoopbackConfig(script=script), n="no")
    landed, error = await draw_until_error(backend, request(4))
    assert [c.index for c in landed] == [0, 1, 3]
    assert error.error_type is ErrorType.AUTH
    assert not others()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (error_body("This model's maximum context length is 4096 tokens, you asked for 9000.", None), 400),
        (error_body("too long", "context_length_exceeded"), 400),
        (
            {
                "error": {
                    "code": 400,
                    "message": "exceeds the available context size",
                    "type": "exceed_context_size",
                }
            },
            400,
        ),
        ({"detail": "Prompt is too long"}, 422),
        (b"Request Entity Too Large", 413),
    ],
)
async def test_a_prompt_that_is_too_long_fails_alone(serve: Serve, body: Any, status: int) -> None:
    def script(sent: dict[str, Any], _: int) -> Reply | None:
        return Reply(body, status) if "stroller" in sent["messages"][-1]["content"] else None

    server, backend = await serve(LoopbackConfig(script=script))
    got = await draw(backend, request(3))
    assert kinds(got) == {ErrorType.CONTEXT_LENGTH}
    assert len(server.requests) == 1
    assert kinds(await draw(backend, SampleRequest((Message("user", "short"),), (0, 1)))) == {None}


async def test_a_bad_request_says_what_the_endpoint_said(serve: Serve) -> None:
    body = error_body("max_tokens must be at least 64, got 16", "invalid_value", "max_tokens")
    server, backend = await serve(LoopbackConfig(script=always(Reply(body, 400))))
    got = await draw(backend, request(3))
    assert kinds(got) == {ErrorType.BAD_REQUEST}
    assert got[0].error_message == (
        "the endpoint refused the request (400, invalid_value): max_tokens must be at least 64, got 16"
    )
    assert len(server.requests) == 1, "a value out of range is nothing to learn from"


# --- parameters ---


async def test_parameters_that_the_endpoint_does_not_take_are_learned(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server, backend = await serve(LoopbackConfig(unsupported=("temperature", "top_p", "max_tokens", "seed")))
    assert kinds(await draw(backend, request(3))) == {None}
    assert [r.status for r in server.requests] == [400] * 4 + [200]
    await draw(backend, request(3, user=1))
    assert len(server.requests) == 6
    assert set(server.bodies[-1]) == {"model", "messages", "n", "max_completion_tokens"}
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 4


async def test_calls_that_learn_at_the_same_time_agree(serve: Serve) -> None:
    server, backend = await serve(LoopbackConfig(unsupported=("max_tokens",), latency_s=0.02), n="no")
    assert kinds(await draw(backend, request(8))) == {None}
    assert Counter(r.status for r in server.requests) == {400: 8, 200: 8}
    assert all("max_completion_tokens" in body for body in server.bodies[8:])


@pytest.mark.parametrize(
    ("body", "learned"),
    [
        (
            error_body(
                "Unsupported value: 'temperature' does not support 0.2.", "unsupported_value", "temperature"
            ),
            "temperature",
        ),
        (error_body("Unrecognized request argument supplied: seed"), "seed"),
        (error_body("`temperature` and `top_p` cannot both be specified"), "top_p"),
        (
            {
                "detail": [
                    {
                        "loc": ["body", "seed"],
                        "msg": "Extra inputs are not permitted",
                        "type": "extra_forbidden",
                    }
                ]
            },
            "seed",
        ),
        ({"object": "error", "message": "unknown field: top_p", "code": 400}, "top_p"),
        ({"error": "max_tokens is not supported"}, "max_tokens"),
        (error_body("temperature must be at most 1", "invalid_value", "temperature"), None),
        (error_body("Unsupported language", None), None),
        ("nothing of use", None),
        (None, None),
    ],
)
def test_unsupported_parameters_in_the_words_of_several_servers(body: Any, learned: str | None) -> None:
    asked = Asked("m", 1, ["temperature", "top_p", "max_tokens", "seed"], "")
    assert read_error(400, {}, body, asked, "").unsupported == learned


def test_what_the_user_gives_is_not_touched() -> None:
    run = range(3, 4)
    assert set(Dialect(given={"temperature"}).parameters(request(), run)) == {"top_p", "max_tokens", "seed"}
    assert set(Dialect(given={"max_completion_tokens"}).parameters(request(), run)) == {
        "temperature",
        "top_p",
        "seed",
    }
    dialect = Dialect()
    assert dialect.learn("max_tokens")
    assert dialect.learn("max_completion_tokens")
    assert dialect.learn("max_tokens") is None
    assert set(dialect.parameters(request(), run)) == {"temperature", "top_p", "seed"}


async def test_the_request_holds_what_was_asked_and_the_extra_body(serve: Serve) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_p": 0.5}
    server, backend = await serve(extra_body=extra)
    await draw(backend, request(2, temperature=0.7, max_tokens=99, seed=5))
    (body,) = server.bodies
    assert body["messages"] == [m.as_dict() for m in request().messages]
    rest = {name: value for name, value in body.items() if name != "messages"}
    assert rest == {"model": "loopback", "temperature": 0.7, "max_tokens": 99, "seed": 5, "n": 2, **extra}


# --- stopping ---


def others() -> set[asyncio.Task[Any]]:
    """Tasks left behind besides the test itself and the server's own."""
    mine = asyncio.current_task()
    return {
        task
        for task in asyncio.all_tasks()
        if task is not mine and "OpenAIBackend" in getattr(task.get_coro(), "__qualname__", "")
    }


@pytest.mark.parametrize("n", ["yes", "no"])
async def test_cancelling_leaves_nothing_behind(serve: Serve, n: str) -> None:
    server, backend = await serve(LoopbackConfig(latency_s=5), n=n)
    task = asyncio.create_task(draw(backend, request()))
    await asyncio.sleep(0.1)
    assert others()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not others()
    await asyncio.sleep(0.05)
    assert all(r.finished is None for r in server.requests)
    server.config.latency_s = 0
    assert kinds(await draw(backend, request(user=1))) == {None}


async def test_leaving_early_cancels_the_rest(serve: Serve) -> None:
    def script(body: dict[str, Any], _: int) -> Reply | None:
        return None if body["seed"] == 3 else Reply(hang=True)

    _, backend = await serve(LoopbackConfig(script=script), n="no")
    async with contextlib.aclosing(backend.sample(request())) as samples:
        assert (await anext(samples)).index == 3
    assert not others()


async def test_samples_arrive_as_they_land(serve: Serve) -> None:
    def script(body: dict[str, Any], _: int) -> Reply:
        return Reply(completion_body(["x"]), delay_s=0.2 - 0.05 * body["seed"])

    _, backend = await serve(LoopbackConfig(script=script), n="no")
    assert [c.index async for c in backend.sample(request(4))] == [3, 2, 1, 0]


async def test_a_spent_budget_stops_before_the_next_call(serve: Serve) -> None:
    usage = {"prompt_tokens": 60, "completion_tokens": 20}
    server, backend = await serve(
        LoopbackConfig(script=always(said("x", usage=usage))),
        n="no",
        budget=Budget(max_tokens=150),
        max_connections=1,
    )
    landed, error = await draw_until_error(backend, request())
    assert error.error_type is ErrorType.BUDGET
    assert str(error) == "the budget of 150 tokens is spent"
    assert len(landed) == len(server.requests) == 2


async def test_requests_in_flight_stay_within_the_connections(serve: Serve) -> None:
    server, backend = await serve(LoopbackConfig(latency_s=0.02), n="no", max_connections=3)
    await draw(backend, request(9))
    times = [(r.received, 1) for r in server.requests] + [(r.finished, -1) for r in server.requests]
    most = now = 0
    for _, change in sorted(times):
        now += change
        most = max(most, now)
    assert most == 3


async def test_requests_per_minute_are_kept(serve: Serve) -> None:
    server, backend = await serve(n="no", requests_per_minute=1200, tokens_per_minute=10**9)
    started = time.time()
    await draw(backend, request(26))
    last = max(r.received for r in server.requests)
    assert last - started > 0.2, "20 may start at once, the other 6 every 1/20 s"


# --- everything at once ---


@pytest.mark.parametrize("honour_n", [True, False])
async def test_fifty_records_through_a_bad_day_lose_nothing(serve: Serve, honour_n: bool) -> None:
    _, calm = await serve(LoopbackConfig())
    users = range(50)
    expected = [texts(await draw(calm, request(4, user=user))) for user in users]
    rough = LoopbackConfig(
        honour_n=honour_n, p_429=0.05, p_500=0.02, p_malformed=0.02, p_hang=0.01, retry_after_s=0.02
    )
    server, backend = await serve(rough, timeout_s=1.0)
    drawn = await asyncio.gather(*(draw(backend, request(4, user=user)) for user in users))
    assert [texts(completions) for completions in drawn] == expected
    assert any(r.status != 200 for r in server.requests)


# --- secrets, settings, loops ---


LEAKY = [
    Reply(error_body(f"Incorrect API key provided: {KEY}", "invalid_api_key"), 401),
    Reply(error_body(f"cannot tokenise '{SECRET}'"), 400),
    Reply(
        {"detail": [{"loc": ["body", "messages"], "msg": f"bad input {SECRET[:9]}", "input": SECRET}]}, 422
    ),
    Reply(error_body("odd character: 婴"), 400),
    Reply(error_body(f"the header Bearer {KEY} is odd"), 400),
    Reply(error_body(f"maximum context length exceeded by {SECRET}"), 400),
    Reply(SECRET.encode() + KEY.encode(), 500),
    Reply(SECRET.encode() + KEY.encode(), 200),
    Reply(hang=True),
    Reply(hang_up=True),
    Reply(error_body(SECRET, KEY, KEY), 400),
]


@pytest.mark.parametrize("leak", LEAKY)
async def test_errors_hold_neither_key_nor_prompt(
    serve: Serve, leak: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = LoopbackConfig(script=always(leak))
    _, backend = await serve(config, api_key=KEY, timeout_s=0.1, max_attempts=2)
    told = repr(backend) + repr(backend.identity)
    try:
        told += "".join(str(c.error_message) for c in await draw(backend, request(2)))
    except BackendError as error:
        told += "".join(traceback.format_exception(error))
    told += "".join(r.getMessage() for r in caplog.records if r.name.startswith(("cp_agents", "openai")))
    for part in (KEY, KEY[:12], KEY[-8:], "婴", "stroller"):
        assert part not in told


async def test_the_endpoint_is_named_without_credentials(serve: Serve) -> None:
    server, _ = await serve()
    backend = OpenAIBackend(
        "loopback", base_url=server.url.replace("//", "//me:pass@") + "/?token=abc", revision="r1"
    )
    assert backend.identity.endpoint == server.url
    assert "pass" not in repr(backend)
    assert backend.identity.revision.startswith("r1+")  # the query may decide the answers, by its hash
    assert (
        OpenAIBackend("m", base_url="HTTPS://Host.example:443/v1//").identity.endpoint
        == "https://host.example/v1"
    )
    assert OpenAIBackend("m", base_url="http://[::1]:8000/v1").identity.endpoint == "http://[::1]:8000/v1"


async def test_a_query_and_a_password_in_the_base_url_are_sent(serve: Serve) -> None:
    paths: list[str] = []
    passwords: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path_qs)
        passwords.append(request.headers.get("Authorization"))
        return web.json_response(completion_body(["yes"]))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with test_utils.TestServer(app) as gateway:
        url = f"http://127.0.0.1:{gateway.port}/v1"
        for base in (f"{url}?api-version=3&a=", f"{url.replace('//', '//me:pass@')}/?token=abc"):
            _, backend = await serve(base_url=base)
            assert texts(await draw(backend, request(1))) == ["yes"]
    assert paths == ["/v1/chat/completions?api-version=3&a=", "/v1/chat/completions?token=abc"]
    assert passwords == ["Bearer none", "Basic bWU6cGFzcw=="]


async def test_a_proxy_is_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response(completion_body([str(request.url)]))

    async with test_utils.RawTestServer(answer) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        _, backend = await serve(base_url="http://endpoint.example/v1")
        [text] = texts(await draw(backend, request(1)))
    assert text == "http://endpoint.example/v1/chat/completions"


async def test_both_ways_to_post_send_the_same(serve: Serve) -> None:
    """What the SDK would send, down to its headers: gateways look at them."""
    server, fast = await serve(api_key=KEY)
    _, by_sdk = await serve(base_url=server.url, api_key=KEY, http_client=openai.DefaultAioHttpClient())
    for backend in (fast, by_sdk):
        assert kinds(await draw(backend, request(2))) == {None}
    ours, theirs = ({k.lower(): v for k, v in headers.items()} for headers in server.headers)
    assert server.bodies[0] == server.bodies[1]
    different = {k for k in ours | theirs if ours.get(k) != theirs.get(k)}
    assert different <= {"x-stainless-retry-count", "accept-encoding", "connection"}
    assert ours["authorization"] == f"Bearer {KEY}"


async def test_a_redirect_and_a_packed_answer_are_followed_and_unpacked(serve: Serve) -> None:
    async def move(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/moved")

    async def answer(request: web.Request) -> web.Response:
        packed = web.json_response(completion_body([(await request.json())["model"]]))
        packed.enable_compression(web.ContentCoding.gzip)
        return packed

    app = web.Application()
    app.router.add_post("/v1/chat/completions", move)
    app.router.add_post("/moved", answer)
    async with test_utils.TestServer(app) as gateway:
        _, backend = await serve(base_url=f"http://127.0.0.1:{gateway.port}/v1")
        assert texts(await draw(backend, request(1))) == ["loopback"]


async def test_the_key_comes_from_the_argument_or_the_environment(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, backend = await serve()
    await draw(backend, request(1))
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    await draw(OpenAIBackend("m"), request(1))
    await draw(OpenAIBackend("m", api_key=KEY), request(1))
    sent = [headers["Authorization"] for headers in server.headers]
    assert sent == ["Bearer none", "Bearer from-the-environment", f"Bearer {KEY}"]
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert OpenAIBackend("m").identity.endpoint == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ("m", {}, "OPENAI_API_KEY"),
        (" ", {"api_key": KEY}, "model"),
        ("m", {"api_key": KEY, "n": "maybe"}, "probe, yes or no"),
        ("m", {"base_url": "localhost:8000"}, "http://"),
        ("m", {"base_url": "http://host:port/v1"}, "not a URL"),
        ("m", {"api_key": KEY, "timeout_s": 0}, "timeout_s"),
        ("m", {"api_key": KEY, "max_attempts": 0}, "max_attempts"),
        ("m", {"api_key": KEY, "extra_body": {"stream": True}}, "stream"),
        ("m", {"api_key": KEY, "budget": Budget(max_usd=1)}, "prices"),
    ],
)
def test_settings_that_cannot_work_are_named(model: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        OpenAIBackend(model, **options)
    assert KEY not in str(caught.value)


async def test_a_spec_makes_the_backend(serve: Serve) -> None:
    server, _ = await serve()
    options = BackendOptions(
        load_taxonomy(),
        base_url=server.url,
        n="no",
        budget_usd=1e-9,
        prices={"prompt": 1.0, "completion": 2.0},
        extra={"top_k": 5},
    )
    backend = from_spec("loopback", options)
    (got,) = await draw(backend, request(1))
    assert got.cost_usd
    assert server.bodies[0]["top_k"] == 5
    with pytest.raises(BackendError, match="USD"):
        await draw(backend, request(1, user=1))
    with pytest.raises(InputError, match="model"):
        from_spec("", options)


@pytest.mark.filterwarnings("error")
def test_one_backend_serves_one_event_loop_after_the_other() -> None:
    with running_server() as server:
        backend = OpenAIBackend("loopback", base_url=server.url)
        first = asyncio.run(draw(backend, request()))
        assert texts(asyncio.run(draw(backend, request()))) == texts(first)


def test_surplus_choices_and_bytes_that_are_no_text() -> None:
    reply = read_reply(json.dumps(completion_body(["a", "b", "c"])).encode(), 2)
    assert sorted(reply.choices) == [0, 1], "more choices than asked for are left aside"
    with pytest.raises(CallError, match="not a chat completion"):
        read_reply(b"\xff\xfe", 1)


# --- the server itself ---


def test_the_server_runs_in_a_process_of_its_own_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with server_process("--no-n", "--latency", "0.01", "--p-500", "0.2", "--log", str(log)) as url:
        backend = OpenAIBackend("loopback", base_url=url)
        assert kinds(asyncio.run(draw(backend, request()))) == {None}
    events = [json.loads(line) for line in log.read_text().splitlines()]
    received = [e for e in events if e["event"] == "received"]
    finished = [e for e in events if e["event"] == "finished"]
    assert {e["id"] for e in received} == {e["id"] for e in finished}
    assert sorted({e["seed"] for e in finished if e["status"] == 200}) == list(range(10))
    assert len({e["block"] for e in events}) == 1


async def test_the_servers_failures_repeat_and_its_quotations_are_real(serve: Serve) -> None:
    runs = []
    for _ in range(2):
        server, backend = await serve(
            LoopbackConfig(p_500=0.2, p_malformed=0.2, p_length=0.2, p_refusal=0.1, seed=3)
        )
        got = [await draw(backend, request(4, user=user)) for user in range(6)]
        outcomes = [(c.text, c.finish_reason, c.refusal) for completions in got for c in completions]
        runs.append((outcomes, [(r.body, r.attempt, r.status) for r in server.requests]))
    assert runs[0] == runs[1]
    assert {finish for _, finish, _ in runs[0][0]} == {"stop", "length"}
    assert any(refused for _, _, refused in runs[0][0])
    assert quotable("[a]\n- [2024] Tea (x2, 4)\n- cake (no. 7)") == ["Tea", "cake (no. 7)"]
