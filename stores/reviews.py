"""The review queue: what waits for a person, and what people said. Answers are added, never overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cp_agents.errors import InputError
from cp_agents.routing import AUDIT, ReviewPolicy, in_audit
from cp_agents.schema import AttributeProfile, Profile, Status
from cp_agents.stores.traces import TraceStore, now
from cp_agents.taxonomy import Taxonomy


def queue_reviews(store: TraceStore, record_id: int, wanted: Mapping[str, AttributeProfile]) -> None:
    """Queue the attributes of one record that need a person; those already waiting or answered are left alone."""
    with store.transaction() as conn:
        for attribute, value in wanted.items():
            known = conn.execute(
                "select 1 from reviews where record_id = ? and attribute = ?", (record_id, attribute)
            ).fetchone()
            if known is None:
                conn.execute(
                    "insert into reviews (record_id, attribute, reasons, proposed, confidence, created_at)"
                    " values (?, ?, ?, ?, ?, ?)",
                    (record_id, attribute, json.dumps(value.reasons), value.voted, value.confidence, now()),
                )


def requeue(store: TraceStore, profiles: Mapping[int, Profile]) -> None:
    """Let the queue follow newly decided profiles: what no longer needs a person leaves it, answers stay.

    A run whose review policy is off now (settings of its row) said nothing of review: what waits goes on waiting.
    """
    with store.transaction() as conn:
        followed = _reviewed_runs_records(store, profiles)
        for record_id, profile in profiles.items():
            wanted = {n: v for n, v in profile.attributes.items() if v.status is Status.NEEDS_REVIEW}
            waiting = conn.execute(
                "select attribute from reviews where record_id = ? and tag is null", (record_id,)
            ).fetchall()
            for (attribute,) in waiting:
                if attribute not in wanted and record_id in followed:
                    conn.execute(
                        "delete from reviews where record_id = ? and attribute = ? and tag is null",
                        (record_id, attribute),
                    )
            if wanted:
                queue_reviews(store, record_id, wanted)


def _reviewed_runs_records(store: TraceStore, record_ids: Iterable[int]) -> set[int]:
    """Those of the records whose run has a review policy that is on."""
    found = store.rows(
        "select w.value, r.run_id from json_each(?) w join records r on r.record_id = w.value",
        (json.dumps(list(record_ids)),),
    )
    runs = {run_id for _, run_id in found}
    policies = {run_id: json.loads(store.run(run_id)["settings"]).get("review", {}) for run_id in runs}
    is_on = {run_id: not ReviewPolicy.model_validate(policy).is_off for run_id, policy in policies.items()}
    return {record_id for record_id, run_id in found if is_on[run_id]}


def answer_reviews(
    store: TraceStore, record_id: int, answers: Mapping[str, tuple[str, str | None]], reviewer: str
) -> None:
    """Store a person's `{attribute: (tag, note)}` for one record: in the waiting row, else in a new one."""
    stamp = now()
    with store.transaction() as conn:
        for attribute, (tag, note) in answers.items():
            waiting = conn.execute(
                "select review_id from reviews where record_id = ? and attribute = ? and tag is null",
                (record_id, attribute),
            ).fetchone()
            if waiting:
                conn.execute(
                    "update reviews set tag = ?, reviewer = ?, note = ?, reviewed_at = ? where review_id = ?",
                    (tag, reviewer, note, stamp, waiting[0]),
                )
            else:
                conn.execute(
                    "insert into reviews (record_id, attribute, reasons, created_at, tag, reviewer, note, reviewed_at)"
                    " values (?, ?, '[]', ?, ?, ?, ?, ?)",
                    (record_id, attribute, stamp, tag, reviewer, note, stamp),
                )


def reviewed(
    store: TraceStore, record_ids: Iterable[int] | None = None
) -> dict[int, dict[str, dict[str, Any]]]:
    """The latest answer per record and attribute: `{record_id: {attribute: {tag, reviewer, reviewed_at}}}`."""
    sql = (
        "select record_id, attribute, tag, reviewer, reviewed_at from reviews"
        " where tag is not null {} order by review_id"
    )
    if record_ids is None:
        rows = store.query(sql.format(""))
    else:
        ids = list(record_ids)
        rows = store.query(sql.format(f"and record_id in ({','.join('?' * len(ids))})"), ids)
    latest: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        latest.setdefault(row.pop("record_id"), {})[row.pop("attribute")] = row
    return latest


