"""The markup of an answer as a flat list of tokens, and which of them belong together.

Pairing is a single pass with a stack, like brackets, so hostile text costs no more than honest text.
"""

from __future__ import annotations

import re
from enum import IntEnum
from itertools import accumulate, islice
from typing import NamedTuple

from cp_agents.answer_fields import FIELD_NAMES, compact
from cp_agents.taxonomy import Taxonomy

THOUGHTS = ("think", "thinking", "thought", "reasoning")
"""Names of the elements that hold reasoning."""
_MAX_TOKENS = 20_000
"""Markup tokens that are read of one text; an answer of six attributes has about fifty."""
_MAX_LEAD = 40
_LEAD = re.compile(r"[\s>*#•·_`~|\-0-9.)(]*(?:<\s?box\s?>\s*)*")
"""What may stand before an element that begins a line: bullets, numbers, emphasis, a box."""


class Kind(IntEnum):
    """What a token is part of."""

    ATTRIBUTE = 0
    TAG = 1
    SCORE = 2
    EVIDENCE = 3
    THOUGHT = 4
    BOX = 5
    JSON = 6
    """Not markup: where a JSON value may begin."""


class Token(NamedTuple):
    """One opening, closing or empty tag."""

    kind: Kind
    name: str
    """Of an attribute its name in the taxonomy, of a field "tag", "score" or "evidence"."""
    start: int
    end: int
    closes: bool
    empty: bool
    """`<.../>`"""
    begins_line: bool
    """Of attributes and think blocks: nothing but bullets, emphasis and the like stands before it in its line."""
    ends_line: bool
    """Of the same: nothing stands behind it in its line."""
    xml_attributes: str
    """What stands behind the name."""

    @property
    def opens(self) -> bool:
        """Whether something stands between this tag and a closing one."""
        return not self.closes and not self.empty


