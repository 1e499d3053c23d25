"""Finds the elements of an answer in whatever a model wrote around them. One pass over markup tokens, linear time.

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
from enum import IntEnum
from itertools import islice, pairwise
from typing import NamedTuple

from cp_agents.answer_fields import FIELD_NAMES, RawAnswer, compact
from cp_agents.answer_json import read_json
from cp_agents.taxonomy import Taxonomy

_THOUGHTS = ("think", "thinking", "thought", "reasoning")
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_LEAD = re.compile(r"[\s>*#•·_`~|\-0-9.)(]*(?:<\s?box\s?>\s*)*")
"""What may stand before an element that begins a line: bullets, numbers, emphasis, a box."""
_MAX_LEAD = 40
_MAX_FIELD = 400
"""Characters of a tag or score element that are looked at."""
_MAX_FAULTS = 16
"""JSON values that do not parse, before the rest of the text is no longer searched for JSON."""
_MAX_TOKENS = 20_000
"""Markup tokens that are read of one text; an answer of six attributes has about fifty."""
_XML_ATTRIBUTE = re.compile(r"""([\w:-]{1,30})\s?=\s?("[^"]*"|'[^']*'|[^\s"'>]+)""")


class _Kind(IntEnum):
    ATTRIBUTE = 0
    TAG = 1
    SCORE = 2
    EVIDENCE = 3
    THOUGHT = 4
    BOX = 5
    JSON = 6


