"""Text folded for comparison - width, case, punctuation and space - with a map back to the original offsets.

`FoldedText` joins the words of a text without what stands between them, so that "Sleeping (600)" and "sleeping 600",
or "喜欢 猫" and "喜欢猫", are equal; word boundaries are kept beside it, so that "art" is not found in "party".
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right

# Scripts written without spaces, and symbols such as emoji: a quotation may begin and end at any character.
_UNSPACED = (
    "\u0e00-\u0eff\u1780-\u17ff\u2190-\u2bff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00016fe0-\U0001b2ff\U0001f000-\U0001faff\U00020000-\U000323af"
)
_SEPARATORS = (
    "\x00-/:-@\\[-`{-\xbf\xd7\xf7\u060c\u061b\u061f\u0964\u0965\u2000-\u206f\u2e00-\u2e7f\u3000-\u303f"
    "\ufe00-\ufe0f\ufe30-\ufe6f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\ufff0-\uffff\U000e0000-\U000e0fff"
)
_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}{_SEPARATORS}]+")
_UNSPACED_CHAR = re.compile(f"[{_UNSPACED}]")

_APOSTROPHES = "'’"

_WORD, _INNER, _FREE, _ENDING = range(4)
"""What a run is: a word, a later part of a word, characters that are all boundaries, or what follows the apostrophe
in "don't" and "Tom's": a quotation may end before that and not begin with it."""


def is_unspaced(char: str) -> bool:
    """Whether `char` belongs to a script without spaces between words, or is a symbol."""
    return char >= "\u0e00" and _UNSPACED_CHAR.match(char) is not None


def glued(text: str, at: int) -> bool:
    """Whether the offset `at` lies within a word of `text`."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if before in _APOSTROPHES:
        return _ends_contraction(text, at)
    return before.isalnum() and after.isalnum() and not is_unspaced(before) and not is_unspaced(after)


class FoldedText:
    """One or several stretches of a text, folded; stretches are a line break apart and never run together."""

    def __init__(self, text: str, stretches: list[tuple[int, int]] | None = None) -> None:
        self._starts: list[int] = []  # per run: offset in `folded`,
        self._origins: list[tuple[int, int]] = []  # where it stands in the text,
        self._kinds: list[int] = []  # and what it is
        self.stretch_starts: list[int] = []
        """Offset in `folded` of each stretch."""
        parts: list[str] = []
        at = 0
        for begin, end in stretches if stretches is not None else [(0, len(text))]:
            self.stretch_starts.append(at)
            for match in _RUN.finditer(text, begin, end):
                raw = match[0]
                if raw.isascii():
                    ending = text[match.start() - 1] in _APOSTROPHES and _ends_contraction(
                        text, match.start()
                    )
                    self._starts.append(at)
                    self._origins.append(match.span())
                    self._kinds.append(_ENDING if ending else _WORD)
                    parts.append(raw.lower())
                    at += len(raw)
                    continue
                for folded, origin, kind in _fold_run(raw, match.start(), text):
                    self._starts.append(at)
                    self._origins.append(origin)
                    self._kinds.append(kind)
                    parts.append(folded)
                    at += len(folded)
            self._starts.append(at)
            self._origins.append((end, end))
            self._kinds.append(_WORD)
            parts.append("\n")
            at += 1
        self.folded = "".join(parts)
        """The folded text; every stretch ends with a line break."""

    def stretch_at(self, at: int) -> int:
        """Index of the stretch that the folded offset `at` lies in."""
        return bisect_right(self.stretch_starts, at) - 1

    def may_begin(self, at: int) -> bool:
        """Whether a quotation may begin at the folded offset `at`."""
        run = bisect_right(self._starts, at) - 1
        return self._kinds[run] == _FREE or (self._starts[run] == at and self._kinds[run] == _WORD)

    def may_end(self, at: int) -> bool:
        """Whether a quotation may end before the folded offset `at`."""
        run = bisect_right(self._starts, at) - 1
        return self._kinds[run] == _FREE or (self._starts[run] == at and self._kinds[run] != _INNER)

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The offsets in the text of the folded `[start, end)`, which is not empty."""
        return self._map(start)[0], self._map(end - 1)[1]

    def _map(self, at: int) -> tuple[int, int]:
        """The character of the text that the folded one at `at` came from, as a span."""
        run = bisect_right(self._starts, at) - 1
        begin, end = self._origins[run]
        if end - begin == self._length(run):
            begin += at - self._starts[run]
            return begin, begin + 1
        return begin, end

    def _length(self, run: int) -> int:
        following = self._starts[run + 1] if run + 1 < len(self._starts) else len(self.folded)
        return following - self._starts[run]


def fold_words(text: str) -> list[str]:
    """The words of `text` and its stretches of unspaced characters, folded; joined, they are `FoldedText.folded`."""
    if text.isascii():
        return _RUN.findall(text.lower())
    return ["".join(part for part, _, _ in _fold_run(raw, 0, "")) for raw in _RUN.findall(text)]


def _fold_run(raw: str, begin: int, text: str) -> list[tuple[str, tuple[int, int], int]]:
    """The parts of a run: (folded, offsets in the text, kind). One part if folding keeps the length."""
    kind = _FREE if is_unspaced(raw[0]) else _ENDING if _ends_contraction(text, begin) else _WORD
    folded = _fold(raw)
    if len(folded) == len(raw):
        return [(folded, (begin, begin + len(raw)), kind)]
    parts: list[tuple[str, tuple[int, int], int]] = []
    at = 0
    while at < len(raw):  # a character with its combining marks at a time: "é" in two characters is one
        after = at + 1
        while after < len(raw) and unicodedata.combining(raw[after]):
            after += 1
        if folded := _RUN_SEPARATORS.sub("", _fold(raw[at:after])):
            parts.append(
                (folded, (begin + at, begin + after), kind if kind == _FREE or not parts else _INNER)
            )
        at = after
    return parts


def _ends_contraction(text: str, at: int) -> bool:
    """Whether the run at `at` is the end of a word such as "don't"."""
    return (
        at >= 2 and text[at - 1] in _APOSTROPHES and text[at - 2].isalnum() and not is_unspaced(text[at - 2])
    )


_RUN_SEPARATORS = re.compile(f"[{_SEPARATORS}]")


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
