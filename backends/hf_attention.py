"""Attention of many rows over one copy of what they share.

The M samples of a record read the same prompt, and all records the same instructions. A copy of these keys and values
per row would cost M times the memory and, on a CPU, most of the time of a step. So each is kept once, and a row's
attention is put together from its parts - instructions, record, own tokens - by their log-sum-exp, which is exact.

Works for any model that attends through the attention interface of transformers. Variants that are not plain softmax
attention (sliding windows, soft caps, sinks, layers that share keys) raise `UnsupportedAttentionError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

IMPLEMENTATION = "cp_agents_shared"
"""The name under which transformers knows `attend`."""
PASS = "cp_agents_pass"
"""The model's keyword argument that carries the `Pass`."""
_VARIANTS = ("sliding_window", "softcap", "s_aux", "position_bias")


class UnsupportedAttentionError(Exception):
    """The model's attention is of a kind that cannot be put together from parts."""


class Pass(Protocol):
    """What one forward pass does in each layer."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of `query` [batch, heads, tokens, dim] over what it may see, `key` and `value` included."""
        ...


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function to register with transformers; the pass at hand sees to masks and cached tokens."""
    if variant := next((name for name in _VARIANTS if kwargs.get(name) is not None), None):
        raise UnsupportedAttentionError(f"its attention has a {variant}")
    if PASS not in kwargs:
        raise UnsupportedAttentionError("it does not hand arguments on to its attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = kwargs[PASS](module.layer_idx, query, key, value, scale)
    return out.transpose(1, 2).contiguous(), None


@dataclass(eq=False)
class Segment:
    """Keys and values of one or several token sequences, padded on the right to one length.

    `keys` and `values` per layer [sequences, key heads, tokens, dim]; `hidden` [sequences, 1, 1, tokens] is what to
    add to scores: 0, and -inf where there is padding (None where there is none).
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor | None


class Prefill:
    """Reads prompts, padded on the right to one length, behind an optional segment of one sequence.

    Padding needs no mask here: it stands behind all that is real, and attention looks back.
    """

    def __init__(self, lengths: Sequence[int], behind: Segment | None, like: Tensor) -> None:
        self._behind = behind
        self._mask: Tensor | None = None
        longest = max(lengths)
        if behind is not None:
            before = behind.keys[0].shape[2]
            self._mask = torch.ones(longest, before + longest, dtype=torch.bool, device=like.device).tril(
                before
            )
        self.read = Segment([], [], _hidden(lengths, longest, like))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Keep this layer's keys and values, and attend."""
        if layer != len(self.read.keys):
            raise UnsupportedAttentionError("its layers share keys")
        self.read.keys.append(key.contiguous())
        self.read.values.append(value.contiguous())
        if self._behind is not None:
            key = torch.cat([self._behind.keys[layer].expand(len(key), -1, -1, -1), key], dim=2)
            value = torch.cat([self._behind.values[layer].expand(len(value), -1, -1, -1), value], dim=2)
        group = query.shape[1] // key.shape[1]
        if group > 1:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask, is_causal=self._mask is None, scale=scale
        )


class Reading:
    """Which rows read a segment. `rows[i]` are the rows that read its sequence i; each row reads at most one."""

    def __init__(
        self, segment: Segment, rows: Sequence[Sequence[int]], total: int, device: torch.device
    ) -> None:
        self.segment = segment
        self._shape = (len(rows), max(map(len, rows)))
        flat = [row for sequence in rows for row in sequence]
        self._all_in_order = len(rows) == 1 and flat == list(range(total))
        self._rows = torch.tensor(flat, device=device)
        # Sequences with fewer rows than others are padded with row 0, whose result is then left out.
        padded = [[*sequence, *[0] * (self._shape[1] - len(sequence))] for sequence in rows]
        self._padded = torch.tensor(padded, device=device).flatten()
        width = self._shape[1]
        real = [i * width + j for i, sequence in enumerate(rows) for j in range(len(sequence))]
        self._real = None if len(real) == len(self._padded) else torch.tensor(real, device=device)

    def into(self, out: Tensor, weight: Tensor, layer: int, query: Tensor, scale: float) -> None:
        """Write what the rows read to `out` [rows, key heads, group, dim] and its log-sum-exp to `weight`."""
        sequences, width = self._shape
        _, heads, group, dim = query.shape
        chosen = query if self._all_in_order else query.index_select(0, self._padded)
        chosen = chosen.view(sequences, width, heads, group, dim).transpose(1, 2)
        part, part_weight = _partial(
            chosen.reshape(sequences, heads, width * group, dim),
            self.segment.keys[layer],
            self.segment.values[layer],
            self.segment.hidden,
            scale,
        )
        part = part.view(sequences, heads, width, group, -1).transpose(1, 2).flatten(0, 1)
        part_weight = part_weight.view(sequences, heads, width, group).transpose(1, 2).flatten(0, 1)
        if self._real is not None:
            part, part_weight = part.index_select(0, self._real), part_weight.index_select(0, self._real)
        out.index_copy_(0, self._rows, part.to(out.dtype))
        weight.index_copy_(0, self._rows, part_weight)


