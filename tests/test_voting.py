"""Votes over samples: equations 3-5, the other methods, ties and absent answers."""

from __future__ import annotations

import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.dawid_skene import fit_dawid_skene
from cp_agents.errors import InputError
from cp_agents.voting import METHODS, Votes, vote, vote_attributes

A, B, C, NONE = 0, 1, 2, -1  # tag codes of a set of four, whose last (3) is NA
NA_CODE, N_TAGS = 3, 4


def row(
    tags: list[int], confidence: list[int], method: str = "weighted", **kwargs: object
) -> dict[str, object]:
    """The vote on one row as plain values."""
    votes = vote(np.array([tags]), np.array([confidence]), N_TAGS, method, **kwargs)  # type: ignore[arg-type]
    return {name: value[0].tolist() for name, value in votes._asdict().items()}


@st.composite
def ballots(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], int]:
    """Rows of tags and confidences, absent answers included, and the number of tags."""
    n_tags, samples = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    tag = st.integers(-1, n_tags - 1)
    tags = draw(st.lists(st.lists(tag, min_size=samples, max_size=samples), min_size=1, max_size=5))
    confidence = [[draw(st.integers(1, 5)) if t >= 0 else 0 for t in line] for line in tags]
    return tags, confidence, n_tags


def naive_weighted(tags: list[int], confidence: list[int], n_tags: int) -> tuple[int, int, int, int]:
    """Equations 3-5 with the tie rules, written as a loop: winner, S, runner-up, its S."""
    tally = {}
    for t in range(n_tags):
        mine = [c for tag, c in zip(tags, confidence, strict=True) if tag == t]
        if mine:
            tally[t] = (sum(mine), len(mine), max(mine), -t)
    order = sorted(tally, key=lambda t: tally[t], reverse=True)
    first, second = (*order, -1, -1)[:2]
    return first, tally[first][0] if first >= 0 else 0, second, tally[second][0] if second >= 0 else 0


def test_weighted_vote_by_hand() -> None:
    # A: 2+2+1 = 5, B: 5+4 = 9, NA: 1; nine of fifteen points, second has five
    got = row([A, B, A, NA_CODE, B, A], [2, 5, 2, 1, 4, 1])
    assert got["winner"] == B
    assert got["score"] == 9
    assert got["share"] == pytest.approx(2 / 6)
    assert (got["runner_up"], got["runner_up_score"]) == (A, 5)
    assert got["margin"] == pytest.approx((9 - 5) / 15)
    assert got["survivors"] == 6
    assert got["agreeing"] == [False, True, False, False, True, False]
    assert got["best_sample"] == 1


@pytest.mark.parametrize(
    ("method", "winner", "score"),
    [
        ("weighted", B, 7),  # A 2+2+2 = 6, B 5+2 = 7
        ("majority", A, 15),  # three votes of full confidence
        ("mean", B, 5 * 3.5),  # A: mean 2, B: mean 3.5, times five survivors
        ("softmax", B, 25 * (np.exp(5) + np.exp(2)) / (np.exp(5) + 4 * np.exp(2))),
    ],
)
def test_methods_differ_as_documented(method: str, winner: int, score: float) -> None:
    got = row([A, A, A, B, B, NONE], [2, 2, 2, 5, 2, 0], method)
    assert got["winner"] == winner
    assert got["score"] == pytest.approx(score)
    assert got["survivors"] == 5


def test_mean_ignores_how_many() -> None:
    tags, confidence = [A, A, A, A, A, A, A, A, A, B], [4] * 9 + [5]
    assert row(tags, confidence, "mean")["winner"] == B
    assert row(tags, confidence, "weighted")["winner"] == A


def test_softmax_temperature_goes_from_the_most_confident_to_the_majority() -> None:
    tags, confidence = [A, B, B, B], [5, 4, 4, 4]
    assert row(tags, confidence, "softmax", temperature=0.1)["winner"] == A
    hot = row(tags, confidence, "softmax", temperature=1e6)
    assert hot["winner"] == B
    assert hot["score"] == pytest.approx(15, abs=1e-3)
    assert row(tags, confidence, "softmax", temperature=1e-9)["score"] == 20  # no overflow, all weight on one


