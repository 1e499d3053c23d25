"""Names for the activity codes of the American Time Use Survey."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import yaml

from cp_agents.bench.published import Published, csv_rows, matching
from cp_agents.errors import InputError

_LEXICON = r".*lexicon.*\.(?:csv|txt)"
_CODE = re.compile(r"\s*(\d{6})\b[\s,]*(.*)")
_OTHER = re.compile(r",?\s*n\.e\.c\.?\**\s*$", re.IGNORECASE)
_LEAST = 100
"""A lexicon has more than four hundred codes; what has fewer than this is something else."""


class ActivityNames(NamedTuple):
    """What codes are called, and where that comes from."""

    names: Mapping[str, str]
    """By code, of 2, 4 or 6 digits."""
    source: str

    def of(self, code: str) -> str | None:
        """The name of the longest code that fits, None where there is none (the survey's data codes begin with 50)."""
        return next((name for n in (6, 4, 2) if (name := self.names.get(code[:n])) is not None), None)


def activity_names(files: Sequence[Published]) -> ActivityNames:
    """The names of the coding lexicon where the folder holds it as CSV or text, else our own.

    Raises `InputError` where a lexicon is there and cannot be read.
    """
    own = resources.files("cp_agents.bench") / "mappings" / "atus_activities.yaml"
    names: dict[str, str] = yaml.safe_load(own.read_text(encoding="utf-8"))
    found = matching(files, _LEXICON)
    if not found:
        return ActivityNames(names, "cp-agents' short names of the codes")
    lexicon = read_lexicon(found[0])
    return ActivityNames(names | lexicon, f"the survey's coding lexicon, {found[0].name}")


def read_lexicon(file: Published) -> dict[str, str]:
    """The codes of a coding lexicon: rows that begin with six digits and a name, in whichever columns.

    Raises `InputError` where it has too few to be one.
    """
    found: dict[str, str] = {}
    for _, cells in csv_rows(file):
        filled = [cell.strip() for cell in cells if cell.strip()]
        code = _CODE.fullmatch(filled[0]) if filled else None
        if code is None:
            continue
        name = code[2] or (filled[1] if len(filled) > 1 else "")
        if name := _OTHER.sub(" (other)", name).strip(" *"):
            found[code[1]] = name
    if len(found) < _LEAST:
        raise InputError(
            f"{file.where}: {len(found)} activity codes, expected a lexicon of several hundred"
            " (six digits and a name a row)"
        )
    return found
