"""What two runs say of one attribute: their own words, counted side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cp_agents.abstention import BELOW_TAU, TOO_FEW_SURVIVORS
from cp_agents.schema import CONFIDENCE_LEVELS, NA, Status

_QUOTED = 3


class Said(BaseModel):
    """What a run voted for on one attribute of one user, before abstention."""

    tag: str
    confidence: int
    """1..5, calibrated as the run was."""
    vote_share: float
    evidence: list[str]
    """At most three pieces."""


class Difference(BaseModel):
    """Two runs that voted for different tags; NA is a tag."""

    user_id: str
    attribute: str
    a: Said
    b: Said
    gold: str | None = None


class AttributeComparison(BaseModel):
    """One attribute over the shared users. Ratios are 0..1, None where there is nothing to divide by."""

    users: int
    """Shared users on whom neither run failed; `equal` and `kappa` are over these."""
    failed_a: int
    """Users on whom too few samples survived to vote. They are unanswered in `coverage`."""
    failed_b: int
    equal: float | None
    """Share of equal tags as the profiles say them: NA, voted or by abstention, is a tag."""
    kappa: float | None
    """Cohen's kappa of the same; None where both runs always say one and the same tag."""
    both_answer: int
    """Users to whom both runs give a tag other than NA."""
    equal_where_both_answer: float | None
    kappa_where_both_answer: float | None
    only_a: int
    """Users to whom only run A gives a tag."""
    only_b: int
    coverage_a: float
    """Share of all shared users that get a tag at the tau the run was made with."""
    coverage_b: float
    coverage_at_tau_a: list[float]
    """The same at tau 1..5."""
    coverage_at_tau_b: list[float]
    differing: int
    """Users with different votes, whatever tau."""
    right_a: int | None = None
    """Of these, users of whom gold says what run A voted for; None without gold."""
    right_b: int | None = None


def cohen_kappa(pairs: Mapping[tuple[str, str], int]) -> float | None:
    """Cohen's kappa of two raters from counts of `(tag of A, tag of B)`.

    (observed - expected) / (1 - expected), where expected is the agreement of two raters who draw from their
    own frequencies. None without pairs, and where both name one and the same tag always.
    """
    total = sum(pairs.values())
    of_a, of_b = Counter[str](), Counter[str]()
    for (a, b), count in pairs.items():
        of_a[a] += count
        of_b[b] += count
    expected = sum(of_a[tag] * of_b[tag] for tag in of_a)  # times total squared: whole numbers are exact
    if expected == total * total:
        return None
    observed = sum(count for (a, b), count in pairs.items() if a == b) * total
    return (observed - expected) / (total * total - expected)


class OwnWord:
    """What the run itself said of an attribute: its stored value with the reviewer's part taken off."""

    def __init__(self, value: Mapping[str, Any] | None) -> None:
        self.value = value or {}
        reasons = self.value.get("reasons", ())
        self.failed = value is None or TOO_FEW_SURVIVORS in reasons
        self.voted: str = NA if self.failed else self.value["voted"]
        self.confidence: int = 0 if self.failed else self.value["confidence"]
        self.tag = NA if BELOW_TAU in reasons else self.voted

    @property
    def line(self) -> dict[str, Any]:
        """As `evaluate` reads it."""
        status = Status.FAILED if self.failed else Status.ACCEPTED
        return {"tag": self.tag, "voted": self.voted, "confidence": self.confidence, "status": status}

    @property
    def said(self) -> Said:
        """As differences are shown."""
        pieces = [str(piece["text"]) for piece in self.value.get("evidence", ())[:_QUOTED]]
        share = float(self.value["vote_share"])
        return Said(tag=self.voted, confidence=self.confidence, vote_share=share, evidence=pieces)


class Tally:
    """Counts of one attribute as users come by."""

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.failed = [0, 0]
        self.accepted = [0, 0]
        self.at_level: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self.right = [0, 0]
        self.differing = 0

    def add(
        self,
        user: str,
        name: str,
        a: Mapping[str, Any] | None,
        b: Mapping[str, Any] | None,
        truth: str | None,
    ) -> Difference | None:
        """Count one user; the difference if the votes differ."""
        both = OwnWord(a), OwnWord(b)
        for i, own in enumerate(both):
            self.failed[i] += own.failed
            self.accepted[i] += own.tag != NA
            self.at_level[i][own.confidence] += own.voted != NA
        if both[0].failed or both[1].failed:
            return None
        self.pairs[both[0].tag, both[1].tag] += 1
        if both[0].voted == both[1].voted:
            return None
        self.differing += 1
        for i, own in enumerate(both):
            self.right[i] += own.voted == truth
        return Difference(user_id=user, attribute=name, a=both[0].said, b=both[1].said, gold=truth)

    def result(self, users: int, with_gold: bool) -> AttributeComparison:
        """The numbers over `users` shared users."""
        answered = Counter({pair: count for pair, count in self.pairs.items() if NA not in pair})
        voted, both = self.pairs.total(), answered.total()
        coverage = [
            [
                sum(count for level, count in levels.items() if level >= tau) / users
                for tau in CONFIDENCE_LEVELS
            ]
            for levels in self.at_level
        ]
        return AttributeComparison(
            users=voted,
            failed_a=self.failed[0],
            failed_b=self.failed[1],
            equal=_equal(self.pairs),
            kappa=cohen_kappa(self.pairs),
            both_answer=both,
            equal_where_both_answer=_equal(answered),
            kappa_where_both_answer=cohen_kappa(answered),
            only_a=sum(count for (a, b), count in self.pairs.items() if a != NA and b == NA),
            only_b=sum(count for (a, b), count in self.pairs.items() if a == NA and b != NA),
            coverage_a=self.accepted[0] / users,
            coverage_b=self.accepted[1] / users,
            coverage_at_tau_a=coverage[0],
            coverage_at_tau_b=coverage[1],
            differing=self.differing,
            right_a=self.right[0] if with_gold else None,
            right_b=self.right[1] if with_gold else None,
        )


def _equal(pairs: Mapping[tuple[str, str], int]) -> float | None:
    total = sum(pairs.values())
    return sum(count for (a, b), count in pairs.items() if a == b) / total if total else None
