"""`bench hybrid`: what a few labels add to the vote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o


def hybrid(
    gold: Annotated[
        Path, typer.Option("--gold", help="JSONL with user_id and the truth.", show_default=False)
    ],
    truth_field: Annotated[str, typer.Option("--truth-field", help="Field of the gold rows.")] = "truth",
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="Labelled users; may be repeated.", show_default="0 to 200"),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Random choices of who is labelled.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Hybrid supervision: k labels weigh the tags, the other users test it. Python: `cp_agents.bench.hybrid`."""
    import json

    from cp_agents.bench.hybrid import METRICS, hybrid_rows
    from cp_agents.bench.render import console, print_grid
    from cp_agents.bench.results import Estimate, Grid, Row
    from cp_agents.errors import InputError
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.files import check_out, whole_file
    from cp_agents.stores.traces import TraceStore

    chosen = sorted(set(k or ()))
    if min(chosen, default=0) < 0 or draws < 1:
        raise InputError("--k should be 0 or more and --draws 1 or more")
    if json_file is not None:
        check_out(json_file, gold, store)
    with TraceStore(store, must_exist=True) as traces:
        truth = load_gold(gold, truth_field)
        rows = hybrid_rows(traces, run, truth, ks=None if k is None else chosen, draws=draws)
    grid = Grid(
        title="hybrid supervision: k labelled users weigh the tags, tested on the others (means over attributes)",
        label="k",
        columns=[*METRICS, "macro_f1 gained"],
        rows=[
            Row(
                label=str(row.k),
                cells=[Estimate.of(found) for found in (*(row.numbers[name] for name in METRICS), row.gain)],
            )
            for row in rows
        ],
        notes=[
            f"2.5 to 97.5 percentiles over {draws} draws of who is labelled; the users tested on are not among them",
            "the paper names limited labels as future work (section 7) and has no number to compare with",
        ],
    )
    print_grid(console(), grid)
    if json_file is not None:
        with whole_file(json_file) as file:
            json.dump([row._asdict() for row in rows], file, indent=1)
