"""Write docs/cli.md from the command line itself; a test fails when it has drifted.

python docs/generate.py
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path


def cli_reference() -> str:
    """The reference of every verb, as typer writes it."""
    os.environ["TERM"] = "dumb"
    from typer.cli import app as typer_app

    out = Path(__file__).with_name(".cli.md.tmp")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            typer_app(
                ["cp_agents.cli.app", "utils", "docs", "--name", "cp-agents", "--output", str(out)],
                standalone_mode=False,
            )
        return out.read_text(encoding="utf-8")
    finally:
        out.unlink(missing_ok=True)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(cli_reference(), encoding="utf-8")
