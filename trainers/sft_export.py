"""One pass over a stored run: the rows of an SFT export as they are decided, and what was counted on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from cp_agents.prompts.render import Prompt
from cp_agents.relabel import replay
from cp_agents.schema import NA, Evidence, Profile
from cp_agents.stores.traces import TraceStore, unpack_evidence
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers import sft_rows
from cp_agents.trainers.data_card import SftFilters, TagCount
from cp_agents.trainers.sft_rows import TRAIN, VALIDATION, Target

FILES = {TRAIN: "train.jsonl", VALIDATION: "validation.jsonl"}
"""File names by side."""
FREE_TEXT = "(free text)"
"""In the card's class balance: any value of an open attribute."""


class _Record(NamedTuple):
    record_id: int
    cues: str
    profile: Profile


class SftExport:
    """One pass over a run: writes rows as they are decided, and counts."""

    def __init__(
        self, store: TraceStore, run_id: str, taxonomy: Taxonomy, prompt: Prompt, filters: SftFilters,
        *, reasoning: bool, evidence: bool, users: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        self._store, self._run_id, self._prompt, self._filters = store, run_id, prompt, filters
        self._reasoning, self._evidence = reasoning, evidence
        self._known: set[bytes] = set()
        found = store.rows(
            "select user_id, record_id, p.record_id is not null from records left join profiles p using (record_id)"
            " where run_id = ?",
            (run_id,),
        )
        found = [row for row in found if users is None or row[0] in users]
        self.records = len(found)
        self.finished: dict[str, int] = {user: record_id for user, record_id, done in found if done}
        """Record ids by user."""
        self.calibrator = ""
        self.dropped = dict.fromkeys(sft_rows.REASONS, 0)
        self.dropped[sft_rows.UNFINISHED] = self.records - len(self.finished)
        self.failing = dict.fromkeys(taxonomy.names, 0)
        self.gold = self.ungrounded = 0
        self.balance = {
            a.name: {tag: TagCount() for tag in ((FREE_TEXT, NA) if a.open else a.names)}
            for a in taxonomy.attributes
        }

    def write(self, folder: Path, seed: int, validation: float) -> None:
        """Write the rows of both sides, each user's on the side that id and seed say."""
        with ExitStack() as stack:
            out: dict[str, TextIO] = {
                side: stack.enter_context((folder / name).open("w", encoding="utf-8", newline="\n"))
                for side, name in FILES.items()
            }
            for profile in replay(self._store, self._run_id):
                self.calibrator = profile.calibrator
                if profile.user_id not in self.finished:
                    continue
                record_id = self.finished[profile.user_id]
                found = _Record(record_id, self._store.record(record_id).cues, profile)
                reason = self._reason_to_drop(profile)
                row = self._row(found) if reason is None else reason
                if isinstance(row, str):
                    self.dropped[row] += 1
                    continue
                side = sft_rows.split_of(profile.user_id, seed, validation)
                out[side].write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
                self._count(row, side)

    def _reason_to_drop(self, profile: Profile) -> str | None:
        if sft_rows.has_failed(profile):
            return sft_rows.FAILED
        failures = dict(sft_rows.failures(profile, self._filters))
        for name in failures:
            self.failing[name] += 1
        return sft_rows.reason_to_drop(failures.values(), self._filters)

    def _row(self, record: _Record) -> dict[str, Any] | str:
        """The row, or why there is none."""
        targets, ungrounded = self._targets(record)
        thought = self._thought(record.record_id, targets) if self._reasoning else ""
        if self._reasoning and not thought:
            return sft_rows.NO_REASONING
        messages = [message.as_dict() for message in self._prompt.messages(record.cues)]
        answer = [{"role": "assistant", "content": sft_rows.completion(targets, thought)}]
        digest = hashlib.sha256(json.dumps([messages, answer]).encode()).digest()
        if digest in self._known:
            return sft_rows.DUPLICATE
        self._known.add(digest)
        self.ungrounded += ungrounded
        return {
            "user_id": record.profile.user_id,
            "prompt": messages,
            "completion": answer,
            "tags": {name: t.tag for name, t in targets.items()},
            "confidence": {name: t.confidence for name, t in targets.items()},
            "gold": [name for name, t in targets.items() if t.gold],
        }

    def _targets(self, record: _Record) -> tuple[dict[str, Target], int]:
        """What to teach of each attribute, and how many pieces of evidence stand nowhere in the record."""
        targets: dict[str, Target] = {}
        ungrounded = 0
        for name, value in record.profile.attributes.items():
            evidence = value.evidence if self._evidence else []
            if self._evidence and sft_rows.is_gold(value) and value.tag != value.voted:
                evidence = self._evidence_for(record, name, value.tag)
            targets[name] = sft_rows.target(value, evidence)
            if targets[name].tag != NA:
                ungrounded += sum(e.start is None for e in evidence)
        return targets, ungrounded

    def _evidence_for(self, record: _Record, attribute: str, tag: str) -> list[Evidence]:
        """What the most confident sample that named a reviewer's tag had quoted; nothing where none did."""
        found = self._store.rows(
            "select p.evidence from samples s join predictions p using (sample_id) where s.record_id = ?"
            " and p.attribute = ? and p.tag = ? and p.outcome = 'ok'"
            " order by p.confidence desc, s.sample_index limit 1",
            (record.record_id, attribute, tag),
        )
        return unpack_evidence(found[0][0], record.cues) if found else []

    def _thought(self, record_id: int, targets: Mapping[str, Target]) -> str:
        """The reasoning of the sample that agrees most with what is taught; empty where none is stored."""
        thoughts: dict[int, str] = dict(
            self._store.rows(
                "select sample_index, reasoning from samples where record_id = ? and trim(reasoning) <> ''",
                (record_id,),
            )
        )
        tags = {name: t.tag for name, t in targets.items()}
        best = sft_rows.best_sample(self._store.predictions(record_id), tags, thoughts)
        return "" if best is None else sft_rows.clean_thought(thoughts[best])

    def _count(self, row: Mapping[str, Any], side: str) -> None:
        self.gold += len(row["gold"])
        for name, tag in row["tags"].items():
            balance = self.balance[name]
            count = balance[tag if tag in balance else FREE_TEXT]
            setattr(count, side, getattr(count, side) + 1)
