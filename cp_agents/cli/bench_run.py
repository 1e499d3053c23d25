"""`bench run` and `bench report`: methods over data sets, and results side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cp_agents.bench.results import BenchResults
    from cp_agents.profiler import Profiler
    from cp_agents.runner import BatchReport

METRICS = "macro_f1, selective_accuracy, coverage, true_recall or paper_f1"

_Metric = Annotated[str, typer.Option("--metric", help=f"What the table shows: {METRICS}.")]


def run(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Data sets' folders, each with users.jsonl and gold.jsonl.",
            show_default=False,
        ),
    ],
    backend: Annotated[
        list[str],
        typer.Option("--backend", help="As for `profile`; may be repeated. The first one is the reference."),
    ] = ["lexicon"],  # noqa: B006  # typer reads it and nothing changes it
    samples: o.Samples = 10,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results.json, results.md and the trace store bench.db.")
    ] = Path("bench"),
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="constant, tfidf_lr, lightgbm, recorded, one_sample, majority, or none; may be repeated."
            " All by default.",
            show_default=False,
        ),
    ] = None,
    metric: _Metric = "macro_f1",
    tau: Annotated[float, typer.Option("--tau", help="Threshold 1..5 at which answers count.")] = 1,
    truth_field: o.BestTruthField = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            help="all, or train, dev or test: only its users; trained baselines learn from the others.",
        ),
    ] = "all",
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Only the first N users of each data set.", show_default=False),
    ] = None,
    folds: Annotated[int, typer.Option("--folds", help="Of the trained baselines' cross-validation.")] = 5,
    draws: o.Draws = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of samples, resamples and trained baselines.")] = 0,
    taxonomy: o.Taxonomy = "profilebench",
    base_url: o.BaseUrl = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Records in flight.")] = 16,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Another trace store than OUT/bench.db: one in which students are registered or samples lie.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare backends and baselines with gold: the paper's table 1. Goes on where an earlier attempt stopped.

    Python: `cp_agents.bench.run.run_bench`.
    """
    from cp_agents.bench.leaderboard import RESULTS, TABLES
    from cp_agents.bench.render import console, print_grid
    from cp_agents.bench.run import run_bench
    from cp_agents.bench.settings import BASELINES, BenchSettings
    from cp_agents.bench.table1 import facts, terminal_grids
    from cp_agents.errors import InputError
    from cp_agents.files import check_out, whole_file

    check_metric(metric)
    chosen = BASELINES if not baseline else () if baseline == ["none"] else tuple(dict.fromkeys(baseline))
    if out.exists() and not out.is_dir():
        raise InputError(f"--out should be a folder, and {out} is none")
    if out.is_dir():
        for name in (RESULTS, TABLES):
            check_out(out / name, *o.files_of(*backend, taxonomy))
    settings = BenchSettings(
        backends=tuple(backend), samples=samples, baselines=chosen, taxonomy=taxonomy, truth_field=truth_field,
        tau=tau, split=split, limit=limit, folds=folds, seed=seed, draws=draws, concurrency=concurrency,
        base_url=base_url, store=store,
    )  # fmt: skip
    say = partial(typer.echo, err=True)
    found = run_bench(folders, out, settings, profile=partial(_profile, concurrency=concurrency), say=say)
    with whole_file(out / RESULTS) as file:
        file.write(found.results.model_dump_json(indent=1, exclude_none=True) + "\n")
    with whole_file(out / TABLES) as file:
        file.write(_markdown(found.results))
    show = console()
    for dataset in found.results.datasets:
        show.print(f"\n{dataset.name}", markup=False, style="bold")
        for line in facts(found.results, dataset):
            show.print(line, markup=False, soft_wrap=True)
        for grid in terminal_grids(dataset, metric):
            show.print()
            print_grid(show, grid)
    show.print(
        f"\n{found.asked:,} samples were asked for; wrote {out / RESULTS} and {out / TABLES}, every sample is in"
        f" {store or out / 'bench.db'}",
        markup=False,
        soft_wrap=True,
    )


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT...", help="Folders of `bench run`, or their results.json.", show_default=False
        ),
    ],
    metric: _Metric = "macro_f1",
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables as Markdown, too.", show_default=False)
    ] = None,
) -> None:
    """Put the results of several `bench run`s side by side. Python: `cp_agents.bench.leaderboard.leaderboards`."""
    from cp_agents.bench.leaderboard import RESULTS, leaderboards, load_results
    from cp_agents.bench.render import console, markdown_table, print_grid
    from cp_agents.files import check_out, whole_file

    check_metric(metric)
    sources = [folder / RESULTS if folder.is_dir() else folder for folder in folders]
    if markdown is not None:
        check_out(markdown, *sources)
    grids = leaderboards([load_results(folder) for folder in folders], metric)
    if markdown is not None:
        with whole_file(markdown) as file:
            file.write("\n".join(markdown_table(grid) for grid in grids))
    show = console()
    for grid in grids:
        show.print()
        print_grid(show, grid)


def check_metric(metric: str) -> None:
    """Raises `InputError` for a metric that tables do not have."""
    from cp_agents.bench.table1 import METRICS as KNOWN
    from cp_agents.errors import InputError

    if metric not in KNOWN:
        raise InputError(f"unknown metric {metric!r}: expected one of {', '.join(KNOWN)}")


def _profile(profiler: Profiler, records: Sequence[dict[str, Any]], *, concurrency: int) -> BatchReport:
    """With a progress line; the first Ctrl-C drains and ends the command, and the next call goes on from there."""
    from cp_agents.cli.running import run_live

    report = run_live(profiler, records, concurrency=concurrency)
    if report.stopped:
        typer.echo("stopped: what landed is kept, and the same command goes on from there", err=True)
        raise typer.Exit(130)
    return report


def _markdown(results: BenchResults) -> str:
    from cp_agents.bench.render import markdown_table
    from cp_agents.bench.table1 import facts, file_grids

    parts = []
    for dataset in results.datasets:
        parts.append(f"## {dataset.name}\n")
        parts.append("\n".join(f"- {line}" for line in facts(results, dataset)) + "\n")
        parts += [markdown_table(grid) for grid in file_grids(dataset)]
    return "\n".join(parts)
