"""What a run of GRPO will do, worked out and checked before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cp_agents.errors import InputError
from cp_agents.trainers.base_model import Base, end_tokens, find_base, load_tokenizer, read_config
from cp_agents.trainers.grpo_config import Batches, GrpoSettings, plan_batches
from cp_agents.trainers.grpo_data import GrpoData, GrpoRow, load_grpo_data
from cp_agents.trainers.machine import Machine, find_machine
from cp_agents.trainers.machine import shards as count_shards
from cp_agents.trainers.memory import Plan, Shape, needed_bytes, read_shape

_LOGIT_COPIES = 4
"""Of a token's logits in float32: as computed, by temperature, as log-probabilities, and their gradient."""
_CACHE_SHARE = 0.25
"""Of all memory that the cache of one round of sampling may take."""
_MOST_DEVICE = {"cpu": 4, "cuda": 64}
_MOST_GENERATION = {"cpu": 64, "cuda": 1024}
_HEADROOM = 0.95


@dataclass(frozen=True)
class GrpoPlan:
    """A run that can begin."""

    settings: GrpoSettings
    base: Base
    base_hash: str
    data: GrpoData
    tokenizer: Any
    ends: frozenset[int]
    """Tokens that end an answer."""
    rows: list[GrpoRow]
    left_out: int
    """Users whose prompt and answer are longer than the model's context."""
    machine: Machine
    batches: Batches
    needed: int
    """Bytes, an estimate."""

    @property
    def keeps_adapter(self) -> bool:
        """Whether an adapter that is there already is trained further."""
        return self.settings.is_lora and self.base.files.adapter is not None

    def config(self) -> dict[str, Any]:
        """What a resumed run has to have in common with this one."""
        outside = {"out", "store", "users", "gold", "reference", "stop", "ignore_memory"}
        settings = self.settings.model_dump(mode="json", exclude=outside)
        return {
            **settings,
            "reference": self.data.run_id,
            "base_hash": self.base_hash,
            "data_hash": self.data.hash,
        }

    def summary(self) -> dict[str, Any]:
        """For people: resolved settings, batches and memory."""
        machine = self.machine
        return {
            **self.settings.model_dump(mode="json"),
            "device": machine.device,
            "bf16": machine.bf16,
            "processes": machine.processes,
            "device_batch": self.batches.device,
            "accumulation": self.batches.accumulation,
            "generation_batch": self.batches.generation,
            "users_to_train_on": len(self.rows),
            "users_left_out": self.left_out,
            "memory_needed_gb": round(self.needed / 1e9, 1),
            "memory_free_gb": round(machine.free / 1e9, 1),
        }


def plan_grpo(settings: GrpoSettings, *, check: bool = True) -> GrpoPlan:
    """Read and check all that training needs but the weights.

    Raises `InputError` for a model that is not there, a reference run of another one, users too few or too long, a
    step that cannot be cut evenly, and, unless `check` is off, memory that will not do.
    """
    base = find_base(settings.model)
    _check_vllm(settings, base)
    data = load_grpo_data(settings, base)
    machine = find_machine(settings.bf16)
    shape = read_shape(base, rank=settings.lora_rank, targets=settings.lora_targets)
    tokenizer, config = load_tokenizer(base), read_config(base)
    lengths = _lengths(data.rows, tokenizer)
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or max(lengths) + 10**6
    fitting = [length + settings.max_tokens <= context for length in lengths]
    rows = [row for row, fits in zip(data.rows, fitting, strict=True) if fits]
    if len(rows) < settings.prompts:
        raise InputError(
            f"{len(rows)} users fit with max_tokens {settings.max_tokens:,} into the model's context of {context:,}"
            f" tokens (their prompts have up to {max(lengths):,}), and a step takes {settings.prompts}: take fewer"
            " tokens, or a compact prompt"
        )
    cost = _Cost(settings, shape, config.get_text_config(), machine, max(lengths) + settings.max_tokens)
    batches = plan_batches(
        settings, machine.processes, device=cost.most_device(), generation=cost.most_generation()
    )
    needed = cost.training(batches.device)
    if check and not settings.ignore_memory:
        cost.check(batches.device)
    return GrpoPlan(
        settings=settings,
        base=base,
        base_hash=base.hash,
        data=data,
        tokenizer=tokenizer,
        ends=end_tokens(base, config, tokenizer),
        rows=rows,
        left_out=len(data.rows) - len(rows),
        machine=machine,
        batches=batches,
        needed=needed,
    )


def _check_vllm(settings: GrpoSettings, base: Base) -> None:
    if not settings.uses_vllm:
        return
    from importlib.util import find_spec

    if find_spec("vllm") is None:  # the client of a server comes with vLLM too
        from cp_agents.errors import MissingExtraError

        raise MissingExtraError("rollouts by vLLM", "vllm")
    if settings.is_lora and (base.files.gguf or base.files.adapter is not None):
        raise InputError(
            f"vLLM cannot start from {base.spec} with an adapter to be trained: it needs a folder of plain weights"
            " below it"
        )


def _lengths(rows: list[GrpoRow], tokenizer: Any) -> list[int]:
    texts = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


class _Cost:
    """What memory a way to train takes: SFT's estimate, the frozen copy, the logits, and the cache in sampling."""

    def __init__(
        self, settings: GrpoSettings, shape: Shape, config: Any, machine: Machine, length: int
    ) -> None:
        self.settings, self.shape, self.machine = settings, shape, machine
        shards = count_shards(machine.processes)
        self.way = Plan(
            settings.mode, 1, length, machine.bf16, settings.gradient_checkpointing, shards=shards
        )
        self.vocabulary: int = config.vocab_size
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        number = 2 if machine.bf16 else 4
        self.cache_of_rollout: int = 2 * length * config.num_hidden_layers * kept * width * number
        self.frozen = 4 * shape.parameters // shards if settings.beta and settings.mode == "full" else 0

    def training(self, rows: int) -> int:
        """Bytes of a process that learns from `rows` rollouts at a time."""
        logits = _LOGIT_COPIES * 4 * rows * self.settings.max_tokens * self.vocabulary
        known = needed_bytes(self.shape, self.way._replace(rows=rows), self.machine.device)
        return known + self.frozen + logits

    def most_device(self) -> int:
        """The rollouts to learn from at a time that memory holds, of all there is, so that a resumed run comes to
        the same."""
        limit = self.machine.total * _HEADROOM
        rows = [r for r in range(1, _MOST_DEVICE[self.machine.device] + 1) if self.training(r) <= limit]
        return max(rows, default=1)

    def most_generation(self) -> int:
        """The rollouts to sample at a time."""
        if self.settings.uses_vllm:
            return self.settings.prompts * self.settings.rollouts
        fitting = int(self.machine.total * _CACHE_SHARE / self.cache_of_rollout)
        return min(fitting, _MOST_GENERATION[self.machine.device]) * self.machine.processes

    def check(self, rows: int) -> None:
        """Raise `InputError` where free memory will not do."""
        needed, free = self.training(rows), self.machine.free
        if needed <= free * _HEADROOM:
            return
        ways = [
            *(["device_batch 1"] if rows > 1 else []),
            *(["mode lora"] if self.settings.mode == "full" else []),
            *(["gradient checkpointing"] if not self.settings.gradient_checkpointing else []),
            "fewer max_tokens",
        ]
        what = "memory of the GPU" if self.machine.device == "cuda" else "memory"
        raise InputError(
            f"too little {what} to train {self.settings.model}: {rows} rollouts of up to {self.way.length:,} tokens at"
            f" a time take about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; less is taken by"
            f" {', '.join(ways)}"
        )