def apply_reviews(profile: Profile, answers: Mapping[str, Mapping[str, Any]]) -> Profile:
    """The profile with people's answers on top: `tag` is the person's, `voted` stays the model's."""
    if not answers:
        return profile
    attributes = dict(profile.attributes)
    for name, answer in answers.items():
        if name in attributes:
            attributes[name] = attributes[name].model_copy(
                update={
                    "tag": answer["tag"],
                    "status": Status.REVIEWED,
                    "reviewer": answer["reviewer"],
                    "reviewed_at": answer["reviewed_at"],
                }
            )
    return profile.model_copy(update={"attributes": attributes})


class Audited(NamedTuple):
    """What people said of the users that the random audit of a run chose."""

    truth: dict[str, dict[str, str]]
    """`{user_id: {attribute: tag}}`, the latest answers."""
    asked: int
    """Attributes of users in the audit that were queued, answered or not."""
    by_rule: int
    """Answered attributes that are left out: a rule chose them for being doubtful, so they say little of the rest."""


def audited(store: TraceStore, run_id: str) -> Audited:
    """The answers that measure accuracy: only those of users whom the audit drew at random.

    Raises `StoreError` for a run that the store does not hold.
    """
    policy = ReviewPolicy.model_validate(json.loads(store.run(run_id)["settings"]).get("review", {}))
    rows = store.query(
        "select r.user_id, v.attribute, v.tag, v.reasons from reviews v join records r using (record_id)"
        " where r.run_id = ? order by v.review_id",
        [run_id],
    )
    # an attribute that a rule had queued before the audit was on is in it all the same
    drawn = {row["user_id"] for row in rows if AUDIT in json.loads(row["reasons"])}
    drawn |= {row["user_id"] for row in rows if in_audit(policy, row["user_id"])}
    truth: dict[str, dict[str, str]] = {}
    asked, by_rule = set(), set()
    for row in rows:
        user, attribute, tag = row["user_id"], row["attribute"], row["tag"]
        if user in drawn:
            asked.add((user, attribute))
            if tag is not None:
                truth.setdefault(user, {})[attribute] = tag
        elif tag is not None:
            by_rule.add((user, attribute))
    return Audited(truth, len(asked), len(by_rule))


def open_reviews(store: TraceStore, run_id: str | None = None) -> list[dict[str, Any]]:
    """What waits for a person: review_id, run, user, attribute, reasons, the model's tag and the cue block.

    Raises `StoreError` for a run that the store does not hold.
    """
    if run_id:
        store.run(run_id)
    where, parameters = ("and r.run_id = ?", [run_id]) if run_id else ("", [])
    rows = store.query(
        "select v.review_id, r.run_id, r.user_id, v.record_id, v.attribute, v.reasons, v.proposed, v.confidence, r.cues"
        f" from reviews v join records r using (record_id) where v.tag is null {where} order by v.review_id",
        parameters,
    )
    for row in rows:
        row["reasons"] = json.loads(row["reasons"])
    return rows


def review_row(store: TraceStore, review_id: int) -> dict[str, Any]:
    """One row of the queue with its run. Raises `InputError` where there is none."""
    rows = store.query(
        "select v.*, r.user_id, r.run_id, u.taxonomy, u.settings from reviews v join records r using (record_id)"
        " join runs u using (run_id) where v.review_id = ?",
        [review_id],
    )
    if not rows:
        raise InputError(
            f"no review {review_id} in the store {store.path}; `cp-agents review list` shows those there are"
        )
    return rows[0]


def answer_one(
    store: TraceStore, review_id: int, tag: str, reviewer: str, note: str | None = None
) -> tuple[dict[str, Any], str]:
    """Answer one row of the queue and put the answer on top of the stored profile.

    Returns the row and the canonical tag. Raises `InputError` for an unknown id or a tag outside the set.
    """
    row = review_row(store, review_id)
    attribute = Taxonomy.model_validate_json(row["taxonomy"])[row["attribute"]]
    canonical = attribute.match_tag(tag)
    if canonical is None:
        raise InputError(f"{tag!r} is no tag of {attribute.name}: expected {', '.join(attribute.names)}")
    record_id = row["record_id"]
    with store.transaction():
        answer_reviews(store, record_id, {attribute.name: (canonical, note)}, reviewer)
        if profile := store.profile(record_id):
            store.put_profile(record_id, (), apply_reviews(profile, reviewed(store, [record_id])[record_id]))
    return row, canonical
