"""From a record's profile to what a student should answer: pure decisions, one row at a time.

The paper's SFT data (section 3.1 of its method): per attribute the voted tag, its calibrated confidence 1..5 and
the evidence of the most confident sample that agrees with the vote. Abstention plays no part: the student learns
what was voted, and a threshold tau is set on its answers afterwards.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cp_agents.abstention import TOO_FEW_SURVIVORS
from cp_agents.answer_tokens import THOUGHTS
from cp_agents.schema import CONFIDENCE_LEVELS, NA, AttributeProfile, Evidence, Match, Profile, Status
from cp_agents.trainers.data_card import SftFilters
from cp_agents.wire import WireAnswer, write_answer

TRAIN, VALIDATION = "train", "validation"

UNFINISHED, FAILED, NO_REASONING, DUPLICATE = "unfinished", "failed", "no_reasoning", "duplicate"
STATUS, UNGROUNDED, SHARE, CONFIDENCE = "status", "ungrounded", "vote_share", "confidence"
REASONS = (UNFINISHED, FAILED, STATUS, UNGROUNDED, SHARE, CONFIDENCE, NO_REASONING, DUPLICATE)
"""Why a record is left out, in the order in which they are asked."""

_THOUGHT_TAG = re.compile(rf"</?\s?(?:{'|'.join(THOUGHTS)})\s?>", re.IGNORECASE)


class Target(NamedTuple):
    """What the student should say of one attribute."""

    tag: str
    confidence: int
    evidence: tuple[str, ...]
    """Quotations that stand in the record."""
    gold: bool = False
    """Whether a person said so."""


def is_gold(value: AttributeProfile) -> bool:
    """Whether a person answered."""
    return value.status is Status.REVIEWED


def has_failed(profile: Profile) -> bool:
    """Whether there is an attribute without a vote that no person answered either: nothing can be taught of it."""
    return any(TOO_FEW_SURVIVORS in v.reasons and not is_gold(v) for v in profile.attributes.values())


def failed_filter(value: AttributeProfile, filters: SftFilters) -> str | None:
    """The first filter that an attribute fails, in the order of `REASONS`; None where it passes all."""
    if is_gold(value):
        return None
    names_a_tag = value.voted != NA
    status = value.status
    if not names_a_tag and status is Status.ABSTAINED:
        status = Status.ACCEPTED
    if filters.statuses is not None and status not in filters.statuses:
        return STATUS
    if filters.grounded and names_a_tag and not quotations(value.evidence):
        return UNGROUNDED
    if value.vote_share < filters.min_share:
        return SHARE
    if names_a_tag and value.confidence < filters.min_confidence:
        return CONFIDENCE
    return None


def reason_to_drop(failures: Iterable[str], filters: SftFilters) -> str | None:
    """Why a row goes, given the filter that each failing attribute failed; None where few enough do.

    The whole row goes: an answer without one of its attributes would teach malformed answers, and NA in its place
    would teach that the record does not tell.
    """
    failed = Counter(failures)
    return min(failed, key=REASONS.index) if failed.total() > filters.may_fail else None


def quotations(evidence: Iterable[Evidence]) -> tuple[str, ...]:
    """The pieces that stand in the record, word for word as they stand there, without repetition."""
    return tuple(dict.fromkeys(e.text for e in evidence if e.match is not Match.UNGROUNDED))


def target(value: AttributeProfile, evidence: Iterable[Evidence]) -> Target:
    """The voted tag with its calibrated confidence, or a person's tag with the highest; NA quotes nothing.

    `evidence` is that of the best sample that named this tag. Pieces that stand nowhere in the record are left out.
    """
    gold = is_gold(value)
    tag = value.tag if gold else value.voted
    confidence = CONFIDENCE_LEVELS[-1] if gold else value.confidence
    return Target(tag, confidence, () if tag == NA else quotations(evidence), gold)


def completion(targets: Mapping[str, Target], reasoning: str = "") -> str:
    """The assistant's message: the answer in the wire format, behind a think block where there is reasoning.

    `reasoning` is as `clean_thought` gives it.
    """
    answer = write_answer(
        WireAnswer(name, t.tag, t.confidence, "; ".join(t.evidence)) for name, t in targets.items()
    )
    return f"<think>\n{reasoning}\n</think>\n\n{answer}" if reasoning else answer


def clean_thought(reasoning: str) -> str:
    """Reasoning without think tags of its own, so that the block around it ends where it ends."""
    return _THOUGHT_TAG.sub(" ", reasoning).strip()


def best_sample(
    votes: Iterable[tuple[int, str, str, str, int]], tags: Mapping[str, str], among: Iterable[int]
) -> int | None:
    """The sample whose answers agree with `tags` on most attributes; None where there is none to choose from.

    `votes` are `(sample_index, sampler, attribute, tag, confidence)`, as `TraceStore.predictions` gives them. Of
    several the one with most confidence in what it shares, then the earliest.
    """
    agreement = dict.fromkeys(among, (0, 0))
    for index, _, attribute, tag, confidence in votes:
        if index in agreement and tags.get(attribute) == tag:
            count, total = agreement[index]
            agreement[index] = (count + 1, total + confidence)
    return min(agreement, key=lambda i: (-agreement[i][0], -agreement[i][1], i), default=None)


def split_of(user_id: str, seed: int, validation: float) -> str:
    """On which side a user falls: by a hash of id and seed, whoever else is there."""
    digest = hashlib.sha256(f"{seed}\x1f{user_id}".encode()).digest()
    return VALIDATION if int.from_bytes(digest[:8]) < validation * 2**64 else TRAIN


def failures(profile: Profile, filters: SftFilters) -> Iterator[tuple[str, str]]:
    """`(attribute, filter)` of every attribute that fails one."""
    for name, value in profile.attributes.items():
        if (failed := failed_filter(value, filters)) is not None:
            yield name, failed
