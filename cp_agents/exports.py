"""A folder of exported files and the card that seals them: written whole, checked when it is read.

`card.json` says under `kind` what the folder holds, and under `files` how many lines each file has and their hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cp_agents.errors import InputError
from cp_agents.files import whole_file

CARD = "card.json"

_CHUNK = 1 << 20


class Seal(BaseModel):
    """One file as the card has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    sha256: str
    forgotten: int = 0
    """Lines of forgotten users that were taken out since the export."""


def seal(path: Path) -> Seal:
    """The seal of a file of lines as it stands."""
    digest, rows = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            rows += chunk.count(b"\n")
    return Seal(rows=rows, sha256=digest.hexdigest())


def check_seals(folder: Path, files: Mapping[str, Seal]) -> None:
    """Raises `InputError` where a file is not as its seal says."""
    for name, sealed in files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder}: the file {name} is missing, which {CARD} names; export it again")
        if seal(path).sha256 != sealed.sha256:
            raise InputError(f"{path} is not as it was exported ({CARD} has another hash); export it again")


def exported_files(path: Path) -> list[Path]:
    """The file itself, or the files of an export where `path` is its folder. Raises `InputError` for another folder."""
    if not path.is_dir():
        return [path]
    files = (_read(path / CARD) or {}).get("files")
    if not isinstance(files, dict):
        raise InputError(f"{path} is a folder without an export in it (no {CARD} that names its files)")
    return [path / Path(name).name for name in files]


def reseal(path: Path, before: Seal | None, removed: int) -> None:
    """Note in the card beside `path` that a user's lines were taken out; `before` is what `sealed_as` said."""
    card = _read(path.parent / CARD)
    if before is None or card is None:
        return
    after = seal(path).model_copy(update={"forgotten": before.forgotten + removed})
    card["files"][path.name] = after.model_dump()
    with whole_file(path.parent / CARD) as out:
        out.write(json.dumps(card, ensure_ascii=False, indent=1) + "\n")


def sealed_as(path: Path) -> Seal | None:
    """The seal in the card beside `path` where the file is as it says; None for a file that no card seals."""
    files = (_read(path.parent / CARD) or {}).get("files")
    with suppress(ValueError):
        if isinstance(files, dict) and path.name in files:
            known = Seal.model_validate(files[path.name])
            return known if seal(path).sha256 == known.sha256 else None
    return None


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        card = json.loads(path.read_text(encoding="utf-8"))
        return card if isinstance(card, dict) else None
    return None


def check_folder(path: str | Path, kind: str, names: Collection[str]) -> None:
    """Whether an export of `kind` with the files `names` may be put at `path`, to be asked before the work.

    Raises `InputError` unless nothing is there, or an empty folder, or an export of this kind and nothing else.
    """
    path = Path(path)
    if not path.exists():
        if not path.resolve().parent.is_dir():
            raise InputError(f"cannot write {path}: the folder {path.resolve().parent} does not exist")
        return
    if not path.is_dir():
        raise InputError(f"cannot write {path}: it is a file, expected a folder to make")
    found = {entry.name for entry in path.iterdir()}
    if not found:
        return
    if (_read(path / CARD) or {}).get("kind") != kind:
        raise InputError(
            f"cannot write {path}: the folder is not empty and holds no earlier export of this kind"
        )
    if foreign := sorted(found - set(names)):
        raise InputError(f"cannot replace the export in {path}: the folder also holds {foreign[0]!r}")


@contextmanager
def whole_folder(path: str | Path, kind: str, names: Collection[str]) -> Iterator[Path]:
    """A folder that appears at `path` only when it is complete, in place of an earlier export if there is one.

    Raises `InputError` where it cannot be written, see `check_folder`.
    """
    check_folder(path, kind, names)
    path = Path(path).resolve()
    try:
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror})") from None
    try:
        yield part
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o777 & ~mask)  # mkdtemp is private; the export should be as readable as any other folder
        _put_in_place(part, path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path} ({error.strerror or error})") from None
        raise


def _put_in_place(part: Path, path: Path) -> None:
    if not path.exists():
        part.rename(path)
        return
    old = part.with_name(f"{part.name}.old")
    path.rename(old)
    try:
        part.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)
