"""The registry of students: which model serves under a name, and what it may be used with.

`register` notes a finished folder, `promote` says that it may serve under its name. Nothing but these two makes a
model serve, and both read the folder: one that is half written, or whose weights are others than were registered, is
refused with one sentence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cp_agents.backends.hf_files import find_model
from cp_agents.calibration import Calibrator
from cp_agents.errors import InputError
from cp_agents.prompts.render import Prompt, load_prompt
from cp_agents.stores.student_card import StudentCard, check_whole, read_card, weights_hash
from cp_agents.stores.traces import TraceStore, now
from cp_agents.taxonomy import Taxonomy

_NAME = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class Student:
    """One registered model. Reading it from the store touches neither its folder nor torch."""

    student_id: str
    """12 hex digits over name, base, weights, prompt and taxonomy."""
    name: str
    base: str
    kind: Literal["full", "adapter"]
    path: Path
    weights_hash: str
    language: str
    prompt_version: str
    taxonomy: Taxonomy
    taxonomy_hash: str
    calibrator_id: str | None
    source_run: str | None
    training: dict[str, Any]
    """`stage`, `base_hash`, and what the trainer noted."""
    metrics: dict[str, Any]
    created_at: str
    promoted_at: str | None

    @property
    def label(self) -> str:
        """NAME@ID, which names this very model."""
        return f"{self.name}@{self.student_id}"

    @property
    def model(self) -> str:
        """The model as after `transformers:` or `vllm:`."""
        return model_of(self.kind, self.base, self.path)

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt it was trained on. Raises `InputError` where the templates have changed since."""
        return trained_prompt(self.taxonomy, self.language, self.prompt_version, f"student {self.label}")

    def check_files(self) -> None:
        """Raise `InputError` unless its folder holds, whole, what was registered. Reads every byte of the weights."""
        again = f"register it again where it is now: cp-agents students register {self.name} FOLDER"
        if not self.path.is_dir():
            raise InputError(f"student {self.label} should lie in {self.path}, which is not there; {again}")
        read_card(self.path)
        check_whole(self.path, self.kind)
        if (found := weights_hash(self.path)) != self.weights_hash:
            raise InputError(
                f"the weights in {self.path} are not those of student {self.label} (hash {found}, registered"
                f" {self.weights_hash}): if it was trained further, register it anew"
            )
        check_base(self.kind, self.base, self.training.get("base_hash", ""), self.label)


def trained_prompt(taxonomy: Taxonomy, language: str, version: str, who: str) -> Prompt:
    """The prompt in `language`. Raises `InputError` unless it is still the `version` that `who` was trained on."""
    found = load_prompt(taxonomy, language)
    if found.version != version:
        raise InputError(
            f"{who} was trained on prompt {version}, and {language} is now {found.version}:"
            " bring the templates back, or train it anew"
        )
    return found


def model_of(kind: str, base: str, folder: Path) -> str:
    """A student in `folder` as after `transformers:`: the folder, or BASE+FOLDER for an adapter."""
    return str(folder) if kind == "full" else f"{base}+{folder}"


def check_name(name: str) -> None:
    """Raise `InputError` for what cannot be a student's name."""
    if not _NAME.fullmatch(name):
        raise InputError(f"a student's name has letters, digits, '_', '.' and '-', found {name!r}")


def register(
    store: TraceStore,
    name: str,
    folder: str | Path,
    card: StudentCard | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    calibrator_id: str | None = None,
) -> str:
    """Note the finished model in `folder` under `name`; its id. It serves under the bare name once it is promoted.

    `card` is the one that lies in the folder, and is read from there if it is not given; `metrics` come on top of
    the card's. The same model again only changes where it lies, its metrics and its calibrator. Raises
    `InputError` for a folder that is half written or whose card says something else, for an adapter whose base has
    changed, and for a calibrator of another taxonomy; `StoreError` for one that the store lacks.
    """
    check_name(name)
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise InputError(f"no student at {folder}: expected the folder of a trained model")
    if folder.name.startswith("."):
        raise InputError(
            f"{folder} is still being written: a finished student's folder has a name without a dot"
        )
    on_disk = read_card(folder)
    if card is not None and card != on_disk:
        raise InputError(f"the card in {folder} is not the one that it was to be registered with")
    check_whole(folder, on_disk.kind)
    check_base(on_disk.kind, on_disk.base, on_disk.base_hash, name)
    taxonomy = on_disk.read_taxonomy()
    if taxonomy.hash != on_disk.taxonomy_hash:
        raise InputError(
            f"the card in {folder} does not fit its own taxonomy (hash {taxonomy.hash}, found {on_disk.taxonomy_hash})"
        )
    if calibrator_id is not None:
        calibrator = Calibrator.from_json(store.calibrator(calibrator_id), f"calibrator {calibrator_id}")
        calibrator.check(taxonomy, calibrator.vote_method)
    weights = weights_hash(folder)
    student_id = _student_id(name, on_disk, weights)
    row = {
        "student_id": student_id,
        "name": name,
        "base": _absolute(on_disk.base),
        "kind": on_disk.kind,
        "path": str(folder),
        "weights_hash": weights,
        "language": _absolute(on_disk.language),
        "prompt_version": on_disk.prompt_version,
        "taxonomy": json.dumps(on_disk.taxonomy, ensure_ascii=False),
        "taxonomy_hash": on_disk.taxonomy_hash,
        "calibrator_id": calibrator_id,
        "source_run": on_disk.source_run,
        "training": json.dumps(
            {**on_disk.training, "stage": on_disk.stage, "base_hash": on_disk.base_hash}, ensure_ascii=False
        ),
        "metrics": json.dumps({**on_disk.metrics, **(metrics or {})}, ensure_ascii=False),
        "created_at": now(),
    }
    with store.transaction() as conn:
        conn.execute(
            f"insert into students ({', '.join(row)}) values ({', '.join('?' * len(row))})"
            " on conflict (student_id) do update set path = excluded.path, metrics = excluded.metrics,"
            " training = excluded.training, calibrator_id = coalesce(excluded.calibrator_id, calibrator_id)",
            list(row.values()),
        )
    return student_id


