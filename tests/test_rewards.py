"""The reward of GRPO: values worked out by hand from equations 6-8, and what has to hold for every group."""

from __future__ import annotations

import time

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reward_speed import completions, measure
from cp_agents.errors import InputError
from cp_agents.parsing import parse_answer
from cp_agents.schema import Outcome
from cp_agents.taxonomy import load_taxonomy
from cp_agents.trainers import verl
from cp_agents.trainers.confidence_reward import ConfidenceReward
from cp_agents.trainers.gather import group_rows
from cp_agents.trainers.rewards import RewardSettings, rank_confidence, read_rollouts, weigh
from tests.support import PETS


def say(pet: str, pet_confidence: int, home: str = "", home_confidence: int = 0) -> str:
    text = f"<pet><tag>{pet}</tag><score>{pet_confidence}</score><evidence>x</evidence></pet>"
    if home:
        text += f"\n<home><tag>{home}</tag><score>{home_confidence}</score><evidence>y</evidence></home>"
    return text


GROUP = [say("Cat", 5, "Flat", 2), say("Dog", 3, "Flat", 2), say("Dog", 3, "House", 5), say("Bird", 4)]
"""pet: Cat 5, Dog 3 + 3 = 6, so Dog. home: Flat 2 + 2 = 4, House 5, so House. The last names a bird and no home."""
C_REF = {"pet": 5, "home": 2}  # weights 1 and 0.4


def rewards(texts: list[str] = GROUP, *, reviewed: object = None, **settings: object) -> list[float]:
    reward = ConfidenceReward(PETS, RewardSettings.model_validate(settings))
    count = len(texts)
    return reward(
        None,
        texts,
        record_id=["u"] * count,
        c_ref=[C_REF] * count,
        reviewed=None if reviewed is None else [reviewed] * count,
    )


# --- by hand ---------------------------------------------------------------------------------------------------


def test_equations_6_to_8() -> None:
    assert rewards() == pytest.approx([-1 - 0.4, 1 - 0.4, 1 + 0.4, -1 - 1])


def test_weight_is_linear_in_the_reference_confidence() -> None:
    assert weigh(np.array([1, 2, 3, 4, 5])) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_majority_target_takes_no_notice_of_confidence() -> None:
    assert rewards(target="none") == pytest.approx([-1 + 0.4, 1 + 0.4, 1 - 0.4, -2])


def test_clipped_target() -> None:
    # home: Flat 2 + 2, House min(5, 4) = 4: a tie, which the greater number of votes breaks.
    assert rewards(target="clipped") == pytest.approx([-1 + 0.4, 1 + 0.4, 1 - 0.4, -2])


def test_ranked_target() -> None:
    # pet: 5, 3, 3 become the levels 5, 2, 2, so that Cat (5) beats Dog (4); home: 2, 2, 5 become 2, 2, 5.
    assert rewards(target="rank") == pytest.approx([1 - 0.4, -1 - 0.4, -1 + 0.4, -2])


def test_self_confidence_weight() -> None:
    assert rewards(weight="self") == pytest.approx([-1 - 0.4, 0.6 - 0.4, 0.6 + 1, -2])


def test_no_weight() -> None:
    assert rewards(weight="none") == pytest.approx([-2, 0, 2, -2])


def test_a_reviewed_label_is_the_target_with_its_own_weight() -> None:
    found = rewards(reviewed={"pet": "Fish"}, label_weight=0.5)
    assert found == pytest.approx([-0.5 - 0.4, -0.5 - 0.4, -0.5 + 0.4, -2])


