"""A data set's folder: users.jsonl, with gold.jsonl, dataset.json and recorded_guesses.jsonl where there are any.

`dataset.json` is the card that `bench prepare` writes; a folder without one, with only users and gold, is a data
set too and goes by the folder's name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cp_agents.errors import InputError, first_fault
from cp_agents.evaluation.loading import Gold, load_gold
from cp_agents.files import read_text

USERS, GOLD, CARD, GUESSES = "users.jsonl", "gold.jsonl", "dataset.json", "recorded_guesses.jsonl"
TRUTH_FIELDS = ("inferable", "truth")
"""Fields of gold rows, the fairer one first: `inferable` is NA where even a person could not tell from the text."""


class Card(BaseModel):
    """What `bench prepare` notes of a data set. Written as dataset.json."""

    model_config = ConfigDict(extra="forbid")

    name: str
    title: str = ""
    licence: str = ""
    citation: str = ""
    home: str = ""
    redistribute: bool = False
    """Whether the licence lets the converted files be passed on."""
    rules: str = ""
    """Name of the mapping rules, with the hash of their content."""
    users: int = 0
    gold: int = 0
    """Users with at least one attribute known."""
    splits: dict[str, int] = Field(default_factory=dict)
    left_out: dict[str, int] = Field(default_factory=dict)
    """What was not taken over, by reason."""
    notes: list[str] = Field(default_factory=list)


class Dataset(NamedTuple):
    """Where a data set lies, and its card."""

    folder: Path
    card: Card

    @property
    def name(self) -> str:
        """As in tables."""
        return self.card.name

    @property
    def users(self) -> Path:
        """Records, one JSON object a line."""
        return self.folder / USERS

    @property
    def gold(self) -> Path | None:
        """The truth, where there is any."""
        path = self.folder / GOLD
        return path if path.is_file() else None

    @property
    def guesses(self) -> Path | None:
        """What language models were recorded to answer (SynthPAI)."""
        path = self.folder / GUESSES
        return path if path.is_file() else None


def open_dataset(folder: str | Path) -> Dataset:
    """A data set's folder. Raises `InputError` where it is none."""
    folder = Path(folder)
    if not (folder / USERS).is_file():
        raise InputError(f"{folder} is no data set's folder: it has no {USERS} (`bench prepare` makes one)")
    path = folder / CARD
    if not path.is_file():
        return Dataset(folder, Card(name=folder.resolve().name))
    try:
        return Dataset(folder, Card.model_validate_json(read_text(path)))
    except ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}") from None


def read_gold(dataset: Dataset, truth_field: str | None = None) -> tuple[Gold, str]:
    """The truth and the field that it was read from: the named one, else the first of `TRUTH_FIELDS` in the first row.

    Raises `InputError` where the data set has no gold or the field is missing.
    """
    if dataset.gold is None:
        raise InputError(f"{dataset.folder} has no {GOLD}: nothing can be compared with the truth")
    return read_truth(dataset.gold, truth_field)


def read_truth(path: Path, truth_field: str | None = None) -> tuple[Gold, str]:
    """As `read_gold`, from a file of gold rows."""
    if truth_field is None:
        truth_field = next((f for f in TRUTH_FIELDS if f in _first_row(path)), TRUTH_FIELDS[-1])
    return load_gold(path, truth_field), truth_field


def _first_row(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    return {}  # `load_gold` says it better
                return row if isinstance(row, dict) else {}
    return {}
