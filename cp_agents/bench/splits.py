"""Splits that anybody can repeat: by hash of the user id, so that a user stays where it is whatever else changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES: dict[Split, float] = {"train": 0.6, "dev": 0.2, "test": 0.2}


def place(user_id: str, salt: str = "") -> float:
    """Where a user stands in [0, 1): the first 53 bits of SHA-256 over `salt` and the id."""
    digest = hashlib.sha256(f"{salt}\x00{user_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_of(user_id: str) -> Split:
    """The split of a user: 60 % train, 20 % dev, 20 % test."""
    at, edge = place(user_id), 0.0
    for split in SPLITS[:-1]:
        edge += SHARES[split]
        if at < edge:
            return split
    return SPLITS[-1]


def fold_of(user_id: str, folds: int) -> int:
    """Which of `folds` parts a user is in, for cross-validation; independent of `split_of`."""
    return int(place(user_id, salt=f"fold of {folds}") * folds)


def split_counts(users: Iterable[str]) -> dict[Split, int]:
    """Users in each split."""
    counts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for user in users:
        counts[split_of(user)] += 1
    return counts
