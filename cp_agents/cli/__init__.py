"""The command line: one file a verb group. Nothing heavy is imported until a verb runs."""

from __future__ import annotations

import sys

from cp_agents.errors import CpAgentsError


def main() -> None:
    """Entry point of `cp-agents`: a mistake of the user's is one sentence on stderr and an exit code of 2."""
    from cp_agents.cli.app import app

    try:
        app()
    except CpAgentsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has gone; closing stderr keeps Python from complaining at exit.
        sys.stderr.close()
        sys.exit(1)