class Layout:
    """What the scanner knows of a taxonomy, compiled once."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.attributes: dict[str, str] = {}
        """`compact` name -> attribute."""
        for name in taxonomy.names:
            self.attributes.setdefault(compact(name), name)
        self.kinds: dict[str, tuple[_Kind, str]] = {"box": (_Kind.BOX, "box")}
        self.kinds |= dict.fromkeys(_THOUGHTS, (_Kind.THOUGHT, "think"))
        for field, kind in (("tag", _Kind.TAG), ("score", _Kind.SCORE), ("evidence", _Kind.EVIDENCE)):
            self.kinds |= dict.fromkeys(FIELD_NAMES[field], (kind, field))
        self.kinds |= {short: (_Kind.ATTRIBUTE, name) for short, name in self.attributes.items()}
        for (
            name
        ) in taxonomy.names:  # names that differ in underscores alone are told apart by their exact form
            self.kinds[name] = (_Kind.ATTRIBUTE, name)
        spelled = {re.sub("_+", r"[\\s_-]{0,2}", name) for name in taxonomy.names} | (
            self.kinds.keys() - {""}
        )
        names = "|".join(sorted(spelled, key=len, reverse=True))
        self.token = re.compile(
            rf"<\s{{0,4}}+(?:(?P<close>\\?/)\s{{0,4}}+)?(?P<name>{names})(?![\w-])"
            r"""(?P<rest>(?:=\s?"[^"]*"|=\s?'[^']*'|[^<>])*+)>|(?P<json>\{(?=\s*")|\[(?=\s*\{))""",
            re.IGNORECASE,
        )
        exact = "|".join(re.escape(name) for name in taxonomy.names)
        self.well_formed = re.compile(
            rf"\s*<({exact})><tag>([^<>＜＞]*)</tag><score>([^<>＜＞]*)</score>"
            r"<evidence>([^<>＜＞]*)</evidence></\1>\s*"
        )


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


class _Token(NamedTuple):
    kind: _Kind
    name: str
    start: int
    end: int
    closes: bool
    empty: bool
    """`<.../>`"""
    begins_line: bool
    ends_line: bool
    xml_attributes: str

    @property
    def opens(self) -> bool:
        return not self.closes and not self.empty


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
        self.tokens = self._tokenise()
        self.pairs = self._pair()
        self.breaks = self._breaks()

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
            elif token.kind is _Kind.ATTRIBUTE and not token.closes:
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
            elif token.kind is _Kind.ATTRIBUTE:
                if self._is_live(elements, latest, token.name, line_first):
                    del elements[latest[token.name] + 1 :]
                i += 1
            elif token.kind is _Kind.THOUGHT and i in self.pairs:
                close = self.pairs[i]
                end = tokens[close].end if close < len(tokens) else len(self.text)
                thoughts.append((token.start, end))
                if close >= len(tokens):
                    return self._result(elements, objects, thoughts, unfinished=True)
                i = close + 1
            elif token.kind is _Kind.THOUGHT and token.closes:
                # Chat templates may open the block in the prompt: then the text begins inside it.
                if token.begins_line or token.ends_line or not elements:
                    elements, objects, latest, line_first = [], [], {}, 0
                    thoughts = [(0, token.end)]
                i += 1
            elif token.kind is _Kind.JSON and faults < _MAX_FAULTS:
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
        return Scan(answers, self._unwrapped(reasoning), visible, unfinished)

    def _unwrapped(self, reasoning: str) -> str:
        """Reasoning without its own opening and closing tags."""
        lines = re.sub(rf"</?\s?(?:{'|'.join(_THOUGHTS)})\s?>", "\n", reasoning, flags=re.IGNORECASE)
        return lines.strip()

    # --- tokens ----------------------------------------------------------------------------------------

    def _tokenise(self) -> list[_Token]:
        plain, kinds = self.plain, self.layout.kinds
        known: dict[str, tuple[_Kind, str]] = {}
        tokens: list[_Token] = []
        line_start = seen = 0
        for match in islice(self.layout.token.finditer(plain), _MAX_TOKENS):
            start, end = match.span()
            line_start = max(line_start, plain.rfind("\n", seen, start) + 1)
            seen = start
            begins = start - line_start <= _MAX_LEAD and _LEAD.fullmatch(plain, line_start, start) is not None
            written = match["name"]
            if written is None:
                tokens.append(_Token(_Kind.JSON, "", start, end, False, False, begins, False, ""))
                continue
            kind = known.get(written)
            if kind is None:
                lowered = written.lower()
                kind = known[written] = kinds.get(re.sub(r"[\s-]", "_", lowered)) or kinds[compact(lowered)]
            rest = match["rest"]
            after = plain[end : end + 8].lstrip(" \t\r")
            tokens.append(
                _Token(
                    *kind,
                    start,
                    end,
                    closes=match["close"] is not None,
                    empty=rest.endswith("/"),
                    begins_line=begins,
                    ends_line=after == "" or after[0] == "\n",
                    xml_attributes=rest,
                )
            )
        return tokens

    def _pair(self) -> dict[int, int]:
        """Index of the closing token of each attribute, evidence and think element that has one.

        An attribute does not nest in itself: opened again, it was left open if this one begins a line or follows
        outside evidence, else this one is text. A think block that is never closed is paired with the end.
        """
        tokens, pairs, stack = self.tokens, {}, list[int]()
        open_names: set[str] = set()
        thought_ends = [i for i, t in enumerate(tokens) if t.kind is _Kind.THOUGHT and t.closes]
        thought_ends.reverse()
        seen_attribute = False
        resume = 0
        for i, token in enumerate(tokens):
            if i < resume:
                continue
            if token.kind is _Kind.THOUGHT and token.opens:
                while thought_ends and thought_ends[-1] < i:
                    thought_ends.pop()
                own_line = token.begins_line or token.ends_line
                if thought_ends and (own_line or not stack):
                    pairs[i] = thought_ends[-1]
                    resume = pairs[i] + 1
                elif not thought_ends and (own_line or not seen_attribute):
                    pairs[i] = len(tokens)
                    break
            elif token.kind is _Kind.ATTRIBUTE:
                seen_attribute = True
                name = token.name
                if token.opens:
                    if name in open_names:
                        if not token.begins_line and tokens[stack[-1]].name != name:
                            continue
                        self._pop_through(name, stack, open_names)
                    stack.append(i)
                    open_names.add(name)
                elif token.closes and name in open_names:
                    pairs[self._pop_through(name, stack, open_names)] = i
            elif token.kind is _Kind.EVIDENCE:
                if token.opens:
                    stack.append(i)
                elif token.closes:
                    # At most one of each attribute stands above the evidence to close.
                    for depth in range(len(stack) - 1, -1, -1):
                        opener = tokens[stack[depth]]
                        if opener.kind is _Kind.EVIDENCE:
                            pairs[stack[depth]] = i
                            open_names -= {tokens[j].name for j in stack[depth:]}
                            del stack[depth:]
                            break
                        if opener.begins_line:
                            break
        return pairs

    def _pop_through(self, name: str, stack: list[int], open_names: set[str]) -> int:
        while True:
            top = stack.pop()
            open_names.discard(self.tokens[top].name)
            if self.tokens[top].name == name and self.tokens[top].kind is _Kind.ATTRIBUTE:
                return top

    def _breaks(self) -> list[int]:
        """For each token the index of the first one from there on that ends an element left open."""
        breaks = [len(self.tokens)] * (len(self.tokens) + 1)
        for i in range(len(self.tokens) - 1, -1, -1):
            token = self.tokens[i]
            own = token.begins_line and (
                (token.kind is _Kind.ATTRIBUTE and not token.closes) or token.kind is _Kind.THOUGHT
            )
            own = own or (token.kind is _Kind.THOUGHT and token.closes and token.ends_line)
            breaks[i] = i if own else breaks[i + 1]
        return breaks

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
            if token.kind in (_Kind.TAG, _Kind.SCORE):
                following = self._next_markup(i)
                if token.opens:
                    fields.setdefault(token.name, self._slice(token.end, following))
                i = following
            elif token.kind is _Kind.EVIDENCE and token.opens:
                end = self.pairs.get(i, stop)
                if end >= stop and closed is None:
                    end = self.breaks[i]
                    fields.setdefault("evidence", text[token.end : self._start(end)])
                    return self._found(opener, fields, self._start(end), end < len(tokens)), end
                fields.setdefault("evidence", text[token.end : self._start(end)])
                whole = True
                i = end + 1
            elif token.kind is _Kind.ATTRIBUTE and closed is None:
                return self._found(opener, fields, token.start, True, boxes), i
            elif token.kind is _Kind.ATTRIBUTE or token.kind is _Kind.THOUGHT:
                if closed is None and self.breaks[i] == i:
                    return self._found(opener, fields, token.start, True, boxes), i
                i = self.pairs.get(i, i) + 1
            elif token.kind is _Kind.BOX and token.opens:
                boxes.append(self._slice(token.end, i + 1))
                i += 1
            elif token.kind is _Kind.BOX and closed is None and not boxes:
                return self._found(opener, fields, token.start, True), i + 1
            else:
                i += 1
        if "tag" not in fields and not boxes:
            fields["tag"] = self._slice(opener.end, first + 1)
        end = len(text) if closed is None else tokens[closed].end
        return self._found(opener, fields, end, whole, boxes), stop + 1

    @staticmethod
    def _found(
        opener: _Token, fields: dict[str, str], end: int, whole: bool, boxes: list[str] | None = None
    ) -> _Found:
        if boxes and "tag" not in fields:  # tag, score and evidence, each in a box and without a name
            fields = dict(zip(("tag", "score", "evidence"), boxes, strict=False))
        answer = RawAnswer(
            opener.name, fields.get("tag"), fields.get("score"), fields.get("evidence", ""), whole
        )
        return _Found(answer, opener.start, end)

    def _xml_fields(self, opener: _Token) -> dict[str, str]:
        start = opener.end - 1 - len(opener.xml_attributes)
        fields: dict[str, str] = {}
        for match in _XML_ATTRIBUTE.finditer(self.plain, start, opener.end - 1):
            kind, name = self.layout.kinds.get(compact(match[1]), (None, ""))
            if kind in (_Kind.TAG, _Kind.SCORE, _Kind.EVIDENCE):
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
        while i < len(self.tokens) and self.tokens[i].kind in (_Kind.JSON, _Kind.BOX):
            i += 1
        return i

    def _slice(self, start: int, token: int) -> str:
        """The text from `start` to a token, boxes left out, bounded."""
        raw = self.text[start : min(self._start(token), start + _MAX_FIELD)]
        return re.sub(r"<\s?/?\s?box\s?>", " ", raw, flags=re.IGNORECASE).strip() if "<" in raw else raw

    def _start(self, token: int) -> int:
        return self.tokens[token].start if token < len(self.tokens) else len(self.text)
