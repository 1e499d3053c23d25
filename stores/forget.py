"""`forget`: leave no byte of a user in the store, in checkpoints or in exports."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.errors import InputError, StoreError
from cp_agents.exports import exported_files, reseal, sealed_as
from cp_agents.files import parse_line, whole_file
from cp_agents.stores.traces import TraceStore, delete_samples


class Forgotten(NamedTuple):
    """What was erased."""

    records: int
    samples: int
    threads: tuple[str, ...]
    """LangGraph threads that profiled the user; their checkpoints are deleted where the file was named."""
    export_lines: int
    shared_threads: tuple[str, ...] = ()
    """Those of `threads` that also profiled other users; a thread is erased as a whole, so theirs are gone too."""


def forget(
    store: str | Path | TraceStore,
    user_id: str,
    *,
    exports: Iterable[str | Path] = (),
    checkpoints: str | Path | None = None,
    patience_s: float = 5.0,
) -> Forgotten:
    """Erase `user_id` from the store, from JSONL `exports` and from a SQLite checkpointer's file.

    An export may also be a folder that `cp-agents export` has written: all its files, sealed anew in its card.
    All files are checked before anything is deleted (`InputError`). Threads are those that the store knows and
    those whose checkpoints name the user. Checkpoints and exports come before the store, so that after
    an error the same call finds what is left. The files are
    vacuumed and their write-ahead logs truncated, so that nothing stays in free pages; raises `StoreError`
    when another program keeps one of them from it for `patience_s` seconds. Asking again for a user who is
    not there is no error: the answer counts zero.
    """
    if not isinstance(store, TraceStore):
        with TraceStore(store, must_exist=True) as opened:
            return forget(opened, user_id, exports=exports, checkpoints=checkpoints, patience_s=patience_s)
    files = [file for path in exports for file in exported_files(Path(path))]
    for path in files:
        _check_export(path, user_id)
    if checkpoints is not None:
        _check_checkpoints(Path(checkpoints), user_id)
    known = store.rows(
        "select t.thread_id from record_threads t join records r using (record_id) where r.user_id = ?",
        (user_id,),
    )
    threads = {row[0] for row in known}
    if checkpoints is not None:
        threads |= _threads_in(Path(checkpoints), user_id)
    shared = _shared(store, user_id, threads)
    if checkpoints is not None:
        _forget_threads(Path(checkpoints), threads, patience_s)
    lines = sum(_forget_lines(path, user_id) for path in files)
    with store._lock:
        records, samples = _forget_rows(store, user_id, patience_s)
        _leave_no_byte(store._conn, f"the store {store.path}", "rows", patience_s)
    return Forgotten(records, samples, tuple(sorted(threads)), lines, shared)


def _shared(store: TraceStore, user_id: str, threads: Iterable[str]) -> tuple[str, ...]:
    """Those of the user's threads that also profiled others."""
    found = store.rows(
        "select distinct t.thread_id from json_each(?) w join record_threads t on t.thread_id = w.value"
        " join records r using (record_id) where r.user_id <> ? order by 1",
        (json.dumps(list(threads)), user_id),
    )
    return tuple(row[0] for row in found)


def _forget_rows(store: TraceStore, user_id: str, patience_s: float) -> tuple[int, int]:
    """Delete the user's rows in one transaction; the number of records and of samples."""
    samples = 0
    try:
        with _waiting(store._conn, patience_s), store.transaction() as conn:
            found = conn.execute("select record_id from records where user_id = ?", (user_id,)).fetchall()
            conn.execute("delete from selections where user_id = ?", (user_id,))
            for record in found:
                samples += conn.execute(
                    "select count(*) from samples where record_id = ?", record
                ).fetchone()[0]
                delete_samples(conn, record[0])
                conn.execute("delete from reviews where record_id = ?", record)
                conn.execute("delete from records where record_id = ?", record)
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"no row of {user_id!r} could be deleted from the store {store.path} ({error}); run it again"
        ) from None
    return len(found), samples


