"""`doctor`: is this machine ready, and what is missing for what."""

from __future__ import annotations

import typer

from cp_agents.cli import options as o

_EXTRAS = {
    "aiohttp": (("aiohttp",), "a faster HTTP transport"),
    "calibration": (("sklearn",), "isotonic and Platt calibration"),
}
_CORE = (
    "langgraph",
    "langchain-core",
    "openai",
    "pydantic",
    "sqlite-utils",
    "tenacity",
    "numpy",
    "typer",
    "rich",
)


def doctor(base_url: o.BaseUrl = None) -> None:
    """Check Python, packages, extras, keys and an endpoint. Python: `cp_agents.backends.openai`."""
    import os
    import platform
    import sqlite3
    from importlib import metadata, util

    from rich.table import Table

    from cp_agents import __version__
    from cp_agents.backends.registry import kinds
    from cp_agents.cli import tables

    table = Table(show_header=False)
    table.add_row("cp-agents", __version__)
    table.add_row("python", f"{platform.python_version()} ({platform.system()})")
    table.add_row("sqlite", sqlite3.sqlite_version)
    for package in _CORE:
        table.add_row(package, metadata.version(package))
    table.add_row("backends", ", ".join(kinds()))
    for extra, (modules, what) in _EXTRAS.items():
        missing = [m for m in modules if util.find_spec(m) is None]
        hint = (
            f"not installed; pip install 'cp-agents\\[{extra}]' for {what}"
            if missing
            else f"installed ({what})"
        )
        table.add_row(f"extra \\[{extra}]", hint)
    key = (
        "set" if os.environ.get("OPENAI_API_KEY") else "not set (needed for openai:MODEL without --base-url)"
    )
    table.add_row("OPENAI_API_KEY", key)
    failed = False
    if base_url is not None:
        said, failed = _ask(base_url)
        table.add_row(base_url, said)
    tables.console().print(table)
    if failed:
        raise typer.Exit(1)


def _ask(base_url: str) -> tuple[str, bool]:
    """What the endpoint says of its models, and whether it failed to."""
    import os

    import openai

    client = openai.OpenAI(
        base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY") or "none", timeout=10, max_retries=0
    )
    try:
        models = [model.id for model in client.models.list()]
    except openai.APIStatusError as error:
        return f"answers, but not to GET /models (HTTP {error.status_code})", True
    except openai.APIError as error:
        return f"no answer ({type(error).__name__})", True
    return f"answers; models: {', '.join(models) or 'none'}", False
