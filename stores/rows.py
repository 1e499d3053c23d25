"""What goes into the tables of a trace store and comes out of them, and how it is packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cp_agents.errors import ErrorType
from cp_agents.schema import Completion, Evidence, Match, Outcome, Prediction, TagProbability

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredSample:
    """What the graph needs to know of a stored sample."""

    sample_id: int
    index: int
    outcome: Outcome
    error_type: ErrorType | None

    @property
    def is_final(self) -> bool:
        """Whether a resumed run keeps it: an answer, or an error that asking again would not mend."""
        return self.error_type is None or self.error_type.is_final


class RecordRow(NamedTuple):
    """A stored record."""

    user_id: str
    cues: str
    """The anonymised cue block."""
    self_reported: dict[str, str]


class NewSample(NamedTuple):
    """A sample that has landed, read and ready to be stored."""

    completion: Completion
    outcome: Outcome
    predictions: Mapping[str, Prediction]
    cache_key: str | None = None
    """Under which later requests find it; None keeps it out of the cache."""
    from_cache: int | None = None
    """The stored sample that it repeats; no call was made for it."""


class VoteRow(NamedTuple):
    """One attribute's vote as it is stored."""

    attribute: str
    method: str
    tag: str | None
    score: float
    share: float
    runner_up: str | None
    margin: float
    survivors: int


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def cues_hash(cues: str) -> str:
    """Tells cue blocks apart without keeping them."""
    return hashlib.sha256(cues.encode()).hexdigest()


def pack_evidence(evidence: Iterable[Evidence]) -> str | None:
    """Evidence as it is stored: `[start, end, match]` for what stands in the cues, `[words]` for what does not."""
    packed = [[e.text] if e.start is None else [e.start, e.end, e.match.value] for e in evidence]
    return json.dumps(packed, ensure_ascii=False, separators=(",", ":")) if packed else None


def unpack_evidence(packed: str | None, cues: str) -> list[Evidence]:
    """The inverse of `pack_evidence`: located evidence is quoted from the cues themselves."""
    found = []
    for item in json.loads(packed) if packed else ():
        if len(item) == 1:
            found.append(Evidence(text=item[0]))
        else:
            start, end, match = item
            text, source = cues[start:end], _source_at(cues, start)
            found.append(Evidence(text=text, source=source, start=start, end=end, match=Match(match)))
    return found


def _source_at(cues: str, position: int) -> str:
    """The heading above a position; item lines never start with a bracket."""
    heading = cues.rfind("\n[", 0, position) + 1  # the first heading has no line break before it
    return cues[heading + 1 : cues.index("]", heading)]


def completion_of(row: Row, scored: Mapping[int, dict[str, TagProbability]]) -> Completion:
    """The completion that a row of `samples` holds, with what `SampleTables.scored_tags` knows of it."""
    return Completion(
        index=row["sample_index"],
        text=row["text"],
        reasoning=row["reasoning"] or "",
        finish_reason=row["finish_reason"],
        refusal=row["outcome"] == Outcome.REFUSED,
        sampler=row["sampler"],
        error_type=row["error_type"],
        error_message=row["error_message"],
        probabilities=scored.get(row["sample_id"], {}),
    )
