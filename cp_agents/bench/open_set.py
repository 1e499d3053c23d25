"""The ablation of open attributes: recorded free-text guesses voted as they are written, folded, and by meaning.

SynthPAI has up to three ranked guesses of 19 language models for each user and field, and for many of them a verdict:
1, 0.5 or 0 against what people made of the same text. The first guesses are the samples of an open attribute, one a
model. A vote's score on a question is the verdict on the wording that it shows; NA, and no answer, score 0. So the
score is correct / asked with half points, and no mapping to a closed set stands between. The models stated no
confidence, so votes are counted. What a vote's share is worth as a confidence is measured, too: the chance that the
answer to one question that is right (more than half a point) has the greater share than one that is not, AUROC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.bench.dataset import GUESSES, Dataset
from cp_agents.bench.guesses import GuessRules, load_rules
from cp_agents.bench.splits import fold_of
from cp_agents.bench.teachers import guess_rows
from cp_agents.errors import InputError
from cp_agents.evaluation.statistics import Difference, Interval
from cp_agents.open_sets import Words, record_book
from cp_agents.open_text import THRESHOLD, read_value, words_of
from cp_agents.schema import NA
from cp_agents.voting import vote

LEAST_QUESTIONS = 20
"""A field with fewer judged users is left out of the table."""
THRESHOLDS = (0.3, 0.5, 0.6, 0.8)
"""Other thresholds than the default, to show how much hangs on it."""
EXACT = "vote, as written"
FOLDED = "vote, equal words"
CLUSTERED = "vote, by meaning"
TAGS = "vote, tags by rules"
AVERAGE = "one model, on average"
HINDSIGHT = "best single, in hindsight"
CHOSEN = "best single, by half of the users"


class Said(NamedTuple):
    """One model's first guess on one question."""

    value: str | None
    """As `read_value` reads it; None where the model gave none."""
    written: str
    verdict: float | None


class Question(NamedTuple):
    """One field of one user, judged for at least one model."""

    field: str
    user: str
    said: tuple[Said, ...]
    """One a model, in the order of `Recorded.models`."""

    def verdict(self, value: str) -> float:
        """The mean verdict on the guesses with these words."""
        words = words_of(value)
        found = [
            s.verdict for s in self.said if s.verdict is not None and s.value and words_of(s.value) == words
        ]
        return sum(found) / len(found) if found else 0.0


class Recorded(NamedTuple):
    """The judged part of a recording."""

    models: tuple[str, ...]
    questions: tuple[Question, ...]
    fields: tuple[str, ...]
    """Those with at least `LEAST_QUESTIONS`, most questions first."""


class OpenRow(NamedTuple):
    """One way to make an answer of the samples."""

    name: str
    fields: dict[str, Interval]
    """Mean score by field, with intervals over users."""
    mean: Interval
    """Over the fields."""
    against_exact: Difference | None
    groups: float | None
    """How many different answers the vote sees on a question, on average; None for single models."""
    share: float | None
    """The winner's share of the votes, on average."""
    auroc: Interval | None
    """How well that share tells right answers from others, the mean over fields."""
    models: tuple[str, ...] = ()
    """Which models, of a choice."""


