"""Settings of a run: what is sampled, and what is decided from the samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from cp_agents.adaptive import Adaptive, Stopping, check_adaptive
from cp_agents.backends.base import Identity
from cp_agents.confidence import ConfidenceSource
from cp_agents.cues import AssembledCues, EntryKey, assemble_cues
from cp_agents.routing import ReviewPolicy
from cp_agents.schema import NA, UserRecord
from cp_agents.voting import VoteMethod

__all__ = ["NA", "ProfileSettings"]

History = Literal["condense", "truncate", "select"]
HISTORIES: tuple[History, ...] = get_args(History)

_SAMPLING = ("samples", "temperature", "top_p", "max_tokens", "seed", "token_budget", "evidence_cap")


class ProfileSettings(BaseModel):
    """Everything that decides a profile besides the record, backend, taxonomy, prompt and calibrator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(default=10, ge=1, le=1000)
    """M, the parallel samples per record."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=1200, ge=16)
    """Per sample."""
    seed: int = 0
    token_budget: int = Field(default=3000, ge=64)
    """Estimated tokens of the cue block."""
    history: History = "condense"
    """What becomes of a history that does not fit: condensed by rule, truncated, or selected by the teacher first."""
    evidence_cap: int | None = Field(default=2, ge=1, le=5)
    """Highest confidence of a tag whose evidence stands nowhere in the record; None leaves it as stated."""
    vote: VoteMethod = "weighted"
    confidence: ConfidenceSource = "verbal"
    """What an answer weighs in the vote, see `cp_agents.confidence`."""
    tag_weights: dict[str, dict[str, float]] = {}
    """What a few labels taught the vote, `{attribute: {tag: weight}}`, see `cp_agents.tag_weights`; not the paper's."""
    min_survivors: int = Field(default=3, ge=1)
    """Usable votes below which an attribute fails (never more than `samples`)."""
    adaptive: Adaptive | None = None
    """When to stop before M samples, see `cp_agents.adaptive`; None draws all."""
    adaptive_p: float = Field(default=0.95, gt=0, lt=1)
    """`bayes`: the expected share of a record's winners that stay, above which it stops."""
    wave: int = Field(default=1, ge=1)
    """Adaptive: fewest samples of a wave after the first."""
    tau: dict[str, float] = {}
    """Threshold per attribute, 1..5, or 6 for never; attributes not named have 1."""
    review: ReviewPolicy = ReviewPolicy()

    @property
    def stopping(self) -> Stopping | None:
        """The rule of adaptive sampling; None where all M are drawn. Raises `InputError` for a vote that has none."""
        if self.adaptive is None:
            return None
        check_adaptive(self.adaptive, self.vote)
        return Stopping(
            self.adaptive, self.samples, self.vote, self.adaptive_p, self.wave, self.min_survivors
        )

    def fingerprint(self, identity: Identity, prompt_version: str, taxonomy_hash: str) -> str:
        """12 hex digits over all that decides what is sampled, and nothing that is decided afterwards.

        Under adaptive sampling the vote decides that, too. It is another run then, but its samples are the first of
        the same M, so that the cache serves both.
        """
        sampling = {name: getattr(self, name) for name in _SAMPLING}
        if self.history != "condense":
            sampling["history"] = self.history
        if (stopping := self.stopping) is not None:
            sampling["stopping"] = [*stopping, self.confidence]
            if self.tag_weights:
                sampling["stopping"].append(self.tag_weights)
        whole = [
            identity.kind,
            identity.endpoint,
            identity.model,
            identity.revision,
            prompt_version,
            taxonomy_hash,
        ]
        canonical = json.dumps([whole, sampling], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def assemble_for(
    settings: ProfileSettings, record: UserRecord, foremost: Iterable[EntryKey] = ()
) -> AssembledCues:
    """The cue block of a record under these settings; `foremost` is what the teacher chose of a long history."""
    return assemble_cues(
        record,
        token_budget=settings.token_budget,
        foremost=frozenset(foremost),
        condensed=settings.history != "truncate",
    )