def _threads_in(path: Path, user_id: str) -> set[str]:
    """Threads whose checkpoints name the user, also where the store has forgotten the user already."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    serializer, threads = JsonPlusSerializer(), set()
    with closing(sqlite3.connect(path)) as conn:
        for thread, kind, blob in conn.execute(
            "select thread_id, type, checkpoint from checkpoints union all select thread_id, type, value from writes"
        ):
            # Text stands in a checkpoint as it is; an id that came as a number does not.
            if not user_id.isdecimal() and user_id.encode() not in blob:
                continue
            try:
                users = _users_in(serializer.loads_typed((kind, blob)))
            except Exception:  # of another graph, or encrypted: then only the store knows
                continue
            if user_id in users:
                threads.add(str(thread))
    return threads


def _users_in(value: Any) -> set[str]:
    """The user ids in a checkpoint of the profiling graph, or in a value that it wrote: input, profile, question."""
    from langgraph.types import Interrupt

    if isinstance(value, list | tuple):
        return {user for item in value for user in _users_in(item)}
    if isinstance(value, Interrupt):
        return _users_in(value.value)
    if not isinstance(value, dict):
        return set()
    own = {str(value["user_id"])} if value.get("user_id") is not None else set()
    return own.union(
        *(_users_in(value.get(key)) for key in ("channel_values", "__start__", "record", "profile"))
    )


def _forget_threads(path: Path, threads: Iterable[str], patience_s: float) -> None:
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(str(path)) as saver:
        try:
            with _waiting(saver.conn, patience_s):
                for thread in threads:
                    saver.delete_thread(thread)
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"the checkpoints in {path} could not be deleted ({error}); run it again"
            ) from None
        _leave_no_byte(saver.conn, f"the checkpoints file {path}", "threads", patience_s)


def _leave_no_byte(conn: sqlite3.Connection, what: str, deleted: str, patience_s: float) -> None:
    """Vacuum and truncate the log: what was deleted stands in neither of them any more."""
    try:
        with _waiting(conn, patience_s):
            conn.execute("vacuum")
            busy = conn.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"the {deleted} are deleted, but {what} cannot be vacuumed ({error}); run it again"
        ) from None
    if busy:  # a reader still needs the log, and the deleted words stand in it
        raise StoreError(
            f"the {deleted} are deleted, but the log of {what} cannot be truncated while another program "
            "has it open; run it again"
        )


@contextmanager
def _waiting(conn: sqlite3.Connection, patience_s: float) -> Iterator[None]:
    """SQLite itself tries again for `patience_s` seconds when another connection is in the way."""
    before = conn.execute("pragma busy_timeout").fetchone()[0]
    conn.execute(f"pragma busy_timeout = {round(1000 * patience_s)}")
    try:
        yield
    finally:
        conn.execute(f"pragma busy_timeout = {before}")


def _check_checkpoints(path: Path, user_id: str) -> None:
    if not path.is_file():
        raise InputError(f"no file at {path} to forget {user_id!r} in")
    try:
        with closing(sqlite3.connect(path)) as conn:
            found = conn.execute("select 1 from sqlite_master where name = 'checkpoints'").fetchone()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} is no file of a LangGraph SQLite checkpointer ({error})") from None
    if found is None:
        raise InputError(f"{path} is no file of a LangGraph SQLite checkpointer (it has no checkpoints)")


def _check_export(path: Path, user_id: str) -> None:
    if not path.is_file():
        raise InputError(f"no file at {path} to forget {user_id!r} in")
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                raw.decode("utf-8")
                if b"\0" in raw:
                    raise InputError(f"{path} line {number}: not text, so not a JSONL export")
    except UnicodeDecodeError:
        raise InputError(f"{path} line {number}: not UTF-8 text, so not a JSONL export") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _forget_lines(path: Path, user_id: str) -> int:
    """Rewrite a JSONL file without the user's lines, whole or not at all; the number of lines removed."""
    removed = 0
    sealed = sealed_as(path)
    with whole_file(path) as out, path.open("rb") as lines:
        for raw in lines:
            if _user_of(raw) == user_id:
                removed += 1
            else:
                out.write(raw.decode("utf-8"))
    if removed:
        reseal(path, sealed, removed)
    return removed


def _user_of(raw: bytes) -> str | None:
    """The line's user id as records have it (integers as text); None where there is none."""
    try:
        row = parse_line(raw)
    except InputError:
        return None
    user = row.get("user_id") if isinstance(row, dict) else None
    return None if user is None else str(user)
