"""What adaptive sampling saves, and how many tags stay: `python benchmarks/adaptive.py DATA [--users N]`.

DATA holds folders with users.jsonl (atus, synthpai) and recorded_teacher/NAME.jsonl, answers of a real model. Every
row of the first table is a real run, compared with the run that draws all ten samples. The second looks at the stored
answers of that run: other readings of p, and what could be saved at best by somebody who knew all ten.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents import Profiler
from cp_agents.adaptive import probability_it_stays
from cp_agents.backends.base import SampleRequest
from cp_agents.decide import Ballots, count
from cp_agents.files import read_records
from cp_agents.relabel import load_ballots
from cp_agents.schema import Profile

M = 10
RULES: list[dict[str, Any]] = [
    {"adaptive": "exact"},
    *({"adaptive": "bayes", "adaptive_p": p} for p in (0.9, 0.95, 0.98)),
    {"adaptive": "bayes", "adaptive_p": 0.95, "wave": 2},
]


class Run(NamedTuple):
    """A finished run."""

    profiles: list[Profile]
    ballots: Ballots
    profiler: Profiler
    asked: float
    requests: int


def go(backend: str, records: list[Any], **options: Any) -> Run:
    """One run, its requests to the backend counted (all samples of a wave are one)."""
    profiler = Profiler(backend, samples=M, **options)
    requests, sample = 0, profiler.backend.sample

    def counted(request: SampleRequest) -> Any:
        nonlocal requests
        requests += 1
        return sample(request)

    profiler.backend.sample = counted  # type: ignore[method-assign]
    profiles, report = profiler.profile_many(records)
    _, ballots = load_ballots(profiler.store, profiler.run_id, profiler.taxonomy, M)
    return Run(profiles, ballots, profiler, report.sampling.mean if report.sampling else M, requests)


def share(one: Run, other: Run, field: str) -> float:
    """Of all attributes of all records, those on which two runs agree."""
    return float(
        np.mean(
            [
                getattr(a[name], field) == getattr(b[name], field)
                for a, b in zip(one.profiles, other.profiles, strict=True)
                for name in b
            ]
        )
    )


def winners(run: Run) -> NDArray[Any]:
    """The winners after 1..M samples `[M + 1, K, R]`; -2 before the first."""
    found = [np.full(run.ballots.tags.shape[:2], -2)]
    for m in range(1, M + 1):
        seen = np.arange(M) < m
        part = run.ballots._replace(tags=np.where(seen, run.ballots.tags, -1))
        found.append(count(part, run.profiler.taxonomy, "weighted").winner)
    return np.stack(found)


def readings(full: Run) -> None:
    """Print what other readings of p would save, and the bounds."""
    tags, weights, won = full.ballots.tags, full.ballots.confidence, winners(full)
    attributes, records = tags.shape[:2]
    sizes = [len(a.names) for a in full.profiler.taxonomy.attributes]
    stays = np.ones((M + 1, attributes, records))
    stays[:3] = 0
    for m in range(3, M):
        for r in range(records):
            stays[m, :, r] = probability_it_stays(tags[:, r, :m], weights[:, r, :m], sizes, M)
    for name, p in (
        ("mean", stays.mean(1)),
        ("each attribute", stays.min(1)),
        ("all together", stays.prod(1)),
    ):
        drawn = (np.where(np.arange(M + 1)[:, None] == M, 2, p) > 0.95).argmax(axis=0)
        equal = won[drawn, :, np.arange(records)] == won[M].T
        print(f"   p 0.95 of {name}: {1 - drawn.mean() / M:.1%} saved, {equal.mean():.1%} equal")
    drawn = (np.where(np.arange(M + 1)[:, None, None] == M, 2, stays) > 0.95).argmax(axis=0)
    equal = np.take_along_axis(won, drawn[None], 0)[0] == won[M]
    print(
        f"   votes not needed at p 0.95, attribute by attribute: {1 - drawn.mean() / M:.1%},"
        f" {equal.mean():.1%} equal"
    )
    same = won == won[M]
    final = np.logical_and.accumulate(same[::-1].all(axis=1), axis=0)[::-1].argmax(axis=0)
    print(f"   stopping when all tags are what they stay, known beforehand: {1 - final.mean() / M:.1%} saved")
    best = 0.0
    for price in np.linspace(
        0, 100, 2001
    ):  # of one sample, in attributes: every trade of the two at its best
        drawn = (np.arange(1, M + 1)[:, None] - price * same[1:].mean(axis=1)).argmin(axis=0) + 1
        if same[drawn, :, np.arange(records)].mean() >= 0.98:
            best = max(best, 1 - drawn.mean() / M)
    print(f"   at 98 % equal tags, all answers known beforehand: {best:.1%} saved")


def main() -> None:
    """Measure every data set that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--users", type=int, default=300, help="Most users of a data set.")
    given = parser.parse_args()
    for name in ("atus", "synthpai"):
        users: list[Any] = list(read_records(given.data / name / "users.jsonl"))
        recording = given.data / "recorded_teacher" / f"{name}.jsonl"
        recorded = {
            json.loads(line)["user_id"] for line in recording.read_text(encoding="utf-8").splitlines()
        }
        teacher = [user for user in users if user["user_id"] in recorded]
        for backend, records in ((f"replay:{recording}", teacher), ("lexicon", users[: given.users])):
            full = go(backend, records)
            print(f"{backend.partition(':')[0]} {name}: {len(records)} users")
            for rule in RULES:
                run = go(backend, records, **rule)
                print(
                    f"   {' '.join(map(str, rule.values()))}: {1 - run.asked / M:.1%} saved,"
                    f" {share(run, full, 'voted'):.1%} equal votes, {share(run, full, 'tag'):.1%} equal tags,"
                    f" {run.requests / len(records):.1f} waves a record"
                )
            readings(full)


if __name__ == "__main__":
    main()
