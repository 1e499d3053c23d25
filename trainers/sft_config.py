"""Settings of supervised fine-tuning, and the presets that fill them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cp_agents.trainers.presets import from_preset

Mode = Literal["full", "lora", "qlora"]


class SftSettings(BaseModel):
    """What `train_sft` does. One step is one update of the weights, by `batch` rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    """What training starts from, see `cp_agents.trainers.base_model.find_base`."""
    data: Path
    """A folder as `cp_agents.trainers.sft_data.export_sft` writes it."""
    out: Path
    """The run's folder."""
    gold: Path | None = None
    """Gold JSONL of held-out users, to be measured against besides the voted labels."""

    mode: Mode = "full"
    epochs: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    max_steps: int | None = Field(default=None, ge=1)
    """Steps instead of epochs."""
    learning_rate: float = Field(default=1e-5, gt=0, lt=1)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; from there it falls to 0 along a cosine."""
    batch: int = Field(default=32, ge=1)
    """Rows per step, over all processes."""
    device_batch: int | None = Field(default=None, ge=1)
    """Rows that one process reads at a time; a step takes as many turns as it needs. None: as many as fit."""
    max_length: int = Field(default=2048, ge=16)
    """Most tokens of prompt and answer. Longer rows are left out and counted: a cut answer teaches not to end."""
    packing: bool = False
    """Rows share sequences of `max_length` without padding or seeing each other; a step then takes `batch`
    sequences."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: far less memory, about a third slower."""
    bf16: bool | None = None
    """Compute in bfloat16, with weights and optimizer in float32. None: where the machine can."""
    seed: int = Field(default=0, ge=0)

    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    lora_targets: str = Field(default="all-linear", min_length=1)
    """Names of layers, comma-separated, or all-linear: every linear layer but the head."""

    eval_every: int = Field(default=50, ge=0)
    """Steps between two rounds of profiling held-out users; there is one at the end too. 0: only that."""
    eval_users: int = Field(default=64, ge=0)
    """Held-out users that are profiled in each round; 0: none."""
    eval_tokens: int = Field(default=512, ge=1)
    """Most tokens of an answer in these rounds."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many rounds without a better macro-F1, and keep the best round's weights. None: neither."""
    save_every: int = Field(default=50, ge=1)
    """Steps between two checkpoints."""
    ignore_memory: bool = False
    """Train even if the estimate says that memory will not do."""

    @property
    def is_lora(self) -> bool:
        """Whether an adapter is trained rather than all weights."""
        return self.mode != "full"


PRESETS: dict[str, dict[str, Any]] = {
    # The paper's recipe (section 5.1): every weight, lr 1e-5, 32 rows a step, two epochs.
    "paper": {"mode": "full", "learning_rate": 1e-5, "batch": 32, "epochs": 2, "gradient_checkpointing": True},
    # Ten times the learning rate of full fine-tuning: an adapter starts as zero (B = 0) and is the product of two
    # small matrices, so that the same rate moves the weights' sum far less; with the full rate it seems not to learn.
    "lora": {"mode": "lora", "learning_rate": 1e-4, "batch": 32, "epochs": 2, "gradient_checkpointing": True},
    # A small model on a few cores: small models want higher rates, and memory is not what is short.
    "cpu-smoke": {
        "mode": "full",
        "learning_rate": 2e-4,
        "batch": 16,
        "epochs": 1,
        "max_length": 1024,
        "eval_every": 25,
        "eval_users": 32,
        "eval_tokens": 384,
        "save_every": 25,
    },
}  # fmt: skip


def sft_settings(preset: str = "paper", **changes: Any) -> SftSettings:
    """The preset's settings with `changes` on top. Raises `InputError` that names the preset or the field.

    A mode other than the preset's brings the learning rate of its own kind along, unless one is given.
    """
    return from_preset(SftSettings, PRESETS, preset, changes)
