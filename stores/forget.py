"""`forget`: leave no byte of a user in the store, in checkpoints or in exports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cp_agents.errors import InputError
from cp_agents.files import whole_file
from cp_agents.stores.traces import TraceStore, delete_samples


class Forgotten(NamedTuple):
    """What was erased."""

    records: int
    samples: int
    threads: tuple[str, ...]
    """LangGraph threads that profiled the user; their checkpoints are deleted where the file was named."""
    export_lines: int


def forget(
    store: TraceStore,
    user_id: str,
    *,
    exports: Iterable[str | Path] = (),
    checkpoints: str | Path | None = None,
) -> Forgotten:
    """Erase `user_id` from the store, from JSONL `exports` and from a SQLite checkpointer's file.

    The store is vacuumed and its write-ahead log truncated, so that nothing stays in free pages. Asking again
    for a user who is not there is no error: the answer counts zero.
    """
    files = [Path(path) for path in exports]
    for path in (*files, *([Path(checkpoints)] if checkpoints else [])):
        if not path.is_file():
            raise InputError(f"no file at {path} to forget {user_id!r} in")
    found = store.rows("select record_id, thread_id from records where user_id = ?", (user_id,))
    threads = tuple(sorted({thread for _, thread in found if thread}))
    samples = 0
    with store.transaction() as conn:
        for record_id, _ in found:
            samples += conn.execute(
                "select count(*) from samples where record_id = ?", (record_id,)
            ).fetchone()[0]
            delete_samples(conn, record_id)
            conn.execute("delete from reviews where record_id = ?", (record_id,))
            conn.execute("delete from records where record_id = ?", (record_id,))
    with store._lock:
        store._conn.execute("vacuum")
        store._conn.execute("pragma wal_checkpoint(truncate)")
    if checkpoints is not None:
        _forget_threads(Path(checkpoints), threads)
    lines = sum(_forget_lines(path, user_id) for path in files)
    return Forgotten(len(found), samples, threads, lines)


def _forget_threads(path: Path, threads: Iterable[str]) -> None:
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(str(path)) as saver:
        for thread in threads:
            saver.delete_thread(thread)
        saver.conn.execute("vacuum")
        saver.conn.execute("pragma wal_checkpoint(truncate)")


def _forget_lines(path: Path, user_id: str) -> int:
    """Rewrite a JSONL file without the user's lines, whole or not at all; the number of lines removed."""
    removed = 0
    with whole_file(path) as out, path.open(encoding="utf-8") as lines:
        for line in lines:
            if _user_of(line) == user_id:
                removed += 1
            else:
                out.write(line)
    return removed


def _user_of(line: str) -> object:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row.get("user_id") if isinstance(row, dict) else None
