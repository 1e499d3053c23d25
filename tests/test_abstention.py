"""Accept, abstain or fail; and the thresholds that people write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents.abstention import decide, parse_tau
from cp_agents.errors import InputError
from cp_agents.schema import NA, Status
from cp_agents.taxonomy import Taxonomy

PEOPLE = Taxonomy.model_validate(
    {
        "name": "people",
        "attributes": [
            {"name": "gender", "tags": [{"name": "Male"}, {"name": "Female"}]},
            {"name": "age", "tags": [{"name": "0-18"}, {"name": "18+"}]},
        ],
    }
)


@pytest.mark.parametrize(
    ("voted", "confidence", "survivors", "tag", "status", "reasons"),
    [
        ("Male", 3, 10, "Male", Status.ACCEPTED, []),
        ("Male", 4, 2, "Male", Status.ACCEPTED, []),
        ("Male", 2, 10, NA, Status.ABSTAINED, ["below_tau"]),
        (NA, 5, 10, NA, Status.ABSTAINED, ["voted_na"]),
        (NA, 1, 10, NA, Status.ABSTAINED, ["voted_na"]),
        ("Male", 5, 1, NA, Status.FAILED, ["too_few_survivors"]),
        (NA, 5, 1, NA, Status.FAILED, ["too_few_survivors"]),
        (None, 1, 0, NA, Status.FAILED, ["too_few_survivors"]),
    ],
)
def test_rules_in_order(
    voted: str | None, confidence: int, survivors: int, tag: str, status: Status, reasons: list[str]
) -> None:
    got = decide(voted, confidence, tau=3, survivors=survivors, samples=10, min_survivors=2)
    assert got == (tag, status, reasons)


@pytest.mark.parametrize(
    ("survivors", "samples", "min_survivors", "fails"),
    [
        (1, 1, 3, False),
        (0, 1, 3, True),
        (2, 3, 3, True),
        (3, 3, 9, False),
        (1, 10, 0, False),
        (0, 10, 0, True),
    ],
)
def test_the_least_number_of_survivors_is_capped_at_the_samples_asked_for(
    survivors: int, samples: int, min_survivors: int, fails: bool
) -> None:
    voted = "Male" if survivors else None
    got = decide(voted, 5, tau=1, survivors=survivors, samples=samples, min_survivors=min_survivors)
    assert (got.status is Status.FAILED) == fails


@given(st.sampled_from(["Male", NA, None]), st.integers(1, 5), st.integers(0, 10), st.floats(1, 5))
def test_a_higher_tau_only_takes_away(voted: str | None, confidence: int, survivors: int, tau: float) -> None:
    low = decide(voted, confidence, tau=1, survivors=survivors, samples=10)
    high = decide(voted, confidence, tau=tau, survivors=survivors, samples=10)
    assert high.tag in (low.tag, NA)
    assert (high.tag == NA) == (high.status is not Status.ACCEPTED) == bool(high.reasons)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"gender": 1, "age": 1}),
        (["3"], {"gender": 3, "age": 3}),
        (["age=4"], {"gender": 1, "age": 4}),
        (["3", "age=4"], {"gender": 3, "age": 4}),
        (["age=4", "3"], {"gender": 3, "age": 4}),
        (["2", "3", "age=4", " age = 2.5"], {"gender": 3, "age": 2.5}),
    ],
)
def test_parse_tau(values: list[str], expected: dict[str, float]) -> None:
    assert parse_tau(values, PEOPLE) == expected


@pytest.mark.parametrize("value", ["7", "0", "0.99", "nan", "inf", "", "high", "age=", "age=7", "age=x"])
def test_tau_out_of_range(value: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_tau([value], PEOPLE)
    assert str(caught.value) == f"--tau {value}: tau should be between 1 and 5"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["agee=3", "=3", "a=b=3"])
def test_tau_of_an_unknown_attribute(value: str) -> None:
    with pytest.raises(
        InputError, match=rf"--tau {value}: taxonomy people has no attribute .* \(gender, age\)"
    ):
        parse_tau([value], PEOPLE)
