"""`bench open`: what it takes to vote on free text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def open_values(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A data set's folder with recorded_guesses.jsonl (SynthPAI).",
            show_default=False,
        ),
    ],
    samples: Annotated[
        int | None,
        typer.Option("--samples", help="Models that speak on each question.", show_default="all"),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="With --samples, how often they are drawn.")] = 20,
    draws: Annotated[
        int, typer.Option("--draws", help="Bootstrap draws, and swaps of the paired test.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Free-text guesses of recorded models: voted as written, by equal words, by meaning, and the best single one.

    Python: `cp_agents.bench.open_set.open_rows`.
    """
    import json

    from cp_agents.bench.dataset import open_dataset
    from cp_agents.bench.open_set import EXACT, open_report, open_rows, read_recorded
    from cp_agents.bench.render import console, print_grid
    from cp_agents.bench.results import Estimate, Grid, Row
    from cp_agents.bench.teacher_table import short
    from cp_agents.errors import InputError
    from cp_agents.files import check_out, whole_file
    from cp_agents.open_text import THRESHOLD

    if min(draws, repeats) < 1:
        raise InputError("--draws and --repeats should be 1 or more")
    dataset = open_dataset(folder)
    if json_file is not None:
        check_out(json_file, dataset.users, dataset.gold, dataset.guesses)
    recorded = read_recorded(dataset)
    rows = open_rows(recorded, samples=samples, repeats=repeats, draws=draws, seed=seed)
    sizes = {f: sum(q.field == f for q in recorded.questions) for f in recorded.fields}
    speakers = samples or len(recorded.models)
    grid = Grid(
        title=f"{len(recorded.questions)} judged questions of {dataset.name}, {speakers} of"
        f" {len(recorded.models)} recorded models on each",
        label="answer",
        columns=["score", "less as written", "auroc", "answers", *recorded.fields],
        rows=[
            Row(
                label=row.name + (f" ({', '.join(map(short, row.models))})" if row.models else ""),
                cells=[
                    Estimate.of(row.mean),
                    None if row.against_exact is None else Estimate.of(row.against_exact),
                    None if row.auroc is None else Estimate.of(row.auroc),
                    None if row.groups is None else f"{row.groups:.1f}",
                    *(f"{found.value:.3f}" for found in row.fields.values()),
                ],
                ranked=not row.name.startswith("best"),
            )
            for row in rows
        ],
        best=["high", None, "high", None, *[None for _ in recorded.fields]],
        notes=[
            "score: verdict on the answer shown (1, 0.5 or 0, against what people made of the text; 0 for none), mean"
            " over fields; [95 % bootstrap interval over users], p of the paired test",
            f"less as written: against the row {EXACT!r}; auroc: how well the winner's share of the votes tells right"
            " answers from others; answers: different ones that the vote sees on a question",
            f"by meaning: clusters as open attributes are voted, joined from a similarity of {THRESHOLD:g}, chosen on"
            " these questions",
            "judged users: " + ", ".join(f"{name} {n}" for name, n in sizes.items()),
        ],
    )
    print_grid(console(), grid)
    if json_file is not None:
        with whole_file(json_file) as file:
            json.dump(open_report(rows), file, indent=1)
