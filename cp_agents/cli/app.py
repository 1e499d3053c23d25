"""The typer application, and its TOML configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from cp_agents import __version__
from cp_agents.cli import (
    auditing,
    comparing,
    demo,
    distilling,
    doctor,
    evaluating,
    probing,
    profiling,
    replaying,
    reporting,
    storing,
    thresholds,
    values,
)
from cp_agents.cli.deferred import WithGroups
from cp_agents.errors import InputError

CONFIG_NAME = "cp-agents.toml"

app = typer.Typer(
    name="cp-agents",
    cls=WithGroups,
    help="Profile users with confidence, evidence and NA: a teacher LLM, a vote, calibration, abstention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cp-agents {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help=f"TOML file with the verbs' options; ./{CONFIG_NAME} is read if it is there."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options in the configuration file have the flags' names; a table [VERB] holds those of one verb."""
    path = config or (Path(CONFIG_NAME) if Path(CONFIG_NAME).is_file() else None)
    if path is not None:
        context.default_map = read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration as click's defaults per verb. Raises `InputError` for an option that no verb has."""
    from cp_agents.files import read_text

    if not path.is_file():
        raise InputError(f"no configuration file at {path}")
    try:
        raw = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    group: Any = typer.main.get_command(app)
    options = _options(group)
    shared = {k.replace("-", "_"): v for k, v in raw.items() if k not in options}
    known = set().union(*(names for names in options.values() if isinstance(names, set)))
    if unknown := sorted(set(shared) - known):
        raise InputError(f"{path}: no option {unknown[0]!r} in any verb")
    return _defaults(path, options, shared, {k: v for k, v in raw.items() if k in options})


def _options(group: Any) -> dict[str, Any]:
    """Option names per verb; a group of verbs holds a dict of its own."""
    return {
        name: _options(command) if hasattr(command, "commands") else {p.name for p in command.params}
        for name, command in group.commands.items()
    }


def _defaults(
    path: Path, options: dict[str, Any], shared: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for verb, names in options.items():
        table = own.get(verb, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: [{verb}] should be a table of options")
        if isinstance(names, dict):
            found[verb] = _defaults(path, names, shared, table)
            continue
        table = {k.replace("-", "_"): v for k, v in table.items()}
        if unknown := sorted(set(table) - names):
            raise InputError(f"{path}: [{verb}] has no option {unknown[0]!r}")
        found[verb] = {k: v for k, v in shared.items() if k in names} | table
    return found


app.command("demo")(demo.demo)
app.command("plan")(profiling.plan)
app.command("profile")(profiling.profile)
app.command("replay")(replaying.replay)
app.command("evaluate")(evaluating.evaluate)
app.command("compare")(comparing.compare)
app.command("report")(reporting.report)
app.command("thresholds")(thresholds.thresholds)
app.command("audit")(auditing.audit)
app.command("probe")(probing.probe)
app.command("distill")(distilling.distill)
app.command("stats")(storing.stats)
app.command("values")(values.values)
app.command("forget")(storing.forget)
app.command("doctor")(doctor.doctor)
