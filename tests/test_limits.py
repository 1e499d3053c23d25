"""Requests and tokens per minute, the shared cooldown and the budget, on a clock that costs no time."""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents.backends.limits import Budget, Limits, TokenBucket
from cp_agents.backends.usage import Prices, estimate_usage, read_usage
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Usage


class VirtualTime:
    """A clock whose sleepers are woken in order, as soon as everybody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), future))
        await future

    async def run(self, *work: Awaitable[object]) -> None:
        everything = asyncio.gather(*work)
        while not everything.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers and not everything.done():
                self.now, _, future = heapq.heappop(self._sleepers)
                if not future.done():
                    future.set_result(None)
        await everything


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


def limits(time: VirtualTime, **options: object) -> Limits:
    return Limits(clock=time.clock, sleep=time.sleep, **options)  # type: ignore[arg-type]


async def starts(time: VirtualTime, gate: Limits, n: int, tokens: int = 0) -> list[float]:
    """Seconds from now at which each of `n` calls that ask at once is admitted, in the order of asking."""
    began, at = time.now, [-1.0] * n

    async def call(i: int) -> None:
        await gate.admit(tokens)
        at[i] = time.now - began

    await time.run(*(call(i) for i in range(n)))
    return at


@given(
    per_minute=st.integers(1, 5000),
    gaps=st.lists(st.floats(0, 90), min_size=1, max_size=40),
    together=st.integers(1, 8),
)
def test_no_minute_sees_more_starts_than_the_limit(per_minute: int, gaps: list[float], together: int) -> None:
    now = 0.0
    bucket = TokenBucket(per_minute, lambda: now)
    begun = []
    for gap in gaps:
        now += gap
        begun += [now + bucket.reserve() for _ in range(together)]
    assert begun == sorted(begun)
    for i, start in enumerate(begun):
        within = sum(start <= other < start + 60 - 1e-6 for other in begun[i:])
        assert within <= per_minute


async def test_requests_per_minute_are_spaced_and_served_in_order(time: VirtualTime) -> None:
    at = await starts(time, limits(time, requests_per_minute=60), 5)
    assert at == pytest.approx([0, 1, 2, 3, 4])


async def test_the_stricter_of_two_limits_decides(time: VirtualTime) -> None:
    gate = limits(time, requests_per_minute=600, tokens_per_minute=6000)
    at = await starts(time, gate, 3, tokens=200)
    assert at[1] - at[0] > 1.9
    assert at[2] - at[1] > 1.9


async def test_tokens_that_were_not_expected_delay_the_next_call(time: VirtualTime) -> None:
    gate = limits(time, tokens_per_minute=6000)
    await gate.admit(50)
    gate.settle(50, [Usage(prompt_tokens=100, completion_tokens=400)], [None])
    (waited,) = await starts(time, gate, 1, tokens=50)
    assert waited == pytest.approx(450 / 100, rel=0.02)


async def test_tokens_that_were_not_used_are_given_back(time: VirtualTime) -> None:
    gate = limits(time, tokens_per_minute=6000)
    await gate.admit(1000)
    gate.settle(1000, [Usage(prompt_tokens=100)], [None])
    assert await starts(time, gate, 1, tokens=50) == pytest.approx([0.5], abs=0.02)


async def test_a_cooldown_holds_everyone_and_lets_them_go_apart(time: VirtualTime) -> None:
    gate = limits(time)
    gate.cool_down(10)
    gate.cool_down(2)  # a shorter one does not shorten it
    at = await starts(time, gate, 20)
    assert all(10 <= start <= 12.5 for start in at)
    assert len(set(at)) > 10


async def test_a_cooldown_that_begins_while_a_call_waits_for_its_turn_holds_it_too(time: VirtualTime) -> None:
    gate = limits(time, requests_per_minute=60)

    async def overload() -> None:
        await time.sleep(0.5)
        gate.cool_down(30)

    begun: list[float] = []

    async def call() -> None:
        await gate.admit()
        begun.append(time.now - 100)

    await time.run(call(), call(), call(), overload())
    assert begun[0] == 0
    assert min(begun[1:]) >= 30.5
    assert begun[2] - begun[1] >= 0.99, "calls that the cooldown delayed keep their distance"


async def test_a_cancelled_call_gives_its_turn_back(time: VirtualTime) -> None:
    gate = limits(time, requests_per_minute=60)
    await gate.admit()
    waiting = asyncio.create_task(gate.admit())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await starts(time, gate, 1) == pytest.approx([1.0])


async def test_without_limits_nobody_waits(time: VirtualTime) -> None:
    assert await starts(time, limits(time), 1000) == [0.0] * 1000


@pytest.mark.parametrize("spend", [(Usage(prompt_tokens=60, completion_tokens=40), 0.0), (Usage(), 0.5)])
async def test_a_spent_budget_ends_the_run(time: VirtualTime, spend: tuple[Usage, float]) -> None:
    budget = Budget(max_usd=0.5, max_tokens=100)
    gate = limits(time, budget=budget)
    await gate.admit()
    gate.settle(0, [spend[0]], [spend[1]])
    with pytest.raises(BackendError, match=r"the budget of .* is spent") as caught:
        await gate.admit()
    assert caught.value.error_type is ErrorType.BUDGET
    assert caught.value.error_type.is_fatal


async def test_a_budget_that_is_spent_while_a_call_waits_stops_it(time: VirtualTime) -> None:
    budget = Budget(max_tokens=10)
    gate = limits(time, budget=budget, requests_per_minute=1)
    await gate.admit()

    async def spend() -> None:
        await time.sleep(5)
        budget.add(Usage(prompt_tokens=10), None)

    async def refused() -> None:
        with pytest.raises(BackendError, match="10 tokens"):
            await gate.admit()

    await time.run(refused(), spend())


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenBucket(0),
        lambda: Limits(requests_per_minute=-1),
        lambda: Limits(tokens_per_minute=0),
        lambda: Budget(max_usd=0),
        lambda: Budget(max_tokens=-5),
        lambda: Prices.from_dict({"prompt": 1.0}),
        lambda: Prices.from_dict({"prompt": 1.0, "completion": -1.0}),
        lambda: Prices.from_dict({"prompt": 1.0, "completion": float("nan")}),
        lambda: Prices.from_dict({"prompt": 1.0, "completion": 1.0, "input": 1.0}),
    ],
)
def test_settings_that_make_no_sense_are_named(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="should"):
        make()


def test_cost_tells_cached_tokens_apart() -> None:
    usage = Usage(prompt_tokens=1000, cached_tokens=600, completion_tokens=100)
    assert Prices(2.0, 8.0).cost(usage) == pytest.approx((1000 * 2 + 100 * 8) / 1e6)
    assert Prices(2.0, 8.0, 0.5).cost(usage) == pytest.approx((400 * 2 + 600 * 0.5 + 100 * 8) / 1e6)


@given(
    prompt=st.integers(0, 10**6),
    completion=st.integers(1, 10**6),
    share=st.floats(0, 2),
    n=st.integers(1, 40),
)
def test_shared_usage_adds_up(prompt: int, completion: int, share: float, n: int) -> None:
    raw = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": int(prompt * share)},
        "completion_tokens_details": {"reasoning_tokens": completion // 3},
    }
    usages = read_usage(raw, n)
    assert usages is not None
    assert usages[0].prompt_tokens == sum(u.prompt_tokens for u in usages) == prompt
    assert sum(u.completion_tokens for u in usages) == completion
    assert sum(u.reasoning_tokens for u in usages) == completion // 3
    assert max(u.completion_tokens for u in usages) - min(u.completion_tokens for u in usages) <= 1
    assert 0 <= usages[0].cached_tokens <= prompt
    assert not any(u.estimated for u in usages)


@pytest.mark.parametrize(
    "raw", [None, {}, "12", {"prompt_tokens": 0, "completion_tokens": None}, {"total_tokens": 3}]
)
def test_usage_that_was_not_counted_is_estimated(raw: object) -> None:
    assert read_usage(raw, 3) is None
    usages = estimate_usage(90, [10, 11, 12])
    assert [(u.prompt_tokens, u.completion_tokens, u.estimated) for u in usages] == [
        (90, 10, True),
        (0, 11, True),
        (0, 12, True),
    ]


@pytest.mark.parametrize("details", [None, 7, {"cached_tokens": "many"}, []])
def test_odd_usage_details_are_no_obstacle(details: object) -> None:
    usages = read_usage({"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": details}, 2)
    assert usages is not None
    assert [u.completion_tokens for u in usages] == [4, 3]
    assert usages[0].cached_tokens == 0
