"""When a vote is settled: `exact` is never wrong and never late, `bayes` says how often it is wrong."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cp_agents import InputError
from cp_agents.adaptive import (
    RULES,
    Stopping,
    Wave,
    check_adaptive,
    first_wave,
    is_settled,
    next_wave,
    probability_it_stays,
    stop_reason,
)
from cp_agents.settings import ProfileSettings
from cp_agents.voting import METHODS, VoteMethod, vote_attributes

SETTLING: list[VoteMethod] = [method for method in METHODS if method != "dawid_skene"]
Array = NDArray[np.int16]


def votes(*answers: str) -> tuple[Array, Array]:
    """One attribute's samples as "tag code, confidence": "04" is tag 0 with confidence 4, "-" no usable answer."""
    tags = [-1 if a == "-" else int(a[0]) for a in answers]
    weights = [0 if a == "-" else int(a[1]) for a in answers]
    return np.array([tags], np.int16), np.array([weights], np.int16)


def winners(tags: Array, weights: NDArray[np.generic], n_tags: list[int], method: VoteMethod) -> list[int]:
    found = vote_attributes(tags[:, None], weights[:, None], n_tags, method)  # type: ignore[arg-type]
    return [int(code) for code in found.winner[:, 0]]


@st.composite
def drawn_records(draw: st.DrawFn, real: bool = False) -> tuple[Array, NDArray[np.generic], list[int], int]:
    """All M answers to some attributes, `[K, M]`, with their sets' sizes and the number m that was drawn."""
    n_tags = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    samples = draw(st.integers(1, 8))
    level = st.sampled_from([1e-3, 0.7, 2.5, 4.999, 5.0]) if real else st.integers(1, 5)
    # Mostly one tag, else hardly any vote is ever settled.
    tags = [[draw(st.sampled_from([-1, 0, 0, 0, n - 1, 1])) for _ in range(samples)] for n in n_tags]
    weights = [[draw(st.sampled_from([5, 5]) | level) if t >= 0 else 0 for t in row] for row in tags]
    kind = np.float64 if real else np.int16
    return np.array(tags, np.int16), np.array(weights, kind), n_tags, draw(st.integers(1, samples))


@pytest.mark.parametrize("method", SETTLING)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), real=st.booleans())
def test_no_continuation_changes_a_settled_vote(method: VoteMethod, data: st.DataObject, real: bool) -> None:
    tags, weights, n_tags, drawn = data.draw(drawn_records(real))
    if is_settled(tags[:, :drawn], weights[:, :drawn], n_tags, tags.shape[1], method):
        before = winners(tags[:, :drawn], weights[:, :drawn], n_tags, method)
        assert winners(tags, weights, n_tags, method) == before
        for m in range(drawn, tags.shape[1]):  # and it stays settled
            assert is_settled(tags[:, :m], weights[:, :m], n_tags, tags.shape[1], method)


@pytest.mark.parametrize("method", SETTLING)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_exact_says_settled_just_where_every_continuation_agrees(
    method: VoteMethod, data: st.DataObject
) -> None:
    """Against all of them: up to two answers are left, of any tag and confidence, or none."""
    tags, weights, n_tags, drawn = data.draw(drawn_records())
    tags, weights, n_tags = tags[:1], weights[:1], n_tags[:1]
    samples = min(drawn + 2, tags.shape[1])
    now = winners(tags[:, :drawn], weights[:, :drawn], n_tags, method)  # type: ignore[arg-type]
    cells = [(-1, 0)] + [(tag, level) for tag in range(n_tags[0]) for level in range(1, 6)]
    futures = list(itertools.product(cells, repeat=samples - drawn))
    rows = len(futures)
    then = np.array(futures, np.int16).reshape(rows, samples - drawn, 2)
    all_tags = np.hstack([np.repeat(tags[:, :drawn], rows, 0), then[..., 0]])[None]
    all_weights = np.hstack([np.repeat(weights[:, :drawn], rows, 0), then[..., 1]])[None]
    outcomes = set(vote_attributes(all_tags, all_weights, n_tags, method).winner[0].tolist())
    settled = is_settled(tags[:, :drawn], weights[:, :drawn], n_tags, samples, method)  # type: ignore[arg-type]
    assert settled == (now != [-1] and outcomes == set(now))


