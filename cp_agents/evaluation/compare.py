"""Two runs of one store over the users they share: where they agree, what each cost, where they differ.

The models are compared, not the people behind them: an attribute that a person reviewed counts as what the
run itself had said of it.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from cp_agents.abstention import BELOW_TAU, TOO_FEW_SURVIVORS
from cp_agents.errors import InputError
from cp_agents.evaluation.effort import Effort, effort, pace
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.metrics import Evaluation, evaluate
from cp_agents.schema import CONFIDENCE_LEVELS, NA, Status
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

_PAGE = 2000
_QUOTED = 3


class Said(BaseModel):
    """What a run voted for on one attribute of one user, before abstention."""

    tag: str
    confidence: int
    """1..5, calibrated as the run was."""
    vote_share: float
    evidence: list[str]
    """At most three pieces."""


class Difference(BaseModel):
    """Two runs that voted for different tags; NA is a tag."""

    user_id: str
    attribute: str
    a: Said
    b: Said
    gold: str | None = None


class AttributeComparison(BaseModel):
    """One attribute over the shared users. Ratios are 0..1, None where there is nothing to divide by."""

    users: int
    """Shared users on whom neither run failed; `equal` and `kappa` are over these."""
    failed_a: int
    """Users on whom too few samples survived to vote. They are unanswered in `coverage`."""
    failed_b: int
    equal: float | None
    """Share of equal tags as the profiles say them: NA, voted or by abstention, is a tag."""
    kappa: float | None
    """Cohen's kappa of the same; None where both runs always say one and the same tag."""
    both_answer: int
    """Users to whom both runs give a tag other than NA."""
    equal_where_both_answer: float | None
    kappa_where_both_answer: float | None
    only_a: int
    """Users to whom only run A gives a tag."""
    only_b: int
    coverage_a: float
    """Share of all shared users that get a tag at the tau the run was made with."""
    coverage_b: float
    coverage_at_tau_a: list[float]
    """The same at tau 1..5."""
    coverage_at_tau_b: list[float]
    differing: int
    """Users with different votes, whatever tau."""
    right_a: int | None = None
    """Of these, users of whom gold says what run A voted for; None without gold."""
    right_b: int | None = None


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
    wall_s: int | None
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
    tallies = {name: _Tally() for name in taxonomy.names}
    ranked: list[tuple[tuple[float, ...], Difference]] = []
    lines: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    users = other_cues = 0
    order = itertools.count(0, -1)
    for user, same_cues, a, b in _shared(store, run_a, run_b):
        users += 1
        other_cues += not same_cues
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
                side.append({"user_id": user, "profile": {n: _Own(v).line for n, v in profile.items()}})
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


def cohen_kappa(pairs: Mapping[tuple[str, str], int]) -> float | None:
    """Cohen's kappa of two raters from counts of `(tag of A, tag of B)`.

    (observed - expected) / (1 - expected), where expected is the agreement of two raters who draw from their
    own frequencies. None without pairs, and where both name one and the same tag always.
    """
    total = sum(pairs.values())
    of_a, of_b = Counter[str](), Counter[str]()
    for (a, b), count in pairs.items():
        of_a[a] += count
        of_b[b] += count
    expected = sum(of_a[tag] * of_b[tag] for tag in of_a)  # times total squared: whole numbers are exact
    if expected == total * total:
        return None
    observed = sum(count for (a, b), count in pairs.items() if a == b) * total
    return (observed - expected) / (total * total - expected)


class _Own:
    """What the run itself said of an attribute: its stored value with the reviewer's part taken off."""

    def __init__(self, value: Mapping[str, Any] | None) -> None:
        self.value = value or {}
        reasons = self.value.get("reasons", ())
        self.failed = value is None or TOO_FEW_SURVIVORS in reasons
        self.voted: str = NA if self.failed else self.value["voted"]
        self.confidence: int = 0 if self.failed else self.value["confidence"]
        self.tag = NA if BELOW_TAU in reasons else self.voted

    @property
    def line(self) -> dict[str, Any]:
        """As `evaluate` reads it."""
        status = Status.FAILED if self.failed else Status.ACCEPTED
        return {"tag": self.tag, "voted": self.voted, "confidence": self.confidence, "status": status}

    @property
    def said(self) -> Said:
        pieces = [str(piece["text"]) for piece in self.value.get("evidence", ())[:_QUOTED]]
        share = float(self.value["vote_share"])
        return Said(tag=self.voted, confidence=self.confidence, vote_share=share, evidence=pieces)


class _Tally:
    """Counts of one attribute as users come by."""

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.failed = [0, 0]
        self.accepted = [0, 0]
        self.at_level: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self.right = [0, 0]
        self.differing = 0

    def add(
        self,
        user: str,
        name: str,
        a: Mapping[str, Any] | None,
        b: Mapping[str, Any] | None,
        truth: str | None,
    ) -> Difference | None:
        """Count one user; the difference if the votes differ."""
        both = _Own(a), _Own(b)
        for i, own in enumerate(both):
            self.failed[i] += own.failed
            self.accepted[i] += own.tag != NA
            self.at_level[i][own.confidence] += own.voted != NA
        if both[0].failed or both[1].failed:
            return None
        self.pairs[both[0].tag, both[1].tag] += 1
        if both[0].voted == both[1].voted:
            return None
        self.differing += 1
        for i, own in enumerate(both):
            self.right[i] += own.voted == truth
        return Difference(user_id=user, attribute=name, a=both[0].said, b=both[1].said, gold=truth)

    def result(self, users: int, with_gold: bool) -> AttributeComparison:
        answered = Counter({pair: count for pair, count in self.pairs.items() if NA not in pair})
        voted, both = self.pairs.total(), answered.total()
        coverage = [
            [
                sum(count for level, count in levels.items() if level >= tau) / users
                for tau in CONFIDENCE_LEVELS
            ]
            for levels in self.at_level
        ]
        return AttributeComparison(
            users=voted,
            failed_a=self.failed[0],
            failed_b=self.failed[1],
            equal=_equal(self.pairs),
            kappa=cohen_kappa(self.pairs),
            both_answer=both,
            equal_where_both_answer=_equal(answered),
            kappa_where_both_answer=cohen_kappa(answered),
            only_a=sum(count for (a, b), count in self.pairs.items() if a != NA and b == NA),
            only_b=sum(count for (a, b), count in self.pairs.items() if a == NA and b != NA),
            coverage_a=self.accepted[0] / users,
            coverage_b=self.accepted[1] / users,
            coverage_at_tau_a=coverage[0],
            coverage_at_tau_b=coverage[1],
            differing=self.differing,
            right_a=self.right[0] if with_gold else None,
            right_b=self.right[1] if with_gold else None,
        )


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


def _equal(pairs: Mapping[tuple[str, str], int]) -> float | None:
    total = sum(pairs.values())
    return sum(count for (a, b), count in pairs.items() if a == b) / total if total else None


def _strength(found: Difference) -> tuple[float, float, float]:
    """How confidently two runs differ: as much as the less confident of them."""
    a, b = found.a, found.b
    return min(a.confidence, b.confidence), a.confidence + b.confidence, min(a.vote_share, b.vote_share)
