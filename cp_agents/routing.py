"""Which attributes of which users a person should look at."""

from __future__ import annotations

import hashlib
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field

from cp_agents.schema import NA, AttributeProfile, Match, Status

LOW_CONFIDENCE = "low_confidence"
SPLIT_VOTE = "split_vote"
CONTRADICTION = "contradiction"
UNGROUNDED = "ungrounded"
AUDIT = "audit"


class ReviewPolicy(BaseModel):
    """Rules that send an attribute to a person. All are off by default; any that applies is enough."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_confidence: int | None = Field(default=None, ge=1, le=5)
    """The vote is a tag other than NA, at this confidence level or below, whether or not tau let it pass."""
    split_vote: float | None = Field(default=None, ge=0, le=1)
    """The margin of the vote (NA votes too) is smaller than this."""
    contradiction: bool = False
    """The accepted tag is not the one that the user's self-report names."""
    ungrounded: bool = False
    """The accepted tag has no evidence that was found in the record."""
    audit_share: float = Field(default=0.0, ge=0, le=1)
    """Share of users of whom every attribute is reviewed, to measure how good the profiles are. A hash of
    seed and user id says which: the same in every run, and a larger share contains a smaller one."""
    seed: int = 0
    """Of the audit."""

    @cached_property
    def is_off(self) -> bool:
        """Whether no rule is on."""
        return self == ReviewPolicy(seed=self.seed)


def review_reasons(
    attribute: AttributeProfile, policy: ReviewPolicy, *, user_id: str, reported: str | None = None
) -> list[str]:
    """Why this attribute should be reviewed, in the order of the policy's fields; empty if it need not be.

    `attribute` is as abstention left it (accepted, abstained or failed); `reported` is the tag that the
    user's self-report names for it, None where it names none. A failed attribute is reviewed in an audit
    only: there is no vote that a rule could judge.
    """
    if policy.is_off:
        return []
    voted = attribute.status is not Status.FAILED
    accepted = attribute.status is Status.ACCEPTED
    grounded = any(e.match is not Match.UNGROUNDED for e in attribute.evidence)
    low, split = policy.low_confidence, policy.split_vote
    rules = {
        LOW_CONFIDENCE: voted and attribute.voted != NA and low is not None and attribute.confidence <= low,
        SPLIT_VOTE: voted and split is not None and attribute.margin < split,
        CONTRADICTION: policy.contradiction and accepted and reported not in (None, NA, attribute.tag),
        UNGROUNDED: policy.ungrounded and accepted and not grounded,
        AUDIT: in_audit(policy, user_id),
    }
    return [reason for reason, applies in rules.items() if applies]


def in_audit(policy: ReviewPolicy, user_id: str) -> bool:
    """Whether the policy's random share of users has this one."""
    if policy.audit_share <= 0:
        return False
    digest = hashlib.sha256(f"{policy.seed}\x1f{user_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48 < policy.audit_share
