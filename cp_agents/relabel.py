"""Decide a stored run again: other votes, calibrators and thresholds, without a model call.

A batch run ends with this, because the five equal-frequency intervals of calibration are a property of the
whole data set; `cp-agents replay` is this and nothing else.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents import decide
from cp_agents.abstention import parse_tau
from cp_agents.calibration import UNCALIBRATED, Calibrator
from cp_agents.confidence import ConfidenceSource, check_source, needs_probability, weigh
from cp_agents.decide import Tally
from cp_agents.errors import InputError
from cp_agents.open_sets import check_open, na_code
from cp_agents.schema import Profile
from cp_agents.settings import ProfileSettings
from cp_agents.stores.reviews import apply_reviews, reviewed
from cp_agents.stores.traces import RecordRow, TraceStore
from cp_agents.tag_weights import TagWeights, check_tag_weights
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import METHODS, VoteMethod, Votes

_BATCH = 500


class Decided(NamedTuple):
    """One record, decided again."""

    record_id: int
    tallies: dict[str, Tally]
    profile: Profile


def load_ballots(
    store: TraceStore,
    run_id: str,
    taxonomy: Taxonomy,
    samples: int,
    confidence: ConfidenceSource = "verbal",
    tag_weights: TagWeights | None = None,
) -> tuple[list[tuple[int, str, str, str]], decide.Ballots]:
    """A run's records `(record_id, user_id, cues, self_reported JSON)` and all its ballots [R, M], weighed.

    Records in the middle of being drawn are left out, see `partly_drawn`: on the scale of M their S would look like
    doubt. Raises `InputError` where `confidence` weighs by probabilities and no answer of the run has one.
    """
    check_open(taxonomy, confidence=confidence)
    records, ballots = _load(store, run_id, taxonomy, samples, confidence)
    if partly := partly_drawn(store, run_id, samples):
        whole = [row for row, record in enumerate(records) if record[0] not in partly]
        records = [records[row] for row in whole]
        ballots = ballots.rows(whole)
    return records, decide.reweighed(ballots, taxonomy, tag_weights or {})


def partly_drawn(store: TraceStore, run_id: str, samples: int) -> set[int]:
    """Records of a run that have samples, but not all that they were to be asked for: M, or fewer by adaptive
    sampling. A sample with a typed error counts: it was asked for.
    """
    found = store.rows(
        "select r.record_id from records r join samples s using (record_id)"
        " where r.run_id = ? and s.sample_index < ? group by r.record_id"
        " having count(*) < min(coalesce(r.asked, ?), ?)",
        (run_id, samples, samples, samples),
    )
    return {record_id for (record_id,) in found}


def _load(
    store: TraceStore, run_id: str, taxonomy: Taxonomy, samples: int, confidence: ConfidenceSource
) -> tuple[list[tuple[int, str, str, str]], decide.Ballots]:
    records = store.rows(
        "select record_id, user_id, cues, self_reported from records r where run_id = ?"
        " and exists (select 1 from samples s where s.record_id = r.record_id) order by record_id",
        (run_id,),
    )
    record_ids = np.array([record[0] for record in records], np.int64)
    ballots = decide.empty_ballots(taxonomy, len(records), samples)
    stopped = dict(
        store.rows("select record_id, asked from records where run_id = ? and asked < ?", (run_id, samples))
    )
    ballots.asked[:] = [stopped.get(record[0], samples) for record in records]
    known: dict[str, int] = {}
    with _no_collection():
        for ids, indices, samplers in store.columns(
            "select record_id, sample_index, sampler from records join samples using (record_id)"
            " where run_id = ? and sample_index < ?",
            (run_id, samples),
        ):
            rows = np.searchsorted(record_ids, ids)
            ballots.samplers[rows, indices] = [known.setdefault(name, len(known)) for name in samplers]
        texts: dict[str, dict[int, list[tuple[int, str, float]]]] = {
            attribute.name: {} for attribute in taxonomy.attributes if attribute.open
        }
        for k, attribute in enumerate(taxonomy.attributes):
            for ids, indices, tags, stated in store.columns(
                "select s.record_id, s.sample_index, p.tag, p.confidence"
                " from records r join samples s using (record_id) join predictions p using (sample_id)"
                " where r.run_id = ? and p.attribute = ? and p.outcome = 'ok' and s.sample_index < ?",
                (run_id, attribute.name, samples),
            ):
                rows = np.searchsorted(record_ids, ids)
                if attribute.open:
                    for row, *said in zip(rows.tolist(), indices, tags, stated, strict=True):
                        texts[attribute.name].setdefault(row, []).append((*said,))
                else:
                    ballots.tags[k, rows, indices] = list(map(attribute.codes.__getitem__, tags))
                ballots.confidence[k, rows, indices] = stated
        books = {
            name: [
                decide.put_values(ballots, taxonomy.names.index(name), row, of.get(row, []))
                for row in range(len(records))
            ]
            for name, of in texts.items()
        }
        ballots = ballots._replace(books=books)
        if confidence == "verbal":
            return records, ballots
        probability = np.full(ballots.tags.shape, np.nan)
        if needs_probability(confidence):
            for k, attribute in enumerate(taxonomy.attributes):
                for ids, indices, values in store.columns(
                    "select s.record_id, s.sample_index, p.probability"
                    " from records r join samples s using (record_id) join predictions p using (sample_id)"
                    " where r.run_id = ? and p.attribute = ? and p.outcome = 'ok' and p.probability is not null"
                    " and s.sample_index < ?",
                    (run_id, attribute.name, samples),
                ):
                    probability[k, np.searchsorted(record_ids, ids), indices] = values
            if (ballots.tags >= 0).any() and np.isnan(probability).all():
                raise InputError(
                    f"no answer of run {run_id} has a probability, by which confidence {confidence} weighs: its samples"
                    f" are kept, and verbal or agreement can decide them (`replay --confidence`)"
                )
    voting, weights = weigh(confidence, ballots.tags, ballots.confidence, probability)
    return records, ballots._replace(tags=voting, confidence=weights)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector: millions of short-lived rows without a cycle would only keep it busy."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def relabel(
    store: TraceStore,
    run_id: str,
    taxonomy: Taxonomy,
    settings: ProfileSettings,
    calibrator: Calibrator | Literal["fit"] | None = "fit",
) -> tuple[Iterator[Decided], Calibrator | None]:
    """Vote, calibrate and abstain over a stored run; the records as they are decided, and the calibrator used.

    `calibrator="fit"` fits the label-free quintiles on this run's own votes (too few records leave it
    uncalibrated, see `Calibrator.fit`). Nothing is written.
    """
    records, ballots = load_ballots(
        store, run_id, taxonomy, settings.samples, settings.confidence, settings.tag_weights
    )
    votes = decide.count(ballots, taxonomy, settings.vote)
    fitted = fit_on(votes, ballots.asked, taxonomy, settings) if calibrator == "fit" else calibrator
    answers = reviewed(store)
    label = fitted.label if fitted else UNCALIBRATED

    def decided() -> Iterator[Decided]:
        # A part at a time: sixty thousand small dicts at once would keep the garbage collector busy.
        for start in range(0, len(records), _BATCH):
            tallies = decide.tallies_of(votes, taxonomy, start, start + _BATCH, ballots.books)
            asked = ballots.asked[start : start + _BATCH]
            tallies = decide.calibrate(tallies, fitted, settings.samples, asked)
            part = list(zip(records[start : start + _BATCH], tallies, strict=True))
            found = iter(
                store.evidence(w for record, t in part for w in decide.wanted_evidence(record[0], t))
            )
            for (record_id, user_id, cues, reported), tally in part:
                evidence = {name: next(found) for name in tally}
                record = RecordRow(user_id, cues, json.loads(reported))
                attributes = decide.abstain(record, tally, evidence, taxonomy, settings)
                profile = Profile.model_construct(
                    user_id=user_id, attributes=attributes, calibrator=label, run_id=run_id
                )
                yield Decided(record_id, tally, apply_reviews(profile, answers.get(record_id, {})))

    return decided(), fitted


def stored_run(store: TraceStore, run_id: str | None = None) -> tuple[str, Taxonomy, ProfileSettings]:
    """A stored run's id, taxonomy and settings; the newest run without an id."""
    run = store.run(run_id)
    taxonomy = Taxonomy.model_validate_json(run["taxonomy"])
    return run["run_id"], taxonomy, ProfileSettings.model_validate_json(run["settings"])


