"""The runs of a store and their records."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from cp_agents.cues import AssembledCues
from cp_agents.errors import ErrorType, StoreError
from cp_agents.stores.database import StoreFile
from cp_agents.stores.rows import RecordRow, Row, cues_hash, now


class RunTables(StoreFile):
    """Runs and records."""

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
