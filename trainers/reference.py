"""Reference confidence: C_ref of equation 7, from one offline pass of the SFT student, frozen for all of GRPO.

The pass is an ordinary run in the trace store with one sample a record: it goes on where it stopped, and `forget`
erases it like any other. What the paper leaves open:

* The sample is drawn at temperature 0: the student's own best answer, the same in every pass.
* C_ref is the confidence that the student states with it, NA included, without calibration and without a cap for
  evidence that is not in the record: calibrated confidences are what it was trained to state.
* An attribute without a readable answer has C_ref = 1: a student that cannot answer is not sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from cp_agents.backends.hf_files import find_model
from cp_agents.background import run_sync
from cp_agents.errors import InputError
from cp_agents.files import BadLine, parse_line, raw_lines, read_records
from cp_agents.profiler import Profiler
from cp_agents.runner import BatchReport, StoredRecord
from cp_agents.schema import read_user_id
from cp_agents.stores.student_card import StudentCard, check_whole, read_card
from cp_agents.stores.students import check_base, model_of, trained_prompt
from cp_agents.stores.students import student as find_student
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

LEAST = 1
"""C_ref of an attribute that the student gave no readable answer on."""


class ReferenceRow(TypedDict):
    """One user of the reference pass."""

    user_id: str
    record_id: int
    cues: str
    """The anonymised cue block that the student saw: GRPO's prompt is made from it."""
    c_ref: dict[str, int]
    """1..5 for every attribute of the taxonomy."""


def run_reference(
    store: str | Path | TraceStore,
    student: str | Path,
    users: str | Path | Iterable[Mapping[str, Any] | StoredRecord],
    *,
    run: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: int = 1200,
    token_budget: int = 3000,
    concurrency: int = 64,
    on_record: Callable[[BatchReport], None] = lambda _: None,
    **backend_options: Any,
) -> str:
    """Let the student answer once for every user; the run's id. The same call goes on where an earlier one stopped.

    `student` is a model folder, or a registered NAME or NAME@ID; `users` are records, a JSONL file of them, or
    `stored_records` of another run; `backend_options` are those of the transformers backend (device, dtype,
    max_rows). Raises `InputError` for users that cannot be read and for a student whose files or prompt are not as
    they were.
    """
    records = read_users(users)
    opened = store if isinstance(store, TraceStore) else TraceStore(store)
    try:
        folder, card = _folder_of(opened, student)
        profiler = Profiler(
            backend=f"transformers:{model_of(card.kind, card.base, folder)}",
            store=opened,
            samples=1,
            taxonomy=card.read_taxonomy(),
            language=card.language,
            run=run or f"reference-{folder.parent.name if folder.name == 'model' else folder.name}",
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            token_budget=token_budget,
            evidence_cap=None,
            extra=backend_options,
        )
        try:
            _, report = profiler.profile_many(
                records, concurrency=concurrency, calibrate=None, on_record=on_record
            )
        finally:
            run_sync(profiler.backend.aclose())
    finally:
        if opened is not store:
            opened.close()
    if report.failed:
        user, why = next(iter(report.failed.items()))
        raise InputError(
            f"{len(report.failed)} users have no reference confidence, {user!r} the first: {why}"
        )
    return report.run_id


def load_reference(store: TraceStore, run_id: str, student: str | Path) -> list[ReferenceRow]:
    """The users of a reference run with their C_ref, in order of arrival.

    `student` is the model folder, or NAME or NAME@ID, that GRPO is to start from. Raises `InputError` for a run of
    another student, prompt or taxonomy, one with several samples a record, and one that is not finished.
    """
    folder, card = _folder_of(store, student)
    row = store.run(run_id)
    run_id = row["run_id"]
    # What follows the dash is the type of the numbers that the pass was computed in.
    revision = find_model(model_of(card.kind, card.base, folder)).revision()
    if row["revision"].partition("-")[0] != revision:
        raise InputError(
            f"run {run_id} holds the reference confidence of another student ({row['backend']}) than {folder}:"
            " make one of this student with `train reference`"
        )
    for what, before, asked in (
        ("taxonomy", row["taxonomy_hash"], card.taxonomy_hash),
        ("prompt", row["prompt_version"], card.prompt_version),
    ):
        if before != asked:
            raise InputError(
                f"run {run_id} was made with {what} {before}, and the student was trained on {asked}"
            )
    if row["samples"] != 1:
        raise InputError(
            f"run {run_id} has {row['samples']} samples a record: reference confidence comes from one pass"
        )
    if row["finished_at"] is None:
        raise InputError(
            f"run {run_id} is not finished: `train reference` with the same settings goes on with it"
        )
    return reference_rows(store, run_id, card.read_taxonomy())


