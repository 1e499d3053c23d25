"""Supervised fine-tuning of a student on a teacher's votes, with TRL (section 3.3 of the paper, first stage)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cp_agents.trainers.base_model import name_base, require_training
from cp_agents.trainers.card import StudentCard, read_card, write_card
from cp_agents.trainers.quiet import quiet
from cp_agents.trainers.run_folder import RunFolder, step_of
from cp_agents.trainers.sft_config import SftSettings
from cp_agents.trainers.sft_plan import SftPlan, data_hash, plan_sft
from cp_agents.trainers.trl_setup import common_arguments, load_planned, new_adapter, without_model_card


@dataclass(frozen=True)
class SftResult:
    """A finished run."""

    model: Path
    """The student's folder: weights or adapter, tokenizer, card."""
    steps: int
    resumed_from: int | None
    """The step that training went on from in this call; None where it began or was finished already."""
    loss: float | None
    """Of the last step."""
    metrics: dict[str, float]
    """On held-out users, of the weights that were kept."""


def train_sft(settings: SftSettings, stream: TextIO | None = None) -> SftResult:
    """Train a student, or go on where an earlier call with the same settings was stopped.

    `settings.out` becomes a `RunFolder`; its `model/` appears when all is done. A run that is finished is not trained
    again. Progress goes to `stream`. Interrupted at any instant, the next call goes on from the last complete
    checkpoint with the same rows in the same order. Started by `accelerate launch`, the processes share the work.
    Raises `InputError` as `plan_sft` and `RunFolder.open`, `MissingExtraError` without the packages.
    """
    require_training("supervised fine-tuning")
    run = RunFolder(settings.out)
    plan = plan_sft(settings, check=not run.is_finished)
    with quiet():
        args = _arguments(plan, run)
        with args.main_process_first():
            if args.process_index == 0:
                run.open(plan.config())
        if run.is_finished:
            return _result(run, None)
        checkpoint = run.last_checkpoint()
        trainer, keeper = _trainer(plan, run, args, stream)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if args.process_index == 0:
            run.plot(_figures(run))
        _finish(plan, run, trainer, keeper.best)
    return _result(run, None if checkpoint is None else step_of(checkpoint))


def _arguments(plan: SftPlan, run: RunFolder) -> Any:
    from trl import SFTConfig

    settings = plan.settings
    return SFTConfig(
        **common_arguments(plan, run),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=plan.device_batch,
        gradient_accumulation_steps=plan.accumulation,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        save_total_limit=2,  # one is complete while the other is written
        eval_strategy="no",
        max_length=settings.max_length if settings.packing else None,
        packing=settings.packing,
        ddp_find_unused_parameters=False,
    )


def _trainer(plan: SftPlan, run: RunFolder, args: Any, stream: TextIO | None) -> tuple[Any, Any]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    from cp_agents.trainers.sft_loop import RunKeeper

    model, tokenizer = load_planned(plan)
    keeper = RunKeeper(plan, run, stream)

    trainer = without_model_card(SFTTrainer)(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([row.columns() for row in plan.rows]),
        processing_class=tokenizer,
        peft_config=new_adapter(plan, plan.settings.lora_dropout),
        callbacks=[keeper],
    )
    trainer.remove_callback(PrinterCallback)
    keeper.trainer = trainer
    return trainer, keeper


def _finish(plan: SftPlan, run: RunFolder, trainer: Any, best: Path | None) -> None:
    """Put the model and its card in place."""
    if best is None:
        best = run.checkpoints / "last"
        trainer.save_model(str(best))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        with run.new_model() as folder:
            for path in best.iterdir():
                if path.is_file() and path.name != "training_args.bin":
                    shutil.copy2(path, folder)
            name_base(folder, plan.base)
            write_card(folder, _card(plan, run, trainer.state.global_step, best))
        for folder in (best, *run.checkpoints.glob("best-*")):
            shutil.rmtree(folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _card(plan: SftPlan, run: RunFolder, steps: int, best: Path) -> StudentCard:
    from importlib.metadata import version

    measured = [row for row in run.rows() if "eval_parse_rate" in row]
    kept = step_of(best)
    chosen = next((row for row in measured if row["step"] == kept), measured[-1] if measured else {})
    data = plan.data.card
    return StudentCard(
        base=plan.base.spec,
        base_hash=plan.base_hash,
        kind="adapter" if plan.settings.is_lora else "full",
        language=data.language,
        prompt_version=data.prompt_version,
        taxonomy=data.taxonomy,
        taxonomy_hash=data.taxonomy_hash,
        stage="sft",
        source_run=data.source.run_id,
        training={
            **plan.config(),
            "data_hash": data_hash(plan.data),
            "rows": len(plan.rows),
            "rows_left_out": plan.left_out,
            "steps": steps,
            "kept_step": steps if kept < 0 else kept,
            "device": plan.machine.device,
            "computed_in": "bfloat16" if plan.machine.bf16 else "float32",
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        },
        metrics={
            name.removeprefix("eval_"): value for name, value in chosen.items() if name.startswith("eval_")
        },
    )


def _result(run: RunFolder, resumed_from: int | None) -> SftResult:
    card = read_card(run.model)
    losses = [row["loss"] for row in run.rows() if "loss" in row]
    return SftResult(
        model=run.model,
        steps=card.training["steps"],
        resumed_from=resumed_from,
        loss=losses[-1] if losses else None,
        metrics=card.metrics,
    )


def _figures(run: RunFolder) -> dict[str, list[str]]:
    measured = {name: None for row in run.rows() for name in row if name.startswith("eval_")}
    shares = (
        "parse_rate",
        "macro_f1",
        "constant_macro_f1",
        "gold_macro_f1",
        "na_rate",
        "accuracy",
        "coverage",
    )
    return {
        "loss": ["loss"],
        "token_accuracy": ["mean_token_accuracy"],
        "profiling": [f"eval_{name}" for name in shares],
        "attributes": [name for name in measured if name.startswith("eval_macro_f1/")],
    }
