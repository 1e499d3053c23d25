"""Fitting text into a budget: what a text costs, where it may be cut, and how a budget is shared.

Costs are whole numbers of quarter tokens. They add up exactly when texts are joined, so that a block built
line by line is known to fit before it is joined.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

QUARTERS = 4
"""Cost units of one token."""

ELLIPSIS = "…"

_LONGEST_WORD = 1000  # what has no boundary in so many characters is no text: go on from the last space

# Written without spaces (Thai, Lao, Tibetan, Myanmar, Khmer, Chinese, Japanese, Yi), and emoji: a cut between
# any two of them cuts no word in two.
_UNSPACED = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\u2e80-\ua4cf"
    r"\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U0001f000-\U0001faff\U00020000-\U0003ffff]"
)


def cost(text: str) -> int:
    """What `text` costs, in quarter tokens: 1 an ASCII character, by its UTF-8 length 2, 4 or 8 any other.

    That is 4 characters a token for English, 2 for Cyrillic, Greek, Arabic or Hebrew, 1 for Chinese and most
    others, and half an emoji.
    """
    length = len(text)
    if text.isascii():
        return length
    ascii_only = len(text.encode("ascii", "ignore"))
    four_bytes = len(text.encode("utf-16-le", "surrogatepass")) // 2 - length
    others = length - ascii_only - four_bytes  # of two or three bytes
    three_bytes = len(text.encode("utf-8", "surrogatepass")) - ascii_only - 4 * four_bytes - 2 * others
    return ascii_only + 2 * others + 2 * three_bytes + 8 * four_bytes


def estimate_tokens(text: str) -> int:
    """An estimate of the tokens of `text`, with no tokenizer at hand: `cost` in whole tokens, rounded up."""
    return -(-cost(text) // QUARTERS)


def last_boundary(text: str, end: int) -> int:
    """The last place in 0..`end` where `text` may be cut: between words, between emoji; 0 if there is none."""
    space = max(0, text.rfind(" ", 0, end))
    for at in range(end, max(space, end - _LONGEST_WORD), -1):
        if _is_boundary(text, at):
            return at
    return space


def _is_boundary(text: str, at: int) -> bool:
    if at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if before.isspace() or after.isspace():
        return True
    if before == "\u200d" or after == "\u200d" or unicodedata.category(after).startswith("M"):
        return False
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U0001f1e6" <= after <= "\U0001f1ff":
        return False  # a skin tone, or perhaps the second half of a flag
    if before in ",;|" and not after.isdigit():
        return True
    return _UNSPACED.match(before) is not None or _UNSPACED.match(after) is not None


def cut(text: str, budget: int) -> str:
    """`text` if it costs `budget` quarter tokens or less, else its longest prefix of whole words and an ellipsis.

    Empty where not even the first word fits.
    """
    if cost(text) <= budget:
        return text
    budget -= cost(ELLIPSIS)
    low, high = 0, min(len(text), max(0, budget))
    while low < high:  # the longest prefix that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(text[:middle]) <= budget else (low, middle - 1)
    kept = text[: last_boundary(text, low)].rstrip(" ,;|")
    return kept + ELLIPSIS if kept else ""


def fair_level(needs: Iterable[int], budget: int) -> int:
    """The largest cap such that the needs, each cut to the cap, fit the budget together.

    Who needs less than an equal share leaves the rest to the others.
    """
    ascending = sorted(needs)
    for i, need in enumerate(ascending):
        left = len(ascending) - i
        if need * left > budget:
            return budget // left
        budget -= need
    return ascending[-1] if ascending else 0
