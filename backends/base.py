"""The protocol of every backend: identity, capabilities, and samples that arrive as they land."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from cp_agents.schema import Completion, Message
from cp_agents.taxonomy import Taxonomy


@dataclass(frozen=True)
class Identity:
    """Who answers. Part of the cache key, so that switching teacher to student never serves a stale answer."""

    kind: str
    """The word before the colon: openai, lexicon, replay, ..."""
    model: str
    endpoint: str = ""
    """Base URL or path of what serves it; empty for in-process backends."""
    revision: str = ""
    """Weights or adapter revision, lexicon version, hash of a recording."""

    @property
    def sampler(self) -> str:
        """The short name that each sample row carries."""
        return f"{self.kind}:{self.model}" if self.model else self.kind


@dataclass(frozen=True)
class Capabilities:
    """What the backend can do: declared, or probed once; never guessed from a model's name."""

    n: bool | None = False
    """Several samples of one prompt in one request; None where only the first request tells."""
    seed: bool = False
    """The same seed gives the same sample."""
    retries: bool = False
    """It retries transient failures itself, so nobody above it should."""
    by_record: bool = False
    """The answer depends on whose record it is and not on the prompt alone, as in a recording."""
    logprobs: bool | None = False
    """It says what the model gave each tag, where it is asked (see `SampleRequest.score_tags`); None where only the
    first answer tells."""
    structured_output: bool | None = False
    """It can be held to a form, such as the wire format's or a schema's; None where nobody has asked it."""
    prefix_cache: bool | None = False
    """What prompts have in common is read once; None where nothing was seen of it yet."""
    max_context: int | None = None
    """Most tokens of prompt and answer together; None where that is not known, or there is no bound."""


@dataclass(frozen=True)
class SampleRequest:
    """Some samples of one prompt."""

    messages: tuple[Message, ...]
    indices: tuple[int, ...]
    """Which of the record's M samples to draw, each in 0..M-1."""
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 1200
    seed: int = 0
    """Run seed; sample i is drawn with `seed + i` where the backend honours seeds."""
    record_key: str = ""
    """The user id, for backends that look answers up. It never leaves the machine."""
    score_tags: Taxonomy | None = field(default=None, repr=False, compare=False)
    """Whose tags' probabilities are wanted, in `Completion.probabilities`. A backend that cannot, answers without."""

    def canonical(self) -> str:
        """Canonical JSON of what determines the answer of every index.

        Excludes `record_key` and `indices`, and `score_tags`: what is told of an answer does not change it.
        """
        return json.dumps(
            {
                "messages": [m.as_dict() for m in self.messages],
                "temperature": self.temperature,
                "top_p": self.top_p,
                "max_tokens": self.max_tokens,
                "seed": self.seed,
            },
            ensure_ascii=False,
            sort_keys=True,
            separators=(",", ":"),
        )


def cache_keys(identity: Identity, canonical: str, indices: Iterable[int]) -> dict[int, str]:
    """A key per index: endpoint + model + revision + canonical request + sample index (128 bits of hex)."""
    parts = (identity.kind, identity.endpoint, identity.model, identity.revision, canonical)
    head = hashlib.sha256("\x1f".join(parts).encode())
    keys = {}
    for index in indices:
        digest = head.copy()
        digest.update(f"\x1f{index}".encode())
        keys[index] = digest.hexdigest()[:32]
    return keys


@runtime_checkable
class Backend(Protocol):
    """Draws samples.

    `sample` yields exactly one `Completion` per index of the request, in any order, each as soon as it has
    landed. A call that failed for good is a `Completion` with `error_type` set, not an exception; only
    errors that would fail every other call too (`ErrorType.is_fatal`) are raised, as `BackendError`.
    """

    @property
    def identity(self) -> Identity:
        """Who answers."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """Draw the samples of `request`."""
        ...

    async def aclose(self) -> None:
        """Free connections and memory."""
        ...
