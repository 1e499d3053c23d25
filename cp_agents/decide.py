"""From stored samples to a profile: the pure steps after sampling, for one record or for many at once.

The graph's nodes call these with one record and `replay` calls them with all of a run's, so that both decide
alike. A `Tally` is plain JSON: it is what the graph carries between vote, calibrate and abstain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from cp_agents.abstention import DEFAULT_TAU
from cp_agents.abstention import decide as decide_attribute
from cp_agents.calibration import Calibrator, uncalibrated_levels
from cp_agents.routing import review_reasons
from cp_agents.schema import NA, AttributeProfile, Status
from cp_agents.settings import ProfileSettings
from cp_agents.stores.traces import RecordRow, VoteRow, unpack_evidence
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod, vote_attributes

PredictionRow = tuple[int, int, str, str, str | None, int | None, str | None]
"""`(sample_index, sample_id, sampler, attribute, tag if ok, confidence, packed evidence)`, see the trace store."""


class Tally(TypedDict):
    """What the vote found on one attribute of one record."""

    voted: str | None
    score: float
    share: float
    runner_up: str | None
    margin: float
    survivors: int
    agreeing: list[int]
    evidence: str | None
    confidence: NotRequired[int]
    probability: NotRequired[float | None]


class Ballots(NamedTuple):
    """The answers of M samples on K attributes of R records."""

    tags: NDArray[np.int16]
    """Tag codes [K, R, M] in the order of `Attribute.names`; -1 where a sample gave no usable answer."""
    confidence: NDArray[np.int16]
    """1..5 [K, R, M], 0 where there is no answer."""
    samplers: NDArray[np.int16]
    """Sampler codes [R, M]."""
    evidence: dict[tuple[int, int, int], str]
    """Packed evidence by (attribute, record, sample)."""


def empty_ballots(taxonomy: Taxonomy, records: int, samples: int) -> Ballots:
    """Ballots in which nobody has voted yet."""
    shape = (len(taxonomy.names), records, samples)
    return Ballots(np.full(shape, -1, np.int16), np.zeros(shape, np.int16), np.zeros(shape[1:], np.int16), {})


def ballots_of(rows: Iterable[PredictionRow], taxonomy: Taxonomy, samples: int) -> Ballots:
    """The ballots of one record from its stored predictions."""
    ballots = empty_ballots(taxonomy, 1, samples)
    place = {a.name: (k, a.codes) for k, a in enumerate(taxonomy.attributes)}
    known: dict[str, int] = {}
    for index, _, sampler, attribute, tag, confidence, evidence in rows:
        if attribute in place and tag is not None and index < samples:
            k, codes = place[attribute]
            ballots.tags[k, 0, index] = codes[tag]
            ballots.confidence[k, 0, index] = confidence or 0
            ballots.samplers[0, index] = known.setdefault(sampler, len(known))
            if evidence is not None:
                ballots.evidence[k, 0, index] = evidence
    return ballots


def tally(ballots: Ballots, taxonomy: Taxonomy, method: VoteMethod) -> list[dict[str, Tally]]:
    """Equations 3-5 for every record: one `{attribute: Tally}` per record."""
    sizes = [len(a.names) for a in taxonomy.attributes]
    votes = vote_attributes(ballots.tags, ballots.confidence, sizes, method, samplers=ballots.samplers)
    records = ballots.tags.shape[1]
    tallies: list[dict[str, Tally]] = [{} for _ in range(records)]
    for k, attribute in enumerate(taxonomy.attributes):
        names = (*attribute.names, None)  # code -1 is nobody
        agreeing: list[list[int]] = [[] for _ in range(records)]
        for row, index in np.argwhere(votes.agreeing[k]).tolist():
            agreeing[row].append(index)
        columns = zip(
            votes.winner[k].tolist(),
            votes.score[k].tolist(),
            votes.share[k].tolist(),
            votes.runner_up[k].tolist(),
            votes.margin[k].tolist(),
            votes.survivors[k].tolist(),
            votes.best_sample[k].tolist(),
            strict=True,
        )
        for row, (winner, score, share, runner_up, margin, survivors, best) in enumerate(columns):
            tallies[row][attribute.name] = Tally(
                voted=names[winner],
                score=round(score, 6),
                share=round(share, 6),
                runner_up=names[runner_up],
                margin=round(margin, 6),
                survivors=survivors,
                agreeing=agreeing[row],
                evidence=ballots.evidence.get((k, row, best)),
            )
    return tallies


def calibrate(
    tallies: Sequence[Mapping[str, Tally]], calibrator: Calibrator | None, samples: int
) -> list[dict[str, Tally]]:
    """Confidence 1..5 for every score, and a probability where the calibrator gives one."""
    done: list[dict[str, Tally]] = [{} for _ in tallies]
    for name in tallies[0] if tallies else ():
        scores = np.array([t[name]["score"] for t in tallies], dtype=np.float64)
        if calibrator is None:
            levels, chances = uncalibrated_levels(scores, samples), None
        else:
            levels = calibrator.transform(name, scores, samples)
            chances = calibrator.probability(name, scores, samples)
        for row, level in enumerate(levels.tolist()):
            # A calibrator is fitted on votes for a tag, so it has nothing to say of a vote for NA.
            speaks = chances is not None and tallies[row][name]["voted"] not in (None, NA)
            chance = round(float(chances[row]), 4) if chances is not None and speaks else None
            done[row][name] = {**tallies[row][name], "confidence": level, "probability": chance}
    return done


def abstain(
    record: RecordRow,
    tallies: Mapping[str, Tally],
    taxonomy: Taxonomy,
    settings: ProfileSettings,
) -> dict[str, AttributeProfile]:
    """Threshold, NA and review routing for one record."""
    reported = taxonomy.reported_tags(record.self_reported) if settings.review.contradiction else {}
    profile: dict[str, AttributeProfile] = {}
    for name, found in tallies.items():
        decision = decide_attribute(
            found["voted"],
            found["confidence"],
            survivors=found["survivors"],
            samples=settings.samples,
            min_survivors=settings.min_survivors,
            tau=settings.tau.get(name, DEFAULT_TAU),
        )
        value = AttributeProfile(
            tag=decision.tag,
            confidence=found["confidence"],
            score=found["score"],
            vote_share=found["share"],
            status=decision.status,
            evidence=unpack_evidence(found["evidence"], record.cues),
            voted=found["voted"] or decision.tag,
            runner_up=found["runner_up"],
            margin=found["margin"],
            agreeing=found["agreeing"],
            survivors=found["survivors"],
            probability=found["probability"],
            reasons=list(decision.reasons),
        )
        if reasons := review_reasons(
            value, settings.review, user_id=record.user_id, reported=reported.get(name)
        ):
            value = value.model_copy(
                update={"status": Status.NEEDS_REVIEW, "reasons": [*value.reasons, *reasons]}
            )
        profile[name] = value
    return profile


def vote_rows(tallies: Mapping[str, Tally], method: VoteMethod) -> list[VoteRow]:
    """The tallies as rows of the store."""
    return [
        VoteRow(name, method, t["voted"], t["score"], t["share"], t["runner_up"], t["margin"], t["survivors"])
        for name, t in tallies.items()
    ]
