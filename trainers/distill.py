"""The whole road: a teacher's run in, a student out that takes its place.

    export -> sft -> filter -> reference -> grpo -> calibrate -> compare -> promote

OUT/distill.json notes every stage that is done with what it found, so the same call goes on where an earlier one was
stopped, and each stage goes on from its own checkpoints. Every stage is also a verb of its own; this is their order
and what is handed on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from cp_agents.background import run_sync
from cp_agents.errors import InputError
from cp_agents.evaluation.compare import compare_runs
from cp_agents.evaluation.loading import Gold, load_gold
from cp_agents.files import whole_file
from cp_agents.profiler import Profiler
from cp_agents.relabel import stored_run
from cp_agents.runner import StoredRecord, stored_records
from cp_agents.stores.student_card import weights_hash
from cp_agents.stores.students import promote, register, student
from cp_agents.stores.traces import TraceStore
from cp_agents.trainers.distill_checks import check_road, read_state
from cp_agents.trainers.distill_config import FREE, STAGES, DistillSettings, Stage, grpo_of, sft_of
from cp_agents.trainers.distill_verdict import Facts, measured, verdict
from cp_agents.trainers.reference import run_reference
from cp_agents.trainers.sft_data import export_sft
from cp_agents.trainers.sft_rows import VALIDATION, split_of
from cp_agents.trainers.user_filter import filter_users

STATE = "distill.json"
COMPARISON = "comparison.json"


class Distilled(NamedTuple):
    """Where a road ended."""

    student: str
    """NAME@ID."""
    promoted: bool
    why: str
    """Why it was promoted or not, in one sentence."""
    stages: dict[str, Facts]
    """What each stage found."""


def distill(
    settings: DistillSettings, say: Callable[[str], None] = lambda _: None, stream: TextIO | None = None
) -> Distilled:
    """Go the road from where it is. `say` is told what each stage found; training shows its progress on `stream`.

    Raises `InputError` for an OUT that holds a road with other settings, and what the stages raise.
    """
    with TraceStore(settings.store, must_exist=True) as store:
        return _Road(settings, store, say, stream).go()


class _Road:
    def __init__(
        self, settings: DistillSettings, store: TraceStore, say: Callable[[str], None], stream: TextIO | None
    ) -> None:
        self._settings, self._store, self._say, self._stream = settings, store, say, stream
        self._out = settings.out
        self._run, self._taxonomy, _ = stored_run(store, settings.run)
        self._gold: Gold | None = None if settings.gold is None else load_gold(settings.gold)
        self._stages = self._read()
        if not self._stages:
            check_road(settings, store, self._run, self._taxonomy, self._users())
        self._write(self._stages)

    def go(self) -> Distilled:
        for stage in STAGES:
            if stage not in self._settings.stages:
                self._say(f"{stage}: skipped")
            elif stage in self._stages:
                self._say(f"{stage}: done before ({_words(self._stages[stage])})")
            else:
                found = getattr(self, f"_{stage}")()
                self._note(stage, found)
                self._say(f"{stage}: {_words(found)}")
        last = self._stages.get("promote", {})
        return Distilled(
            student=self._student(),
            promoted=bool(last.get("promoted")),
            why=last.get("why", "the stage promote was skipped"),
            stages=self._stages,
        )

    # --- what is done ---------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Facts]:
        """The stages that are done. Raises `InputError` for a road with other settings, and for no road."""
        file = self._out / STATE
        if not file.is_file():
            if self._out.exists() and not (self._out.is_dir() and _is_unused(self._out)):
                raise InputError(f"{self._out} holds no road to a student: expected a new or empty folder")
            return {}
        state = read_state(file)
        for field, value in self._wanted.items():
            if state["settings"].get(field) != value:
                raise InputError(
                    f"{file} was begun with {field} = {state['settings'].get(field)!r} and is asked to go on with"
                    f" {value!r}: give the same settings, or another folder"
                )
        if "grpo" in self._settings.stages and state["stages"].get("export", {}).get("rl_users") == 0:
            raise InputError(
                f"{file} was begun without grpo, so SFT has learnt from all users and none is left for it: take another"
                " folder"
            )
        # What comes after a stage that was skipped then and is wanted now, or the other way, has to be done again.
        done: dict[str, Facts] = {}
        for stage in STAGES:
            if (stage in self._settings.stages) != (stage in state["stages"]):
                break
            if stage in state["stages"]:
                done[stage] = state["stages"][stage]
        done.pop("promote", None)  # cheap, and what it goes by may have changed
        return done

    @property
    def _wanted(self) -> dict[str, Any]:
        """The settings that a road cannot change on its way."""
        return self._settings.model_dump(mode="json", exclude=set(FREE))

    def _note(self, stage: Stage, found: Facts) -> None:
        self._stages[stage] = found
        self._write(self._stages)

    def _write(self, stages: Mapping[str, Facts]) -> None:
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {self._out} ({error.strerror})") from None
        with whole_file(self._out / STATE) as file:
            state = {"settings": self._wanted, "stages": stages}
            file.write(json.dumps(state, indent=1, ensure_ascii=False) + "\n")

    # --- users ----------------------------------------------------------------------------------------------

    def _users(self) -> dict[str, set[str]]:
        """User ids by what they are for: held_out, rl, sft."""
        settings = self._settings
        parts: dict[str, set[str]] = {"held_out": set(), "rl": set(), "sft": set()}
        for record in stored_records(self._store, self._run):
            if split_of(record.user_id, settings.seed, settings.validation) == VALIDATION:
                parts["held_out"].add(record.user_id)
            else:
                is_rl = "grpo" in settings.stages and _unit(record.user_id, settings.seed) < settings.rl_share
                parts["rl" if is_rl else "sft"].add(record.user_id)
        return parts

    def _records(self, users: set[str]) -> list[StoredRecord]:
        found = stored_records(self._store, self._run, users)
        if not found:
            raise InputError(f"run {self._run} has too few users: none is left for this stage")
        return found

    # --- stages ---------------------------------------------------------------------------------------------

    def _export(self) -> Facts:
        settings, users = self._settings, self._users()
        data = export_sft(
            self._store, self._run, self._out / "data", users=users["sft"] | users["held_out"],
            language=settings.language, seed=settings.seed, validation=settings.validation,
        )  # fmt: skip
        rows = {name: seal.rows for name, seal in data.card.files.items()}
        return {"rows": rows, "rl_users": len(users["rl"])}

    def _sft(self) -> Facts:
        from cp_agents.trainers.sft import train_sft

        result = train_sft(sft_of(self._settings), self._stream)
        shown = ("parse_rate", "macro_f1", "constant_macro_f1", "gold_macro_f1")
        return {
            "steps": result.steps,
            **{name: result.metrics[name] for name in shown if name in result.metrics},
        }

    def _filter(self) -> Facts:
        settings = self._settings
        found = filter_users(
            self._store, self._run, self._out / "rl_users.jsonl", users=self._users()["rl"],
            shape=settings.shape, rule=settings.rule, keep=settings.keep, seed=settings.seed, gold=self._gold,
        )  # fmt: skip
        return {"before": found.before, "after": found.after, "groups at a disadvantage": len(found.flagged)}

    def _reference(self) -> Facts:
        model = self._out / "sft" / "model"
        run = run_reference(
            self._store, model, self._records(self._users()["rl"]),
            run=f"{self._settings.name}-reference-{self._tag(model)}", max_tokens=self._settings.max_tokens,
        )  # fmt: skip
        return {"run": run}

    def _grpo(self) -> Facts:
        from cp_agents.trainers.grpo import train_grpo

        kept = self._out / "rl_users.jsonl" if "filter" in self._stages else None
        result = train_grpo(
            grpo_of(self._settings, reference=self._stages["reference"]["run"], users=kept), self._stream
        )
        shown = ("reward_sum", "parse_rate", "na_rate", "majority_ratio")
        facts: Facts = {"steps": result.steps}
        facts |= {name: round(result.metrics[name], 4) for name in shown if name in result.metrics}
        return facts if result.stopped_by is None else {**facts, "stopped": result.stopped_by}

    @property
    def _model(self) -> Path:
        """What the road has led to: the model of GRPO, or that of SFT where GRPO was skipped or stopped by a rule."""
        trained_on = "grpo" in self._stages and "stopped" not in self._stages["grpo"]
        return self._out / ("grpo" if trained_on else "sft") / "model"

    def _tag(self, model: Path) -> str:
        """Of a run of `model` in this road: two roads of one name may share a store, and even their weights."""
        parts = (json.dumps(self._wanted, sort_keys=True), weights_hash(model))
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:6]

    def _student(self) -> str:
        """NAME@ID of the model, registered where it is not yet."""
        known = self._stages.get("calibrate", {}).get("student")
        return known or f"{self._settings.name}@{register(self._store, self._settings.name, self._model)}"

    def _calibrate(self) -> Facts:
        settings, spec = self._settings, self._student()
        profiler = Profiler(
            backend=f"student:{spec}", store=self._store, taxonomy=self._taxonomy, samples=settings.samples,
            max_tokens=settings.max_tokens, seed=settings.seed,
            run=f"{settings.name}-{self._tag(self._model)}",
        )  # fmt: skip
        try:
            _, report = profiler.profile_many(self._records(self._users()["held_out"]), concurrency=64)
        finally:
            run_sync(profiler.backend.aclose())  # the model's memory
        calibrator = None if report.calibrator is None else report.calibrator.id
        register(self._store, settings.name, self._model, calibrator_id=calibrator)
        return {"student": spec, "run": report.run_id, "users": report.done, "calibrator": calibrator}

    def _compare(self) -> Facts:
        run = self._stages["calibrate"]["run"]
        compared = compare_runs(self._store, self._run, run, gold=self._gold)
        facts = measured(self._store, self._run, run, compared)
        with whole_file(self._out / COMPARISON) as file:
            file.write(compared.model_dump_json(indent=1) + "\n")
        register(
            self._store, self._settings.name, self._model,
            metrics={f"held_out/{name}": value for name, value in facts.items()},
            calibrator_id=self._stages["calibrate"]["calibrator"],
        )  # fmt: skip
        return facts

    def _promote(self) -> Facts:
        spec, mode = self._student(), self._settings.promote
        holds, why = verdict(self._stages.get("compare"), self._settings)
        if mode == "always" or (mode == "if-holds" and holds):
            promote(self._store, self._settings.name, student(self._store, spec).student_id)
            return {"promoted": True, "why": why if holds else f"promoted all the same: {why}"}
        return {"promoted": False, "why": why if not holds else "it holds, and was not to be promoted"}


def _is_unused(folder: Path) -> bool:
    """Nothing there but what an interrupted `whole_file` leaves."""
    return all(entry.name.startswith(f".{STATE}.") for entry in folder.iterdir())


def _unit(user_id: str, seed: int) -> float:
    """0..1 by a hash of its own, so that the part of a user does not hang on being held out."""
    digest = hashlib.sha256(f"rl\x1f{seed}\x1f{user_id}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _words(facts: Mapping[str, Any]) -> str:
    def shown(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3f}"
        if isinstance(value, dict):
            return "; ".join(f"{k} {shown(v)}" for k, v in value.items())
        return str(value)

    return ", ".join(f"{name} {shown(value)}" for name, value in facts.items())
