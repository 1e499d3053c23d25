"""What a run of supervised fine-tuning will do, worked out and checked before any weight is loaded."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers.base_model import (
    Base,
    check_four_bits,
    end_tokens,
    find_base,
    load_tokenizer,
    read_config,
)
from cp_agents.trainers.machine import Machine, find_machine, shards
from cp_agents.trainers.memory import Plan, check_memory, needed_bytes, read_shape, rows_at_a_time
from cp_agents.trainers.profiling_eval import EvalSet, read_gold
from cp_agents.trainers.sft_config import SftSettings
from cp_agents.trainers.sft_data import SftData, load_sft_data
from cp_agents.trainers.token_rows import TokenRow, token_rows


@dataclass(frozen=True)
class SftPlan:
    """A run that can begin."""

    settings: SftSettings
    base: Base
    base_hash: str
    data: SftData
    taxonomy: Taxonomy
    tokenizer: Any
    ends: frozenset[int]
    """Tokens that end an answer."""
    rows: list[TokenRow]
    left_out: int
    """Rows longer than `max_length` or than the model reads."""
    eval_set: EvalSet | None
    machine: Machine
    device_batch: int
    steps: int
    """An estimate where rows are packed."""
    needed: int
    """Bytes, an estimate."""

    @property
    def accumulation(self) -> int:
        """Turns of `device_batch` rows in a step."""
        return self.settings.batch // (self.device_batch * self.machine.processes)

    @property
    def keeps_adapter(self) -> bool:
        """Whether an adapter that is there already is trained further."""
        return self.settings.is_lora and self.base.files.adapter is not None

    def config(self) -> dict[str, Any]:
        """What a resumed run has to have in common with this one."""
        settings = self.settings.model_dump(mode="json", exclude={"out", "data", "ignore_memory"})
        return {**settings, "base_hash": self.base_hash, "data_hash": data_hash(self.data)}

    def summary(self) -> dict[str, Any]:
        """For people: resolved settings, steps and memory."""
        machine = self.machine
        return {
            **self.settings.model_dump(mode="json"),
            "device": machine.device,
            "bf16": machine.bf16,
            "processes": machine.processes,
            "device_batch": self.device_batch,
            "accumulation": self.accumulation,
            "rows": len(self.rows),
            "rows_left_out": self.left_out,
            "tokens_per_epoch": sum(map(len, self.rows)),
            "longest_row": max(map(len, self.rows)),
            "steps": self.steps,
            "memory_needed_gb": round(self.needed / 1e9, 1),
            "memory_free_gb": round(machine.free / 1e9, 1),
        }


def plan_sft(settings: SftSettings, *, check: bool = True) -> SftPlan:
    """Read and check all that training needs but the weights.

    Raises `InputError` for a model that is not there or is a student of another taxonomy or prompt, data without a
    row that can be used, a batch that cannot be divided, and, unless `check` is off, memory that will not do.
    """
    base = find_base(settings.model)
    data = load_sft_data(settings.data)
    check_student(base, data)
    if settings.mode == "qlora":
        check_four_bits(base)
    machine = find_machine(settings.bf16)
    share = settings.batch // machine.processes
    if settings.batch % machine.processes or share % (settings.device_batch or 1):
        raise InputError(
            f"batch {settings.batch} cannot be divided into {machine.processes} processes with "
            f"{settings.device_batch or 1} rows at a time"
        )
    shape = read_shape(base, rank=settings.lora_rank, targets=settings.lora_targets)
    tokenizer = load_tokenizer(base)
    config = read_config(base)
    ends = end_tokens(base, config, tokenizer)
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or settings.max_length
    limit = min(settings.max_length, context)
    encoded = token_rows(data.rows("train"), tokenizer, ends, data.train)
    if not encoded:
        raise InputError(f"{data.train} has no rows to train on")
    rows = [row for row in encoded if len(row) <= limit]
    if not rows:
        what = "max_length" if limit == settings.max_length else "the model's context,"
        raise InputError(
            f"no row of {data.train} fits into {what} {limit:,}: the shortest has {min(map(len, encoded)):,} tokens"
        )
    way = Plan(
        mode=settings.mode,
        rows=1,
        length=settings.max_length if settings.packing else max(map(len, rows)),
        bf16=machine.bf16,
        checkpointing=settings.gradient_checkpointing,
        shards=shards(machine.processes),
    )
    device_batch = settings.device_batch or rows_at_a_time(
        shape, way, machine.device, share=share, total=machine.total
    )
    way = way._replace(rows=device_batch)
    if check and not settings.ignore_memory:
        check_memory(settings.model, shape, way, machine.device, machine.free)
    return SftPlan(
        settings=settings,
        base=base,
        base_hash=base.hash,
        data=data,
        taxonomy=data.card.read_taxonomy(),
        tokenizer=tokenizer,
        ends=ends,
        rows=rows,
        left_out=len(encoded) - len(rows),
        eval_set=_eval_set(settings, data, tokenizer, ends),
        machine=machine,
        device_batch=device_batch,
        steps=_steps(settings, rows, device_batch, machine.processes),
        needed=needed_bytes(shape, way, machine.device),
    )


def check_student(base: Base, data: SftData) -> None:
    """Raise `InputError` where `base` is a student that was trained on another taxonomy or prompt than `data` has."""
    if base.card is None:
        return
    for what, learned, found in (
        ("taxonomy", base.card.taxonomy_hash, data.card.taxonomy_hash),
        ("prompt", base.card.prompt_version, data.card.prompt_version),
    ):
        if learned != found:
            raise InputError(
                f"{data.folder} has another {what} ({found}) than the student {base.spec} was trained on ({learned}): "
                "export the data anew for it, or begin with its base model"
            )


def data_hash(data: SftData) -> str:
    """Both files' hashes in one."""
    return "-".join(sealed.sha256[:12] for _, sealed in sorted(data.card.files.items()))


def _eval_set(settings: SftSettings, data: SftData, tokenizer: Any, ends: frozenset[int]) -> EvalSet | None:
    """The held-out users that are profiled in training: those with gold first, then by lot."""
    held_out = list(data.rows("validation"))
    if settings.gold is not None and not held_out:
        raise InputError(f"{data.validation} has no users to compare with {settings.gold}")
    gold = None
    if settings.gold is not None:
        gold = read_gold(settings.gold, {row["user_id"] for row in held_out}, data.card.read_taxonomy())
    if not settings.eval_users or not held_out:
        if settings.patience is not None:
            raise InputError("patience needs held-out users: export the data with some, and set eval_users")
        return None
    random.Random(settings.seed).shuffle(held_out)
    chosen = sorted(held_out, key=lambda row: row["user_id"] not in (gold or {}))[: settings.eval_users]
    encoded = token_rows(chosen, tokenizer, ends, data.validation)
    return EvalSet(
        prompts={row.user_id: row.prompt for row in encoded},
        voted={row["user_id"]: row["tags"] for row in chosen},
        gold=gold,
        taxonomy=data.card.read_taxonomy(),
    )


def _steps(settings: SftSettings, rows: list[TokenRow], device_batch: int, processes: int) -> int:
    if settings.max_steps is not None:
        return settings.max_steps
    count = math.ceil(sum(map(len, rows)) / settings.max_length) if settings.packing else len(rows)
    turns = math.ceil(count / (device_batch * processes))
    per_epoch = max(1, math.ceil(turns / (settings.batch // (device_batch * processes))))
    return max(1, math.ceil(settings.epochs * per_epoch))
