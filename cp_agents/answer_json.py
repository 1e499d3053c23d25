"""Answers written as JSON: found in the text, read as far as they go, and unwrapped.

A value that does not parse is read up to the fault, and taken up again only at a line that begins with the next
entry: text of a record holds no line break, so nothing quoted inside the faulty value can pass for an entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cp_agents.answer_fields import FIELD_NAMES, RawAnswer, compact

_DECODER = json.JSONDecoder(strict=False)  # line breaks in strings are common and harmless
_WRAPPERS = frozenset(
    ("profile", "profiles", "userprofile", "attributes", "answer", "answers", "result", "results", "output",
     "prediction", "predictions", "tags", "labels", "data", "response", "analysis")
)  # fmt: skip
_NAME_KEYS = ("attribute", "attributename", "name", "dimension", "field", "key")
_QUOTE_KEYS = ("text", "quote", "evidence", "content")
_MAX_DEPTH = 4
_MAX_ENTRIES = 64
_KEY = re.compile(r'\s*,?\s*"([^"\\\n]{1,80})"\s*:\s*')
_LINE_KEY = re.compile(r'\n[ \t]*"([^"\\\n]{1,80})"[ \t]*:[ \t\n]*')
_LINE_OBJECT = re.compile(r"\n[ \t]*(?=\{)")
_OBJECT_END = re.compile(r"\s*,?\s*\}")
_LIST_END = re.compile(r"\s*,?\s*\]")
_ITEM = re.compile(r"\s*,?\s*(?=\{)")


class _Partial(dict[str, Any]):
    """An object that was read only up to a fault."""


def read_json(text: str, start: int, names: Mapping[str, str]) -> tuple[list[RawAnswer], int, bool]:
    """The answers in the JSON value at `text[start]`, where it ends, and whether it was sound.

    `names` maps `compact` names to attributes. Of an unsound value the end is the end of the line at which
    reading stopped. Never raises; time is linear in what is read.
    """
    value, end = _decode(text, start)
    sound = value is not _FAULT
    if not sound:
        value, end = _salvage(text, start, names, 0)
        end = line_end if (line_end := text.find("\n", end)) >= 0 else len(text)
    found: list[RawAnswer] = []
    _collect(value, names, 0, found)
    return found, end, sound


_FAULT = object()


def _decode(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):  # ValueError also for integers of thousands of digits
        return _FAULT, start


def _salvage(text: str, start: int, names: Mapping[str, str], depth: int) -> tuple[Any, int]:
    """What can be read of the object or list at `start`, and where reading stopped.

    No `names` for what is itself an entry: then no line behind a fault is part of it.
    """
    if depth >= _MAX_DEPTH:
        return _FAULT, start
    if text.startswith("{", start):
        return _salvage_object(text, start + 1, names, depth)
    return _salvage_list(text, start + 1, names, depth)


def _value(text: str, start: int, names: Mapping[str, str], depth: int) -> tuple[Any, int]:
    value, end = _decode(text, start)
    if value is _FAULT and text[start : start + 1] in ("{", "["):
        return _salvage(text, start, names, depth + 1)
    return value, end


def _salvage_object(text: str, at: int, names: Mapping[str, str], depth: int) -> tuple[Any, int]:
    found = _Partial()
    sound = True  # so far; behind a fault only a line that begins with a known key is trusted
    for _ in range(_MAX_ENTRIES):
        if sound and (end := _OBJECT_END.match(text, at)) is not None:
            return dict(found), end.end()  # only a trailing comma was at fault
        key = _KEY.match(text, at) if sound else None
        if key is None:
            key = _LINE_KEY.search(text, at) if names else None
            while key is not None and compact(key[1]) not in names:
                key = _LINE_KEY.search(text, key.end() - 1)
            if key is None:
                break
        value, at = _value(text, key.end(), {} if compact(key[1]) in names else names, depth)
        sound = value is not _FAULT and not isinstance(value, _Partial)
        if value is not _FAULT:
            found[key[1]] = value
    return found, at


def _salvage_list(text: str, at: int, names: Mapping[str, str], depth: int) -> tuple[Any, int]:
    found: list[Any] = []
    sound = True
    for _ in range(_MAX_ENTRIES):
        if sound and (end := _LIST_END.match(text, at)) is not None:
            return found, end.end()
        item = _ITEM.match(text, at) if sound else None
        if item is None:
            item = _LINE_OBJECT.search(text, at)
            if item is None:
                break
        value, at = _value(text, item.end(), names, depth)
        sound = value is not _FAULT and not isinstance(value, _Partial)
        if value is not _FAULT:
            found.append(value)
    return found, at


def _collect(value: Any, names: Mapping[str, str], depth: int, found: list[RawAnswer]) -> None:
    """Unwrap `value`: keyed by attribute, a list of entries that name theirs, or either inside known wrappers."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                _collect(item, names, depth + 1, found)
        return
    if not isinstance(value, dict):
        return
    keyed = {compact(key): entry for key, entry in value.items()}
    own = next((keyed[k] for k in _NAME_KEYS if isinstance(keyed.get(k), str)), None)
    if (
        own is not None
        and (attribute := names.get(compact(own))) is not None
        and _field(keyed, "tag") is not None
    ):
        found.append(_entry(attribute, value, keyed))
        return
    before = len(found)
    for key, entry in keyed.items():
        if (attribute := names.get(key)) is not None:
            found.append(_answer(attribute, entry))
    if len(found) == before:
        for key, entry in keyed.items():
            if key in _WRAPPERS:
                _collect(entry, names, depth + 1, found)


def _answer(attribute: str, entry: Any) -> RawAnswer:
    if isinstance(entry, dict):
        return _entry(attribute, entry, {compact(key): value for key, value in entry.items()})
    if isinstance(entry, list) and len(entry) in (2, 3) and isinstance(entry[0], str):
        return RawAnswer(attribute, entry[0], entry[1], _evidence(entry[2] if len(entry) == 3 else None))
    return RawAnswer(attribute, _text(entry), None, "")


def _entry(attribute: str, entry: dict[str, Any], keyed: dict[str, Any]) -> RawAnswer:
    return RawAnswer(
        attribute,
        _text(_field(keyed, "tag")),
        _field(keyed, "score"),
        _evidence(_field(keyed, "evidence")),
        whole=not isinstance(entry, _Partial),
    )


def _field(keyed: dict[str, Any], field: str) -> Any:
    return next((keyed[name] for name in FIELD_NAMES[field] if keyed.get(name) is not None), None)


def _text(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return value if isinstance(value, str) else None


def _evidence(value: Any) -> str | tuple[str, ...]:
    """Evidence as text, or, of a list, one piece an item; items may be objects that hold the quotation."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else ""
    pieces: list[str] = []
    for item in value:
        if isinstance(item, dict):
            item = next((item[k] for k in _QUOTE_KEYS if isinstance(item.get(k), str)), None)
        if isinstance(item, str):
            pieces.append(item)
    return tuple(pieces)
