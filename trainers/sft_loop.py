"""What happens around TRL's steps: the run's metrics, rounds of profiling, early stopping, complete checkpoints."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import TrainerCallback

from cp_agents.trainers.gather import gather
from cp_agents.trainers.profiling_eval import (
    Answer,
    EvalSet,
    generate_answers,
    profiling_metrics,
    should_stop,
)
from cp_agents.trainers.progress import Progress
from cp_agents.trainers.run_folder import RunFolder, mark_complete
from cp_agents.trainers.sft_plan import SftPlan

_KEPT = ("loss", "grad_norm", "learning_rate", "epoch", "mean_token_accuracy", "entropy")
_SCORE = "eval_macro_f1"


class RunKeeper(TrainerCallback):  # type: ignore[misc]  # transformers is not read by the type checker
    """Keeps a run's folder. One line of metrics a step; numbers on held-out users stand on the line of their step,
    so that a resumed run, which goes on behind a checkpoint, writes each step once."""

    def __init__(self, plan: SftPlan, run: RunFolder, stream: TextIO | None) -> None:
        self._plan, self._run, self._stream = plan, run, stream
        self.trainer: Any = None
        """To be set before training begins."""
        self._scores = [(row["step"], row[_SCORE]) for row in run.rows() if _SCORE in row]
        self._measured: dict[str, float] = {}
        self._progress = Progress(None, 0, 1)
        self._began = 0.0
        self._tokens = 0
        """That TRL has counted in this session."""

    @property
    def best(self) -> Path | None:
        """The weights of the best round so far, the earlier of equals; None where rounds do not decide."""
        if self._plan.settings.patience is None or not self._scores:
            return None
        return self._folder_of(max(self._scores, key=lambda score: score[1])[0])

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to count."""
        stream = self._stream if state.is_world_process_zero else None
        self._progress = Progress(stream, state.global_step, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the time."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Profile held-out users where it is time to, and stop where that has not become better for long."""
        step, settings = state.global_step, self._plan.settings
        due = step >= state.max_steps or (settings.eval_every and step % settings.eval_every == 0)
        if self._plan.eval_set is None or not due:
            return
        since = time.perf_counter()
        found = self._profile(self._plan.eval_set)
        self._began += time.perf_counter() - since  # a step's time is that of training
        self._measured = {f"eval_{name}": value for name, value in found.items()}
        self._progress.say(f"step {step}: {_in_words(found)}")
        if _SCORE not in self._measured:
            return
        before = self.best
        self._scores.append((step, self._measured[_SCORE]))
        if self.best != before:
            self.trainer.save_model(str(self._folder_of(step)))
        if should_stop([score for _, score in self._scores], settings.patience):
            self._progress.say(f"no better for {settings.patience} rounds: training stops")
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """One line of metrics; the totals at the end of training are none."""
        if "loss" not in logs:
            return
        values = {name: logs[name] for name in _KEPT if name in logs} | self._measured
        self._measured = {}
        counted = int(logs.get("num_tokens", self._tokens))
        values |= {"tokens": counted - self._tokens, "step_time": time.perf_counter() - self._began}
        self._tokens = counted
        if state.is_world_process_zero:
            self._run.log(state.global_step, values)
        self._progress.step(state.global_step, f"loss {logs['loss']:.3f}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Only now is the checkpoint one to go on from."""
        self.trainer.accelerator.wait_for_everyone()  # every process writes its random state into it
        if state.is_world_process_zero:
            mark_complete(self._run.checkpoint_at(state.global_step))
            # Not earlier: a run that is killed goes on from a checkpoint at which an older round may be the best one.
            for other in self._run.checkpoints.glob("best-*"):
                if other != self.best:
                    shutil.rmtree(other)

    def _profile(self, eval_set: EvalSet) -> dict[str, float]:
        """Every process takes its share of the users, and has all the numbers."""
        from trl.models import unwrap_model_for_generation

        plan, accelerator = self._plan, self.trainer.accelerator
        users = list(eval_set.prompts)[accelerator.process_index :: accelerator.num_processes]
        # Without it each token would have all weights rounded anew.
        once = torch.autocast(plan.machine.device, torch.bfloat16) if plan.machine.bf16 else nullcontext()
        model = self.trainer.model_wrapped
        was_training = model.training
        model.eval()
        try:
            with unwrap_model_for_generation(model, accelerator) as unwrapped, once:
                answers = generate_answers(
                    unwrapped,
                    plan.tokenizer,
                    [eval_set.prompts[user] for user in users],
                    ends=plan.ends,
                    stop=f"</{eval_set.taxonomy.names[-1]}>",
                    max_tokens=plan.settings.eval_tokens,
                )
        finally:
            model.train(was_training)
        parts, _ = gather(list(zip(users, answers, strict=True)))
        said: dict[str, Answer] = {user: answer for part in parts for user, answer in part}
        return profiling_metrics({user: said[user] for user in eval_set.prompts}, eval_set)

    def _folder_of(self, step: int) -> Path:
        return self._run.checkpoints / f"best-{step}"


def _in_words(found: Mapping[str, float]) -> str:
    shown = ("parse_rate", "macro_f1", "constant_macro_f1", "gold_macro_f1", "na_rate", "confidence")
    return "  ".join(f"{name} {found[name]:.3f}" for name in shown if name in found)