class Step:
    """One token of every row: reads the row's own tokens and, level by level, the segments above them."""

    def __init__(self, own: OwnTokens, levels: Sequence[Sequence[Reading]]) -> None:
        self._own = own
        self._levels = [level for level in levels if level]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store this layer's new keys and values, and attend. `query` is [rows, heads, 1, dim]."""
        rows, heads, _, dim = query.shape
        query = query.reshape(rows, key.shape[1], -1, dim)
        keys, values, hidden = self._own.append(layer, key, value)
        own, own_weight = _partial(query, keys, values, hidden, scale)
        outs = own.new_zeros((len(self._levels) + 1, *own.shape), dtype=torch.float32)
        weights = own_weight.new_full((len(self._levels) + 1, *own_weight.shape), -torch.inf)
        outs[0], weights[0] = own, own_weight
        for number, level in enumerate(self._levels, 1):
            for reading in level:
                reading.into(outs[number], weights[number], layer, query, scale)
        mixed = (outs * weights.softmax(dim=0).unsqueeze(-1)).sum(dim=0)
        return mixed.to(query.dtype).view(rows, heads, 1, -1)


class OwnTokens:
    """Keys and values of the tokens that each row has generated: per layer [room for rows, key heads, tokens, dim]."""

    _BLOCK = 32
    """Attention runs over whole blocks, so that its shapes stay the same for as many steps."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows: Tensor
        self._at: Tensor
        self._hidden: Tensor
        self._used = 0

    def prepare(self, lengths: Sequence[int], like: Tensor) -> None:
        """Make room for one more token of every row; row i has `lengths[i]` so far."""
        self._at = torch.tensor(lengths, device=like.device)
        self._rows = torch.arange(len(lengths), device=like.device)
        self._used = (max(lengths) // self._BLOCK + 1) * self._BLOCK
        self._hidden = _hidden([length + 1 for length in lengths], self._used, like, always=True)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store the new token of every row; keys, values and mask of all its tokens."""
        if layer == len(self._keys):
            self._keys.append(key.new_zeros((0, key.shape[1], 0, key.shape[3])))
            self._values.append(value.new_zeros((0, value.shape[1], 0, value.shape[3])))
        for store, new in ((self._keys, key), (self._values, value)):
            have = store[layer]
            if have.shape[0] < len(new) or have.shape[2] < self._used:
                rows = max(len(new), have.shape[0])
                tokens = max(self._used, 2 * have.shape[2] if have.shape[2] < self._used else have.shape[2])
                store[layer] = pad(have, (0, 0, 0, tokens - have.shape[2], 0, 0, 0, rows - have.shape[0]))
            store[layer][self._rows, :, self._at] = new[:, :, 0]
        rows = len(key)
        return (
            self._keys[layer][:rows, :, : self._used],
            self._values[layer][:rows, :, : self._used],
            self._hidden,
        )

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Row `targets[i]` becomes what row `sources[i]` was."""
        for store in (self._keys, self._values):
            for layer in store:
                layer[list(targets)] = layer[list(sources)]

    def clear(self) -> None:
        """Free the memory."""
        self._keys.clear()
        self._values.clear()


def _hidden(lengths: Sequence[int], longest: int, like: Tensor, *, always: bool = False) -> Tensor | None:
    """[sequences, 1, 1, longest]: 0 up to each length, -inf behind it; None where nothing is hidden."""
    if min(lengths) == longest and not always:
        return None
    at = torch.arange(longest, device=like.device)
    ends = torch.tensor(lengths, device=like.device)
    hidden = torch.zeros(len(lengths), longest, dtype=like.dtype, device=like.device)
    return hidden.masked_fill_(at >= ends[:, None], -torch.inf)[:, None, None]


def _partial(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, and its log-sum-exp [.., queries] in float32, to be mixed with other parts."""
    if query.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        # The public function does not hand out the log-sum-exp that it computes.
        out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=hidden, scale=scale
        )
        return out, weight
    return _plain_partial(query, key, value, hidden, scale)


def _plain_partial(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    scores = (query @ key.transpose(-1, -2)).float().mul_(scale)
    if hidden is not None:
        scores += hidden
    weight = scores.logsumexp(dim=-1)
    return scores.sub_(weight.unsqueeze(-1)).exp_().to(value.dtype) @ value, weight
