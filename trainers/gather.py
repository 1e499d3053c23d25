"""Rollouts of all processes in one place, and back.

TRL asks each process for the rewards of its own rollouts, and a group may lie half in one process and half in the
next. A vote over half a group is another vote, so the rollouts are gathered first, and each process keeps its share
of the rewards.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from typing import TypeVar

from cp_agents.errors import InputError

T = TypeVar("T")


def gather(local: T) -> tuple[list[T], int]:
    """`local` of every process in the order of their ranks, and this process's place among them.

    Every process has to call it, and as often as the others. Without torch.distributed it is `([local], 0)`.
    """
    torch = sys.modules.get("torch")  # not imported for its own sake: without it nothing is distributed
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [local], 0
    parts: list[T] = [local] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, local)
    return parts, torch.distributed.get_rank()


def group_rows(keys: Sequence[Hashable], size: int | None = None) -> list[list[int]]:
    """Row numbers by key, groups in the order in which their keys first appear, rows in order.

    Every group has to have `size` rows; without one, as many as the first. Raises `InputError` where one has not: a
    group that is not whole would be voted on in parts.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    expected = size if size is not None else len(next(iter(groups.values()), ()))
    for key, rows in groups.items():
        if len(rows) != expected:
            raise InputError(
                f"record {key!r} has {len(rows)} rollouts in this step and the group size is {expected}: the vote needs"
                " whole groups, so all rollouts of a record have to reach the reward together, and no record twice"
            )
    if expected == 1:
        raise InputError(
            "the group size is 1: a single rollout agrees with its own vote, so there is nothing to learn; take at"
            " least 2 rollouts per record"
        )
    return list(groups.values())
