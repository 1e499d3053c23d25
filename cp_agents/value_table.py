"""What came out of an open attribute over a whole run, and how it becomes a closed set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml

from cp_agents.errors import InputError
from cp_agents.files import whole_file
from cp_agents.open_sets import Value, value_table
from cp_agents.relabel import stored_run
from cp_agents.schema import NA
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy, fold

ALIASES = 20
"""Wordings of a value that a proposed tag takes over as aliases, the most frequent ones."""


class RunValues(NamedTuple):
    """The values of one open attribute of a run."""

    run: str
    taxonomy: Taxonomy
    attribute: str
    users: int
    """With a profile."""
    na: int
    """Of these, without a value."""
    values: list[Value]
    """The most frequent first."""


def run_values(store: TraceStore, run_id: str | None = None, attribute: str | None = None) -> RunValues:
    """The values that the profiles of a stored run give, clustered over all users; what people answered counts.

    `attribute` may be left out where the run has one open attribute. Raises `InputError` for an attribute that is not
    open and a run without profiles.
    """
    run, taxonomy, _ = stored_run(store, run_id)
    names = [a.name for a in taxonomy.attributes if a.open]
    if not names:
        raise InputError(f"run {run} has no open attribute: every one of {taxonomy.name} is a closed set")
    if attribute is None and len(names) > 1:
        raise InputError(f"run {run} has the open attributes {', '.join(names)}: name one with --attribute")
    chosen = attribute or names[0]
    if chosen not in names:
        raise InputError(f"{chosen!r} is no open attribute of run {run}: expected {' or '.join(names)}")
    counts: Counter[str] = Counter(
        dict(
            store.rows(
                "select tag, count(*) from profile_attributes where run_id = ? and attribute = ? group by tag",
                (run, chosen),
            )
        )
    )
    if not counts:
        raise InputError(f"run {run} has no finished profile yet")
    return RunValues(run, taxonomy, chosen, counts.total(), counts[NA], value_table(counts))


def write_tags(path: Path, found: RunValues, least: int = 2) -> int:
    """Write the run's taxonomy with the attribute closed: a tag for each value of at least `least` users, its other
    wordings as aliases. Gives the number of tags.

    A proposal to be edited: nothing says which values belong together beyond their words, and rare ones are left out.
    Raises `InputError` where no value has so many users.
    """
    kept = [value for value in found.values if value.users >= least]
    if not kept:
        raise InputError(f"no value of {found.attribute} has {least} users or more: ask for fewer")
    raw = found.taxonomy.model_dump(mode="json", exclude_defaults=True)
    for attribute in raw["attributes"]:
        if attribute["name"] == found.attribute:
            del attribute["open"]
            attribute["tags"] = [_tag(value) for value in kept]
    raw.pop("example", None)  # its answer may name a value that is no tag now
    Taxonomy.model_validate(raw)
    with whole_file(path) as file:
        file.write(yaml.safe_dump(raw, allow_unicode=True, sort_keys=False, width=110))
    return len(kept)


def _tag(value: Value) -> dict[str, object] | str:
    spelled = {fold(value.name)}
    aliases: list[str] = []
    for wording in value.wordings:
        if fold(wording) not in spelled and len(aliases) < ALIASES:
            spelled.add(fold(wording))
            aliases.append(wording)
    return {"name": value.name, "aliases": aliases} if aliases else value.name
