"""Tokens and money: how a request's usage is shared among its samples, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cp_agents.errors import InputError
from cp_agents.schema import Usage

_MOST_USD = 1e9
"""Per million tokens; also keeps infinity out."""
_MOST_TOKENS = 10**12


class Prices(NamedTuple):
    """USD per million tokens."""

    prompt: float
    completion: float
    cached: float | None = None
    """Of prompt tokens that come from the endpoint's prefix cache; as `prompt` where None."""

    @classmethod
    def from_dict(cls, prices: Mapping[str, float]) -> Prices:
        """Read `{"prompt", "completion", "cached"}`. Raises `InputError` for anything else."""
        if not {"prompt", "completion"} <= set(prices) <= set(cls._fields):
            raise InputError(
                f"prices should name prompt, completion and perhaps cached (USD per million tokens), "
                f"found {', '.join(sorted(prices)) or 'nothing'}"
            )
        for name, value in prices.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InputError(f"the price {name} should be a number of 0 or more, found {value!r}")
            if value > _MOST_USD:
                raise InputError("a price should be a finite number")
        return cls(**prices)

    def cost(self, usage: Usage) -> float:
        """USD of `usage`."""
        cached = self.prompt if self.cached is None else self.cached
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.prompt + usage.cached_tokens * cached + usage.completion_tokens * self.completion
        ) / 1e6


def read_usage(raw: object, n: int) -> list[Usage] | None:
    """A request's usage object as one `Usage` per sample (n of them); None where the endpoint counted nothing.

    The prompt is counted on the first sample. Endpoints give one total for the completions: it is split evenly
    and the remainder goes, one token each, to the first samples, so that sums are exact.
    """
    prompt, completion = _count(raw, "prompt_tokens"), _count(raw, "completion_tokens")
    if not isinstance(raw, dict) or not (prompt or completion):
        return None
    cached = min(prompt, _count(raw.get("prompt_tokens_details"), "cached_tokens"))
    completions = _split(completion, n)
    reasoning = _split(_count(raw.get("completion_tokens_details"), "reasoning_tokens"), n)
    return [
        Usage(
            prompt_tokens=0 if i else prompt,
            cached_tokens=0 if i else cached,
            completion_tokens=completions[i],
            reasoning_tokens=reasoning[i],
        )
        for i in range(n)
    ]


def estimate_usage(prompt_tokens: int, completion_tokens: Sequence[int]) -> list[Usage]:
    """Estimates in place of an endpoint's count, flagged as such; the prompt on the first sample."""
    return [
        Usage(prompt_tokens=0 if i else prompt_tokens, completion_tokens=tokens, estimated=True)
        for i, tokens in enumerate(completion_tokens)
    ]


def _count(raw: Any, name: str) -> int:
    value = raw.get(name) if isinstance(raw, dict) else None
    # An endpoint can say anything: what is no count of tokens (NaN, 1e400) is taken as not said.
    return int(value) if isinstance(value, int | float) and 0 < value <= _MOST_TOKENS else 0


def _split(total: int, n: int) -> list[int]:
    each, rest = divmod(total, n)
    return [each + (i < rest) for i in range(n)]
