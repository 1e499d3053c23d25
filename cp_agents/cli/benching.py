"""`bench`: the open benchmark. Each verb is a module of its own, `bench_*.py`, registered here."""

from __future__ import annotations

import typer

from cp_agents.cli import bench_hybrid, bench_teachers

app = typer.Typer(
    help="The open benchmark: public data, baselines, the paper's tables.", no_args_is_help=True
)
app.command("hybrid")(bench_hybrid.hybrid)
app.command("teachers")(bench_teachers.teachers)
