"""`students list`, `show`, `register`, `promote` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o
from cp_agents.errors import InputError

if TYPE_CHECKING:
    from cp_agents.stores.students import Student

app = typer.Typer()

Spec = Annotated[str, typer.Argument(metavar="NAME[@ID]", help="A student; a bare name is the promoted one.")]


@app.command("list")
def list_students(store: o.Store = o.DEFAULT_STORE) -> None:
    """List the registered students. Python: `cp_agents.stores.students.students`."""
    from rich.markup import escape
    from rich.table import Table

    from cp_agents.cli import tables
    from cp_agents.stores.students import students
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        found = students(traces)
    if not found:
        typer.echo(f"no students in {store}")
        return
    serving = _serving(found)
    table = Table(title=f"students in {store}", title_justify="left")
    for name in ("student", "serves", "stage", "kind", "base", "prompt", "taxonomy", "registered"):
        table.add_column(name, overflow="fold")
    for one in found:
        cells = (
            one.label,
            "yes" if one.student_id in serving else "",
            str(one.training.get("stage", "")),
            one.kind,
            one.base,
            one.language,
            one.taxonomy.name,
            one.created_at,
        )
        table.add_row(*map(escape, cells))
    tables.console().print(table)


@app.command("show")
def show(name: Spec, store: o.Store = o.DEFAULT_STORE) -> None:
    """Show all that is known of a student, as JSON. Python: `cp_agents.stores.students.student`."""
    from cp_agents.stores.students import student
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        found = student(traces, name)
    shown = {
        "student": found.label,
        "promoted_at": found.promoted_at,
        "registered_at": found.created_at,
        "path": str(found.path),
        "kind": found.kind,
        "base": found.base,
        "weights_hash": found.weights_hash,
        "prompt": {"language": found.language, "version": found.prompt_version},
        "taxonomy": {"name": found.taxonomy.name, "hash": found.taxonomy_hash},
        "calibrator_id": found.calibrator_id,
        "source_run": found.source_run,
        "training": found.training,
        "metrics": found.metrics,
    }
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


@app.command("register")
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that it is to have.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The trained model, its card beside it.")],
    store: o.Store = o.DEFAULT_STORE,
    calibrator: Annotated[
        str | None, typer.Option("--calibrator", help="Id of a calibrator in the store.", show_default=False)
    ] = None,
) -> None:
    """Note a trained model; it serves under its name once it is promoted. Python: `stores.students.register`."""
    from cp_agents.stores.student_card import read_card
    from cp_agents.stores.students import check_name
    from cp_agents.stores.students import register as register_student
    from cp_agents.stores.traces import TraceStore

    check_name(name)
    if folder.is_dir():  # before a store is made for it
        read_card(folder)
    with TraceStore(store, must_exist=not folder.is_dir()) as traces:
        student_id = register_student(
            traces, name, folder, calibrator_id=calibrator.rpartition(":")[2] if calibrator else None
        )
    typer.echo(f"registered {name}@{student_id}; it serves as student:{name} once it is promoted")


@app.command("promote")
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME@ID", help="The student that is to serve under NAME.")],
    store: o.Store = o.DEFAULT_STORE,
) -> None:
    """Let a student serve under its bare name from now on. Python: `cp_agents.stores.students.promote`."""
    from cp_agents.stores.students import promote as promote_student
    from cp_agents.stores.traces import TraceStore

    name, _, student_id = name.partition("@")
    if not student_id:
        raise InputError(f"promote names one student, as in {name}@ID: see `cp-agents students list`")
    with TraceStore(store, must_exist=True) as traces:
        promote_student(traces, name, student_id)
    typer.echo(f"student:{name} is now {name}@{student_id}")


@app.command("export")
def export(
    name: Spec,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)],
    store: o.Store = o.DEFAULT_STORE,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf",
            help="llama.cpp's convert_hf_to_gguf.py, to write a GGUF file too; found on PATH by default.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a student as one folder of weights with a model card. Python: `trainers.export.export_student`."""
    from cp_agents.stores.students import student
    from cp_agents.stores.traces import TraceStore
    from cp_agents.trainers.export import export_student

    with TraceStore(store, must_exist=True) as traces:
        found = student(traces, name)
    exported = export_student(found, out, converter=gguf)
    typer.echo(
        f"{found.label} written to {out}" + (" (adapter merged into its base)" if exported.merged else "")
    )
    typer.echo(
        f"GGUF: {out / exported.gguf}"
        if exported.gguf
        else "no GGUF: llama.cpp's convert_hf_to_gguf.py is not on PATH and --gguf does not name it"
    )


def _serving(found: list[Student]) -> set[str]:
    """Ids of those that serve under their bare names."""
    newest: dict[str, Student] = {}
    for one in found:
        if one.promoted_at and one.promoted_at > (getattr(newest.get(one.name), "promoted_at", None) or ""):
            newest[one.name] = one
    return {one.student_id for one in newest.values()}
