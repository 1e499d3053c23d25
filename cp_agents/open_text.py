"""Free-text values of open attributes: how one is read, and when two of them mean the same.

Nothing here needs a model or a corpus: whether two values are alike depends on these two alone, so that one record in
the graph, a replay of ten thousand and a table over all users judge alike.

    alike(A, B) = shared words / all words of the two

Words count as shared in part where they begin alike and have most pairs of letters in common ("design", "designer"). A
value that denies ("not married") is never like one that does not. At `THRESHOLD`, more than two thirds, spelling,
inflection and order make no difference, and a word more or less does among four and not among two: "teacher" and "high
school teacher" are two answers. Joining these, too, cost accuracy where it was measured (docs/beyond.md). Synonyms
("lawyer", "attorney") are beyond letters.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from functools import lru_cache

from cp_agents.schema import NA

MOST_WORDS = 5
"""What the prompt asks for at most."""
MOST_CHARS = 80
"""Longer values are cut at a word."""
THRESHOLD = 0.7
"""Similarity from which values are joined, see `cp_agents.open_sets`."""

_LEAST_WORD, _SAME_START = 0.6, 3
_DECIMALS = 9

_NA_WORDS = frozenset(
    ("na", "n/a", "n.a", "none", "nothing", "null", "nil", "unknown", "unknown(na)", "unclear", "undetermined",
     "unspecified", "not specified", "not stated", "not mentioned", "not given", "not known", "not available",
     "not applicable", "not clear", "not sure", "no information", "no evidence", "not enough information",
     "insufficient information", "insufficient evidence", "cannot be determined", "can't be determined",
     "cannot determine", "cannot tell", "can't tell", "cannot say", "the record does not tell",
     "无", "没有", "未知", "不详", "不明", "不确定", "未提及", "未提供", "无法判断", "无法确定",
     "无信息", "记录没有说明")
)  # fmt: skip
_EDGES = " \t\r\n*_`\"'“”‘’「」『』【】[]{}<>＜＞.。,，;；:：!！?？|\\/=~–—-"
_LEAD = " +@#"  # what a spreadsheet would take for a formula, among others
_LABEL = re.compile(r"(?:tag|value|label|answer|标签|答案)\s?[:：=]\s?", re.IGNORECASE)
_MARKER = re.compile(r"(?:\(?\d{1,2}[.)]|[-•·])\s+(?=\S)")
_MARKUP = re.compile(r"<[^<>]{0,40}>")
_ANGLE = re.compile(r"[<>＜＞]")
_JOINERS = "\u200c\u200d"
_BREAKS = ("Cc", "Cs", "Zl", "Zp", "Zs")
_MOST_READ = 5 * MOST_CHARS


def read_value(raw: str) -> str | None:
    """The value that a model or a person wrote: one line, bounded, without mark-up and decoration.

    NA for what says that there is none, None where nothing is left. Read again it is the same.
    """
    text, before = raw[:_MOST_READ], None
    while text != before:  # every round takes something away
        text, before = _cleaned(text), text
    if not text:
        return None
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").strip(" .")
    return NA if plain in _NA_WORDS else text


def _cleaned(text: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    text = _ANGLE.sub(" ", _MARKUP.sub(" ", text))
    if not text.isprintable():
        visible = (c for c in text if unicodedata.category(c) != "Cf" or c in _JOINERS)
        text = "".join(" " if unicodedata.category(c) in _BREAKS else c for c in visible)
    text = " ".join(text.split()).strip(_EDGES)
    for pattern in (_MARKER, _LABEL):
        begins = pattern.match(text)
        if begins is not None and (inner := text[begins.end() :].strip(_EDGES)):
            text = inner
    text = text.lstrip(_EDGES + _LEAD).rstrip(_EDGES)
    if len(text) > MOST_CHARS:
        text = (text[: MOST_CHARS + 1].rpartition(" ")[0] or text[:MOST_CHARS]).rstrip(_EDGES)
    opened = text.rfind("(")
    if opened > 0 and ")" not in text[opened:]:
        text = text[:opened].rstrip(_EDGES)
    return text


# --- words

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*[+#]*")
_BRACKETS = re.compile(r"\([^()]*\)")
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_EMPTY = frozenset(
    ("a", "an", "the", "of", "in", "at", "on", "for", "to", "and", "or", "with", "etc", "likely", "probably",
     "possibly", "perhaps", "maybe", "的", "和", "与")
)  # fmt: skip
_DENIES = frozenset(("not", "no", "non", "never", "without", "isn't", "don't", "doesn't"))
_DENYING = frozenset("不没")


@lru_cache(maxsize=50_000)
def words_of(value: str) -> tuple[str, ...]:
    """The words by which a value is compared, in alphabetical order: equal words are one value.

    Case, width, accents of Latin letters, punctuation, small words and the plural s are folded away, and what stands in
    brackets where there is more. A run of Chinese characters or kana is its pairs of characters.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold()).replace("’", "'")
    outside = _BRACKETS.sub(" ", text)
    tokens = _TOKEN.findall(outside) or _TOKEN.findall(text)
    words: list[str] = []
    for token in tokens:
        at = 0
        for run in _IDEOGRAPHS.finditer(token):
            words += [token[at : run.start()], *_pairs(run[0])]
            at = run.end()
        words.append(token[at:])
    kept = [_stem(word) for word in words if word and word not in _EMPTY]
    return tuple(sorted(set(kept))) or tuple(sorted({w for w in words if w})) or (text.strip(),)


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] if len(run) > 1 else [run]


