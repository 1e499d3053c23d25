"""Outcomes, bootstrap intervals and the paired test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.bench.splits import SHARES, fold_of, split_counts, split_of
from cp_agents.evaluation.metrics import macro_f1_score
from cp_agents.evaluation.outcomes import Outcomes, read_outcomes
from cp_agents.evaluation.statistics import differences, intervals
from cp_agents.taxonomy import load_taxonomy

TAXONOMY = load_taxonomy("profilebench")
GENDER = TAXONOMY["gender"]


def outcomes(
    truth: np.ndarray, voted: np.ndarray, users: tuple[str, ...] | None = None
) -> dict[str, Outcomes]:
    n = len(truth)
    users = users or tuple(f"u{i}" for i in range(n))
    found = Outcomes(GENDER, users, truth, voted, np.full(n, 5.0), np.ones(n, bool))
    return {"gender": found}


def accuracy(found: dict[str, Outcomes]) -> dict[str, float | None]:
    one = found["gender"]
    said = one.at(1)
    answered = (said != one.na) & one.labelled
    right = (said == one.truth) & one.labelled
    return {
        "accuracy": right.sum() / answered.sum() if answered.any() else None,
        "macro_f1": macro_f1_score(one.truth[one.labelled], said[one.labelled], one.na),
    }


def share_right(found: dict[str, Outcomes]) -> dict[str, float | None]:
    """Of `accuracy` the half that costs little, for many trials."""
    one = found["gender"]
    return {"accuracy": float((one.voted == one.truth).mean())}


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(150):
        truth = rng.integers(0, 2, 200)
        voted = np.where(rng.random(200) < 0.7, truth, 1 - truth)
        found = intervals(share_right, outcomes(truth, voted), draws=200, seed=trial)["accuracy"]
        hits += found.low <= 0.7 <= found.high
    assert hits / 150 > 0.88


def test_equal_methods_differ_by_nothing_and_the_test_keeps_its_level() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 150)
    small = 0
    for trial in range(100):
        a, b = (np.where(rng.random(150) < 0.7, truth, 1 - truth) for _ in range(2))
        small += (
            differences(share_right, outcomes(truth, a), outcomes(truth, b), draws=100, seed=trial)[
                "accuracy"
            ].p
            <= 0.05
        )
    assert small <= 12
    same = differences(accuracy, outcomes(truth, truth), outcomes(truth, truth), draws=50)["accuracy"]
    assert same == (0.0, 0.0, 0.0, 1.0)


def test_a_better_method_is_found() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 400)
    good = np.where(rng.random(400) < 0.85, truth, 1 - truth)
    poor = np.where(rng.random(400) < 0.65, truth, 1 - truth)
    found = differences(accuracy, outcomes(truth, good), outcomes(truth, poor), draws=400)
    for difference in found.values():
        assert 0.1 < difference.low < difference.value < difference.high < 0.3
        assert difference.p < 0.01


def test_methods_on_other_users_cannot_be_paired() -> None:
    truth = np.array([0, 1])
    with pytest.raises(ValueError, match="same users"):
        differences(accuracy, outcomes(truth, truth), outcomes(truth, truth, ("a", "b")))


def test_undefined_numbers_stay_undefined() -> None:
    silent = outcomes(np.array([0, 1, 0]), np.array([2, 2, 2]))
    found = intervals(accuracy, silent, draws=20)["accuracy"]
    assert all(np.isnan(found))


@given(st.lists(st.tuples(st.sampled_from(GENDER.names), st.sampled_from(GENDER.names), st.integers(1, 5))))
@settings(max_examples=50)
def test_outcomes_say_what_the_profiles_say(rows: list[tuple[str, str, int]]) -> None:
    gold = {f"u{i}": {"gender": truth} for i, (truth, _, _) in enumerate(rows)}
    profiles = {
        f"u{i}": {"gender": {"tag": "NA", "voted": voted, "confidence": c, "status": "abstained"}}
        for i, (_, voted, c) in enumerate(rows)
    }
    found = read_outcomes(profiles, gold, TAXONOMY)
    if not rows:
        assert found == {}
        return
    one = found["gender"]
    for tau in range(1, 6):
        said = [GENDER.names[code] for code in one.at(tau)]
        assert said == [voted if c >= tau else "NA" for _, voted, c in rows]
    assert one.labelled.tolist() == [truth != "NA" for truth, _, _ in rows]
    assert one.take(one.labelled).users == tuple(u for u in gold if gold[u]["gender"] != "NA")


def test_splits_hang_on_the_user_alone() -> None:
    users = [f"user {i}" for i in range(4000)]
    counts = split_counts(users)
    assert all(abs(counts[s] / 4000 - share) < 0.03 for s, share in SHARES.items())
    assert split_of("user 17") == split_of("user 17")
    folds = np.bincount([fold_of(user, 5) for user in users])
    assert len(folds) == 5
    assert folds.min() > 700
