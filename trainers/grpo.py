"""Confidence-guided GRPO of a student, with TRL (section 4.3 of the paper, second stage)."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from cp_agents.trainers.base_model import name_base, require_training
from cp_agents.trainers.card import StudentCard, read_card, weights_hash, write_card
from cp_agents.trainers.confidence_reward import ConfidenceReward
from cp_agents.trainers.grpo_config import GrpoSettings
from cp_agents.trainers.grpo_plan import GrpoPlan, plan_grpo
from cp_agents.trainers.quiet import quiet
from cp_agents.trainers.run_folder import RunFolder, step_of
from cp_agents.trainers.trl_setup import common_arguments, load_planned, new_adapter, without_model_card

START = "start"
"""In the run's folder: the weights that training starts from, where they lie in no folder that TRL could load."""


@dataclass(frozen=True)
class GrpoResult:
    """A run that came to its end."""

    model: Path | None
    """The student's folder: weights or adapter, tokenizer, card. None where a stop rule ended the run."""
    steps: int
    resumed_from: int | None
    """The step that training went on from in this call; None where it began or was finished already."""
    stopped_by: str | None
    """The stop rule's sentence. The weights of such a run are given to nobody; its checkpoints from before remain."""
    metrics: dict[str, float]
    """Means over the last steps."""


def train_grpo(settings: GrpoSettings, stream: TextIO | None = None) -> GrpoResult:
    """Train a student by reinforcement, or go on where an earlier call with the same settings was stopped.

    `settings.out` becomes a `RunFolder`; its `model/` appears when all is done, and not at all where a stop rule ended
    the run. A run that is finished is not trained again. Progress goes to `stream`. Interrupted at any instant, the
    next call goes on from the last complete checkpoint with the same users in the same order. Started by
    `accelerate launch`, the processes share the work. Raises `InputError` as `plan_grpo` and `RunFolder.open`,
    `MissingExtraError` without the packages.
    """
    require_training("reinforcement learning")
    run = RunFolder(settings.out)
    plan = plan_grpo(settings, check=not run.is_finished)
    with quiet():
        args = _arguments(plan, run)
        with args.main_process_first():
            if args.process_index == 0:
                run.open(plan.config())
        if run.is_finished:
            return _result(run, None, None)
        checkpoint = run.last_checkpoint()
        trainer, keeper = _trainer(plan, run, args, stream)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if args.process_index == 0:
            run.plot(_figures(plan))
        if keeper.stopped_by is None:
            _finish(plan, run, trainer)
    return _result(run, None if checkpoint is None else step_of(checkpoint), keeper.stopped_by)


def _arguments(plan: GrpoPlan, run: RunFolder) -> Any:
    from trl import GRPOConfig

    settings, machine, batches = plan.settings, plan.machine, plan.batches
    vllm: dict[str, Any] = {}
    if settings.uses_vllm:
        vllm = {
            "use_vllm": True,
            "vllm_mode": settings.rollout_backend.removeprefix("vllm-"),
            "vllm_server_base_url": settings.vllm_server,
            "vllm_gpu_memory_utilization": settings.vllm_memory,
        }
    return GRPOConfig(
        **common_arguments(plan, run),
        max_steps=settings.steps,
        per_device_train_batch_size=batches.device,
        gradient_accumulation_steps=batches.accumulation,
        steps_per_generation=batches.per_generation(machine.processes),
        num_generations=settings.rollouts,
        lr_scheduler_type="constant",
        beta=settings.beta,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        max_completion_length=settings.max_tokens,
        loss_type=settings.loss,
        scale_rewards=settings.scale,
        save_total_limit=3,  # a stop rule looks back over a window of steps, and each is thrice the weights
        **vllm,
    )


def _trainer(plan: GrpoPlan, run: RunFolder, args: Any, stream: TextIO | None) -> tuple[Any, Any]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from cp_agents.trainers.grpo_loop import GrpoKeeper

    settings = plan.settings
    model, tokenizer = load_planned(plan)
    model.generation_config.eos_token_id = sorted(plan.ends)
    if not plan.keeps_adapter and (settings.uses_vllm or not settings.is_lora):
        model.config._name_or_path = str(_start(plan, run, args, model))
    reward = ConfidenceReward(
        plan.data.taxonomy, settings.reward, group_size=settings.rollouts, end_tokens=plan.ends
    )
    keeper = GrpoKeeper(plan, run, stream)

    class Trainer(without_model_card(GRPOTrainer)):  # type: ignore[misc]  # trl is not read by the type checker
        def _generate(self, prompts: list[Any]) -> Any:
            """TRL times whole steps; how long sampling takes is what `generation_batch` is chosen by."""
            began = time.perf_counter()
            found = super()._generate(prompts)
            self._metrics["train"]["rollout_time"].append(time.perf_counter() - began)
            return found

    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([dict(row) for row in plan.rows]),
        processing_class=tokenizer,
        # Dropped weights would make the sampled policy another one than the trained one.
        peft_config=new_adapter(plan, dropout=0.0),
        callbacks=[keeper],
    )
    trainer.remove_callback(PrinterCallback)
    keeper.trainer = trainer
    return trainer, keeper


