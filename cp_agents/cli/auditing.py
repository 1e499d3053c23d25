"""`audit`: does a profiler serve all groups alike?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cp_agents.cli import options as o
from cp_agents.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.table import Table

    from cp_agents.evaluation.audit import Cell, Gap, GroupAudit
    from cp_agents.taxonomy import Taxonomy
    from cp_agents.trainers.fairness import Group

_SUSPICIOUS = 0.05
_SENTENCES = 5
_WORDS = {"accuracy": "right in", "coverage": "answered for"}


class _Found(NamedTuple):
    profiler: str
    by: str
    audits: list[GroupAudit]


def audit(
    predictions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PRED",
            help="Profiles of one profiler a file, as written by `profile`.",
            show_default=False,
        ),
    ] = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="JSONL with user_id and the truth.", show_default=False)
    ] = None,
    truth_field: o.TruthField = "truth",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="Groups: an attribute of gold, or a self-reported field (self_reported.FIELD); may be repeated.",
            show_default=False,
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", help="The records, for self-reported fields of PRED.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Trace store that holds the runs.", show_default=False)
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            "--run", help="A run of the store, as teacher and student; may be repeated.", show_default=False
        ),
    ] = None,
    tau: o.Tau = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--filter", help="Users that `train filter` kept: which groups it drops.", show_default=False
        ),
    ] = None,
    min_users: Annotated[
        int, typer.Option("--min-users", min=2, help="Numbers of fewer users are shown and not compared.")
    ] = 30,
    taxonomy: o.RunsTaxonomy = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Accuracy, coverage, NA rate and confidence by group, for one or more profilers, and the gaps between groups.
    Python: `cp_agents.evaluation.audit.audit_groups`.
    """
    import json

    from cp_agents.abstention import parse_tau
    from cp_agents.cli import tables
    from cp_agents.evaluation.audit import audit_groups, said_outcomes
    from cp_agents.evaluation.groups import groups_by
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.evaluation.outcomes import by_user
    from cp_agents.files import check_out, whole_file
    from cp_agents.taxonomy import load_taxonomy

    if gold is None or not by:
        raise InputError("an audit needs the truth with --gold FILE and groups with --by, as in --by gender")
    if run and store is None:
        raise InputError("--run names a run of a store: give the store with --store")
    if json_file is not None:
        check_out(json_file, gold, store, records, kept, *(predictions or []), *o.files_of(taxonomy or ""))
    truth = load_gold(gold, truth_field)
    profilers, reported, of_run = _profilers(predictions or [], store, run or [], records)
    chosen = load_taxonomy(taxonomy) if taxonomy else of_run or load_taxonomy("profilebench")
    thresholds = parse_tau(tau, chosen) if tau else None
    found = []
    groups = {name: groups_by(name, truth, reported, chosen) for name in by}
    for profiler, lines in profilers.items():
        profiles = by_user(lines)
        if not profiles.keys() & truth.keys():
            raise InputError(f"{profiler} and {gold} have no user in common: nothing can be audited")
        known = {user: tags for user, tags in truth.items() if user in profiles}
        said = said_outcomes(profiles, known, chosen, thresholds)
        if not said:
            raise InputError(
                f"{gold} speaks of no attribute of the taxonomy {chosen.name}: nothing can be audited"
            )
        for name in by:
            audits = [audit_groups(*one, groups[name], min_users=min_users) for one in said.values()]
            found.append(_Found(profiler, name, audits))
    filtered = _filter_groups(kept, groups) if kept is not None else []
    if json_file is not None:
        whole = {
            "profilers": [
                {"profiler": f.profiler, "by": f.by, "attributes": [a.model_dump() for a in f.audits]}
                for f in found
            ],
            "filter": [vars(group) for group in filtered],
        }
        with whole_file(json_file) as file:
            json.dump(whole, file, indent=1)
    console = tables.console()
    for one in found:
        tables.print_table(console, _cells(one, min_users))
    if any(_compared(found)):
        tables.print_table(console, _gaps(found))
    if filtered:
        tables.print_table(console, _filter(filtered))
    for sentence in sentences(found, len(profilers) > 1):
        console.print(sentence, markup=False)


