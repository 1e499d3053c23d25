"""Settings of GRPO, the presets that fill them, and how a step is cut into pieces that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cp_agents.errors import InputError
from cp_agents.trainers.presets import from_preset
from cp_agents.trainers.rewards import RewardSettings
from cp_agents.trainers.stop_rules import StopRules

Mode = Literal["full", "lora", "qlora"]


class GrpoSettings(BaseModel):
    """What `train_grpo` does. One step is one update of the weights, by `prompts` x `rollouts` rollouts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    """What training starts from: a student's folder (of weights or of an adapter), or, for GRPO without SFT, any model
    as after `transformers:`."""
    store: Path
    """The trace store with the reference run."""
    reference: str = Field(min_length=1)
    """The run of one pass of this very model over the users, see `cp_agents.trainers.reference`: their records and
    C_ref come from it."""
    out: Path
    """The run's folder."""
    users: Path | None = None
    """JSONL with the `user_id` of those to train on, as the difficulty filter writes it. None: all of the run."""
    gold: Path | None = None
    """Gold JSONL. Nothing learns from it: it is what label_accuracy and reward_accuracy are measured against."""
    hybrid: bool = False
    """Let what people answered in the review queue be the target for the users and attributes that they spoke of."""
    language: str | None = None
    """Prompt language for a model without a student's card, en by default; a student's own is on its card."""

    mode: Mode = "full"
    steps: int = Field(default=45, ge=1)
    prompts: int = Field(default=128, ge=1)
    """Users per step."""
    rollouts: int = Field(default=32, ge=1)
    """G, rollouts per user: the group that votes."""
    learning_rate: float = Field(default=1e-6, gt=0, lt=1)
    """Constant: 45 steps are too few for a schedule."""
    beta: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """Weight of the KL divergence from the model that training starts from; 0 does without a second model."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=1200, ge=8)
    """Most tokens of a rollout. What does not end in time is malformed from the attribute on that it ends in."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """How tokens' losses become one: `grpo`, the mean over the tokens of a rollout, then over rollouts (Shao et al.
    2024, what the paper says it uses); `dapo`, the mean over all tokens of a step, so that long answers count for
    more (what verl's default comes to); `bnpo`, the same within `device_batch`; `dr_grpo`, the sum over a constant."""
    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the deviation of the group (as in GRPO), of the batch, or nothing (Dr. GRPO).

    C_ref is equal for all rollouts of a user, so divided by the group's deviation it weighs the attributes of one user
    against each other and no user against another. `none` lets users whom the reference was sure of teach more."""
    reward: RewardSettings = RewardSettings()
    stop: StopRules = StopRules()
    """A run may be resumed with other rules, to go on where one was stopped."""

    device_batch: int | None = Field(default=None, ge=1)
    """Rollouts that one process learns from at a time. None: as many as fit."""
    generation_batch: int | None = Field(default=None, ge=2)
    """Rollouts sampled at a time, by all processes together. None: with vLLM a whole step, else what memory allows."""
    rollout_backend: Literal["transformers", "vllm-colocate", "vllm-server"] = "transformers"
    """What samples: the trained model itself; vLLM in the same process; a `trl vllm-serve` server."""
    vllm_server: str | None = None
    """Base URL of the server for `vllm-server`."""
    vllm_memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of the GPU's memory for `vllm-colocate`."""
    gradient_checkpointing: bool = False
    bf16: bool | None = None
    """Compute in bfloat16, with weights and optimizer in float32. None: where the machine can."""
    seed: int = Field(default=0, ge=0)

    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    lora_targets: str = Field(default="all-linear", min_length=1)
    """Names of layers, comma-separated, or all-linear: every linear layer but the head."""

    save_every: int = Field(default=5, ge=1)
    """Steps between two checkpoints."""
    ignore_memory: bool = False
    """Train even if the estimate says that memory will not do."""

    @property
    def is_lora(self) -> bool:
        """Whether an adapter is trained rather than all weights."""
        return self.mode != "full"

    @property
    def uses_vllm(self) -> bool:
        """Whether vLLM samples."""
        return self.rollout_backend != "transformers"


PRESETS: dict[str, dict[str, Any]] = {
    # The paper's recipe (section 5.1).
    "paper": {
        "mode": "full", "steps": 45, "prompts": 128, "rollouts": 32, "learning_rate": 1e-6, "beta": 0.001,
        "temperature": 1.0, "top_p": 0.95, "loss": "grpo", "scale": "group", "gradient_checkpointing": True,
    },
    # Ten times the learning rate, as in SFT: with the full rate an adapter seems not to learn.
    "lora": {
        "mode": "lora", "steps": 45, "prompts": 128, "rollouts": 32, "learning_rate": 1e-5, "beta": 0.001,
        "temperature": 1.0, "top_p": 0.95, "loss": "grpo", "scale": "group", "gradient_checkpointing": True,
    },
    # A small model on a few cores: groups large enough for a vote, steps small enough to see several.
    "cpu-smoke": {
        "mode": "full", "steps": 4, "prompts": 4, "rollouts": 4, "learning_rate": 1e-5, "max_tokens": 256,
        "save_every": 2,
    },
}  # fmt: skip


def grpo_settings(preset: str = "paper", **changes: Any) -> GrpoSettings:
    """The preset's settings with `changes` on top. Raises `InputError` that names the preset or the field.

    A mode other than the preset's brings the learning rate of its own kind along, unless one is given.
    """
    settings = from_preset(GrpoSettings, PRESETS, preset, changes)
    if settings.rollouts < 2:
        raise InputError(
            "rollouts: a group of 1 agrees with its own vote, so there is nothing to learn; take at least 2"
        )
    if settings.rollout_backend == "vllm-server" and not settings.vllm_server:
        raise InputError("vllm_server: rollouts by a vLLM server need its base URL, as http://127.0.0.1:8000")
    return settings


class Batches(NamedTuple):
    """How the rollouts of a step are cut."""

    device: int
    """A process learns from so many at a time."""
    accumulation: int
    """Times that it does so before the weights change."""
    generation: int
    """Rollouts that are sampled at a time, over all processes; whole groups."""

    def per_generation(self, processes: int) -> int:
        """Times of learning that one round of sampling serves."""
        return self.generation // (self.device * processes)


def plan_batches(settings: GrpoSettings, processes: int, *, device: int, generation: int) -> Batches:
    """Cut a step for `processes` processes.

    `device` and `generation` are what fits at most, used where the settings leave it open: the largest that divides
    the step is taken. Raises `InputError` where what the settings say cannot be cut evenly.
    """
    group, total = settings.rollouts, settings.prompts * settings.rollouts
    if total % processes:
        raise InputError(
            f"a step of {settings.prompts} prompts x {group} rollouts cannot be shared evenly by {processes} processes:"
            f" take a number of prompts with {settings.prompts} x {group} divisible by {processes}"
        )
    share = total // processes
    if settings.device_batch is not None:
        device = settings.device_batch
        if share % device:
            raise InputError(
                f"device_batch {device} does not divide the {share} rollouts that each process has in a step"
                f" ({settings.prompts} prompts x {group} rollouts / {processes} processes)"
            )
    else:
        device = next(d for d in range(max(min(device, share), 1), 0, -1) if share % d == 0)
    fitting = [g for g in range(group, total + 1, group) if total % g == 0 and g % (device * processes) == 0]
    if settings.generation_batch is not None:
        if settings.generation_batch not in fitting:
            raise InputError(
                f"generation_batch {settings.generation_batch} cannot be: rollouts are sampled in whole groups, so it"
                f" has to be a multiple of {group} and of device_batch x processes ({device} x {processes})"
                f" that divides the {total} rollouts of a step, as {', '.join(map(str, fitting[:6]))}"
            )
        return Batches(device, share // device, settings.generation_batch)
    chosen = max([g for g in fitting if g <= generation], default=fitting[0])
    return Batches(device, share // device, chosen)
