"""The difficulty filter and its fairness audit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents.cli.app import app
from cp_agents.errors import InputError, StoreError
from cp_agents.profiler import Profiler
from cp_agents.stores.traces import TraceStore
from cp_agents.trainers.difficulty import RULES, SHAPES, Rule, Shape, choose, difficulty, histogram, quotas
from cp_agents.trainers.fairness import at_most, audit
from cp_agents.trainers.user_filter import filter_users
from tests.support import PETS, RECORD, ScriptedBackend, answer

COUNTS = st.lists(st.integers(0, 60), min_size=5, max_size=5).filter(any)
SHAPE_NAMES = st.sampled_from(list(SHAPES))
BENT = st.sampled_from([name for name, target in SHAPES.items() if target])


# --- one level per user -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "mean", "median", "least"),
    [
        ([1, 2, 3, 4, 5, 5], 3, 4, 1),  # 20/6 = 3.33; the middle is 3.5, and half goes up
        ([2, 3], 3, 3, 2),
        ([4, 4, 4], 4, 4, 4),
        ([0, 5, 5], 4, 5, 1),  # one failed: (1 + 5 + 5) / 3 = 3.67
        ([0, 0], 1, 1, 1),
        ([5], 5, 5, 5),
    ],
)
def test_levels_of_users_worked_out_by_hand(levels: list[int], mean: int, median: int, least: int) -> None:
    assert [int(difficulty([levels], rule)[0]) for rule in ("mean", "median", "min")] == [mean, median, least]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([[1, 1], [1, 2], [2, 2], [2, 3], [3, 3]], [1, 2, 3, 4, 5]),  # means are near, ranks are not
        ([[2, 4], [3, 3], [1, 5]], [3, 3, 3]),  # equal means, one level: the middle
        ([[1, 1]] * 4 + [[5, 5]], [3, 3, 3, 3, 5]),  # midranks 0.4 and 0.9
        ([], []),
    ],
)
def test_quintiles_are_levels_of_equal_count(users: list[list[int]], expected: list[int]) -> None:
    assert difficulty(np.array(users).reshape(-1, 2), "quintile").tolist() == expected


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1),
    st.sampled_from([rule for rule in RULES if rule != "quintile"]),
)
def test_levels_lie_between_those_of_the_attributes(levels: list[list[int]], rule: Rule) -> None:
    found = difficulty(levels, rule)
    each = np.maximum(levels, 1)
    assert ((each.min(axis=1) <= found) & (found <= each.max(axis=1))).all()
    assert (difficulty([row[::-1] for row in levels], rule) == found).all(), "attributes have no order"


def test_an_unknown_rule_or_shape_is_one_sentence() -> None:
    with pytest.raises(InputError, match="unknown rule 'mode': expected one of mean, median, min, quintile"):
        difficulty([[1]], "mode")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="unknown shape 'w': expected one of original, uniform, v, lambda, m"
    ):
        quotas([1] * 5, "w")  # type: ignore[arg-type]


# --- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "shape", "keep", "expected"),
    [
        ([100, 100, 100, 100, 100], "m", None, [29, 100, 28, 100, 28]),  # 285 users: 100 are 35 %
        ([100, 100, 100, 100, 100], "uniform", None, [100] * 5),
        ([30, 90, 200, 90, 30], "lambda", None, [30, 60, 120, 60, 30]),
        ([10, 90, 200, 90, 30], "v", None, [10, 5, 3, 5, 10]),  # level 1 bounds: 33 users
        ([0, 20, 20, 20, 20], "uniform", None, [0, 20, 20, 20, 20]),  # an empty level leaves its part
        ([5, 50, 50, 50, 5], "m", 100, [5, 40, 11, 39, 5]),  # 90 left for 35:10:35 are 39.375, 11.25, 39.375
        ([7, 8, 9, 10, 11], "original", None, [7, 8, 9, 10, 11]),
        ([10, 20, 40, 20, 10], "original", 50, [5, 10, 20, 10, 5]),
        ([10, 20, 40, 20, 10], "m", 100, [10, 20, 40, 20, 10]),
    ],
)
def test_quotas_worked_out_by_hand(
    available: list[int], shape: Shape, keep: int | None, expected: list[int]
) -> None:
    assert quotas(available, shape, keep).tolist() == expected


def test_shapes_are_proportions_and_look_like_their_names() -> None:
    drawn = {name: target for name, target in SHAPES.items() if target}
    assert {sum(target) for target in drawn.values()} == {100}
    assert all(target == target[::-1] for target in drawn.values())
    signs = {name: np.sign(np.diff(target)).tolist() for name, target in drawn.items()}
    assert signs == {
        "uniform": [0, 0, 0, 0],
        "v": [-1, -1, 1, 1],
        "lambda": [1, 1, -1, -1],
        "m": [1, -1, 1, -1],
    }


@given(COUNTS, BENT)
def test_the_largest_subset_in_the_proportions(available: list[int], shape: Shape) -> None:
    found = quotas(available, shape)
    target = [w if n else 0 for w, n in zip(SHAPES[shape] or (), available, strict=True)]
    total, whole = int(found.sum()), sum(target)
    assert (found <= available).all()
    exact = np.array(target) * total / whole
    assert (np.abs(found - exact) < 1).all()
    assert any((total + 1) * w > n * whole for w, n in zip(target, available, strict=True)), "one more fits"


@given(COUNTS, SHAPE_NAMES, st.data())
def test_so_many_users_are_kept_as_were_asked_for(
    available: list[int], shape: Shape, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, sum(available)))
    found = quotas(available, shape, keep)
    assert found.sum() == keep
    assert (found <= available).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("keep", [0, -1, 6])
def test_more_users_than_there_are_is_one_sentence(keep: int) -> None:
    with pytest.raises(InputError, match="expected between 1 and 5 users to keep"):
        quotas([1] * 5, "m", keep)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=80), SHAPE_NAMES, st.integers(0, 5), st.randoms())
def test_who_is_kept_depends_on_the_seed_and_not_on_the_order(
    levels: list[int], shape: Shape, seed: int, random: object
) -> None:
    users = [f"u{i}" for i in range(len(levels))]
    kept = choose(users, levels, shape, seed=seed)
    assert histogram(np.array(levels)[kept]).tolist() == quotas(histogram(levels), shape).tolist()
    order = list(range(len(levels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = choose([users[i] for i in order], [levels[i] for i in order], shape, seed=seed)
    assert {users[i] for i in np.flatnonzero(kept)} == {users[order[i]] for i in np.flatnonzero(again)}


def test_another_seed_keeps_others_and_fewer_are_a_subset() -> None:
    users, levels = [f"u{i}" for i in range(500)], [1 + i % 5 for i in range(500)]
    first, second = (choose(users, levels, "m", seed=seed) for seed in (0, 1))
    assert first.sum() == second.sum()
    assert (first != second).any()
    fewer = choose(users, levels, "m", keep=50)
    assert fewer.sum() == 50
    assert not (fewer & ~choose(users, levels, "m", keep=100)).any()


# --- the audit --------------------------------------------------------------------------------------------


def test_the_audit_worked_out_by_hand() -> None:
    """Of 40 cats 10 are kept, of 50 dogs 40, of 5 fish none; 5 users have no tag. Overall 50 of 95."""
    tags: list[str | None] = ["Cat"] * 40 + ["Dog"] * 50 + ["Fish"] * 5 + [None] * 5
    kept = [True] * 10 + [False] * 30 + [True] * 40 + [False] * 10 + [False] * 5 + [True] * 5
    cat, fish, dog = audit({"pet": tags}, kept, "voted")
    assert (cat.tag, cat.users, cat.kept, cat.share) == ("Cat", 40, 10, 0.25)
    assert cat.overall == pytest.approx(50 / 95)
    assert cat.ratio == pytest.approx(0.475)
    assert cat.difference == pytest.approx(0.25 - 50 / 95)
    assert cat.flagged
    assert (fish.tag, fish.ratio, fish.flagged) == ("Fish", 0.0, False), "five users are too few to judge"
    assert (dog.tag, dog.share, dog.flagged) == ("Dog", 0.8, False)
    assert dog.ratio == pytest.approx(1.52)
    assert [g.tag for g in audit({"pet": tags}, kept, "voted", limit=0.4)] == ["Fish", "Cat", "Dog"]
    assert [g.tag for g in audit({"pet": tags}, kept, "voted", min_users=5) if g.flagged] == ["Fish", "Cat"]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.booleans()), min_size=1))
def test_groups_add_up(users: list[tuple[str | None, bool]]) -> None:
    groups = audit({"x": [tag for tag, _ in users]}, [kept for _, kept in users], "gold")
    assert sum(g.users for g in groups) == sum(tag is not None for tag, _ in users)
    assert sum(g.kept for g in groups) == sum(kept for tag, kept in users if tag is not None)
    whole = sum(g.ratio * g.users for g in groups)
    if any(g.overall for g in groups):
        assert whole == pytest.approx(sum(g.users for g in groups)), "the mean ratio is 1"


@pytest.mark.parametrize(
    ("case", "probability"),
    [
        ((0, 2, 2, 4), 1 / 6),
        ((1, 2, 2, 4), 5 / 6),
        ((2, 2, 2, 4), 1.0),
        ((2, 3, 3, 4), 0.75),
        ((0, 1, 0, 9), 1.0),
    ],
)
def test_the_part_of_chance_worked_out_by_hand(case: tuple[int, int, int, int], probability: float) -> None:
    """2 of 4 are drawn, 2 of the 4 are the group: none of them 1 time in 6, one of them 4 times in 6.

    Of 3 drawn of 4, three are of the group of 3 one time in 4, and else two.
    """
    assert at_most(*case) == pytest.approx(probability)


def test_a_filter_that_keeps_all_treats_all_alike() -> None:
    assert {g.ratio for g in audit({"x": ["a", "b", "b"]}, [True] * 3, "voted")} == {1.0}
    assert {g.flagged for g in audit({"x": ["a"] * 30}, [False] * 30, "voted")} == {False}


# --- from a store to files --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    """60 users, of whom 20 have a cat; the teacher is sure of the dogs and torn over the cats."""
    store = TraceStore(tmp_path / "traces.db")
    for pet, confidences, users in (("Cat", (2, 2), range(20)), ("Dog", (4, 5), range(20, 60))):
        for i in users:
            said = [answer(pet=pet, confidence=confidences[i % 2], evidence="")] * 3
            profiler = Profiler(
                ScriptedBackend(lambda index, said=said: said[index]), store, taxonomy=PETS, samples=3, run="r",
                evidence_cap=None,
            )  # fmt: skip
            profiler.profile({**RECORD, "user_id": f"u{i:02}", "posted": [f"my pet has {i} toys"]})
    return store


def test_a_run_is_filtered_and_audited(store: TraceStore, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "kept.jsonl"
    result = filter_users(store, "r", out, shape="uniform", seed=3)
    assert (result.before, result.after) == ([0, 20, 0, 20, 20], [0, 20, 0, 20, 20])
    result = filter_users(store, "r", out, shape="lambda", keep=30, seed=3)
    assert result.after == [0, 12, 0, 12, 6]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["user_id"] for row in rows] == sorted(row["user_id"] for row in rows)
    assert sum(row["difficulty"] == 2 for row in rows) == 12
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "kept.fairness.json").read_text(encoding="utf-8"))
    assert report["proportions"] == list(SHAPES["lambda"] or ())
    assert set(report["shapes"]) == set(SHAPES)
    cat = next(g for g in report["groups"] if g["tag"] == "Cat")
    assert (cat["users"], cat["kept"], cat["ratio"]) == (20, 12, pytest.approx(1.2))
    before = out.read_bytes()
    filter_users(store, "r", out, shape="lambda", keep=30, seed=3)
    assert out.read_bytes() == before
    assert "u0" not in (tmp_path / "kept.fairness.json").read_text(encoding="utf-8"), "it names no user"


def test_gold_tags_are_groups_too(store: TraceStore, tmp_path: Path) -> None:
    gold = {f"u{i:02}": {"pet": "dog" if i < 30 else "Fish"} for i in range(50)}
    result = filter_users(store, "r", tmp_path / "k.jsonl", shape="v", gold=gold, plot=False, min_users=20)
    of_gold = {g.tag: g for g in result.groups if g.source == "gold"}
    assert (of_gold["Dog"].users, of_gold["Fish"].users) == (30, 20)
    kept = {json.loads(line)["user_id"] for line in (tmp_path / "k.jsonl").read_text().splitlines()}
    assert of_gold["Dog"].kept == sum(f"u{i:02}" in kept for i in range(30))
    with pytest.raises(InputError, match="'Horse' is no tag of pet"):
        filter_users(store, "r", tmp_path / "k.jsonl", gold={"u01": {"pet": "Horse"}}, plot=False)
    with pytest.raises(InputError, match="none of the 1 gold users is in run r"):
        filter_users(store, "r", tmp_path / "k.jsonl", gold={"x": {"pet": "Dog"}}, plot=False)


def test_bad_input_is_one_sentence_and_nothing_is_written(store: TraceStore, tmp_path: Path) -> None:
    out = tmp_path / "k.jsonl"
    with pytest.raises(StoreError, match="no run 'x'"):
        filter_users(store, "x", out, plot=False)
    with pytest.raises(InputError, match="expected between 1 and 60 users to keep, found 61"):
        filter_users(store, "r", out, keep=61, plot=False)
    with pytest.raises(InputError, match="the seed should be 0 or more"):
        filter_users(store, "r", out, seed=-1, plot=False)
    with pytest.raises(InputError, match="the plot and the users at once"):
        filter_users(store, "r", out.with_suffix(".png"))
    with pytest.raises(InputError, match="disparity should be between 0 and 1"):
        filter_users(store, "r", out, limit=2, plot=False)
    with pytest.raises(InputError, match="keeps its data in"):
        filter_users(store, "r", tmp_path / "traces.db", plot=False)
    Profiler("lexicon", store, taxonomy=PETS, run="empty")
    with pytest.raises(StoreError, match="run empty holds no votes to filter by"):
        filter_users(store, "empty", out, plot=False)
    with TraceStore(tmp_path / "none.db") as none, pytest.raises(StoreError, match="holds no run"):
        filter_users(none, None, out, plot=False)
    assert not list(tmp_path.glob("k.*"))


def test_the_command_warns_of_groups_that_are_dropped(store: TraceStore, tmp_path: Path) -> None:
    store.close()
    words = [
        "train",
        "filter",
        "--store",
        str(tmp_path / "traces.db"),
        "--out",
        str(tmp_path / "k.jsonl"),
        "--no-plot",
    ]
    result = CliRunner().invoke(app, [*words, "--shape", "v", "--keep", "20"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "20 of 60 users of run r written" in result.output
    assert "warning: groups kept less than 0.8 times as often as all: pet Cat (voted, 0.75)" in result.stderr
    kept_all = CliRunner().invoke(app, [*words, "--shape", "original"], catch_exceptions=False)
    assert "warning" not in kept_all.stderr
