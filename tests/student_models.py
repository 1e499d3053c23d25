"""Students for tests: tiny random models in folders with a card, as the trainers leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from cp_agents.prompts.render import load_prompt
from cp_agents.stores.student_card import StudentCard, weights_hash, write_card
from cp_agents.taxonomy import Taxonomy
from tests.support import PETS
from tests.test_transformers_backend import make_adapter, make_model

CONTEXT = 16384
"""Tokens that the models take: theirs are bytes, and a prompt has some thousands of them."""


def make_card(
    base: str = "base", taxonomy: Taxonomy = PETS, language: str = "en", **changes: Any
) -> StudentCard:
    kind: Literal["full", "adapter"] = changes.pop("kind", "full")
    return StudentCard(
        base=base,
        kind=kind,
        language=language,
        prompt_version=load_prompt(taxonomy, language).version,
        taxonomy=taxonomy.model_dump(mode="json"),
        taxonomy_hash=taxonomy.hash,
        stage=changes.pop("stage", "sft"),
        metrics=changes.pop("metrics", {"parse_rate": 0.5}),
        **changes,
    )


def make_student(folder: Path, seed: int = 0, **card: Any) -> Path:
    """A full student."""
    make_model(folder, seed=seed, context=CONTEXT)
    write_card(folder, make_card(**card))
    return folder


def make_adapter_student(base: Path, folder: Path, seed: int = 1, **card: Any) -> Path:
    """A LoRA student of the model in `base`."""
    make_adapter(base, folder, seed)
    write_card(folder, make_card(str(base), kind="adapter", base_hash=weights_hash(base), **card))
    return folder
