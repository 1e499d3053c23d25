"""The embedded default backend: no model, no key, no network.

It reads the same messages as any other backend, looks for weighted phrases in the fenced record, and answers in
the same wire format. Every sample sees a bootstrap of the record's lines, so that samples disagree where evidence
is thin. It is the baseline that a language model has to beat.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.lexicon_compile import load_lexicon
from cp_agents.backends.lexicon_draw import answer
from cp_agents.backends.lexicon_read import Reading, read_block
from cp_agents.backends.registry import BackendOptions
from cp_agents.cues import cue_lines
from cp_agents.prompts.render import fenced_block
from cp_agents.schema import Completion
from cp_agents.selection import Line, Part
from cp_agents.taxonomy import Taxonomy
from cp_agents.wire import write_answer

_BLOCKS_KEPT = 64


class LexiconBackend:
    """Answers from curated phrases. Sample i is a function of the messages and `request.seed + i` alone.

    Raises `InputError` where the lexicon file does not fit the taxonomy.
    """

    def __init__(self, taxonomy: Taxonomy, lexicon: Path | None = None) -> None:
        self.lexicon = load_lexicon(taxonomy, lexicon)
        self._read = lru_cache(maxsize=_BLOCKS_KEPT)(self._read_block)

    @property
    def identity(self) -> Identity:
        """`lexicon:TAXONOMY`; the revision covers the lexicon's files and the taxonomy."""
        return Identity(kind="lexicon", model=self.lexicon.taxonomy.name, revision=self.lexicon.revision)

    @property
    def capabilities(self) -> Capabilities:
        """Everything: samples are drawn in one go, from seeds, and nothing can fail for a while."""
        return Capabilities(n=True, seed=True, retries=True)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """Draw the samples of `request`. Tokens and cost are zero; `top_p` and `max_tokens` have no meaning here."""
        started = time.perf_counter()
        block = fenced_block(request.messages)
        seeds = [request.seed + index for index in request.indices]
        answers = answer(self.lexicon, block, self._read(block), seeds, request.temperature)
        latency = (time.perf_counter() - started) / max(1, len(seeds))
        for index, attributes in zip(request.indices, answers, strict=True):
            yield Completion(
                index=index,
                text=write_answer(attributes),
                finish_reason="stop",
                latency_s=latency,
                cost_usd=0.0,
                sampler=self.identity.sampler,
            )

    def choose(self, part: Part) -> list[Line]:
        """The lines that speak loudest for some tag, see `cp_agents.select_history`."""
        block = "\n".join((f"[{part.source}]", *(f"- {line.text}" for line in part.lines)))
        lines = cue_lines(block)
        starts = [line.start for line in lines]
        loudest = [0.0] * len(lines)
        for supports in read_block(self.lexicon, block, lines).supports.values():
            for support in supports:
                row = bisect_right(starts, support.start) - 1
                loudest[row] = max(loudest[row], support.nats)
        speaking = [i for i in range(len(lines)) if loudest[i] > 0]
        return [part.lines[i] for i in sorted(speaking, key=lambda i: -loudest[i])[: part.most]]

    async def aclose(self) -> None:
        """Forget the records that were read last."""
        self._read.cache_clear()

    def _read_block(self, block: str) -> Reading:
        return read_block(self.lexicon, block, cue_lines(block))


def from_spec(rest: str, options: BackendOptions) -> LexiconBackend:
    """`lexicon`, or `lexicon:FILE.yaml` with a lexicon of the user's own."""
    return LexiconBackend(options.taxonomy, Path(rest) if rest else None)
