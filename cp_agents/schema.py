"""The shapes that cross from one room to another. Plain pydantic models, no I/O."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cp_agents.errors import ErrorType, InputError

NA = "NA"
"""The tag that says: the record does not tell."""

CONFIDENCE_LEVELS = (1, 2, 3, 4, 5)

_MOST_ID = 512
_MOST_COUNT = 10**12

SELF_REPORTED = "self_reported"
"""The record's field, and the cue source, of what users say of themselves."""


class Outcome(StrEnum):
    """What became of an answer, for a whole sample or for one attribute of it."""

    OK = "ok"
    """A tag of the closed set with a confidence of 1..5."""
    MALFORMED = "malformed"
    """There is an answer, but no tag and confidence can be read from it."""
    OUT_OF_SET = "out_of_set"
    """The tag is readable and is not in the attribute's closed set."""
    MISSING = "missing"
    """The answer is readable and leaves this attribute out."""
    TRUNCATED = "truncated"
    """The answer ended by length before this attribute was complete."""
    REFUSED = "refused"
    """The model declined to answer."""
    FILTERED = "filtered"
    """The endpoint's content filter withheld the answer."""
    EMPTY = "empty"
    """The model answered with nothing."""
    ERROR = "error"
    """The call failed; the sample's `error_type` says how."""


class Match(StrEnum):
    """How an evidence text was found in the record."""

    EXACT = "exact"
    """Character by character."""
    NORMALISED = "normalised"
    """After folding width, case, punctuation and space."""
    FUZZY = "fuzzy"
    """With a bounded number of differences."""
    UNGROUNDED = "ungrounded"
    """Nowhere: the model made it up, or speaks of the absence of something."""


class Status(StrEnum):
    """What the profile does with an attribute."""

    ACCEPTED = "accepted"
    """The tag's confidence reaches tau."""
    ABSTAINED = "abstained"
    """NA: the vote said NA, or the confidence is below tau."""
    NEEDS_REVIEW = "needs_review"
    """Waits for a person."""
    REVIEWED = "reviewed"
    """A person answered; the model's own answer is kept beside it."""
    FAILED = "failed"
    """Too few samples survived to vote."""


class CueItem(BaseModel):
    """One thing a user did or wrote, as it came in."""

    model_config = ConfigDict(frozen=True)

    text: str
    weight: float | None = None
    """Any non-negative measure of how much (minutes, plays, spend); None where the source gives none."""
    time: str | None = None
    """ISO 8601 date or date-time; None where unknown."""
    count: int = 1


class UserRecord(BaseModel):
    """One user: cue sources by name, and self-reported fields that may be wrong."""

    user_id: str
    sources: dict[str, list[CueItem]]
    self_reported: dict[str, str]

    @classmethod
    def from_dict(cls, raw: object) -> UserRecord:
        """Read `{"user_id", "<source>": [...], "self_reported": {...}}`.

        Items are text, `[text, weight]` or `{"text", "time", "count", "weight"}`. Raises `InputError` with
        one sentence that names the field.
        """
        if not isinstance(raw, dict):
            raise InputError(f"expected a JSON object for a user record, found {_kind(raw)}")
        user_id = read_user_id(raw.get("user_id"))
        sources: dict[str, list[CueItem]] = {}
        for name, value in raw.items():
            if isinstance(value, list):
                sources[str(name)] = [
                    _cue_item(item, f'"{name}" item {i}') for i, item in enumerate(value, 1)
                ]
        reported = raw.get(SELF_REPORTED) or {}
        if not isinstance(reported, dict):
            raise InputError(f'"{SELF_REPORTED}" should be an object of fields, found {_kind(reported)}')
        try:
            flat = {str(k): _field_text(v) for k, v in reported.items() if v is not None and v != ""}
        except (RecursionError, ValueError):
            raise InputError(
                f'"{SELF_REPORTED}" is nested too deeply or holds a number of too many digits'
            ) from None
        return cls(user_id=user_id, sources=sources, self_reported=flat)


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true/false"}
    return names.get(type(value), "nothing" if value is None else "a number")


