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
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            if not raw.strip():
                continue
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


def parse_line(raw: bytes) -> Any:
    """One line's JSON value. Raises `InputError` that says where reading stopped."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON at column {error.colno} ({error.msg}); expected one JSON object per line"
        ) from None
    except RecursionError:
        raise InputError("not readable JSON: nested too deeply") from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(
            name, 0o666 & ~mask
        )  # mkstemp is private; the output should be as readable as any other file
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line; the number of lines."""
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count
