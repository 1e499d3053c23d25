"""The stereotype probe: the same record with one self-reported field changed; what else moves?

Four profiles of every user who reports the field: *as is*; *again*, the same record with other samples; *swapped*, with
another value in the field; *missing*, without the field. If the other attributes follow the person and not the field,
*swapped* differs from *as is* no more often than *again* does: both are fresh draws. So noise is not called a
stereotype: `excess` is what is left of the changes when it is taken off. `p` is the exact sign test over the users
whose tag changed under one of the two and not under the other.

It does not say whether a change is wrong: what a person says of themselves may rightly inform a guess. It says how much
the profile leans on it. What else in the record gives the field away stays as it is. Pure functions.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from cp_agents.errors import InputError
from cp_agents.evaluation.risk_control import long_run_p
from cp_agents.evaluation.statistics import DRAWS, LEVEL, Interval
from cp_agents.schema import NA, SELF_REPORTED, Profile, Status
from cp_agents.taxonomy import Attribute, Taxonomy, fold

AS_IS, AGAIN, SWAPPED, MISSING = "as-is", "again", "swapped", "missing"
ARMS = (AS_IS, AGAIN, SWAPPED, MISSING)
_MOVES = 3

Record = Mapping[str, Any]


class Probe(NamedTuple):
    """The records of the arms, user by user, and what was changed."""

    attribute: str | None
    """The attribute that the field speaks of; it is expected to move. None for a field that speaks of none."""
    records: dict[str, list[dict[str, Any]]]
    """By arm; `AS_IS` and `AGAIN` are the records as they came in."""
    swaps: dict[str, tuple[str, str]]
    """`{user_id: (value, value in its place)}`, as tags where the field speaks of an attribute."""
    without: int
    """Records that do not report the field, or report what cannot be read; they are in no arm."""


class Move(BaseModel):
    """A change of the tag that the swap brings about more often than fresh samples do."""

    swap: str
    """"Male -> Female"."""
    before: str
    after: str
    swapped: int
    again: int


class Shift(BaseModel):
    """What moved on one attribute."""

    attribute: str
    users: int
    """With a vote in all arms."""
    again: float
    """Share of users whose tag changes with other samples: the noise."""
    swapped: float
    missing: float
    excess: float
    """swapped - again."""
    low: float
    high: float
    p: float
    """Of no excess, two-sided."""
    confidence: float
    """Mean confidence swapped less that of *again*, over users with a tag other than NA in both."""
    confidence_low: float
    confidence_high: float
    moves: list[Move]


def plan_probe(records: Sequence[Record], field: str, taxonomy: Taxonomy) -> Probe:
    """The records of the four arms. `field` is a self-reported field, or an attribute: the fields that speak of it.

    The value in place of a tag is another tag of the attribute, of several the one that a hash of the user id says, in
    the commonest spelling among the records; of a field that speaks of no attribute, another value in the records.
    Raises `InputError` where no record reports the field, or no two values.
    """
    attribute, names = _names(field, taxonomy)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for _, value in _fields(record, names):
            if (read := _read(value, attribute)) is not None:
                spellings[read][str(value)] += 1
    tags = () if attribute is None else attribute.names[:-1]
    values = list(tags) or sorted(spellings)  # an open attribute has no tags, so other values in the records
    if not spellings:
        raise InputError(f"no record reports a field {field!r} that can be read: nothing can be swapped")
    if len(values) < 2:
        raise InputError(f"all records report the same {field!r}: there is nothing to swap it for")
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    swaps: dict[str, tuple[str, str]] = {}
    for record in records:
        found = _fields(record, names)
        own = next((read for _, value in found if (read := _read(value, attribute)) is not None), None)
        if own is None:
            continue
        user = str(record["user_id"])
        other = _other(own, values, user)
        common = spellings[other].most_common(1)
        text = common[0][0] if common else other
        arms[AS_IS].append(dict(record))
        arms[AGAIN].append(dict(record))
        arms[SWAPPED].append(_changed(record, {name: text for name, _ in found}))
        arms[MISSING].append(_changed(record, {name: None for name, _ in found}))
        swaps[user] = (own, other)
    return Probe(attribute.name if attribute else None, arms, swaps, len(records) - len(swaps))


def shifts(
    profiles: Mapping[str, Mapping[str, Profile]],
    swaps: Mapping[str, tuple[str, str]],
    taxonomy: Taxonomy,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Shift]:
    """What moved, attribute by attribute; `profiles[arm][user_id]`. Users without a vote in all arms are left out."""
    rng = np.random.default_rng(seed)
    found = []
    for attribute in taxonomy.attributes:
        users = [
            user for user in swaps if all(_voted(profiles[arm].get(user), attribute.name) for arm in ARMS)
        ]
        if users:
            found.append(_shift(attribute, users, profiles, swaps, rng, draws))
    return found


def _shift(
    attribute: Attribute,
    users: list[str],
    profiles: Mapping[str, Mapping[str, Profile]],
    swaps: Mapping[str, tuple[str, str]],
    rng: np.random.Generator,
    draws: int,
) -> Shift:
    said = {arm: [profiles[arm][user][attribute.name] for user in users] for arm in ARMS}
    tags = {arm: np.array([value.voted for value in values], dtype=object) for arm, values in said.items()}
    levels = {arm: np.array([value.confidence for value in values], float) for arm, values in said.items()}
    changed = {arm: (tags[arm] != tags[AS_IS]).astype(float) for arm in ARMS}
    drawn = rng.integers(0, len(users), (draws, len(users)))
    excess = _mean_interval(changed[SWAPPED] - changed[AGAIN], drawn)
    by_swap = int(((changed[SWAPPED] == 1) & (changed[AGAIN] == 0)).sum())
    by_noise = int(((changed[SWAPPED] == 0) & (changed[AGAIN] == 1)).sum())
    both = (tags[SWAPPED] != NA) & (tags[AGAIN] != NA)
    confidence = _mean_interval(np.where(both, levels[SWAPPED] - levels[AGAIN], np.nan), drawn)
    return Shift(
        attribute=attribute.name,
        users=len(users),
        again=float(changed[AGAIN].mean()),
        swapped=float(changed[SWAPPED].mean()),
        missing=float(changed[MISSING].mean()),
        excess=excess.value,
        low=excess.low,
        high=excess.high,
        p=min(1.0, 2 * long_run_p(min(by_swap, by_noise), by_swap + by_noise, 0.5)),
        confidence=confidence.value,
        confidence_low=confidence.low,
        confidence_high=confidence.high,
        moves=_moves([" -> ".join(swaps[user]) for user in users], tags),
    )


def _moves(swaps: list[str], tags: Mapping[str, NDArray[Any]]) -> list[Move]:
    counts = {
        arm: Counter(
            (swap, str(before), str(after))
            for swap, before, after in zip(swaps, tags[AS_IS], tags[arm], strict=True)
            if before != after
        )
        for arm in (SWAPPED, AGAIN)
    }
    more = {key: count - counts[AGAIN][key] for key, count in counts[SWAPPED].items()}
    top = sorted((key for key in more if more[key] > 1), key=lambda key: (-more[key], key))[:_MOVES]
    return [
        Move(swap=key[0], before=key[1], after=key[2], swapped=counts[SWAPPED][key], again=counts[AGAIN][key])
        for key in top
    ]


def _mean_interval(values: NDArray[np.float64], drawn: NDArray[np.int64]) -> Interval:
    """The mean of what is not NaN, and its percentile interval over `drawn` [draws, users]."""
    known = ~np.isnan(values)
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    totals, counts = np.where(known, values, 0.0)[drawn].sum(axis=1), known[drawn].sum(axis=1)
    means = totals[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values[known].mean()), float(low), float(high))


def _voted(profile: Profile | None, attribute: str) -> bool:
    return profile is not None and attribute in profile and profile[attribute].status is not Status.FAILED


def _names(field: str, taxonomy: Taxonomy) -> tuple[Attribute | None, set[str]]:
    """The attribute that a field speaks of, and the folded names of the fields to change."""
    if field in taxonomy:
        attribute = taxonomy[field]
        return attribute, {fold(name) for name in (field, *attribute.self_reported)}
    for attribute in taxonomy.attributes:
        if fold(field) in {fold(name) for name in attribute.self_reported}:
            return attribute, {fold(field)}
    return None, {fold(field)}


def _fields(record: Record, names: set[str]) -> list[tuple[str, Any]]:
    reported = record.get(SELF_REPORTED) or {}
    if not isinstance(reported, Mapping):
        return []
    return [
        (name, value) for name, value in reported.items() if fold(str(name)) in names and value is not None
    ]


def _read(value: Any, attribute: Attribute | None) -> str | None:
    """The tag that a value names, or its text where there is no attribute; None for what cannot be read."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    if attribute is None:
        return str(value).strip() or None
    tag = attribute.match_value(str(value))
    return None if tag == NA else tag


def _other(own: str, values: Sequence[str], user: str) -> str:
    others = [value for value in values if value != own]
    digest = hashlib.sha256(f"probe\x1f{user}".encode()).digest()
    return others[int.from_bytes(digest[:8]) % len(others)]


def _changed(record: Record, values: Mapping[str, str | None]) -> dict[str, Any]:
    reported = {**record[SELF_REPORTED], **values}
    return {**record, SELF_REPORTED: {name: value for name, value in reported.items() if value is not None}}