@pytest.mark.parametrize(
    ("answers", "samples", "method", "expected"),
    [
        (["05"] * 6, 10, "weighted", True),  # 30 against 20
        (["14"] * 6, 10, "weighted", True),  # 24 against 20
        (["13"] * 6, 10, "weighted", False),  # 18 against 20
        (["14"] * 5, 9, "weighted", True),  # 20 against 20, and five votes are more than four
        (["15"] * 5, 10, "weighted", False),  # 25 against 25 with five votes each: tag 0 comes first
        (["05"] * 5, 10, "weighted", True),  # as it does here
        (["11"] * 6, 10, "majority", True),  # whatever the confidence
        (["15"] * 8, 10, "mean", False),  # one at 1, and then another tag at 5
        (["15"] * 9, 10, "mean", True),  # both 5, and nine votes are more than one
        (["14"] * 9, 10, "mean", False),  # one sample at 5 beats nine at 4
        (["11"] * 9, 10, "softmax", False),  # e^5 against 9 e
        (["15"] * 6, 10, "softmax", True),
        (["-"] * 6 + ["15"] * 3, 10, "weighted", True),  # failed samples were drawn: one is left
        (["-"] * 9, 10, "weighted", False),
        (["-"] * 10, 10, "weighted", False),
    ],
)
def test_by_hand(answers: list[str], samples: int, method: VoteMethod, expected: bool) -> None:
    tags, weights = votes(*answers)
    assert is_settled(tags, weights, [3], samples, method) is expected


def test_a_record_is_settled_when_all_of_its_attributes_are() -> None:
    tags, weights = votes(*["05"] * 6)
    split, other = votes("05", "15", "05", "15", "05", "15")
    assert is_settled(np.vstack([tags, tags]), np.vstack([weights, weights]), [3, 2], 10)
    assert not is_settled(np.vstack([tags, split]), np.vstack([weights, other]), [3, 2], 10)


def test_the_probability_is_that_of_the_urn() -> None:
    """One sample left: it repeats one of the m with m / (m + 1), and is any of the tags otherwise."""
    tags, weights = votes("05", "05", "15")
    [p] = probability_it_stays(tags, weights, [2], 4)
    # Tag 1 catches up with 5: one way in three of an old ball (tag 1 at 5), or a new one (half of which is tag 1, one
    # in five of these at 5); and with 10 against 10, two votes against two, the first tag wins.
    assert p == 1
    tags, weights = votes("15", "15", "05")
    [p] = probability_it_stays(tags, weights, [2], 4)
    lost = 3 / 4 * 1 / 3 + 1 / 4 * 1 / 10
    assert abs(p - (1 - lost)) < 0.08  # of 200 continuations


@settings(max_examples=30, deadline=None)
@given(drawn_records())
def test_what_is_settled_stays_with_certainty_and_the_same_answers_get_the_same_number(
    record: tuple[Array, NDArray[np.generic], list[int], int],
) -> None:
    tags, weights, n_tags, drawn = record
    part = tags[:, :drawn], weights[:, :drawn], n_tags, tags.shape[1]
    p = probability_it_stays(*part)  # type: ignore[arg-type]
    assert ((p >= 0) & (p <= 1)).all()
    assert (p == probability_it_stays(*part)).all()  # type: ignore[arg-type]
    if is_settled(*part):  # type: ignore[arg-type]
        assert (p == 1).all()


def test_bayes_keeps_what_it_promises_where_its_model_is_true() -> None:
    """Records drawn from the very urn: of the tags, the share that stays is p or more, and samples are saved."""
    rng = np.random.default_rng(0)
    stopping = Stopping("bayes", 10, p=0.9)
    n_tags, equal, drawn = [3, 4, 2], [], []
    for _ in range(150):
        shares = [rng.dirichlet(np.full(n, 1 / n)) for n in n_tags]
        tags = np.array([rng.choice(n, 10, p=s) for n, s in zip(n_tags, shares, strict=True)], np.int16)
        weights = np.full(tags.shape, 5, np.int16)
        m = first_wave(n_tags, stopping)
        while more := next_wave(tags[:, :m], weights[:, :m], n_tags, stopping).more:
            m += more
        drawn.append(m)
        full = winners(tags, weights, n_tags, "weighted")
        early = winners(tags[:, :m], weights[:, :m], n_tags, "weighted")
        equal += [a == b for a, b in zip(early, full, strict=True)]
    assert np.mean(equal) >= 0.9
    assert np.mean(drawn) < 7


