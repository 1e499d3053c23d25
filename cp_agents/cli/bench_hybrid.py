"""`bench hybrid`: what a few labels add to the vote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o


def hybrid(
    gold: Annotated[
        Path, typer.Option("--gold", help="JSONL with user_id and the truth.", show_default=False)
    ],
    truth_field: o.BestTruthField = None,
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="Labelled users; may be repeated.", show_default="0 to 200"),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Random choices of who is labelled.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choices.")] = 0,
    json_file: o.JsonFile = None,
) -> None:
    """Hybrid supervision: k labels weigh the tags, the other users test it. Python: `cp_agents.bench.hybrid`."""
    import json

    from cp_agents.bench.dataset import read_truth
    from cp_agents.bench.hybrid import KS, METRICS, hybrid_rows
    from cp_agents.bench.render import console, print_grid
    from cp_agents.bench.results import Estimate, Grid, Row
    from cp_agents.errors import InputError
    from cp_agents.files import check_out, whole_file
    from cp_agents.stores.traces import TraceStore

    chosen = sorted(set(k or ()))
    if min(chosen, default=0) < 0:
        raise InputError("--k should be 0 or more")
    if json_file is not None:
        check_out(json_file, gold, store)
    truth, field = read_truth(gold, truth_field)
    with TraceStore(store, must_exist=True) as traces:
        rows = hybrid_rows(traces, run, truth, ks=None if k is None else chosen, draws=draws, seed=seed)
    grid = Grid(
        title="hybrid supervision: k labels weigh the tags, means over the attributes at tau 1",
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
            f"k: users whose gold (field {field!r}) is known; in brackets 2.5 to 97.5 percentiles over {draws} draws of"
            " who they are; the users tested on are not among them",
            *_left_out(k is None, KS[len(rows) :]),
            "the paper names limited labels as future work (section 7) and has no number to compare with",
        ],
    )
    if json_file is not None:
        with whole_file(json_file) as file:
            json.dump([row._asdict() for row in rows], file, indent=1)
    print_grid(console(), grid)


def _left_out(by_default: bool, larger: Sequence[int]) -> list[str]:
    if not by_default or not larger:
        return []
    return [
        f"k = {', '.join(map(str, larger))} would not leave half of the users with gold and answers to test on"
    ]
