"""`bench long`: what becomes of users with very long histories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o


def long(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data set folder.", show_default=False)],
    backend: o.Backend = "lexicon",
    base_url: o.BaseUrl = None,
    items: Annotated[int, typer.Option("--items", min=1, help="Items of each history.")] = 5000,
    users: Annotated[
        int, typer.Option("--users", min=1, help="Users with gold, the first of the file.")
    ] = 100,
    samples: o.Samples = 10,
    token_budget: o.TokenBudget = 1000,
    store: o.Store = Path("long.db"),
    taxonomy: o.Taxonomy = "profilebench",
    truth_field: o.BestTruthField = None,
    draws: o.Draws = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of samples, small talk and resamples.")] = 0,
    json_file: o.JsonFile = None,
) -> None:
    """Truncate, condense or select: the same users with small talk put between their items.

    Python: `cp_agents.bench.long.long_rows`.
    """
    import json

    from cp_agents.backends.registry import BackendOptions
    from cp_agents.bench.dataset import open_dataset, read_gold
    from cp_agents.bench.long import METRICS, long_rows, only_gold
    from cp_agents.bench.render import console, print_grid
    from cp_agents.bench.results import Estimate, Grid, Row
    from cp_agents.errors import InputError
    from cp_agents.evaluation.outcomes import read_outcomes
    from cp_agents.files import BadLine, check_out, read_records, whole_file
    from cp_agents.plan import check_spec
    from cp_agents.profiler import check_samples
    from cp_agents.stores.traces import TraceStore
    from cp_agents.taxonomy import load_taxonomy

    chosen = load_taxonomy(taxonomy)
    check_samples(samples)
    check_spec(backend, BackendOptions(chosen, base_url=base_url, store=store if store.is_file() else None))
    dataset = open_dataset(folder)
    if json_file is not None:
        check_out(json_file, dataset.users, dataset.gold, store, *o.files_of(backend, taxonomy))
    gold, field = read_gold(dataset, truth_field)
    lines = list(read_records(dataset.users))
    if bad := [line for line in lines if isinstance(line, BadLine)]:
        raise InputError(bad[0].message)
    records = list(only_gold((line for line in lines if not isinstance(line, BadLine)), gold, users))
    gold = {str(r["user_id"]): gold[str(r["user_id"])] for r in records}
    if not records:
        raise InputError(f"{dataset.users} and {dataset.gold} have no user in common")
    if not any(found.labelled.any() for found in read_outcomes({}, gold, chosen).values()):
        raise InputError(f"{dataset.gold}: the gold of these users has no tag of the taxonomy {chosen.name}")
    with TraceStore(store) as traces:
        rows = long_rows(
            records, gold, traces, backend=backend, base_url=base_url, items=items, samples=samples,
            token_budget=token_budget, draws=draws, seed=seed, taxonomy=chosen,
        )  # fmt: skip
    grid = Grid(
        title=f"{len(records)} users of {dataset.name}, histories of {items:,} items in {token_budget:,} tokens",
        label="history",
        columns=[*METRICS, "macro_f1 against truncate", "tokens", "calls to select"],
        rows=[
            Row(
                label=row.name,
                cells=[
                    *(Estimate.of(row.numbers[name]) for name in METRICS),
                    Estimate.of(row.against_truncated["macro_f1"]) if row.against_truncated else None,
                    round(row.prompt_tokens),
                    row.asked,
                ],
                ranked=row.name != "as they are",
            )
            for row in rows
        ],
        best=["high", None, "high", None, None, None],
        notes=[
            f"means over the attributes at tau 1, against {field}, 95 % intervals over users; what was put between the"
            " items is small talk that says nothing of anybody",
            "as they are: the user's own items alone, condensed by rule where they do not fit",
            "the paper names ultra-long histories as open (section 7) and has no number to compare with",
        ],
    )
    if json_file is not None:
        with whole_file(json_file) as file:
            json.dump([row._asdict() for row in rows], file, indent=1)
    print_grid(console(), grid)
