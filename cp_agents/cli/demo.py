"""`demo`: the shipped sample users through the embedded backend."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the store and the report go.")] = Path(
        "demo"
    ),
) -> None:
    """Profile the shipped sample users: no key, no network. Python: `Profiler().profile_many(records)`."""
    from importlib import resources

    from rich.console import Console

    from cp_agents.cli import tables
    from cp_agents.cli.tables import profile_table
    from cp_agents.errors import InputError, MissingExtraError
    from cp_agents.files import BadLine, check_out, read_records, whole_file, write_jsonl
    from cp_agents.profiler import Profiler
    from cp_agents.report.gather import build_report
    from cp_agents.report.render import render_report
    from cp_agents.stores.traces import TraceStore

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} ({error.strerror})") from None
    check_out(folder / "profiles.jsonl")
    with resources.as_file(resources.files("cp_agents") / "samples" / "users.jsonl") as path:
        records = [line for line in read_records(path) if not isinstance(line, BadLine)]
    profiler = Profiler(backend="lexicon", store=folder / "traces.db", samples=10, tau=2)
    profiles, report = profiler.profile_many(records)
    write_jsonl(folder / "profiles.jsonl", (p.to_json() for p in profiles))
    console = tables.console()
    console.print(profile_table(profiles))
    try:
        with TraceStore(folder / "traces.db") as traces:
            page = render_report(build_report(traces, report.run_id))
    except MissingExtraError:
        recorder = Console(record=True, width=140, file=io.StringIO())
        recorder.print(profile_table(profiles, title="cp-agents demo"))
        page = recorder.export_html()
    with whole_file(folder / "report.html") as file:
        file.write(page)
    console.print(
        f"{len(profiles)} users, {report.meter.samples + report.meter.reused} samples, {report.seconds:.1f} s."
        " Confidence is on the S/M scale: a dozen users are too few to calibrate on.\n"
        f"store:    {folder / 'traces.db'}\nprofiles: {folder / 'profiles.jsonl'}\nreport:   {folder / 'report.html'}\n"
        f"next:     {sys.argv[0]} profile YOUR.jsonl --backend openai:MODEL --out profiles.jsonl",
        highlight=False,
        soft_wrap=True,
    )
