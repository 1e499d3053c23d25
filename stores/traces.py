"""The trace store: one SQLite file that holds every sample asked for, and all that followed from it.

WAL mode, one connection behind a lock, each sample committed when it lands. The tables are meant to be read
with Datasette or `sqlite-utils`; `migrations.py` documents every column.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlite_utils import Database

from cp_agents.cues import AssembledCues
from cp_agents.errors import ErrorType, StoreError
from cp_agents.schema import Completion, Evidence, Match, Outcome, Prediction, Profile, TagProbability
from cp_agents.stores.migrations import migrate

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredSample:
    """What the graph needs to know of a stored sample."""

    sample_id: int
    index: int
    outcome: Outcome
    error_type: ErrorType | None

    @property
    def is_final(self) -> bool:
        """Whether a resumed run keeps it: an answer, or an error that asking again would not mend."""
        return self.error_type is None or self.error_type.is_final


class RecordRow(NamedTuple):
    """A stored record."""

    user_id: str
    cues: str
    """The anonymised cue block."""
    self_reported: dict[str, str]


class NewSample(NamedTuple):
    """A sample that has landed, read and ready to be stored."""

    completion: Completion
    outcome: Outcome
    predictions: Mapping[str, Prediction]
    cache_key: str | None = None
    """Under which later requests find it; None keeps it out of the cache."""
    from_cache: int | None = None
    """The stored sample that it repeats; no call was made for it."""


class VoteRow(NamedTuple):
    """One attribute's vote as it is stored."""

    attribute: str
    method: str
    tag: str | None
    score: float
    share: float
    runner_up: str | None
    margin: float
    survivors: int


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def cues_hash(cues: str) -> str:
    """Tells cue blocks apart without keeping them."""
    return hashlib.sha256(cues.encode()).hexdigest()


def pack_evidence(evidence: Iterable[Evidence]) -> str | None:
    """Evidence as it is stored: `[start, end, match]` for what stands in the cues, `[words]` for what does not."""
    packed = [[e.text] if e.start is None else [e.start, e.end, e.match.value] for e in evidence]
    return json.dumps(packed, ensure_ascii=False, separators=(",", ":")) if packed else None


def unpack_evidence(packed: str | None, cues: str) -> list[Evidence]:
    """The inverse of `pack_evidence`: located evidence is quoted from the cues themselves."""
    found = []
    for item in json.loads(packed) if packed else ():
        if len(item) == 1:
            found.append(Evidence(text=item[0]))
        else:
            start, end, match = item
            text, source = cues[start:end], _source_at(cues, start)
            found.append(Evidence(text=text, source=source, start=start, end=end, match=Match(match)))
    return found


def _source_at(cues: str, position: int) -> str:
    """The heading above a position; item lines never start with a bracket."""
    heading = cues.rfind("\n[", 0, position) + 1  # the first heading has no line break before it
    return cues[heading + 1 : cues.index("]", heading)]


