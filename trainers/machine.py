"""What training runs on, and how it is spread."""

from __future__ import annotations

import os
from typing import NamedTuple

from cp_agents.errors import InputError
from cp_agents.trainers.memory import memory


class Machine(NamedTuple):
    """What training runs on."""

    device: str
    """cpu or cuda."""
    bf16: bool
    processes: int
    free: int
    """Bytes."""
    total: int


def find_machine(bf16: bool | None) -> Machine:
    """This machine, computing in bfloat16 if `bf16` says so; None: where it can.

    Raises `InputError` for a GPU that is asked for it and cannot.
    """
    from cp_agents.backends.hf_model import best_device, best_dtype

    device = best_device()
    free, total = memory(device)
    able = best_dtype(device) == "bfloat16"
    if bf16 and device == "cuda" and not able:
        raise InputError("this GPU does not compute in bfloat16: train with bf16 off")
    return Machine(
        device, able if bf16 is None else bf16, int(os.environ.get("WORLD_SIZE", "1")), free, total
    )


def shards(processes: int) -> int:
    """Over how many processes weights and optimizer are divided: all under FSDP or DeepSpeed, else none."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return processes if any(os.environ.get(name, "false").lower() == "true" for name in names) else 1
