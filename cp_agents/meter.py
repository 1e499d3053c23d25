"""Counts of a run as it goes: samples by outcome, errors by type, tokens, cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cp_agents.schema import Completion, Outcome


@dataclass
class Meter:
    """What a run has drawn so far. Samples reused from the store or the cache cost nothing and are told apart."""

    samples: int = 0
    reused: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    attributes: Counter[str] = field(default_factory=Counter)
    """Outcomes per attribute, over all attributes."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    """Whether any of the token counts is an estimate."""
    cost_usd: float = 0.0

    def add(self, completion: Completion, outcome: Outcome) -> None:
        """Count a sample that a backend has just given."""
        self.samples += 1
        self.outcomes[outcome.value] += 1
        if completion.error_type is not None:
            self.errors[completion.error_type.value] += 1
        self.spend(completion)

    def spend(self, completion: Completion) -> None:
        """Count what a call took that drew no sample, too."""
        self.prompt_tokens += completion.usage.prompt_tokens
        self.completion_tokens += completion.usage.completion_tokens
        self.cached_tokens += completion.usage.cached_tokens
        self.estimated |= completion.usage.estimated
        self.cost_usd += completion.cost_usd or 0.0
