"""Who of a data set is evaluated: users with a record and gold, of the split, up to the limit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.bench.dataset import Dataset, read_gold
from cp_agents.bench.splits import split_of
from cp_agents.cues import assemble_cues
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import read_outcomes
from cp_agents.files import BadLine, read_records
from cp_agents.schema import UserRecord
from cp_agents.taxonomy import Taxonomy

ALL = "all"
"""In place of a split's name: every user."""


class Evaluated(NamedTuple):
    """One data set, read and cut."""

    dataset: Dataset
    records: list[dict[str, Any]]
    """Of the evaluated users."""
    gold: Gold
    """Theirs, in the order of the records."""
    teachers: list[dict[str, Any]]
    """Records of the other splits' users with gold, from whom trained baselines learn; empty for `ALL`."""
    teachers_gold: Gold
    truth_field: str
    data: str
    """16 hex digits over users.jsonl and gold.jsonl."""
    key: str
    """16 hex digits over the data, the truth's field, tau and the users: alike where numbers may be compared."""
    users_key: str
    """16 hex digits over the users alone: names their runs."""
    notes: tuple[str, ...]

    @property
    def users(self) -> list[str]:
        """In the order of the file."""
        return list(self.gold)


def read_evaluated(
    dataset: Dataset,
    taxonomy: Taxonomy,
    *,
    truth_field: str | None = None,
    split: str = ALL,
    limit: int | None = None,
    tau: float = 1,
) -> Evaluated:
    """The users of `dataset` that are evaluated. Raises `InputError` where a file is wrong or nobody is left."""
    gold, field = read_gold(dataset, truth_field)
    records = []
    for record in read_records(dataset.users):
        if isinstance(record, BadLine):
            raise InputError(record.message)
        records.append(record)
    known = [record for record in records if record["user_id"] in gold]
    if not known:
        raise InputError(f"{dataset.folder}: users and gold have no user in common: nothing can be compared")
    chosen = [r for r in known if split in (ALL, split_of(r["user_id"]))][:limit]
    if not chosen:
        raise InputError(f"{dataset.folder}: no user with gold is in the split {split!r}")
    theirs = {record["user_id"]: gold[record["user_id"]] for record in chosen}
    # also the check of every tag, before anything is asked for
    if not any(found.labelled.any() for found in read_outcomes({}, theirs, taxonomy).values()):
        raise InputError(
            f"{dataset.folder}: the gold of the evaluated users has no tag of the taxonomy {taxonomy.name}"
        )
    others = [] if split == ALL else [r for r in known if split_of(r["user_id"]) != split]
    data = digest(dataset.users.read_bytes(), (dataset.gold or Path()).read_bytes())
    return Evaluated(
        dataset,
        chosen,
        theirs,
        others,
        {record["user_id"]: gold[record["user_id"]] for record in others},
        field,
        data,
        digest(data, field, f"{tau:g}", *theirs),
        digest(*theirs),
        tuple(_notes(len(records), len(known), gold, taxonomy)),
    )


def cue_blocks(records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What a language model would see of each user."""
    return {record["user_id"]: assemble_cues(UserRecord.from_dict(record)).text for record in records}


def digest(*parts: str | bytes) -> str:
    """16 hex digits; the parts do not run into each other."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode()
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.hexdigest()[:16]


def _notes(records: int, known: int, gold: Gold, taxonomy: Taxonomy) -> list[str]:
    notes = []
    if without := records - known:
        notes.append(f"users without gold, not profiled: {without:,}")
    if absent := len(gold) - known:
        notes.append(f"users of gold without a record, not evaluated: {absent:,}")
    lacking = sorted({name for truth in gold.values() for name in truth if name not in taxonomy})
    if lacking:
        notes.append(f"attributes that the taxonomy lacks, ignored: {', '.join(lacking)}")
    return notes
