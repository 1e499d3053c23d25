"""From logits to tokens, and when to stop. Every sample draws from random numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

_NUCLEUS = (256, 8192)
"""Sizes of most nuclei, to be tried before all tokens are ranked, which takes ten times as long."""


def uniforms(seed: int) -> np.random.Generator:
    """The random numbers of one sample, one per token. They depend on the seed alone, not on the device."""
    return np.random.default_rng(seed % 2**64)


def pick(
    logits: Tensor, temperatures: Sequence[float], top_ps: Sequence[float], at: Sequence[float]
) -> list[int]:
    """One token per row of `logits` [rows, vocabulary].

    A row's token is where `at` (0 <= at < 1) falls among the probabilities of its nucleus, the fewest tokens that
    hold `top_p` of the mass, laid end to end in the order of the vocabulary: that order does not change
    when two probabilities nearly tie. Temperature 0 takes the most probable token.
    """
    device = logits.device
    heat = torch.tensor(temperatures, device=device, dtype=torch.float32)
    mass = torch.tensor(top_ps, device=device, dtype=torch.float32)
    where = torch.tensor(at, device=device, dtype=torch.float64)
    logits = logits.float()
    tokens = logits.argmax(dim=-1)
    for rows, of in (
        ([i for i, t in enumerate(temperatures) if t > 0 and top_ps[i] < 1], _from_nucleus),
        ([i for i, t in enumerate(temperatures) if t > 0 and top_ps[i] >= 1], _from_all),
    ):
        if rows:
            chosen = torch.tensor(rows, device=device)
            probabilities = (logits[chosen] / heat[chosen, None]).softmax(dim=-1)
            tokens[chosen] = of(probabilities, mass[chosen], where[chosen])
    return [int(token) for token in tokens.tolist()]


def _from_all(probabilities: Tensor, _: Tensor, where: Tensor) -> Tensor:
    return _fall(probabilities, where)


def _from_nucleus(probabilities: Tensor, mass: Tensor, where: Tensor) -> Tensor:
    picked = torch.zeros(len(mass), dtype=torch.long, device=mass.device)
    left = torch.arange(len(mass), device=mass.device)
    for size in (*_NUCLEUS, probabilities.shape[-1]):
        ranked, tokens = probabilities[left].topk(min(size, probabilities.shape[-1]), dim=-1)
        picked[left] = _from_ranked(ranked, tokens, mass[left], where[left])
        short = ranked.sum(dim=-1) < mass[left]
        left = left[short]
        if size >= probabilities.shape[-1] or not len(left):
            break
    return picked


def _from_ranked(ranked: Tensor, tokens: Tensor, mass: Tensor, where: Tensor) -> Tensor:
    """`ranked` probabilities of `tokens`, largest first."""
    before = ranked.cumsum(dim=-1) - ranked
    kept = ranked.masked_fill(before >= mass[:, None], 0.0)
    kept[:, 0] = ranked[:, 0]
    ids, order = tokens.sort(dim=-1)
    return ids.gather(-1, _fall(kept.gather(-1, order), where)[:, None])[:, 0]


def _fall(probabilities: Tensor, where: Tensor) -> Tensor:
    """Position in which `where` of the total mass falls; never one without any mass."""
    ends = probabilities.cumsum(dim=-1, dtype=torch.float64)
    fallen = torch.searchsorted(ends, (where * ends[:, -1])[:, None], right=True)[:, 0]
    last = (probabilities > 0).cumsum(dim=-1).argmax(dim=-1)
    return fallen.minimum(last)


class Stop:
    """Whether an answer is complete: its last closing element stands outside of any think block."""

    def __init__(self, element: str, pieces: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        """`pieces` are the vocabulary's tokens as text; `element` may be empty: then nothing is complete."""
        self._element = element
        self._decode = decode
        # Decoding is slow and has to be done only where the element may have ended.
        self._ends = {i for i, piece in enumerate(pieces) if element and element[-1] in piece}
        self._tail = len(element) + 8

    def __call__(self, tokens: list[int], *, thinking: bool = False) -> str | None:
        """The text up to the element's end if the newest token has completed it, else None.

        `thinking` says that the prompt has opened a think block.
        """
        if tokens[-1] not in self._ends or self._element not in self._decode(tokens[-self._tail :]):
            return None
        text = self._decode(tokens)
        head, element, _ = text.rpartition(self._element)
        opened, closed = head.rfind("<think>"), head.rfind("</think>")
        if opened > closed or (thinking and closed < 0):
            return None
        return head + element


def next_uniforms(generators: Sequence[np.random.Generator]) -> list[float]:
    """The next random number of each."""
    return [float(generator.random()) for generator in generators]
