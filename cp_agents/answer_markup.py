"""Finds the answers in whatever a model wrote around them, whichever notation they are in. Linear time.

Which text may be an answer, so that what a record says cannot pass for one:

1. What stands inside an attribute's element is never another attribute's answer. Elements are paired like
   brackets, so that a quoted `<age>...</age>` inside evidence stays text.
2. Text of a record holds no line break. So an element that begins a line is the model's own, and ends
   whatever before it was left open; one within a line does not.
3. If an element is closed again further on in its line (quoted text that closes `</evidence></gender>` leaves
   the true closing tags behind), all between belongs to it.
4. Think blocks count only outside elements, and answers inside them never.
5. JSON inside an element, and elements inside JSON, are text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from cp_agents.answer_fields import RawAnswer, compact
from cp_agents.answer_json import read_json
from cp_agents.answer_tokens import THOUGHTS, Kind, Layout, Token, line_breaks, pair, tokenise

_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_MAX_FIELD = 400
"""Characters of a tag or score element that are looked at."""
_MAX_FAULTS = 16
"""JSON values that do not parse, before the rest of the text is no longer searched for JSON."""
_XML_ATTRIBUTE = re.compile(r"""([\w:-]{1,30})\s?=\s?("[^"]*"|'[^']*'|[^\s"'>]+)""")
_THOUGHT_TAG = re.compile(rf"</?\s?(?:{'|'.join(THOUGHTS)})\s?>", re.IGNORECASE)
_BOX_TAG = re.compile(r"<\s?/?\s?box\s?>", re.IGNORECASE)


class Scan(NamedTuple):
    """What a text holds."""

    answers: list[RawAnswer]
    """In the order written; an attribute may occur several times."""
    reasoning: str
    """What stands in think blocks."""
    visible: str
    """The text without think blocks."""
    unfinished: bool = False
    """True where a think block is never closed: the answer after it did not come."""


def scan_well_formed(text: str, layout: Layout) -> Scan | None:
    """The scan of a text that is nothing but complete elements, each attribute once, or None for any other text.

    Gives what `scan` gives, several times faster: most answers are of this kind.
    """
    answers: list[RawAnswer] = []
    at = 0
    while (element := layout.well_formed.match(text, at)) is not None:
        attribute, tag, score, evidence = element.groups()
        answers.append(RawAnswer(attribute, tag, score, evidence))
        at = element.end()
    if at != len(text) or not answers or len({a.attribute for a in answers}) != len(answers):
        return None
    return Scan(answers, "", text)


def scan(text: str, layout: Layout) -> Scan:
    """Find all answers in `text`, in either notation. Never raises."""
    return _Scanner(text, layout).run()


class _Found(NamedTuple):
    answer: RawAnswer
    start: int
    end: int


