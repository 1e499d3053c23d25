"""Rows by user, however they are scattered in a file, in memory that does not grow with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

from cp_agents.errors import InputError

MOST_COLUMNS = 1900
"""SQLite's tables have 2,000 at most."""

_BATCH = 5000
_KNOWN = 200_000
_CACHE_KB = 65536


class UserRows:
    """A temporary SQLite file that takes rows and gives them back by user.

    Users come in the order of their first row, the rows of a user in order of time, those without a time first, and
    what is of one time in the order of the file. Raises `InputError` where the disk is full.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KB}; PRAGMA temp_store=FILE;"
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);"
            f"CREATE TABLE rows (user INTEGER, at INTEGER{''.join(f', c{i}' for i in range(width))});"
        )
        self._insert = f"INSERT INTO rows VALUES ({', '.join('?' * (width + 2))})"
        self._known: dict[str, int] = {}
        self._waiting: list[Sequence[Any]] = []
        self._db.execute("BEGIN")

    def __enter__(self) -> UserRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise InputError(f"the rows could not be sorted by user: {error} (is the disk full?)") from None

    def add(self, user: str, at: int | None, cells: Sequence[str | None]) -> None:
        """One row: its user, when it was (any whole number; None where unknown), and `width` cells."""
        number = self._known.get(user)
        if number is None:
            number = self._number(user)
        self._waiting.append((number, at, *cells))
        if len(self._waiting) >= _BATCH:
            self._flush()

    def _number(self, user: str) -> int:
        self._db.execute("INSERT OR IGNORE INTO users (name) VALUES (?)", (user,))
        number: int = self._db.execute("SELECT id FROM users WHERE name = ?", (user,)).fetchone()[0]
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[user] = number
        return number

    def _flush(self) -> None:
        self._db.executemany(self._insert, self._waiting)
        self._waiting.clear()

    def groups(self) -> Iterator[tuple[str, Iterator[tuple[str | None, ...]]]]:
        """Each user, and the cells of its rows; the rows have to be taken before the next user is asked for."""
        self._flush()
        self._db.execute("COMMIT")
        names = self._db.execute("SELECT id, name FROM users ORDER BY id")
        rows = self._db.execute("SELECT * FROM rows ORDER BY user, at, rowid")
        for number, group in groupby(rows, key=itemgetter(0)):
            known, name = next(names)
            assert known == number  # every user has a row, and both come in order of the number
            yield name, (row[2:] for row in group)
