"""What both trainers tell TRL and PEFT alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cp_agents.trainers.base_model import load_base
from cp_agents.trainers.run_folder import RunFolder

if TYPE_CHECKING:
    from cp_agents.trainers.grpo_plan import GrpoPlan
    from cp_agents.trainers.sft_plan import SftPlan


def common_arguments(plan: SftPlan | GrpoPlan, run: RunFolder) -> dict[str, Any]:
    """Arguments of TRL's configurations that do not hang on what is trained: folders, precision, seeds, silence."""
    settings, machine = plan.settings, plan.machine
    return {
        "output_dir": str(run.checkpoints),
        "learning_rate": settings.learning_rate,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "bf16": machine.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": machine.device == "cpu",
        "dataloader_pin_memory": machine.device == "cuda",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "report_to": "none",
        "disable_tqdm": True,
    }


def load_planned(plan: SftPlan | GrpoPlan) -> tuple[Any, Any]:
    """The model and tokenizer that a plan begins with."""
    settings = plan.settings
    return load_base(
        plan.base,
        # The optimizer needs float32; what is frozen does not.
        dtype="bfloat16" if settings.is_lora and plan.machine.bf16 else "float32",
        four_bit=settings.mode == "qlora",
        keep_adapter=plan.keeps_adapter,
        tokenizer=plan.tokenizer,
    )


def new_adapter(plan: SftPlan | GrpoPlan, dropout: float) -> Any:
    """PEFT's configuration of an adapter that is to be laid over the base; None where none is."""
    settings = plan.settings
    if not settings.is_lora or plan.keeps_adapter:
        return None
    from peft import LoraConfig

    targets = settings.lora_targets
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=dropout,
        target_modules=targets if targets == "all-linear" else [name.strip() for name in targets.split(",")],
    )


def without_model_card(trainer: type) -> type:
    """A TRL trainer that writes no model card of its own: the student's says what it is, and TRL's would name the
    machine's folders."""
    return type("Trainer", (trainer,), {"create_model_card": lambda self, *_, **__: None})
