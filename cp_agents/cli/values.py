"""`values`: what came out of an open attribute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o


def values(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run of the store.", show_default="the newest")
    ] = None,
    attribute: Annotated[
        str | None,
        typer.Option("--attribute", help="An open attribute of the run.", show_default="the only one"),
    ] = None,
    store: o.Store = o.DEFAULT_STORE,
    top: Annotated[int, typer.Option("--top", help="Values shown.")] = 30,
    write_tags: Annotated[
        Path | None,
        typer.Option(
            "--write-tags", help="Write the run's taxonomy with the attribute closed, to be edited (YAML)."
        ),
    ] = None,
    least: Annotated[
        int, typer.Option("--least", help="With --write-tags, users that a value needs to become a tag.")
    ] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all values as JSON.")] = None,
) -> None:
    """The values of an open attribute over all users of a run, clustered by meaning, and a closed set made of them.

    Python: `cp_agents.value_table.run_values`.
    """
    import json

    from rich.markup import escape
    from rich.table import Table

    from cp_agents.cli import tables
    from cp_agents.errors import InputError
    from cp_agents.files import check_out, whole_file
    from cp_agents.stores.traces import TraceStore
    from cp_agents.value_table import run_values
    from cp_agents.value_table import write_tags as write

    if min(top, least) < 1:
        raise InputError("--top and --least should be 1 or more")
    if write_tags is not None:
        if write_tags.suffix.lower() not in {".yaml", ".yml"}:
            raise InputError(f"--write-tags {write_tags}: a taxonomy file ends in .yaml")
        check_out(write_tags, store)
    if json_file is not None:
        check_out(json_file, store, write_tags)
    with TraceStore(store, must_exist=True) as traces:
        found = run_values(traces, run, attribute)
    console = tables.console()
    title = f"{found.attribute}, run {found.run}: {found.users:,} users, {found.na:,} without a value"
    table = Table(title=title, title_justify="left")
    for name in ("value", "users", "share", "also written"):
        table.add_column(name, justify="right" if name in ("users", "share") else "left")
    for value in found.values[:top]:
        others = [
            f"{text} ({n})" if n > 1 else text for text, n in value.wordings.items() if text != value.name
        ]
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        table.add_row(
            escape(value.name), f"{value.users:,}", f"{value.users / found.users:.1%}", escape(shown)
        )
    console.print(table)
    if rest := found.values[top:]:
        console.print(f"and {len(rest):,} values more, of {sum(v.users for v in rest):,} users", style="dim")
    if write_tags is not None:
        tags = write(write_tags, found, least)
        left = [value for value in found.values if value.users < least]
        console.print(
            f"wrote {tags} tags to {write_tags}; {len(left):,} values of {sum(v.users for v in left):,} users are none,"
            " since each has too few: edit the file, then profile with --taxonomy",
            markup=False,
            soft_wrap=True,
        )
    if json_file is not None:
        with whole_file(json_file) as file:
            whole = {
                "run": found.run,
                "attribute": found.attribute,
                "users": found.users,
                "na": found.na,
                "values": [value._asdict() for value in found.values],
            }
            json.dump(whole, file, indent=1, ensure_ascii=False)
