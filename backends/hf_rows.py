"""The rows of a running batch: prompts are read once, and every step gives each row's next logits.

`SharedRows` keeps what rows share once (see hf_attention) and lets rows join and leave at any step. `CopiedRows` works
for every causal model of transformers: a prompt's cache is copied to its rows, and a batch runs until all have left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cp_agents.backends.hf_attention import (
    IMPLEMENTATION,
    PASS,
    OwnTokens,
    Prefill,
    Reading,
    Segment,
    Step,
    UnsupportedAttentionError,
    attend,
)

log = logging.getLogger(__name__)

_PREFIXES_KEPT = 2
_PROBE = 24
"""Tokens of the prompt with which a model's attention is tried out."""
_ROUNDING = 0.1
"""Relative difference of logits up to which two ways of computing them are the same but for rounding (bfloat16)."""


@dataclass(eq=False)
class ReadPrompt:
    """A prompt whose keys and values are at hand."""

    tokens: int
    cached: int
    """How many of these were read from the cache of an earlier prompt."""
    logits: Tensor
    """[vocabulary], for the first token of an answer."""
    place: Any = None
    """Where its rows find it."""


class Rows(Protocol):
    """Sequences that are being generated, in order. Not thread-safe."""

    joinable: bool
    """Whether rows can be added while others run, and to prompts that were read earlier."""

    def read(self, prompts: Sequence[Sequence[int]], prefix: int) -> list[ReadPrompt]:
        """Read prompts whose first `prefix` tokens are equal."""
        ...

    def add(self, prompts: Sequence[ReadPrompt]) -> None:
        """A new row behind the others for each of `prompts`, which may name one several times."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row; the next logits [rows, vocabulary]."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row `order[i]` was; the others leave."""
        ...

    def clear(self) -> None:
        """Forget everything and free the memory."""
        ...


@dataclass
class _Row:
    prefix: Segment | None
    batch: Segment
    sequence: int
    prompt: int
    length: int = 0


