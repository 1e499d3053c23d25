"""Words and phrases: tokens with their place in the text, and a trie that finds thousands of phrases in one pass.

Scripts that write words apart (Latin, Cyrillic, ...) are matched word by word, scripts that do not (Han,
kana, Thai, ...) character by character, so that `nurse` is not found in `nursery` and `宝宝` is found in `我的宝宝`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cp_agents.errors import InputError

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_SYMBOLS = "\u2600-\u27bf\u2b50\U0001f000-\U0001faff"
_STOPS = ".,;:!?|/。，；：！？、…·．"
_WORD = rf"[^\W_{_UNSPACED}]+"
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_WORD}(?:['’]{_WORD})*[+#]*|[{_SYMBOLS}]|[{re.escape(_STOPS)}]")
_UNSPACED_STEM = re.compile(rf"(?<=[{_UNSPACED}])\*")  # characters match inside longer words anyway
_PHRASE_TOKEN = re.compile(rf"[*_]|\{{[a-z_]+\}}|{_TOKEN.pattern}")
_LITERAL = re.compile(r"[{}_]")
STOPS = frozenset(unicodedata.normalize("NFKC", stop) for stop in _STOPS)

ANY = "_"
"""In a phrase: exactly one word, whichever."""
_END, _STEMS = "$", "*"


class Token(NamedTuple):
    """One word, character of an unspaced script, emoji or stop, and where it stands in the text."""

    key: str
    start: int
    end: int


class Found(NamedTuple):
    """Phrase number `phrase`, matched by `text[start:end]`; `first` and `last` are token positions, inclusive."""

    phrase: int
    first: int
    last: int
    start: int
    end: int


class Normaliser:
    """One key per word: width, case, spelling variants and simple inflection folded away.

    `inflections` are `(ending, replacement)` pairs, the first that fits a word of four letters or more is
    applied; `spellings` map one word to another; `characters` map one character to another.
    """

    def __init__(
        self,
        inflections: Sequence[tuple[str, str]] = (),
        spellings: Mapping[str, str] | None = None,
        characters: Mapping[str, str] | None = None,
    ) -> None:
        self._inflections = tuple(inflections)
        self._characters = str.maketrans(dict(characters or {}))
        self._known: dict[str, str] = {}
        self._spellings: dict[str, str] = {}
        self._spellings = {
            self._inflect(_fold(k)): self._inflect(_fold(v)) for k, v in (spellings or {}).items()
        }

    def _inflect(self, word: str) -> str:
        word = word.translate(self._characters)
        if len(word) >= 4:
            for ending, replacement in self._inflections:
                if word.endswith(ending):
                    return word[: len(word) - len(ending)] + replacement
        return word

    def key(self, word: str) -> str:
        """The key of one word as it stands in a text or in a phrase."""
        key = self._known.get(word)
        if key is None:
            key = self._inflect(_fold(word))
            key = self._spellings.get(key, key)
            if len(self._known) < 50_000:  # bounded: the words come from other people's texts
                self._known[word] = key
        return key

    def tokens(self, text: str, offset: int = 0) -> list[Token]:
        """All tokens of `text`; `offset` is added to their places."""
        key = self.key
        return [Token(key(m[0]), m.start() + offset, m.end() + offset) for m in _TOKEN.finditer(text)]


def _fold(word: str) -> str:
    return unicodedata.normalize("NFKC", word).replace("’", "'").casefold()


def split_phrases(text: str | Iterable[str]) -> Iterator[str]:
    """The phrases of a list, or of a text in which `;` or a line break stands between them."""
    for chunk in [text] if isinstance(text, str) else text:
        for phrase in re.split(r"[;\n]", chunk) if isinstance(text, str) else [chunk]:
            if phrase.strip():
                yield " ".join(phrase.split())


_PIECE = re.compile(r"\{(\d+)\.\.(\d+)\}|[(|]|\)\??|\{[a-z_]+\}|[^{(|)]+")
_MOST_READINGS = 2000


def expand(phrase: str) -> list[str]:
    """All readings of a phrase: `(a|b)`, `(a|b)?` and `{18..23}` written out; groups may nest. `{name}` stays.

    Raises `InputError` for a group that is not closed and for a phrase with too many readings.
    """
    # one entry per open group: its finished options, and the readings of the option being read
    stack: list[tuple[list[str], list[str]]] = [([], [""])]
    for piece in _PIECE.finditer(phrase):
        done, current = stack[-1]
        text = piece[0]
        if text == "(":
            stack.append(([], [""]))
        elif text == "|":
            stack[-1] = (done + current, [""])
        elif text[0] == ")" and len(stack) > 1:
            stack.pop()
            options = done + current + ([""] if text == ")?" else [])
            stack[-1] = (stack[-1][0], [a + b for a in stack[-1][1] for b in options])
        else:
            options = (
                [text] if piece[1] is None else [str(n) for n in range(int(piece[1]), int(piece[2]) + 1)]
            )
            stack[-1] = (done, [a + b for a in current for b in options])
        if len(stack[-1][1]) > _MOST_READINGS:
            raise InputError(f"phrase {phrase[:60]!r} has more than {_MOST_READINGS} readings")
    if len(stack) > 1:
        raise InputError(f"phrase {phrase!r} has a group that is not closed")
    return list(dict.fromkeys(" ".join(reading.split()) for reading in stack[0][0] + stack[0][1]))


_Node = dict[str, Any]
_Spans = dict[int, list[tuple[str, int]]]


class PhraseTrie:
    """A set of numbered phrases; `find` gives every place where one of them stands.

    In a phrase `word*` is any word that starts so, `_` is any one word, and `{name}` whatever the macro of that
    name matches.
    """

    def __init__(self, normaliser: Normaliser, macros: Mapping[str, str] | None = None) -> None:
        self._normaliser = normaliser
        self._root: _Node = {}
        self._macro_root: _Node = {}
        self._macros = frozenset(macros or {})
        self._stems: dict[int, list[tuple[int, _Node]]] = {}
        self._numbers: dict[str, int] = {}
        for name, pattern in (macros or {}).items():
            for reading in expand(pattern):
                self._insert(self._macro_root, reading, f"{{{name}}}")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, phrase: str, literal: bool = False) -> int:
        """The number of `phrase`, new or as it was. A literal phrase has no groups and no macros.

        Raises `InputError` where it cannot be read, or nothing of it can be matched.
        """
        number = self._numbers.get(phrase)
        if number is None:
            number = self._numbers[phrase] = len(self._numbers)
            for reading in [_LITERAL.sub(" ", phrase)] if literal else expand(phrase):
                self._insert(self._root, reading, number)
        return number

    def _insert(self, node: _Node, phrase: str, label: int | str) -> None:
        keys = [m[0] for m in _PHRASE_TOKEN.finditer(_UNSPACED_STEM.sub("", phrase))]
        if all(k in {"*", ANY} or k in STOPS for k in keys):
            raise InputError(f"phrase {phrase!r} has no word to match")
        for position, raw in enumerate(keys):
            if raw == "*":
                continue
            if raw[0] == "{" and raw[1:-1] not in self._macros:
                raise InputError(f"phrase {phrase!r} uses an unknown macro {raw}")
            if raw == ANY or raw[0] == "{":
                node = node.setdefault(raw, {})
            elif position + 1 < len(keys) and keys[position + 1] == "*":
                node = node.setdefault(_STEMS, {}).setdefault(_fold(raw), {})
            else:
                node = node.setdefault(self._normaliser.key(raw), {})
        self._stems.clear()
        labels: list[int | str] = node.setdefault(_END, [])
        if label not in labels:
            labels.append(label)

    def find(self, tokens: Sequence[Token]) -> list[Found]:
        """Every match, overlapping ones too, in order of their first token."""
        spans: _Spans = {}
        if self._macro_root:
            for first, last, names in self._walk(self._macro_root, tokens, {}):
                spans.setdefault(first, []).extend((name, last) for name in names)
        return [
            Found(number, first, last, tokens[first].start, tokens[last].end)
            for first, last, numbers in self._walk(self._root, tokens, spans)
            for number in numbers
        ]

    def _walk(
        self, root: _Node, tokens: Sequence[Token], spans: _Spans
    ) -> Iterator[tuple[int, int, list[Any]]]:
        """(first token, last token, labels) of every path from the root to a label."""
        total = len(tokens)
        keys = [token.key for token in tokens]
        if (stems := self._stems.get(id(root))) is None:
            stems = self._stems[id(root)] = _stems_by_length(root)
        for first in range(total):
            key = keys[first]
            stack: list[tuple[_Node, int]] = []
            if (child := root.get(key)) is not None:
                stack.append((child, first))
            for length, by_stem in stems:
                if length > len(key):
                    break
                if (child := by_stem.get(key[:length])) is not None:
                    stack.append((child, first))
            for name, last in spans.get(first, ()):
                if (child := root.get(name)) is not None:
                    stack.append((child, last))
            while stack:
                node, last = stack.pop()
                if (labels := node.get(_END)) is not None:
                    yield first, last, labels
                following = last + 1
                if following >= total:
                    continue
                key = keys[following]
                if (child := node.get(key)) is not None:
                    stack.append((child, following))
                for stem, child in node.get(_STEMS, {}).items():
                    if key.startswith(stem):
                        stack.append((child, following))
                if (child := node.get(ANY)) is not None and key not in STOPS:
                    stack.append((child, following))
                for name, end in spans.get(following, ()):
                    if (child := node.get(name)) is not None:
                        stack.append((child, end))


def _stems_by_length(root: _Node) -> list[tuple[int, _Node]]:
    by_length: dict[int, _Node] = {}
    for stem, child in root.get(_STEMS, {}).items():
        by_length.setdefault(len(stem), {})[stem] = child
    return sorted(by_length.items())
