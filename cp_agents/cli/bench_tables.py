"""`bench table` and `bench figure`: the paper's tables and figures from stored runs, without a model call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from cp_agents.bench.tables import Result
    from cp_agents.evaluation.loading import Gold
    from cp_agents.stores.traces import TraceStore

TABLES = (2, 3, 4, 5, 7)
FIGURES = (3, 5, 9)

_Store = Annotated[
    Path | None,
    typer.Option("--store", help="Trace store with the run; traces.db by default.", show_default=False),
]
_Traces = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        help="JSONL of recorded answers instead of a stored run; they are voted on in memory, or into --store.",
        show_default=False,
    ),
]
_Users = Annotated[
    Path | None, typer.Option("--users", help="With --traces: the users' records.", show_default=False)
]
_Student = Annotated[
    list[str] | None,
    typer.Option(
        "--student",
        help="NAME=RUN: a student's run in the store. Table 3 takes the names of shapes, table 4 with and without,"
        " table 5 self and frozen. May be repeated.",
        show_default=False,
    ),
]
_Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Of resamples, and of the users that a shape keeps.")
]


def table(
    number: Annotated[
        int, typer.Argument(metavar="N", help=f"Which: {', '.join(map(str, TABLES))}.", show_default=False)
    ],
    gold: Annotated[
        Path, typer.Option("--gold", help="JSONL with user_id and the truth.", show_default=False)
    ],
    store: _Store = None,
    run: o.Run = None,
    traces: _Traces = None,
    users: _Users = None,
    taxonomy: o.Taxonomy = "profilebench",
    truth_field: o.BestTruthField = None,
    student: _Student = None,
    rule: Annotated[
        str,
        typer.Option(
            "--rule", help="Table 3: a user's level from the attributes': mean, median, min, quintile."
        ),
    ] = "mean",
    keep: Annotated[
        int | None,
        typer.Option("--keep", help="Table 3: users that each shape keeps.", show_default="most it can"),
    ] = None,
    draws: o.Draws = 1000,
    seed: _Seed = 0,
    json_file: o.JsonFile = None,
) -> None:
    """A table of the paper from stored samples, the paper's numbers beside; no model call.
    2: ways to vote. 3: difficulty shapes. 4: calibration on and off. 5: self-stated against frozen confidence.
    7: every attribute at every tau. Python: `cp_agents.bench.tables`.
    """
    from cp_agents.bench import table_calibration, table_confidence, table_shapes, table_taus, table_votes
    from cp_agents.bench.dataset import read_truth
    from cp_agents.bench.tables import load_source
    from cp_agents.errors import InputError

    if number == 1:
        raise InputError("table 1, methods by attributes, is what `bench run` prints")
    if number not in TABLES:
        raise InputError(f"there is no table {number} here: expected one of {', '.join(map(str, TABLES))}")
    _check_out(json_file, gold, store, traces, users)
    named = _students(student or ())
    truth, field = read_truth(gold, truth_field)
    with _opened(store, run, traces, users, taxonomy) as (opened, run_id):
        source = load_source(opened, run_id, truth, named, draws=draws, seed=seed)
    if number == 2:
        found = table_votes.table_votes(source)
    elif number == 3:
        found = table_shapes.table_shapes(source, rule=rule, seed=seed, keep=keep)  # type: ignore[arg-type]
    elif number == 4:
        found = table_calibration.table_calibration(source)
    elif number == 5:
        found = table_confidence.table_confidence(source)
    else:
        found = table_taus.table_taus(source)
    _show(found, field, truth, json_file)


def figure(
    number: Annotated[
        int, typer.Argument(metavar="N", help=f"Which: {', '.join(map(str, FIGURES))}.", show_default=False)
    ],
    gold: Annotated[
        Path | None,
        typer.Option(
            "--gold", help="JSONL with user_id and the truth; figures 3 and 9 go without.", show_default=False
        ),
    ] = None,
    store: _Store = None,
    run: o.Run = None,
    traces: _Traces = None,
    users: _Users = None,
    taxonomy: o.Taxonomy = "profilebench",
    truth_field: o.BestTruthField = None,
    student: _Student = None,
    draws: o.Draws = 1000,
    seed: _Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the figure as .svg or .csv.", show_default=False)
    ] = None,
    json_file: o.JsonFile = None,
) -> None:
    """A figure of the paper from stored samples, as text, and with --out as SVG or CSV; no model call.
    5: precision against coverage at every tau. 3 and 9: levels before and after calibration.
    Python: `cp_agents.bench.figures`.
    """
    from cp_agents.bench import draw
    from cp_agents.bench.dataset import read_truth
    from cp_agents.bench.figures import figure_curves, figure_levels
    from cp_agents.bench.stored import load_run
    from cp_agents.bench.tables import load_source
    from cp_agents.errors import InputError

    if number not in FIGURES:
        raise InputError(f"there is no figure {number} here: expected one of {', '.join(map(str, FIGURES))}")
    if number == 5 and gold is None:
        raise InputError("figure 5 needs the truth: give it with --gold")
    if out is not None:
        draw.check_format(out)
    for path in (out, json_file):
        _check_out(path, gold, store, traces, users)
    named = _students(student or ())
    truth, field = read_truth(gold, truth_field) if gold is not None else (None, "")
    with _opened(store, run, traces, users, taxonomy) as (opened, run_id):
        if number == 5 and truth is not None:
            found = figure_curves(load_source(opened, run_id, truth, named, draws=draws, seed=seed))
        elif named:
            raise InputError(f"figure {number} is of one run: it takes no --student")
        else:
            found = figure_levels(load_run(opened, run_id), number, truth, draws=draws, seed=seed)
    if out is not None:
        draw.write(found, out)
    typer.echo(draw.text(found) + "\n")
    _show(found, field, truth, json_file)
    if out is not None:
        typer.echo(f"wrote {out}")


@contextmanager
def _opened(
    store: Path | None, run: str | None, traces: Path | None, users: Path | None, taxonomy: str
) -> Iterator[tuple[TraceStore, str | None]]:
    """The store with the run: a stored one, or one that the recorded answers were just voted into."""
    from cp_agents.bench.stored import profile_traces
    from cp_agents.errors import InputError
    from cp_agents.stores.traces import TraceStore

    if (traces is None) != (users is None):
        raise InputError("--traces and --users go together: the answers, and the records that they are about")
    if traces is None or users is None:
        with TraceStore(store or o.DEFAULT_STORE, must_exist=True) as opened:
            yield opened, run
        return
    if run is not None:
        raise InputError("--run names a stored run, and --traces brings its own answers: give one of them")
    with TraceStore(store or ":memory:") as opened:
        yield opened, profile_traces(traces, users, opened, taxonomy)


def _students(words: list[str] | tuple[str, ...]) -> dict[str, str]:
    from cp_agents.errors import InputError

    found: dict[str, str] = {}
    for word in words:
        name, _, run = word.partition("=")
        if not name or not run:
            raise InputError(f"--student {word}: expected NAME=RUN")
        if name in found:
            raise InputError(f"--student {word}: {name} is named already")
        found[name] = run
    return found


def _check_out(path: Path | None, *inputs: Path | None) -> None:
    from cp_agents.files import check_out

    if path is not None:
        check_out(path, *inputs)


def _show(found: Result, field: str, truth: Gold | None, json_file: Path | None) -> None:
    """Grids and notes on the terminal, and all numbers as JSON."""
    from cp_agents.bench.render import console, print_grid
    from cp_agents.files import whole_file

    if truth is not None:
        outside = len(truth) - found.users if found.name.startswith("table") else 0
        more = f"; users of gold that are not in the run and left out: {outside:,}" if outside > 0 else ""
        found.notes.insert(0, f"truth: field {field!r} of the gold rows{more}")
    if json_file is not None:
        with whole_file(json_file) as file:
            file.write(found.model_dump_json(indent=1) + "\n")
    terminal = console()
    for grid in found.grids:
        print_grid(terminal, grid)
    for note in found.notes:
        terminal.print(f"- {note}", markup=False, style="dim")
