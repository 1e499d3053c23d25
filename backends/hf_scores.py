"""What a model gave the tokens of its tags, noted while it writes them.

Ranking a vocabulary at every token would slow generation down; only the tokens of tags are worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from cp_agents.backends.tag_logprobs import TOP, TagToken

_OPEN, _CLOSE = "<tag", "</tag"
"""Without the last character, which tokens like to join with what follows."""
_TAIL = 300
"""Characters of the answer that are looked at: longer than any tag."""


class TagScores:
    """The tokens of one answer as text; those of its tags with their log probabilities."""

    def __init__(self, piece: Callable[[int], str]) -> None:
        """`piece` gives the text of one token."""
        self.tokens: list[TagToken] = []
        self._piece = piece
        self._tail = ""

    @property
    def wanted(self) -> bool:
        """Whether the next token may belong to a tag."""
        return self._tail.rfind(_OPEN) > self._tail.rfind(_CLOSE)

    def add(self, token: int, logprob: float = 0.0, top: Sequence[tuple[int, float]] = ()) -> None:
        """Take in the token that was drawn, and the likeliest in its place."""
        text = self._piece(token)
        likely = [(self._piece(other), value) for other, value in top]
        # A special token writes nothing, and so does not lead to the tag that is begun.
        self.tokens.append(TagToken(text, logprob, {other: value for other, value in likely if other}))
        self._tail = (self._tail + text)[-_TAIL:]


def score(rows: Sequence[TagScores | None], logits: Tensor, tokens: Sequence[int]) -> None:
    """Note the `tokens` that were drawn from `logits` [rows, vocabulary]; rows without scores are left out."""
    wanted = [i for i, row in enumerate(rows) if row is not None and row.wanted]
    ranked: dict[int, tuple[float, list[tuple[int, float]]]] = {}
    if wanted:
        logprobs = logits[wanted].float().log_softmax(dim=-1)
        top = logprobs.topk(min(TOP, logprobs.shape[-1]), dim=-1)
        for k, (i, values, ids) in enumerate(
            zip(wanted, top.values.tolist(), top.indices.tolist(), strict=True)
        ):
            ranked[i] = float(logprobs[k, tokens[i]]), list(zip(ids, values, strict=True))
    for i, row in enumerate(rows):
        if row is not None:
            row.add(tokens[i], *ranked.get(i, ()))