def reference_rows(store: TraceStore, run_id: str, taxonomy: Taxonomy) -> list[ReferenceRow]:
    """The users of a run with the confidence of its first sample, in order of arrival; nothing is checked."""
    names = taxonomy.names
    rows = {
        record_id: ReferenceRow(
            user_id=user_id, record_id=record_id, cues=cues, c_ref=dict.fromkeys(names, LEAST)
        )
        for record_id, user_id, cues in store.rows(
            "select record_id, user_id, cues from records r where run_id = ?"
            " and exists (select 1 from samples s where s.record_id = r.record_id) order by record_id",
            (run_id,),
        )
    }
    for record_id, attribute, confidence in store.rows(
        "select r.record_id, p.attribute, p.confidence"
        " from records r join samples s using (record_id) join predictions p using (sample_id)"
        " where r.run_id = ? and s.sample_index = 0 and p.outcome = 'ok'",
        (run_id,),
    ):
        rows[record_id]["c_ref"][attribute] = confidence
    return list(rows.values())


def _folder_of(store: TraceStore, student: str | Path) -> tuple[Path, StudentCard]:
    """A student's folder and card, all of it there and its prompt as it was."""
    folder = Path(student)
    if not folder.is_dir():
        if isinstance(student, Path) or "/" in student:
            raise InputError(f"no student at {student}: expected the folder of a trained model")
        chosen = find_student(store, student)
        chosen.check_files()
        folder = chosen.path
    card = read_card(folder)
    check_whole(folder, card.kind)
    check_base(card.kind, card.base, card.base_hash, str(folder))
    trained_prompt(card.read_taxonomy(), card.language, card.prompt_version, str(folder))
    return folder, card


def read_users(
    users: str | Path | Iterable[Mapping[str, Any] | StoredRecord], kept: str | Path | None = None
) -> list[dict[str, Any] | StoredRecord]:
    """The records of `users`, and of these only those that the JSONL file `kept` names, as `train filter` writes it.

    All of them or none: one that cannot be read would be missing from GRPO without a word. Raises `InputError`.
    """
    records: list[dict[str, Any] | StoredRecord] = []
    if isinstance(users, str | Path):
        for line in read_records(users):
            if isinstance(line, BadLine):
                raise InputError(line.message)
            records.append(line)
        if not records:
            raise InputError(f"{users} holds no user records")
    else:
        records = [user if isinstance(user, StoredRecord) else dict(user) for user in users]
    if kept is None:
        return records
    wanted = kept_user_ids(Path(kept))
    if missing := sorted(wanted - {_user_of(record) for record in records}):
        raise InputError(
            f"{len(missing)} of the {len(wanted)} users of {kept} have no record, {missing[0]!r} the first"
        )
    return [record for record in records if _user_of(record) in wanted]


def _user_of(record: Mapping[str, Any] | StoredRecord) -> str:
    return record.user_id if isinstance(record, StoredRecord) else str(record.get("user_id"))


def kept_user_ids(path: Path) -> set[str]:
    """The users that a JSONL file names, as `train filter` writes it. Raises `InputError` that names the line."""
    if not path.is_file():
        raise InputError(f"no file at {path}")
    found = set()
    for number, raw in raw_lines(path):
        try:
            line = parse_line(raw)
            found.add(read_user_id(line.get("user_id") if isinstance(line, dict) else None))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    if not found:
        raise InputError(f"{path} names no users")
    return found
