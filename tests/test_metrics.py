"""Profiles against gold: hand-worked numbers, the paper's arithmetic, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents.errors import InputError
from cp_agents.evaluation.metrics import Evaluation, evaluate, harmonic_mean, load_gold, load_predictions
from cp_agents.taxonomy import Taxonomy

PETS = Taxonomy.model_validate(
    {
        "name": "pets",
        "attributes": [
            {
                "name": "pet",
                "tags": [{"name": "Cat"}, {"name": "Dog"}, {"name": "Fish", "aliases": ["goldfish"]}],
            },
            {"name": "size", "tags": [{"name": "Small"}, {"name": "Big"}]},
        ],
    }
)


def line(user: str, voted: str, confidence: int = 5, status: str = "accepted", **more: Any) -> dict[str, Any]:
    entry = {"tag": voted, "voted": voted, "confidence": confidence, "status": status, **more}
    return {"user_id": user, "profile": {"pet": entry}}


def pets(predictions: list[dict[str, Any]], gold: dict[str, str]) -> Evaluation:
    return evaluate(predictions, {user: {"pet": tag} for user, tag in gold.items()}, PETS)


# u1 right, u2 wrong, u3 right at confidence 2, u4 failed, u5 voted NA, u6 gold NA but answered
GOLD = {"u1": "Cat", "u2": "Cat", "u3": "Dog", "u4": "Dog", "u5": "Fish", "u6": "NA"}
LINES = [
    line("u1", "Cat", 5),
    line("u2", "Dog", 3),
    line("u3", "Dog", 2),
    line("u4", "Dog", 4, status="failed"),
    line("u5", "NA", 5, status="abstained"),
    line("u6", "Cat", 4),
]


def test_by_hand() -> None:
    result = pets(LINES, GOLD)
    pet = result.attributes["pet"]
    assert (pet.n_labelled, pet.n_gold_na, pet.missing) == (5, 1, 0)
    one, two, three, four, five = pet.at_tau
    assert [t.tau for t in pet.at_tau] == [1, 2, 3, 4, 5]
    assert (one.answered, one.correct) == (3, 2)
    assert one.selective_accuracy == pytest.approx(2 / 3)
    assert one.coverage == pytest.approx(3 / 5)
    assert one.true_recall == pytest.approx(2 / 5)
    # Cat: TP 1, FN 1 -> 2/3. Dog: TP 1, FP 1, FN 1 -> 1/2. Fish: never said -> 0.
    assert one.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert one.paper_f1 == pytest.approx(2 * (2 / 3) * (3 / 5) / (2 / 3 + 3 / 5))
    assert one.recall_tp_na == pytest.approx(2 / 4)  # two silent users
    assert one.paper_f1_tp_na == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert one.answered_where_gold_na == 1
    assert two == one.model_copy(update={"tau": 2})
    assert (three.answered, three.correct) == (2, 1)  # u3 is silent now
    assert (four.answered, four.correct, four.answered_where_gold_na) == (1, 1, 1)
    assert (five.selective_accuracy, five.coverage, five.answered_where_gold_na) == (1.0, 0.2, 0)
    constant = pet.best_constant
    assert constant is not None
    assert constant.tag == "Cat"  # as frequent as Dog; the first of the taxonomy
    assert constant.accuracy == pytest.approx(2 / 5)
    assert constant.macro_f1 == pytest.approx((2 * 2 / (2 + 5)) / 3)


def test_tau_of_the_run_does_not_matter() -> None:
    as_run_at_4 = [
        line("u1", "Cat", 5),
        line("u2", "Dog", 3, status="abstained", tag="NA"),
        line("u3", "Dog", 2, status="abstained", tag="NA"),
        *LINES[3:],
    ]
    assert pets(as_run_at_4, GOLD) == pets(LINES, GOLD)


def test_needs_review_counts_as_voted_and_reviewed_as_the_person_said() -> None:
    waiting = [line("u1", "Cat", 3, status="needs_review", tag="NA")]
    assert [t.correct for t in pets(waiting, {"u1": "Cat"}).attributes["pet"].at_tau] == [1, 1, 1, 0, 0]
    corrected = [line("u1", "Dog", 2, status="reviewed", tag="Cat")]
    assert [t.correct for t in pets(corrected, {"u1": "Cat"}).attributes["pet"].at_tau] == [1, 1, 1, 1, 1]
    withdrawn = [line("u1", "Cat", 5, status="reviewed", tag="NA")]
    assert pets(withdrawn, {"u1": "Cat"}).attributes["pet"].at_tau[0].answered == 0


def test_users_and_attributes_without_predictions_count_as_unanswered() -> None:
    gold = {"u1": {"pet": "Cat", "size": "Big"}, "u2": {"pet": "Cat"}, "u3": {"shoe": "44"}}
    result = evaluate([line("u1", "Cat"), line("u9", "Dog")], gold, PETS)
    assert (result.users, result.missing, result.not_in_gold) == (3, 2, 1)
    assert result.not_evaluated == ["shoe"]
    pet, size = result.attributes["pet"], result.attributes["size"]
    assert (pet.n_labelled, pet.missing, pet.at_tau[0].coverage) == (2, 1, 0.5)
    assert (size.n_labelled, size.missing, size.at_tau[0].coverage) == (1, 1, 0.0)


def test_undefined_ratios_are_none() -> None:
    nobody_labelled = pets(LINES, {"u1": "NA"}).attributes["pet"]
    assert nobody_labelled.best_constant is None
    first = nobody_labelled.at_tau[0]
    assert (
        first.coverage is first.true_recall is first.macro_f1 is first.paper_f1 is first.recall_tp_na is None
    )
    silent = pets([line("u1", "NA")], {"u1": "Cat"}).attributes["pet"].at_tau[0]
    assert silent.selective_accuracy is None
    assert (silent.coverage, silent.true_recall, silent.macro_f1, silent.paper_f1) == (0, 0, 0, 0)
    all_wrong = pets([line("u1", "Dog")], {"u1": "Cat"}).attributes["pet"].at_tau[0]
    assert all_wrong.recall_tp_na is None  # no answer right and none withheld
    assert (all_wrong.paper_f1, all_wrong.paper_f1_tp_na) == (0, 0)


def test_averages_both_ways() -> None:
    gold = {f"u{i}": {"pet": "Cat", "size": "Big"} for i in range(4)}
    lines = []
    for i in range(4):
        pet = {"tag": "Cat" if i < 2 else "Dog", "confidence": 5, "status": "accepted"}  # P .5, C 1
        size = {"tag": "Big" if i == 0 else "NA", "confidence": 5, "status": "accepted"}  # P 1, C .25
        lines.append({"user_id": f"u{i}", "profile": {"pet": pet, "size": size}})
    first = evaluate(lines, gold, PETS).average[0]
    assert first.selective_accuracy == pytest.approx(0.75)
    assert first.coverage == pytest.approx(0.625)
    assert first.true_recall == pytest.approx((0.5 + 0.25) / 2)
    assert first.paper_f1_mean == pytest.approx((2 / 3 + 0.4) / 2)
    assert first.paper_f1_of_means == pytest.approx(2 * 0.75 * 0.625 / 1.375)
    assert first.recall_tp_na == pytest.approx((1 + 0.25) / 2)
    assert first.paper_f1_tp_na_of_means == pytest.approx(2 * 0.75 * 0.625 / 1.375)
    assert first.paper_f1_tp_na_mean == pytest.approx((2 / 3 + 0.4) / 2)


def test_mean_f1_does_not_rise_when_an_attribute_falls_silent() -> None:
    gold = {"u1": {"pet": "Cat", "size": "Big"}}
    both = {"pet": {"tag": "Cat", "confidence": 5}, "size": {"tag": "Big", "confidence": 1}}
    average = evaluate([{"user_id": "u1", "profile": both}], gold, PETS).average
    assert average[0].paper_f1_mean == 1
    assert average[4].paper_f1_mean == 0.5


# Table 7 of the paper, tau 1: precision, recall, F1 of six attributes and of the average column
TABLE_7 = [
    (73.29, 99.87, 84.54),
    (92.96, 99.87, 96.29),
    (61.24, 86.25, 71.63),
    (57.68, 87.99, 69.68),
    (49.20, 72.28, 58.55),
    (54.59, 60.79, 57.52),
]


def test_the_paper_s_f1_is_the_harmonic_mean_and_its_average_is_the_mean_of_f1s() -> None:
    for precision, recall, f1 in TABLE_7:
        assert harmonic_mean(precision, recall) == pytest.approx(f1, abs=0.011)
    mean = [sum(column) / 6 for column in zip(*TABLE_7, strict=True)]
    assert mean == pytest.approx([64.83, 84.51, 73.03], abs=0.01)
    # and the other average, which another of its tables prints for the same model
    assert harmonic_mean(mean[0], mean[1]) == pytest.approx(73.37, abs=0.01)


def test_paper_f1_of_counts_that_give_the_age_column() -> None:
    # 7,510 labelled, 7,500 answered, 5,497 right: P .73293, C .99867
    right, wrong, silent = 5497, 2003, 10
    lines = [line(f"u{i}", "Cat" if i < right else "Dog") for i in range(right + wrong)]
    gold = {f"u{i}": "Cat" for i in range(right + wrong + silent)}
    first = pets(lines, gold).attributes["pet"].at_tau[0]
    assert first.paper_f1 == pytest.approx(0.8454, abs=1e-4)
    assert first.true_recall == pytest.approx(5497 / 7510)  # what an ordinary recall would have been
    assert first.recall_tp_na == pytest.approx(5497 / 5507)


tag = st.sampled_from(["Cat", "Dog", "Fish", "NA"])


@given(st.lists(st.tuples(tag, tag, st.integers(1, 5)), min_size=1, max_size=40))
def test_identities(rows: list[tuple[str, str, int]]) -> None:
    lines = [line(f"u{i}", said, confidence) for i, (_, said, confidence) in enumerate(rows)]
    pet = pets(lines, {f"u{i}": truth for i, (truth, _, _) in enumerate(rows)}).attributes["pet"]
    coverage = [t.coverage for t in pet.at_tau if t.coverage is not None]
    assert coverage == sorted(coverage, reverse=True)
    for t in pet.at_tau:
        kept = [(g, s if c >= t.tau else "NA") for g, s, c in rows if g != "NA"]
        assert t.correct == sum(g == s for g, s in kept)
        assert t.answered == sum(s != "NA" for _, s in kept)
        if t.selective_accuracy is not None and t.coverage is not None:
            assert t.true_recall == pytest.approx(t.selective_accuracy * t.coverage)
        f1s = []
        for name in sorted({g for g, _ in kept}):
            hits = sum(g == s == name for g, s in kept)
            f1s.append(2 * hits / (sum(g == name for g, _ in kept) + sum(s == name for _, s in kept)))
        assert t.macro_f1 == (pytest.approx(sum(f1s) / len(f1s)) if f1s else None)


@given(st.lists(tag, min_size=1, max_size=40))
def test_no_constant_beats_the_best_constant(truth: list[str]) -> None:
    gold = {f"u{i}": t for i, t in enumerate(truth)}
    best = pets([], gold).attributes["pet"].best_constant
    for name in ("Cat", "Dog", "Fish"):
        constant = pets([line(user, name) for user in gold], gold).attributes["pet"].at_tau[0].macro_f1
        assert (
            constant is None if best is None else constant is not None and constant <= best.macro_f1 + 1e-12
        )


def test_spellings_are_matched_and_other_tags_refused() -> None:
    assert pets([line("u1", "FISH")], {"u1": "goldfish"}).attributes["pet"].at_tau[0].correct == 1
    with pytest.raises(InputError, match="prediction for user 'u1': 'Horse' is not a tag of 'pet'"):
        pets([line("u1", "Horse")], {"u1": "Cat"})
    with pytest.raises(InputError, match="gold of user 'u1': 'Horse' is not a tag of 'pet'"):
        pets([line("u1", "Cat")], {"u1": "Horse"})
    with pytest.raises(InputError, match="two predictions for user 'u1'"):
        pets([line("u1", "Cat"), line("u1", "Dog")], {"u1": "Cat"})


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


def test_load_gold(tmp_path: Path) -> None:
    path = write(
        tmp_path / "g.jsonl",
        {"user_id": "a\u2028b", "truth": {"pet": "Cat", "size": None}, "inferable": {"pet": "NA"}},
        "",
        {"user_id": 7, "truth": {}, "inferable": {}},
    )
    assert load_gold(path) == {"a\u2028b": {"pet": "Cat"}, "7": {}}
    assert load_gold(path, "inferable")["a\u2028b"] == {"pet": "NA"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ([1], 'line 2: no "user_id"'),
        ({"truth": {}}, 'line 2: no "user_id"'),
        ({"user_id": "u1", "truth": {}}, "line 2: user 'u1' is on line 1 already"),
        (
            {"user_id": "u2", "labels": {}},
            r'line 2: no object "truth" with the true tags \(objects there: labels\)',
        ),
        ({"user_id": "u2", "truth": {"pet": 3}}, r'line 2: "truth\.pet" should be a tag, found 3'),
    ],
)
def test_bad_gold(row: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "g.jsonl", {"user_id": "u1", "truth": {}}, row)
    with pytest.raises(InputError, match=message) as caught:
        load_gold(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_id": "u1"}, 'line 1: no object "profile"'),
        ({"user_id": "u1", "profile": {"pet": "Cat"}}, r'"profile\.pet" should be an object with a "tag"'),
        (
            {"user_id": "u1", "profile": {"pet": {"tag": "Cat"}}},
            r"pet\.confidence\" should be 1\.\.5, found None",
        ),
        ({"user_id": "u1", "profile": {"pet": {"tag": "Cat", "confidence": 6}}}, r"1\.\.5, found 6"),
        ({"user_id": "u1", "profile": {"pet": {"tag": "Cat", "confidence": [1]}}}, r"1\.\.5, found \[1\]"),
        ({"user_id": "u1", "profile": {"pet": {"tag": "C", "confidence": 1, "voted": 2}}}, "voted"),
    ],
)
def test_bad_predictions(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_predictions(write(tmp_path / "p.jsonl", row))


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_predictions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no lines"):
        load_gold(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        load_gold(tmp_path / "b.jsonl")


def test_what_a_profile_writes_can_be_evaluated(tmp_path: Path) -> None:
    from cp_agents.schema import AttributeProfile, Profile, Status

    entry = AttributeProfile(
        tag="NA",
        confidence=2,
        score=20,
        vote_share=0.5,
        status=Status.ABSTAINED,
        voted="Dog",
        reasons=["below_tau"],
    )
    profile = Profile(user_id="u1", attributes={"pet": entry}, run_id="r")
    path = write(tmp_path / "p.jsonl", profile.to_json())
    at_tau = pets(load_predictions(path), {"u1": "Dog"}).attributes["pet"].at_tau
    assert [t.correct for t in at_tau] == [1, 1, 0, 0, 0]
