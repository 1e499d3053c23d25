"""The card that lies in a student's folder: what it was trained from, on which prompt and for which taxonomy.

A student knows the taxonomy and the prompt by heart, so serving refuses any other. Trainers write the card last, when
the weights lie beside it; the registry (`cp_agents.stores.students`) is filled from it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cp_agents.errors import InputError
from cp_agents.files import whole_file
from cp_agents.taxonomy import Taxonomy

CARD = "cp_agents_student.json"

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SHAPES = ("config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")
_TRAINING = ("training_args", "optimizer", "scheduler", "rng_state")
"""Beginnings of the names of what a trainer leaves beside the weights."""
_CHUNK = 1 << 20
_MOST_HEADER = 100 << 20


class StudentCard(BaseModel):
    """What a trained model may be used with, and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    """The model it was trained from, as after `transformers:`."""
    base_hash: str = ""
    """`weights_hash` of the base's folder; empty where the base is no folder."""
    kind: Literal["full", "adapter"]
    language: str
    """Prompt language (en, en-compact, ...) or folder of templates."""
    prompt_version: str
    taxonomy: dict[str, Any]
    taxonomy_hash: str
    stage: Literal["sft", "grpo"]
    source_run: str | None = None
    """The teacher's run that it learned from."""
    training: dict[str, Any] = {}
    """Settings, hash of the data, run folder."""
    metrics: dict[str, Any] = {}
    """Measured on held-out users."""

    def read_taxonomy(self) -> Taxonomy:
        """The taxonomy it was trained on."""
        return Taxonomy.model_validate(self.taxonomy)


def write_card(folder: Path, card: StudentCard) -> None:
    """Put `card` into a student's folder, whole or not at all."""
    with whole_file(folder / CARD) as out:
        out.write(card.model_dump_json(indent=1) + "\n")


def read_card(folder: Path) -> StudentCard:
    """The card of the student in `folder`. Raises `InputError` where there is none or it cannot be read."""
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"{folder} holds no student of cp-agents: expected a file {CARD} beside the weights")
    try:
        return StudentCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a student's card ({' '.join(str(error).split())[:200]})") from None


def weights_hash(folder: Path) -> str:
    """16 hex digits over every byte of weights, configuration and tokenizer of a folder.

    Raises `InputError` where there are no weights.
    """
    weights = sorted(
        path for pattern in _WEIGHTS for path in folder.glob(pattern) if not path.name.startswith(_TRAINING)
    )
    if not weights:
        raise InputError(f"{folder} holds no weights (*.safetensors)")
    digest = hashlib.sha256()
    for path in [*weights, *(folder / name for name in _SHAPES if (folder / name).is_file())]:
        digest.update(f"{path.name}\x1f{path.stat().st_size}\x1f".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def check_whole(folder: Path, kind: Literal["full", "adapter"]) -> None:
    """Raise `InputError` where something is missing from a student's folder, or its weights end too early.

    Of each safetensors file the header is read, which says how long the file has to be.
    """
    config = "config.json" if kind == "full" else "adapter_config.json"
    names = {"full": "model*.safetensors", "adapter": "adapter_model*.safetensors"}
    if not (folder / config).is_file():
        raise InputError(f"{folder} is no whole student: it has no {config}")
    if kind == "full" and not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"{folder} is no whole student: it has no tokenizer_config.json")
    found = {path.name for path in folder.glob(names[kind])}
    for index in folder.glob("*.safetensors.index.json"):
        found |= set(_weight_map(index).values())
    if not found:
        raise InputError(f"{folder} is no whole student: it has no {names[kind]}")
    for name in sorted(found):
        if not _is_whole(folder / name):
            raise InputError(f"{folder} is no whole student: {name} is missing or ends too early")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{index.parent} is no whole student: {index.name} cannot be read") from None


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MOST_HEADER:
                return False
            header = json.loads(file.read(length))
        ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
        return bool(path.stat().st_size == 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False
