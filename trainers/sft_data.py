"""A teacher's stored run as SFT data: TRL's conversational prompt-completion rows, with a data card.

The prompts come from the one renderer, so a row's prompt is byte-equal to what serving sends for the same record.
No torch is needed here, and no model is called: exporting again, with other filters, is free.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cp_agents.errors import InputError, first_fault
from cp_agents.exports import CARD, check_folder, check_seals, seal, whole_folder
from cp_agents.files import read_text
from cp_agents.prompts.render import Prompt, built_in_languages, load_prompt
from cp_agents.schema import Status
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers.data_card import KIND, SftCard, SftFilters, SftSource, readme
from cp_agents.trainers.sft_export import FILES, SftExport
from cp_agents.trainers.sft_rows import TRAIN, VALIDATION

README = "README.md"
_ALL = (*FILES.values(), CARD, README)


@dataclass(frozen=True)
class SftData:
    """An export on disk."""

    folder: Path
    card: SftCard

    @property
    def train(self) -> Path:
        """Rows of the users to train on."""
        return self.folder / FILES[TRAIN]

    @property
    def validation(self) -> Path:
        """Rows of the users to check on."""
        return self.folder / FILES[VALIDATION]

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """The rows of `train` or `validation` in order."""
        with (self.folder / FILES[split]).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def export_sft(
    store: str | Path | TraceStore,
    run_id: str | None,
    folder: str | Path,
    *,
    users: Collection[str] | None = None,
    language: str | None = None,
    statuses: Iterable[str] | None = None,
    grounded: bool = False,
    min_share: float = 0.0,
    min_confidence: int = 1,
    may_fail: int = 0,
    reasoning: bool = False,
    evidence: bool = True,
    seed: int = 0,
    validation: float = 0.1,
) -> SftData:
    """Write a run of the store (the newest without an id) as SFT data into `folder`, whole or not at all.

    A row has `prompt` and `completion` (messages), `user_id`, `tags` and `confidence` per attribute, and `gold`:
    the attributes that a person reviewed. What is taught of an attribute is the vote and its calibrated confidence
    as `replay` gives them (before tau), or a person's answer with confidence 5; see `sft_rows`.

    With `users`, only theirs are written. `language` is the prompt's, by default the one that the run was sampled
    with. A row is left out if its record is unfinished, if an attribute has no vote, and if more than `may_fail` of
    its attributes fail a filter (`SftFilters`); a repeated pair of prompt and completion is kept once. With
    `reasoning`, what the sample that agrees most with the row had thought goes before the answer, and rows without
    any are left out. `evidence=False` leaves the quotations out. Users fall on one side by a hash of their id, so
    that new users move nobody.

    Raises `InputError` for a folder that holds anything but an earlier export, filters that cannot be, and where no
    row is left; `StoreError` where there is no such run.
    """
    filters = read_filters(statuses, grounded, min_share, min_confidence, may_fail)
    if not 0 <= validation < 1:
        raise InputError(f"the validation share should be from 0 to below 1, found {validation}")
    check_folder(folder, KIND, _ALL)
    opened = nullcontext(store) if isinstance(store, TraceStore) else TraceStore(store, must_exist=True)
    with opened as traces:
        run = traces.run(run_id)
        taxonomy = Taxonomy.model_validate_json(run["taxonomy"])
        prompt, spoken = _prompt(taxonomy, run, language)
        export = SftExport(
            traces, run["run_id"], taxonomy, prompt, filters,
            reasoning=reasoning, evidence=evidence, users=users,
        )  # fmt: skip
        if not export.finished:
            raise InputError(
                f"run {run['run_id']} holds no finished record to export: finish it with the command that began it"
            )
        with whole_folder(folder, KIND, _ALL) as part:
            export.write(part, seed, validation)
            card = SftCard(
                source=_source(traces, run, export.calibrator),
                language=spoken,
                prompt_version=prompt.version,
                taxonomy=taxonomy.model_dump(mode="json", exclude_defaults=True),
                taxonomy_hash=taxonomy.hash,
                filters=filters,
                reasoning=reasoning,
                evidence=evidence,
                seed=seed,
                validation=validation,
                records=export.records,
                dropped=export.dropped,
                failing=export.failing,
                gold=export.gold,
                ungrounded=export.ungrounded,
                balance=export.balance,
                files={name: seal(part / name) for name in FILES.values()},
            )
            if not card.files[FILES[TRAIN]].rows:
                raise InputError(f"no row of run {run['run_id']} is left to train on: {_why(card)}")
            body = json.dumps(card.model_dump(mode="json"), ensure_ascii=False, indent=1)
            (part / CARD).write_text(body + "\n", encoding="utf-8")
            (part / README).write_text(readme(card), encoding="utf-8")
    return SftData(Path(folder), card)


def load_sft_data(folder: str | Path) -> SftData:
    """An export, checked against its card.

    Raises `InputError` where the folder holds none, a file is missing or not as it was written (lines that `forget`
    took out are no such change), and where the templates of its prompt have changed: serving would send another one.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise InputError(
            f"{folder} holds no SFT data: expected a folder that `cp-agents export sft` has written"
        )
    try:
        card = SftCard.model_validate_json(read_text(folder / CARD))
    except ValidationError as error:
        raise InputError(f"{folder / CARD}: not a card of SFT data ({first_fault(error)})") from None
    check_seals(folder, card.files)
    version = load_prompt(card.read_taxonomy(), card.language).version
    if version != card.prompt_version:
        raise InputError(
            f"{folder}: its rows have prompt {card.prompt_version}, and {card.language} is {version} now;"
            " export it again"
        )
    return SftData(folder, card)


