"""Baselines that cost no call: the best constant answer, and what a stored run says otherwise than by its vote.

All come in the shape of profiles, `{user_id: {attribute: {"tag", "confidence"}}}`.
"""

from __future__ import annotations

import numpy as np

from cp_agents.bench.trained import answer
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import Profiles, read_outcomes
from cp_agents.relabel import load_ballots, replay, stored_run
from cp_agents.schema import Status
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod


def constant_profiles(gold: Gold, taxonomy: Taxonomy) -> Profiles:
    """The most frequent tag of gold for everyone, attribute by attribute: no other constant answer is better.

    It has seen the answers that it is measured on. Its confidence is the fifth that the tag's share lies in.
    """
    answers = {}
    for name, found in read_outcomes({}, gold, taxonomy).items():
        counts = np.bincount(found.truth[found.labelled], minlength=found.na)
        if counts.sum():
            code = int(counts.argmax())
            answers[name] = answer(found.attribute.names[code], counts[code] / counts.sum())
    return dict.fromkeys(gold, answers)


def sample_profiles(store: TraceStore, run_id: str) -> Profiles:
    """The first sample of each user alone, with the confidence that it stated; an unusable answer says nothing."""
    _, taxonomy, _ = stored_run(store, run_id)
    records, ballots = load_ballots(store, run_id, taxonomy, samples=1)
    silent = {"tag": "NA", "confidence": 1, "status": Status.FAILED}
    return {
        user: {
            attribute.name: {
                "tag": attribute.names[ballots.tags[k, row, 0]],
                "confidence": int(ballots.confidence[k, row, 0]),
            }
            if ballots.tags[k, row, 0] >= 0
            else silent
            for k, attribute in enumerate(taxonomy.attributes)
        }
        for row, (_, user, _, _) in enumerate(records)
    }


def voted_profiles(store: TraceStore, run_id: str, vote: VoteMethod) -> Profiles:
    """The run's samples under another vote, calibrated on its own votes by quintiles."""
    profiles = replay(store, run_id, vote=vote, calibrator="fit")
    return {profile.user_id: profile.to_json()["profile"] for profile in profiles}