def students(store: TraceStore, name: str | None = None) -> list[Student]:
    """All registered students, or those of one name, in the order in which they were registered."""
    where, parameters = ("where name = ?", [name]) if name is not None else ("", [])
    found = store.query(f"select * from students {where} order by created_at, rowid", parameters)
    return [_student(row) for row in found]


def student(store: TraceStore, spec: str) -> Student:
    """The student that `NAME` serves, which is the one promoted last, or the very one of `NAME@ID`.

    Raises `InputError` where there is none, with what there is.
    """
    name, at, student_id = spec.partition("@")
    of_name = students(store, name)
    if not of_name:
        known = ", ".join(sorted({s.name for s in students(store)})) or "none"
        raise InputError(f"no student {name!r} in the store {store.path} (students: {known})")
    if at:
        found = [s for s in of_name if s.student_id == student_id]
        if not found:
            ids = ", ".join(s.student_id for s in of_name)
            raise InputError(f"no student {spec!r} in the store {store.path} ({name} has: {ids})")
        return found[0]
    promoted = [s for s in of_name if s.promoted_at is not None]
    if not promoted:
        raise InputError(
            f"no student {name!r} is promoted: name one, as in {of_name[-1].label}, or promote it:"
            f" cp-agents students promote {of_name[-1].label}"
        )
    return max(promoted, key=lambda s: s.promoted_at or "")


def promote(store: TraceStore, name: str, student_id: str) -> None:
    """Let a registered student serve under its bare name from now on.

    Raises `InputError` where its files are not whole or not those that were registered, and where the prompt that it
    was trained on is no more.
    """
    chosen = student(store, f"{name}@{student_id}")
    chosen.check_files()
    _ = chosen.prompt
    stamp = datetime.now(UTC).isoformat(timespec="microseconds")  # two promotions in a second have an order
    with store.transaction() as conn:
        conn.execute("update students set promoted_at = ? where student_id = ?", (stamp, student_id))


def calibrator_of(store: TraceStore, chosen: Student) -> Calibrator | None:
    """The calibrator that was registered with a student; None where there is none."""
    if chosen.calibrator_id is None:
        return None
    return Calibrator.from_json(store.calibrator(chosen.calibrator_id), f"calibrator {chosen.calibrator_id}")


def _student_id(name: str, card: StudentCard, weights: str) -> str:
    base = card.base_hash or card.base  # a base that is moved is still the same
    parts = (name, base, weights, card.prompt_version, card.taxonomy_hash)
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]


def _absolute(name: str) -> str:
    """A folder's name as seen from everywhere; what is no path (en, smollm2, ORG/NAME) stays as it is."""
    is_path = len(Path(name).parts) > 1 and Path(name).is_dir()
    return str(Path(name).resolve()) if is_path else name


def check_base(kind: str, base: str, base_hash: str, who: str) -> None:
    """Raise `InputError` where an adapter's base is not to be found, or has other weights than it was trained on.

    Full weights need no base any more.
    """
    if kind == "full":
        return
    folder = find_model(base).folder
    if base_hash and weights_hash(folder) != base_hash:
        raise InputError(
            f"student {who} was trained on another base than {base} is now (the weights in {folder} have changed)"
        )


def _student(row: Mapping[str, Any]) -> Student:
    return Student(
        **{k: v for k, v in row.items() if k not in ("path", "taxonomy", "training", "metrics")},
        path=Path(row["path"]),
        taxonomy=Taxonomy.model_validate_json(row["taxonomy"]),
        training=json.loads(row["training"]),
        metrics=json.loads(row["metrics"]),
    )
