"""What an endpoint was found to be able to do, by its replies and never by a model's name."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from cp_agents.backends.base import Capabilities
from cp_agents.backends.chat import Reply

log = logging.getLogger(__name__)

_SINGLES = 2
"""Replies with one choice to requests for several after which n is taken for ignored. One alone may be an accident: a
content filter or a gateway can drop choices, and what an endpoint cannot do is remembered for days."""


@dataclass
class Facts:
    """Each None until it is known. `declared`: n was said by the user, so there is nothing to remember of it."""

    sampler: str
    n: bool | None = None
    declared: bool = False
    logprobs: bool | None = None
    structured_output: bool | None = None
    prefix_cache: bool | None = None
    max_context: int | None = None
    _singles: int = field(default=0, init=False)

    def capabilities(self) -> Capabilities:
        """As far as they are known. Seeds are sent, but no endpoint vouches for them."""
        return Capabilities(
            n=self.n,
            seed=False,
            retries=True,
            logprobs=self.logprobs,
            structured_output=self.structured_output,
            prefix_cache=self.prefix_cache,
            max_context=self.max_context,
        )

    def recall(self, known: Capabilities) -> None:
        """Take what was found out earlier for what is not known yet, so that no request is spent on it.

        What an answer comes with (log-probabilities) is seen anew: it costs nothing.
        """
        self.n = known.n if self.n is None else self.n
        if self.structured_output is None:
            self.structured_output = known.structured_output
        self.prefix_cache = known.prefix_cache if self.prefix_cache is None else self.prefix_cache
        self.max_context = self.max_context or known.max_context

    @property
    def doubts_n(self) -> bool:
        """Whether a reply was too short for n, and another has to tell whether that was an accident."""
        return self.n is None and self._singles > 0

    def see_choices(self, asked: int, given: int) -> None:
        """A reply brought `given` choices (at least one) where `asked` were asked for.

        Several choices show that n is honoured, however many are missing: those are asked for again. One choice
        each for `_SINGLES` requests in succession shows that it is not.
        """
        if asked < 2:
            return
        self._singles = 0 if given > 1 else self._singles + 1
        if self._singles >= _SINGLES:
            self.n = False
        elif given > 1 and self.n is None:
            self.n = True

    def see_logprobs(self, reply: Reply) -> None:
        """Whether a reply has the log-probabilities that were asked for; one without a word does not tell."""
        if any(choice.tokens for choice in reply.choices.values()):
            self.logprobs = True
        elif self.logprobs is None and any(choice.text for choice in reply.choices.values()):
            self.logprobs = False
            log.warning("%s: the endpoint ignores logprobs: its answers come without", self.sampler)
