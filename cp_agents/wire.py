"""The wire format: what a model is asked to write, one element per attribute in taxonomy order.

    <gender><tag>Female</tag><score>4</score><evidence>words from the record</evidence></gender>

One writer serves the one-shot example, the lexicon backend, SFT rows and tests; `parsing.py` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class WireAnswer(NamedTuple):
    """One attribute's answer as it is written."""

    attribute: str
    tag: str
    confidence: int
    evidence: str


def write_answer(answers: Iterable[WireAnswer]) -> str:
    """The answer text for `answers`, one element a line."""
    return "\n".join(
        f"<{a.attribute}><tag>{a.tag}</tag><score>{a.confidence}</score>"
        f"<evidence>{a.evidence}</evidence></{a.attribute}>"
        for a in answers
    )