def read_recorded(dataset: Dataset) -> Recorded:
    """The judged guesses of a data set's folder. Raises `InputError` where there are none."""
    if dataset.guesses is None:
        raise InputError(f"{dataset.folder} has no {GUESSES}: no language models were recorded for it")
    by_question: dict[tuple[str, str], dict[str, Said]] = {}
    models: set[str] = set()
    for where, row in guess_rows(dataset.guesses):
        guesses, verdicts = row.get("guess") or [], row.get("correct_vs_human") or []
        if not isinstance(verdicts, list) or not all(
            isinstance(v, int | float) and 0 <= v <= 1 for v in verdicts
        ):
            raise InputError(f'{where}: "correct_vs_human" should be a list of numbers of 0 to 1')
        models.add(row["model"])
        verdict = float(verdicts[0]) if verdicts and guesses else None
        first = guesses[0].strip() if guesses else ""
        said = Said(read_value(first), first, verdict)
        by_question.setdefault((row["attr"], row["username"]), {})[row["model"]] = said
    names = tuple(sorted(models))
    nothing = Said(None, "", None)
    questions = [
        Question(field, user, tuple(said.get(model, nothing) for model in names))
        for (field, user), said in by_question.items()
        if any(s.verdict is not None for s in said.values())
    ]
    counts = {field: sum(q.field == field for q in questions) for field in {q.field for q in questions}}
    fields = sorted((f for f, n in counts.items() if n >= LEAST_QUESTIONS), key=lambda f: (-counts[f], f))
    if not fields:
        raise InputError(
            f"{dataset.guesses}: no field has {LEAST_QUESTIONS} users with a verdict (correct_vs_human), by which"
            " guesses are judged"
        )
    return Recorded(names, tuple(q for q in questions if q.field in fields), tuple(fields))


# --- votes


class Answer(NamedTuple):
    """What a vote says on a question."""

    value: str | None
    groups: int
    share: float


Grouping = Callable[
    [Sequence[tuple[int, str, int]], Sequence[Said]], tuple[dict[int, int], Sequence[str | None]]
]


def as_written(
    answers: Sequence[tuple[int, str, int]], said: Sequence[Said]
) -> tuple[dict[int, int], Sequence[str | None]]:
    """Each spelling is an answer of its own."""
    codes: dict[str, int] = {}
    found = {
        i: len(said) if value == NA else codes.setdefault(said[i].written, len(codes))
        for i, value, _ in answers
    }
    values: list[str | None] = [None] * len(said) + [NA]
    for i, value, _ in answers:
        values[found[i]] = value
    return found, values


def _distinct(values: Sequence[Words]) -> NDArray[np.float64]:
    return np.eye(len(values))


def folded(
    answers: Sequence[tuple[int, str, int]], said: Sequence[Said]
) -> tuple[dict[int, int], Sequence[str | None]]:
    """Equal words are one answer."""
    return record_book(answers, len(said), _distinct)


def by_meaning(threshold: float = THRESHOLD) -> Grouping:
    """Clusters, as open attributes are voted."""
    return lambda answers, said: record_book(answers, len(said), threshold=threshold)


def by_tags(rules: GuessRules, field: str) -> Grouping:
    """Guesses that the rules read as the same tags are one answer: what a closed set would make of them."""

    def group(
        answers: Sequence[tuple[int, str, int]], said: Sequence[Said]
    ) -> tuple[dict[int, int], Sequence[str | None]]:
        codes: dict[str, int] = {}
        found: dict[int, int] = {}
        values: list[str | None] = [None] * len(said) + [NA]
        for i, value, _ in answers:
            tags = rules.read(field, said[i].written) or {}
            known = sorted(item for item in tags.items() if item[1] != NA)
            found[i] = len(said) if value == NA else codes.setdefault(str(known or value), len(codes))
            values[found[i]] = values[found[i]] or value
        return found, values

    return group


def answer(question: Question, grouping: Grouping, among: Sequence[int]) -> Answer:
    """The answer that most of the models `among` give to a question."""
    said = [question.said[j] for j in among]
    answers = [(i, s.value, 1) for i, s in enumerate(said) if s.value is not None]
    if not answers:
        return Answer(None, 0, 0.0)
    codes, values = grouping(answers, said)
    tags = np.array([[codes.get(i, -1) for i in range(len(said))]])
    votes = vote(tags, np.ones_like(tags), len(said) + 1, "majority")
    value = values[int(votes.winner[0])]
    return Answer(None if value == NA else value, len(set(codes.values())), float(votes.share[0]))


# --- the table


