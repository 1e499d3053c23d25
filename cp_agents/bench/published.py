"""Published files, read where they lie: a folder, a zip, or a folder of zips. Nothing is unpacked to disk.

Only files that a converter asks for by name are read. A name inside an archive is never used as a path, so that it
does not matter what an archive calls its members; how much a member may grow is bounded.
"""

from __future__ import annotations

import csv
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from cp_agents.errors import InputError

_MOST_BYTES = 4 << 30
"""Of one file, unpacked: twice the largest that these sets publish."""
_MOST_RATIO = 200
"""Unpacked to packed, of files that are large: text packs to a tenth, what is made to fill a disk to a thousandth."""
_LARGE = 16 << 20
_LONGEST_LINE = 64 << 20
_MOST_FILES = 200_000
_DEPTH = 6
"""Folders below the named one that are looked into."""
_SKIPPED = frozenset({".git", "__MACOSX", "node_modules", ".venv"})


class Published(NamedTuple):
    """One file of a data set."""

    name: str
    """Its path below what was named, with `/`."""
    path: Path
    """The file itself, or the zip that holds it."""
    member: zipfile.ZipInfo | None = None
    archive: zipfile.ZipFile | None = None
    """The zip, open: to open it for each of 19,000 members would read its list of members as often."""

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path) if self.member is None else f"{self.path} ({self.member.filename[:200]!a})"

    @property
    def base(self) -> str:
        """The name without folders, in lower case."""
        return PurePosixPath(self.name).name.lower()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes. Raises `InputError`, also while it is read, where it cannot be read or is damaged."""
        try:
            if self.member is None or self.archive is None:
                with self.path.open("rb") as file:
                    yield file
                return
            _check_member(self, self.member)
            with self.archive.open(self.member) as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self.where}: the zip is damaged ({error}); download it again") from None
        except OSError as error:
            raise InputError(f"{self.where}: cannot be read ({error.strerror or error})") from None

    def read(self, most: int = 256 << 20) -> bytes:
        """All of it. Raises `InputError` where it has more than `most` bytes."""
        with self.open() as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise InputError(f"{self.where}: larger than {most >> 20} MiB, which no file of this kind is")
        return content

    def lines(self, encoding: str = "utf-8") -> Iterator[str]:
        """Its lines without their ends; what is no text in `encoding` is read as Windows-1252, then as Latin-1."""
        with self.open() as file:
            for number, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b"")):
                if len(raw) == _LONGEST_LINE:
                    raise InputError(
                        f"{self.where} line {number + 1}: longer than {_LONGEST_LINE >> 20} MiB, which no line is"
                    )
                yield decode(raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw, encoding).rstrip(
                    "\r\n"
                )


def decode(raw: bytes, encoding: str = "utf-8") -> str:
    """Text of bytes that claim no encoding: the named one if it fits, else Windows-1252, else Latin-1."""
    for name in (encoding, "cp1252"):
        try:
            return raw.decode(name)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def csv_rows(file: Published, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The line number and the cells of each row of a comma-separated file. Raises `InputError` where it is none."""
    reader = csv.reader(file.lines(encoding))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"{file.where} line {reader.line_num}: not comma-separated text ({error})") from None


def _check_member(file: Published, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & 1:
        raise InputError(f"{file.where}: the zip is encrypted; unpack it and name the folder")
    ratio = member.file_size / max(1, member.compress_size)
    if member.file_size > _MOST_BYTES or (member.file_size > _LARGE and ratio > _MOST_RATIO):
        raise InputError(
            f"{file.where}: would unpack to {member.file_size >> 20:,} MiB, which no file of this set does"
        )


def published_files(paths: Sequence[str | Path]) -> list[Published]:
    """The files of folders and zips, those of zips in folders too, in order of their names.

    Raises `InputError` where a path is neither a folder nor a readable zip, or holds too many files.
    """
    found: list[Published] = []
    for given in map(Path, paths):
        if given.is_dir():
            for file in _folder(given):
                found.append(file)
                if len(found) > _MOST_FILES:
                    raise InputError(
                        f"{given}: more than {_MOST_FILES:,} files; name the data set's own folder"
                    )
        elif not given.is_file():
            raise InputError(f"nothing at {given}; expected the folder or zip with the data set's files")
        elif zipfile.is_zipfile(given):
            found += _members(given, "")
        elif given.suffix.lower() == ".zip":
            raise InputError(f"{given}: the zip is damaged; download it again")
        else:
            found.append(Published(given.name, given))
    return sorted(found, key=lambda file: file.name)


def _folder(folder: Path) -> Iterator[Published]:
    for at, folders, names in os.walk(folder):
        inside = Path(at).relative_to(folder)
        folders[:] = [] if len(inside.parts) >= _DEPTH else sorted(set(folders) - _SKIPPED)
        for name in sorted(names):
            path, shown = Path(at) / name, (inside / name).as_posix()
            if name.lower().endswith(".zip") and zipfile.is_zipfile(path):
                yield from _members(path, f"{shown}/")
            else:  # a damaged zip too: it matters only if what it should hold is missing, see `the_file`
                yield Published(shown, path)


def _members(path: Path, prefix: str) -> Iterator[Published]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InputError(f"{path}: the zip is damaged ({error}); download it again") from None
    for member in archive.infolist():
        if not member.is_dir() and "__MACOSX" not in member.filename:
            yield Published(prefix + member.filename, path, member, archive)


def matching(files: Sequence[Published], pattern: str) -> list[Published]:
    """The files whose name (without folders, lower case) `pattern` describes in full, the least nested first."""
    wanted = re.compile(pattern)
    found = [file for file in files if wanted.fullmatch(file.base)]
    return sorted(found, key=lambda file: (file.name.count("/"), file.name))


def the_file(files: Sequence[Published], pattern: str, what: str, place: str) -> Published:
    """The one that `pattern` describes. Raises `InputError` that says what was expected and what is there."""
    found = matching(files, pattern)
    if found:
        return found[0]
    if damaged := [file for file in files if file.base.endswith(".zip")]:
        raise InputError(f"{place}: {what} is missing, and {damaged[0].path} is damaged; download it again")
    raise InputError(f"{place}: {what} is missing ({_shown(files)})")


def _shown(files: Sequence[Published]) -> str:
    if not files:
        return "it is empty"
    names = [ascii(file.name)[1:61].rstrip("'") for file in files[:3]]
    return f"there are {len(files):,} files: {', '.join(names)}{', ...' if len(files) > 3 else ''}"
