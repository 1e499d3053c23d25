"""The users that GRPO learns from: prompt, C_ref, and what people and gold say of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from cp_agents.errors import InputError
from cp_agents.open_sets import refuse_open
from cp_agents.prompts.render import Prompt, load_prompt
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers.base_model import Base
from cp_agents.trainers.grpo_config import GrpoSettings
from cp_agents.trainers.profiling_eval import read_gold
from cp_agents.trainers.reference import ReferenceRow, kept_user_ids, load_reference, reference_rows


class GrpoRow(TypedDict):
    """One user as a row of TRL's data set; all but the prompt reaches the reward as it is."""

    prompt: list[dict[str, str]]
    """Messages, byte-equal to those that serving sends."""
    record_id: int
    c_ref: list[int]
    """In the order of the taxonomy."""
    reviewed: list[str]
    """People's tags in the same order, empty where there is none."""
    gold: list[str]


class GrpoData(NamedTuple):
    """All that a run reads from the store."""

    run_id: str
    taxonomy: Taxonomy
    prompt: Prompt
    language: str
    rows: list[GrpoRow]

    @property
    def hash(self) -> str:
        """16 hex digits over every row."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True).encode()).hexdigest()[:16]


def load_grpo_data(settings: GrpoSettings, base: Base) -> GrpoData:
    """Read the reference run, the kept users, reviewed answers and gold.

    Raises `InputError` for a reference run of another model, users without a reference confidence, and fewer users
    than a step takes; `StoreError` for a store or a run that is not there.
    """
    with TraceStore(settings.store, must_exist=True) as store:
        run_id = store.run(settings.reference)["run_id"]
        if base.card is not None:
            taxonomy, language = base.card.read_taxonomy(), base.card.language
            if settings.language not in (None, language):
                raise InputError(
                    f"language: {base.spec} is a student of the prompt {language}, and is asked to learn from"
                    f" {settings.language}: leave it out"
                )
            found = load_reference(store, run_id, base.files.adapter or base.files.folder)
        else:
            taxonomy, language = _check_base_run(store, run_id, base, settings.language or "en")
            found = reference_rows(store, run_id, taxonomy)
        refuse_open(taxonomy, "rewards")
        labels = _reviewed(store, taxonomy) if settings.hybrid else {}
    if settings.users is not None:
        found = _kept(found, settings.users, run_id)
    if len(found) < settings.prompts:
        raise InputError(
            f"a step takes {settings.prompts} different users and there are {len(found)} to train on: take fewer"
            " prompts a step, or more users"
        )
    gold = read_gold(settings.gold, {row["user_id"] for row in found}, taxonomy) if settings.gold else {}
    prompt = load_prompt(taxonomy, language)
    rows = [_row(row, prompt, taxonomy, labels, gold) for row in found]
    return GrpoData(run_id, taxonomy, prompt, language, rows)


def _row(
    row: ReferenceRow,
    prompt: Prompt,
    taxonomy: Taxonomy,
    labels: Mapping[str, Mapping[str, str]],
    gold: Mapping[str, Mapping[str, str]],
) -> GrpoRow:
    def tags(known: Mapping[str, Mapping[str, str]]) -> list[str]:
        of_user = known.get(row["user_id"], {})
        return [of_user.get(name) or "" for name in taxonomy.names]

    return GrpoRow(
        # A lone surrogate has no UTF-8; serving replaces it at its tokenizer, which here is behind a table.
        prompt=[
            {"role": m.role, "content": m.content.encode(errors="replace").decode()}
            for m in prompt.messages(row["cues"])
        ],
        record_id=row["record_id"],
        c_ref=[row["c_ref"][name] for name in taxonomy.names],
        reviewed=tags(labels),
        gold=tags(gold),
    )


def _check_base_run(store: TraceStore, run_id: str, base: Base, language: str) -> tuple[Taxonomy, str]:
    """For a model that is no student: whether the run is one pass of it with this prompt."""
    row = store.run(run_id)
    taxonomy = Taxonomy.model_validate_json(row["taxonomy"])
    if row["revision"].partition("-")[0] != base.files.revision():
        raise InputError(
            f"run {run_id} holds the reference confidence of another model ({row['backend']}) than {base.spec}: make"
            " one of this model, a run with one sample a record"
        )
    version = load_prompt(taxonomy, language).version
    if row["prompt_version"] != version:
        raise InputError(
            f"run {run_id} was made with prompt {row['prompt_version']}, and {language} is {version}: name the prompt"
            " language that it was made with"
        )
    if row["samples"] != 1:
        raise InputError(
            f"run {run_id} has {row['samples']} samples a record: reference confidence comes from one pass"
        )
    if row["finished_at"] is None:
        raise InputError(f"run {run_id} is not finished: go on with it first")
    return taxonomy, language


def _kept(rows: Sequence[ReferenceRow], path: Path, run_id: str) -> list[ReferenceRow]:
    wanted = kept_user_ids(path)
    known = {row["user_id"] for row in rows}
    if missing := sorted(wanted - known):
        raise InputError(
            f"{len(missing)} of the {len(wanted)} users of {path} have no reference confidence in run {run_id},"
            f" {missing[0]!r} the first: `train reference` over them makes it"
        )
    return [row for row in rows if row["user_id"] in wanted]


def _reviewed(store: TraceStore, taxonomy: Taxonomy) -> dict[str, dict[str, str]]:
    """What people last said, `{user_id: {attribute: tag}}`, in any run over the same taxonomy: they judged the user,
    not the run."""
    rows: Iterable[tuple[Any, ...]] = store.rows(
        "select r.user_id, v.attribute, v.tag from reviews v join records r using (record_id)"
        " join runs u using (run_id) where v.tag is not null and u.taxonomy_hash = ? order by v.review_id",
        (taxonomy.hash,),
    )
    found: dict[str, dict[str, str]] = {}
    for user_id, attribute, tag in rows:
        found.setdefault(user_id, {})[attribute] = tag
    return found
