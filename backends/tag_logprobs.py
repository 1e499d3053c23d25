"""Probabilities of the tag tokens: what a model gave the tag that it wrote, and the tags that it did not write.

Servers give, for every token, its log probability and those of the likeliest alternatives. Of these only the tokens
inside `<tag>...</tag>` are kept: enough to decide later, from stored samples, how sure the model was.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from pydantic import Field

from cp_agents.answer_fields import read_tag
from cp_agents.schema import Completion, TagProbability
from cp_agents.taxonomy import Attribute, Taxonomy

TOP = 5
"""Alternatives to a token that are asked for: as many as any endpoint gives."""

_DECIMALS = 6
_LEAST = 10.0**-_DECIMALS
"""A tag that was drawn has some probability."""

_NEVER = -9999.0
"""How servers write the logarithm of nothing, which JSON cannot."""


class TagToken(NamedTuple):
    """A token that was drawn, and what else could have been."""

    text: str
    logprob: float
    """Natural logarithm, before temperature; where answers are constrained, among what the constraint lets through."""
    top: dict[str, float]
    """The likeliest tokens in this place and their log probabilities; the drawn one may be among them."""


class ScoredCompletion(Completion):
    """A completion with the tokens of its tags."""

    tag_tokens: dict[str, tuple[TagToken, ...]] = Field(default_factory=dict)
    """By attribute; attributes whose tag could not be found in the text are left out."""


def scored(completion: Completion, tokens: Sequence[TagToken], taxonomy: Taxonomy) -> ScoredCompletion:
    """`completion` with what of all its `tokens` belongs to tags, and the probabilities of these."""
    found = tag_tokens(tokens, taxonomy)
    known = {name: p for name, of in found.items() if (p := written_tag(of, taxonomy[name])) is not None}
    return ScoredCompletion(**{**dict(completion), "tag_tokens": found, "probabilities": known})


def written_tag(tokens: Sequence[TagToken], attribute: Attribute) -> TagProbability | None:
    """The tag that `tokens` write, as the parser reads it, and its probability to six decimals.

    Among the attribute's tags that the alternatives tell apart (`tag_probabilities`); where no alternatives were given,
    the product of the tokens' own probabilities. None for what is no tag, or where it cannot be told, and for the
    values of an open attribute, which has no set of tags to be probable among.
    """
    if attribute.open:
        return None
    tag, _ = read_tag(attribute, "".join(token.text for token in tokens).partition("<")[0])
    if tag is None:
        return None
    if any(text != token.text for token in tokens for text in token.top):
        probability = tag_probabilities(tokens, attribute).get(tag)
    else:
        logprob = tag_logprobs(tokens, attribute).get(tag)
        probability = None if logprob is None else math.exp(min(0.0, logprob))
    if probability is None:
        return None
    return TagProbability(tag, min(1.0, max(_LEAST, round(probability, _DECIMALS))))


def tag_tokens(tokens: Sequence[TagToken], taxonomy: Taxonomy) -> dict[str, tuple[TagToken, ...]]:
    """The tokens of each attribute's tag in an answer in the wire format, of the last one where there are several.

    A token that reaches into the tag from the markup before it is cut, and so are the alternatives that begin like
    it. The token that closes the tag is kept: it decides between a tag and a longer one that begins the same way.
    """
    text = "".join(token.text for token in tokens)
    ends = list(accumulate(len(token.text) for token in tokens))
    names = "|".join(map(re.escape, taxonomy.names))
    found: dict[str, tuple[TagToken, ...]] = {}
    for match in re.finditer(rf"<({names})>\s*<tag>\s*([^<>]+?)\s*</tag>", text):
        start, end = match.span(2)
        first, last = bisect_right(ends, start), bisect_right(ends, end)
        inside = list(tokens[first : last + 1])
        inside[0] = _cut(inside[0], start - (ends[first] - len(inside[0].text)))
        found[match[1]] = tuple(inside)
    return found


def tag_logprobs(tokens: Sequence[TagToken], attribute: Attribute) -> dict[str, float]:
    """Log probabilities of tags: of the one that was written, and of all that the alternatives tell apart.

    Each is the log probability of the tokens up to where no other tag of the closed set begins the same way. Tags
    that no alternative leads to, or that share it with another, are left out, so the probabilities sum to at most 1.
    """
    found: dict[str, float] = {}
    written, so_far = "", 0.0
    for token in tokens:
        for text, logprob in token.top.items():
            if text != token.text and (tag := _only(attribute, written + text)) is not None:
                found[tag] = _log_add(found.get(tag), so_far + logprob)
        written += token.text
        so_far += token.logprob
        if (tag := _only(attribute, written)) is not None:
            found[tag] = _log_add(found.get(tag), so_far)
            break
    return found


def tag_probabilities(tokens: Sequence[TagToken], attribute: Attribute) -> dict[str, float]:
    """`tag_logprobs` as probabilities, normalised over the tags that it found."""
    logprobs = tag_logprobs(tokens, attribute)
    total = sum(map(math.exp, logprobs.values()))
    return {tag: math.exp(logprob) / total for tag, logprob in logprobs.items()} if total else {}


def read_openai(logprobs: object) -> list[TagToken]:
    """The `logprobs` of a chat completion's choice; what is no token is left out."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [
        TagToken(entry["token"], float(entry["logprob"]), _top(entry.get("top_logprobs")))
        for entry in (content if isinstance(content, list) else [])
        if _is_token(entry)
    ]


def _top(raw: object) -> dict[str, float]:
    return {
        entry["token"]: float(entry["logprob"])
        for entry in (raw if isinstance(raw, list) else [])
        if _is_token(entry) and entry["logprob"] > _NEVER
    }


def _is_token(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("token"), str)
        and isinstance(entry.get("logprob"), int | float)
    )


def _cut(token: TagToken, by: int) -> TagToken:
    if by <= 0:
        return token
    head = token.text[:by]
    top = {
        text[by:]: logprob for text, logprob in token.top.items() if text.startswith(head) and text != head
    }
    return TagToken(token.text[by:], token.logprob, top)


def _only(attribute: Attribute, written: str) -> str | None:
    """The one tag that an element beginning with `written` can hold, or None where there are several or none."""
    start, closed, _ = written.lstrip().partition("<")
    if not start:
        return None
    if closed:
        return attribute.match_tag(start)
    fitting = [name for name in attribute.names if name.startswith(start)]
    return fitting[0] if len(fitting) == 1 else None


def _log_add(a: float | None, b: float) -> float:
    if a is None:
        return b
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high)) if high > -math.inf else high