def _stem(word: str) -> str:
    """Without accents, possessive and plural s, as far as letters tell."""
    if word in _DENIES:
        return word
    if not word.isascii():
        decomposed = unicodedata.normalize("NFKD", word)
        plain = "".join(c for c in decomposed if not unicodedata.combining(c))
        word = plain if plain.isascii() else word
    word = word.replace("'", "")
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 3 and word.isascii() and word[-1] == "s" and word[-2] not in "sui" and word.isalpha():
        return word[:-1]
    return word


# --- likeness


@lru_cache(maxsize=50_000)
def alike(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    """How alike two values are, 0..1, by their `words_of`; symmetric, and 1 for equal words."""
    if a == b:
        return 1.0
    if _denies(a) != _denies(b):
        return 0.0
    left, right = [w for w in a if w not in b], [w for w in b if w not in a]
    shared = float(len(a) - len(left))
    for likeness, one, other in sorted(
        ((_word_likeness(one, other), one, other) for one in left for other in right),
        key=lambda pair: (-pair[0], min(pair[1:]), max(pair[1:])),
    ):
        if likeness < _LEAST_WORD:
            break
        if one in left and other in right:
            shared += likeness
            left.remove(one)
            right.remove(other)
    return round(shared / (len(a) + len(b) - shared), _DECIMALS)


def _denies(words: tuple[str, ...]) -> bool:
    return any(word in _DENIES or word[:1] in _DENYING for word in words)


def _word_likeness(a: str, b: str) -> float:
    """Dice's coefficient of the pairs of letters; 0 for words that begin otherwise or hold digits."""
    if a[:_SAME_START] != b[:_SAME_START] or min(len(a), len(b)) < _SAME_START or not (a + b).isalpha():
        return 0.0
    first, second = Counter(zip(f"^{a}", f"{a}$", strict=True)), Counter(zip(f"^{b}", f"{b}$", strict=True))
    return 2 * (first & second).total() / (first.total() + second.total())


def starts_of(words: tuple[str, ...]) -> set[str]:
    """How its words begin: values without a common start are not alike at all."""
    return {word[:_SAME_START] for word in words}


def same_meaning(a: str, b: str) -> bool:
    """Whether two values are alike enough to be one."""
    return alike(words_of(a), words_of(b)) >= THRESHOLD
