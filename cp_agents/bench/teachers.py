"""Recorded language models as teachers: their guesses as answers, as predictions and as recorded samples.

`recorded_guesses.jsonl` (SynthPAI) holds one line per model, user and field: up to three ranked free-text guesses and
the reasoning behind them. The first guess is the answer; rules make a tag of it (`guesses.py`). The models stated
no confidence, so it is read off their ranking: 2, and one more for each of the three guesses that comes to the tag of
the first (3 where the other two differ, 5 where all three agree). Evidence is the longest run of the
user's own words in the reasoning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.bench.dataset import GUESSES, Dataset
from cp_agents.bench.guesses import GuessRules, load_rules
from cp_agents.errors import InputError
from cp_agents.files import BadLine, parse_line, raw_lines, read_records
from cp_agents.schema import NA, Status, UserRecord, read_user_id
from cp_agents.wire import WireAnswer, write_answer

RANKS = 3
LEAST_EVIDENCE = 4
"""Words in a row that have to be the user's own to count as a quotation."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Guess(NamedTuple):
    """What one model answered about one attribute of one user."""

    tag: str | None
    """A tag of the closed set, NA included; None where no rule reads the guess."""
    confidence: int
    """3..5 by the agreement of the ranked guesses."""
    text: str
    """The first guess, as it was recorded."""
    reasoning: str


class Coverage(NamedTuple):
    """What became of the first guesses of a field."""

    asked: int
    """Lines of the field."""
    empty: int
    """Of these, without any guess: the model did not answer, or its answer was not recorded."""
    unread: int
    """With a guess that no rule reads."""
    na: dict[str, int]
    """By attribute: understood, but without a tag in the closed set, or declined."""
    tagged: dict[str, int]
    """By attribute: with a tag other than NA."""
    unread_most: list[tuple[str, int]]
    """The most frequent guesses that no rule reads."""


class Teachers(NamedTuple):
    """The recorded models and their answers."""

    models: tuple[str, ...]
    """In alphabetical order. Sample i is that of model i."""
    users: tuple[str, ...]
    """In the order of users.jsonl."""
    answers: Mapping[tuple[str, str], Mapping[str, Guess]]
    """`{(model, user): {attribute: guess}}`."""
    rules: GuessRules
    coverage: Mapping[str, Coverage]
    """By field of the recording."""

    def profile(self, model: str, user: str) -> dict[str, dict[str, Any]]:
        """One model's word on a user, as in a line of OUT.jsonl; an unread guess is a failed attribute."""
        return {
            name: {
                "tag": guess.tag or NA,
                "voted": guess.tag or NA,
                "confidence": guess.confidence,
                "status": Status.FAILED
                if guess.tag is None
                else Status.ABSTAINED
                if guess.tag == NA
                else Status.ACCEPTED,
            }
            for name, guess in self.answers.get((model, user), {}).items()
        }


def read_teachers(dataset: Dataset, rules: GuessRules | None = None) -> Teachers:
    """The recorded models of a data set's folder. Raises `InputError` where there are none or a line is no guess."""
    if dataset.guesses is None:
        raise InputError(f"{dataset.folder} has no {GUESSES}: no language models were recorded for it")
    rules = rules or load_rules()
    fields = {field.name for field in rules.fields}
    texts: dict[tuple[str, str], dict[str, tuple[list[str], str]]] = {}
    asked: Counter[str] = Counter()
    for where, row in guess_rows(dataset.guesses):
        if row["attr"] not in fields:
            continue
        asked[row["attr"]] += 1
        said = texts.setdefault((row["model"], row["username"]), {})
        if row["attr"] in said:
            raise InputError(f"{where}: {row['model']} has answered {row['attr']} of this user before")
        # markers of an empty list item are no guess; a first guess is never made up from a later one otherwise
        guesses = [g for g in row["guess"] or [] if re.search(r"\w", g)]
        said[row["attr"]] = guesses, row.get("inference") or ""
    if not texts:
        raise InputError(f"{dataset.guesses}: no guess of {', '.join(sorted(fields))}")
    users = tuple(line["user_id"] for line in _records(dataset))
    answers = {key: _answers(rules, said) for key, said in texts.items()}
    models = tuple(sorted({model for model, _ in texts}))
    return Teachers(models, users, answers, rules, _coverage(rules, asked, texts))


