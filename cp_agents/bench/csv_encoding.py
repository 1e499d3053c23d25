"""The bytes of a table from anywhere: gzip, standard input, and which encoding they are in.

An encoding is never settled by a look at the beginning: a file is what decodes strictly from its first byte to its
last. GB18030 and cp1252 accept much that they are not, so their text has to look like the writing they are for;
where none does, the user is asked.
"""

from __future__ import annotations

import codecs
import gzip
import re
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from cp_agents.errors import InputError

_CHUNK = 1 << 20
_HEAD = 1 << 16
_GZIP = b"\x1f\x8b"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TABLES = (
    (
        b"PK\x03\x04",
        "a zip archive or an Excel workbook: save the sheet as CSV (UTF-8), or unpack the archive",
    ),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook: save the sheet as CSV (UTF-8)"),
    (b"PAR1", "a Parquet file: write it out as CSV first"),
    (b"SQLite format 3", "an SQLite database: write its table out as CSV first"),
    (b"%PDF", "a PDF: a CSV file was expected"),
    (b"BZh", "a bzip2 file: unpack it first (gzip is read as it is)"),
    (b"\xfd7zXZ", "an xz file: unpack it first (gzip is read as it is)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first (gzip is read as it is)"),
)
_ASK = "name the encoding with --encoding, such as gb18030, big5, shift_jis, euc-kr, cp1251 or latin-1"
_HIGH_RUN = re.compile(rb"[\x80-\xff]{3,}")
_TYPOGRAPHIC = frozenset("€…ŠŒŽ‘’“”•–—™šœž".encode("cp1252"))
# The most frequent characters of modern Chinese: a third and more of a running text, and about a thirtieth of
# what Korean or Japanese text gives when it is read as GB18030.
_FREQUENT = frozenset(
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家"
    "十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从男女岁月号元"
)


class BadByte(NamedTuple):
    """Where strict decoding of a file stopped."""

    offset: int
    line: int
    before: str
    """The last characters before it."""
    byte: int


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """`path` itself, or a temporary copy of standard input for `-`, which has to be read more than once.

    Raises `InputError` where there is no such file.
    """
    if str(path) != "-":
        if path.is_dir():
            raise InputError(f"{path} is a folder: expected a CSV file")
        if not path.is_file():
            raise InputError(f"no file at {path}")
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="cp-agents-") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where it is gzip. Raises `InputError` where it cannot be read to its end."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as opened:
            yield cast("IO[bytes]", opened)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path}: the gzip file is damaged or cut off; copy or download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def find_encoding(path: Path, name: str, *, lenient: bool = False) -> str:
    """The encoding that the whole file decodes in strictly: UTF-8, UTF-16, GB18030, cp1252 or latin-1.

    Messages call the file `name`. With `lenient` a few wrong bytes are left for the reader to replace.
    Raises `InputError` where the file is no table, is UTF-8 but for a few bytes, or where none of these encodings fits.
    """
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    _refuse(name, head)
    encoding = next((name for bom, name in _BOMS if head.startswith(bom)), None) or _utf16(head) or "utf-8"
    if (bad := first_bad_byte(path, encoding)) is None:
        return encoding
    if encoding != "utf-8" or _mostly_utf8(path, bad.offset):
        if not lenient:
            raise InputError(_wrong_byte(name, encoding, bad))
        return encoding
    window = _window(path, bad.offset)
    if _is_like_chinese(window):
        wrong = first_bad_byte(path, "gb18030")
        if wrong is not None and not lenient:
            raise InputError(_wrong_byte(name, "gb18030", wrong))
        return "gb18030"
    if _is_like_latin(window):
        return "cp1252" if first_bad_byte(path, "cp1252") is None else "latin-1"
    raise InputError(f"{name} line {bad.line}, {_after(bad)}: the byte 0x{bad.byte:02X} is not UTF-8; {_ASK}")


def check_encoding(path: Path, name: str, encoding: str, *, lenient: bool = False) -> None:
    """Whether the whole file decodes in `encoding`. Raises `InputError` that names the line of a wrong byte."""
    with open_bytes(path) as file:
        _refuse(name, file.read(_HEAD))
    try:
        is_text = codecs.lookup(encoding)._is_text_encoding
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise InputError(
            f"no encoding {encoding!r}: expected a name such as utf-8, gb18030, utf-16 or cp1252"
        )
    bad = first_bad_byte(path, encoding)
    if bad is not None and not lenient:
        raise InputError(_wrong_byte(name, encoding, bad))


