"""The data card of an SFT export: what its rows were made from, what was left out, how the tags are spread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from cp_agents.exports import Seal
from cp_agents.schema import Status
from cp_agents.taxonomy import Taxonomy

KIND: Final = "cp-agents sft data"


class SftFilters(BaseModel):
    """Which rows an export keeps. A value that a person reviewed passes them all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statuses: tuple[Status, ...] | None = None
    """Statuses that pass; None for all. A vote for NA that waits for nobody counts as accepted: the profile
    withheld nothing."""
    grounded: bool = False
    """A tag other than NA needs evidence that stands in the record."""
    min_share: float = 0.0
    """Least share of the votes, 0..1, for tags and NA."""
    min_confidence: int = 1
    """Least calibrated confidence, 1..5, of a tag other than NA (as the threshold tau)."""
    may_fail: int = 0
    """Attributes of a row that may fail a filter and are taught nevertheless as they were voted."""


class SftSource(BaseModel):
    """The teacher's run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    backend: str
    model: str
    revision: str
    samplers: dict[str, int]
    """Samples by the backend and model that drew them."""
    samples: int
    """M."""
    vote: str
    calibrator: str
    prompt_version: str
    """Of the teacher's prompt."""
    created_at: str


class TagCount(BaseModel):
    """How often a tag is taught and checked."""

    model_config = ConfigDict(extra="forbid")

    train: int = 0
    validation: int = 0


class SftCard(BaseModel):
    """`card.json` of an export. Holds no word and no id of any user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cp-agents sft data"] = KIND
    source: SftSource
    language: str
    """Of the prompt in the rows, as `--language` takes it."""
    prompt_version: str
    """Of the prompt in the rows."""
    taxonomy: dict[str, Any]
    taxonomy_hash: str
    filters: SftFilters
    reasoning: bool
    evidence: bool
    seed: int
    validation: float
    """Share of the users that validate, by a hash of their id and the seed."""
    records: int
    """Of the run, before anything was left out."""
    dropped: dict[str, int]
    """Records left out, by the first reason that applied."""
    failing: dict[str, int]
    """Over all finished records: how often each attribute failed a filter."""
    gold: int
    """Values that a person reviewed."""
    ungrounded: int
    """Pieces of evidence that stand nowhere in their record and were left out of the answers."""
    balance: dict[str, dict[str, TagCount]]
    """Rows by attribute and tag; tags that no row has are there with zero."""
    files: dict[str, Seal]

    def read_taxonomy(self) -> Taxonomy:
        """The taxonomy that the rows answer."""
        return Taxonomy.model_validate(self.taxonomy)


def readme(card: SftCard) -> str:
    """The card for people, in Markdown, and for the library datasets: `load_dataset(FOLDER)` reads the columns' types.

    Without them it takes the types of the first rows for those of all, and stumbles where a later row is the first
    that a person reviewed.
    """
    front = yaml.safe_dump(_front_matter(card), sort_keys=False)
    return "\n".join(("---", f"{front}---", *_lines(card))) + "\n"


def _front_matter(card: SftCard) -> dict[str, Any]:
    messages = [{"name": name, "dtype": "string"} for name in ("role", "content")]
    files = [
        {"split": name.partition(".")[0], "path": name} for name, sealed in card.files.items() if sealed.rows
    ]
    return {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": [
                {"name": "user_id", "dtype": "string"},
                {"name": "prompt", "list": messages},
                {"name": "completion", "list": [dict(field) for field in messages]},
                {"name": "tags", "struct": [{"name": n, "dtype": "string"} for n in card.balance]},
                {"name": "confidence", "struct": [{"name": n, "dtype": "int64"} for n in card.balance]},
                {"name": "gold", "list": "string"},
            ]
        },
    }


def _lines(card: SftCard) -> Iterator[str]:
    source = card.source
    yield "# SFT data"
    yield ""
    yield f"Answers for supervised fine-tuning, voted from run `{source.run_id}` of a teacher; made by cp-agents."
    yield "The numbers are those of the day of the export; `card.json` has them all, and the files' hashes now."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| teacher | {source.backend}, model {source.model}, {source.samples} samples a record |"
    for sampler, count in source.samplers.items():
        yield f"| samples by {sampler} | {count:,} |"
    yield f"| vote, calibrator | {source.vote}, {source.calibrator} |"
    yield f"| taxonomy | {card.taxonomy.get('name')} ({card.taxonomy_hash}) |"
    yield f"| prompt of the rows | {card.language} ({card.prompt_version}) |"
    yield f"| prompt of the teacher | {source.prompt_version} |"
    yield f"| reasoning, evidence | {_yes(card.reasoning)}, {_yes(card.evidence)} |"
    yield f"| filters | {_filters(card.filters)} |"
    yield f"| split | {card.validation:g} of the users validate, seed {card.seed} |"
    yield f"| records of the run | {card.records:,} |"
    for reason, count in card.dropped.items():
        yield f"| left out: {reason} | {count:,} |"
    yield f"| values that a person reviewed | {card.gold:,} |"
    yield f"| ungrounded pieces of evidence left out | {card.ungrounded:,} |"
    for name, sealed in card.files.items():
        yield f"| `{name}` | {sealed.rows:,} rows, sha256 `{sealed.sha256}` |"
    yield ""
    yield "A row has `prompt` and `completion` (chat messages), `user_id`, `tags` and `confidence` per attribute"
    yield "as in the completion, and `gold`: the attributes that a person reviewed. The rows hold what users did and"
    yield "wrote: whoever may use the records may use the rows, for the same purposes."
    yield "`cp-agents forget USER --export FOLDER` takes a user out of them."
    yield ""
    yield "## Class balance"
    yield ""
    yield "| attribute | tag | train | validation |"
    yield "|---|---|---:|---:|"
    for attribute, tags in card.balance.items():
        for tag, taught in tags.items():
            yield f"| {attribute} | {tag} | {taught.train:,} | {taught.validation:,} |"


def _yes(value: bool) -> str:
    return "kept" if value else "dropped"


def _filters(filters: SftFilters) -> str:
    says = [
        f"status {', '.join(filters.statuses)}" if filters.statuses is not None else "",
        "grounded evidence" if filters.grounded else "",
        f"vote share {filters.min_share:g} or more" if filters.min_share > 0 else "",
        f"confidence {filters.min_confidence} or more" if filters.min_confidence > 1 else "",
    ]
    active = "; ".join(filter(None, says))
    allowed = f" (up to {filters.may_fail} attributes a row may fail)" if filters.may_fail else ""
    return active + allowed if active else "none"