def read_user_id(value: object) -> str:
    """A user id as text; whole numbers are taken too. Raises `InputError` for what cannot be stored or shown."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**_MOST_ID:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError('the record has no "user_id" (expected a non-empty string)')
    if len(value) > _MOST_ID:
        raise InputError(f'the "user_id" is longer than {_MOST_ID} characters ({len(value):,})')
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise InputError(f'the "user_id" {value!a} holds a control character or half a character')
    return value


def _field_text(value: object) -> str:
    """Plain words for the prompt: nested fields as `key: value`, empty ones left out."""
    if isinstance(value, list):
        return ", ".join(_field_text(v) for v in value if v is not None and v != "")
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_field_text(v)}" for k, v in value.items() if v is not None and v != "")
    return str(value)


def _number(value: object, where: str, what: str, most: float = sys.float_info.max) -> float:
    # An integer may be too long to become a float, or even to be shown.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        bound = f"number of 0 to {most:,.0f}" if most < 1e15 else "number of 0 or more"
        raise InputError(f"{where}: {what} should be a {bound}, found {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of too many digits"
    return repr(value)[:80] if isinstance(value, str | int | float) else _kind(value)


def _cue_item(item: object, where: str) -> CueItem:
    if isinstance(item, str):
        return CueItem(text=item)
    if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str):
        return CueItem(text=item[0], weight=_number(item[1], where, "the weight"))
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        weight, count, time = item.get("weight"), item.get("count"), item.get("time")
        return CueItem(
            text=item["text"],
            weight=None if weight is None else _number(weight, where, "the weight"),
            time=None if time is None else str(time) if isinstance(time, str) else _shown(time),
            count=1 if count is None else max(1, round(_number(count, where, "the count", _MOST_COUNT))),
        )
    raise InputError(
        f'{where} should be text, [text, weight] or {{"text", "time", "count"}}, found {_kind(item)}'
    )


class Message(NamedTuple):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str

    def as_dict(self) -> dict[str, str]:
        """The OpenAI wire shape."""
        return {"role": self.role, "content": self.content}


class Usage(BaseModel):
    """Tokens of one sample. Of a request that returns several, the prompt is counted on its first sample."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """The part of prompt_tokens that the endpoint read from its prefix cache."""
    reasoning_tokens: int = 0
    estimated: bool = False
    """True where the endpoint gave no usage and the numbers are estimates from the text's length."""


class TagProbability(NamedTuple):
    """A tag that an answer writes, and what the model gave it."""

    tag: str
    """A tag of the closed set."""
    probability: float
    """Among the attribute's tags, above 0 and at most 1."""


class Completion(BaseModel):
    """What a backend gave for one sample index: a text, or an error. Exactly one per index asked for."""

    index: int
    text: str = ""
    reasoning: str = ""
    """reasoning_content or think blocks, kept apart from the answer."""
    finish_reason: str | None = None
    """As the endpoint said: stop, length, content_filter, ..."""
    refusal: bool = False
    """True where the endpoint marked the answer as a refusal."""
    usage: Usage = Field(default_factory=Usage)
    latency_s: float = 0.0
    cost_usd: float | None = None
    sampler: str = ""
    """Which backend drew it (kind:model); several in an ensemble."""
    error_type: ErrorType | None = None
    error_message: str | None = None
    probabilities: dict[str, TagProbability] = Field(default_factory=dict)
    """By attribute, where the backend gives log-probabilities and was asked for them."""


class Evidence(BaseModel):
    """A quotation, and where it stands in the assembled cues (character offsets into `cues.text`)."""

    text: str
    source: str | None = None
    start: int | None = None
    end: int | None = None
    match: Match = Match.UNGROUNDED


class Prediction(BaseModel):
    """(A, C, E) of equation 2 for one attribute of one sample, or why there is none."""

    outcome: Outcome
    tag: str | None = None
    """A tag of the closed set (NA included) when the outcome is ok; the raw text when out_of_set."""
    confidence: int | None = None
    """1..5, after the cap for ungrounded evidence."""
    evidence: list[Evidence] = Field(default_factory=list)
    probability: float | None = None
    """What the model gave the tag among the attribute's tags, 0..1, read from its tokens' log probabilities."""


class AttributeProfile(BaseModel):
    """The profile's word on one attribute."""

    tag: str
    confidence: int
    """1..5 after calibration."""
    score: float
    """S of equation 5."""
    vote_share: float
    """Share of the surviving votes that named the winning tag, 0..1."""
    status: Status
    evidence: list[Evidence] = Field(default_factory=list)
    """That of the most confident sample that agrees with the vote."""
    voted: str
    """What the vote said, before abstention and review."""
    runner_up: str | None = None
    margin: float = 0.0
    """(S of the winner - S of the runner-up) / S of all tags, 0..1."""
    agreeing: list[int] = Field(default_factory=list)
    """Sample indices that named the winning tag."""
    survivors: int = 0
    """Samples with a usable vote on this attribute."""
    probability: float | None = None
    """Of being right, where the calibrator was fitted on gold or reviewed rows."""
    calibrated: bool | None = None
    """Whether a calibrator made this confidence: it has no curve for attributes with too few votes. None where an
    older version wrote the profile."""
    reasons: list[str] = Field(default_factory=list)
    """Why it abstained, failed or needs review."""
    reviewer: str | None = None
    reviewed_at: str | None = None


class Profile(BaseModel):
    """One user's profile: behaves as a mapping from attribute name to `AttributeProfile`."""

    user_id: str
    attributes: dict[str, AttributeProfile]
    calibrator: str = "uncalibrated"
    """Which calibrator spoke: "uncalibrated", or its kind and id."""
    run_id: str

    def __getitem__(self, attribute: str) -> AttributeProfile:
        return self.attributes[attribute]

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.attributes)

    def __len__(self) -> int:
        return len(self.attributes)

    def __contains__(self, attribute: object) -> bool:
        return attribute in self.attributes

    def to_json(self) -> dict[str, Any]:
        """One line of OUT.jsonl: `{"user_id", "profile": {...}, "calibrator", "run_id"}`."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        return {
            "user_id": self.user_id,
            "profile": dumped["attributes"],
            "calibrator": self.calibrator,
            "run_id": self.run_id,
        }