def test_per_attribute_rewards_are_standardised_before_the_weight() -> None:
    pet, home = np.array([-1, 1, 1, -1.0]), np.array([-0.4, -0.4, 0.4, -1.0])

    def standard(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / (x.std(ddof=1) + 1e-4)

    assert rewards(per_attribute=True) == pytest.approx(list(standard(pet) + 0.4 * standard(home)))


def test_na_takes_part_as_a_tag() -> None:
    texts = [say("NA", 4, "Flat", 1), say("NA", 4, "Flat", 1), say("Dog", 5, "Flat", 1)]
    assert rewards(texts) == pytest.approx([1 + 0.4, 1 + 0.4, -1 + 0.4])


def test_nobody_answers() -> None:
    assert rewards(["no idea", ""]) == [-2.0, -2.0]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"highest": 0.99}, False),  # all agree: the share is 1
        ({"highest": 1.0}, True),
        ({"lowest": 0.5}, True),
    ],
)
def test_group_filter_of_an_agreed_group(settings: dict[str, float], kept: bool) -> None:
    texts = [say("Cat", 3, "Flat", 3)] * 3
    found = rewards(texts, **settings)
    assert found == (pytest.approx([1.4] * 3) if kept else [0.0] * 3)


def test_group_filter_by_a_share_of_what_could_be_had() -> None:
    # The mean of GROUP is (-1.4 + 0.6 + 1.4 - 2) / 4 = -0.35 of 1.4: a share of -0.25.
    assert rewards(lowest=-0.26) == rewards()
    assert rewards(lowest=-0.24) == [0.0] * 4


def test_metrics_by_hand() -> None:
    reward = ConfidenceReward(PETS, RewardSettings(lowest=-2.0))
    logged: dict[str, float] = {}
    reward(
        None,
        GROUP,
        record_id=[1] * 4,
        c_ref=[[5, 2]] * 4,
        gold=[["Dog", "Flat"]] * 4,
        log_metric=logged.__setitem__,
    )
    thirds = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3))
    expected = {
        "parse_rate": 3 / 4,
        "answered": 6 / 8,
        "na_rate": 0.0,
        "majority_ratio": (2 / 3 + 1 / 3) / 2,
        "tag_entropy": thirds,
        "confidence_mean": 20 / 6,
        "confidence/1": 0.0,
        "confidence/2": 2 / 6,
        "confidence/3": 2 / 6,
        "confidence/4": 0.0,
        "confidence/5": 2 / 6,
        "reward_sum": -0.35,
        "reward/pet": 0.0,
        "reward/home": (-0.4 - 0.4 + 0.4 - 1) / 4,
        "groups_kept": 1.0,
        "label_accuracy": 0.5,
        "reward_accuracy": 3 / 6,  # pet is judged as gold would, home the other way round
    }
    assert logged == pytest.approx(expected)
    assert reward.metrics == logged


def test_a_completion_cut_by_length_loses_its_last_attribute() -> None:
    cut = say("Cat", 5) + "\n<home><tag>Flat</tag><score>4</score><evidence>the fl"
    texts, ids = [cut, say("Cat", 5, "Flat", 4)], [[5, 6], [5, 2]]
    columns = {"record_id": [1, 1], "c_ref": [[5, 5]] * 2, "completion_ids": ids}
    told = ConfidenceReward(PETS, end_tokens={2})(None, texts, **columns)
    assert told == [0.0, 2.0]
    assert ConfidenceReward(PETS)(None, texts, **columns) == [2.0, 2.0]


def test_conversations_are_read_by_their_last_message() -> None:
    chats = [[{"role": "assistant", "content": text}] for text in GROUP]
    assert ConfidenceReward(PETS)(None, chats, record_id=[1] * 4, c_ref=[C_REF] * 4) == rewards()
    nothing = [[{"role": "assistant"}], []]
    assert ConfidenceReward(PETS)(None, nothing, record_id=[1, 1], c_ref=[C_REF] * 2) == [-2.0, -2.0]


# --- for every group -----------------------------------------------------------------------------------------------

