"""Reading gold and predictions from JSONL, with messages that name the file, the line and the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cp_agents.errors import InputError
from cp_agents.files import parse_line, read_text
from cp_agents.schema import CONFIDENCE_LEVELS, NA, read_user_id

Gold = dict[str, dict[str, str]]
"""`{user_id: {attribute: tag}}`; a missing attribute is unknown, NA says that nothing can be known."""


def load_gold(path: str | Path, truth_field: str = "truth") -> Gold:
    """Read `{"user_id", "<truth_field>": {attribute: tag}}` lines; null means unknown and is left out.

    Raises `InputError` that names the file, the line and the field.
    """
    gold: Gold = {}
    for where, row in _rows(path):
        truth = row.get(truth_field)
        if not isinstance(truth, dict):
            fields = ", ".join(str(k) for k, v in row.items() if isinstance(v, dict)) or "none"
            raise InputError(
                f'{where}: no object "{truth_field}" with the true tags (objects there: {fields})'
            )
        for name, tag in truth.items():
            if tag is not None and not isinstance(tag, str):
                raise InputError(f'{where}: "{truth_field}.{name}" should be a tag, found {tag!r}')
        gold[row["user_id"]] = {name: tag for name, tag in truth.items() if tag is not None}
    if not gold:
        raise InputError(f"{path}: no lines")
    return gold


def load_predictions(path: str | Path) -> list[dict[str, Any]]:
    """Read OUT.jsonl. Raises `InputError` that names the file, the line and the field."""
    lines = []
    for where, row in _rows(path):
        profile = row.get("profile")
        if not isinstance(profile, dict):
            raise InputError(f'{where}: no object "profile"')
        for name, value in profile.items():
            if not isinstance(value, dict) or not isinstance(value.get("tag"), str):
                raise InputError(f'{where}: "profile.{name}" should be an object with a "tag"')
            if not isinstance(value.get("voted", NA), str):
                raise InputError(f'{where}: "profile.{name}.voted" should be a tag, found {value["voted"]!r}')
            if value.get("confidence") not in CONFIDENCE_LEVELS:
                raise InputError(
                    f'{where}: "profile.{name}.confidence" should be 1..5, found {value.get("confidence")!r}'
                )
        lines.append(row)
    if not lines:
        raise InputError(f"{path}: no lines")
    return lines


def _rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL file with a place to name in messages; each has a user id that no other has."""
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = parse_line(line)
            if not isinstance(row, dict) or row.get("user_id") in (None, ""):
                raise InputError('no "user_id"')
            user = read_user_id(row["user_id"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if user in seen:
            raise InputError(f"{where}: user {user!r} is on line {seen[user]} already")
        seen[user] = number
        yield where, {**row, "user_id": user}
