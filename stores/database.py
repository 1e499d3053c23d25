"""The file behind a trace store: opened once, one connection behind a lock, transactions that nest."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlite_utils import Database

from cp_agents.errors import StoreError
from cp_agents.stores.migrations import migrate


class StoreFile:
    """A store at `path`; ":memory:" keeps it in memory. Safe to use from several threads.

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

    def __enter__(self) -> Self:
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