def test_na_takes_part_with_its_own_confidence() -> None:
    sure_of_nothing = row([NA_CODE, NA_CODE, A], [5, 4, 3])
    assert sure_of_nothing["winner"] == NA_CODE
    # two low-confidence NA answers do not outvote one that is sure, but do under majority
    assert row([NA_CODE, NA_CODE, A], [1, 1, 4])["winner"] == A
    assert row([NA_CODE, NA_CODE, A], [1, 1, 4], "majority")["winner"] == NA_CODE


@pytest.mark.parametrize(
    ("tags", "confidence", "winner", "runner_up"),
    [
        ([A, B, B], [4, 2, 2], B, A),  # S 4:4, B has more votes
        ([A, A, B, B], [3, 3, 5, 1], B, A),  # S 6:6, votes 2:2, B has the higher single confidence
        ([B, A], [3, 3], A, B),  # all equal: taxonomy order
        ([NA_CODE, C], [3, 3], C, NA_CODE),  # NA is last
        ([C, B, A], [3, 3, 3], A, B),  # the rules order the runner-up too
        ([A, B, B, C], [5, 2, 2, 4], A, B),  # B and C tie for second at S 4; B has more votes
    ],
)
def test_tie_rules(tags: list[int], confidence: list[int], winner: int, runner_up: int) -> None:
    for order in permutations(range(len(tags))):
        got = row([tags[i] for i in order], [confidence[i] for i in order])
        assert (got["winner"], got["runner_up"]) == (winner, runner_up)


def test_best_sample_is_the_lowest_of_the_most_confident_agreeing() -> None:
    got = row([B, A, A, A], [5, 3, 4, 4])
    assert got["winner"] == A
    assert got["best_sample"] == 2


@pytest.mark.parametrize("method", METHODS)
def test_nobody_survived(method: str) -> None:
    got = row([NONE, NONE], [0, 0], method)
    assert (got["winner"], got["runner_up"], got["best_sample"]) == (-1, -1, -1)
    assert (got["score"], got["share"], got["margin"], got["survivors"]) == (0, 0, 0, 0)
    assert got["agreeing"] == [False, False]


@pytest.mark.parametrize("method", METHODS)
def test_unanimous(method: str) -> None:
    got = row([C, C, NONE], [5, 5, 0], method)
    assert (got["winner"], got["runner_up"], got["runner_up_score"]) == (C, -1, 0)
    assert (got["share"], got["margin"], got["survivors"]) == (1, 1, 2)
    assert 0 < got["score"] <= 10  # type: ignore[operator]


@given(ballots())
def test_weighted_equals_a_naive_loop(ballot: tuple[list[list[int]], list[list[int]], int]) -> None:
    tags, confidence, n_tags = ballot
    votes = vote(np.array(tags), np.array(confidence), n_tags)
    for r, (t, c) in enumerate(zip(tags, confidence, strict=True)):
        got = (votes.winner[r], votes.score[r], votes.runner_up[r], votes.runner_up_score[r])
        assert got == naive_weighted(t, c, n_tags)


