"""The parts of a report that speak of single users: shown records and the review queue."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cp_agents.report.numbers import Plain


class Segment(Plain):
    """A piece of a record's text."""

    text: str
    kind: Literal["", "winner", "other"] = ""
    """Evidence for the tag that won, for the runner-up, or neither."""


class Line(Plain):
    """One line of a cue block, or how many were left out in its place."""

    source: str = ""
    """Set on the first line of a source."""
    segments: list[Segment] = Field(default_factory=list)
    left_out: int = 0


class TagVotes(Plain):
    """What the samples of a question said for one tag."""

    tag: str
    votes: int
    mean_confidence: float


class Case(Plain):
    """One attribute of one record, shown with its text."""

    user_id: str
    attribute: str
    voted: str
    tag: str
    """What the profile says."""
    gold: str | None
    status: str
    confidence: int
    score: float
    """S / M."""
    share: float
    margin: float
    survivors: int
    asked: int
    runner_up: str | None
    votes: list[TagVotes]
    lines: list[Line]
    invented: list[str]
    """Quotations of the winner's evidence that are nowhere in the record."""


class WaitingReview(Plain):
    """One row of the review queue."""

    review_id: int
    user_id: str
    attribute: str
    proposed: str | None
    confidence: int | None
    reasons: list[str]


class ReviewQueue(Plain):
    """What waits for a person, and what people said."""

    waiting: int
    by_reason: dict[str, int]
    by_attribute: dict[str, int]
    rows: list[WaitingReview]
    """The first of them; none without records."""
    answered: int
    confirmed: int
    """Answers that left the model's tag as it was."""