class TraceStore:
    """A trace store at `path`; ":memory:" keeps it in memory. Safe to use from several threads.

    Raises `StoreError` when the file is no SQLite database, is no cp-agents store or is of a newer version.
    """

    def __init__(self, path: str | Path = ":memory:", *, must_exist: bool = False) -> None:
        self.path = str(path)
        on_disk = self.path != ":memory:"
        if must_exist and on_disk and not Path(path).is_file():
            raise StoreError(f"no trace store at {path}")
        if on_disk and not Path(path).parent.is_dir():
            raise StoreError(f"cannot open the store {path}: the folder {Path(path).parent} does not exist")
        self._lock = threading.RLock()
        try:
            self._conn = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
            self.db = Database(self._conn)
            if on_disk:
                self._conn.execute("pragma journal_mode = wal")
            self._conn.execute("pragma synchronous = normal")
            # Deleted rows are overwritten, so that `forget` leaves no byte behind in free pages.
            self._conn.execute("pragma secure_delete = on")
            migrate(self.db, self.path)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"cannot open the store {path}: {error}") from None
        self._depth = 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._conn.close()

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, committed at the end of the outermost block."""
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._conn.execute("begin immediate")
                yield self._conn
                if self._depth == 1:
                    self._conn.execute("commit")
            except BaseException:
                if self._depth == 1 and self._conn.in_transaction:
                    self._conn.execute("rollback")
                raise
            finally:
                self._depth -= 1

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a read query as dicts."""
        with self._lock:
            cursor = self._conn.execute(sql, parameters)
            names = [c[0] for c in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a read query as tuples."""
        with self._lock:
            return self._conn.execute(sql, parameters).fetchall()

    def columns(
        self, sql: str, parameters: Sequence[Any] = (), size: int = 20_000
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Like `rows`, turned on its side and a part at a time: one tuple a column. Empty parts are left out."""
        with self._lock:
            cursor = self._conn.execute(sql, parameters)
        while True:
            with self._lock:
                part = cursor.fetchmany(size)
            if not part:
                return
            yield list(zip(*part, strict=True))

    # -- runs ---------------------------------------------------------------------------------------------

    def open_run(self, name: str, fingerprint: str, columns: Row) -> str:
        """The id of the run `name` with this sampling fingerprint, made if there is none.

        A name is used again only by a run that samples the same thing; with other sampling settings (another
        endpoint, say) the run is stored as `name-2`, so that nothing that was paid for is overwritten and no
        stale answer is served. `name-2`, given as a name, goes on with that run.
        """
        with self.transaction() as conn:
            found = conn.execute(
                "select run_id from runs where (name = ? or run_id = ?) and fingerprint = ?"
                " order by run_id = ? desc limit 1",
                (name, name, fingerprint, name),
            ).fetchone()
            if found:
                # What is decided after sampling (vote, tau, review) may be another this time.
                conn.execute("update runs set settings = ? where run_id = ?", (columns["settings"], found[0]))
                return str(found[0])
            taken = {row[0] for row in conn.execute("select run_id from runs")}
            run_id, suffix = name, 2
            while run_id in taken:
                run_id, suffix = f"{name}-{suffix}", suffix + 1
            row = {"run_id": run_id, "name": name, "fingerprint": fingerprint, **columns, "created_at": now()}
            _insert(conn, "runs", row)
            return run_id

    def finish_run(self, run_id: str, calibrator_id: str | None) -> None:
        """Note that every record of the run is done, and which calibrator spoke."""
        with self.transaction() as conn:
            conn.execute(
                "update runs set finished_at = ?, calibrator_id = ? where run_id = ?",
                (now(), calibrator_id, run_id),
            )

    def run(self, run_id: str | None = None) -> dict[str, Any]:
        """One run's row; the newest without an id. Raises `StoreError` where there is none."""
        where, parameters = ("where run_id = ?", [run_id]) if run_id else ("", [])
        found = self.query(f"select * from runs {where} order by rowid desc limit 1", parameters)
        if not found:
            known = ", ".join(row[0] for row in self.rows("select run_id from runs order by rowid")) or "none"
            raise StoreError(
                f"no run {run_id!r} in the store {self.path} (runs: {known})"
                if run_id
                else f"the store {self.path} holds no run"
            )
        return found[0]

    # -- records ------------------------------------------------------------------------------------------

    def put_record(self, run_id: str, user_id: str, cues: AssembledCues, thread_id: str | None = None) -> int:
        """The id of the user's record in this run. A record whose cues have changed is sampled anew.

        Every `thread_id` (LangGraph's) is kept: each may have a checkpoint that holds the user's words.
        """
        with self.transaction() as conn:
            record_id = self._put_record(conn, run_id, user_id, cues)
            if thread_id is not None:
                conn.execute("update records set thread_id = ? where record_id = ?", (thread_id, record_id))
                conn.execute("insert or ignore into record_threads values (?, ?)", (record_id, thread_id))
            return record_id

    @staticmethod
    def _put_record(conn: sqlite3.Connection, run_id: str, user_id: str, cues: AssembledCues) -> int:
        found = conn.execute(
            "select record_id, cues from records where run_id = ? and user_id = ?", (run_id, user_id)
        ).fetchone()
        if found is None:
            cursor = conn.execute(
                "insert into records (run_id, user_id, cues, tokens, self_reported, dropped, created_at)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (run_id, user_id, *_cue_columns(cues), now()),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid
        record_id = int(found[0])
        if found[1] != cues.text:
            delete_samples(conn, record_id)
            conn.execute(
                "update records set cues = ?, tokens = ?, self_reported = ?, dropped = ?, asked = null,"
                " stop_reason = null where record_id = ?",
                (*_cue_columns(cues), record_id),
            )
        return record_id

    def record(self, record_id: int) -> RecordRow:
        """A record. Raises `StoreError` where there is none."""
        found = self.rows(
            "select user_id, cues, self_reported from records where record_id = ?", (record_id,)
        )
        if not found:
            raise StoreError(f"no record {record_id} in the store {self.path} (was the user forgotten?)")
        user_id, cues, reported = found[0]
        return RecordRow(user_id, cues, json.loads(reported))

    def assembled(self, record_id: int) -> tuple[str, AssembledCues]:
        """A record's user and its cues as they were assembled. Raises `StoreError` where there is none."""
        user_id, text, reported = self.record(record_id)
        [(tokens, dropped)] = self.rows(
            "select tokens, dropped from records where record_id = ?", (record_id,)
        )
        return user_id, AssembledCues(
            text=text, tokens=tokens, self_reported=reported, dropped=json.loads(dropped)
        )

    def finished(self, run_id: str, samples: int) -> dict[str, str]:
        """Users whose record has a profile of `samples` samples, or as many as adaptive sampling asked for, that are
        all final; with a hash of its cues.
        """
        retryable = [kind.value for kind in ErrorType if not kind.is_final]
        marks = ",".join("?" * len(retryable))
        found = self.rows(
            "select r.user_id, r.cues from records r join profiles p using (record_id) where r.run_id = ?"
            " and coalesce(r.asked, ?) <= (select count(*) from samples s where s.record_id = r.record_id"
            f" and coalesce(s.error_type, '') not in ({marks}))",
            (run_id, samples, *retryable),
        )
        return {user_id: cues_hash(cues) for user_id, cues in found}

    def put_stop(self, record_id: int, asked: int | None, reason: str | None) -> None:
        """Note after how many samples adaptive sampling stopped, and why; None for both where it drew all."""
        with self.transaction() as conn:
            conn.execute(
                "update records set asked = ?, stop_reason = ? where record_id = ?",
                (asked, reason, record_id),
            )

    # -- samples ------------------------------------------------------------------------------------------

    def samples(self, record_id: int) -> dict[int, StoredSample]:
        """The record's stored samples by index."""
        found = self.rows(
            "select sample_id, sample_index, outcome, error_type from samples where record_id = ?",
            (record_id,),
        )
        return {
            index: StoredSample(sample_id, index, Outcome(outcome), ErrorType(error) if error else None)
            for sample_id, index, outcome, error in found
        }

    def add_samples(
        self, record_id: int, prompt_hash: str, samples: Iterable[NewSample]
    ) -> list[StoredSample]:
        """Commit samples with their predictions, all in one transaction; each replaces one of the same index.

        A sample without an error is also entered in the cache under its key.
        """
        stamp = now()
        stored, keys = [], []
        with self.transaction() as conn:
            known = dict(
                conn.execute("select sample_index, sample_id from samples where record_id = ?", (record_id,))
            )
            for sample in samples:
                completion, usage = sample.completion, sample.completion.usage
                if (old := known.get(completion.index)) is not None:
                    for table in ("cache", "predictions", "samples"):
                        conn.execute(f"delete from {table} where sample_id = ?", (old,))
                error = completion.error_type
                sample_id = conn.execute(
                    "insert into samples (record_id, sample_index, sampler, prompt_hash, outcome, finish_reason,"
                    " error_type, error_message, text, reasoning, prompt_tokens, completion_tokens, cached_tokens,"
                    " reasoning_tokens, usage_estimated, latency_s, cost_usd, from_cache, created_at)"
                    " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        record_id,
                        completion.index,
                        completion.sampler,
                        prompt_hash,
                        sample.outcome.value,
                        completion.finish_reason,
                        error.value if error else None,
                        completion.error_message,
                        completion.text,
                        completion.reasoning or None,
                        usage.prompt_tokens or None,
                        usage.completion_tokens or None,
                        usage.cached_tokens or None,
                        usage.reasoning_tokens or None,
                        1 if usage.estimated else None,
                        round(completion.latency_s, 4),
                        completion.cost_usd,
                        sample.from_cache,
                        stamp,
                    ),
                ).lastrowid
                assert sample_id is not None
                conn.executemany(
                    "insert into predictions (sample_id, attribute, outcome, tag, confidence, evidence, probability)"
                    " values (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            sample_id,
                            name,
                            p.outcome.value,
                            p.tag,
                            p.confidence,
                            pack_evidence(p.evidence),
                            p.probability,
                        )
                        for name, p in sample.predictions.items()
                    ],
                )
                known[completion.index] = sample_id
                if sample.cache_key is not None and error is None:
                    keys.append((sample.cache_key, sample_id))
                stored.append(StoredSample(sample_id, completion.index, sample.outcome, error))
            # The later one: an answer is drawn again where the earlier one lacks its probabilities.
            conn.executemany("insert or replace into cache (key, sample_id) values (?, ?)", keys)
        return stored

    def cached(self, keys: Sequence[str]) -> dict[str, tuple[int, Completion]]:
        """Stored answers by cache key: `(sample_id, completion)`; indices are the stored ones."""
        marks = ",".join("?" * len(keys))
        found = self.query(
            f"select c.key, s.* from cache c join samples s using (sample_id) where c.key in ({marks})",
            list(keys),
        )
        if not found:
            return {}
        marks = ",".join("?" * len(found))
        scored = self.scored_tags(f"sample_id in ({marks})", [row["sample_id"] for row in found])
        return {row["key"]: (row["sample_id"], completion_of(row, scored)) for row in found}

    def scored_tags(self, where: str, parameters: Sequence[Any] = ()) -> dict[int, dict[str, TagProbability]]:
        """By sample and attribute, the tags whose probability was stored; `where` is about samples and records."""
        scored: dict[int, dict[str, TagProbability]] = {}
        for sample_id, attribute, tag, probability in self.rows(
            "select sample_id, attribute, tag, probability"
            " from records join samples using (record_id) join predictions p using (sample_id)"
            f" where {where} and p.outcome = 'ok' and probability is not null",
            parameters,
        ):
            scored.setdefault(sample_id, {})[attribute] = TagProbability(tag, probability)
        return scored

    def predictions(self, record_id: int) -> list[tuple[int, str, str, str, int]]:
        """`(sample_index, sampler, attribute, tag, confidence)` of a record's usable answers."""
        return self.rows(
            "select s.sample_index, s.sampler, p.attribute, p.tag, p.confidence"
            " from samples s join predictions p using (sample_id) where s.record_id = ? and p.outcome = 'ok'",
            (record_id,),
        )

    def probabilities(self, record_id: int) -> dict[tuple[int, str], float]:
        """By `(sample_index, attribute)`, what the model gave the tags of a record's usable answers; where known."""
        found = self.rows(
            "select s.sample_index, p.attribute, p.probability from samples s join predictions p using (sample_id)"
            " where s.record_id = ? and p.outcome = 'ok' and p.probability is not null",
            (record_id,),
        )
        return {(index, attribute): probability for index, attribute, probability in found}

    def evidence(self, wanted: Iterable[tuple[int, int, str]]) -> list[str | None]:
        """Packed evidence for each `(record_id, sample_index, attribute)`, None where there is none."""
        found = self.rows(
            "select p.evidence from json_each(?) w"
            " left join samples s on s.record_id = w.value ->> 0 and s.sample_index = w.value ->> 1"
            " left join predictions p on p.sample_id = s.sample_id and p.attribute = w.value ->> 2"
            " order by w.key",
            (json.dumps(list(wanted)),),
        )
        return [row[0] for row in found]

    # -- votes and profiles -------------------------------------------------------------------------------

    def put_profile(self, record_id: int, votes: Iterable[VoteRow], profile: Profile) -> None:
        """Store what was decided of a record, over what was decided before. Reviews are kept elsewhere."""
        self.put_profiles([(record_id, votes, profile)])

    def put_profiles(self, decided: Iterable[tuple[int, Iterable[VoteRow], Profile]]) -> None:
        """Like `put_profile`, many records in one transaction."""
        stamp = now()
        with self.transaction() as conn:
            for record_id, votes, profile in decided:
                conn.executemany(
                    "insert or replace into votes values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(record_id, *vote) for vote in votes],
                )
                body = json.dumps(profile.to_json()["profile"], ensure_ascii=False, separators=(",", ":"))
                conn.execute(
                    "insert or replace into profiles values (?, ?, ?, ?)",
                    (record_id, profile.calibrator, body, stamp),
                )

    def profiles(self, run_id: str) -> Iterator[tuple[int, Profile]]:
        """`(record_id, profile)` of every finished record of a run, in order of arrival."""
        found = self.rows(
            "select r.record_id, r.user_id, p.calibrator, p.profile from profiles p join records r using (record_id)"
            " where r.run_id = ? order by r.record_id",
            (run_id,),
        )
        for record_id, user_id, calibrator, body in found:
            yield (
                record_id,
                Profile(user_id=user_id, attributes=json.loads(body), calibrator=calibrator, run_id=run_id),
            )

    def profile(self, record_id: int) -> Profile | None:
        """One record's stored profile."""
        found = self.rows(
            "select r.run_id, r.user_id, p.calibrator, p.profile from profiles p join records r using (record_id)"
            " where record_id = ?",
            (record_id,),
        )
        if not found:
            return None
        run_id, user_id, calibrator, body = found[0]
        return Profile(user_id=user_id, attributes=json.loads(body), calibrator=calibrator, run_id=run_id)

    # -- calibrators --------------------------------------------------------------------------------------

    def put_calibrator(self, calibrator_id: str, kind: str, body: Row, run_id: str | None) -> None:
        """Keep a calibrator (its JSON form) under its content id."""
        with self.transaction() as conn:
            conn.execute(
                "insert or ignore into calibrators values (?, ?, ?, ?, ?)",
                (calibrator_id, kind, run_id, json.dumps(body), now()),
            )

    def calibrator(self, calibrator_id: str) -> dict[str, Any]:
        """A stored calibrator's JSON form."""
        found = self.rows("select calibrator from calibrators where calibrator_id = ?", (calibrator_id,))
        if not found:
            raise StoreError(f"no calibrator {calibrator_id!r} in the store {self.path}")
        return dict(json.loads(found[0][0]))


