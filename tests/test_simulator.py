"""Samplers of known skill: what is drawn is what was asked for, and the votes win and lose as theory says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents.bench.simulate import BETTER, EQUAL, WORSE, as_run, compare_votes, simulation_grid, verdict
from cp_agents.bench.stored import outcomes
from cp_agents.cli.app import app
from cp_agents.errors import InputError
from cp_agents.evaluation.profile_sums import LevelMetrics, level_parts
from cp_agents.evaluation.simulator import (
    STATED,
    Sampler,
    Simulation,
    level_chances,
    simulate,
    simulated_taxonomy,
)
from cp_agents.evaluation.statistics import Difference
from cp_agents.taxonomy import load_taxonomy
from cp_agents.voting import METHODS

JUDGED = "true_recall"


def right(simulation: Simulation) -> np.ndarray:
    """Which samples are right [R, M]."""
    codes = simulation.taxonomy.attributes[0].codes
    truth = np.array([codes[simulation.gold[user]["letter"]] for user in simulation.users])
    return np.asarray(simulation.ballots.tags[0] == truth[:, None])


def gaps(sampler: Sampler, users: int = 1500, seed: int = 0, samples: int = 10) -> dict[str, Difference]:
    return compare_votes(simulate(sampler, users=users, samples=samples, seed=seed), draws=300)[1]


@settings(max_examples=25, deadline=None)
@given(
    skill=st.floats(0.1, 0.9),
    correlation=st.floats(0, 0.9),
    na_rate=st.floats(0, 0.5),
    tags=st.integers(2, 8),
    seed=st.integers(0, 1000),
)
def test_skill_correlation_and_na_are_what_was_asked_for(
    skill: float, correlation: float, na_rate: float, tags: int, seed: int
) -> None:
    sampler = Sampler(skill=skill, correlation=correlation)
    found = right(simulate(sampler, users=4000, samples=2, taxonomy=simulated_taxonomy(tags), seed=seed))
    assert found.mean() == pytest.approx(skill, abs=0.05)
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(correlation, abs=0.12)
    quiet = simulate(
        Sampler(na_rate=na_rate, failure_rate=0.1, na_confidence=2), users=2000, samples=5, seed=seed
    )
    codes, stated = quiet.ballots.tags[0], quiet.ballots.confidence[0]
    na = len(quiet.taxonomy.attributes[0].names) - 1
    assert (codes == -1).mean() == pytest.approx(0.1, abs=0.02)
    assert (codes[codes >= 0] == na).mean() == pytest.approx(na_rate, abs=0.03)
    assert set(stated[codes == na]) <= {2}
    assert set(stated[codes == -1]) == {0}
    assert stated[codes >= 0].min() >= 1
    assert stated.max() <= 5


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    one, same, other = (simulate(Sampler(), users=50, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.ballots.tags, same.ballots.tags)
    assert np.array_equal(one.ballots.confidence, same.ballots.confidence)
    assert one.gold == same.gold
    assert not np.array_equal(one.ballots.tags, other.ballots.tags)


def test_it_draws_the_first_attribute_of_any_taxonomy() -> None:
    taxonomy = load_taxonomy("profilebench")
    assert len(taxonomy.names) == 6  # the copy that is drawn from has one all the same
    drawn = simulate(Sampler(skill=0.9), users=300, taxonomy=taxonomy, prior={"Female": 3, "Male": 1})
    assert drawn.taxonomy.names == ("gender",)
    assert sum(truth["gender"] == "Female" for truth in drawn.gold.values()) / 300 == pytest.approx(
        0.75, abs=0.08
    )
    numbers, _ = compare_votes(drawn, draws=10)
    assert numbers["majority"][JUDGED] > 0.95


def test_skill_and_pull_by_class() -> None:
    sampler = Sampler(skill=0.8, skill_of={"A": 0.3}, pull={"B": 0.9})
    drawn = simulate(sampler, users=8000, samples=3, taxonomy=simulated_taxonomy(4))
    truth = np.array([drawn.gold[user]["letter"] for user in drawn.users])
    hits, tags = right(drawn), drawn.ballots.tags[0]
    assert hits[truth == "A"].mean() == pytest.approx(0.3, abs=0.03)
    assert hits[truth == "C"].mean() == pytest.approx(0.8, abs=0.03)
    wrong = (truth == "A")[:, None] & ~hits
    assert (tags[wrong] == 1).mean() == pytest.approx(0.9, abs=0.02)
    # those who are B cannot be pulled to it: their wrong answers are the others', alike
    stray = (truth == "B")[:, None] & ~hits
    assert np.bincount(tags[stray], minlength=4)[[0, 2, 3]] / stray.sum() == pytest.approx(
        [1 / 3] * 3, abs=0.05
    )


def test_stated_confidence_is_of_the_kind_that_was_asked_for() -> None:
    for kind in STATED:
        sampler = Sampler(stated=kind, sharpness=0.7)
        drawn = simulate(sampler, users=4000, samples=5)
        hits, stated = right(drawn), drawn.ballots.confidence[0]
        for side in (True, False):
            levels = stated[hits == side]
            shares = np.bincount(levels, minlength=6)[1:] / len(levels)
            assert shares == pytest.approx(level_chances(sampler, right=side), abs=0.03)
    sure = simulate(Sampler(stated="flat", overconfident=("B",)), users=100)
    is_b = sure.ballots.tags[0] == 1
    assert set(sure.ballots.confidence[0][is_b]) == {5}
    assert set(sure.ballots.confidence[0][~is_b]) == {3}


@pytest.mark.parametrize(("skill", "samples"), [(0.6, 5), (0.7, 9), (0.3, 7)])
def test_the_majority_of_independent_samples_is_the_binomial(skill: float, samples: int) -> None:
    two = simulated_taxonomy(2)
    drawn = simulate(Sampler(skill=skill, stated="flat"), users=6000, samples=samples, taxonomy=two)
    expected = sum(
        math.comb(samples, k) * skill**k * (1 - skill) ** (samples - k)
        for k in range(samples // 2 + 1, samples + 1)
    )
    numbers, _ = compare_votes(drawn, draws=10)
    assert numbers["majority"][JUDGED] == pytest.approx(expected, abs=0.03)


def test_samples_that_all_say_the_same_are_one_sample() -> None:
    drawn = simulate(Sampler(skill=0.55, correlation=1.0), users=2000)
    assert (drawn.ballots.tags[0] == drawn.ballots.tags[0][:, :1]).all()
    numbers, found = compare_votes(drawn, draws=10)
    assert numbers["weighted"][JUDGED] == right(drawn)[:, 0].mean()
    assert found[JUDGED].value == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_confidence_that_tells_makes_weighted_better(seed: int) -> None:
    for sampler in (Sampler(skill=0.4), Sampler(skill=0.55, correlation=0.3)):
        found = gaps(sampler, seed=seed)[JUDGED]
        assert found.low > 0
        assert found.p < 0.01
        assert verdict(found) == BETTER


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flat_confidence_makes_no_difference_at_all(seed: int) -> None:
    found = gaps(Sampler(stated="flat", skill=0.5), seed=seed)
    assert all(gap.value == 0 for gap in found.values())
    assert verdict(found[JUDGED]) == EQUAL


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overconfidence_on_one_class_and_inverted_confidence_hurt(seed: int) -> None:
    sure = Sampler(stated="flat", skill=0.5, overconfident=("A",), pull={"A": 0.6})
    for sampler in (sure, Sampler(stated="inverted", skill=0.5)):
        found = gaps(sampler, seed=seed)[JUDGED]
        assert found.high < 0
        assert found.p < 0.01
        assert verdict(found) == WORSE


def test_na_that_is_stated_with_little_confidence_makes_weighted_answer_more() -> None:
    low = gaps(Sampler(stated="flat", na_rate=0.4, na_confidence=1))["coverage"]
    same = gaps(Sampler(stated="flat", na_rate=0.4, na_confidence=3))["coverage"]
    assert low.low > 0
    assert same.value == 0


def test_the_real_votes_and_the_real_calibration_run_on_it() -> None:
    drawn = simulate(Sampler(skill=0.5, correlation=0.2, failure_rate=0.05), users=1500)
    run = as_run(drawn)
    for method in METHODS:
        votes = run.votes(method)
        levels = run.levels(votes)
        assert set(np.unique(levels)) <= {1, 2, 3, 4, 5}
        found = outcomes(run, drawn.gold, votes, levels)
        numbers = LevelMetrics(found)(level_parts(found).sum(axis=0, keepdims=True))
        # agreement alone tells right from wrong; the mean ignores it, and one sure sample has the highest level
        assert (numbers["letter.auroc"][0] > 0.6) == (method != "mean")
    weighted = run.votes("weighted")
    counts = np.bincount(run.levels(weighted)[0], minlength=6)[1:]
    assert counts.min() / counts.sum() > 0.15


@pytest.mark.parametrize(
    ("sampler", "more", "sentence"),
    [
        (Sampler(overconfident=("Z",)), {}, "overconfident: 'Z' is none of the tags"),
        (Sampler(pull={"NA": 0.5}), {}, "pull: 'NA' is none of the tags"),
        (Sampler(pull={"A": 0.7, "B": 0.7}), {}, "more than 1"),
        (Sampler(skill_of={"A": 1.5}), {}, "between 0 and 1"),
        (Sampler(), {"prior": {"A": 0.0}}, "at least one above 0"),
        (Sampler(), {"users": 0}, "at least one user"),
    ],
)
def test_samplers_that_cannot_be_are_refused(
    sampler: Sampler, more: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        simulate(sampler, **more)  # type: ignore[arg-type]


def test_the_grid_says_when_weighted_wins_and_when_it_hurts() -> None:
    grid = simulation_grid(
        Sampler(), skills=(0.5,), correlations=(0.0,), na_rates=(0.0,), users=1200, draws=200
    )
    verdicts = {row.label: row.cells[-1] for row in grid.rows}
    assert verdicts["informative"] == BETTER
    assert verdicts["flat"] == EQUAL
    assert verdicts["inverted"] == WORSE
    assert verdicts["sure of A"] == WORSE


def test_the_command_prints_the_grid_and_refuses_what_cannot_be(tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "grid.json"
    words = ["bench", "simulate", "--users", "300", "--draws", "50", "--skill", "0.5", "--na-rate", "0"]
    done = runner.invoke(app, [*words, "--overconfident", "B", "--json", str(out)])
    assert done.exit_code == 0
    assert "sure of B" in done.stdout
    rows = json.loads(out.read_text())["rows"]
    assert [row["label"] for row in rows] == [*STATED, "sure of B"]
    for bad in (["--skill", "1.5"], ["--overconfident", "Z"], ["--skill-of", "A"], ["--tags", "1"]):
        failed = runner.invoke(app, [*words, *bad])
        assert isinstance(failed.exception, InputError)
