"""How much memory training takes, told before anything is loaded.

The parameters are counted on a model without storage, built from its configuration. Per parameter that is trained:
weight, gradient and the two moments of AdamW, 4 bytes each; in bfloat16 2 more for the copy that is computed with.
Activations were counted on Llama-like layers: about 5 bytes (float32) or 3.2 (bfloat16) for each of 8 hidden and 4
inner values of a token and layer; with gradient checkpointing 4 bytes of hidden values, and one layer in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

from cp_agents.errors import InputError
from cp_agents.trainers.base_model import Base, read_config

_GB = 1e9
_RUNTIME = {"cpu": 0.7e9, "cuda": 1.5e9}
"""Libraries, kernels and the tiles of the head."""
_SLACK = {"cpu": 1.6, "cuda": 1.1}
"""What allocators and passing copies add. SmolLM2-135M in full, 4 rows of 712 tokens, bfloat16 on a CPU: 5.4 GB by
count, 9.1 GB at the peak."""
_HEADROOM = 0.95
_PER_VALUE, _PER_VALUE_BF16 = 5.0, 3.2
_FOUR_BIT = 0.55
"""Bytes of a weight in 4 bits with its scales."""


class Shape(NamedTuple):
    """Sizes of a model."""

    parameters: int
    linear: int
    """Of these, in linear layers other than the head."""
    adapter: int
    """Parameters of a LoRA on it."""
    layers: int
    hidden: int
    inner: int
    """Width of the feed-forward part."""


class Plan(NamedTuple):
    """A way to train that memory is estimated for."""

    mode: str
    """full, lora or qlora."""
    rows: int
    """Read at a time."""
    length: int
    """Tokens of the longest."""
    bf16: bool
    checkpointing: bool
    shards: int = 1
    """Processes that share weights, gradients and optimizer (FSDP, ZeRO 3)."""


def read_shape(base: Base, *, rank: int, targets: str) -> Shape:
    """The sizes of `base`, without its weights, and of a LoRA of `rank` on `targets` (comma-separated, or all-linear).

    Raises `InputError` where no linear layer has such a name.
    """
    import torch
    import transformers

    config = read_config(base)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    wanted = {name.strip() for name in targets.split(",")}
    names = {name.rpartition(".")[2] for name in layers}
    if targets != "all-linear" and (unknown := sorted(wanted - names)):
        raise InputError(
            f"{base.spec} has no linear layer {unknown[0]!r} for LoRA: there are {', '.join(sorted(names))}"
        )
    chosen = [m for name, m in layers.items() if targets == "all-linear" or name.rpartition(".")[2] in wanted]
    text = config.get_text_config()
    return Shape(
        parameters=sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()),
        linear=sum(m.weight.numel() for m in layers.values()),
        adapter=sum(rank * (m.in_features + m.out_features) for m in chosen),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
    )


def needed_bytes(shape: Shape, plan: Plan, device: str) -> int:
    """Bytes that one process takes at its peak, an estimate."""
    trained = shape.parameters if plan.mode == "full" else shape.adapter
    state = trained * (18 if plan.bf16 else 16)
    if plan.mode == "lora":
        state += shape.parameters * (2 if plan.bf16 else 4)
    elif plan.mode == "qlora":
        state += round(shape.linear * _FOUR_BIT) + 2 * (shape.parameters - shape.linear)
    values = (8 * shape.hidden + 4 * shape.inner) * (_PER_VALUE_BF16 if plan.bf16 else _PER_VALUE)
    per_token = values + 4 * shape.hidden * shape.layers if plan.checkpointing else values * shape.layers
    counted = state / plan.shards + per_token * plan.rows * plan.length
    return round(counted * _SLACK[device] + _RUNTIME[device])


def rows_at_a_time(shape: Shape, plan: Plan, device: str, *, share: int, total: int) -> int:
    """The largest divisor of `share`, the rows of a process in a step, that `total` bytes of memory hold; 1 at least.

    On a CPU at most 4: more rows only add padding there. It depends on the machine and not on what else runs on
    it, so that a resumed run comes to the same.
    """
    most = 4 if device == "cpu" else 64
    fitting = [
        rows
        for rows in range(1, min(share, most) + 1)
        if share % rows == 0 and needed_bytes(shape, plan._replace(rows=rows), device) <= total * _HEADROOM
    ]
    return max(fitting, default=1)


def check_memory(name: str, shape: Shape, plan: Plan, device: str, free: int) -> int:
    """The estimate for `plan` in bytes. Raises `InputError` with what would fit, if `free` bytes are too few."""
    needed = needed_bytes(shape, plan, device)
    if needed <= free * _HEADROOM:
        return needed
    fits = next(
        (p for p in _smaller(plan, device) if needed_bytes(shape, p, device) <= free * _HEADROOM), None
    )
    what = "memory of the GPU" if device == "cuda" else "memory"
    advice = (
        f"{_words(fits, plan)} would take {needed_bytes(shape, fits, device) / _GB:.1f} GB"
        if fits
        else "no setting would fit, take a smaller model"
    )
    raise InputError(
        f"too little {what} to train {name}: {_MODES[plan.mode]} with {plan.rows} rows of {plan.length:,} tokens at a "
        f"time takes about {needed / _GB:.1f} GB and {free / _GB:.1f} GB are free; {advice}"
    )


_MODES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}


def _smaller(plan: Plan, device: str) -> Iterable[Plan]:
    """Ways that take less, the least change first."""
    modes = ["full", "lora", *(["qlora"] if device == "cuda" else [])]
    for mode in modes[modes.index(plan.mode) if plan.mode in modes else len(modes) - 1 :]:
        yield plan._replace(mode=mode)
        yield plan._replace(mode=mode, rows=1)
        yield plan._replace(mode=mode, rows=1, checkpointing=True)


def _words(fits: Plan, plan: Plan) -> str:
    changes = [
        *([_MODES[fits.mode]] if fits.mode != plan.mode else []),
        *(["1 row at a time (device_batch)"] if fits.rows != plan.rows else []),
        *(["gradient checkpointing"] if fits.checkpointing != plan.checkpointing else []),
    ]
    return " with ".join([changes[0], " and ".join(changes[1:])]) if len(changes) > 1 else changes[0]


def memory(device: str) -> tuple[int, int]:
    """Free and total bytes of the GPU, or of the machine."""
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return int(free), int(total)
    psutil: Any = import_module("psutil")  # it comes with peft, and without types
    found = psutil.virtual_memory()
    return int(found.available), int(found.total)
