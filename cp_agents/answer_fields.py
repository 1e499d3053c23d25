"""The three fields of one attribute's answer, read as a person would: tag, confidence, evidence.

Both notations of an answer (`answer_markup`, `answer_json`) bring their raw fields here, so that they mean the same.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import NamedTuple

from cp_agents.schema import CONFIDENCE_LEVELS
from cp_agents.taxonomy import Attribute

MAX_PIECES = 5
"""Pieces of evidence that one answer can have; further ones are left out."""
_MAX_TAG = 200
_MAX_SCORE = 60
_MAX_EVIDENCE = 8_000
_MAX_PIECE = 1_000

FIELD_NAMES = {
    "tag": ("tag", "value", "label", "answer", "prediction"),
    "score": ("score", "confidence", "confidencescore", "confidencelevel"),
    "evidence": ("evidence", "evidences", "reason", "reasons", "rationale", "explanation", "justification"),
}
"""Each field of the wire format with the names that models give it, as `compact` writes them, best first."""


class RawAnswer(NamedTuple):
    """One attribute's fields as they stand in the text, before the closed set decides."""

    attribute: str
    tag: str | None
    score: object
    """Text, or a number where JSON has one; None where there is none."""
    evidence: str | tuple[str, ...]
    whole: bool = True
    """False where the text ends inside this answer."""


def compact(name: str) -> str:
    """A name without case, spaces, hyphens and underscores: "Education Level" and "education_level" are equal."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name[:80])).lower()


# --- tag ---------------------------------------------------------------------------------------------------

_INLINE_MARKUP = re.compile(r"</?[A-Za-z]{1,10}\s?/?>")
_TAG_LABEL = re.compile(r"(?:tag|value|label|answer|标签)\s?[:：=]\s?", re.IGNORECASE)
_TAG_DECORATION = " \t\r\n*_`\"'“”‘’「」『』[]{}【】.。,，;；:：!！"


def read_tag(attribute: Attribute, raw: str) -> tuple[str | None, str]:
    """The tag that `raw` names, or None, and `raw` as it is kept: cleaned, at most 200 characters.

    As it stands first, then without entities, inline markup, a label and decoration such as `**"Female"**.`;
    `Attribute.match_tag` has the last word. Of an open attribute the value itself, as it is kept.
    """
    if attribute.open:
        value = attribute.match_tag(raw)
        return value, value or ""
    kept = clean(raw[: 2 * _MAX_TAG].strip())[:_MAX_TAG]
    if (tag := attribute.match_tag(kept)) is not None:
        return tag, kept
    bare = kept
    if "&" in bare:
        bare = html.unescape(bare)
    if "<" in bare:
        bare = _INLINE_MARKUP.sub("", bare)
    bare = bare.strip(_TAG_DECORATION)
    if (label := _TAG_LABEL.match(bare)) is not None:
        bare = bare[label.end() :].strip(_TAG_DECORATION)
    return attribute.match_tag(bare), bare


# --- confidence --------------------------------------------------------------------------------------------

_DIGITS = {str(level): level for level in CONFIDENCE_LEVELS}
_OUT_OF_FIVE = re.compile(r"(?<=\d)\s{0,3}(?:/|out of|of)\s{0,3}5(?:\.0)?(?![\w.])", re.IGNORECASE)
_NUMBERS = re.compile(r"(?:(?<!\w)[-−+])?\d+(?:[.,]\d+)*(?:\s?%)?")
_GLUED = re.compile(r"[A-Za-z]\d|\d[A-Za-z]|[<>≤≥~≈]\s?\d")


def read_score(raw: object) -> int | None:
    """The confidence 1..5 that `raw` says, or None.

    "4/5", "4.0", "**4**", "Score: 4", "４" and "4 (strong)" are 4. A text with no number, with several, or with
    one that is not an integer of 1..5 ("4.5", "80%", "3-4") says none.
    """
    if isinstance(raw, str):
        if (level := _DIGITS.get(raw)) is not None:
            return level
        text = raw.strip()
        if len(text) > _MAX_SCORE:
            return None
        text = _OUT_OF_FIVE.sub("", unicodedata.normalize("NFKC", html.unescape(text)))
        numbers = _NUMBERS.findall(text)
        if len(numbers) != 1 or _GLUED.search(text) is not None:
            return None
        try:
            raw = float(numbers[0])
        except ValueError:  # a percentage, a decimal comma, a thousands separator
            return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 1 <= raw <= 5 or raw != int(raw):
        return None
    return int(raw)


# --- evidence ----------------------------------------------------------------------------------------------

_SEPARATORS = re.compile(r"[;；|\n]")
_QUOTED = r'"[^"\n]*"|“[^”\n]*”|「[^」\n]*」|『[^』\n]*』|«[^»\n]*»'
_QUOTATION = re.compile(_QUOTED)
_QUOTES = re.compile(r'["“「『«]')
_QUOTE_AWARE_PIECE = re.compile(rf"(?:{_QUOTED}|[^;；|\n])+")
_BULLET = re.compile(r"(?:[-*•·–—]|\(?\d{1,2}[.)])\s+")
_EDGES = ' \t\r\n*`"“”「」『』«»'
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_NOTHING = frozenset(
    ("", "none", "no", "nil", "null", "nothing", "na", "n/a", "n.a", "unknown", "no evidence", "none provided",
     "none given", "none found", "not applicable", "not mentioned", "not specified", "no information",
     "no relevant evidence", "no direct evidence", "insufficient evidence",
     "无", "没有", "无证据", "没有证据", "暂无", "不详", "未提及", "未提供", "无相关证据", "无明确证据", "不适用",
     "无信息", "未知", "无法判断")
)  # fmt: skip
_WORDLESS = re.compile(r"[\W_]*\Z")
_SYMBOL = re.compile("[\u2100-\u2bff\U0001f000-\U0001faff]")


def clean(text: str) -> str:
    """`text` with control characters as spaces and lone surrogates as replacement characters."""
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda m: "\ufffd" if m[0] >= "\ud800" else " ", text)


def split_evidence(raw: str | tuple[str, ...]) -> tuple[str, ...]:
    """The pieces of evidence in the order written, at most `MAX_PIECES`, without repetition.

    A text is split on `;`, `；`, `|` and line breaks that stand outside quotation marks. A piece of which at
    least half is quoted is its quotations: `he said "a" and "b"` is `a`, `b`. What only says that there is no
    evidence ("none", "N/A", "无") is no piece.
    """
    pieces: list[str] = []
    for piece in raw if isinstance(raw, tuple) else _divide(raw[:_MAX_EVIDENCE]):
        text = clean(piece[:_MAX_PIECE].strip(_EDGES))
        if (bullet := _BULLET.match(text)) is not None:
            text = text[bullet.end() :].strip(_EDGES)
        if text in pieces or text.casefold().strip(" .。!！-–—()（）[]") in _NOTHING:
            continue
        if _WORDLESS.match(text) is not None and _SYMBOL.search(text) is None:
            continue
        pieces.append(text)
        if len(pieces) == MAX_PIECES:
            break
    return tuple(pieces)


def _divide(text: str) -> list[str]:
    if "&" in text:
        text = html.unescape(text)
    if _QUOTES.search(text) is None:
        return _SEPARATORS.split(text)
    pieces: list[str] = []
    for piece in _QUOTE_AWARE_PIECE.findall(text):
        quotations = [q[1:-1] for q in _QUOTATION.findall(piece)]
        if 2 * sum(len(q) + 2 for q in quotations) >= len(piece.strip()):
            pieces += quotations
        else:
            pieces.append(piece)
    return pieces