class Layout:
    """What the scanner knows of a taxonomy, compiled once."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.attributes: dict[str, str] = {}
        """`compact` name -> attribute."""
        for name in taxonomy.names:
            self.attributes.setdefault(compact(name), name)
        self.kinds: dict[str, tuple[Kind, str]] = {"box": (Kind.BOX, "box")}
        self.kinds |= dict.fromkeys(THOUGHTS, (Kind.THOUGHT, "think"))
        for field, kind in (("tag", Kind.TAG), ("score", Kind.SCORE), ("evidence", Kind.EVIDENCE)):
            self.kinds |= dict.fromkeys(FIELD_NAMES[field], (kind, field))
        self.kinds |= {short: (Kind.ATTRIBUTE, name) for short, name in self.attributes.items()}
        # Names that differ in underscores alone are told apart by their exact form.
        self.kinds |= {name: (Kind.ATTRIBUTE, name) for name in taxonomy.names}
        spelled = {re.sub("_+", r"[\\s_-]{0,2}", name) for name in taxonomy.names} | (
            self.kinds.keys() - {""}
        )
        names = "|".join(sorted(spelled, key=len, reverse=True))
        self.token = re.compile(
            rf"<\s{{0,4}}+(?:(?P<close>\\?/)\s{{0,4}}+)?(?P<name>{names})(?![\w-])"
            r"""(?P<rest>(?:=\s?"[^"]*"|=\s?'[^']*'|[^<>])*+)>|(?P<json>\{(?=\s*")|\[(?=\s*\{))""",
            re.IGNORECASE | re.ASCII,
        )
        exact = "|".join(re.escape(name) for name in taxonomy.names)
        self.well_formed = re.compile(
            rf"\s*<({exact})><tag>([^<>＜＞]*)</tag><score>([^<>＜＞]*)</score>"
            r"<evidence>([^<>＜＞]*)</evidence></\1>\s*"
        )


def tokenise(plain: str, layout: Layout) -> list[Token]:
    """The first 20,000 tags in `plain`, in order."""
    known: dict[str, tuple[Kind, str]] = {}
    tokens: list[Token] = []
    line_start = seen = 0
    for match in islice(layout.token.finditer(plain), _MAX_TOKENS):
        close, written, rest, _ = match.groups()
        start, end = match.span()
        if written is None:
            tokens.append(Token(Kind.JSON, "", start, end, False, False, False, False, ""))
            continue
        kind, name = known.get(written) or known.setdefault(written, _kind(written, layout))
        begins = ends = False
        if kind is Kind.ATTRIBUTE or kind is Kind.THOUGHT:
            line_start = max(line_start, plain.rfind("\n", seen, start) + 1)
            seen = start
            begins = start - line_start <= _MAX_LEAD and _LEAD.fullmatch(plain, line_start, start) is not None
            after = plain[end : end + 8].lstrip(" \t\r")
            ends = after == "" or after[0] == "\n"
        tokens.append(Token(kind, name, start, end, close is not None, rest[-1:] == "/", begins, ends, rest))
    return tokens


def _kind(written: str, layout: Layout) -> tuple[Kind, str]:
    lowered = written.lower()
    return layout.kinds.get(re.sub(r"[\s-]", "_", lowered)) or layout.kinds[compact(lowered)]


def pair(tokens: list[Token]) -> dict[int, int]:
    """Index of the closing token of each attribute, evidence and think element that has one.

    An attribute does not nest in itself: opened again, it was left open if this one begins a line or follows
    outside evidence, else this one is text. Nothing is closed from within an attribute's element that begins a line
    and is still open. A think block that is never closed is paired with the end.
    """
    pairs: dict[int, int] = {}
    stack = _Stack(tokens)
    thought_ends = [i for i, t in enumerate(tokens) if t.kind is Kind.THOUGHT and t.closes]
    thought_ends.reverse()
    first_lines = list(accumulate(t.kind is Kind.ATTRIBUTE and t.begins_line for t in tokens))
    seen_attribute = False
    resume = 0
    for i, token in enumerate(tokens):
        if i < resume:
            continue
        if token.kind is Kind.THOUGHT and token.opens:
            while thought_ends and thought_ends[-1] < i:
                thought_ends.pop()
            own = token.begins_line or token.ends_line or not seen_attribute
            if thought_ends:
                end = thought_ends[-1]
                if own or (not stack.in_evidence and first_lines[end] == first_lines[i]):
                    pairs[i] = end
                    resume = end + 1
            elif own and not stack.in_evidence:
                pairs[i] = len(tokens)
                break
        elif token.kind is Kind.ATTRIBUTE:
            seen_attribute = True
            if token.opens:
                if token.name in stack.depths:
                    if not token.begins_line and tokens[stack.items[-1]].name != token.name:
                        continue
                    stack.cut(stack.depths[token.name])
                stack.push(i)
            elif token.closes and stack.reaches(depth := stack.depths.get(token.name, -1)):
                pairs[stack.items[depth]] = i
                stack.cut(depth)
        elif token.kind is Kind.EVIDENCE:
            if token.opens:
                stack.push(i)
            elif token.closes and stack.evidence and stack.reaches(depth := stack.evidence[-1]):
                pairs[stack.items[depth]] = i
                stack.cut(depth)
    return pairs


class _Stack:
    """Indices of the elements that are open, and what has to be known of them in constant time."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.items: list[int] = []
        self.depths: dict[str, int] = {}
        """Attribute -> its depth in `items`."""
        self.evidence: list[int] = []
        """Depths of evidence."""
        self.lines: list[int] = []
        """Depths of attributes that begin a line."""

    @property
    def in_evidence(self) -> bool:
        return bool(self.evidence)

    def push(self, index: int) -> None:
        token, depth = self.tokens[index], len(self.items)
        if token.kind is Kind.EVIDENCE:
            self.evidence.append(depth)
        else:
            self.depths[token.name] = depth
            if token.begins_line:
                self.lines.append(depth)
        self.items.append(index)

    def reaches(self, depth: int) -> bool:
        """Whether a closing token may close the element at `depth`, and with it all above."""
        return depth >= 0 and (not self.lines or self.lines[-1] <= depth)

    def cut(self, depth: int) -> None:
        """Take off the element at `depth` and all above."""
        for index in self.items[depth:]:
            if self.tokens[index].kind is Kind.ATTRIBUTE:
                del self.depths[self.tokens[index].name]
        del self.items[depth:]
        for depths in (self.evidence, self.lines):
            while depths and depths[-1] >= depth:
                depths.pop()


def line_breaks(tokens: list[Token]) -> list[int]:
    """For each token the index of the first one from there on that ends an element left open."""
    breaks = [len(tokens)] * (len(tokens) + 1)
    for i in range(len(tokens) - 1, -1, -1):
        token = tokens[i]
        own = token.begins_line and (
            (token.kind is Kind.ATTRIBUTE and not token.closes) or token.kind is Kind.THOUGHT
        )
        own = own or (token.kind is Kind.THOUGHT and token.closes and token.ends_line)
        breaks[i] = i if own else breaks[i + 1]
    return breaks