@given(ballots(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(
    ballot: tuple[list[list[int]], list[list[int]], int], method: str, random: object
) -> None:
    tags, confidence, n_tags = ballot
    order = list(range(len(tags[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = vote(np.array(tags), np.array(confidence), n_tags, method)  # type: ignore[arg-type]
    two = vote(np.array(tags)[:, order], np.array(confidence)[:, order], n_tags, method)  # type: ignore[arg-type]
    for name in ("winner", "score", "share", "runner_up", "runner_up_score", "margin", "survivors"):
        assert getattr(one, name) == pytest.approx(getattr(two, name)), name
    assert (one.winner == two.winner).all()
    assert (one.agreeing[:, order] == two.agreeing).all()


@given(ballots(), st.sampled_from(METHODS))
def test_ranges_and_absent_answers(ballot: tuple[list[list[int]], list[list[int]], int], method: str) -> None:
    tags, confidence, n_tags = np.array(ballot[0]), np.array(ballot[1]), ballot[2]
    votes = vote(tags, confidence, n_tags, method)  # type: ignore[arg-type]
    alive = votes.survivors > 0
    assert (votes.score >= 0).all()
    assert (votes.score <= 5 * votes.survivors + 1e-9).all()
    assert ((votes.share > 0) == alive).all()
    assert (votes.share <= 1).all()
    assert (votes.margin >= 0).all()
    assert (votes.margin <= 1 + 1e-12).all()
    assert (votes.runner_up_score <= votes.score).all()
    assert (votes.winner[alive] != votes.runner_up[alive]).all()
    best = np.take_along_axis(tags, np.maximum(votes.best_sample, 0)[:, None], axis=1)[:, 0]
    assert (best[alive] == votes.winner[alive]).all()
    assert (votes.best_sample[~alive] == -1).all()
    # a sample without an answer changes nothing, whatever stands in its confidence
    widened = np.pad(tags, ((0, 0), (0, 1)), constant_values=-1)
    more = vote(widened, np.pad(confidence, ((0, 0), (0, 1)), constant_values=4), n_tags, method)  # type: ignore[arg-type]
    assert (more.winner == votes.winner).all()
    assert more.score == pytest.approx(votes.score)
    assert (more.survivors == votes.survivors).all()


@given(ballots())
def test_weighted_scales_with_confidence(ballot: tuple[list[list[int]], list[list[int]], int]) -> None:
    tags, confidence, n_tags = np.array(ballot[0]), np.minimum(np.array(ballot[1]), 2), ballot[2]
    one, two = vote(tags, confidence, n_tags), vote(tags, 2 * confidence, n_tags)
    assert (one.winner == two.winner).all()
    assert (2 * one.score == two.score).all()
    assert one.margin == pytest.approx(two.margin)


@given(ballots())
def test_weighted_at_one_confidence_is_majority(ballot: tuple[list[list[int]], list[list[int]], int]) -> None:
    tags, n_tags = np.array(ballot[0]), ballot[2]
    level = np.where(tags >= 0, 5, 0)
    for one, two in zip(vote(tags, level, n_tags), vote(tags, level, n_tags, "majority"), strict=True):
        assert (one == two).all()


@given(ballots(), st.sampled_from(METHODS))
@settings(max_examples=50)
def test_attributes_at_once_equal_one_by_one(
    ballot: tuple[list[list[int]], list[list[int]], int], method: str
) -> None:
    first, confidence, n_tags = np.array(ballot[0]), np.array(ballot[1]), ballot[2]
    second = np.where(first >= 0, first // 2, -1)  # a narrower tag set
    widths = [n_tags, (n_tags + 1) // 2]
    both = vote_attributes(np.stack([first, second]), np.stack([confidence, confidence]), widths, method)  # type: ignore[arg-type]
    for k, tags in enumerate((first, second)):
        alone = vote(tags, confidence, widths[k], method)  # type: ignore[arg-type]
        for together, single in zip(both, alone, strict=True):
            assert together[k] == pytest.approx(single)


def test_bad_settings_and_bad_arrays() -> None:
    one = np.array([[0, 1]])
    with pytest.raises(InputError, match="unknown vote method 'borda'"):
        vote(one, one + 1, 2, "borda")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="temperature"):
        vote(one, one + 1, 2, "softmax", temperature=0)
    with pytest.raises(ValueError, match=r"outside 0\.\.0"):
        vote(one, one + 1, 1)
    with pytest.raises(ValueError, match="confidence outside"):
        vote(one, one, 2)
    with pytest.raises(ValueError, match="expected tags"):
        vote(one[:, :0], one[:, :0], 2)
    with pytest.raises(ValueError, match="closed set"):
        vote_attributes(np.array([[[0]], [[2]]]), np.array([[[1]], [[1]]]), [3, 2])
    with pytest.raises(ValueError, match="3 attributes"):
        vote_attributes(one[None], one[None] + 1, [2, 2, 2])


def test_no_rows() -> None:
    empty = vote(np.empty((0, 3), dtype=int), np.empty((0, 3), dtype=int), 2)
    assert all(len(array) == 0 for array in empty)


def simulate(
    skills: list[float], rows: int = 400, n_tags: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and one vote of each sampler: right with its skill, else any other tag."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_tags, rows)
    wrong = (truth[:, None] + rng.integers(1, n_tags, (rows, len(skills)))) % n_tags
    right = rng.random((rows, len(skills))) < skills
    return truth, np.where(right, truth[:, None], wrong)


def winners(votes: Votes) -> np.ndarray:
    return np.asarray(votes.winner)


@pytest.mark.parametrize("seed", range(3))
def test_dawid_skene_learns_skills_and_beats_majority(seed: int) -> None:
    skills = [0.9, 0.85, 0.3, 0.3, 0.3]
    truth, tags = simulate(skills, seed=seed)
    full = np.full_like(tags, 5)
    by_majority = (winners(vote(tags, full, 5, "majority")) == truth).mean()
    votes = vote(tags, full, 5, "dawid_skene", samplers=np.arange(5))
    by_skill = (winners(votes) == truth).mean()
    assert by_skill > by_majority + 0.05
    model = fit_dawid_skene(tags, 5, np.arange(5))
    assert model.iterations < 200
    learned = [np.average(np.diag(c), weights=model.prior) for c in model.confusion]
    assert learned == pytest.approx(skills, abs=0.1)
    # deterministic, down to the last bit
    again = vote(tags, full, 5, "dawid_skene", samplers=np.arange(5))
    assert all((x == y).all() for x, y in zip(votes, again, strict=True))


def test_dawid_skene_undoes_a_systematic_confusion_of_one_sampler() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 300)
    good = np.where(rng.random((300, 3)) < 0.8, truth[:, None], rng.integers(0, 3, (300, 3)))
    swapped = np.where(truth == 0, 1, np.where(truth == 1, 0, 2))[:, None]  # says B for A and A for B
    tags = np.hstack([good, swapped])
    model = fit_dawid_skene(tags, 3, np.array([0, 0, 0, 7]))
    assert model.confusion.shape == (2, 3, 3)
    assert model.confusion[1, 0, 1] > 0.9
    assert model.confusion[1, 1, 0] > 0.9
    assert (model.posterior.argmax(axis=1) == truth).mean() > 0.95


def test_dawid_skene_on_a_single_row_is_majority() -> None:
    for tags in ([A, B, B], [A, A, B, NA_CODE], [C, NONE, NONE], [A, B]):
        five = [5 if t >= 0 else 0 for t in tags]
        assert row(tags, five, "dawid_skene")["winner"] == row(tags, five, "majority")["winner"]


def test_dawid_skene_names_no_tag_that_no_sample_named() -> None:
    # A's votes are nearly always in rows where B is true, so a row with A alone points to B
    tags = np.array([[B, B, A]] * 50 + [[NONE, NONE, A]])
    votes = vote(tags, np.where(tags >= 0, 3, 0), N_TAGS, "dawid_skene", samplers=np.array([0, 0, 1]))
    assert fit_dawid_skene(tags, N_TAGS, np.array([0, 0, 1])).posterior[-1].argmax() == B
    assert votes.winner[-1] == A
    assert votes.score[-1] < 2.5


def test_one_record_is_well_under_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    n_tags = [3, 7, 14, 20, 5, 13]
    tags = np.stack([rng.integers(-1, n, (1, 10)) for n in n_tags])
    confidence = np.where(tags >= 0, 3, 0)
    best = min(_seconds(tags, confidence, n_tags) for _ in range(30))
    assert best < 0.001  # about 0.1 ms on an idle core


def _seconds(tags: np.ndarray, confidence: np.ndarray, n_tags: list[int]) -> float:
    start = time.perf_counter()
    vote_attributes(tags, confidence, n_tags)
    return time.perf_counter() - start


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_narrow_integers_vote_like_wide_ones(method: str, dtype: type) -> None:
    rng = np.random.default_rng(5)
    tags = rng.integers(-1, 20, (300, 10))  # 300 rows of 20 tags: more cells than the type can count
    confidence = np.where(tags >= 0, rng.integers(1, 6, tags.shape), 0)
    wide = vote(tags, confidence, 20, method)  # type: ignore[arg-type]
    narrow = vote(tags.astype(dtype), confidence.astype(dtype), 20, method)  # type: ignore[arg-type]
    assert all((x == y).all() for x, y in zip(wide, narrow, strict=True))
