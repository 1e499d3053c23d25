"""From stored samples to a profile: the pure steps after sampling, for one record or for many at once.

The graph's nodes call these with one record and `replay` calls them with all of a run's, so that both decide
alike. A `Tally` is plain JSON: it is what the graph carries between vote, calibrate and abstain.

Of an open attribute (`cp_agents.open_sets`) the codes are a record's own: its clusters, named by its book.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from cp_agents.abstention import DEFAULT_TAU
from cp_agents.abstention import decide as decide_attribute
from cp_agents.calibration import Calibrator, uncalibrated_levels
from cp_agents.confidence import ConfidenceSource, weigh
from cp_agents.open_sets import Book, check_open, n_tags, record_book
from cp_agents.open_text import same_meaning
from cp_agents.routing import review_reasons
from cp_agents.schema import NA, AttributeProfile, Status
from cp_agents.settings import ProfileSettings
from cp_agents.stores.traces import RecordRow, VoteRow, unpack_evidence
from cp_agents.tag_weights import TagWeights, reweigh
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod, Votes, vote_attributes

_DECIMALS = 6  # of what tallies hold; a calibrator is fitted on the same numbers that it will be given

PredictionRow = tuple[int, str, str, str, int]
"""`(sample_index, sampler, attribute, tag, confidence)` of a usable answer, see the trace store."""


class Tally(TypedDict):
    """What the vote found on one attribute of one record."""

    voted: str | None
    score: float
    share: float
    runner_up: str | None
    margin: float
    survivors: int
    agreeing: list[int]
    best: int
    """Index of the most confident agreeing sample, whose evidence the profile shows; -1 where nobody voted."""
    confidence: NotRequired[int]
    probability: NotRequired[float | None]
    calibrated: NotRequired[bool]


class Ballots(NamedTuple):
    """The answers of M samples on K attributes of R records."""

    tags: NDArray[np.int16]
    """Tag codes [K, R, M] in the order of `Attribute.names`; -1 where a sample gave no usable answer.

    Of an open attribute the record's clusters, and M for NA.
    """
    confidence: NDArray[Any]
    """1..5, or what the answers weigh by another source than the stated one [K, R, M]; 0 where there is none."""
    samplers: NDArray[np.int16]
    """Sampler codes [R, M]."""
    asked: NDArray[np.int64]
    """How many of the M samples were asked for [R]: fewer than M where adaptive sampling stopped."""
    books: Mapping[str, Sequence[Book]] = MappingProxyType({})
    """What the codes of each open attribute are called, one book a record [R]."""

    def rows(self, chosen: Any) -> Ballots:
        """The ballots of some records, by index or mask."""
        where = np.arange(len(self.asked))[chosen].tolist()
        books = {name: [of[row] for row in where] for name, of in self.books.items()}
        return Ballots(
            self.tags[:, chosen],
            self.confidence[:, chosen],
            self.samplers[chosen],
            self.asked[chosen],
            books,
        )


def empty_ballots(taxonomy: Taxonomy, records: int, samples: int) -> Ballots:
    """Ballots in which nobody has voted yet."""
    shape = (len(taxonomy.names), records, samples)
    asked = np.full(records, samples, np.int64)
    return Ballots(
        np.full(shape, -1, np.int16), np.zeros(shape, np.int16), np.zeros(shape[1:], np.int16), asked
    )


def ballots_of(rows: Iterable[PredictionRow], taxonomy: Taxonomy, samples: int) -> Ballots:
    """The ballots of one record from its stored predictions."""
    ballots = empty_ballots(taxonomy, 1, samples)
    place = {a.name: (k, a.codes) for k, a in enumerate(taxonomy.attributes)}
    known: dict[str, int] = {}
    said: dict[str, list[tuple[int, str, float]]] = {a.name: [] for a in taxonomy.attributes if a.open}
    for index, sampler, attribute, tag, confidence in rows:
        if attribute in place and index < samples:
            k, codes = place[attribute]
            if attribute in said:
                said[attribute].append((index, tag, confidence))
            else:
                ballots.tags[k, 0, index] = codes[tag]
            ballots.confidence[k, 0, index] = confidence
            ballots.samplers[0, index] = known.setdefault(sampler, len(known))
    if not said:
        return ballots
    books = {name: [put_values(ballots, place[name][0], 0, answers)] for name, answers in said.items()}
    return ballots._replace(books=books)


def put_values(ballots: Ballots, k: int, row: int, answers: Sequence[tuple[int, str, float]]) -> Book:
    """Enter a record's answers `(sample_index, value, confidence)` on the open attribute k, and give their book."""
    codes, book = record_book(answers, ballots.tags.shape[2])
    for index, code in codes.items():
        ballots.tags[k, row, index] = code
    return book


def weighed(
    ballots: Ballots,
    source: ConfidenceSource,
    taxonomy: Taxonomy,
    known: Mapping[tuple[int, str], float] | None = None,
) -> Ballots:
    """One record's ballots by another source of confidence; `known` is `TraceStore.probabilities` of the record."""
    probability = np.full(ballots.tags.shape, np.nan)
    place = {name: k for k, name in enumerate(taxonomy.names)}
    for (index, attribute), value in (known or {}).items():
        if attribute in place and index < ballots.tags.shape[2]:
            probability[place[attribute], 0, index] = value
    tags, confidence = weigh(source, ballots.tags, ballots.confidence, probability)
    return ballots._replace(tags=tags, confidence=confidence)


def reweighed(ballots: Ballots, taxonomy: Taxonomy, weights: TagWeights) -> Ballots:
    """The ballots with every answer's weight times that of its tag, see `cp_agents.tag_weights`."""
    if not weights:
        return ballots
    return ballots._replace(confidence=reweigh(ballots.tags, ballots.confidence, taxonomy, weights))


