"""Options that both trainers' verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[
    Path, typer.Option("--out", help="The run's folder; its model/ is the student.", show_default=False)
]
Preset = Annotated[str, typer.Option("--preset", help="paper, lora or cpu-smoke.")]
Lora = Annotated[bool | None, typer.Option("--lora/--full", help="Train an adapter, or all weights.")]
Qlora = Annotated[
    bool, typer.Option("--qlora", help="Train an adapter on weights in 4 bits (GPU, bitsandbytes).")
]
LoraRank = Annotated[int | None, typer.Option("--lora-rank", help="Rank of the adapter.")]
LoraAlpha = Annotated[int | None, typer.Option("--lora-alpha", help="Scale of the adapter.")]
LoraTargets = Annotated[
    str | None, typer.Option("--lora-targets", help="Linear layers, as q_proj,v_proj, or all-linear.")
]
GradientCheckpointing = Annotated[
    bool | None,
    typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, slower."),
]
Bf16 = Annotated[
    bool | None, typer.Option("--bf16/--no-bf16", help="Compute in bfloat16; where it can, by default.")
]
SaveEvery = Annotated[int | None, typer.Option("--save-every", help="Steps between checkpoints.")]
IgnoreMemory = Annotated[
    bool, typer.Option("--ignore-memory", help="Train whatever the memory estimate says.")
]


def mode_of(lora: bool | None, qlora: bool) -> str | None:
    """The mode that the flags say; None where they leave it to the preset."""
    if qlora:
        return "qlora"
    return None if lora is None else "lora" if lora else "full"