def replay(
    store: str | Path | TraceStore,
    run_id: str | None = None,
    *,
    vote: VoteMethod | None = None,
    confidence: ConfidenceSource | None = None,
    tau: list[str] | None = None,
    tag_weights: TagWeights | None = None,
    calibrator: Calibrator | Literal["run", "fit"] | None = "run",
) -> Iterator[Profile]:
    """The profiles of a stored run decided otherwise. No model call, nothing written.

    Records that a run was stopped in the middle of are left out, see `partly_drawn`. What is not given stays as the
    run had it. `tau` is spelled as on the command line: `["3", "age=4"]`.
    `calibrator="run"` is the run's own, none where a finished run had none; under another vote, confidence or tag
    weights, and for a run that is not finished, it is fitted (`"fit"`). None leaves the profiles uncalibrated.
    """
    store = store if isinstance(store, TraceStore) else TraceStore(store, must_exist=True)
    run, taxonomy, settings = stored_run(store, run_id)
    changed: dict[str, object] = {}
    if vote is not None:
        if vote not in METHODS:
            raise InputError(f"unknown vote {vote!r}: expected one of {', '.join(METHODS)}")
        changed["vote"] = vote
    if confidence is not None:
        check_source(confidence)
        changed["confidence"] = confidence
    if tau:
        changed["tau"] = parse_tau(tau, taxonomy)
    reweighed = tag_weights is not None and tag_weights != settings.tag_weights
    if reweighed:
        changed["tag_weights"] = tag_weights
    settings = settings.model_copy(update=changed)
    check_tag_weights(settings.tag_weights, taxonomy, settings.vote)
    if calibrator == "run":
        calibrator = "fit" if reweighed else _own_calibrator(store, run, settings)
    if isinstance(calibrator, Calibrator):
        calibrator.check(taxonomy, settings.vote, settings.confidence)
    decided, _ = relabel(store, run, taxonomy, settings, calibrator)
    return (d.profile for d in decided)


