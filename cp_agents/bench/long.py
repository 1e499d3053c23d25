"""The ablation of very long histories: the same users with thousands of items that say nothing put between theirs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from typing import Any, NamedTuple

from cp_agents.evaluation.metrics import average_metrics, threshold_metrics
from cp_agents.evaluation.outcomes import Outcomes, read_outcomes
from cp_agents.evaluation.statistics import Difference, Interval, differences, intervals
from cp_agents.profiler import Profiler
from cp_agents.settings import History
from cp_agents.stores.traces import TraceStore

_WAYS: tuple[tuple[str, History], ...] = (
    ("as they are", "condense"),
    ("truncate", "truncate"),
    ("condense", "condense"),
    ("select", "select"),
)
METRICS = ("selective_accuracy", "coverage", "macro_f1")
_FIRST = date(2015, 1, 1)
_DAYS = 3650
# Small talk of everybody: no duty, no possession, no person, nothing that any tag of any taxonomy should follow from.
_OPENINGS = (
    "same here", "so true", "not sure about that", "well, that was quick", "thanks for the link", "what a day",
    "interesting point", "I had to laugh", "still waiting", "that again", "no idea", "could be", "good question",
    "rain again", "sunny at last", "cold this morning", "the picture is nice", "lovely colours", "nice light",
    "have not seen it", "heard about it", "worth a try", "maybe tomorrow", "as always", "once more", "first!",
)  # fmt: skip
_ENDINGS = (
    "", "!", "...", ", I guess", ", as they say", ", who knows", " :)", ", by the way", ", again", ", in the end",
    ", more or less", ", no doubt", ", for once", ", or so it seems", ", let us see", ", so far",
)  # fmt: skip


class LongRow(NamedTuple):
    """One way to treat long histories."""

    name: str
    numbers: dict[str, Interval]
    against_truncated: dict[str, Difference] | None
    prompt_tokens: float
    """Of one record's block, estimated, on average."""
    asked: int
    """Calls to choose items, over all users; 0 for a backend that chooses without a prompt."""


def padded(record: Mapping[str, Any], items: int, seed: int = 0) -> dict[str, Any]:
    """The record with small talk between its items, `items` in all, every one with a day of ten years.

    The user's own items keep their order and lie anywhere among the others. The same record gives the same history.
    """
    rng = random.Random(f"{seed} {record['user_id']}")
    sources = {name: value for name, value in record.items() if isinstance(value, list)}
    rest = {name: value for name, value in record.items() if name not in sources}
    own = sum(map(len, sources.values()))
    found: dict[str, Any] = dict(rest)
    for name, value in sources.items():
        filler = max(0, items - own) * len(value) // max(1, own)
        days = sorted(rng.randrange(_DAYS) for _ in range(len(value) + filler))
        mine = set(rng.sample(range(len(days)), len(value)))
        mixed, left = [], iter(value)
        for i, day in enumerate(days):
            text = next(left) if i in mine else _small_talk(rng)
            mixed.append({**_as_item(text), "time": str(_FIRST + timedelta(days=day))})
        found[name] = mixed
    return found


def _as_item(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        text, weight = (*value, None)[:2]
        return {"text": text, "weight": weight}
    return {"text": value}


def _small_talk(rng: random.Random) -> str:
    # a number, so that no two are merged
    return f"{rng.choice(_OPENINGS)}{rng.choice(_ENDINGS)} ({rng.randrange(10**6)})"


def long_rows(
    records: Iterable[Mapping[str, Any]],
    gold: Mapping[str, Mapping[str, str]],
    store: TraceStore,
    *,
    backend: str,
    items: int,
    token_budget: int,
    samples: int,
    draws: int,
    seed: int = 0,
    **options: Any,
) -> list[LongRow]:
    """A row for the histories as they are, and one for each way to treat the padded ones."""
    users = [dict(r) for r in records]
    long = [padded(r, items, seed) for r in users]
    rows: list[LongRow] = []
    truncated: dict[str, Outcomes] | None = None
    for name, history in _WAYS:
        profiler = Profiler(
            backend, store, samples=samples, token_budget=token_budget, seed=seed, history=history,
            run=f"long {items} {name}", **options,
        )  # fmt: skip
        asked = _asked(store)
        profiles, _ = profiler.profile_many(users if name == "as they are" else long)
        outcomes = read_outcomes(
            {p.user_id: p.to_json()["profile"] for p in profiles}, gold, profiler.taxonomy
        )
        against = None
        if name == "truncate":
            truncated = outcomes
        elif truncated is not None:
            against = differences(_numbers, outcomes, truncated, draws=draws, seed=seed)
        [[tokens]] = store.rows("select avg(tokens) from records where run_id = ?", (profiler.run_id,))
        numbers = intervals(_numbers, outcomes, draws=draws, seed=seed)
        rows.append(LongRow(name, numbers, against, float(tokens), _asked(store) - asked))
    return rows


def _numbers(outcomes: Mapping[str, Outcomes]) -> dict[str, float | None]:
    average = average_metrics(1, [threshold_metrics(o, 1) for o in outcomes.values()])
    return {name: getattr(average, name) for name in METRICS}


def _asked(store: TraceStore) -> int:
    return int(store.rows("select count(*) from selections")[0][0])


def only_gold(
    records: Iterable[Mapping[str, Any]], gold: Mapping[str, Any], limit: int
) -> Iterator[Mapping[str, Any]]:
    """The first `limit` records that have gold."""
    for record in records:
        if limit and str(record["user_id"]) in gold:
            limit -= 1
            yield record
