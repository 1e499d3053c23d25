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
    """Options in the configuration file have the flags' names; a table [VERB] (or [GROUP.VERB]) is for one verb."""
    path = config or (Path(CONFIG_NAME) if Path(CONFIG_NAME).is_file() else None)
    if path is not None:
        context.default_map = read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration as click's defaults per verb. Raises `InputError` for an option that no verb has."""
    from cp_agents.cli.config_defaults import defaults, options_of
    from cp_agents.files import read_text

    if not path.is_file():
        raise InputError(f"no configuration file at {path}")
    try:
        raw = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    return defaults(path, options_of(typer.main.get_command(app)), raw)


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
