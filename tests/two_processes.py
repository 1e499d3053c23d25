"""Started by `accelerate launch` in two processes: the reward of scattered groups, then two steps of GRPO.

two_processes.py ROLLOUTS.json OUT MODEL STORE REFERENCE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from cp_agents.errors import InputError
from cp_agents.trainers.confidence_reward import ConfidenceReward
from cp_agents.trainers.grpo import train_grpo
from tests.grpo_models import tiny
from tests.support import PETS


def main() -> None:
    torch.set_num_threads(1)
    rollouts, out, model, store, reference = sys.argv[1:]
    state = PartialState(cpu=True)
    rank = state.process_index
    rows = json.loads(Path(rollouts).read_text())
    cut = 10  # inside a group, and no half: rank 0 has fewer rollouts than rank 1
    own = rows[:cut] if rank == 0 else rows[cut:]
    reward = ConfidenceReward(PETS, group_size=4)
    logged: dict[str, float] = {}

    def score(part: list[dict[str, object]]) -> list[float]:
        columns = {name: [row[name] for row in part] for name in ("text", "record_id", "c_ref", "gold")}
        return reward(None, columns.pop("text"), log_metric=logged.__setitem__, **columns)

    found = {"rewards": score(own), "metrics": dict(logged), "backend": str(state.backend)}
    try:
        score(own[:-1])
        found["short"] = "taken"
    except InputError as error:
        found["short"] = str(error)
    result = train_grpo(
        tiny(Path(model), Path(store), reference, Path(out) / "run", steps=2, prompts=3, device_batch=3)
    )
    found["model"] = str(result.model)
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps(found))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
