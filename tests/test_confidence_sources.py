"""Confidence sources side by side: hand-worked values, and scikit-learn as the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.evaluation.confidence import compare_sources, source_metrics
from tests.support import PETS


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
