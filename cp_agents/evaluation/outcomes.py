"""Profiles beside gold, as arrays: the common ground of metrics, tables, thresholds, audit and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError
from cp_agents.open_sets import closed
from cp_agents.schema import Status
from cp_agents.taxonomy import Attribute, Taxonomy

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Profiles = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""`{user_id: {attribute: value}}`, values as in OUT.jsonl."""


class Outcomes(NamedTuple):
    """One attribute of N users: the truth, and what was said. Arrays `[N]`, in gold's order."""

    attribute: Attribute
    users: tuple[str, ...]
    """Those whose gold speaks of the attribute."""
    truth: IntArray
    """Tag codes in the order of `Attribute.names`; NA, the last, where gold says that nothing can be known."""
    voted: IntArray
    """What was voted, whatever its confidence; NA where nothing was."""
    reach: FloatArray
    """The highest tau at which it is said: its confidence, inf for a person's answer, 0 where there is none."""
    present: BoolArray
    """Whether there is a prediction at all."""

    @property
    def na(self) -> int:
        """The code of NA."""
        return len(self.attribute.names) - 1

    @property
    def labelled(self) -> BoolArray:
        """Users whose gold is not NA."""
        return np.not_equal(self.truth, self.na)

    def at(self, tau: float) -> IntArray:
        """What is said at `tau`: the vote, or NA where it does not reach it."""
        return np.where(self.reach >= tau, self.voted, self.na)

    def take(self, rows: NDArray[Any]) -> Outcomes:
        """Only these users, by index or mask, with repetition where the indices repeat."""
        chosen = np.asarray(rows)
        indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        # users is empty where somebody has left the names out
        return self.rows(indices)._replace(users=tuple(self.users[i] for i in indices) if self.users else ())

    def rows(self, indices: NDArray[Any]) -> Outcomes:
        """These rows, without the users' names: joining a thousand of them a thousand times takes its time."""
        return Outcomes(
            self.attribute,
            (),
            self.truth[indices],
            self.voted[indices],
            self.reach[indices],
            self.present[indices],
        )


def by_user(predictions: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """The profiles of lines of OUT.jsonl. Raises `InputError` for a user with two."""
    profiles: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for line in predictions:
        if line["user_id"] in profiles:
            raise InputError(f"there are two predictions for user {line['user_id']!r}")
        profiles[line["user_id"]] = line["profile"]
    return profiles


def read_outcomes(
    profiles: Profiles, gold: Mapping[str, Mapping[str, str]], taxonomy: Taxonomy
) -> dict[str, Outcomes]:
    """Outcomes of the taxonomy's attributes that gold speaks of, in taxonomy order.

    A user of gold without a profile said nothing. A reviewed attribute is what the person said, at every tau: it
    does not hang on the model's confidence. Of an open attribute the codes are those of the values that gold and
    profiles hold together, clustered over all users (`cp_agents.open_sets.closed`). Raises `InputError` for a tag
    outside the closed set.
    """
    taxonomy, gold = closed_over(taxonomy, profiles, gold)
    spoken_of = {name for truth in gold.values() for name in truth}
    return {a.name: _of_attribute(a, profiles, gold) for a in taxonomy.attributes if a.name in spoken_of}


def closed_over(
    taxonomy: Taxonomy, profiles: Profiles, gold: Mapping[str, Mapping[str, str]]
) -> tuple[Taxonomy, Mapping[str, Mapping[str, str]]]:
    """The taxonomy with its open attributes closed over all that gold and profiles say of them, and gold with
    their values cleaned. Without open attributes both as they are.
    """
    if not any(a.open for a in taxonomy.attributes):
        return taxonomy, gold
    read = {
        user: {
            name: (taxonomy[name].match_tag(text) or text) if name in taxonomy else text
            for name, text in truth.items()
        }
        for user, truth in gold.items()
    }
    said = [{n: row.get("voted", row["tag"]) for n, row in of.items()} for of in profiles.values()]
    people = [{n: row["tag"] for n, row in of.items()} for of in profiles.values()]
    return closed(taxonomy, [*read.values(), *said, *people]), read


def _of_attribute(
    attribute: Attribute, profiles: Profiles, gold: Mapping[str, Mapping[str, str]]
) -> Outcomes:
    name = attribute.name
    users = tuple(user for user, truth in gold.items() if name in truth)
    truth = [_code(attribute, gold[user][name], f"gold of user {user!r}") for user in users]
    found = [profiles.get(user, {}).get(name) for user in users]
    said = [_answer(attribute, user, row) for user, row in zip(users, found, strict=True)]
    return Outcomes(
        attribute,
        users,
        np.array(truth, np.int64),
        np.array([code for code, _ in said], np.int64),
        np.array([reach for _, reach in said], np.float64),
        np.array([row is not None for row in found], np.bool_),
    )


def _code(attribute: Attribute, tag: str, where: str) -> int:
    name = attribute.match_tag(tag)
    if name is None:
        expected = ", ".join(attribute.names)
        raise InputError(f"{where}: {tag!r} is not a tag of {attribute.name!r}: expected one of {expected}")
    return attribute.codes[name]


def _answer(attribute: Attribute, user: str, row: Mapping[str, Any] | None) -> tuple[int, float]:
    """The tag code that this row stands for, and the highest tau at which it does."""
    if row is None or row.get("status") == Status.FAILED:
        return len(attribute.names) - 1, 0.0
    reviewed = row.get("status") == Status.REVIEWED
    tag = row["tag"] if reviewed else row.get("voted", row["tag"])
    return _code(attribute, tag, f"prediction for user {user!r}"), np.inf if reviewed else float(
        row["confidence"]
    )