ANSWERS = st.one_of(
    st.builds(
        say,
        st.sampled_from(["Cat", "Dog", "Fish", "NA", "Bird"]),
        st.integers(0, 6),
        st.sampled_from(["Flat", "House", "NA", ""]),
        st.integers(1, 5),
    ),
    st.sampled_from(["", "none of your business", "<pet><tag>Cat</tag><score>4"]),
)
GROUPS = st.lists(ANSWERS, min_size=2, max_size=7)
MANY_GROUPS = st.integers(2, 4).flatmap(
    lambda size: st.lists(st.lists(ANSWERS, min_size=size, max_size=size), min_size=1, max_size=4)
)
SETTINGS = st.fixed_dictionaries(
    {
        "target": st.sampled_from(["online", "clipped", "rank", "none"]),
        "weight": st.sampled_from(["reference", "self", "none"]),
        "per_attribute": st.booleans(),
        "lowest": st.sampled_from([None, 0.0]),
    }
)


@given(GROUPS, SETTINGS, st.randoms(use_true_random=False))
def test_permuting_rollouts_permutes_rewards(texts, settings, random) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    before = rewards(texts, **settings)
    assert rewards([texts[i] for i in order], **settings) == pytest.approx([before[i] for i in order])


@given(MANY_GROUPS, SETTINGS, st.randoms(use_true_random=False))
def test_groups_do_not_touch_each_other(groups, settings, random) -> None:
    rows = [(key, text) for key, texts in enumerate(groups) for text in texts]
    random.shuffle(rows)
    reward = ConfidenceReward(PETS, RewardSettings.model_validate(settings))
    found = reward(
        None, [text for _, text in rows], record_id=[k for k, _ in rows], c_ref=[C_REF] * len(rows)
    )
    for key in range(len(groups)):
        mine = [i for i, (k, _) in enumerate(rows) if k == key]
        assert [found[i] for i in mine] == pytest.approx(
            rewards([rows[i][1] for i in mine], **settings), abs=1e-9
        )


@given(GROUPS)
def test_rewards_are_bounded_and_bad_form_costs_most(texts) -> None:
    for text, reward in zip(texts, rewards(texts), strict=True):
        assert -2 - 1e-9 <= reward <= 1.4 + 1e-9
        absent = sum(a.outcome is not Outcome.OK for a in parse_answer(text, PETS).attributes.values())
        assert reward <= 1.4 - absent


@given(GROUPS, st.text(max_size=20).filter(lambda t: "<" not in t and "{" not in t))
def test_an_absent_answer_does_not_vote(texts, noise) -> None:
    assert rewards([*texts, noise])[:-1] == pytest.approx(rewards(texts))
    assert rewards([*texts, noise])[-1] == -2.0


@given(st.lists(st.tuples(st.sampled_from(["Cat", "Dog", "NA"]), st.integers(1, 2)), min_size=2, max_size=6))
def test_doubling_all_confidences_moves_no_target(rollouts) -> None:
    for target in ("online", "rank", "none"):
        once = rewards([say(tag, c, "Flat", c) for tag, c in rollouts], target=target)
        assert once == rewards([say(tag, 2 * c, "Flat", 2 * c) for tag, c in rollouts], target=target)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 3)), min_size=1, max_size=8))
def test_ranks_do_not_see_inflation(rollouts) -> None:
    tags, confidence = (np.array(column)[None, None] for column in zip(*rollouts, strict=True))
    ranked = rank_confidence(tags, confidence)
    assert (ranked == rank_confidence(tags, confidence + 2)).all()
    assert ((ranked >= 1) & (ranked <= 5))[tags >= 0].all()
    assert (ranked[tags < 0] == 0).all()


