"""The answers behind the profiles: what every sample said of every question, by each source of confidence.

A question is one attribute of one user. How well a confidence tells right from wrong among the samples of one
question (within-question discrimination) decides what it is worth as a weight in the vote; how well it is calibrated
over all questions does not (CISC).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError
from cp_agents.schema import NA
from cp_agents.stores.traces import TraceStore


class Answer(NamedTuple):
    """One sample's usable answer to one question."""

    sample: int
    tag: str
    stated: int
    probability: float | None


Answers = Mapping[tuple[str, str], Sequence[Answer]]
"""By user and attribute."""


def load_answers(store: TraceStore, run_id: str | None, predictions: Iterable[Mapping[str, Any]]) -> Answers:
    """The usable answers of a stored run: `run_id`, or by default the one that the lines of `predictions` name.

    Raises `InputError` where they name none or several, `StoreError` where the store has no such run.
    """
    if run_id is None:
        named = sorted({str(line["run_id"]) for line in predictions if line.get("run_id")})
        if len(named) != 1:
            raise InputError(
                f"name the run of the store: the profiles are of {', '.join(named) or 'no named run'}"
            )
        run_id = named[0]
    rows = store.rows(
        "select r.user_id, p.attribute, s.sample_index, p.tag, p.confidence, p.probability"
        " from records r join samples s using (record_id) join predictions p using (sample_id)"
        " where r.run_id = ? and p.outcome = 'ok'",
        (store.run(run_id)["run_id"],),
    )
    answers: dict[tuple[str, str], list[Answer]] = {}
    for user_id, attribute, *answer in rows:
        answers.setdefault((user_id, attribute), []).append(Answer(*answer))
    return answers


def _combined(answer: Answer, _: float) -> float | None:
    return None if answer.probability is None else answer.stated / 5 * answer.probability


_SOURCES: dict[str, Callable[[Answer, float], float | None]] = {
    "verbal": lambda answer, _: answer.stated / 5,
    "agreement": lambda _, share: share,
    "logprob": lambda answer, _: answer.probability,
    "combined": _combined,
}
"""From an answer, and the share of the question's answers that say the same, to a number in 0..1."""


def of_vote(answers: Sequence[Answer], agreeing: Iterable[int]) -> dict[str, float]:
    """The confidence in a vote by each source, from its question's answers and the samples that agree with it.

    `verbal` and `logprob` are the mean over those that agree, `agreement` their share of all, and `combined` all
    together: S / 5M' by the weights of `cp_agents.confidence` of that name, over the answers that have a probability,
    and where none has one by the stated confidences. Sources that nothing is known of are left out.
    """
    with_vote = set(agreeing)
    own = [answer for answer in answers if answer.sample in with_vote]
    if not own:
        return {}
    found = {"verbal": sum(a.stated for a in own) / (5 * len(own)), "agreement": len(own) / len(answers)}
    known = [answer.probability for answer in own if answer.probability is not None]
    if known:
        voters = sum(answer.probability is not None for answer in answers)
        found["logprob"] = sum(known) / len(known)
        found["combined"] = sum(_combined(answer, 0.0) or 0.0 for answer in own) / voters
    else:
        found["combined"] = found["verbal"] * found["agreement"]
    return found


class Discrimination:
    """Pairs of a right and a wrong answer to one question: how often the right one has the higher confidence."""

    def __init__(self) -> None:
        self._above: dict[str, float] = {}
        self._pairs: dict[str, int] = {}

    def add(self, answers: Sequence[Answer], truth: str) -> None:
        """Count one question whose true tag is `truth`. Answers of NA say nothing and are left out."""
        said = [answer for answer in answers if answer.tag != NA]
        right = np.array([answer.tag == truth for answer in said])
        if not right.any() or right.all():
            return
        shares = {tag: sum(a.tag == tag for a in said) / len(said) for tag in {a.tag for a in said}}
        for source, read in _SOURCES.items():
            read_out = [read(answer, shares[answer.tag]) for answer in said]
            values = np.array([np.nan if value is None else value for value in read_out])
            self._count(source, values[right], values[~right])

    def _count(self, source: str, right: NDArray[np.float64], wrong: NDArray[np.float64]) -> None:
        right, wrong = right[~np.isnan(right)], wrong[~np.isnan(wrong)]
        gap = np.sign(right[:, None] - wrong[None, :])
        self._above[source] = self._above.get(source, 0.0) + float((gap + 1).sum()) / 2
        self._pairs[source] = self._pairs.get(source, 0) + gap.size

    def rate(self, source: str) -> float | None:
        """Share of all pairs in which the right answer's confidence is higher, ties half; None without a pair."""
        pairs = self._pairs.get(source, 0)
        return self._above[source] / pairs if pairs else None
