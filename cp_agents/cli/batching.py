"""`batch write`, `batch read` and `batch list`: runs whose requests are answered elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cp_agents.cli import options as o

app = typer.Typer()


@app.command("write")
def write(
    in_file: o.InFile,
    model: Annotated[
        str,
        typer.Option(
            "--model", help="The model that will answer, as it is called there.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="JSONL of requests to write.", show_default=False)],
    store: o.Store = o.DEFAULT_STORE,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; made up by default. Only what it lacks is written."),
    ] = None,
    samples: o.Samples = 10,
    n: Annotated[
        str,
        typer.Option(
            "--n", help="yes: one request a record, for what honours n, as vLLM does; no: one a sample."
        ),
    ] = "no",
    taxonomy: o.Taxonomy = "profilebench",
    language: o.Language = "en",
    temperature: Annotated[float, typer.Option("--temperature")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 0.95,
    max_tokens: o.MaxTokens = 1200,
    seed: Annotated[int, typer.Option("--seed", help="Sample i is drawn with seed + i.")] = 0,
    token_budget: o.TokenBudget = 3000,
    tau: o.Tau = None,
) -> None:
    """Write the requests of a run to a file. Python: `cp_agents.batch_files.write_requests`."""
    from cp_agents.batch_files import FileBackend, write_requests
    from cp_agents.cli.profiling import report_bad_lines
    from cp_agents.errors import InputError
    from cp_agents.files import BadLine, check_out, read_records
    from cp_agents.profiler import Profiler

    if n not in ("yes", "no"):
        raise InputError(f"--n should be yes or no, found {n!r}")
    check_out(out, in_file, store, *o.files_of(taxonomy))
    lines = list(read_records(in_file))
    bad = [line for line in lines if isinstance(line, BadLine)]
    records = [line for line in lines if not isinstance(line, BadLine)]
    profiler = Profiler(
        FileBackend(model, n=n == "yes"), store, samples=samples, taxonomy=taxonomy, language=language, run=run,
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, token_budget=token_budget, tau=tau,
    )  # fmt: skip
    written = write_requests(profiler.context, records, out, language=language)
    if written.requests:
        typer.echo(
            f"{written.requests:,} requests for {written.records:,} records of run {profiler.run_id} in {out}"
        )
        typer.echo(f"answer them, for example: vllm run-batch -i {out} -o results.jsonl --model {model}")
        typer.echo(f"then: cp-agents batch read results.jsonl --out profiles.jsonl --store {store}")
    else:
        typer.echo(f"run {profiler.run_id} lacks nothing: no file was written")
    for user_id, why in list(written.failed.items())[:5]:
        typer.echo(f"error: user {user_id!r}: {why}", err=True)
    report_bad_lines(bad)
    if written.failed:
        raise typer.Exit(1)


@app.command("read")
def read(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="JSONL of result lines, in any order; errors too."),
    ],
    out: o.OutFile,
    store: o.Store = o.DEFAULT_STORE,
    prices: o.PricesFile = None,
) -> None:
    """Store the results of a written run, decide it, and write its profiles.
    Python: `cp_agents.batch_files.read_results`.
    """
    from cp_agents.batch_files import read_results
    from cp_agents.cli.tables import print_summary
    from cp_agents.files import check_out, write_jsonl
    from cp_agents.prices import find_prices
    from cp_agents.stores.traces import TraceStore

    check_out(out, store, prices, *results)
    with TraceStore(store, must_exist=True) as traces:
        report, strange = read_results(traces, results, price_list=find_prices(prices))
        written = write_jsonl(out, (profile.to_json() for _, profile in traces.profiles(report.run_id)))
    print_summary(report, report.done, written, out, store)
    if strange:
        typer.echo(f"note: {strange:,} lines answer nothing that this run waits for", err=True)
    if errors := sum(report.meter.errors.values()):
        typer.echo(
            f"note: {errors:,} samples failed; `batch write` writes requests for those that may yet be had",
            err=True,
        )


@app.command("list")
def show(store: o.Store = o.DEFAULT_STORE) -> None:
    """Show the batches of a store, submitted and written. Python: `cp_agents.stores.batches.all_batches`."""
    from rich.markup import escape
    from rich.table import Table

    from cp_agents.cli import tables
    from cp_agents.stores.batches import all_batches
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        found = all_batches(traces)
    if not found:
        typer.echo(f"no batches in {store}")
        return
    table = Table()
    for name in found[0]:
        table.add_column(name, justify="right" if name == "requests" else "left", overflow="fold")
    for row in found:
        table.add_row(*(escape(str(value)) for value in row.values()))
    tables.console().print(table)