def completion_of(row: Row, scored: Mapping[int, dict[str, TagProbability]]) -> Completion:
    """The completion that a row of `samples` holds, with what `TraceStore.scored_tags` knows of it."""
    return Completion(
        index=row["sample_index"],
        text=row["text"],
        reasoning=row["reasoning"] or "",
        finish_reason=row["finish_reason"],
        refusal=row["outcome"] == Outcome.REFUSED,
        sampler=row["sampler"],
        error_type=row["error_type"],
        error_message=row["error_message"],
        probabilities=scored.get(row["sample_id"], {}),
    )


def _insert(conn: sqlite3.Connection, table: str, row: Row) -> None:
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    conn.execute(f"insert into {table} ({columns}) values ({marks})", list(row.values()))


def _cue_columns(cues: AssembledCues) -> tuple[str, int, str, str]:
    reported = json.dumps(cues.self_reported, ensure_ascii=False)
    return cues.text, cues.tokens, reported, json.dumps(cues.dropped)


def delete_samples(conn: sqlite3.Connection, record_id: int) -> None:
    """Delete a record's samples and what was decided from them; what people said of it stays."""
    of_record = "in (select sample_id from samples where record_id = ?)"
    conn.execute(f"delete from cache where sample_id {of_record}", (record_id,))
    conn.execute(f"delete from predictions where sample_id {of_record}", (record_id,))
    for table in ("samples", "votes", "profiles"):
        conn.execute(f"delete from {table} where record_id = ?", (record_id,))