def _profilers(
    predictions: list[Path], store: Path | None, runs: list[str], records: Path | None
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, str]] | None, Taxonomy | None]:
    """The lines by profiler, what users report of themselves, where that is known, and the first run's taxonomy."""
    import json

    from cp_agents.evaluation.loading import load_predictions
    from cp_agents.files import BadLine, read_records
    from cp_agents.schema import UserRecord
    from cp_agents.stores.traces import TraceStore
    from cp_agents.taxonomy import Taxonomy

    found: dict[str, list[dict[str, Any]]] = {}
    reported: dict[str, dict[str, str]] | None = None
    taxonomy: Taxonomy | None = None
    for path in predictions:
        name = str(path) if path.stem in found else path.stem
        found[name] = load_predictions(path)
    if store is not None:
        reported = {}
        with TraceStore(store, must_exist=True) as traces:
            wanted: list[str | None] = [*runs] or [None]
            for named in wanted:
                row = traces.run(named)
                run_id = row["run_id"]
                taxonomy = taxonomy or Taxonomy.model_validate_json(row["taxonomy"])
                found[run_id] = [profile.to_json() for _, profile in traces.profiles(run_id)]
                if not found[run_id]:
                    raise InputError(f"run {run_id} of {store} has no profiles")
                rows = traces.rows("select user_id, self_reported from records where run_id = ?", (run_id,))
                reported |= {user: json.loads(fields or "{}") for user, fields in rows}
    if records is not None:
        lines = list(read_records(records))
        if bad := [line for line in lines if isinstance(line, BadLine)]:
            raise InputError(bad[0].message)
        users = [UserRecord.from_dict(line) for line in lines]
        reported = (reported or {}) | {user.user_id: user.self_reported for user in users}
    if not found:
        raise InputError("give profiles as files, or a store with --store (and --run)")
    return found, reported, taxonomy


def _filter_groups(kept: Path, groups: Mapping[str, Mapping[str, str]]) -> list[Group]:
    """The audit of the difficulty filter, over the users of gold that are in a group."""
    from cp_agents.files import parse_line, raw_lines
    from cp_agents.trainers import fairness

    rows = [parse_line(raw) for _, raw in raw_lines(kept)]
    if not rows or not all(isinstance(row, dict) and "user_id" in row for row in rows):
        raise InputError(f'{kept}: expected lines with a "user_id", as `train filter` writes them')
    chosen = {str(row["user_id"]) for row in rows}
    users = sorted({user for of_users in groups.values() for user in of_users})
    if not chosen & set(users):
        raise InputError(f"{kept} keeps no user of gold: nothing can be said of whom it drops")
    tags = {by: [of_users.get(user) for user in users] for by, of_users in groups.items()}
    return fairness.audit(tags, [user in chosen for user in users], "by")


def sentences(found: Iterable[_Found], several: bool) -> list[str]:
    """What the audit says in words: the widest gaps that chance seldom makes, and how many it would make."""
    gaps = list(_compared(found))
    if not gaps:
        return ["no two groups that are large enough differ: there is no gap to speak of"]
    telling = [entry for entry in gaps if entry.gap.chance <= _SUSPICIOUS]
    lines = []
    for entry in sorted(telling, key=lambda entry: -entry.gap.difference):
        gap, words = entry.gap, _WORDS.get(entry.measure)
        if words is None:
            continue
        cells = {cell.group: cell.value or 0.0 for cell in entry.audit.cells[entry.measure]}
        whose = f"{entry.profiler}, {entry.audit.attribute}" if several else entry.audit.attribute
        lines.append(
            f"{whose}: {words} {cells[gap.highest]:.0%} with {entry.by} {gap.highest}, {cells[gap.lowest]:.0%} with"
            f" {gap.lowest}; random groups differ as much in {gap.chance:.1%} of cases"
        )
    return [
        *lines[:_SENTENCES],
        f"{len(telling)} of {len(gaps)} gaps are marked (!): random groups differ as much in {_SUSPICIOUS:.0%} of cases"
        f" or fewer; if all groups were served alike, about {_SUSPICIOUS * len(gaps):.0f} would be",
    ]


