"""Writing a setting into the configuration file: one key of one table, everything else as it was."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cp_agents.errors import InputError
from cp_agents.files import read_text, whole_file


def set_in_config(path: Path, verbs: Sequence[str], key: str, words: Sequence[str]) -> None:
    """Set `key = [words]` in the tables `[VERB]` of a TOML file, which is made where there is none.

    Comments and the order of all else stay. Raises `InputError` for a file that is no TOML, or whose way of writing the
    tables cannot be edited; it is left as it was then.
    """
    text = read_text(path) if path.is_file() else ""
    wanted = _read(path, text)
    for verb in verbs:
        table = wanted.setdefault(verb, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: [{verb}] should be a table of options")
        table[key] = list(words)
        text = with_setting(text, verb, key, words)
    try:
        written = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        written = {}
    if written != wanted:
        lines = ", ".join(f"[{verb}]" for verb in verbs)
        raise InputError(
            f"{path} is written in a way that cannot be edited: put {_line(key, words)} under {lines}"
        )
    with whole_file(path) as file:
        file.write(text)


def with_setting(text: str, table: str, key: str, words: Sequence[str]) -> str:
    """The TOML text with the key set in `[table]`, in the place of its old value or right under the heading."""
    lines = text.split("\n")
    heading = re.compile(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(#.*)?$")
    start = next((i for i, line in enumerate(lines) if heading.match(line)), None)
    if start is None:
        body = text.rstrip("\n")
        return f"{body}\n\n[{table}]\n{_line(key, words)}\n".lstrip("\n")
    old = re.compile(rf"\s*{re.escape(key)}\s*=")
    for i in range(start + 1, len(lines)):
        if lines[i].lstrip().startswith("["):
            break
        if old.match(lines[i]):
            lines[i : _end_of_value(lines, i)] = [_line(key, words)]
            return "\n".join(lines)
    return "\n".join([*lines[: start + 1], _line(key, words), *lines[start + 1 :]])


def _end_of_value(lines: list[str], start: int) -> int:
    """The line after the value that begins in line `start`: an array may go over several."""
    for end in range(start + 1, len(lines) + 1):
        try:
            tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
        return end
    return start + 1


def _line(key: str, words: Sequence[str]) -> str:
    return f"{key} = [{', '.join(json.dumps(word) for word in words)}]"


def _read(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