def open_rows(
    recorded: Recorded,
    *,
    samples: int | None = None,
    repeats: int = 20,
    draws: int = 1000,
    seed: int = 0,
    rules: GuessRules | None = None,
) -> list[OpenRow]:
    """Every way on the same questions. With `samples`, as many models are drawn for each question, `repeats` times,
    and scores are means over these; else all models speak. Raises `InputError` for more samples than models.
    """
    count = len(recorded.models)
    if samples is not None and not 1 <= samples <= count:
        raise InputError(f"expected 1 to {count} samples, found {samples}: one a recorded model")
    rng = np.random.default_rng(seed)
    panels: list[list[Sequence[int]]] = [
        [range(count)]
        if samples is None or samples == count
        else [sorted(rng.choice(count, samples, replace=False).tolist()) for _ in range(repeats)]
        for _ in recorded.questions
    ]
    rules = rules or load_rules()
    ruled = {field.name for field in rules.fields}
    ways: dict[str, Callable[[str], Grouping]] = {
        EXACT: lambda _: as_written,
        FOLDED: lambda _: folded,
        CLUSTERED: lambda _: by_meaning(),
        TAGS: lambda field: by_tags(rules, field) if field in ruled else folded,
    }
    for threshold in THRESHOLDS:
        ways[f"{CLUSTERED}, threshold {threshold:g}"] = partial(_at, threshold)
    table = _Table(recorded, draws, seed)
    alone = table.alone()
    best = int(np.argmax([table.mean(alone[j]) for j in range(count)]))
    half = np.array([fold_of(q.user, 2) for q in recorded.questions])
    chosen = {
        h: int(np.argmax([table.mean(np.where(half == h, np.nan, alone[j])) for j in range(count)]))
        for h in (0, 1)
    }
    half_chosen = np.array([alone[chosen[h], i] for i, h in enumerate(half.tolist())])
    singles = {
        AVERAGE: (alone.mean(axis=0), ()),
        CHOSEN: (half_chosen, tuple(sorted({recorded.models[j] for j in chosen.values()}))),
        HINDSIGHT: (alone[best], (recorded.models[best],)),
    }
    votes = {
        name: [
            [answer(q, grouping(q.field), among) for among in panel]
            for q, panel in zip(recorded.questions, panels, strict=True)
        ]
        for name, grouping in ways.items()
    }
    scores = {name: _scores(recorded.questions, answers) for name, answers in votes.items()}
    exact = scores[EXACT].mean(axis=1)
    rows = [
        OpenRow(
            name, table.by_field(s), table.interval(s), table.difference(s, exact), None, None, None, models
        )
        for name, (s, models) in singles.items()
    ]
    for name, answers in votes.items():
        every = [a for each in answers for a in each]
        shares = np.array([[a.share for a in each] for each in answers])
        mean = scores[name].mean(axis=1)
        rows.append(
            OpenRow(
                name,
                table.by_field(mean),
                table.interval(mean),
                None if name == EXACT else table.difference(mean, exact),
                float(np.mean([a.groups for a in every])),
                float(shares.mean()),
                table.auroc(scores[name] > 0.5, shares),
            )
        )
    return rows


def _at(threshold: float, _: str) -> Grouping:
    return by_meaning(threshold)


def _scores(questions: Sequence[Question], answers: Sequence[Sequence[Answer]]) -> NDArray[np.float64]:
    """`[Q, P]`, for each panel of models."""
    return np.array(
        [
            [q.verdict(a.value) if a.value is not None else 0.0 for a in each]
            for q, each in zip(questions, answers, strict=True)
        ]
    )


