"""`train`: from a stored run to a student, stage by stage."""

from __future__ import annotations

import typer

from cp_agents.cli import training_data, training_grpo, training_sft

app = typer.Typer()

app.command("sft")(training_sft.sft)
app.command("filter")(training_data.filter_users)
app.command("reference")(training_data.reference)
app.command("grpo")(training_grpo.grpo)