def teacher_predictions(dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """`{model: lines}`, lines as in OUT.jsonl for the users that it answered about, for `evaluate` and tables."""
    teachers = read_teachers(dataset)
    return {
        model: [
            {"user_id": user, "profile": profile}
            for user in teachers.users
            if (profile := teachers.profile(model, user))
        ]
        for model in teachers.models
    }


def trace_lines(teachers: Teachers, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Recorded samples for `replay:PATH`, one line a user: sample i is the answer of model i in the wire format.

    A guess that no rule reads stands there as it was recorded, so that the parser counts it as out of the set. What a
    model was not asked or did not answer is missing, and a model that answered nothing is an empty sample.
    """
    for line in _records(dataset):
        index = _Posts(UserRecord.from_dict(line))
        user = line["user_id"]
        yield {
            "user_id": user,
            "samples": [
                {
                    "sampler": model,
                    "text": _wire(teachers, teachers.answers.get((model, user), {}), index),
                    "finish_reason": "stop",
                }
                for model in teachers.models
            ],
        }


def _wire(teachers: Teachers, guesses: Mapping[str, Guess], posts: _Posts) -> str:
    answers = []
    for name in teachers.rules.taxonomy.names:
        if (guess := guesses.get(name)) is not None:
            tag = guess.tag if guess.tag is not None else re.sub(r"[<>&\s]+", " ", guess.text)[:100].strip()
            answers.append(WireAnswer(name, tag, guess.confidence, posts.quotation(guess.reasoning)))
    return write_answer(answers)


def _answers(rules: GuessRules, said: Mapping[str, tuple[list[str], str]]) -> dict[str, Guess]:
    found: dict[str, Guess] = {}
    for field in rules.fields:
        guesses, reasoning = said.get(field.name, ([], ""))
        if not guesses:
            continue
        read = [rules.read(field.name, text) or {} for text in guesses[:RANKS]]
        for attribute in field.attributes:
            tag = read[0].get(attribute)
            if tag is None and (attribute not in field.about or read[0]):
                continue
            agreeing = sum(r.get(attribute) == tag for r in read) if tag is not None else 1
            guess = Guess(tag, 2 + agreeing, guesses[0], reasoning)
            if attribute not in found or (found[attribute].tag in (NA, None) and tag is not None):
                found[attribute] = guess
    return {name: found[name] for name in rules.taxonomy.names if name in found}


def _coverage(
    rules: GuessRules,
    asked: Mapping[str, int],
    texts: Mapping[tuple[str, str], Mapping[str, tuple[Sequence[str], str]]],
) -> dict[str, Coverage]:
    found = {}
    for field in rules.fields:
        firsts = [
            said[field.name][0][0] for said in texts.values() if field.name in said and said[field.name][0]
        ]
        read = [rules.read(field.name, text) for text in firsts]
        unread = Counter(text for text, tags in zip(firsts, read, strict=True) if tags is None)
        na = {a: sum(tags is not None and tags.get(a) == NA for tags in read) for a in field.attributes}
        tagged = {
            a: sum(tags is not None and tags.get(a, NA) != NA for tags in read) for a in field.attributes
        }
        found[field.name] = Coverage(
            asked[field.name],
            asked[field.name] - len(firsts),
            unread.total(),
            na,
            tagged,
            unread.most_common(20),
        )
    return found


def _records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for line in read_records(dataset.users):
        if isinstance(line, BadLine):
            raise InputError(line.message)
        yield line


def guess_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a recording, each with where it stands. Raises `InputError` for one that is no guess."""
    for number, line in raw_lines(path):
        where = f"{path} line {number}"
        try:
            row = parse_line(line)
            if not isinstance(row, dict):
                raise InputError('expected {"model", "username", "attr", "guess", "inference"}')
            for name in ("model", "attr"):
                if not isinstance(row.get(name), str) or not row[name].strip():
                    raise InputError(f'no "{name}"')
            row["username"] = read_user_id(row.get("username"))
            guess = row.get("guess")
            if guess is not None and not (isinstance(guess, list) and all(isinstance(g, str) for g in guess)):
                raise InputError('the "guess" should be a list of texts')
            if not isinstance(row.get("inference"), str | None):
                raise InputError('the "inference" should be text')
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        yield where, row


class _Posts:
    """A user's items by their runs of words, to find what a text quotes of them."""

    def __init__(self, record: UserRecord) -> None:
        self._items = [item.text for of in record.sources.values() for item in of]
        self._spans = [[m.span() for m in _WORD.finditer(text)] for text in self._items]
        self._words = [_words(text) for text in self._items]
        self._starts: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for item, words in enumerate(self._words):
            for i in range(len(words) - LEAST_EVIDENCE + 1):
                self._starts.setdefault(tuple(words[i : i + LEAST_EVIDENCE]), []).append((item, i))

    def quotation(self, text: str) -> str:
        """The longest run of words that also stands in an item, as it stands there; empty where none is long enough."""
        said, longest, best = _words(text), 0, ""
        for start in range(len(said) - LEAST_EVIDENCE + 1):
            for item, at in self._starts.get(tuple(said[start : start + LEAST_EVIDENCE]), ()):
                words, n = self._words[item], LEAST_EVIDENCE
                while start + n < len(said) and at + n < len(words) and said[start + n] == words[at + n]:
                    n += 1
                if n > longest:
                    spans = self._spans[item]
                    longest, best = n, self._items[item][spans[at][0] : spans[at + n - 1][1]]
        return re.sub(r"[<>&]", " ", best)


def _words(text: str) -> list[str]:
    return [m.group().replace("’", "'").lower() for m in _WORD.finditer(text)]