class _Table:
    """Scores of questions `[Q]` to means over fields, with users as what is resampled."""

    def __init__(self, recorded: Recorded, draws: int, seed: int) -> None:
        self._recorded, self._seed = recorded, seed
        users = {user: i for i, user in enumerate(dict.fromkeys(q.user for q in recorded.questions))}
        self._user = np.array([users[q.user] for q in recorded.questions])
        self._field = np.array([recorded.fields.index(q.field) for q in recorded.questions])
        rng = np.random.default_rng(seed)
        n = len(users)
        drawn = rng.integers(0, n, (draws, n))
        self._times = np.stack([np.bincount(row, minlength=n) for row in drawn])[:, self._user].astype(float)
        self._signs = np.where(rng.random((draws, n)) < 0.5, -1.0, 1.0)[:, self._user]

    def alone(self) -> NDArray[np.float64]:
        """The verdict on each model's own guess `[J, Q]`, 0 where it gave none."""
        questions = self._recorded.questions
        return np.array(
            [
                [(q.said[j].verdict or 0.0) if q.said[j].value not in (None, NA) else 0.0 for q in questions]
                for j in range(len(self._recorded.models))
            ]
        )

    def mean(self, scores: NDArray[np.float64]) -> float:
        """Over the fields; questions whose score is NaN are left out."""
        known = ~np.isnan(scores)
        weight = known.astype(float)[None, :]
        return float(self._means(np.where(known, scores, 0.0), weight).mean(axis=1)[0])

    def by_field(self, scores: NDArray[np.float64]) -> dict[str, Interval]:
        """The mean score of each field."""
        whole, drawn = self._means(scores, np.ones((1, len(scores)))), self._means(scores, self._times)
        return {f: _interval(whole[0, i], drawn[:, i]) for i, f in enumerate(self._recorded.fields)}

    def interval(self, scores: NDArray[np.float64]) -> Interval:
        """The mean over the fields."""
        return _interval(self.mean(scores), self._means(scores, self._times).mean(axis=1))

    def difference(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> Difference:
        """The mean over the fields, a less b, and the p of swapping the two for a random half of the users."""
        gap = a - b
        value, low, high = self.interval(gap)
        one = np.ones((1, len(gap)))
        swapped = np.array([self._means(gap * signs, one).mean() for signs in self._signs])
        p = (1 + int((np.abs(swapped) >= abs(value) - 1e-12).sum())) / (1 + len(swapped))
        return Difference(value, low, high, p)

    def auroc(self, right: NDArray[np.bool_], shares: NDArray[np.float64]) -> Interval:
        """How often a right answer has the greater share than one that is not, ties half; `[Q, P]` both."""
        whole, drawn = [], []
        for field in range(len(self._recorded.fields)):
            inside = self._field == field
            times = np.vstack([np.ones(inside.sum()), self._times[:, inside]])
            yes, no = right[inside], ~right[inside]
            # by question: how the shares of its right panels stand against those of another's that are not
            above = np.zeros((len(yes), len(yes)))
            for i in range(len(yes)):
                for j in range(len(yes)):
                    gap = shares[inside][i][yes[i]][:, None] - shares[inside][j][no[j]][None, :]
                    above[i, j] = (np.sign(gap) + 1).sum() / 2
            pairs = np.outer(yes.sum(axis=1), no.sum(axis=1))
            with np.errstate(invalid="ignore"):
                each = ((times @ above) * times).sum(axis=1) / ((times @ pairs) * times).sum(axis=1)
            whole.append(each[0])
            drawn.append(each[1:])
        defined = [i for i, value in enumerate(whole) if np.isfinite(value)]
        if not defined:  # all answers are right, or none
            return Interval(float("nan"), float("nan"), float("nan"))
        kept = np.ma.masked_invalid(np.array([drawn[i] for i in defined])).mean(axis=0)
        return _interval(float(np.mean([whole[i] for i in defined])), kept.filled(np.nan))

    def _means(self, scores: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """`[D, F]` for weights `times[D, Q]`; NaN where a draw has no question of a field."""
        inside = self._field[:, None] == np.arange(len(self._recorded.fields))
        with np.errstate(invalid="ignore"):
            return np.asarray((times * scores) @ inside / (times @ inside))


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def open_report(rows: Iterable[OpenRow]) -> list[Mapping[str, object]]:
    """The rows as plain JSON."""
    return [
        row._asdict()
        | {
            "fields": {name: found._asdict() for name, found in row.fields.items()},
            "mean": row.mean._asdict(),
            "against_exact": row.against_exact._asdict() if row.against_exact else None,
            "auroc": row.auroc._asdict() if row.auroc else None,
        }
        for row in rows
    ]