def _start(plan: GrpoPlan, run: RunFolder, args: Any, model: Any) -> Path:
    """A folder with the weights that training starts from: TRL loads the frozen copy for the KL term from one."""
    files = plan.base.files
    if files.gguf is None and files.adapter is None:
        return files.folder
    folder = run.path / START
    if plan.settings.beta or plan.settings.uses_vllm:
        with args.main_process_first():
            if args.process_index == 0 and not folder.is_dir():
                partial = run.path / f".{START}.tmp"
                shutil.rmtree(partial, ignore_errors=True)
                model.save_pretrained(partial)
                plan.tokenizer.save_pretrained(partial)
                partial.rename(folder)
    return folder


def _finish(plan: GrpoPlan, run: RunFolder, trainer: Any) -> None:
    """Put the model and its card in place."""
    last = run.checkpoints / "last"
    trainer.save_model(str(last))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        with run.new_model() as folder:
            for path in last.iterdir():  # not the folder of TRL's frozen copy of an adapter
                if path.is_file() and path.name != "training_args.bin":
                    shutil.copy2(path, folder)
            name_base(folder, plan.base)
            write_card(folder, _card(plan, run, trainer.state.global_step))
        shutil.rmtree(last)
        shutil.rmtree(run.path / START, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _card(plan: GrpoPlan, run: RunFolder, steps: int) -> StudentCard:
    from importlib.metadata import version

    before, base, data = plan.base.card, plan.base, plan.data
    # A full student that is trained on keeps the base that it was made of; an adapter lies on what it was laid over.
    is_full = not plan.settings.is_lora
    return StudentCard(
        base=before.base if before is not None and is_full else base.spec,
        base_hash=before.base_hash if before is not None and is_full else plan.base_hash,
        kind="full" if is_full else "adapter",
        language=data.language,
        prompt_version=data.prompt.version,
        taxonomy=data.taxonomy.model_dump(mode="json"),
        taxonomy_hash=data.taxonomy.hash,
        stage="grpo",
        source_run=before.source_run if before is not None else None,
        training={
            **plan.config(),
            "rows": len(plan.rows),
            "rows_left_out": plan.left_out,
            "steps": steps,
            "student_hash": weights_hash(base.files.adapter) if base.files.adapter else plan.base_hash,
            "device": plan.machine.device,
            "processes": plan.machine.processes,
            "computed_in": "bfloat16" if plan.machine.bf16 else "float32",
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
            "before": before.training if before is not None else {},
        },
        metrics={f"rollouts/{name}": value for name, value in _means(run).items()},
    )


_SUMMARY = (
    "reward_sum",
    "parse_rate",
    "na_rate",
    "majority_ratio",
    "tag_entropy",
    "confidence_mean",
    "kl",
    "label_accuracy",
    "reward_accuracy",
)
_LAST = 5


def _means(run: RunFolder) -> dict[str, float]:
    """Means over the last steps: one step's rollouts are few."""
    rows = run.rows()[-_LAST:]
    given = {name: [row[name] for row in rows if name in row] for name in _SUMMARY}
    return {name: fmean(values) for name, values in given.items() if values}


def _result(run: RunFolder, resumed_from: int | None, stopped_by: str | None) -> GrpoResult:
    rows = run.rows()
    return GrpoResult(
        model=run.model if run.is_finished else None,
        steps=read_card(run.model).training["steps"] if run.is_finished else rows[-1]["step"],
        resumed_from=resumed_from,
        stopped_by=stopped_by,
        metrics=_means(run),
    )


def _figures(plan: GrpoPlan) -> dict[str, list[str]]:
    return {
        "reward": ["reward_sum", *(f"reward/{name}" for name in plan.data.taxonomy.names)],
        "rollouts": ["parse_rate", "na_rate", "majority_ratio", "label_accuracy", "reward_accuracy"],
        "confidence": ["confidence_mean", *(f"confidence/{level}" for level in range(1, 6))],
        "policy": ["tag_entropy", "entropy", "kl"],
    }
