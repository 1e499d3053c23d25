"""`bench prepare csv`: anybody's table as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cp_agents.cli import options as o
from cp_agents.errors import InputError

if TYPE_CHECKING:
    from cp_agents.bench.csv_read import Table


def prepare_csv(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV, plain or gzip; - for standard input.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder to write the data set to; it should not be there yet.", show_default=False
        ),
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="YAML that says which column is what.", show_default=False)
    ] = None,
    write_map: Annotated[
        Path | None,
        typer.Option(
            "--write-map",
            help="Where to save the map that the options say, or the proposed one.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user", help="Column with the user's id; #row where every row is a user.", show_default=False
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", metavar="[SOURCE=]COL", help="Column with texts; may be repeated.", show_default=False
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Column with the time of a row.", show_default=False)
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option("--weight", help="Column with how much, such as minutes.", show_default=False),
    ] = None,
    count: Annotated[
        str | None, typer.Option("--count", help="Column with how often.", show_default=False)
    ] = None,
    self_reported: Annotated[
        list[str] | None,
        typer.Option(
            "--self-reported",
            metavar="[NAME=]COL",
            help="Column with what users say of themselves; may be repeated.",
            show_default=False,
        ),
    ] = None,
    gold: Annotated[
        list[str] | None,
        typer.Option(
            "--gold",
            metavar="[ATTR=]COL",
            help="Column with an attribute's truth; may be repeated.",
            show_default=False,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator",
            help="What stands between several texts in a cell; json for lists.",
            show_default=False,
        ),
    ] = None,
    date_format: Annotated[
        str | None,
        typer.Option(
            "--date-format",
            help="day-first, month-first or a pattern such as '%d.%m.%Y %H:%M'.",
            show_default=False,
        ),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            "--timezone", help="Of times that name none, such as Asia/Shanghai.", show_default=False
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option("--encoding", help="Such as gb18030; found out by default.", show_default=False),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option("--delimiter", help="One character or tab; found out by default.", show_default=False),
    ] = None,
    quotes: Annotated[
        str | None,
        typer.Option(
            "--quotes",
            help="How a quotation mark stands in a quoted cell: double, backslash, or none where they quote nothing.",
            show_default=False,
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether the first line names the columns; found out by default.",
            show_default=False,
        ),
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            "--missing", help="One more spelling of an empty cell; may be repeated.", show_default=False
        ),
    ] = None,
    pad_short_rows: Annotated[
        bool,
        typer.Option("--pad-short-rows", help="Take rows with too few cells, as if the last were empty."),
    ] = False,
    replace_bad_bytes: Annotated[
        bool, typer.Option("--replace-bad-bytes", help="Put � for bytes that are not of the encoding.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The data set's name in tables; the folder's by default.", show_default=False
        ),
    ] = None,
    taxonomy: o.Taxonomy = "profilebench",
) -> None:
    """Turn any table into records and gold; with no map, propose one. Python: `cp_agents.bench.csv_records`."""
    from cp_agents.bench.csv_encoding import local_file
    from cp_agents.bench.csv_guess import propose
    from cp_agents.bench.csv_map import FileFormat, load_map, make_map
    from cp_agents.bench.csv_read import open_table
    from cp_agents.bench.csv_records import prepare_csv as prepare
    from cp_agents.bench.csv_values import Missing
    from cp_agents.bench.writing import check_new_folder
    from cp_agents.cli import bench_csv_show as show
    from cp_agents.files import check_out, whole_file
    from cp_agents.taxonomy import load_taxonomy

    columns = {
        "--user": user, "--text": text, "--time": time, "--weight": weight, "--count": count,
        "--self-reported": self_reported, "--gold": gold, "--separator": separator,
    }  # fmt: skip
    given = [option for option, value in columns.items() if value]
    if map_file is not None and given:
        raise InputError(
            f"--map says which column is what: leave out {given[0]}, or write it into {map_file}"
        )
    chosen = load_taxonomy(taxonomy)
    if out is not None:
        check_new_folder(out)
    if write_map is not None:
        check_out(write_map, file, map_file)
    column_map = load_map(map_file) if map_file is not None else None
    file_format = _set(
        (column_map.file if column_map is not None else FileFormat()).model_dump(),
        encoding=encoding, delimiter=delimiter, quotes=quotes, header=header, missing=missing,
        pad_short_rows=pad_short_rows or None, replace_bad_bytes=replace_bad_bytes or None,
    )  # fmt: skip
    shown = "standard input" if str(file) == "-" else str(file)
    with local_file(file) as path:
        fmt = make_map({"user": "#row", "self_reported": {"-": "-"}, "file": file_format}, "the options").file
        named = column_map.named if column_map is not None else _named(columns)
        table = open_table(
            path, name=shown, encoding=fmt.encoding, delimiter=fmt.delimiter, quotes=fmt.quotes, header=fmt.header,
            lenient=fmt.replace_bad_bytes, named=named,
        )  # fmt: skip
        raw: dict[str, Any]
        if column_map is not None:
            raw = column_map.model_dump()
        elif given:
            raw = _from_options(table, columns)
        else:
            proposal = propose(table, chosen, Missing(fmt.missing))
            raw = proposal.raw
            show.show_proposal(table, proposal)
        raw = _set({**raw, "file": file_format}, date_format=date_format, timezone=timezone)
        if map_file is None and not given:
            if write_map is not None:
                final = proposal._replace(raw=_plain(raw))
                with whole_file(write_map) as written:
                    written.write(final.to_yaml())
                typer.echo(f"wrote the proposed map to {write_map}")
            show.stop_unless_clear(proposal, file, out, write_map)
            if out is None:
                return
        column_map = make_map(raw, str(map_file or "the options"))
        if write_map is not None and (given or map_file is not None):
            with whole_file(write_map) as written:
                written.write(column_map.to_yaml())
            typer.echo(f"wrote the map to {write_map}")
        if out is None:
            if write_map is None:
                raise InputError("no folder to write to: name one with --out")
            return
        with show.progress() as progress:
            report = prepare(table, column_map, chosen, out, name=name, progress=progress)
    show.show_report(report, column_map, out, taxonomy)


def _set(raw: dict[str, Any], **values: Any) -> dict[str, Any]:
    return raw | {key: value for key, value in values.items() if value is not None}


def _plain(raw: dict[str, Any]) -> dict[str, Any]:
    """A map for a person: what is not set is left out."""
    from cp_agents.bench.csv_map import FileFormat

    file = FileFormat.model_validate(raw["file"]).model_dump(exclude_defaults=True)
    return {k: v for k, v in raw.items() if k != "file"} | ({"file": file} if file else {})


def _named(columns: dict[str, Any]) -> list[str]:
    """All that the options may name, with and without what stands before an equals sign."""
    values = [
        v for value in columns.values() if value for v in ([value] if isinstance(value, str) else value)
    ]
    return [*values, *(v.partition("=")[2] for v in values)]


def _from_options(table: Table, columns: dict[str, Any]) -> dict[str, Any]:
    """The map that the options say. Raises `InputError` where the user's column or all texts are missing."""
    if not columns["--user"]:
        raise InputError(
            "no --user: name the column with the user's id, or say --user '#row' where every row is a user;"
            f" the columns are: {', '.join(table.columns)}"
        )
    if not columns["--text"] and not columns["--self-reported"]:
        raise InputError(f"no --text: name a column with texts; the columns are: {', '.join(table.columns)}")
    shared = {
        key: columns[f"--{key}"]
        for key in ("separator", "weight", "count")
        if columns[f"--{key}"] is not None
    }
    sources: dict[str, dict[str, Any]] = {}
    for source, column in _pairs(table, columns["--text"]):
        sources.setdefault(source, {"columns": [], **shared})["columns"].append(column)
    return {
        "user": columns["--user"],
        "time": columns["--time"],
        "sources": sources,
        "self_reported": dict(_pairs(table, columns["--self-reported"])),
        "gold": dict(_pairs(table, columns["--gold"])),
    }


def _pairs(table: Table, values: list[str] | None) -> list[tuple[str, str]]:
    """`NAME=COL` as a pair; a column's name alone, which may hold an equals sign itself, stands for both."""
    pairs = []
    for value in values or []:
        name, equals, column = value.partition("=")
        pairs.append(
            (value, value) if value in table.columns or not equals else (name.strip(), column.strip())
        )
    return pairs
