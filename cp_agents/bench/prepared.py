"""What a converter hands over, and the step from there to a data set's folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.bench.dataset import Card
from cp_agents.bench.rules import Format, Rules
from cp_agents.bench.writing import Entry, write_dataset


class Prepared(NamedTuple):
    """A data set that is read while it is written: entries can be taken once."""

    rules: Rules
    form: Format
    """How the set was published."""
    entries: Iterable[Entry]
    left_out: Mapping[str, int]
    """What was not taken over, by reason; complete after the last entry."""
    guesses: Iterator[dict[str, Any]] | None = None
    """What language models were recorded to answer; read after the last entry."""
    notes: tuple[str, ...] = ()
    """What is particular to this conversion, beside the notes of the rules."""

    def write(self, out: str | Path) -> Card:
        """Write the folder, whole or not at all, and return its card. Raises `InputError`."""
        rules = self.rules

        def complete(card: Card) -> Card:
            return card.model_copy(
                update={
                    "title": self.form.title,
                    "licence": rules.licence,
                    "citation": rules.citation.strip(),
                    "home": rules.home,
                    "redistribute": rules.redistribute,
                    "rules": rules.label,
                    "notes": [rules.redistribution, *rules.notes, *self.notes],
                }
            )

        return write_dataset(
            out, self.entries, complete, name=self.form.name, left_out=self.left_out, guesses=self.guesses
        )
