"""JSONL in and out: line numbers in errors, and output that is whole or not there at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from cp_agents.errors import InputError
from cp_agents.schema import UserRecord


class BadLine(NamedTuple):
    """A line of input that could not be read, and the sentence that says why."""

    number: int
    message: str


def read_records(path: str | Path) -> Iterator[dict[str, Any] | BadLine]:
    """User records of a JSONL file in order, as they came in and checked; a bad line comes as `BadLine` and
    does not stop the rest.

    Blank lines are skipped. Raises `InputError` where there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}")
    seen: dict[str, int] = {}
    for number, raw in raw_lines(path):
        try:
            line = parse_line(raw)
            record = UserRecord.from_dict(line)
            if record.user_id in seen:
                raise InputError(
                    f"duplicate user_id {record.user_id!r}, first seen on line {seen[record.user_id]}"
                )
        except InputError as error:
            yield BadLine(number, f"{path} line {number}: {error}")
            continue
        seen[record.user_id] = number
        yield {**line, "user_id": record.user_id}


def raw_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, counted from 1. Raises `InputError` where it cannot be read."""
    try:
        with Path(path).open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, with or without a byte order mark. Raises `InputError` where it is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a UTF-8 text file") from None


def parse_line(raw: bytes | str) -> Any:
    """One line's JSON value. Raises `InputError` that says where reading stopped."""
    try:
        return json.loads(raw if isinstance(raw, str) else raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON at column {error.colno} ({error.msg}); expected one JSON object per line"
        ) from None
    except RecursionError:
        raise InputError("not readable JSON: nested too deeply") from None
    except ValueError:  # Python's own bound on the digits of an integer
        raise InputError("not readable JSON: a number has too many digits") from None


_SQLITE = b"SQLite format 3"


def check_out(path: str | Path, *others: str | Path | None) -> None:
    """Whether a file may be written at `path`, to be asked before a run is paid for.

    Raises `InputError` where `path` is one of `others` (inputs and stores) or any SQLite file, is no place for a
    file, or stands in a folder that cannot be written to. Leaves no trace.
    """
    path = Path(path)
    for other in others:
        if other is not None and _same_file(path, Path(other)):
            raise InputError(
                f"cannot write {path}: it is a file that this command reads or keeps its data in"
            )
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(_SQLITE)) == _SQLITE:
                    raise InputError(f"cannot write {path}: it is an SQLite file, which would be lost")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        os.unlink(name)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot write {path} ({getattr(error, 'strerror', None) or error})") from None


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there yet
        return path.resolve() == other.resolve()


@contextmanager
def whole_file(path: str | Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete.

    Raises `InputError` where it cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror})") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(
            name, 0o666 & ~mask
        )  # mkstemp is private; the output should be as readable as any other file
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path} ({error.strerror or error})") from None
        raise


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; the number of lines."""
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count
