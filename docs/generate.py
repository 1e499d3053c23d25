"""Write what the documentation says of verbs, options, tables and the graph from the code; a test fails on drift.

python docs/generate.py
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
_GRAPH = re.compile(r"(<!-- the graph, drawn from the code -->\n).*?(<!-- end -->)", re.DOTALL)
_COLUMN = re.compile(r"^\s{12}([a-z_]+) ([a-z]+)([^,\n]*?),?\s*(?:-- (.*))?$", re.MULTILINE)
_TABLE = re.compile(r"create table (\w+) \(\n(.*?)\n\s{8}\)", re.DOTALL)
_ADDED = re.compile(r"alter table (\w+) add column (\w+) (\w+)[^;]*;\s*(?:-- (.*))?")


def cli_reference() -> str:
    """The reference of every verb, as typer writes it."""
    os.environ["TERM"] = "dumb"
    from typer.cli import app as typer_app

    out = DOCS / ".cli.md.tmp"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            typer_app(
                ["cp_agents.cli.app", "utils", "docs", "--name", "cp-agents", "--output", str(out)],
                standalone_mode=False,
            )
        return out.read_text(encoding="utf-8")
    finally:
        out.unlink(missing_ok=True)


def config_reference() -> str:
    """Every key of the configuration file, verb by verb, with its default and what it means."""
    import typer

    from cp_agents.cli.app import CONFIG_NAME, app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Configuration", "",
        f"`./{CONFIG_NAME}`, or the file that `cp-agents --config FILE` names. A key has its flag's name. At the"
        " top it is for every verb that has it and takes such a value, in a table `[VERB]` or `[GROUP.VERB]` for one,"
        " in `[GROUP]` for the verbs of a group. What may be repeated takes a list, or one value. A flag on the command"
        " line goes before the file. An unknown key is refused.",
        "",
        "```toml",
        'store = "traces.db"',
        'backend = "openai:MODEL"',
        "samples = 10", "",
        "[profile]",
        'tau = ["2", "age=3"]',
        'review = ["contradiction", "audit_share=0.05"]',
        "```", "",
        "Keys of the API live in the environment (`OPENAI_API_KEY`), never in the file.", "",
    ]  # fmt: skip
    for verb, command in _commands(group):
        options = [p for p in command.params if p.opts and p.opts[0].startswith("--")]
        if not options:
            continue
        lines += [f"## `[{verb}]`", "", "| key | default | meaning |", "|---|---|---|"]
        for option in options:
            if option.name != "help":
                key = option.opts[0].removeprefix("--").replace("-", "_")
                lines.append(f"| `{key}` | {_default(option)} | {_cell(option.help or '')} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", command


def _default(option: Any) -> str:
    if option.required:
        return "(has to be given)"
    value = option.default
    if value is None or callable(value) or value == []:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def schema_reference() -> str:
    """Every table and column of the trace store, with what the migrations say of it."""
    from cp_agents.stores import migrations

    source = inspect.getsource(migrations)
    tables: dict[str, list[tuple[str, str, str]]] = {}
    for name, body in _TABLE.findall(source):
        tables[name] = [(c, kind, note) for c, kind, _, note in _COLUMN.findall(body) if kind != "key"]
    for name, column, kind, note in _ADDED.findall(source):
        tables[name].append((column, kind, note))
    lines = [
        "# Tables of the trace store", "",
        "What [the trace store](store.md) keeps, column by column, drawn from its migrations. JSON stands in text"
        " columns; times are UTC, ISO 8601.",
        "",
    ]  # fmt: skip
    for name, columns in tables.items():
        lines += [f"## `{name}`", "", "| column | type | |", "|---|---|---|"]
        lines += [f"| `{column}` | {kind} | {_cell(note)} |" for column, kind, note in columns]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def graph_picture() -> str:
    """The profiling graph as Mermaid, read off the compiled graph; dotted edges are taken by a decision."""
    from cp_agents import Profiler

    drawn = Profiler("lexicon").graph.get_graph()
    shown = ("record([user record])", "profile([profile])", "review[review: a person]")
    names = {"__start__": "record", "__end__": "profile"}
    said = {
        ("assemble_cues", "sample"): "M parallel samples",
        ("vote", "sample"): "not settled",
        ("abstain", "review"): "unsure",
    }
    lines = ["```mermaid", "graph LR", *(f"    {node}" for node in shown)]
    order = ["__start__", "assemble_cues", "sample", "vote", "calibrate", "abstain", "review", "finalize"]
    for edge in sorted(drawn.edges, key=lambda edge: order.index(edge.source)):
        label = said.get((edge.source, edge.target), "")
        arrow = "-.->" if edge.conditional else "-->"
        label = f"|{label}|" if label else ""
        lines.append(
            f"    {names.get(edge.source, edge.source)} {arrow}{label} {names.get(edge.target, edge.target)}"
        )
    return "\n".join([*lines, "    sample <-.-> store[(trace store)]", "```", ""])


def with_picture(text: str) -> str:
    """The README with the picture of the graph as the code has it."""
    return _GRAPH.sub(lambda match: f"{match[1]}{graph_picture()}{match[2]}", text)


GENERATED = {"cli.md": cli_reference, "config.md": config_reference, "schema.md": schema_reference}
"""Pages that are nothing but generated."""

if __name__ == "__main__":
    for page, write in GENERATED.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
    README.write_text(with_picture(README.read_text(encoding="utf-8")), encoding="utf-8")
