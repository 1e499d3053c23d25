"""`bench teachers`: the recorded language models of a data set, alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o


def teachers(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A data set's folder with recorded_guesses.jsonl (SynthPAI).",
            show_default=False,
        ),
    ],
    truth_field: o.BestTruthField = None,
    out_traces: Annotated[
        Path | None,
        typer.Option(
            "--out-traces",
            help="Write the answers as recorded samples, one a teacher, for `profile --backend replay:FILE`.",
            show_default=False,
        ),
    ] = None,
    draws: o.Draws = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of resamples and halvings.")] = 0,
    json_file: o.JsonFile = None,
) -> None:
    """Each recorded teacher, their votes by majority, skill and Dawid-Skene, and the best single one, in one table.
    Python: `cp_agents.bench.teacher_table`."""
    import json

    from cp_agents.bench.dataset import open_dataset, read_gold
    from cp_agents.bench.render import console as terminal
    from cp_agents.bench.render import print_grid
    from cp_agents.bench.teacher_table import as_grid, teacher_table
    from cp_agents.bench.teachers import read_teachers, trace_lines
    from cp_agents.files import check_out, whole_file, write_jsonl

    dataset = open_dataset(folder)
    inputs = (dataset.users, dataset.gold, dataset.guesses)
    if out_traces is not None:
        check_out(out_traces, *inputs)
    if json_file is not None:
        check_out(json_file, *inputs, out_traces)
    gold, field = read_gold(dataset, truth_field)
    read = read_teachers(dataset)
    table = teacher_table(read, gold, draws=draws, seed=seed)
    if json_file is not None:
        whole = table.model_dump(mode="json") | {
            "truth_field": field,
            "rules": f"{read.rules.name}@{read.rules.hash}",
            "coverage": {name: coverage._asdict() for name, coverage in read.coverage.items()},
        }
        with whole_file(json_file) as file:
            json.dump(whole, file, indent=1)
    console = terminal()
    print_grid(console, as_grid(table, field))
    for name, c in read.coverage.items():
        tagged = ", ".join(f"{a} {100 * n / max(1, c.asked - c.empty):.1f} %" for a, n in c.tagged.items())
        unread = "".join(f", most often {text[:40]!r} ({n})" for text, n in c.unread_most[:1])
        console.print(
            f"{name}: {c.asked:,} asked, {c.empty:,} not answered, {c.unread:,} that no rule reads{unread}; "
            f"of the answers with a tag: {tagged}",
            markup=False,
            style="dim",
        )
    if out_traces is not None:
        lines = write_jsonl(out_traces, trace_lines(read, dataset))
        console.print(
            f"wrote the samples of {len(read.models)} teachers for {lines} users to {out_traces}: "
            f"cp-agents profile {dataset.users} --backend replay:{out_traces} --samples {len(read.models)} --out OUT",
            markup=False,
            soft_wrap=True,
        )