class SharedRows:
    """Rows that share the keys and values of their prompts."""

    joinable = True

    def __init__(self, model: Any) -> None:
        self._model = model
        self._like = next(p for p in model.parameters() if p.is_floating_point())
        self._prefixes: dict[tuple[int, ...], Segment] = {}
        self._rows: list[_Row] = []
        self._own = OwnTokens()
        self._levels: list[list[Reading]] | None = None

    def read(self, prompts: Sequence[Sequence[int]], prefix: int) -> list[ReadPrompt]:
        """One forward pass for the prompts, and one for the prefix where it is new."""
        head = tuple(prompts[0][:prefix])
        segment, known = None, prefix
        if head:
            if head not in self._prefixes:
                known = 0
                self._prefixes[head] = self._forward([head], None)[0]
            segment = self._prefixes[head] = self._prefixes.pop(head)
            while len(self._prefixes) > _PREFIXES_KEPT:
                del self._prefixes[next(iter(self._prefixes))]
        batch, logits = self._forward([prompt[prefix:] for prompt in prompts], segment)
        return [
            ReadPrompt(len(prompt), known if i == 0 else prefix, logits[i], (segment, batch, i))
            for i, prompt in enumerate(prompts)
        ]

    def add(self, prompts: Sequence[ReadPrompt]) -> None:
        """Costs nothing: the rows read what is there."""
        for prompt in prompts:
            prefix, batch, sequence = prompt.place
            self._rows.append(_Row(prefix, batch, sequence, prompt.tokens))
        self._levels = None

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One forward pass over all rows."""
        if self._levels is None:
            self._levels = [
                self._readings([row.prefix for row in self._rows], [0] * len(self._rows)),
                self._readings([row.batch for row in self._rows], [row.sequence for row in self._rows]),
            ]
        self._own.prepare([row.length for row in self._rows], self._like)
        positions = [[row.prompt + row.length] for row in self._rows]
        logits = self._call([[token] for token in tokens], positions, Step(self._own, self._levels))
        for row in self._rows:
            row.length += 1
        return logits[:, -1]

    def keep(self, order: Sequence[int]) -> None:
        """Moves only the rows whose place changes."""
        if len(order) == len(self._rows) and all(i == old for i, old in enumerate(order)):
            return
        moves = [(old, new) for new, old in enumerate(order) if old != new and self._rows[old].length]
        if moves:
            self._own.move(*zip(*moves, strict=True))
        self._rows = [self._rows[old] for old in order]
        self._levels = None
        if not self._rows:
            self._own.clear()

    def clear(self) -> None:
        """Rows, prefixes and the memory of both."""
        self._rows, self._levels = [], None
        self._prefixes.clear()
        self._own.clear()

    def _readings(self, segments: Sequence[Segment | None], sequences: Sequence[int]) -> list[Reading]:
        readers: dict[int, tuple[Segment, list[list[int]]]] = {}
        for row, (segment, sequence) in enumerate(zip(segments, sequences, strict=True)):
            if segment is not None:
                empty: list[list[int]] = [[] for _ in segment.keys[0]]
                readers.setdefault(id(segment), (segment, empty))[1][sequence].append(row)
        return [
            Reading(segment, rows, len(segments), self._like.device) for segment, rows in readers.values()
        ]

    def _forward(self, prompts: Sequence[Sequence[int]], behind: Segment | None) -> tuple[Segment, Tensor]:
        """Keys and values of `prompts` [prompts, ..], and the logits behind the last token of each."""
        lengths = [len(prompt) for prompt in prompts]
        longest, before = max(lengths), 0 if behind is None else behind.keys[0].shape[2]
        reading = Prefill(lengths, behind, self._like)
        ids = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        ends = sorted({length - 1 for length in lengths})
        positions = [list(range(before, before + longest))] * len(prompts)
        logits = self._call(ids, positions, reading, torch.tensor(ends, device=self._like.device))
        at = [ends.index(length - 1) for length in lengths]
        return reading.read, logits[list(range(len(prompts))), at]

    def _call(
        self,
        ids: list[list[int]],
        positions: list[list[int]],
        attention: Prefill | Step,
        keep: Tensor | int = 0,
    ) -> Tensor:
        device = self._like.device
        logits: Tensor = self._model(
            input_ids=torch.tensor(ids, device=device),
            position_ids=torch.tensor(positions, device=device),
            use_cache=False,
            logits_to_keep=keep,
            **{PASS: attention},
        ).logits
        return logits


class CopiedRows:
    """Rows with a cache of their own, as transformers keeps it."""

    joinable = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._cache: Any = None
        self._seen: list[list[int]] = []
        """Attention mask of each row: 0 for padding, which is on the left."""

    def read(self, prompts: Sequence[Sequence[int]], prefix: int) -> list[ReadPrompt]:
        """One forward pass; what prompts have in common is read again for each."""
        longest = max(map(len, prompts))
        self._seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._cache = None
        logits = self._call(
            [[*[0] * (longest - len(prompt)), *prompt] for prompt in prompts],
            [[max(0, i - (longest - len(prompt))) for i in range(longest)] for prompt in prompts],
        )
        return [ReadPrompt(len(prompt), 0, logits[i], i) for i, prompt in enumerate(prompts)]

    def add(self, prompts: Sequence[ReadPrompt]) -> None:
        """Copies each prompt's cache to its rows."""
        self._select([prompt.place for prompt in prompts])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """One forward pass over all rows."""
        positions = [[sum(seen)] for seen in self._seen]
        for seen in self._seen:
            seen.append(1)
        return self._call([[token] for token in tokens], positions)

    def keep(self, order: Sequence[int]) -> None:
        """Copies the caches of the rows that stay."""
        if not order:
            self.clear()
        elif list(order) != list(range(len(self._seen))):
            self._select(order)

    def clear(self) -> None:
        """Forget the batch."""
        self._cache, self._seen = None, []

    def _select(self, order: Sequence[int]) -> None:
        self._cache.reorder_cache(torch.tensor(list(order), device=self._device))
        self._seen = [list(self._seen[old]) for old in order]

    def _call(self, ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        said = self._model(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(self._seen, device=self._device),
            position_ids=torch.tensor(positions, device=self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = said.past_key_values
        logits: Tensor = said.logits
        return logits[:, -1]


def rows_for(model: Any) -> Rows:
    """Shared rows where the model's attention allows it, which a short prompt finds out; else copied rows."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
    before = model.config._attn_implementation
    prompt = [(7 * i + 3) % min(1000, model.config.get_text_config().vocab_size) for i in range(_PROBE)]
    try:
        with torch.inference_mode():
            copied = CopiedRows(model)
            expected = _continue(copied, prompt, 0)
            model.set_attn_implementation(IMPLEMENTATION)
            shared = SharedRows(model)
            found = _continue(shared, prompt, _PROBE // 2)
            difference = float((found - expected).norm() / expected.norm())
        shared.clear()
        if difference > _ROUNDING:
            raise UnsupportedAttentionError("its answers would differ")
    except (UnsupportedAttentionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        model.set_attn_implementation(before)
        log.warning(
            "%s: the samples of a record cannot share its prompt (%s); each gets a copy, which is slower",
            type(model).__name__,
            error,
        )
        return CopiedRows(model)
    return shared


def _continue(rows: Rows, prompt: Sequence[int], prefix: int) -> Tensor:
    """Logits behind `prompt` and a token more, of two rows."""
    (read,) = rows.read([prompt], prefix)
    rows.add([read, read])
    return torch.cat([read.logits[None], rows.step([1, 2])]).float()
