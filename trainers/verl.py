"""The reward for verl, by its two contracts for a custom reward function. verl itself is not needed here.

The vote needs all rollouts of a prompt, so the batch form is the one to use: verl's `batch` reward manager hands over
the whole step.

    reward_model.reward_manager=batch reward_model.use_reward_loop=False
    custom_reward_function.path=.../cp_agents/trainers/verl.py
    custom_reward_function.name=compute_scores
    +custom_reward_function.reward_kwargs.taxonomy=profilebench
    +custom_reward_function.reward_kwargs.group_size=32

The reward loop of newer versions hands over one sample, or a chunk of the step, at a time: a group that came in
parts is refused here. The other way out is the form for one sample, which takes its target as given, for instance
from votes over an offline pass.

Each row of the data has in `extra_info`: `record_id`, `c_ref` (K confidences, or one by attribute), and optionally
`reviewed` (tags, as `c_ref`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from cp_agents.errors import InputError, first_fault
from cp_agents.taxonomy import load_taxonomy
from cp_agents.trainers.confidence_reward import ConfidenceReward
from cp_agents.trainers.rewards import RewardSettings

_known_taxonomy = lru_cache(maxsize=8)(load_taxonomy)


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    taxonomy: str = "profilebench",
    group_size: int | None = None,
    **settings: Any,
) -> list[float]:
    """The rewards of a step's rollouts, whole groups only (equations 6-8).

    `data_sources` and `ground_truths` are not looked at: the target is the groups' own vote. `settings` are the fields
    of `RewardSettings`. Raises `InputError` as `ConfidenceReward` does.
    """
    for info in extra_infos:
        if info is None or "record_id" not in info or "c_ref" not in info:
            raise InputError("extra_info should hold record_id and c_ref in every row")
    infos = [info for info in extra_infos if info is not None]
    reward = ConfidenceReward(_known_taxonomy(taxonomy), _settings(settings), group_size=group_size)
    return reward(
        None,
        list(solution_strs),
        record_id=[info["record_id"] for info in infos],
        c_ref=[_plain(info["c_ref"]) for info in infos],
        reviewed=[_plain(info.get("reviewed")) for info in infos],
    )


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    taxonomy: str = "profilebench",
    **settings: Any,
) -> float:
    """The reward of one rollout against a target that is known beforehand (equations 7 and 8).

    The target, tags by attribute (a mapping or its JSON), is `extra_info["target"]`, else `ground_truth`; of an
    attribute that it leaves out every tag is wrong. Weights come from `extra_info["c_ref"]`, in the same form.
    Raises `InputError` where either is missing or holds something else.
    """
    info = extra_info or {}
    target = _plain(info.get("target") or ground_truth)
    if not isinstance(target, Mapping) or "c_ref" not in info:
        raise InputError(
            "a single rollout cannot be voted on: compute_score needs the target {attribute: tag} as"
            ' extra_info["target"] or ground_truth, and extra_info["c_ref"]; compute_scores votes on whole groups'
        )
    return ConfidenceReward(_known_taxonomy(taxonomy), _settings(settings)).against(
        solution_str, target, _plain(info["c_ref"])
    )


def _settings(given: Mapping[str, Any]) -> RewardSettings:
    try:
        return RewardSettings.model_validate(dict(given))
    except ValidationError as error:
        raise InputError(first_fault(error, "settings")) from None


def _plain(value: Any) -> Any:
    """What came through a table as an array or as JSON, as a list or a mapping."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise InputError(f"expected JSON, found {value[:60]!r}") from None
    return value.tolist() if hasattr(value, "tolist") else value
