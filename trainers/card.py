"""The card that lies in a student's folder: what it was trained from, on which prompt and for which taxonomy.

A student knows the taxonomy and the prompt by heart, so serving refuses any other. The registry in the store
(`cp_agents.stores.students`) is filled from this card.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cp_agents.errors import InputError
from cp_agents.files import whole_file
from cp_agents.taxonomy import Taxonomy

CARD = "cp_agents_student.json"

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SHAPES = ("config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")
_CHUNK = 1 << 20


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
    """16 hex digits over weights, configuration and tokenizer of a folder.

    Raises `InputError` where there are no weights.
    """
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not weights:
        raise InputError(f"{folder} holds no weights (*.safetensors)")
    digest = hashlib.sha256()
    for path in [*weights, *(folder / name for name in _SHAPES if (folder / name).is_file())]:
        digest.update(f"{path.name}\x1f{path.stat().st_size}\x1f".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]
