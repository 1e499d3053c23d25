"""Words and phrases: tokens with their place in the text, and a trie that finds thousands of phrases in one pass.

Scripts that write words apart (Latin, Cyrillic, ...) are matched word by word, scripts that do not (Han,
kana, Thai, ...) character by character, so that `nurse` is not found in `nursery` and `宝宝` is found in `我的宝宝`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
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
_PHRASE_TOKEN = re.compile(rf"[*_]|{_TOKEN.pattern}")
STOPS = frozenset(unicodedata.normalize("NFKC", _STOPS)) | frozenset(_STOPS)

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


_GROUP = re.compile(r"\(([^()]*)\)(\??)|\{(\d+)\.\.(\d+)\}")
_MACRO = re.compile(r"\{([a-z_]+)\}")
_MOST_READINGS = 2000


def expand(phrase: str, macros: Mapping[str, str]) -> list[str]:
    """All readings of a phrase: `{macro}`, `(a|b)`, `(a|b)?` and `{18..23}` written out.

    Raises `InputError` for an unknown macro and for a phrase with too many readings.
    """
    for _ in range(4):  # macros may use macros, though not themselves
        for name in _MACRO.findall(phrase):
            if name not in macros:
                raise InputError(f"phrase {phrase!r} uses an unknown macro {{{name}}}")
        phrase = _MACRO.sub(lambda m: macros[m[1]], phrase)
    return list(dict.fromkeys(" ".join(reading.split()) for reading in _readings(phrase)))


def _readings(phrase: str) -> list[str]:
    parts: list[list[str]] = []
    position, size = 0, 1
    for group in _GROUP.finditer(phrase):
        if group[1] is None:
            options = [str(n) for n in range(int(group[3]), int(group[4]) + 1)]
        else:
            options = [reading for option in group[1].split("|") for reading in _readings(option)]
            options += [""] if group[2] else []
        parts += [[phrase[position : group.start()]], options]
        position = group.end()
        size *= len(options)
        if size > _MOST_READINGS:
            raise InputError(f"phrase {phrase[:60]!r} has more than {_MOST_READINGS} readings")
    parts.append([phrase[position:]])
    return ["".join(choice) for choice in product(*parts)]


class PhraseTrie:
    """A set of numbered phrases; `find` gives every place where one of them stands.

    In a phrase `word*` is any word that starts so and `_` is any one word.
    """

    def __init__(self, normaliser: Normaliser) -> None:
        self._normaliser = normaliser
        self._root: dict[str, Any] = {}
        self.phrases: list[str] = []

    def add(self, phrase: str) -> int:
        """The number of `phrase`: a new one, or the old one where an equal phrase is there already.

        Raises `InputError` where nothing of the phrase can be matched.
        """
        node = self._root
        keys = [m[0] for m in _PHRASE_TOKEN.finditer(_UNSPACED_STEM.sub("", phrase))]
        if all(k in {"*", ANY} or k in STOPS for k in keys):
            raise InputError(f"phrase {phrase!r} has no word to match")
        for position, raw in enumerate(keys):
            if raw == "*":
                continue
            if raw == ANY:
                node = node.setdefault(ANY, {})
            elif position + 1 < len(keys) and keys[position + 1] == "*":
                node = node.setdefault(_STEMS, {}).setdefault(_fold(raw), {})
            else:
                node = node.setdefault(self._normaliser.key(raw), {})
        if _END not in node:
            node[_END] = len(self.phrases)
            self.phrases.append(phrase)
        number: int = node[_END]
        return number

    def find(self, tokens: Sequence[Token]) -> list[Found]:
        """Every match, overlapping ones too, in order of their first token."""
        found: list[Found] = []
        total = len(tokens)
        root = self._root
        root_stems: dict[str, Any] = root.get(_STEMS, {})
        lengths = sorted({len(stem) for stem in root_stems})
        for first in range(total):
            key, start, _ = tokens[first]
            stack: list[tuple[dict[str, Any], int]] = []
            if (child := root.get(key)) is not None and len(key) and key not in {_STEMS, ANY, _END}:
                stack.append((child, first))
            for length in lengths:
                if length > len(key):
                    break
                if (child := root_stems.get(key[:length])) is not None:
                    stack.append((child, first))
            while stack:
                node, last = stack.pop()
                if (number := node.get(_END)) is not None:
                    found.append(Found(number, first, last, start, tokens[last].end))
                if last + 1 >= total:
                    continue
                following = tokens[last + 1].key
                if (child := node.get(following)) is not None:
                    stack.append((child, last + 1))
                for stem, child in node.get(_STEMS, {}).items():
                    if following.startswith(stem):
                        stack.append((child, last + 1))
                if (child := node.get(ANY)) is not None and following not in STOPS:
                    stack.append((child, last + 1))
        return found