@hypothesis.settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_rollouts_are_read_as_serving_reads_them(seed) -> None:
    taxonomy = load_taxonomy()
    texts = completions(taxonomy, 4, 0.7, seed)
    read = read_rollouts(texts, taxonomy)
    for text, tags, confidence in zip(texts, *read, strict=True):
        parsed = parse_answer(text, taxonomy).attributes
        for attribute, code, level in zip(taxonomy.attributes, tags, confidence, strict=True):
            one = parsed[attribute.name]
            assert (attribute.names[code] if code >= 0 else None) == (
                one.tag if one.outcome is Outcome.OK else None
            )
            assert level == (one.confidence if one.outcome is Outcome.OK else 0)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"record_id": [1, 1, 1, 2]}, "has 3 rollouts in this step and the group size is 4"),
        ({"record_id": [1, 1, 1]}, "record_id has 3 entries for 4 completions"),
        ({"c_ref": [[5]] * 4}, "one confidence for each of the 2 attributes, found 1"),
        ({"c_ref": [[5, 6]] * 4}, "c_ref of 'home' should be 1..5, found 6"),
        ({"c_ref": [{"pet": 3}] * 4}, "c_ref of 'home' should be 1..5, found None"),
        ({"reviewed": [["Bird", ""]] * 4}, "reviewed: 'Bird' is no tag of 'pet'"),
        ({"gold": [["Cat"]] * 4}, "gold should have one tag for each of the 2 attributes, found 1"),
    ],
)
def test_columns_that_do_not_fit(columns, says) -> None:
    whole = {"record_id": [1] * 4, "c_ref": [[5, 2]] * 4, **columns}
    with pytest.raises(InputError, match=says):
        ConfidenceReward(PETS, group_size=4)(None, GROUP, **whole)


def test_group_size_one_is_refused() -> None:
    with pytest.raises(InputError, match="group size is 1"):
        ConfidenceReward(PETS, group_size=1)
    with pytest.raises(InputError, match="group size is 1"):
        ConfidenceReward(PETS)(None, GROUP[:2], record_id=[1, 2], c_ref=[C_REF] * 2)


def test_settings_that_make_no_sense() -> None:
    for wrong in (
        {"clip": (4, 2)},
        {"lowest": 0.5, "highest": 0.1},
        {"target": "loud"},
        {"label_weight": -1},
    ):
        with pytest.raises(ValueError, match=r"clip|lowest|target|label_weight"):
            RewardSettings.model_validate(wrong)


def test_group_rows_keep_the_order_of_arrival() -> None:
    assert group_rows(["b", "a", "b", "a"]) == [[0, 2], [1, 3]]
    assert group_rows([]) == []


# --- verl ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pets_file(tmp_path) -> str:
    path = tmp_path / "pets.yaml"
    path.write_text(PETS.model_dump_json())
    return str(path)


def test_verl_batch_gives_the_same_rewards(pets_file) -> None:
    texts = GROUP + GROUP[::-1]
    infos = [{"record_id": i // 4, "c_ref": np.array([5, 2])} for i in range(8)]
    found = verl.compute_scores(["pets"] * 8, texts, [None] * 8, infos, taxonomy=pets_file, group_size=4)
    assert found == pytest.approx(rewards() + rewards()[::-1])
    with pytest.raises(InputError, match="group size"):
        verl.compute_scores(["pets"] * 3, texts[:3], [None] * 3, infos[:3], taxonomy=pets_file, group_size=4)
    with pytest.raises(InputError, match="extra_info should hold record_id and c_ref"):
        verl.compute_scores(["pets"] * 2, texts[:2], [None] * 2, [None] * 2, taxonomy=pets_file)


def test_verl_single_scores_against_a_given_target(pets_file) -> None:
    info = {"c_ref": C_REF}
    targets = {"pet": "Dog", "home": "House"}
    one_by_one = [verl.compute_score("pets", text, targets, info, taxonomy=pets_file) for text in GROUP]
    assert one_by_one == pytest.approx(rewards())
    told = verl.compute_score(
        "pets", GROUP[1], None, {**info, "target": '{"pet": "Dog"}'}, taxonomy=pets_file
    )
    assert told == pytest.approx(1 - 0.4)  # nothing is known of the home: a well-formed answer is no hit
    with pytest.raises(InputError, match="needs the target"):
        verl.compute_score("pets", GROUP[0], None, info, taxonomy=pets_file)


# --- speed ---------------------------------------------------------------------------------------------------------


def test_a_step_of_the_paper_is_rewarded_in_time() -> None:
    # By the processor's time, so that what else the machine does is not counted.
    seconds = measure(broken=0.1, repeats=2, clock=time.process_time)
    assert seconds < 1.5
