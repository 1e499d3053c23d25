"""Tag weights of a stored run: learned from gold or reviewed rows, kept in a file, read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cp_agents.calibrate import gold_tags, reviewed_tags
from cp_agents.errors import InputError, first_fault
from cp_agents.files import read_text, whole_file
from cp_agents.open_sets import refuse_open
from cp_agents.relabel import load_ballots, stored_run
from cp_agents.schema import NA
from cp_agents.stores.traces import TraceStore
from cp_agents.tag_weights import RIDGE, check_tag_weights, learn_tag_weights

FORMAT = "cp-agents tag weights"


class TagWeightsFile(BaseModel):
    """The file of `calibrate tags`."""

    model_config = ConfigDict(extra="forbid")

    format: str
    run: str
    """The run whose samples were looked at."""
    labels: dict[str, int]
    """Labelled users per attribute."""
    weights: dict[str, dict[str, float]]


class Learned(NamedTuple):
    """What `learn_from_run` found."""

    run: str
    labels: dict[str, int]
    weights: dict[str, dict[str, float]]


def learn_from_run(
    store: TraceStore,
    run_id: str | None = None,
    *,
    gold: Mapping[str, Mapping[str, str]] | None = None,
    ridge: float = RIDGE,
) -> Learned:
    """Tag weights from the samples of a stored run and `gold[user_id][attribute]`, or what people said in reviews.

    The run has to vote `weighted` or `softmax`. Raises `InputError` where nothing is labelled.
    """
    run, taxonomy, settings = stored_run(store, run_id)
    refuse_open(taxonomy, "tag weights")
    check_tag_weights({name: {} for name in taxonomy.names}, taxonomy, settings.vote)
    records, ballots = load_ballots(store, run, taxonomy, settings.samples, settings.confidence)
    known = gold_tags(gold, records, taxonomy, run) if gold is not None else reviewed_tags(store, records)
    truth = np.full(ballots.tags.shape[:2], -1, np.int64)
    for row, record in enumerate(records):
        for name, tag in known.get(record[0], {}).items():
            if name in taxonomy and tag != NA:
                truth[taxonomy.names.index(name), row] = taxonomy[name].codes[tag]
    if not (truth >= 0).any():
        whence = "gold" if gold is not None else "the reviews"
        raise InputError(f"nothing to learn tag weights from: {whence} of run {run} names no tag")
    labels = dict(zip(taxonomy.names, (truth >= 0).sum(axis=1).tolist(), strict=True))
    return Learned(run, labels, learn_tag_weights(ballots.tags, ballots.confidence, truth, taxonomy, ridge))


def save_tag_weights(path: Path, learned: Learned) -> None:
    """Write the file whole."""
    whole = TagWeightsFile(format=FORMAT, run=learned.run, labels=learned.labels, weights=learned.weights)
    with whole_file(path) as file:
        json.dump(whole.model_dump(), file, indent=1, ensure_ascii=False)


def load_tag_weights(path: Path) -> dict[str, dict[str, float]]:
    """The weights in a file of `save_tag_weights`. Raises `InputError` that names the file and the field."""
    try:
        found = TagWeightsFile.model_validate_json(read_text(path))
    except ValidationError as error:
        raise InputError(f"{path}: no file of tag weights ({first_fault(error)})") from None
    if found.format != FORMAT:
        raise InputError(f"{path}: no file of tag weights (its format is {found.format!r})")
    return found.weights