def count(ballots: Ballots, taxonomy: Taxonomy, method: VoteMethod) -> Votes:
    """Equations 3-5 for every attribute and record; arrays [K, R]."""
    check_open(taxonomy, vote=method)
    sizes = [n_tags(a, ballots.tags.shape[2]) for a in taxonomy.attributes]
    return vote_attributes(ballots.tags, ballots.confidence, sizes, method, samplers=ballots.samplers)


def tallies_of(
    votes: Votes,
    taxonomy: Taxonomy,
    start: int = 0,
    stop: int | None = None,
    books: Mapping[str, Sequence[Book]] = MappingProxyType({}),
) -> list[dict[str, Tally]]:
    """The votes of records `start` to `stop` as one `{attribute: Tally}` a record; `books` as in `Ballots`."""
    votes = Votes(*(array[:, start:stop] for array in votes))  # type: ignore[arg-type]  # arrays all
    tallies: list[dict[str, Tally]] = [{} for _ in range(votes.winner.shape[1])]
    for k, attribute in enumerate(taxonomy.attributes):
        names = (*attribute.names, None)  # code -1 is nobody
        own = books.get(attribute.name, ())[start:stop]
        agreeing = np.nonzero(votes.agreeing[k])[1].tolist()
        ends = np.cumsum(votes.agreeing[k].sum(axis=1)).tolist()
        columns = zip(
            votes.winner[k].tolist(),
            np.round(votes.score[k], _DECIMALS).tolist(),
            np.round(votes.share[k], _DECIMALS).tolist(),
            votes.runner_up[k].tolist(),
            np.round(votes.margin[k], _DECIMALS).tolist(),
            votes.survivors[k].tolist(),
            votes.best_sample[k].tolist(),
            [0, *ends[:-1]],
            ends,
            strict=True,
        )
        for row, (winner, score, share, runner_up, margin, survivors, best, first, last) in enumerate(
            columns
        ):
            if attribute.open:
                names = (*own[row], None)
            tallies[row][attribute.name] = Tally(
                voted=names[winner],
                score=score,
                share=share,
                runner_up=names[runner_up],
                margin=margin,
                survivors=survivors,
                agreeing=agreeing[first:last],
                best=best,
            )
    return tallies


def on_scale(samples: int, scores: NDArray[np.floating], asked: NDArray[np.integer]) -> NDArray[np.float64]:
    """S x M / m `[R]`: what S would have been had the samples that were not asked for been like the others.

    Samples that were asked for and failed are among the m: they count as if they had spoken against.
    """
    return np.asarray(np.round(scores, _DECIMALS) * samples / asked, dtype=np.float64)


def calibrate(
    tallies: Sequence[Mapping[str, Tally]],
    calibrator: Calibrator | None,
    samples: int,
    asked: Sequence[int] | NDArray[np.int64] | None = None,
) -> list[dict[str, Tally]]:
    """Confidence 1..5 for every score, and a probability where the calibrator gives one.

    `asked[R]` says how many of the `samples` M were asked for, all of them by default: what is calibrated is S on
    the scale of M, see `on_scale`. The tallies keep S as it was counted.
    """
    done: list[dict[str, Tally]] = [{} for _ in tallies]
    for name in tallies[0] if tallies else ():
        scores = np.array([t[name]["score"] for t in tallies], dtype=np.float64)
        if asked is not None:
            scores = on_scale(samples, scores, np.asarray(asked))
        if calibrator is None:
            levels, chances = uncalibrated_levels(scores, samples), None
        else:
            levels = calibrator.transform(name, scores, samples)
            chances = calibrator.probability(name, scores, samples)
        speaks_of = (
            calibrator is not None and name in calibrator.attributes and name not in calibrator.uncalibrated
        )
        for row, level in enumerate(levels.tolist()):
            # A calibrator is fitted on votes for a tag, so it has nothing to say of a vote for NA.
            speaks = chances is not None and tallies[row][name]["voted"] not in (None, NA)
            chance = round(float(chances[row]), 4) if chances is not None and speaks else None
            done[row][name] = {
                **tallies[row][name],
                "confidence": level,
                "probability": chance,
                "calibrated": speaks_of,
            }
    return done


def abstain(
    record: RecordRow,
    tallies: Mapping[str, Tally],
    evidence: Mapping[str, str | None],
    taxonomy: Taxonomy,
    settings: ProfileSettings,
) -> dict[str, AttributeProfile]:
    """Threshold, NA and review routing for one record; `evidence` is that of each vote's best sample, packed."""
    reported = taxonomy.reported_tags(record.self_reported) if settings.review.contradiction else {}
    profile: dict[str, AttributeProfile] = {}
    for name, found in tallies.items():
        says, voted = reported.get(name), found["voted"]
        if says is not None and voted is not None and taxonomy[name].open and same_meaning(says, voted):
            says = voted
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
            evidence=unpack_evidence(evidence[name], record.cues),
            voted=found["voted"] or decision.tag,
            runner_up=found["runner_up"],
            margin=found["margin"],
            agreeing=found["agreeing"],
            survivors=found["survivors"],
            probability=found["probability"],
            calibrated=found["calibrated"],
            reasons=list(decision.reasons),
        )
        if reasons := review_reasons(value, settings.review, user_id=record.user_id, reported=says):
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


def wanted_evidence(record_id: int, tallies: Mapping[str, Tally]) -> list[tuple[int, int, str]]:
    """What to ask the store for, attribute by attribute."""
    return [(record_id, found["best"], name) for name, found in tallies.items()]
