"""Fit calibrators on stored runs: label-free, or against gold or reviewed rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cp_agents import decide
from cp_agents.calibration import Calibrator, CalibratorKind
from cp_agents.confidence import ConfidenceSource, check_source
from cp_agents.errors import InputError, StoreError
from cp_agents.open_text import same_meaning
from cp_agents.relabel import fit_on, load_ballots, stored_run
from cp_agents.schema import NA
from cp_agents.stores.reviews import reviewed
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Attribute, Taxonomy
from cp_agents.voting import METHODS, VoteMethod

KINDS: tuple[CalibratorKind, ...] = ("quintile", "isotonic", "platt")


def fit_run(
    store: TraceStore,
    run_id: str | None = None,
    *,
    vote: VoteMethod | None = None,
    confidence: ConfidenceSource | None = None,
    kind: CalibratorKind = "quintile",
    gold: Mapping[str, Mapping[str, str]] | None = None,
) -> Calibrator:
    """A calibrator fitted on a stored run's votes, kept in the store as well. `vote` and `confidence` are the run's by
    default.

    `quintile` needs no labels. `isotonic` and `platt` need the truth: `gold[user_id][attribute]`, or, without
    it, what people said in reviews of this run. Rows whose truth is NA say nothing about a tag and are left
    out; tags are read as elsewhere (aliases, case). Raises `InputError` where no attribute has enough rows, for
    a gold tag outside the closed set, and where no gold user is in the run.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind of calibrator {kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "quintile" and gold is not None:
        raise InputError(
            "a quintile calibrator needs no gold: choose the kind isotonic or platt, or give no gold"
        )
    if vote is not None and vote not in METHODS:
        raise InputError(f"unknown vote {vote!r}: expected one of {', '.join(METHODS)}")
    run, taxonomy, settings = stored_run(store, run_id)
    if vote is not None:
        settings = settings.model_copy(update={"vote": vote})
    if confidence is not None:
        check_source(confidence)
        settings = settings.model_copy(update={"confidence": confidence})
    records, ballots = load_ballots(
        store, run, taxonomy, settings.samples, settings.confidence, settings.tag_weights
    )
    if not records:
        raise StoreError(f"run {run} holds no samples to calibrate on")
    votes = decide.count(ballots, taxonomy, settings.vote)
    if kind == "quintile":
        fitted = fit_on(votes, ballots.asked, taxonomy, settings)
        if fitted is None:
            raise InputError(f"run {run} has too few records to calibrate on ({len(records)})")
    else:
        truth = gold_tags(gold, records, taxonomy, run) if gold is not None else reviewed_tags(store, records)
        scores: dict[str, list[float]] = {name: [] for name in taxonomy.names}
        right: dict[str, list[bool]] = {name: [] for name in taxonomy.names}
        tallies = decide.tallies_of(votes, taxonomy, books=ballots.books)
        for record, tally, asked in zip(records, tallies, ballots.asked.tolist(), strict=True):
            for name, found in tally.items():
                known = truth.get(record[0], {}).get(name, NA)
                if found["voted"] not in (None, NA) and known != NA:
                    scores[name].append(found["score"] * settings.samples / asked)
                    right[name].append(_is_right(taxonomy[name], found["voted"], known))
        fitted = Calibrator.fit(
            {k: np.array(v) for k, v in scores.items()},
            samples=settings.samples,
            vote_method=settings.vote,
            confidence=settings.confidence,
            taxonomy=taxonomy,
            kind=kind,
            correct={k: np.array(v, dtype=bool) for k, v in right.items()},
        )
        if len(fitted.uncalibrated) == len(taxonomy.names):
            most = max(len(v) for v in scores.values())
            raise InputError(f"too few labelled rows to fit {kind}: the best attribute has {most}")
    store.put_calibrator(fitted.id, fitted.kind, fitted.to_json(), run)
    return fitted


def _is_right(attribute: Attribute, voted: str | None, known: str) -> bool:
    return voted == known or (attribute.open and voted is not None and same_meaning(voted, known))


def gold_tags(
    gold: Mapping[str, Mapping[str, str]],
    records: list[tuple[int, str, str, str]],
    taxonomy: Taxonomy,
    run: str,
) -> dict[int, dict[str, str]]:
    """The gold tags of the run's records, as the taxonomy names them; attributes that it lacks are left out."""
    truth: dict[int, dict[str, str]] = {}
    for record_id, user_id, *_ in records:
        if user_id not in gold:
            continue
        tags = truth[record_id] = {}
        for name, said in gold[user_id].items():
            if name not in taxonomy:
                continue
            tag = taxonomy[name].match_tag(said)
            if tag is None:
                raise InputError(
                    f"gold of user {user_id!r}: {said!r} is not a tag of {name!r}: "
                    f"expected one of {', '.join(taxonomy[name].names)}"
                )
            tags[name] = tag
    if not truth:
        raise InputError(f"none of the {len(gold)} gold users is in run {run}")
    return truth


def reviewed_tags(store: TraceStore, records: list[tuple[int, str, str, str]]) -> dict[int, dict[str, str]]:
    """What people said in reviews of these records."""
    answers = reviewed(store)
    return {r[0]: {name: a["tag"] for name, a in answers.get(r[0], {}).items()} for r in records}
