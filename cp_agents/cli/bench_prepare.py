"""`bench prepare`: from the published files of a data set to a folder with records and gold."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Turn the published files of a data set into records and gold labels.", no_args_is_help=True
)


@app.callback()
def prepare() -> None:
    """Turn the published files of a data set into records and gold labels."""
