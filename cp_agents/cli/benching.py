"""`bench`: the open benchmark. Each verb is a module of its own, `bench_*.py`, registered here."""

from __future__ import annotations

import typer

from cp_agents.cli import (
    bench_hybrid,
    bench_long,
    bench_open,
    bench_prepare,
    bench_run,
    bench_simulate,
    bench_tables,
    bench_teachers,
)

app = typer.Typer()
app.command("run")(bench_run.run)
app.command("report")(bench_run.report)
app.command("hybrid")(bench_hybrid.hybrid)
app.command("teachers")(bench_teachers.teachers)
app.command("table")(bench_tables.table)
app.command("figure")(bench_tables.figure)
app.add_typer(bench_prepare.app, name="prepare")
app.command("simulate")(bench_simulate.simulate)
app.command("long")(bench_long.long)
app.command("open")(bench_open.open_values)
