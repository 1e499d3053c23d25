"""What an answer weighs: the rule of every source, votes by real weights, and calibrators that know their source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents.calibration import Calibrator
from cp_agents.confidence import SOURCES, check_logprobs, check_source, needs_probability, weigh
from cp_agents.errors import InputError
from cp_agents.voting import METHODS, vote, vote_attributes
from tests.support import PETS


def test_the_weights_of_every_source_by_hand() -> None:
    tags = np.array([[0, 1, 1, -1, 0]], np.int16)
    stated = np.array([[4, 2, 5, 0, 3]], np.int16)
    probability = np.array([[0.5, 0.9, np.nan, np.nan, 1.0]])

    def of(source: Any) -> list[list[Any]]:
        return [array.tolist()[0] for array in weigh(source, tags, stated, probability)]

    assert of("verbal") == [[0, 1, 1, -1, 0], [4, 2, 5, 0, 3]]
    assert of("agreement") == [[0, 1, 1, -1, 0], [5, 5, 5, 0, 5]]
    # the third answer has no probability: no vote
    assert of("logprob") == [[0, 1, -1, -1, 0], pytest.approx([2.5, 4.5, 0, 0, 5])]
    assert of("combined") == [[0, 1, -1, -1, 0], pytest.approx([2, 1.8, 0, 0, 3])]
    assert [needs_probability(s) for s in SOURCES] == [False, False, True, True]
    with pytest.raises(ValueError, match="needs probabilities"):
        weigh("logprob", tags, stated)


def test_sources_that_cannot_be() -> None:
    with pytest.raises(
        InputError, match="unknown confidence 'gut': expected one of verbal, agreement, logprob, combined"
    ):
        check_source("gut")
    with pytest.raises(
        InputError, match="lexicon gives no probabilities of its tags, by which confidence combined"
    ):
        check_logprobs("combined", False, "lexicon")
    check_logprobs("combined", None, "openai:m")  # nobody knows yet
    check_logprobs("agreement", False, "lexicon")


@st.composite
def ballots(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]], int]:
    """Rows of tags and real weights above 0 and at most 5, absent answers included, and the number of tags."""
    n_tags, samples = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    tag = st.integers(-1, n_tags - 1)
    tags = draw(st.lists(st.lists(tag, min_size=samples, max_size=samples), min_size=1, max_size=5))
    weight = st.integers(1, 5_000_000).map(lambda millionths: millionths / 1e6)
    weights = [[draw(weight) if t >= 0 else 0.0 for t in line] for line in tags]
    return tags, weights, n_tags


@given(ballots())
def test_a_vote_by_real_weights_equals_a_naive_loop(
    ballot: tuple[list[list[int]], list[list[float]], int],
) -> None:
    tags, weights, n_tags = ballot
    votes = vote(np.array(tags), np.array(weights), n_tags)
    for r, (line, by) in enumerate(zip(tags, weights, strict=True)):
        tally = {}
        for t in sorted({t for t in line if t >= 0}):
            mine = [w for tag, w in zip(line, by, strict=True) if tag == t]
            tally[t] = (round(sum(mine), 9), len(mine), max(mine), -t)
        first, second = (*sorted(tally, key=lambda t: tally[t], reverse=True), -1, -1)[:2]
        assert (votes.winner[r], votes.runner_up[r]) == (first, second)
        if first >= 0:
            assert votes.score[r] == pytest.approx(tally[first][0])
            best = max((w, -i) for i, (t, w) in enumerate(zip(line, by, strict=True)) if t == first)
            assert votes.best_sample[r] == -best[1]


@given(ballots(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_order_and_ranges_of_real_weights(
    ballot: tuple[list[list[int]], list[list[float]], int], method: Any, random: Any
) -> None:
    tags, weights, n_tags = np.array(ballot[0]), np.array(ballot[1]), ballot[2]
    order = random.sample(range(tags.shape[1]), tags.shape[1])
    one, two = vote(tags, weights, n_tags, method), vote(tags[:, order], weights[:, order], n_tags, method)
    assert (one.winner == two.winner).all()
    assert one.score == pytest.approx(two.score)
    assert one.margin == pytest.approx(two.margin)
    assert ((one.score >= 0) & (one.score <= 5 * one.survivors + 1e-9)).all()
    assert ((one.margin >= 0) & (one.margin <= 1 + 1e-12)).all()
    assert (one.runner_up_score <= one.score).all()


@given(ballots(), st.sampled_from(METHODS))
def test_whole_weights_vote_like_stated_confidences(
    ballot: tuple[list[list[int]], list[list[float]], int], method: Any
) -> None:
    tags, stated = np.array(ballot[0]), np.ceil(np.array(ballot[1])).astype(np.int16)
    as_float = vote_attributes(tags[None], stated[None].astype(float), [ballot[2]], method)
    as_int = vote_attributes(tags[None], stated[None], [ballot[2]], method)
    for real, whole in zip(as_float, as_int, strict=True):
        assert (real == whole).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, 5.1, np.nan, np.inf])
def test_weights_that_cannot_be(bad: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        vote(np.array([[0, 1]]), np.array([[1.0, bad]]), 2)
    assert vote(np.array([[0, -1]]), np.array([[1.0, 7.0]]), 2).winner.tolist() == [0]  # nobody looks at it


# --- calibrators --------------------------------------------------------------------------------------------


def test_a_calibrator_knows_its_source_and_refuses_another() -> None:
    scores = {"pet": [float(s) for s in range(30)]}
    stated = Calibrator.fit(scores, samples=10, taxonomy=PETS)
    scored = Calibrator.fit(scores, samples=10, taxonomy=PETS, confidence="logprob")
    assert "confidence" not in stated.to_json()  # files of before keep their ids
    assert scored.to_json()["confidence"] == "logprob"
    assert stated.id != scored.id
    assert Calibrator.from_json(scored.to_json()) == scored
    scored.check(PETS, "weighted", "logprob")
    with pytest.raises(
        InputError, match=r"was fitted on votes by logprob confidence, and this run's .* is verbal"
    ):
        scored.check(PETS, "weighted")
    with pytest.raises(InputError, match="fitted on votes by verbal confidence"):
        stated.check(PETS, "weighted", "combined")
