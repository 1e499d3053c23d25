"""A column's values as tags of an attribute, and which of them are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from cp_agents.schema import NA
from cp_agents.taxonomy import Attribute, fold

_MOST_KINDS = 10_000
_LONGEST = 60


class Truth:
    """Maps the values of one gold column, and counts.

    `values` (folded value -> tag) go before the taxonomy's own names, aliases and ranges. A value that is none of
    them is NA.
    """

    def __init__(self, attribute: Attribute, values: Mapping[str, str]) -> None:
        self.attribute = attribute.name
        self.tags: Counter[str] = Counter()
        """Users by tag, NA included."""
        self.unmapped: Counter[str] = Counter()
        """Users by a value that names no tag; beyond some thousands of values "(others)"."""
        self._match = attribute.match_value
        self._values = values
        self._known: dict[str, str | None] = {}

    def is_known(self, value: str) -> bool:
        """Whether the map gives the value a tag, or it names one other than NA."""
        return fold(value) in self._values or (self._match(value) or NA) != NA

    def tag(self, value: str) -> str:
        """The tag of one user's value."""
        found = self._known.get(value, "")
        if found == "":
            folded = fold(value)
            found = self._values.get(folded) or self._match(value)
            if len(self._known) < _MOST_KINDS:
                self._known[value] = found
        if found is None:
            shown = value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"
            is_kept = shown in self.unmapped or len(self.unmapped) < _MOST_KINDS
            self.unmapped[shown if is_kept else "(others)"] += 1
        tag = found or NA
        self.tags[tag] += 1
        return tag