def _own_calibrator(
    store: TraceStore, run_id: str, settings: ProfileSettings
) -> Calibrator | Literal["fit"] | None:
    """The calibrator that spoke last for the run, if it speaks of this vote and this confidence."""
    row = store.run(run_id)
    if row["calibrator_id"] is None:
        return None if row["finished_at"] else "fit"
    found = Calibrator.from_json(store.calibrator(row["calibrator_id"]), f"calibrator {row['calibrator_id']}")
    same = (found.vote_method, found.confidence) == (settings.vote, settings.confidence)
    return found if same else "fit"


def fit_on(
    votes: Votes, asked: NDArray[np.int64], taxonomy: Taxonomy, settings: ProfileSettings
) -> Calibrator | None:
    """Quintiles of S per attribute over the records whose vote is not NA; None when no attribute has enough.

    S is on the scale of M, `asked[R]` as in `decide.Ballots`.
    """
    scores = {}
    for k, attribute in enumerate(taxonomy.attributes):
        winner = votes.winner[k]
        named = (winner >= 0) & (winner != na_code(attribute, settings.samples))
        scores[attribute.name] = decide.on_scale(settings.samples, votes.score[k][named], asked[named])
    fitted = Calibrator.fit(
        scores,
        samples=settings.samples,
        vote_method=settings.vote,
        confidence=settings.confidence,
        taxonomy=taxonomy,
    )
    return fitted if len(fitted.uncalibrated) < len(taxonomy.names) else None
