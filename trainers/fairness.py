"""Whom a filter drops: the share of each group that is kept, beside the share of all.

A filter by confidence keeps whom the model finds easy or hard to tell, and that need not be the same share of every
age or gender: what training no longer sees, the student will not learn. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIMIT = 0.8
"""Least ratio of a group's kept share to that of all: the four-fifths rule of employment law."""
MIN_USERS = 20
"""Smaller groups are shown and not judged: chance alone moves their share too much."""


@dataclass(frozen=True)
class Group:
    """One tag's users, and how many of them a filter keeps."""

    source: str
    """Whose word the tag is: voted or gold."""
    attribute: str
    tag: str
    users: int
    kept: int
    share: float
    """kept / users."""
    overall: float
    """The same over all users that have a tag on this attribute from this source."""
    ratio: float
    """share / overall; 1 where nobody is kept at all."""
    difference: float
    """share - overall."""
    chance: float
    """Probability that as few would be kept if as many users were kept blindly (hypergeometric)."""
    flagged: bool
    """Whether the ratio is below the limit in a group that is large enough to judge."""


def audit(
    tags: Mapping[str, Sequence[str | None]],
    kept: ArrayLike,
    source: str,
    *,
    limit: float = LIMIT,
    min_users: int = MIN_USERS,
) -> list[Group]:
    """The groups by `tags[attribute]` [U] under the filter `kept` [U], the most disadvantaged first.

    None stands for a user without a tag, who is in no group of that attribute and not in its overall share.
    """
    chosen = np.asarray(kept, dtype=bool)
    groups = []
    for attribute, of_users in tags.items():
        known = np.array([tag is not None for tag in of_users], dtype=bool)
        if not known.any():
            continue
        overall = float(chosen[known].mean())
        whole, kept_of_all = int(known.sum()), int(chosen[known].sum())
        names = np.array([tag or "" for tag in of_users], dtype=object)
        for tag in sorted({tag for tag in of_users if tag is not None}):
            members = chosen[known & (names == tag)]
            share = float(members.mean())
            ratio = share / overall if overall else 1.0
            groups.append(
                Group(
                    source=source,
                    attribute=attribute,
                    tag=tag,
                    users=len(members),
                    kept=int(members.sum()),
                    share=share,
                    overall=overall,
                    ratio=ratio,
                    difference=share - overall,
                    chance=at_most(int(members.sum()), len(members), kept_of_all, whole),
                    flagged=len(members) >= min_users and ratio < limit,
                )
            )
    return sorted(groups, key=lambda g: (not g.flagged, g.ratio, g.source, g.attribute, g.tag))


def at_most(kept: int, members: int, kept_of_all: int, users: int) -> float:
    """P(X <= kept) where `kept_of_all` of `users` are drawn blindly and `members` of them are the group."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, users + 1)))])

    def log_choose(n: int, k: NDArray[np.int64] | int) -> NDArray[np.float64]:
        return np.asarray(logs[n] - logs[k] - logs[n - np.asarray(k)])

    least = max(0, kept_of_all - (users - members))
    k = np.arange(least, kept + 1)
    log_p = (
        log_choose(members, k) + log_choose(users - members, kept_of_all - k) - log_choose(users, kept_of_all)
    )
    return float(min(1.0, np.exp(log_p).sum()))
