"""The markup of an answer as a flat list of tokens, and which of them belong together.

Pairing is a single pass with a stack, like brackets, so hostile text costs no more than honest text.
"""

from __future__ import annotations

import re
from enum import IntEnum
from itertools import islice
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
    ends_line: bool
    xml_attributes: str

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
    kinds = layout.kinds
    known: dict[str, tuple[Kind, str]] = {}
    tokens: list[Token] = []
    line_start = seen = 0
    for match in islice(layout.token.finditer(plain), _MAX_TOKENS):
        start, end = match.span()
        line_start = max(line_start, plain.rfind("\n", seen, start) + 1)
        seen = start
        begins = start - line_start <= _MAX_LEAD and _LEAD.fullmatch(plain, line_start, start) is not None
        written = match["name"]
        if written is None:
            tokens.append(Token(Kind.JSON, "", start, end, False, False, begins, False, ""))
            continue
        kind = known.get(written)
        if kind is None:
            lowered = written.lower()
            kind = known[written] = kinds.get(re.sub(r"[\s-]", "_", lowered)) or kinds[compact(lowered)]
        rest = match["rest"]
        after = plain[end : end + 8].lstrip(" \t\r")
        tokens.append(
            Token(
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


def pair(tokens: list[Token]) -> dict[int, int]:
    """Index of the closing token of each attribute, evidence and think element that has one.

    An attribute does not nest in itself: opened again, it was left open if this one begins a line or follows
    outside evidence, else this one is text. A think block that is never closed is paired with the end.
    """
    pairs: dict[int, int] = {}
    stack: list[int] = []
    open_names: set[str] = set()
    thought_ends = [i for i, t in enumerate(tokens) if t.kind is Kind.THOUGHT and t.closes]
    thought_ends.reverse()
    seen_attribute = False
    resume = 0
    for i, token in enumerate(tokens):
        if i < resume:
            continue
        if token.kind is Kind.THOUGHT and token.opens:
            while thought_ends and thought_ends[-1] < i:
                thought_ends.pop()
            own_line = token.begins_line or token.ends_line
            if thought_ends and (own_line or not _in_evidence(tokens, stack)):
                pairs[i] = thought_ends[-1]
                resume = pairs[i] + 1
            elif not thought_ends and (own_line or not seen_attribute) and not _in_evidence(tokens, stack):
                pairs[i] = len(tokens)
                break
        elif token.kind is Kind.ATTRIBUTE:
            seen_attribute = True
            name = token.name
            if token.opens:
                if name in open_names:
                    if not token.begins_line and tokens[stack[-1]].name != name:
                        continue
                    _pop_through(name, tokens, stack, open_names)
                stack.append(i)
                open_names.add(name)
            elif token.closes and name in open_names:
                pairs[_pop_through(name, tokens, stack, open_names)] = i
        elif token.kind is Kind.EVIDENCE:
            if token.opens:
                stack.append(i)
            elif token.closes:
                # At most one of each attribute stands above the evidence to close.
                for depth in range(len(stack) - 1, -1, -1):
                    opener = tokens[stack[depth]]
                    if opener.kind is Kind.EVIDENCE:
                        pairs[stack[depth]] = i
                        open_names -= {tokens[j].name for j in stack[depth:]}
                        del stack[depth:]
                        break
                    if opener.begins_line:
                        break
    return pairs


def _in_evidence(tokens: list[Token], stack: list[int]) -> bool:
    return any(tokens[i].kind is Kind.EVIDENCE for i in stack)


def _pop_through(name: str, tokens: list[Token], stack: list[int], open_names: set[str]) -> int:
    while True:
        top = stack.pop()
        open_names.discard(tokens[top].name)
        if tokens[top].name == name and tokens[top].kind is Kind.ATTRIBUTE:
            return top


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
