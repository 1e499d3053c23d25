"""A stored run, and gold where there is some, as a `RunReport`. Reads the store, writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cp_agents import __version__
from cp_agents.abstention import BELOW_TAU, TOO_FEW_SURVIVORS, VOTED_NA
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.relabel import stored_run
from cp_agents.report.calls import calls_of, errors_of
from cp_agents.report.cases import case_of, contested, worst
from cp_agents.report.coverage import MOST_VALUES, coverage_of
from cp_agents.report.model import RunReport, RunSummary
from cp_agents.report.model_records import ReviewQueue, WaitingReview
from cp_agents.report.quality import quality_of
from cp_agents.report.rows import Profiled, canonical_gold, load_rows, stored_calibrator
from cp_agents.report.shapes import shapes_of, splits_of
from cp_agents.settings import ProfileSettings
from cp_agents.stores.reviews import open_reviews
from cp_agents.stores.stats import sampling_of
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

TOP = 12
"""Worst records shown, and contested ones."""
_QUEUE = 25
_ABSTENTION = {BELOW_TAU, VOTED_NA, TOO_FEW_SURVIVORS}
"""Reasons for NA; a row of the queue has them beside those for which it waits."""


def build_report(
    store: TraceStore,
    run_id: str | None = None,
    *,
    gold: Gold | None = None,
    taxonomy: Taxonomy | None = None,
    records: bool = True,
    top: int = TOP,
) -> RunReport:
    """The report of a stored run, the newest without an id, as its profiles stand in the store.

    `taxonomy` is the run's own by default; another one has to have the run's attributes and tags, and may know more
    aliases for gold. Without `records` no word and no id of a user is in it. Raises `StoreError` where there is no
    such run, `InputError` for a run without profiles, for gold with no user in common, and for tags outside the
    closed set.
    """
    run_id, own, settings = stored_run(store, run_id)
    chosen = own if taxonomy is None else _same_tags(own, taxonomy)
    row = store.run(run_id)
    rows = load_rows(store, run_id, settings.samples)
    users = frozenset(r[0] for r in store.rows("select user_id from records where run_id = ?", (run_id,)))
    if not rows:
        raise InputError(
            f"run {run_id} has no finished profile yet: go on with it by the command that began it,"
            " then ask for its report"
        )
    truth = None
    if gold is not None:
        if not users & gold.keys():
            raise InputError(f"run {run_id} and the gold have no user in common: nothing can be compared")
        judged = [a.name for a in chosen.attributes if a.tags]
        if not any(name in judged for user in users & gold.keys() for name in gold[user]):
            raise InputError(
                f"gold speaks of no attribute of the taxonomy {chosen.name} that has tags"
                f" ({', '.join(judged) or 'all are open'})"
            )
        truth = canonical_gold(gold, chosen)
    known = {user: tags for user, tags in (truth or {}).items() if user in users}
    quality = quality_of(rows, truth, users, chosen, settings.tau) if truth is not None else None
    calibrator = stored_calibrator(store, row["calibrator_id"])
    wrong = worst(rows, chosen, known, top) if records else []
    split = contested(rows, chosen, known, top) if records else []
    return RunReport(
        version=__version__,
        store=Path(store.path).name,
        run=_summary(store, row, own, settings, rows, len(users)),
        coverage=coverage_of(
            rows,
            chosen,
            settings.tau,
            None if truth is None else known,
            # What a model wrote freely may say who somebody is.
            MOST_VALUES if records else 0,
        ),
        quality=quality,
        shapes=shapes_of(rows, chosen, calibrator),
        splits=splits_of(rows, chosen, known),
        calls=calls_of(store, run_id),
        errors=errors_of(store, run_id, chosen),
        worst=[case_of(store, pick) for pick in wrong],
        contested=[case_of(store, pick) for pick in split],
        review=_review(store, run_id, records),
        with_records=records,
    )


def _same_tags(own: Taxonomy, other: Taxonomy) -> Taxonomy:
    """`other`, if it reads the run. Raises `InputError` where the run has a tag or an attribute that it lacks."""
    for attribute in own.attributes:
        if attribute.name not in other:
            raise InputError(
                f"the run was made with the taxonomy {own.name}: {other.name} has no attribute {attribute.name!r}"
            )
        if lacking := [tag for tag in attribute.names if tag not in other[attribute.name].codes]:
            raise InputError(
                f"the run was made with the taxonomy {own.name}: {other.name} has no tag {lacking[0]!r}"
                f" of {attribute.name!r}"
            )
    return other


def _summary(
    store: TraceStore,
    row: Mapping[str, object],
    taxonomy: Taxonomy,
    settings: ProfileSettings,
    rows: Sequence[Profiled],
    records: int,
) -> RunSummary:
    labels = {r.calibrator for r in rows}
    rules = settings.review.model_dump(exclude_defaults=True, exclude={"seed"})
    sampling = sampling_of(store, str(row["run_id"])) if settings.adaptive else None
    return RunSummary(
        run_id=str(row["run_id"]),
        backend=str(row["backend"]),
        endpoint=str(row["endpoint"]),
        model=str(row["model"]),
        revision=str(row["revision"]),
        prompt_version=str(row["prompt_version"]),
        taxonomy=taxonomy.name,
        taxonomy_hash=str(row["taxonomy_hash"]),
        samples=settings.samples,
        adaptive=settings.adaptive,
        asked_per_record=sampling.mean if sampling else None,
        vote=settings.vote,
        confidence=settings.confidence,
        calibrator=labels.pop() if len(labels) == 1 else "several",
        tau=settings.tau,
        review_rules={name: "on" if value is True else f"{value:g}" for name, value in rules.items()},
        created_at=str(row["created_at"]),
        finished_at=None if row["finished_at"] is None else str(row["finished_at"]),
        records=records,
        profiled=len(rows),
    )


def _review(store: TraceStore, run_id: str, records: bool) -> ReviewQueue:
    waiting = open_reviews(store, run_id)
    answers = store.rows(
        "select v.tag, v.proposed from reviews v join records r using (record_id)"
        " where r.run_id = ? and v.tag is not null",
        (run_id,),
    )
    return ReviewQueue(
        waiting=len(waiting),
        by_reason=dict(
            Counter(r for row in waiting for r in row["reasons"] if r not in _ABSTENTION).most_common()
        ),
        by_attribute=dict(Counter(row["attribute"] for row in waiting).most_common()),
        rows=[
            WaitingReview(
                review_id=row["review_id"],
                user_id=row["user_id"],
                attribute=row["attribute"],
                proposed=row["proposed"],
                confidence=row["confidence"],
                reasons=row["reasons"],
            )
            for row in waiting[:_QUEUE]
        ]
        if records
        else [],
        answered=len(answers),
        confirmed=sum(tag == proposed for tag, proposed in answers),
    )
