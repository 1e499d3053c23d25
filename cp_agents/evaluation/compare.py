"""Two runs of one store over the users they share: where they agree, what each cost, where they differ.

The models are compared, not the people behind them: an attribute that a person reviewed counts as what the
run itself had said of it.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from cp_agents.errors import InputError
from cp_agents.evaluation.agreement import AttributeComparison, Difference, OwnWord, Tally
from cp_agents.evaluation.effort import Effort, effort, pace
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.metrics import Evaluation, evaluate
from cp_agents.evaluation.outcomes import closed_over
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

_PAGE = 2000


class RunSide(BaseModel):
    """One of the two runs."""

    run: str
    backend: str
    samples: int
    """M."""
    calibrated: bool
    users: int
    """With a profile."""
    only_here: int
    """Users of whom the other run has no profile; they are in no comparison."""
    accepted: int
    """Attributes of the shared users that the profiles answer."""
    effort: Effort
    wall_s: float | None
    """From the run's start to its last sample."""
    samples_per_s: float | None
    """Of the whole run by the clock."""
    pace_basis: str
    gold: Evaluation | None = None
    """Against gold, over the shared users that gold knows."""


class Comparison(BaseModel):
    """All that `compare_runs` found."""

    taxonomy: str
    users: int
    """Users of whom both runs have a profile."""
    other_cues: int
    """Of these, users whose cue block was not the same in both runs."""
    a: RunSide
    b: RunSide
    attributes: dict[str, AttributeComparison]
    """In taxonomy order."""
    differing: int
    """User-attribute pairs with different votes."""
    differences: list[Difference]
    """The foremost of these: highest confidence of the less confident run first."""


def compare_runs(
    store: TraceStore, run_a: str, run_b: str, *, gold: Gold | None = None, differences: int = 20
) -> Comparison:
    """Compare two stored runs. Nothing is written and no model is called.

    `gold` is `{user_id: {attribute: tag}}`; `differences` bounds how many are listed. Raises `StoreError` for a
    run that is not there, `InputError` for runs of different closed sets, without a common user, or for a gold
    tag outside the set.
    """
    rows = store.run(run_a), store.run(run_b)
    taxonomy, other = (Taxonomy.model_validate_json(row["taxonomy"]) for row in rows)
    if unlike := _unlike(taxonomy, other):
        raise InputError(f"runs {run_a} and {run_b} cannot be compared: {unlike}")
    names = [a.name for a in taxonomy.attributes if a.open]
    if names:
        taxonomy, gold = _closed(store, run_a, run_b, taxonomy, gold)
    tallies = {name: Tally() for name in taxonomy.names}
    ranked: list[tuple[tuple[float, ...], Difference]] = []
    lines: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    users = other_cues = 0
    order = itertools.count(0, -1)
    for user, same_cues, a, b in _shared(store, run_a, run_b):
        users += 1
        other_cues += not same_cues
        for name in names:  # wordings of one value are no difference
            for value in (profile[name] for profile in (a, b) if name in profile):
                value["voted"] = taxonomy[name].match_tag(value["voted"]) or value["voted"]
        truth = None if gold is None else gold.get(user)
        for name, tally in tallies.items():
            if (
                found := tally.add(user, name, a.get(name), b.get(name), (truth or {}).get(name))
            ) is not None:
                rank = (*_strength(found), next(order))  # of equals the earlier one
                push = heapq.heappush if len(ranked) < differences else heapq.heappushpop
                push(ranked, (rank, found))
        if truth is not None:
            for side, profile in zip(lines, (a, b), strict=True):
                side.append({"user_id": user, "profile": {n: OwnWord(v).line for n, v in profile.items()}})
    if not users:
        raise InputError(f"runs {run_a} and {run_b} have profiles of no common user")
    if gold is not None and not lines[0]:
        raise InputError(f"gold knows none of the {users} users that runs {run_a} and {run_b} share")
    sides = [
        _side(store, row, other_row["run_id"], users, sum(t.accepted[i] for t in tallies.values()))
        for i, (row, other_row) in enumerate([rows, rows[::-1]])
    ]
    if gold is not None:
        known = {line["user_id"]: gold[line["user_id"]] for line in lines[0]}
        for half, predicted in zip(sides, lines, strict=True):
            half.gold = evaluate(predicted, known, taxonomy)
    attributes = {name: tally.result(users, gold is not None) for name, tally in tallies.items()}
    return Comparison(
        taxonomy=taxonomy.name,
        users=users,
        other_cues=other_cues,
        a=sides[0],
        b=sides[1],
        attributes=attributes,
        differing=sum(a.differing for a in attributes.values()),
        differences=[found for _, found in sorted(ranked, key=lambda entry: entry[0], reverse=True)],
    )


