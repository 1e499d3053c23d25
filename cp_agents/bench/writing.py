"""A data set's folder, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.bench.dataset import CARD, GOLD, GUESSES, USERS, Card
from cp_agents.bench.splits import split_counts
from cp_agents.errors import InputError
from cp_agents.files import whole_file, write_jsonl
from cp_agents.schema import NA, read_user_id


class Entry(NamedTuple):
    """One user as it goes into the folder."""

    user_id: str
    record: Mapping[str, Any]
    """Cue sources and self-reported fields, as in a user record."""
    gold: Mapping[str, Any]
    """`truth`, and whatever else the set knows; empty where nothing is known."""


def check_new_folder(out: Path) -> None:
    """Whether a data set may be written at `out`: there is nothing yet, or an empty folder. Raises `InputError`."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise InputError(f"cannot write {out}: it is there already (name a new folder)")
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write {out}: the folder {out.absolute().parent} does not exist")


def write_dataset(
    out: str | Path,
    entries: Iterable[Entry],
    card: Callable[[Card], Card],
    *,
    name: str,
    left_out: Mapping[str, int] | None = None,
    guesses: Iterable[dict[str, Any]] | None = None,
) -> Card:
    """Write users.jsonl, gold.jsonl, dataset.json, and recorded_guesses.jsonl where there are any, to a new folder.

    Entries are read one by one, so that a set of any size fits. `card` completes the card that is made from what was
    written (counts and splits); `left_out` is read after the last entry. Returns the card. Raises `InputError` where
    the folder is not new, a user id comes twice, or there are no users; then nothing is left behind.
    """
    out = Path(out)
    check_new_folder(out)
    try:
        building = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror})") from None
    try:
        users, with_gold = _write_entries(building, entries)
        if not users:
            raise InputError(f"nothing to write to {out}: no user of {name} is left")
        if guesses is not None and not write_jsonl(building / GUESSES, guesses):
            (building / GUESSES).unlink()
        made = card(
            Card(
                name=name,
                users=len(users),
                gold=with_gold,
                splits={str(split): n for split, n in split_counts(users).items()},
                left_out={reason: n for reason, n in sorted((left_out or {}).items()) if n},
            )
        )
        with whole_file(building / CARD) as file:
            file.write(json.dumps(made.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n")
        mask = os.umask(0)
        os.umask(mask)
        # mkdtemp is private; the output should be as readable as any other folder.
        building.chmod(0o777 & ~mask)
        building.replace(out)
        return made
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_entries(folder: Path, entries: Iterable[Entry]) -> tuple[set[str], int]:
    """The ids that were written, and how many users have gold."""
    seen: set[str] = set()
    with_gold = 0
    with whole_file(folder / USERS) as users, whole_file(folder / GOLD) as gold:
        for entry in entries:
            user_id = read_user_id(entry.user_id)
            if user_id in seen:
                raise InputError(f"the user {user_id!a} is there twice")
            seen.add(user_id)
            users.write(_line({"user_id": user_id, **entry.record}))
            if entry.gold:
                gold.write(_line({"user_id": user_id, **entry.gold}))
                with_gold += any(tag != NA for tag in entry.gold.get("truth", {}).values())
    if not with_gold:
        (folder / GOLD).unlink()
    return seen, with_gold


def _line(row: Mapping[str, Any]) -> str:
    # Half a character, as JSON can write it, is no text.
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode() + "\n"