def read_filters(
    statuses: Iterable[str] | None, grounded: bool, min_share: float, min_confidence: int, may_fail: int
) -> SftFilters:
    """The filters, checked. Raises `InputError` for a status that nothing has or a bound that cannot be."""
    known = [status for status in Status if status is not Status.FAILED]
    chosen = None if statuses is None else tuple(statuses)
    for status in chosen or ():
        if status not in known:
            raise InputError(f"no status {status!r} to keep: expected some of {', '.join(known)}")
    if not 0 <= min_share <= 1:
        raise InputError(f"the least vote share should be from 0 to 1, found {min_share}")
    if not 1 <= min_confidence <= 5:
        raise InputError(f"the least confidence should be from 1 to 5, found {min_confidence}")
    if may_fail < 0:
        raise InputError(f"the attributes that may fail a filter should be 0 or more, found {may_fail}")
    return SftFilters(
        statuses=None if chosen is None else tuple(map(Status, chosen)),
        grounded=grounded,
        min_share=min_share,
        min_confidence=min_confidence,
        may_fail=may_fail,
    )


def _prompt(taxonomy: Taxonomy, run: Mapping[str, Any], language: str | None) -> tuple[Prompt, str]:
    """The prompt of the rows, and its language as a later command in any folder may name it."""
    at_hand = built_in_languages()
    if language is not None:
        prompt = load_prompt(taxonomy, language)
        return prompt, language if language in at_hand else str(Path(language).resolve())
    for name in at_hand:
        prompt = load_prompt(taxonomy, name)
        if prompt.version == run["prompt_version"]:
            return prompt, name
    raise InputError(
        f"run {run['run_id']} was sampled with prompt {run['prompt_version']}, which no built-in language gives:"
        " name the language or folder of templates for the rows with --language"
    )


def _source(store: TraceStore, run: Mapping[str, Any], calibrator: str) -> SftSource:
    samplers = store.rows(
        "select sampler, count(*) from samples join records using (record_id) where run_id = ?"
        " group by 1 order by 1",
        (run["run_id"],),
    )
    return SftSource(
        run_id=run["run_id"],
        backend=run["backend"],
        model=run["model"],
        revision=run["revision"],
        samplers=dict(samplers),
        samples=run["samples"],
        vote=json.loads(run["settings"])["vote"],
        calibrator=calibrator,
        prompt_version=run["prompt_version"],
        created_at=run["created_at"],
    )


def _why(card: SftCard) -> str:
    parts = [f"{reason} {count:,}" for reason, count in card.dropped.items() if count]
    if held_out := card.files[FILES[VALIDATION]].rows:
        parts.append(f"validation {held_out:,}")
    return f"of {card.records:,} records, left out as {', '.join(parts)}"
