"""What `distill` checks before it begins: whatever a later stage would stumble over when hours have been spent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from cp_agents.errors import InputError
from cp_agents.open_sets import refuse_open
from cp_agents.prompts.render import load_prompt
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers.base_model import find_base
from cp_agents.trainers.difficulty import difficulty, histogram, quotas
from cp_agents.trainers.distill_config import DistillSettings, grpo_of
from cp_agents.trainers.profiling_eval import read_gold
from cp_agents.trainers.user_filter import load_users

_PARTS = {"sft": "SFT", "rl": "GRPO", "held_out": "the held-out ones"}


def check_road(
    settings: DistillSettings,
    store: TraceStore,
    run: str,
    taxonomy: Taxonomy,
    users: Mapping[str, Set[str]],
) -> None:
    """Raise `InputError` for a base, a prompt or gold that is not there or does not fit, and for too few users.

    `users` are the ids of `run` by what they are for: sft, rl, held_out.
    """
    if "grpo" in settings.stages:
        refuse_open(taxonomy, "rewards")
    _check_base(settings, taxonomy)
    finished = {profile.user_id for _, profile in store.profiles(run)}
    if not finished:
        raise InputError(
            f"run {run} holds no finished record to learn from: profile its users to the end first"
        )
    count = {part: len(of_part & finished) for part, of_part in users.items()}
    least = {"sft": 1, "held_out": int("calibrate" in settings.stages or settings.gold is not None)}
    if "grpo" in settings.stages:
        least["rl"] = grpo_of(settings, reference="reference", users=None).prompts
    for part, needed in least.items():
        if count[part] < needed:
            raise InputError(
                f"run {run} has too few users: of its {len(finished):,}, {count[part]:,} fall to {_PARTS[part]} and"
                f" {needed:,} are needed; see validation and rl_share"
            )
    if "filter" in settings.stages:
        levels = difficulty(load_users(store, run, taxonomy, users["rl"]).levels, settings.rule)
        kept = int(quotas(histogram(levels), settings.shape, settings.keep).sum())
        if kept < least["rl"]:
            raise InputError(
                f"run {run} has too few users: the shape {settings.shape} keeps {kept:,} of the {count['rl']:,} that"
                f" fall to GRPO and a step takes {least['rl']:,}; see shape, keep and prompts"
            )
    if settings.gold is not None:
        read_gold(settings.gold, users["held_out"], taxonomy)


def _check_base(settings: DistillSettings, taxonomy: Taxonomy) -> None:
    """The base may be a student already, but only of this taxonomy and this prompt."""
    card = find_base(settings.base).card
    if card is not None and card.taxonomy_hash != taxonomy.hash:
        raise InputError(
            f"{settings.base} is a student of another taxonomy ({card.taxonomy_hash}) than the run has"
            f" ({taxonomy.hash}): begin with its base model"
        )
    if settings.language is None:
        return
    version = load_prompt(taxonomy, settings.language).version
    if card is not None and card.prompt_version != version:
        raise InputError(
            f"{settings.base} is a student of the prompt {card.language} ({card.prompt_version}), and"
            f" {settings.language} is {version}: leave --language out, or begin with its base model"
        )


def read_state(file: Path) -> dict[str, Any]:
    """The state of a road. Raises `InputError` where the file is something else."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or not all(isinstance(state.get(k), dict) for k in ("settings", "stages")):
        raise InputError(f"{file} is not the state of a road (expected an object with settings and stages)")
    return state
