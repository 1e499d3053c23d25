"""One number of a GGUF file's metadata, read as far as it takes.

The `gguf` package reads a file as a whole, every token of its vocabulary included: that takes seconds, and this is
asked for whenever a backend is made. The layout is that of the format's versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

_FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_ARCHITECTURE = "general.architecture"
_LONGEST = 1 << 20
"""Bytes of a key or a text; one that claims more is no GGUF, or none of ours."""


def context_length(path: Path) -> int | None:
    """Tokens of the context that the model was made for; None where the file does not say, or is no such file."""
    try:
        with path.open("rb") as file:
            return _find(file)
    except (OSError, ValueError, struct.error, KeyError):
        return None


def _find(file: BinaryIO) -> int | None:
    if file.read(4) != b"GGUF" or _number(file, "<I") not in (2, 3):
        return None
    _number(file, "<Q")  # tensors
    found: dict[str, Any] = {}
    for _ in range(_number(file, "<Q")):
        name = _text(file)
        value = _value(file, _number(file, "<I"))
        if name == _ARCHITECTURE or name.endswith(".context_length"):
            found[name] = value
        length = found.get(f"{found.get(_ARCHITECTURE)}.context_length")
        if isinstance(length, int) and length > 0:
            return length
    return None


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _number(file, _FORMATS[kind])
    inner, count = _number(file, "<I"), _number(file, "<Q")
    if inner in _FORMATS:
        file.seek(struct.calcsize(_FORMATS[inner]) * count, 1)
    else:
        for _ in range(count):
            _value(file, inner)
    return None


def _text(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > _LONGEST:
        raise ValueError("no GGUF")
    return file.read(length).decode(errors="replace")


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
