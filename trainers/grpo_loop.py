"""What happens around TRL's steps in GRPO: the run's metrics, the stop rules, complete checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TextIO

from transformers import TrainerCallback

from cp_agents.trainers.grpo_plan import GrpoPlan
from cp_agents.trainers.progress import Progress
from cp_agents.trainers.run_folder import RunFolder, mark_complete
from cp_agents.trainers.stop_rules import find_collapse

_SHOWN = {
    "reward_sum": "reward",
    "parse_rate": "parse",
    "na_rate": "NA",
    "majority_ratio": "majority",
    "confidence_mean": "confidence",
}


class GrpoKeeper(TrainerCallback):  # type: ignore[misc]  # transformers is not read by the type checker
    """Keeps a run's folder and watches its rollouts. Every process sees the same metrics, so all stop together."""

    def __init__(self, plan: GrpoPlan, run: RunFolder, stream: TextIO | None) -> None:
        self._plan, self._run, self._stream = plan, run, stream
        self.trainer: Any = None
        """To be set before training begins."""
        self.rows: list[dict[str, Any]] = run.rows()
        """Metrics of all steps so far, also of those before a resume."""
        self.stopped_by: str | None = None
        """The stop rule's sentence."""
        self._progress = Progress(None, 0, 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to count."""
        stream = self._stream if state.is_world_process_zero else None
        self._progress = Progress(stream, state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """One line of metrics a step, and a look whether the policy has collapsed."""
        if "reward_sum" not in logs:  # the totals at the end of training
            return
        values = {name: value for name, value in logs.items() if _is_number(value)}
        self.rows.append({"step": state.global_step, **values})
        self.stopped_by = find_collapse(self.rows, self._plan.settings.stop)
        if state.is_world_process_zero:
            self._run.log(
                state.global_step, {**values, **({"stopped_by": self.stopped_by} if self.stopped_by else {})}
            )
        shown = "  ".join(f"{short} {values[name]:.2f}" for name, short in _SHOWN.items() if name in values)
        self._progress.step(state.global_step, shown)
        if self.stopped_by is not None:
            self._progress.say(f"stopped at step {state.global_step}: {self.stopped_by}")
            control.should_training_stop = True
            control.should_save = False  # the last checkpoint stays one from before

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Only now is the checkpoint one to go on from."""
        self.trainer.accelerator.wait_for_everyone()  # every process writes its random state into it
        if state.is_world_process_zero:
            mark_complete(self._run.checkpoint_at(state.global_step))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