def test_bayes_is_about_the_expected_share_of_attributes() -> None:
    """Five attributes of six in full agreement carry one that is split, at p 0.85 and not at 0.95."""
    agreed, full = votes(*["05"] * 6)
    split, other = votes("05", "15", "05", "15", "05", "15")
    tags, weights = np.vstack([agreed] * 5 + [split]), np.vstack([full] * 5 + [other])
    assert stop_reason(tags, weights, [3] * 6, Stopping("bayes", 10, p=0.85)) == "bayes"
    assert stop_reason(tags, weights, [3] * 6, Stopping("bayes", 10, p=0.95)) is None
    assert stop_reason(tags[:5], weights[:5], [3] * 5, Stopping("bayes", 10, p=0.95)) == "exact"


@pytest.mark.parametrize("rule", RULES)
def test_a_profile_that_would_fail_for_want_of_answers_is_not_settled(rule: str) -> None:
    tags, weights = votes(*["05"] * 2 + ["-"] * 7)
    stopping = Stopping(rule, 10, p=0.5)  # type: ignore[arg-type]
    assert stop_reason(tags, weights, [3], stopping) is None
    assert stop_reason(tags, weights, [3], stopping._replace(min_survivors=2)) is not None


@pytest.mark.parametrize(
    ("method", "samples", "first"),
    [("weighted", 10, 6), ("majority", 9, 5), ("mean", 10, 9), ("weighted", 1, 1)],
)
def test_the_first_wave_of_exact_is_the_fewest_that_could_do(
    method: VoteMethod, samples: int, first: int
) -> None:
    assert first_wave([3, 2], Stopping("exact", samples, method)) == first


def test_waves_of_exact_are_no_smaller_than_what_could_end_it_and_no_larger() -> None:
    stopping = Stopping("exact", 10)
    tags, weights = votes("05", "05", "05", "05", "15", "15")  # 20 against 10, four left: 25 against 10 + 15
    assert next_wave(tags, weights, [3], stopping) == Wave(1)
    tags, weights = votes("05", "05", "05", "13", "15", "15")  # 15 against 13: 25 against 13 + 10
    assert next_wave(tags, weights, [3], stopping) == Wave(2)
    assert next_wave(tags, weights, [3], stopping._replace(wave=3)) == Wave(3)
    assert next_wave(tags, weights, [3], stopping._replace(wave=30)) == Wave(4)
    tags, weights = votes(*["05"] * 7)
    assert next_wave(tags, weights, [3], stopping) == Wave(0, "exact")
    tags, weights = votes(*["05", "15"] * 5)
    assert next_wave(tags, weights, [3], stopping) == Wave(0)  # all are drawn


def test_many_samples_are_drawn_in_ten_waves_or_fewer() -> None:
    stopping = Stopping("bayes", 100, p=0.999)
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 2, (2, 100)).astype(np.int16)
    weights = np.full(tags.shape, 4, np.int16)
    m = first_wave([3, 3], stopping)
    waves = [m]
    while more := next_wave(tags[:, :m], weights[:, :m], [3, 3], stopping).more:
        m += more
        waves.append(more)
    assert m > 80
    assert set(waves[1:]) <= {10, 100 - sum(waves[:-1])}
    assert len(waves) <= 10


def test_a_decision_takes_little_time() -> None:
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 3, (6, 5)).astype(np.int16)
    weights = rng.integers(1, 6, tags.shape).astype(np.int16)
    stopping = Stopping("bayes", 10)
    took = []
    for _ in range(20):
        started = time.perf_counter()
        next_wave(tags, weights, [8] * 6, stopping)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.005


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="unknown adaptive sampling 'maybe': expected exact or bayes"):
        check_adaptive("maybe", "weighted")
    with pytest.raises(InputError, match="dawid_skene"):
        check_adaptive("exact", "dawid_skene")
    with pytest.raises(InputError, match="dawid_skene"):
        _ = ProfileSettings(adaptive="bayes", vote="dawid_skene").stopping
    check_adaptive(None, "dawid_skene")
