"""Where a piece of evidence stands in the cues.

A piece of evidence is looked for inside the content of one item line - never in headings, never across lines:

1. exact: character by character, at word boundaries;
2. normalised: after folding width, case, punctuation and space; also without what models copy around a
   quotation: a leading label ("watched:", "self-reported") and a trailing count or weight ("Sleeping 600"). A
   self-reported field may be named in other words: "self-reported female, age 31-40", "west region";
3. fuzzy: with at most 20 % of its characters different (see `fuzzy`), from 8 folded characters on (5 in scripts without
   spaces) up to 400; or a quotation with a count or weight that its line does not have;
4. else ungrounded.

What carries no meaning - one character, stop words, a bare number - is only found where it is all that an item or
a self-reported field says ("25" in "age: 25").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

from cp_agents.cues import CueLine, cue_lines
from cp_agents.folded_text import FoldedText, fold_words, glued, is_unspaced
from cp_agents.fuzzy import (
    MAX_LENGTH,
    MIN_LENGTH,
    allowed_differences,
    find_approximately,
)
from cp_agents.schema import SELF_REPORTED, Evidence, Match

_MAX_TRIES = 20
"""Occurrences of one text that are looked at until one stands at word boundaries."""
_MAX_PARTS = 10
_MAX_REMEMBERED = 2_000
_TELLING = 12
"""Folded characters from which what a model calls self-reported may also be found elsewhere in the record."""

_MAX_FIELD_QUOTE = 100
"""Characters of a piece of evidence that may be a self-reported field in other words."""

_STOP_WORDS = frozenset(
    """a an and are as at be been but by did do does for from had has have he her him his i if in is it its just me my
    no not of on or our she so that the their them there they this to too up us was we were what when which who will
    with you your user users item items self reported""".split()  # noqa: SIM905
)
_STOP_CHARACTERS = frozenset("的了是在我你他她它们和与及有也都就不很这那个一用户")
_NUMBER_LIKE = re.compile(r"x?\d+(?:st|nd|rd|th|s|x|min|mins|minutes|h|m)?\Z")

_BRACKETS = {")": "(", "）": "（", "]": "[", "】": "【", "」": "「", "』": "『", "”": "“", "》": "《"}
_TAIL = 3

_AMOUNT = re.compile(
    r"\s*[-:：=,，]?\s*[(（\[]?\s*x?(?P<number>\d+(?:[.,]\d+)*)\s*(?:minutes?|mins?|times|分钟|次)?\s*(?:,\s*[\d.]+)?[)）\]]?\s*\Z",
    re.IGNORECASE,
)
_AMOUNT_ENDS = tuple("0123456789)）]sSnN钟次")
_LABEL_END = r"(?![^\W_])(?:\s*(?:[:：=]|[-–—]\s))?\s*"
_SELF_REPORTED = r"self[-_ ]?report(?:ed|s)?"
_SELF_REPORTED_ZH = r"(?:自报|自填|自述|自我介绍|自称)(?:信息|资料)?"
_REPORTED = re.compile(rf"\b{_SELF_REPORTED}\b|{_SELF_REPORTED_ZH}", re.IGNORECASE)
_REPORTED_LABEL = (
    rf"(?:the\s)?(?:user(?:['’]s)?\s)?{_SELF_REPORTED}(?:\s(?:as|that|profile|info|information))?{_LABEL_END}"
    rf"|(?:用户)?{_SELF_REPORTED_ZH}\s*[:：]?\s*"
)
_ANY_LABEL = re.compile(r"[^:：]{1,40}[:：]\s*(?=\S)")
_PARTS = re.compile(r"\s*(?:[,，、]|…|\.{3}|\s(?:\+|and|以及)\s)\s*")
_ABSENCE = re.compile(
    r"\W*(?:no|not|none|nothing|never|neither|without|lacks?|lacking|absence|there (?:is|are|was|were) no)\b"
    r"|\W*(?:没有|未|无|缺乏|缺少)",
    re.IGNORECASE,
)


class _Span(NamedTuple):
    start: int
    end: int
    source: str
    match: Match


class _Reading(NamedTuple):
    """A piece of evidence as it is, or without what a model may have put around it."""

    text: str
    folded: str
    meaningful: bool
    reported: bool
    """The model calls it self-reported."""
    number: str | None
    """The count or weight that was taken off its end."""


class CueIndex:
    """One cue block, made ready to find evidence in. Cheap to build; all work is done at the first look-up.

    Pieces that were looked up are remembered: a record's samples repeat each other.
    """

    def __init__(self, block: str) -> None:
        self.block = block
        self._known: dict[str, _Span | None] = {}

    def locate(self, text: str) -> Evidence:
        """Find `text`, one piece of evidence, in the block.

        `start` and `end` are offsets of characters in the block; for an exact match `block[start:end] == text`.
        For any text without lone surrogates, which `parsing` leaves none of.
        """
        span = self._span(text)
        if span is None:
            return Evidence(text=text)
        return Evidence(text=text, source=span.source, start=span.start, end=span.end, match=span.match)

    def cite(self, text: str) -> list[Evidence]:
        """Like `locate`; a piece found nowhere as a whole is looked for in its parts, if some stand in the block.

        Models list items with commas ("Sleeping, Relaxing"), which items also have. What states an absence ("no
        mention of shopping, travel") is not taken apart.
        """
        if self._span(text) is None and _PARTS.search(text) is not None and _ABSENCE.match(text) is None:
            parts = [part for part in _PARTS.split(text) if part][:_MAX_PARTS]
            if any(self._span(part) is not None for part in parts):
                return [self.locate(part) for part in parts]
        return [self.locate(text)]

    def _span(self, text: str) -> _Span | None:
        try:
            return self._known[text]
        except KeyError:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            span = self._known[text] = self._find(text)
            return span

    # --- the block ---------------------------------------------------------------------------------------

    @cached_property
    def _lines(self) -> list[CueLine]:
        return cue_lines(self.block)

    @cached_property
    def _line_at(self) -> dict[int, CueLine]:
        """Item lines by the offset at which the line begins."""
        return {self.block.rfind("\n", 0, line.start) + 1: line for line in self._lines}

    @cached_property
    def _folded(self) -> FoldedText:
        return FoldedText(self.block, [(line.start, line.end) for line in self._lines])

    @cached_property
    def _reported_from(self) -> int:
        """Folded offset where the self-reports begin."""
        starts = zip(self._lines, self._folded.stretch_starts, strict=True)
        return next((at for line, at in starts if line.source == SELF_REPORTED), len(self._folded.folded))

    @cached_property
    def _wholes(self) -> dict[str, _Span]:
        """Short texts that are all an item or a self-reported field says, folded, the first of equals."""
        wholes: dict[str, _Span] = {}
        for line in self._lines:
            text = line.text
            if line.source == SELF_REPORTED:
                text = text.partition(": ")[2] or text
            if not text or len(text) > MIN_LENGTH:
                continue
            start = self.block.find(text, line.start, line.end)
            if line.source == SELF_REPORTED:
                start = line.end - len(text)
            folded = "".join(fold_words(text))
            if folded and start >= 0:
                wholes.setdefault(folded, _Span(start, start + len(text), line.source, Match.NORMALISED))
        return wholes

    @cached_property
    def _fields(self) -> list[tuple[str, str, _Span]]:
        """Self-reported fields: name and value as folded words, and where they stand."""
        fields = []
        for line in self._lines:
            if line.source == SELF_REPORTED:
                name, value = (" ".join(fold_words(part)) for part in line.text.partition(": ")[::2])
                if name and value:
                    fields.append((name, value, _Span(line.start, line.end, line.source, Match.NORMALISED)))
        return fields

    @cached_property
    def _labels(self) -> re.Pattern[str]:
        """What a model may put before a quotation to say which source it is from."""
        sources = {line.source for line in self._lines} - {SELF_REPORTED}
        names = "|".join(re.escape(s).replace("_", "[ _]") for s in sorted(sources, key=len, reverse=True))
        source = rf"|(?:the\s)?(?:user\s)?(?:{names}){_LABEL_END}" if names else ""
        return re.compile(
            rf"(?P<reported>{_REPORTED_LABEL}){source}",
            re.IGNORECASE,
        )

    # --- finding -----------------------------------------------------------------------------------------

    def _find(self, text: str) -> _Span | None:
        first = _reading(text)
        if first.meaningful and (span := self._exact(text)) is not None:
            return span
        readings = [first, *self._other_readings(text.strip())]
        for reading in readings:
            if (span := self._normalised(reading)) is not None:
                if span.match is Match.NORMALISED and self.block[span.start : span.end] == text:
                    return span._replace(match=Match.EXACT)
                return span
        if (span := self._field(text)) is not None:
            return span
        for reading in readings:
            if (span := self._fuzzy(reading)) is not None:
                return span
        return None

    def _other_readings(self, text: str) -> Iterator[_Reading]:
        """`text` without its label, and each without an amount at its end."""
        bare, reported = text, False
        if (label := self._labels.match(text)) is not None and label.end() < len(text):
            bare, reported = text[label.end() :], label["reported"] is not None
            yield _reading(bare, reported)
        if (colon := _ANY_LABEL.match(bare)) is not None:
            bare = bare[colon.end() :]
            yield _reading(bare, reported)
        for labelled in dict.fromkeys((text, bare)):
            if labelled.endswith(_AMOUNT_ENDS) and (
                amount := _AMOUNT.search(labelled, max(0, len(labelled) - 40))
            ):
                rest = labelled[: amount.start()]
                if rest and (not amount[0][0].isalnum() or is_unspaced(rest[-1])):
                    yield _reading(rest, reported and labelled is bare, amount["number"])

    def _exact(self, text: str) -> _Span | None:
        block, at = self.block, -1
        for _ in range(_MAX_TRIES):
            at = block.find(text, at + 1)
            if at < 0:
                return None
            end = at + len(text)
            if glued(block, at) or glued(block, end):
                continue
            line = self._line_at.get(block.rfind("\n", 0, at) + 1)
            if line is not None and line.start <= at and end <= line.end:
                return _Span(at, end, line.source, Match.EXACT)
        return None

    def _normalised(self, reading: _Reading) -> _Span | None:
        pattern = reading.folded
        if not pattern:
            return None
        if not reading.meaningful:
            whole = self._wholes.get(pattern)
            if whole is None or (reading.reported and whole.source != SELF_REPORTED):
                return None
            return whole
        folded = self._folded
        for begin in self._searched_from(reading):
            at = begin - 1
            for _ in range(_MAX_TRIES):
                at = folded.folded.find(pattern, at + 1)
                if at < 0:
                    break
                if folded.may_begin(at) and folded.may_end(at + len(pattern)):
                    return self._from_folded(at, at + len(pattern), reading, Match.NORMALISED)
        return None

    def _field(self, text: str) -> _Span | None:
        """A self-reported field whose value is in `text`, and its name too unless `text` says self-reported."""
        if not self._fields or len(text) > _MAX_FIELD_QUOTE or _ABSENCE.match(text) is not None:
            return None
        words = f" {' '.join(fold_words(text))} "
        reported = _REPORTED.search(text) is not None
        for name, value, span in self._fields:
            if f" {value} " in words and (reported or f" {name} " in words):
                return span
        return None

    def _searched_from(self, reading: _Reading) -> tuple[int, ...]:
        """What is called self-reported is looked for there first, and elsewhere only if it is telling."""
        if not reading.reported:
            return (0,)
        return (self._reported_from, 0) if len(reading.folded) >= _TELLING else (self._reported_from,)

    def _fuzzy(self, reading: _Reading) -> _Span | None:
        pattern = reading.folded
        allowed = allowed_differences(pattern)
        if not reading.meaningful or allowed is None:
            return None
        folded = self._folded
        found = find_approximately(
            pattern, folded.folded, self._searched_from(reading)[-1], len(folded.folded)
        )
        if found is None:
            return None
        start, end, differences = found
        start, moved_start = self._nearest(start, -1, folded.may_begin)
        end, moved_end = self._nearest(end, 1, folded.may_end)
        if start >= end or differences + moved_start + moved_end > allowed:
            return None
        return self._from_folded(start, end, reading, Match.FUZZY)

    def _nearest(self, at: int, outward: int, is_boundary: Callable[[int], bool]) -> tuple[int, int]:
        """The nearest word boundary to a folded offset, `outward` first, and how far it is."""
        for distance in range(MAX_LENGTH):
            for place in (at + outward * distance, at - outward * distance):
                if 0 <= place < len(self._folded.folded) and is_boundary(place):
                    return place, distance
        return at, MAX_LENGTH

    def _from_folded(self, start: int, end: int, reading: _Reading, match: Match) -> _Span:
        line = self._lines[self._folded.stretch_at(start)]
        origin = self._folded.origin(start, end)
        if reading.number is not None and not _has_number(self.block[line.start : line.end], reading.number):
            match = Match.FUZZY
        return _Span(origin[0], self._tidy_end(*origin, line, reading.text), line.source, match)

    def _tidy_end(self, start: int, end: int, line: CueLine, text: str) -> int:
        """`end` moved behind closing punctuation: a bracket that the span opens, or what `text` ends with too."""
        block = self.block
        while end < line.end:
            char = block[end]
            opening = _BRACKETS.get(char)
            opened = opening is not None and block.count(opening, start, end) > block.count(char, start, end)
            if not opened and (char.isalnum() or char.isspace() or char not in text[-_TAIL:]):
                break
            end += 1
        return end


def _has_number(content: str, number: str) -> bool:
    return re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", content) is not None


def _reading(text: str, reported: bool = False, number: str | None = None) -> _Reading:
    words = fold_words(text)
    return _Reading(text, "".join(words), _is_meaningful(words), reported, number)


def _is_meaningful(words: list[str]) -> bool:
    """Whether there is more than stop words, numbers and single characters among folded words; an emoji is."""
    unspaced = 0
    for word in words:
        if unicodedata.category(word[0]) == "So":
            return True
        if is_unspaced(word[:1]):
            unspaced += sum(c not in _STOP_CHARACTERS for c in word)
            if unspaced >= 2:
                return True
        elif len(word) > 1 and word not in _STOP_WORDS and _NUMBER_LIKE.match(word) is None:
            return True
    return False