class _Entry(NamedTuple):
    gap: Gap
    measure: str
    audit: GroupAudit
    profiler: str
    by: str


def _compared(found: Iterable[_Found]) -> Iterator[_Entry]:
    """The gaps there are; the NA rate says again what the coverage says."""
    for one in found:
        for audit in one.audits:
            for measure, gap in audit.gaps.items():
                if gap is not None and gap.difference > 0 and measure != "na_rate":
                    yield _Entry(gap, measure, audit, one.profiler, one.by)


def _cells(found: _Found, min_users: int) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from cp_agents.evaluation.audit import MEASURES

    title = f"{found.profiler} by {found.by} (* of fewer than {min_users} users: not compared)"
    table = Table(title=escape(title), title_justify="left", pad_edge=False)
    for name in ("attribute", "group", "users"):
        table.add_column(name, justify="right" if name == "users" else "left")
    for measure in MEASURES:
        table.add_column(measure.replace("_", " "), justify="right")
    for audit in found.audits:
        groups = [cell.group for cell in audit.cells["na_rate"]]
        for i, group in enumerate(groups):
            cells = [audit.cells[measure][i] for measure in MEASURES]
            table.add_row(
                audit.attribute if i == 0 else "",
                escape(group),
                str(audit.cells["na_rate"][i].n),
                *map(_number, cells),
                end_section=i == len(groups) - 1,
            )
    return table


def _number(cell: Cell) -> str:
    from cp_agents.cli.tables import short_interval

    if cell.value is None or cell.low is None or cell.high is None:
        return "-"
    mark = "" if cell.compared else "*"
    return f"{cell.value:.2f} {short_interval(cell.low, cell.high)}{mark}"


def _gaps(found: list[_Found]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="gaps between groups (highest less lowest, 95 % interval)", title_justify="left")
    names = (
        "profiler",
        "by",
        "attribute",
        "measure",
        "highest",
        "lowest",
        "gap",
        "ratio",
        "by chance",
    )
    # what is the same in every row stands in the title of the table above
    told = [len({one.profiler for one in found}) > 1, len({one.by for one in found}) > 1, *[True] * 7]
    for i, name in enumerate(names):
        if told[i]:
            table.add_column(name, justify="left" if i < 6 else "right")
    for entry in _compared(found):
        cells = (entry.profiler, entry.by, entry.audit.attribute, entry.measure, *_gap_cells(entry.gap))
        table.add_row(*(escape(cell) for cell, shown in zip(cells, told, strict=True) if shown))
    return table


def _gap_cells(gap: Gap) -> tuple[str, ...]:
    from cp_agents.cli.tables import short_interval

    mark = " !" if gap.chance <= _SUSPICIOUS else ""
    return (
        gap.highest,
        gap.lowest,
        f"{gap.difference:.2f} {short_interval(gap.low, gap.high)}",
        "-" if gap.ratio is None else f"{gap.ratio:.2f}",
        f"{gap.chance:.3f}{mark}",
    )


def _filter(groups: list[Group]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="the difficulty filter: groups kept least often (! below four fifths)", title_justify="left"
    )
    for name in ("group", "users", "kept", "share", "all", "ratio", "by chance"):
        table.add_column(name, justify="left" if name == "group" else "right")
    for group in groups:
        table.add_row(
            escape(f"{group.attribute}: {group.tag}"),
            f"{group.users:,}",
            f"{group.kept:,}",
            f"{group.share:.1%}",
            f"{group.overall:.1%}",
            f"{group.ratio:.2f}{'  !' if group.flagged else ''}",
            f"{group.chance:.3f}",
        )
    return table
