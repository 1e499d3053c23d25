"""Which attributes go to a person."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cp_agents.routing import ReviewPolicy, review_reasons
from cp_agents.schema import NA, AttributeProfile, Evidence, Match, Status

FOUND = Evidence(text="pram", match=Match.EXACT)
INVENTED = Evidence(text="a dream", match=Match.UNGROUNDED)
EVERYTHING = ReviewPolicy(low_confidence=2, split_vote=0.2, contradiction=True, ungrounded=True)


def attribute(status: Status = Status.ACCEPTED, **changes: Any) -> AttributeProfile:
    voted = changes.pop("voted", "Female")
    values: dict[str, Any] = {
        "tag": voted if status is Status.ACCEPTED else NA,
        "confidence": 4,
        "score": 40.0,
        "vote_share": 0.9,
        "status": status,
        "evidence": [FOUND],
        "voted": voted,
        "margin": 0.8,
    }
    return AttributeProfile(**(values | changes))


def reasons(
    value: AttributeProfile, policy: ReviewPolicy = EVERYTHING, reported: str | None = None
) -> list[str]:
    return review_reasons(value, policy, user_id="u1", reported=reported)


def test_all_rules_are_off_by_default() -> None:
    worst = attribute(confidence=1, margin=0.0, evidence=[])
    assert reasons(worst, ReviewPolicy(), reported="Male") == []


def test_a_good_answer_needs_no_review() -> None:
    assert reasons(attribute(), reported="Female") == []
    assert reasons(attribute(), reported=None) == []


@pytest.mark.parametrize(
    ("value", "reported", "expected"),
    [
        (attribute(confidence=2), None, ["low_confidence"]),
        (attribute(confidence=3), None, []),
        (
            attribute(Status.ABSTAINED, confidence=1),
            None,
            ["low_confidence"],
        ),  # below tau: what it would have said
        (attribute(Status.ABSTAINED, voted=NA, confidence=1), None, []),  # not sure that nothing can be known
        (attribute(margin=0.19), None, ["split_vote"]),
        (attribute(margin=0.2), None, []),
        (attribute(Status.ABSTAINED, voted=NA, margin=0.0), None, ["split_vote"]),
        (attribute(), "Male", ["contradiction"]),
        (attribute(), NA, []),
        (attribute(Status.ABSTAINED), "Male", []),  # NA contradicts nobody
        (attribute(evidence=[INVENTED]), None, ["ungrounded"]),
        (attribute(evidence=[]), None, ["ungrounded"]),
        (attribute(evidence=[INVENTED, FOUND]), None, []),
        (attribute(Status.ABSTAINED, evidence=[]), None, []),
        (attribute(Status.FAILED, confidence=1, margin=0.0, evidence=[]), "Male", []),
        (
            attribute(confidence=1, margin=0.1, evidence=[]),
            "Male",
            ["low_confidence", "split_vote", "contradiction", "ungrounded"],
        ),
    ],
)
def test_rules(value: AttributeProfile, reported: str | None, expected: list[str]) -> None:
    assert reasons(value, reported=reported) == expected


def audited(share: float, seed: int = 0) -> set[str]:
    policy = ReviewPolicy(audit_share=share, seed=seed)
    users = [f"user-{i}" for i in range(2000)]
    return {u for u in users if review_reasons(attribute(), policy, user_id=u) == ["audit"]}


def test_audit_is_a_stable_share_that_grows_with_the_setting() -> None:
    some, more = audited(0.1), audited(0.3)
    assert 150 < len(some) < 250
    assert some < more
    assert some == audited(0.1)
    assert some != audited(0.1, seed=1)
    assert audited(0.0) == set()
    assert len(audited(1.0)) == 2000


def test_audit_takes_every_attribute_of_a_user() -> None:
    policy = ReviewPolicy(audit_share=1)
    for status in (Status.ACCEPTED, Status.ABSTAINED, Status.FAILED):
        assert reasons(attribute(status), policy) == ["audit"]


@pytest.mark.parametrize(
    "settings", [{"low_confidence": 6}, {"split_vote": 1.5}, {"audit_share": -0.1}, {"low_confidense": 2}]
)
def test_bad_policies_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReviewPolicy(**settings)
