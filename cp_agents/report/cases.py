"""The records that a person should look at first: confidently wrong ones, and those that the samples fight over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cp_agents.report.excerpt import Kind, Span, excerpt
from cp_agents.report.model_records import Case, TagVotes
from cp_agents.report.rows import Profiled, Value, is_vote, values_of
from cp_agents.schema import NA, Evidence, Match, Status
from cp_agents.stores.traces import TraceStore, unpack_evidence
from cp_agents.taxonomy import Taxonomy

Gold = Mapping[str, Mapping[str, str]]


class Pick(NamedTuple):
    """One attribute of one record."""

    row: Profiled
    attribute: str
    value: Value
    gold: str | None


def worst(rows: Sequence[Profiled], taxonomy: Taxonomy, gold: Gold, most: int) -> list[Pick]:
    """The wrong answers with the highest confidence; attributes take turns, so that no single one fills the list.

    Answers are what the profiles say, those that wait for review included; what a person answered is not the model's.
    By probability where there is one, then by level, S / M, vote share and margin.
    """
    said = {Status.ACCEPTED.value, Status.NEEDS_REVIEW.value}
    wrong = [
        pick
        for pick in _picks(rows, taxonomy, gold)
        if pick.value["status"] in said
        and pick.value["tag"] != NA
        and pick.gold not in (None, NA, pick.value["tag"])
    ]
    wrong.sort(key=lambda pick: _confidence(pick), reverse=True)
    return _in_turn(wrong, most)


def contested(rows: Sequence[Profiled], taxonomy: Taxonomy, gold: Gold, most: int) -> list[Pick]:
    """The votes with the smallest margin between winner and runner-up; attributes take turns."""
    split = [
        pick
        for pick in _picks(rows, taxonomy, gold)
        if is_vote(pick.value) and pick.value.get("runner_up") is not None
    ]
    split.sort(key=lambda pick: (pick.value["margin"], -pick.value["survivors"]))
    return _in_turn(split, most)


def _picks(rows: Sequence[Profiled], taxonomy: Taxonomy, gold: Gold) -> Iterable[Pick]:
    for name in taxonomy.names:
        for row, value in values_of(rows, name):
            yield Pick(row, name, value, gold.get(row.user_id, {}).get(name))


def _confidence(pick: Pick) -> tuple[float, ...]:
    value = pick.value
    numbers = (value.get("probability") or 0, value["confidence"], value["score"] / pick.row.asked)
    return (*numbers, value["vote_share"], value["margin"])


def _in_turn(picks: Sequence[Pick], most: int) -> list[Pick]:
    """The first `most` if every attribute in turn gives its next one."""
    turn: dict[str, int] = defaultdict(int)
    numbered = []
    for place, pick in enumerate(picks):
        numbered.append((turn[pick.attribute], place))
        turn[pick.attribute] += 1
    chosen = sorted(range(len(picks)), key=numbered.__getitem__)[:most]
    return [picks[i] for i in chosen]


def case_of(store: TraceStore, pick: Pick) -> Case:
    """A pick with its votes and its text, from the store."""
    record_id, value, name = pick.row.record_id, pick.value, pick.attribute
    cues = store.record(record_id).cues
    answers = [row for row in store.predictions(record_id) if row[2] == name]
    said: dict[str, list[int]] = defaultdict(list)
    for _, _, _, tag, stated in answers:
        said[tag].append(stated)
    winner = [Evidence.model_validate(piece) for piece in value.get("evidence", ())]
    spans = [*_spans(winner, "winner"), *_spans(_others(store, record_id, name, value, cues), "other")]
    votes = [TagVotes(tag=t, votes=len(c), mean_confidence=sum(c) / len(c)) for t, c in said.items()]
    return Case(
        user_id=pick.row.user_id,
        attribute=name,
        voted=value["voted"],
        tag=value["tag"],
        gold=pick.gold,
        status=value["status"],
        confidence=value["confidence"],
        score=value["score"] / pick.row.asked,
        share=value["vote_share"],
        margin=value["margin"],
        survivors=value["survivors"],
        asked=pick.row.asked,
        runner_up=value.get("runner_up"),
        votes=sorted(votes, key=lambda v: (v.tag != value["voted"], -v.votes * v.mean_confidence)),
        lines=excerpt(cues, spans),
        invented=[e.text for e in winner if e.match is Match.UNGROUNDED][:3],
    )


def _others(store: TraceStore, record_id: int, name: str, value: Value, cues: str) -> list[Evidence]:
    """The evidence of the most confident sample for the runner-up."""
    rivals = [
        row for row in store.predictions(record_id) if row[2] == name and row[3] == value.get("runner_up")
    ]
    if not rivals:
        return []
    best = max(rivals, key=lambda row: (row[4], -row[0]))
    return unpack_evidence(store.evidence([(record_id, best[0], name)])[0], cues)


def _spans(pieces: Iterable[Evidence], kind: Kind) -> list[Span]:
    return [Span(e.start, e.end, kind) for e in pieces if e.start is not None and e.end is not None]