class _Scanner:
    def __init__(self, text: str, layout: Layout) -> None:
        self.text = text
        self.layout = layout
        # Full-width markup is read as markup; the narrow twin has the same offsets, fields are cut from the original.
        self.plain = text if text.isascii() else text.translate(_NARROW)
        self.tokens = tokenise(self.plain, layout)
        self.pairs = pair(self.tokens)
        self.breaks = line_breaks(self.tokens)

    def run(self) -> Scan:
        tokens = self.tokens
        elements: list[_Found] = []
        latest: dict[str, int] = {}
        line_first = 0  # index in `elements` of the last one that begins a line
        objects: list[RawAnswer] = []
        thoughts: list[tuple[int, int]] = []
        faults, at, i = 0, 0, 0
        while i < len(tokens):
            token = tokens[i]
            if token.start < at:  # inside a JSON value
                i += 1
            elif token.kind is Kind.ATTRIBUTE and not token.closes:
                found, i = self._element(i)
                name = token.name
                if token.begins_line:
                    line_first = len(elements)
                elif self._is_live(elements, latest, name, line_first):
                    before = elements[latest[name]]
                    if self.plain.find("\n", before.end, found.start) < 0:
                        del elements[latest[name] + 1 :]
                latest[name] = len(elements)
                elements.append(found)
            elif token.kind is Kind.ATTRIBUTE:
                if self._is_live(elements, latest, token.name, line_first):
                    del elements[latest[token.name] + 1 :]
                i += 1
            elif token.kind is Kind.THOUGHT and i in self.pairs:
                close = self.pairs[i]
                end = tokens[close].end if close < len(tokens) else len(self.text)
                thoughts.append((token.start, end))
                if close >= len(tokens):
                    return self._result(elements, objects, thoughts, unfinished=True)
                i = close + 1
            elif token.kind is Kind.THOUGHT and token.closes:
                # Chat templates may open the block in the prompt: then the text begins inside it.
                if token.begins_line or token.ends_line or not elements:
                    elements, objects, latest, line_first = [], [], {}, 0
                    thoughts = [(0, token.end)]
                i += 1
            elif token.kind is Kind.JSON and faults < _MAX_FAULTS:
                answers, end, sound = self._json(token.start)
                objects += answers
                faults += not sound
                if sound or answers:
                    at = end
                i += 1
            else:
                i += 1
        return self._result(elements, objects, thoughts)

    @staticmethod
    def _is_live(elements: list[_Found], latest: dict[str, int], name: str, line_first: int) -> bool:
        """Whether an element of `name` was found since the last one that begins a line (that one included)."""
        index = latest.get(name, -1)
        return line_first <= index < len(elements) and elements[index].answer.attribute == name

    def _result(
        self,
        elements: list[_Found],
        objects: list[RawAnswer],
        thoughts: list[tuple[int, int]],
        *,
        unfinished: bool = False,
    ) -> Scan:
        marked = [e.answer for e in elements]
        # One notation speaks: a record quoted beside an answer may look like the other.
        answers = objects if objects and not any(a.tag and a.score for a in marked) else marked
        edges = [0, *(edge for span in thoughts for edge in span), len(self.text)]
        visible = "".join(self.text[a:b] for a, b in list(pairwise(edges))[::2])
        reasoning = "\n".join(self.text[a:b] for a, b in thoughts)
        return Scan(answers, _THOUGHT_TAG.sub("\n", reasoning).strip(), visible, unfinished)

    # --- one element -----------------------------------------------------------------------------------

    def _element(self, first: int) -> tuple[_Found, int]:
        """The element that token `first` opens, and the index of the token to go on with."""
        tokens, text = self.tokens, self.text
        opener = tokens[first]
        fields = self._xml_fields(opener) if "=" in opener.xml_attributes else {}
        if opener.empty:
            return self._found(opener, fields, opener.end, True), first + 1
        closed = self.pairs.get(first)
        stop = len(tokens) if closed is None else closed
        boxes: list[str] = []
        whole = closed is not None
        i = first + 1
        while i < stop:
            token = tokens[i]
            if token.kind in (Kind.TAG, Kind.SCORE):
                following = self._next_markup(i)
                if token.opens:
                    fields.setdefault(token.name, self._slice(token.end, following))
                i = following
            elif token.kind is Kind.EVIDENCE and token.opens:
                end = self.pairs.get(i, stop)
                if end >= stop and closed is None:
                    end = self.breaks[i]
                    fields.setdefault("evidence", text[token.end : self._start(end)])
                    return self._found(opener, fields, self._start(end), end < len(tokens)), end
                fields.setdefault("evidence", text[token.end : self._start(end)])
                whole = True
                i = end + 1
            elif token.kind is Kind.ATTRIBUTE and closed is None:
                return self._found(opener, fields, token.start, True, boxes), i
            elif token.kind is Kind.ATTRIBUTE or token.kind is Kind.THOUGHT:
                if closed is None and self.breaks[i] == i:
                    return self._found(opener, fields, token.start, True, boxes), i
                i = self.pairs.get(i, i) + 1
            elif token.kind is Kind.BOX and token.opens:
                boxes.append(self._slice(token.end, i + 1))
                i += 1
            elif token.kind is Kind.BOX and closed is None and not boxes:
                return self._found(opener, fields, token.start, True), i + 1
            else:
                i += 1
        if "tag" not in fields and not boxes:
            fields["tag"] = self._slice(opener.end, first + 1)
        end = len(text) if closed is None else tokens[closed].end
        return self._found(opener, fields, end, whole, boxes), stop + 1

    @staticmethod
    def _found(
        opener: Token, fields: dict[str, str], end: int, whole: bool, boxes: list[str] | None = None
    ) -> _Found:
        if boxes and "tag" not in fields:  # tag, score and evidence, each in a box and without a name
            fields = dict(zip(("tag", "score", "evidence"), boxes, strict=False))
        answer = RawAnswer(
            opener.name, fields.get("tag"), fields.get("score"), fields.get("evidence", ""), whole
        )
        return _Found(answer, opener.start, end)

    def _xml_fields(self, opener: Token) -> dict[str, str]:
        start = opener.end - 1 - len(opener.xml_attributes)
        fields: dict[str, str] = {}
        for match in _XML_ATTRIBUTE.finditer(self.plain, start, opener.end - 1):
            kind, name = self.layout.kinds.get(compact(match[1]), (None, ""))
            if kind in (Kind.TAG, Kind.SCORE, Kind.EVIDENCE):
                value = self.text[match.start(2) : match.end(2)]
                fields.setdefault(name, value[1:-1] if match[2][0] in "\"'" else value)
        return fields

    def _json(self, start: int) -> tuple[list[RawAnswer], int, bool]:
        text = self.text if self.text[start] in "{[" else self.plain
        answers, end, sound = read_json(text, start, self.layout.attributes)
        if not sound and text is not self.plain:
            narrow = read_json(self.plain, start, self.layout.attributes)
            if narrow[2]:
                return narrow
        return answers, end, sound

    def _next_markup(self, i: int) -> int:
        """Index of the next token that ends a tag or score element."""
        i += 1
        while i < len(self.tokens) and self.tokens[i].kind in (Kind.JSON, Kind.BOX):
            i += 1
        return i

    def _slice(self, start: int, token: int) -> str:
        """The text from `start` to a token, boxes left out, bounded."""
        raw = self.text[start : min(self._start(token), start + _MAX_FIELD)]
        return _BOX_TAG.sub(" ", raw).strip() if "<" in raw else raw

    def _start(self, token: int) -> int:
        return self.tokens[token].start if token < len(self.tokens) else len(self.text)
