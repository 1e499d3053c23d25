"""Simulated samplers as a data set and a recording, so that the real graph, store, votes and calibrators run on them.

For teaching and for tests: what is drawn by `cp_agents.evaluation.simulator` is written as a data set's folder, with
the answers beside it as `replay:FILE` reads them. The records say nothing of anybody: answers are drawn, not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cp_agents.bench.dataset import GOLD, USERS
from cp_agents.decide import Ballots
from cp_agents.errors import InputError
from cp_agents.evaluation.simulator import Simulation
from cp_agents.files import whole_file, write_jsonl
from cp_agents.taxonomy import Taxonomy
from cp_agents.wire import WireAnswer, write_answer

ANSWERS, TAXONOMY = "answers.jsonl", "taxonomy.yaml"
_CUE = "a simulated user"


def beside(first: Simulation, *others: Simulation) -> Simulation:
    """Several attributes of the same users as one simulation; K is the sum of theirs.

    Raises `InputError` for other users, another number of samples, or an attribute that is there twice.
    """
    simulations = (first, *others)
    size = first.ballots.tags.shape[1:]
    for other in others:
        if other.users != first.users or other.ballots.tags.shape[1:] != size:
            raise InputError("expected simulations of the same users with as many samples each")
    attributes = [attribute for each in simulations for attribute in each.taxonomy.attributes]
    names = [attribute.name for attribute in attributes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"attribute {twice[0]!r} is simulated twice")
    ballots = first.ballots._replace(
        tags=np.concatenate([each.ballots.tags for each in simulations]),
        confidence=np.concatenate([each.ballots.confidence for each in simulations]),
    )
    gold = {
        user: {name: tag for each in simulations for name, tag in each.gold[user].items()}
        for user in first.users
    }
    return Simulation(Taxonomy(name="simulated", attributes=attributes), first.users, ballots, gold)


def grouped(groups: Mapping[str, Simulation]) -> Simulation:
    """The users of several simulations one after the other, as `GROUP-1`, `GROUP-2` ... R is the sum of theirs.

    Raises `InputError` for other attributes or another number of samples.
    """
    simulations = list(groups.values())
    first = simulations[0]
    for other in simulations[1:]:
        if other.taxonomy.attributes != first.taxonomy.attributes:
            raise InputError("expected simulations of the same attributes")
        if other.ballots.tags.shape[2] != first.ballots.tags.shape[2]:
            raise InputError("expected simulations with as many samples each")
    ballots = Ballots(
        np.concatenate([each.ballots.tags for each in simulations], axis=1),
        np.concatenate([each.ballots.confidence for each in simulations], axis=1),
        np.concatenate([each.ballots.samplers for each in simulations]),
        np.concatenate([each.ballots.asked for each in simulations]),
    )
    named = [
        (f"{group}-{i}", each.gold[user])
        for group, each in groups.items()
        for i, user in enumerate(each.users, 1)
    ]
    return Simulation(first.taxonomy, tuple(user for user, _ in named), ballots, dict(named))


def write_simulation(
    simulation: Simulation,
    folder: str | Path,
    *,
    self_reported: Mapping[str, Mapping[str, str]] | None = None,
    probabilities: NDArray[np.floating[Any]] | None = None,
) -> None:
    """Write users.jsonl, gold.jsonl, answers.jsonl (for `replay:`) and taxonomy.yaml into `folder`.

    `self_reported` gives fields by user; `probabilities` [K, R, M] what the model gave the tags that it wrote, above 0
    and at most 1. A sample that failed is recorded as an empty answer. Raises `InputError` where the folder is not
    there, or the probabilities have another shape.
    """
    folder = Path(folder)
    if probabilities is not None and probabilities.shape != simulation.ballots.tags.shape:
        raise InputError(
            f"expected probabilities of shape {simulation.ballots.tags.shape}, found {probabilities.shape}"
        )
    reported = self_reported or {}
    write_jsonl(
        folder / USERS,
        (
            {"user_id": user, "noted": [_CUE], "self_reported": dict(reported.get(user, {}))}
            for user in simulation.users
        ),
    )
    write_jsonl(folder / GOLD, ({"user_id": user, "truth": truth} for user, truth in simulation.gold.items()))
    write_jsonl(folder / ANSWERS, _recorded(simulation, probabilities))
    with whole_file(folder / TAXONOMY) as file:  # JSON is YAML too
        json.dump(
            simulation.taxonomy.model_dump(mode="json", exclude_defaults=True), file, ensure_ascii=False
        )


def _recorded(
    simulation: Simulation, probabilities: NDArray[np.floating[Any]] | None
) -> Iterator[dict[str, Any]]:
    tags, stated = simulation.ballots.tags, simulation.ballots.confidence
    attributes = simulation.taxonomy.attributes
    for row, user in enumerate(simulation.users):
        samples = []
        for m in range(tags.shape[2]):
            said = [k for k in range(len(attributes)) if tags[k, row, m] >= 0]
            names: Sequence[str] = [attributes[k].names[tags[k, row, m]] for k in said]
            answers = [
                WireAnswer(attributes[k].name, name, int(stated[k, row, m]), _CUE)
                for k, name in zip(said, names, strict=True)
            ]
            sample: dict[str, Any] = {"text": write_answer(answers), "finish_reason": "stop"}
            if probabilities is not None:
                sample["probabilities"] = {
                    attributes[k].name: [name, round(float(probabilities[k, row, m]), 6)]
                    for k, name in zip(said, names, strict=True)
                }
            samples.append(sample)
        yield {"user_id": user, "samples": samples}