def _wrong_byte(name: str, encoding: str, bad: BadByte) -> str:
    return (
        f"{name} line {bad.line}, {_after(bad)}: the byte 0x{bad.byte:02X} is not {encoding}; mend the line,"
        " name another encoding with --encoding, or put � for such bytes with --replace-bad-bytes"
    )


def _after(bad: BadByte) -> str:
    return f"after {bad.before!r}" if bad.before else "at its beginning"


def first_bad_byte(path: Path, encoding: str) -> BadByte | None:
    """Where strict decoding fails, or None where the whole file decodes."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    offset, lines, last = 0, 1, ""
    with open_bytes(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raw = error.object
                text = last + raw[: error.start].decode(encoding, "replace")
                return BadByte(
                    offset - waiting + error.start,
                    lines + text.count("\n", len(last)),
                    text.rpartition("\n")[2][-12:],
                    raw[error.start] if error.start < len(raw) else 0,
                )
            if not chunk:
                return None
            offset += len(chunk)
            lines += text.count("\n")
            last = text[-12:]


def _refuse(name: str, head: bytes) -> None:
    for magic, what in _NO_TABLES:
        if head.startswith(magic):
            raise InputError(f"{name} is {what}")
    if not head.strip():
        raise InputError(
            f"{name} is empty: expected a CSV file with a line of column names and one line a row"
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64]
    if start.startswith((b'{"', b"{ ", b"[{", b'["')):
        raise InputError(
            f"{name} is JSON, not CSV; records that are one JSON object a line need no preparation, see docs/records.md"
        )
    if start.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{name} is a web page or XML, not CSV: download the file itself")


def _utf16(head: bytes) -> str | None:
    """UTF-16 without a byte order mark: its line breaks have a zero byte on the same side."""
    pairs = Counter(zip(head[0::2], head[1::2], strict=False))
    little, big = pairs[(0x0A, 0)], pairs[(0, 0x0A)]
    if max(little, big) < 0.2 * head.count(b"\n") or little == big:
        return None
    return "utf-16-le" if little > big else "utf-16-be"


def _window(path: Path, offset: int) -> bytes:
    """A megabyte around an offset, from the beginning of a line where there is one."""
    with open_bytes(path) as file:
        file.seek(max(0, offset - _HEAD))
        window = file.read(_CHUNK)
    return window if offset <= _HEAD else window[window.find(b"\n") + 1 :]


def _mostly_utf8(path: Path, offset: int) -> bool:
    text = _window(path, offset).decode("utf-8", "replace")
    bad = text.count("�")
    return sum(not c.isascii() for c in text) - bad > 9 * bad


def _is_like_chinese(window: bytes) -> bool:
    counts = Counter(window.decode("gb18030", "replace"))
    wide = {c: n for c, n in counts.items() if not c.isascii()}
    everyday = sum(n for c, n in wide.items() if _is_everyday(c))
    hanzi = sum(n for c, n in wide.items() if "一" <= c <= "鿿")
    frequent = sum(n for c, n in wide.items() if c in _FREQUENT)
    return everyday >= 0.7 * sum(wide.values()) and (hanzi < 50 or frequent >= 0.06 * hanzi)


def _is_everyday(char: str) -> bool:
    """Punctuation, full-width forms and the 3,755 characters of GB 2312's first level."""
    try:
        lead = char.encode("gb2312")[0]
    except UnicodeEncodeError:
        return "　" <= char <= "〿" or "！" <= char <= "￯" or "‐" <= char <= "‧"
    return 0xA1 <= lead <= 0xA3 or 0xB0 <= lead <= 0xD7


def _is_like_latin(window: bytes) -> bool:
    """Accented letters stand among plain ones; scripts of their own come in runs of high bytes."""
    high = [i for i, byte in enumerate(window) if byte >= 0x80]
    in_runs = sum(len(run.group()) for run in _HIGH_RUN.finditer(window))
    controls = sum(window[i] < 0xA0 and window[i] not in _TYPOGRAPHIC for i in high)
    return in_runs <= 0.2 * len(high) and controls <= 0.1 * len(high)
