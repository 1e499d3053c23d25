"""The wire format as a regular expression and as a grammar, for servers that constrain what a model may write.

Both describe the same texts: every attribute once, in taxonomy order, with a tag of its closed set (of an open one a
bounded text), a confidence of 1..5 and one line of evidence. What they let through parses with outcome `ok` for every
attribute. They bind the form alone: a model that does not know what to say says it in the right form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

from cp_agents.errors import InputError
from cp_agents.open_text import MOST_CHARS
from cp_agents.taxonomy import Taxonomy

Structured = Literal["regex", "grammar", "none"]
"""How an answer is constrained: both forms allow the same texts, and differ in what a server makes of them."""

STRUCTURED: tuple[Structured, ...] = ("regex", "grammar", "none")
EVIDENCE_CHARS = 240
"""Longest evidence that is let through: it keeps a model that rambles from using up the answer's tokens before the
last attribute. Two quotations fit."""

# Nothing that could open an element, end the line, or is invisible. Servers' regex dialects agree on this much.
_EVIDENCE = r"[^<>＜＞\x00-\x1f\x7f]"
# A value of an open attribute begins with a letter or a digit, so that something is left of it when it is read.
_BEGINS = "[0-9A-Za-zÀ-ɏͰ-ӿא-תؠ-يऄ-๛ぁ-ヺ㐀-鿿가-힣]"
_VALUE = f"{_BEGINS}{_EVIDENCE}{{0,{MOST_CHARS - 1}}}"
_METACHARACTERS = re.compile(r"[\\.^$*+?()\[\]{}|/]")


def wire_regex(taxonomy: Taxonomy, *, evidence_chars: int = EVIDENCE_CHARS) -> str:
    """A regular expression that a whole answer matches, without anchors, look-around or named groups."""

    def one_of(tags: Iterable[str]) -> str:
        return f"({'|'.join(_METACHARACTERS.sub(_escape, tag) for tag in tags)})"

    def literal(text: str) -> str:
        return _METACHARACTERS.sub(_escape, text).replace("\n", r"\n")

    evidence = f"{_EVIDENCE}{{0,{evidence_chars}}}"
    return "".join(_parts(taxonomy, literal, one_of, "[1-5]", evidence, _VALUE))


def wire_grammar(taxonomy: Taxonomy, *, evidence_chars: int = EVIDENCE_CHARS) -> str:
    """The same in GBNF, which vLLM and llama.cpp read."""

    def one_of(tags: Iterable[str]) -> str:
        return f"({' | '.join(map(_quoted, tags))})"

    parts = _parts(taxonomy, _quoted, one_of, "[1-5]", "evidence", "value")
    rules = [f"root ::= {' '.join(parts)}", f"evidence ::= {_EVIDENCE}{{0,{evidence_chars}}}"]
    if any(attribute.open for attribute in taxonomy.attributes):
        rules.append(f"value ::= {_VALUE}")
    return "".join(f"{rule}\n" for rule in rules)


def constraint(structured: str, taxonomy: Taxonomy) -> dict[str, str]:
    """What vLLM calls `structured_outputs`: `{"regex": ...}`, `{"grammar": ...}`, or empty for none."""
    if structured not in STRUCTURED:
        raise InputError(f"structured should be {', '.join(STRUCTURED)}, found {structured!r}")
    if structured == "regex":
        return {"regex": wire_regex(taxonomy)}
    return {"grammar": wire_grammar(taxonomy)} if structured == "grammar" else {}


def _parts(
    taxonomy: Taxonomy,
    literal: Callable[[str], str],
    one_of: Callable[[Iterable[str]], str],
    score: str,
    evidence: str,
    value: str,
) -> list[str]:
    """The format in order, each part in the notation that the functions write (see `wire.write_answer`)."""
    parts: list[str] = []
    end = ""
    for attribute in taxonomy.attributes:
        said = value if attribute.open else one_of(attribute.names)
        parts += [literal(f"{end}<{attribute.name}><tag>"), said]
        parts += [literal("</tag><score>"), score, literal("</score><evidence>"), evidence]
        end = f"</evidence></{attribute.name}>\n"
    return [*parts, literal(end.rstrip("\n"))]


def _escape(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
