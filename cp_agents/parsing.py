"""A model's text becomes, for each attribute, a tag of the closed set with a confidence - or a typed reason why not.

Tolerant, then strict. The text is read the way a person would read it (`answer_markup`, `answer_json`,
`answer_fields`): any order, prose around, code fences, JSON, think blocks, missing closing tags, full-width
characters. Then the closed set decides. Each attribute has its own outcome, so that five good ones survive a bad one.

Of an attribute that is answered several times the last complete answer counts: a model corrects itself.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from cp_agents.answer_fields import RawAnswer, read_score, read_tag, split_evidence
from cp_agents.answer_markup import Scan, scan, scan_well_formed
from cp_agents.answer_tokens import Layout
from cp_agents.schema import Completion, Outcome
from cp_agents.taxonomy import Attribute, Taxonomy

LENGTH = "length"
CONTENT_FILTER = "content_filter"


class ParsedAttribute(NamedTuple):
    """What one sample says of one attribute."""

    outcome: Outcome
    tag: str | None = None
    """A tag of the closed set, NA included, or an open attribute's value if the outcome is ok; the raw text (at most
    200 characters) if it is out_of_set; else None."""
    confidence: int | None = None
    """1..5 if the outcome is ok or out_of_set; else None."""
    evidence: tuple[str, ...] = ()
    """Pieces of evidence as the model wrote them, at most five."""


class ParsedAnswer(NamedTuple):
    """What one sample says."""

    outcome: Outcome
    """ok if at least one attribute is, else the commonest reason (of equals, that of the earlier attribute)."""
    attributes: dict[str, ParsedAttribute]
    """Every attribute of the taxonomy, in its order."""
    reasoning: str
    """Think blocks and reasoning content, kept apart from the answer."""


def parse_completion(completion: Completion, taxonomy: Taxonomy) -> ParsedAnswer:
    """Parse what a backend gave for one sample. Never raises.

    A failed call is `error` throughout, and an answer that the endpoint marks as a refusal `refused`. For the rest
    see `parse_answer`.
    """
    reason = (
        Outcome.ERROR
        if completion.error_type is not None
        else Outcome.REFUSED
        if completion.refusal
        else None
    )
    if reason is not None:
        nothing = ParsedAttribute(reason)
        return ParsedAnswer(reason, dict.fromkeys(taxonomy.names, nothing), completion.reasoning)
    parsed = parse_answer(completion.text, taxonomy, finish_reason=completion.finish_reason)
    if completion.reasoning:
        return parsed._replace(reasoning="\n".join(filter(None, (completion.reasoning, parsed.reasoning))))
    return parsed


def parse_answer(text: str, taxonomy: Taxonomy, *, finish_reason: str | None = None) -> ParsedAnswer:
    """Parse one answer text. Never raises; time is linear in the text.

    Attributes without any answer are `truncated` if the text ended by length (and so is the half-written one),
    `filtered` if a content filter ended it, `missing` if others were answered; and if none was: `empty` where there
    is no text outside think blocks or the last of these never ends, `refused` where the text says so, else
    `malformed`.
    """
    layout = _layout(taxonomy)
    found = scan_well_formed(text, layout.markup) or scan(text, layout.markup)
    return _decide(found, layout, finish_reason)


class _Layout:
    """A taxonomy made ready for parsing."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.markup = Layout(taxonomy)
        self.attributes = taxonomy.attributes
        self.tags: dict[tuple[str, str], tuple[str | None, str]] = {}

    def tag(self, attribute: Attribute, raw: str) -> tuple[str | None, str]:
        """`read_tag`, remembered: a closed set is written in few ways."""
        if attribute.open:
            return read_tag(attribute, raw)
        key = (attribute.name, raw)
        known = self.tags.get(key)
        if known is None:
            known = read_tag(attribute, raw)
            if known[0] is not None and len(raw) < 100 and len(self.tags) < _MAX_REMEMBERED:
                self.tags[key] = known
        return known


