"""A stored run as arrays, voted on by any method and levelled with or without calibration; no model call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents import decide
from cp_agents.calibration import uncalibrated_levels
from cp_agents.decide import Ballots
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import Outcomes, read_outcomes
from cp_agents.open_sets import refuse_open
from cp_agents.relabel import fit_on, load_ballots, stored_run
from cp_agents.schema import NA
from cp_agents.settings import ProfileSettings
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod, Votes

LevelArray = NDArray[np.int64]


class StoredRun(NamedTuple):
    """The samples of one run."""

    run_id: str
    backend: str
    taxonomy: Taxonomy
    settings: ProfileSettings
    users: tuple[str, ...]
    ballots: Ballots

    def votes(self, method: VoteMethod | None = None) -> Votes:
        """Votes [K, R]; by the run's own method by default."""
        return decide.count(self.ballots, self.taxonomy, method or self.settings.vote)

    def levels(self, votes: Votes, *, calibrated: bool = True) -> LevelArray:
        """Levels 1..5 [K, R]: by quintiles fitted on these votes, over all users of the run, or S / M rounded."""
        settings = self.settings
        calibrator = fit_on(votes, self.ballots.asked, self.taxonomy, settings) if calibrated else None
        found = []
        for k, name in enumerate(self.taxonomy.names):
            scores = decide.on_scale(settings.samples, votes.score[k], self.ballots.asked)
            if calibrator is None:
                found.append(uncalibrated_levels(scores, settings.samples))
            else:
                found.append(calibrator.transform(name, scores, settings.samples))
        return np.stack(found)

    def answered(self, votes: Votes) -> NDArray[np.bool_]:
        """Where enough samples survived for a vote, and the vote is not NA [K, R]."""
        needed = max(1, min(self.settings.min_survivors, self.settings.samples))
        na = np.array([attribute.codes[NA] for attribute in self.taxonomy.attributes])[:, None]
        return np.asarray((votes.survivors >= needed) & (votes.winner >= 0) & (votes.winner != na))


def load_run(store: TraceStore, run_id: str | None = None) -> StoredRun:
    """A stored run, the newest without an id. Raises `StoreError` where there is none, `InputError` without samples."""
    run, taxonomy, settings = stored_run(store, run_id)
    refuse_open(taxonomy, "the paper's tables")
    records, ballots = load_ballots(store, run, taxonomy, settings.samples, settings.confidence)
    if not records:
        raise InputError(f"run {run} holds no samples")
    users = tuple(user for _, user, _, _ in records)
    return StoredRun(run, store.run(run)["backend"], taxonomy, settings, users, ballots)


def profile_traces(
    traces: Path, users: Path, store: TraceStore, taxonomy: str = "profilebench", samples: int | None = None
) -> str:
    """Profile the recorded users of `traces` into `store`, without a model call; the run's id.

    M is by default the most samples that a user has. Raises `InputError` where the files cannot be read or have no
    user in common.
    """
    from cp_agents.files import BadLine, parse_line, raw_lines, read_records
    from cp_agents.profiler import Profiler

    recorded: dict[str, int] = {}
    for number, raw in raw_lines(traces):
        line = parse_line(raw)
        if not isinstance(line, dict) or not isinstance(line.get("samples"), list) or not line.get("user_id"):
            raise InputError(f'{traces} line {number}: expected {{"user_id", "samples": [...]}}')
        recorded[str(line["user_id"])] = len(line["samples"])
    records = []
    for record in read_records(users):
        if isinstance(record, BadLine):
            raise InputError(record.message)
        if record["user_id"] in recorded:
            records.append(record)
    if not records:
        raise InputError(f"{traces} and {users} have no user in common")
    profiler = Profiler(
        f"replay:{traces}", store, samples=samples or max(recorded.values()), taxonomy=taxonomy
    )
    profiler.profile_many(records)
    return profiler.run_id


def common_gold(gold: Gold, runs: Sequence[StoredRun]) -> Gold:
    """Gold of the users that all runs have, in gold's order. Raises `InputError` where there is none."""
    shared = set(gold).intersection(*(run.users for run in runs))
    if not shared:
        whose = " and ".join(run.run_id for run in runs)
        raise InputError(f"gold and {whose} have no user in common: nothing can be compared")
    return {user: truth for user, truth in gold.items() if user in shared}


def outcomes(
    run: StoredRun, gold: Mapping[str, Mapping[str, str]], votes: Votes, levels: LevelArray
) -> dict[str, Outcomes]:
    """The votes beside gold, as `read_outcomes` of the run's profiles would be; what a reviewer said is not in it.

    Every user of `gold` should be in the run.
    """
    return _filled(run, gold, votes.winner, np.where(run.answered(votes), levels, 0))


def sample_outcomes(run: StoredRun, gold: Mapping[str, Mapping[str, str]]) -> list[dict[str, Outcomes]]:
    """Each of the M samples as a method of its own: its tags, with the confidence that it stated itself."""
    tags, stated = run.ballots.tags, run.ballots.confidence
    na = np.array([attribute.codes[NA] for attribute in run.taxonomy.attributes])[:, None]
    return [
        _filled(
            run,
            gold,
            tags[:, :, m],
            np.where((tags[:, :, m] >= 0) & (tags[:, :, m] != na), stated[:, :, m], 0),
        )
        for m in range(tags.shape[2])
    ]


def _filled(
    run: StoredRun,
    gold: Mapping[str, Mapping[str, str]],
    codes: NDArray[np.integer],
    reach: NDArray[np.integer] | NDArray[np.floating],
) -> dict[str, Outcomes]:
    """`codes` and `reach` [K, R] beside gold; reach 0 says that nothing is said."""
    place = {user: i for i, user in enumerate(run.users)}
    index = {name: k for k, name in enumerate(run.taxonomy.names)}
    found = {}
    for name, empty in read_outcomes({}, gold, run.taxonomy).items():
        rows = np.array([place[user] for user in empty.users], np.int64)
        k = index[name]
        says = reach[k, rows] > 0
        found[name] = empty._replace(
            voted=np.where(says, codes[k, rows], empty.na).astype(np.int64),
            reach=reach[k, rows].astype(np.float64),
            present=np.ones(len(rows), np.bool_),
        )
    return found
