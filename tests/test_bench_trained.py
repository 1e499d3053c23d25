"""Baselines that learn from labels: what they may see, and labels of odd shapes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.bench.trained import (
    TRAINED,
    TrainedModel,
    answer,
    cross_validation,
    features,
    held_out,
    trained_profiles,
)
from cp_agents.cues import assemble_cues
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.schema import NA, UserRecord
from cp_agents.taxonomy import load_taxonomy
from tests.support import PETS

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

EVERY = pytest.mark.parametrize("model", TRAINED)


def block(*items: str, **reported: str) -> str:
    sources = {"posted": list(items), "self_reported": reported}
    return f"{assemble_cues(UserRecord.from_dict({'user_id': 'u', **sources})).text}"


def share_right(found: object, gold: Gold, attribute: str) -> float:
    assert isinstance(found, dict)
    right = [found[user].get(attribute, {}).get("tag") == truth[attribute] for user, truth in gold.items()]
    return sum(right) / len(right)


def test_features_of_a_block() -> None:
    record = {
        "user_id": "u",
        "diary": [["Sleeping", 750], ["Sewing, at home", 30]],
        "posted": [
            "我喜欢猫",
            {"text": "tea", "count": 3},
            "one two three four five six seven eight nine ten eleven twelve thirteen",
        ],
        "self_reported": {"gender": "Female"},
    }
    found = features(assemble_cues(UserRecord.from_dict(record)).text)
    assert found["=gender: female"] == 1
    assert found["diary:sleeping"] == 750
    assert found["diary:sewing, at home"] == 30
    assert found["tea"] == found["posted:tea"] == 3
    assert found["喜"] == found["喜 欢"] == 1
    assert found["one two"] == 1
    assert not any(name.startswith("posted:one") for name in found)


@EVERY
def test_a_clear_sign_is_learned_and_nobody_s_own_label_is_seen(model: TrainedModel) -> None:
    rng = random.Random(0)
    gold: Gold = {}
    blocks = {}
    for i in range(160):
        pet, home = rng.choice(["Cat", "Dog"]), rng.choice(["Flat", "House"])
        gold[f"u{i}"] = {"pet": pet, "home": home}
        sign = {"Cat": "purring on the sofa", "Dog": "barking at the postman"}[pet]
        blocks[f"u{i}"] = block(sign, f"unique{i}")
    found = trained_profiles(blocks, gold, PETS, model, cross_validation(list(blocks), 5))
    assert share_right(found, gold, "pet") > 0.95
    assert 0.3 < share_right(found, gold, "home") < 0.7  # nothing tells it


@EVERY
def test_labels_of_those_who_are_asked_do_not_matter(model: TrainedModel) -> None:
    rng = random.Random(1)
    blocks = {f"u{i}": block(rng.choice(["cat", "dog"]) + " food", "walk") for i in range(40)}
    gold = {user: {"pet": "Cat" if "cat" in text else "Dog"} for user, text in blocks.items()}
    test = [f"u{i}" for i in range(10)]
    other = {user: {"pet": "Fish"} if user in test else truth for user, truth in gold.items()}
    rounds = held_out(list(blocks), test)
    found = trained_profiles(blocks, gold, PETS, model, rounds)
    assert found == trained_profiles(blocks, other, PETS, model, rounds)
    assert [user for user, profile in found.items() if profile] == test


@EVERY
def test_gold_of_na_and_silence_teach_nothing(model: TrainedModel) -> None:
    blocks = {f"u{i}": block("tea", "walk") for i in range(20)}
    gold = {user: {"pet": NA, "home": "Flat"} if i % 2 else {"pet": NA} for i, user in enumerate(blocks)}
    found = trained_profiles(blocks, gold, PETS, model, cross_validation(list(blocks), 4))
    for profile in found.values():
        assert "pet" not in profile
        assert profile["home"]["tag"] == "Flat"


@EVERY
def test_a_class_of_one_user_and_more_folds_than_labels(model: TrainedModel) -> None:
    blocks = {f"u{i}": block("meow" if i % 2 else "woof", f"day {i}") for i in range(12)}
    gold: Gold = {"u0": {"pet": "Dog"}, "u1": {"pet": "Cat"}, "u2": {"pet": "Dog"}, "u3": {"pet": "Fish"}}
    found = trained_profiles(blocks, gold, PETS, model, cross_validation(list(blocks), 12))
    assert {profile["pet"]["tag"] for profile in found.values()} <= {"Cat", "Dog", "Fish"}
    assert len(found) == 12


@EVERY
def test_users_without_a_word_get_the_frequent_class(model: TrainedModel) -> None:
    blocks = {f"u{i}": "" for i in range(10)}
    gold = {user: {"pet": "Cat" if i < 7 else "Dog"} for i, user in enumerate(blocks)}
    found = trained_profiles(blocks, gold, PETS, model, cross_validation(list(blocks), 2))
    assert {profile["pet"]["tag"] for profile in found.values()} == {"Cat"}


@EVERY
def test_the_same_each_time(model: TrainedModel) -> None:
    rng = random.Random(2)
    taxonomy = load_taxonomy("profilebench")
    names = taxonomy["occupation"].names[:-1]
    blocks = {f"u{i}": block(*(rng.choice("abcdefgh") * 2 for _ in range(5))) for i in range(60)}
    gold = {user: {"occupation": rng.choice(names)} for user in blocks}
    once, twice = (
        trained_profiles(blocks, gold, taxonomy, model, cross_validation(list(blocks), 3)) for _ in range(2)
    )
    assert once == twice


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_any_labels_give_answers_of_the_closed_set(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    words = st.lists(st.sampled_from(["tea", "cat", "dog", "猫", "(x3)", "[x]"]), max_size=4)
    blocks = {f"u{i}": block(*data.draw(words)) for i in range(n)}
    tags = st.fixed_dictionaries(
        {}, optional={"pet": st.sampled_from(PETS["pet"].names), "home": st.sampled_from(PETS["home"].names)}
    )
    gold = {user: data.draw(tags) for user in blocks}
    model = data.draw(st.sampled_from(TRAINED))
    found = trained_profiles(
        blocks, gold, PETS, model, cross_validation(list(blocks), data.draw(st.integers(2, 6)))
    )
    assert list(found) == list(blocks)
    for profile in found.values():
        for name, value in profile.items():
            assert value["tag"] in PETS[name].names[:-1]
            assert value["confidence"] in (1, 2, 3, 4, 5)


def test_folds_part_the_users() -> None:
    users = [f"u{i}" for i in range(50)]
    rounds = cross_validation(users, 5)
    assert np.sum([round_.test for round_ in rounds], axis=0).tolist() == [1] * 50
    assert all(not (round_.train & round_.test).any() for round_ in rounds)
    assert len(cross_validation(["a"], 5)) == 1
    with pytest.raises(InputError, match="2 folds"):
        cross_validation(users, 1)


@pytest.mark.parametrize(
    ("chance", "level"), [(0.0, 1), (0.2, 1), (0.21, 2), (0.6, 3), (0.8, 4), (0.81, 5), (1.0, 5)]
)
def test_confidence_is_the_fifth_that_the_probability_lies_in(chance: float, level: int) -> None:
    assert answer("Cat", chance) == {"tag": "Cat", "confidence": level}
