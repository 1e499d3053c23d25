"""Confidence sources side by side: hand-worked values, and scikit-learn as the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.errors import InputError, StoreError
from cp_agents.evaluation.confidence import compare_sources, source_metrics
from cp_agents.evaluation.samples import Answer, Discrimination, load_answers, of_vote
from cp_agents.profiler import Profiler
from cp_agents.schema import Completion, TagProbability
from tests.support import PETS, RECORD, ScriptedBackend, answer


def row(tag: str, score: float, agreeing: int, survivors: int, **more: Any) -> dict[str, Any]:
    share = agreeing / survivors if survivors else 0.0
    fields = {"tag": tag, "voted": tag, "status": "accepted", "score": score, "vote_share": share}
    return fields | {"agreeing": list(range(agreeing)), "survivors": survivors} | more


def test_sources_by_hand() -> None:
    lines = [
        {"user_id": "a", "profile": {"pet": row("Cat", 16, 4, 4)}},  # verbal .8, share 1, combined .8: right
        {"user_id": "b", "profile": {"pet": row("Dog", 10, 2, 4)}},  # verbal 1, share .5, combined .5: wrong
        {"user_id": "c", "profile": {"pet": row("NA", 9, 3, 4)}},  # said nothing
        {"user_id": "d", "profile": {"pet": row("Cat", 12, 3, 4)}},  # gold is NA
        {"user_id": "e", "profile": {"pet": row("Cat", 2, 1, 1, status="failed")}},
    ]
    gold = {user: {"pet": tag} for user, tag in zip("abcde", ("Cat", "Cat", "Cat", "NA", "Cat"), strict=True)}
    found = compare_sources(lines, gold, PETS)["pet"]
    assert set(found) == {"verbal", "agreement", "combined"}
    assert [found[s].n for s in found] == [2, 2, 2]
    assert found["agreement"].auroc == found["combined"].auroc == 1.0
    assert found["verbal"].auroc == 0.0  # the wrong answer was stated with more confidence
    assert found["combined"].brier == pytest.approx((0.2**2 + 0.5**2) / 2)
    assert found["combined"].ece == pytest.approx((0.2 + 0.5) / 2)
    assert found["agreement"].aurc == pytest.approx((0 + 0.5) / 2)
    assert found["verbal"].aurc == pytest.approx((1 + 0.5) / 2)
    assert found["verbal"].risk == 0.5


def test_probability_is_reported_where_a_calibrator_gave_one() -> None:
    lines = [{"user_id": "a", "profile": {"pet": row("Cat", 16, 4, 4, probability=0.7)}}]
    assert compare_sources(lines, {"a": {"pet": "cat"}}, PETS)["pet"]["probability"].brier == pytest.approx(
        0.09
    )


@pytest.mark.parametrize(
    ("scores", "known"),
    [
        ((16, 10), True),  # sums of what four and two samples stated
        ((4, 2), False),  # a majority's counts
        ((20, 10), False),  # the same by --confidence agreement
        ((3, 5), False),  # means, by chance whole
        ((3.1, 10), False),
    ],
)
def test_what_was_stated_is_not_read_from_other_votes(scores: tuple[float, float], known: bool) -> None:
    pairs = zip("ab", scores, (4, 2), strict=True)
    lines = [{"user_id": user, "profile": {"pet": row("Cat", s, m, 4)}} for user, s, m in pairs]
    found = compare_sources(lines, {"a": {"pet": "Cat"}, "b": {"pet": "Dog"}}, PETS)["pet"]
    assert set(found) == ({"verbal", "agreement", "combined"} if known else {"agreement"})


def test_profiles_without_votes_have_no_source() -> None:
    lines = [{"user_id": "a", "profile": {"pet": {"tag": "Cat", "confidence": 4}}}]
    assert compare_sources(lines, {"a": {"pet": "Cat"}}, PETS) == {}


answers = st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=60)


@given(answers)
@settings(deadline=None)  # the first example imports scikit-learn
def test_auroc_and_brier_agree_with_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    confidence = np.array([c / 10 for c, _ in pairs])
    right = np.array([r for _, r in pairs])
    found = source_metrics(confidence, right)
    assert found.brier == pytest.approx(((confidence - right) ** 2).mean())
    if right.all() or not right.any():
        assert found.auroc is None
    else:
        assert found.auroc == pytest.approx(metrics.roc_auc_score(right, confidence))


@given(answers, st.randoms())
def test_the_order_of_rows_does_not_matter(pairs: list[tuple[int, bool]], random: Any) -> None:
    shuffled = random.sample(pairs, len(pairs))
    one, other = (
        source_metrics(np.array([c / 10 for c, _ in p]), np.array([r for _, r in p]))
        for p in (pairs, shuffled)
    )
    assert one.model_dump() == pytest.approx(other.model_dump())


def test_a_confidence_that_knows_nothing_has_the_error_rate_as_its_area() -> None:
    right = np.array([True, False, True, True])
    assert source_metrics(np.full(4, 0.5), right).aurc == pytest.approx(0.25)


# --- with the samples behind the votes ----------------------------------------------------------------------


def samples(*answers: tuple[str, int, float | None]) -> list[Answer]:
    return [Answer(i, tag, stated, probability) for i, (tag, stated, probability) in enumerate(answers)]


def test_within_question_discrimination_by_hand() -> None:
    found = Discrimination()
    # right: 5, 2; wrong: 3, 5. Of four pairs: 5>3, 5=5, 2<3, 2<5
    found.add(
        samples(("Cat", 5, 0.9), ("Cat", 2, 0.8), ("Dog", 3, 0.7), ("Fish", 5, None), ("NA", 5, 0.9)), "Cat"
    )
    assert found.rate("verbal") == pytest.approx(1.5 / 4)
    assert found.rate("logprob") == 1.0  # the pairs of which both sides have a probability
    assert found.rate("combined") == pytest.approx(1 / 2)  # right .9, .32; wrong .42
    assert found.rate("agreement") == 1.0  # Cat 2 of 4, the others 1 of 4
    # another question, of one pair that is wrong by every source
    found.add(samples(("Dog", 1, 0.1), ("Cat", 4, 0.4), ("Cat", 4, 0.4)), "Dog")
    assert found.rate("verbal") == pytest.approx(1.5 / 6)
    assert found.rate("agreement") == pytest.approx(4 / 6)
    # questions without a pair say nothing
    found.add(samples(("Cat", 5, 0.9), ("Cat", 4, 0.9)), "Cat")
    found.add(samples(("Dog", 5, 0.9), ("NA", 4, 0.9)), "Cat")
    found.add([], "Cat")
    assert found.rate("verbal") == pytest.approx(1.5 / 6)
    assert Discrimination().rate("verbal") is None


@given(answers, st.randoms())
def test_within_one_question_it_is_the_auroc_of_its_samples(
    pairs: list[tuple[int, bool]], random: Any
) -> None:
    asked = [Answer(i, "Cat" if right else "Dog", 1, (1 + c) / 11) for i, (c, right) in enumerate(pairs)]
    found = Discrimination()
    found.add(random.sample(asked, len(asked)), "Cat")
    values = np.array([answer.probability for answer in asked])
    expected = source_metrics(values, np.array([right for _, right in pairs])).auroc
    assert found.rate("logprob") == (None if expected is None else pytest.approx(expected))


def test_the_confidence_in_a_vote_comes_from_its_samples() -> None:
    asked = samples(("Cat", 4, 0.5), ("Dog", 5, 0.9), ("Cat", 2, 0.7), ("Cat", 3, None))
    assert of_vote(asked, [0, 2, 3]) == pytest.approx(
        {"verbal": 0.6, "agreement": 0.75, "logprob": 0.6, "combined": (0.8 * 0.5 + 0.4 * 0.7) / 3}
    )
    assert of_vote([a._replace(probability=None) for a in asked], [1]) == pytest.approx(
        {"verbal": 1.0, "agreement": 0.25, "combined": 0.25}
    )
    assert of_vote(asked, []) == of_vote([], [0]) == {}


def test_samples_add_a_source_and_discrimination() -> None:
    lines = [
        {"user_id": "a", "profile": {"pet": row("Cat", 7.5, 2, 3, probability=0.7)}},
        {"user_id": "b", "profile": {"pet": row("NA", 9, 2, 3)}},  # no vote to judge, but samples
    ]
    asked = {
        ("a", "pet"): samples(("Cat", 4, 0.9), ("Cat", 2, 0.6), ("Dog", 5, 0.8)),
        ("b", "pet"): samples(("NA", 4, 0.9), ("Dog", 2, 0.6), ("Cat", 5, 0.8)),
    }
    gold = {"a": {"pet": "cat"}, "b": {"pet": "Dog"}}
    found = compare_sources(lines, gold, PETS, asked)["pet"]
    assert set(found) == {"verbal", "agreement", "logprob", "combined", "probability"}
    assert found["logprob"].brier == pytest.approx(0.25**2)
    assert found["verbal"].brier == pytest.approx(0.4**2)
    assert found["verbal"].wqd == 0.0
    assert found["logprob"].wqd == pytest.approx(1 / 3)
    assert found["probability"].wqd is None
    # without them, S of a vote by probabilities says nothing of what was stated
    assert set(compare_sources(lines, gold, PETS)["pet"]) == {"agreement", "probability"}


def test_answers_of_a_stored_run() -> None:
    def say(i: int) -> Completion:
        scores = {"pet": TagProbability("Cat", 0.25)} if i else {}
        return Completion(index=i, text=answer(), probabilities=scores)

    with Profiler(ScriptedBackend(say), taxonomy=PETS, samples=2, run="r") as profiler:
        line = profiler.profile(RECORD).to_json()
        found = load_answers(profiler.store, None, [line])
        assert found["u1", "pet"] == [Answer(0, "Cat", 4, None), Answer(1, "Cat", 4, 0.25)]
        assert found == load_answers(profiler.store, "r", [])
        with pytest.raises(InputError, match="name the run of the store: the profiles are of no named run"):
            load_answers(profiler.store, None, [{}])
        with pytest.raises(StoreError, match="no run 'x'"):
            load_answers(profiler.store, None, [{"run_id": "x"}])
