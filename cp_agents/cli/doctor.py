"""`doctor`: is this machine ready, what is missing for what, and what can a backend do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from cp_agents.backends.base import Capabilities
    from cp_agents.backends.registry import BackendOptions
    from cp_agents.environment import Need

WHAT_FOR = {
    "aiohttp": "a faster HTTP transport",
    "audit": "accuracy by group",
    "bench": "the benchmark's trained baselines",
    "calibration": "isotonic and Platt calibration",
    "cookbook": "running the cookbook's notebooks",
    "report": "the HTML report of a run",
    "train": "training students",
    "transformers": "a model in this process",
    "vllm": "vLLM in this process",
}
"""What extras are for."""
_PATIENCE_S = 20.0
"""For one answer of an endpoint."""
_LIMIT_S = 60.0
"""For all answers of a backend."""


def doctor(
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="Also ask this backend what it can do; an endpoint gets up to three small requests.",
            show_default=False,
        ),
    ] = None,
    base_url: o.BaseUrl = None,
    taxonomy: o.Taxonomy = "profilebench",
    store: Annotated[
        Path,
        typer.Option(
            "--store", help="Trace store: of student:NAME, and where what was found is kept for runs."
        ),
    ] = o.DEFAULT_STORE,
) -> None:
    """Check Python, packages, extras, keys, an endpoint and a backend.
    Python: `cp_agents.environment.extras`, `cp_agents.backends.probe.probe`.
    """
    import os
    import platform
    import sqlite3

    from rich.markup import escape
    from rich.table import Table

    from cp_agents import __version__, environment
    from cp_agents.backends.registry import BackendOptions, kinds
    from cp_agents.cli import tables
    from cp_agents.errors import InputError
    from cp_agents.taxonomy import load_taxonomy

    if backend is not None and backend.partition(":")[0] not in kinds():
        raise InputError(f"unknown backend {backend!r}: expected one of {', '.join(kinds())}")
    rows: list[tuple[str, str]] = [
        ("cp-agents", __version__),
        ("python", f"{platform.python_version()} ({platform.system()})"),
        ("sqlite", sqlite3.sqlite_version),
    ]
    core = environment.core()
    rows += [(need.name, need.installed or "") for need in core if not need.trouble]
    rows += [(need.name, f"{need.trouble}: install cp-agents again") for need in core if need.trouble]
    rows.append(("backends", ", ".join(kinds())))
    rows += [(f"extra [{extra}]", _extra(extra, needs)) for extra, needs in environment.extras().items()]
    if not core:
        rows.append(("extras", "unknown: cp-agents runs from a folder and is not installed"))
    key = (
        "set" if os.environ.get("OPENAI_API_KEY") else "not set (needed for openai:MODEL without --base-url)"
    )
    rows.append(("OPENAI_API_KEY", key))
    trouble: list[str] = []
    if base_url is not None and (backend is None or backend.startswith("openai:")):
        said, well = _models(base_url)
        rows.append((base_url, said))
        if not well:
            trouble.append(f"{base_url}: {said}")
    if backend is not None and not trouble:
        options = BackendOptions(
            load_taxonomy(taxonomy), base_url=base_url, timeout_s=_PATIENCE_S, store=store
        )
        found, wrong = _look_at(backend, options)
        rows += found
        trouble += wrong
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    tables.console().print(table)
    for sentence in trouble:
        typer.echo(f"error: {sentence}", err=True)
    if trouble or any(need.trouble for need in core):
        raise typer.Exit(1)


def _extra(extra: str, needs: list[Need]) -> str:
    what = WHAT_FOR.get(extra, "")
    if not any(need.trouble for need in needs):
        return f"installed ({what}): " + ", ".join(f"{need.name} {need.installed}" for need in needs)
    missing = ", ".join(need.name for need in needs if need.installed is None)
    wrong = [f"{missing} missing"] if missing else []
    wrong += [need.trouble for need in needs if need.installed is not None and need.trouble]
    return f"not installed ({'; '.join(wrong)}); pip install 'cp-agents[{extra}]' for {what}"


def _models(base_url: str) -> tuple[str, bool]:
    """What the endpoint says of its models, and whether it said it."""
    import os

    import openai

    from cp_agents.backends.endpoint import client_url, public_url

    public_url(base_url)  # an InputError for what is no URL
    try:
        with openai.OpenAI(
            **client_url(base_url),
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=10,
            max_retries=0,
        ) as client:
            models = [model.id for model in client.models.list()]
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            return f"answers, and refuses the key in OPENAI_API_KEY (HTTP {error.status_code})", False
        return f"answers, but not to GET /models (HTTP {error.status_code})", error.status_code == 404
    except openai.APITimeoutError:
        return "no answer within 10 s: is the endpoint up?", False
    except openai.APIConnectionError as error:
        why = type(error.__cause__ or error).__name__
        return f"no answer ({why}): is the endpoint up, and is this its address?", False
    except Exception as error:  # whatever else a server may say to GET /models
        return f"answers, but GET /models is not a list of models ({type(error).__name__})", True
    return f"answers; models: {', '.join(models[:20]) or 'none'}", True


def _look_at(spec: str, options: BackendOptions) -> tuple[list[tuple[str, str]], list[str]]:
    """A backend's identity and capabilities as rows, and what is wrong with it."""
    import asyncio

    from cp_agents.backends.base import Backend
    from cp_agents.backends.probe import Probing, probe
    from cp_agents.backends.registry import resolve_backend
    from cp_agents.errors import CpAgentsError
    from cp_agents.stores.endpoints import remember
    from cp_agents.stores.traces import TraceStore

    async def ask(backend: Backend) -> Capabilities:
        try:
            async with asyncio.timeout(_LIMIT_S):
                found = await probe(backend)
            if isinstance(store := options.store, Path) and store.is_file():
                with TraceStore(store) as traces:
                    remember(traces, backend)  # for the runs to come, whatever an earlier one found
            return found
        finally:
            await backend.aclose()

    rows = [("backend", spec)]
    try:
        backend = resolve_backend(spec, options)
        who = backend.identity
        rows += [("  model", who.model), ("  endpoint", who.endpoint), ("  revision", who.revision)]
        asked = isinstance(backend, Probing)
        found = asyncio.run(ask(backend))
    except TimeoutError:
        return rows, [f"{spec}: no answer within {_LIMIT_S:.0f} s"]
    except CpAgentsError as error:
        return rows, [f"{spec}: {error}"]
    rows = [(name, value) for name, value in rows if value]
    rows.append(("  asked", "it answers" if asked else "no: what it declares"))
    return rows + _capabilities(found), []


def _capabilities(found: Capabilities) -> list[tuple[str, str]]:
    words = {True: "yes", False: "no", None: "unknown"}
    return [
        ("  n", f"{words[found.n]} (several samples of one prompt in one request)"),
        ("  seed", f"{words[found.seed]} (the same seed gives the same sample)"),
        ("  logprobs", f"{words[found.logprobs]} (what the model gave each tag)"),
        ("  structured output", f"{words[found.structured_output]} (answers held to a form)"),
        ("  prefix cache", f"{words[found.prefix_cache]} (what prompts share is read once)"),
        ("  max context", "unknown" if found.max_context is None else f"{found.max_context:,} tokens"),
    ]