def _closed(
    store: TraceStore, run_a: str, run_b: str, taxonomy: Taxonomy, gold: Gold | None
) -> tuple[Taxonomy, Gold | None]:
    """The taxonomy with open attributes closed over what both runs voted and gold says, and gold by its tags."""
    profiles = {
        f"{side}{shared.user_id}": profile
        for shared in _shared(store, run_a, run_b)
        for side, profile in (("a", shared.a), ("b", shared.b))
    }
    found, read = closed_over(taxonomy, profiles, gold or {})
    if gold is None:
        return found, None
    canonical = {
        user: {name: (found[name].match_tag(t) or t) if name in found else t for name, t in truth.items()}
        for user, truth in read.items()
    }
    return found, canonical


class _Shared(NamedTuple):
    user_id: str
    same_cues: bool
    a: dict[str, Any]
    b: dict[str, Any]


def _shared(store: TraceStore, run_a: str, run_b: str) -> Iterator[_Shared]:
    """Both stored profiles of every shared user, in the order of run A."""
    last = -1
    while rows := store.rows(
        "select ra.record_id, ra.user_id, ra.cues = rb.cues, pa.profile, pb.profile from records ra"
        " join profiles pa on pa.record_id = ra.record_id join records rb on rb.user_id = ra.user_id"
        " join profiles pb on pb.record_id = rb.record_id where ra.run_id = ? and rb.run_id = ?"
        " and ra.record_id > ? order by ra.record_id limit ?",
        (run_a, run_b, last, _PAGE),
    ):
        for last, user, same, a, b in rows:  # noqa: B007 (the last one is where the next page begins)
            yield _Shared(user, bool(same), json.loads(a), json.loads(b))


def _side(store: TraceStore, row: Mapping[str, Any], other: str, users: int, accepted: int) -> RunSide:
    run = row["run_id"]
    [(profiles,)] = store.rows(
        "select count(*) from records r join profiles p using (record_id) where r.run_id = ?", (run,)
    )
    went = pace(store, run)
    return RunSide(
        run=run,
        backend=row["backend"],
        samples=row["samples"],
        calibrated=row["calibrator_id"] is not None,
        users=profiles,
        only_here=profiles - users,
        accepted=accepted,
        effort=effort(store, run, other, users, accepted),
        wall_s=went.wall_s,
        samples_per_s=went.samples_per_s,
        pace_basis=went.basis,
    )


def _unlike(a: Taxonomy, b: Taxonomy) -> str | None:
    """How the closed sets differ; descriptions and phrases may."""
    if set(a.names) != set(b.names):
        return f"{a.name} asks for {', '.join(a.names)}, and {b.name} for {', '.join(b.names)}"
    for attribute in a.attributes:
        if stray := sorted(set(attribute.names) ^ set(b[attribute.name].names)):
            return f"the tag {stray[0]!r} of {attribute.name!r} is in the closed set of only one of them"
    return None


def _strength(found: Difference) -> tuple[float, float, float]:
    """How confidently two runs differ: as much as the less confident of them."""
    a, b = found.a, found.b
    return min(a.confidence, b.confidence), a.confidence + b.confidence, min(a.vote_share, b.vote_share)
