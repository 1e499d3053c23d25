"""What tests of GRPO train on: a tiny random student that says elements of the wire format, and its reference run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cp_agents.stores.student_card import write_card
from cp_agents.trainers.grpo_config import GrpoSettings, grpo_settings
from cp_agents.trainers.reference import run_reference
from tests.student_models import make_card
from tests.support import RECORD
from tests.test_transformers_backend import make_model

USERS = [{**RECORD, "user_id": f"u{i}", "posted": [f"my cat sleeps {i} hours"]} for i in range(8)]
LANGUAGE = "en-compact"


def element(attribute: str, tag: str, confidence: int) -> str:
    return f"<{attribute}><tag>{tag}</tag><score>{confidence}</score><evidence>x</evidence></{attribute}>"


WORDS = {
    element("pet", "Cat", 4): 3.0,
    element("pet", "Dog", 2): 3.0,
    element("home", "Flat", 5): 3.0,
    element("home", "House", 2): 3.0,
}
"""Each a token, so that a policy of random weights gives answers that can be read, wrong ones and broken ones."""


def make_policy(folder: Path, seed: int = 0, *, card: bool = True) -> Path:
    make_model(folder, seed=seed, words=WORDS, end=3.0, context=4096)
    if card:
        write_card(folder, make_card(language=LANGUAGE))
    return folder


def make_reference(store: Path, student: Path) -> str:
    return run_reference(store, student, USERS, max_tokens=16, device="cpu", dtype="float32")


def tiny(model: Path, store: Path, reference: str, out: Path, **changes: Any) -> GrpoSettings:
    """Steps of 2 users with 4 rollouts of at most 8 tokens."""
    values: dict[str, Any] = {
        "model": str(model),
        "store": store,
        "reference": reference,
        "out": out,
        "steps": 4,
        "prompts": 2,
        "rollouts": 4,
        "max_tokens": 8,
        "learning_rate": 0.01,
        "save_every": 2,
        "device_batch": 8,
        **changes,
    }
    return grpo_settings("cpu-smoke", **values)