_MAX_REMEMBERED = 2_000
_MAX_LAYOUTS = 32
_MAX_REPEATS = 50
_layouts: dict[str, _Layout] = {}


def _layout(taxonomy: Taxonomy) -> _Layout:
    layout = _layouts.get(taxonomy.hash)
    if layout is None:
        if len(_layouts) >= _MAX_LAYOUTS:
            _layouts.clear()
        layout = _layouts[taxonomy.hash] = _Layout(taxonomy)
    return layout


def _decide(found: Scan, layout: _Layout, finish_reason: str | None) -> ParsedAnswer:
    candidates: dict[str, list[RawAnswer]] = {}
    for answer in found.answers:
        candidates.setdefault(answer.attribute, []).append(answer)
    cut = finish_reason == LENGTH
    absent: ParsedAttribute | None = None
    attributes: dict[str, ParsedAttribute] = {}
    for attribute in layout.attributes:
        written = candidates.get(attribute.name)
        if written is not None:
            attributes[attribute.name] = _last_complete(written, attribute, layout, cut)
        else:
            absent = absent or ParsedAttribute(_why_absent(found, finish_reason))
            attributes[attribute.name] = absent
    outcomes = [a.outcome for a in attributes.values()]
    outcome = Outcome.OK if Outcome.OK in outcomes else Counter(outcomes).most_common(1)[0][0]
    return ParsedAnswer(outcome, attributes, found.reasoning)


def _last_complete(
    written: list[RawAnswer], attribute: Attribute, layout: _Layout, cut: bool
) -> ParsedAttribute:
    read = [_read(raw, attribute, layout, cut) for raw in written[: -_MAX_REPEATS - 1 : -1]]
    return next((r for r in read if r.confidence is not None), read[0])


def _read(raw: RawAnswer, attribute: Attribute, layout: _Layout, cut: bool) -> ParsedAttribute:
    if cut and not raw.whole:
        return ParsedAttribute(Outcome.TRUNCATED)
    evidence = split_evidence(raw.evidence)
    tag, kept = (None, "") if raw.tag is None else layout.tag(attribute, raw.tag)
    confidence = read_score(raw.score)
    if confidence is None or not kept:
        return ParsedAttribute(Outcome.MALFORMED, evidence=evidence)
    if tag is None:
        return ParsedAttribute(Outcome.OUT_OF_SET, kept, confidence, evidence)
    return ParsedAttribute(Outcome.OK, tag, confidence, evidence)


_REFUSAL = re.compile(
    "|".join(
        (
            r"\bI(?:['’]m| am)(?: very| truly| really)? sorry\b",
            r"\b(?:I|we)(?: simply| really)? (?:can ?not|can['’]t|won['’]t|will not|must decline)\b",
            r"\bI(?:['’]m| am) (?:unable|not able) to\b",
            r"\b(?:sorry|apologi[sz]e|unfortunately),? (?:but )?I\b",
            r"\bas an AI\b|\bI decline to\b|\bunable to (?:assist|help|comply|provide)\b",
            r"抱歉|对不起|很遗憾|拒绝回答|作为(?:一个|一名)?(?:AI|人工智能)",
            r"(?:无法|不能|不便)(?:[为给]您?你?)?(?:提供|协助|回答|满足|完成|推断|进行|帮助|执行|生成|透露)",
        )
    ),
    re.IGNORECASE,
)
_REFUSAL_REACH = 600
"""A refusal says so early."""


def _why_absent(found: Scan, finish_reason: str | None) -> Outcome:
    if finish_reason == LENGTH:
        return Outcome.TRUNCATED
    if finish_reason == CONTENT_FILTER:
        return Outcome.FILTERED
    if found.answers:
        return Outcome.MISSING
    if found.unfinished or not found.visible.strip():
        return Outcome.EMPTY
    if _REFUSAL.search(found.visible, 0, _REFUSAL_REACH) is not None:
        return Outcome.REFUSED
    return Outcome.MALFORMED
