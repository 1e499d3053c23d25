"""`bench prepare`: from the published files of a data set to a folder with records and gold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import bench_csv

if TYPE_CHECKING:
    from cp_agents.bench.prepared import Prepared

app = typer.Typer(
    help="Turn the published files of a data set into records and gold labels.", no_args_is_help=True
)

Source = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder or zip with the published files.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", help="New folder for the data set.", show_default=False)]
RulesFile = Annotated[
    Path | None,
    typer.Option(
        "--rules", help="Mapping rules of your own (YAML) instead of the built-in ones.", show_default=False
    ),
]


@app.callback()
def prepare() -> None:
    """Turn the published files of a data set into records and gold labels."""


@app.command()
def synthpai(path: Source, out: Out, rules: RulesFile = None) -> None:
    """SynthPAI: a clone of its repository. Python: `cp_agents.bench.synthpai.prepare_synthpai`."""
    from cp_agents.bench.synthpai import prepare_synthpai

    _write(prepare_synthpai(path, rules or "synthpai"), out)


@app.command()
def atus(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Folder with the survey's files or zips, or the files.", show_default=False
        ),
    ],
    out: Out,
    users: Annotated[
        int | None,
        typer.Option(
            "--users", min=1, help="Take this many respondents, by hash of their ids; all by default.",
            show_default=False,
        ),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate-self-reports", help="Make up noisy self-reports from the truth.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the simulated self-reports.")] = 0,
    rules: RulesFile = None,
) -> None:  # fmt: skip
    """American Time Use Survey: the microdata files (atusact, atusresp, atusrost, atuscps), or the R package's as CSV.

    Python: `cp_agents.bench.atus.prepare_atus`.
    """
    from cp_agents.bench.atus import prepare_atus

    _write(prepare_atus(paths, rules or "atus", users=users, simulate=seed if simulate else None), out)


@app.command()
def movielens(path: Source, out: Out, rules: RulesFile = None) -> None:
    """MovieLens-100K or 1M: the official release, or recbole's copy of 100K.

    Python: `cp_agents.bench.movielens.prepare_movielens`.
    """
    from cp_agents.bench.movielens import prepare_movielens

    _write(prepare_movielens(path, rules or "movielens"), out)


@app.command()
def blogs(
    path: Source,
    out: Out,
    include_minors: Annotated[
        bool, typer.Option("--include-minors", help="Keep bloggers under 18, who are left out by default.")
    ] = False,
    rules: RulesFile = None,
) -> None:
    """Blog Authorship Corpus: files ID.gender.age.industry.sign.xml. Python: `cp_agents.bench.blogs.prepare_blogs`."""
    from cp_agents.bench.blogs import prepare_blogs

    _write(prepare_blogs(path, rules or "blogs", include_minors=include_minors), out)


app.command("csv")(bench_csv.prepare_csv)


def _write(prepared: Prepared, out: Path) -> None:
    from cp_agents.bench.writing import check_new_folder

    check_new_folder(out)
    card = prepared.write(out)
    splits = ", ".join(f"{split} {n:,}" for split, n in card.splits.items())
    typer.echo(f"{card.title}: {card.users:,} users ({splits}), {card.gold:,} with gold, in {out}")
    for reason, n in card.left_out.items():
        typer.echo(f"left out: {n:,} {reason}")
    typer.echo(f"licence: {card.licence}")
    typer.echo(f"passing on: {prepared.rules.redistribution.strip()}")
    typer.echo(f"cite: {card.citation}")
