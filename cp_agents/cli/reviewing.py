"""`review list` and `review answer`."""

from __future__ import annotations

from typing import Annotated

import typer

from cp_agents.cli import options as o

app = typer.Typer()


@app.command("list")
def list_(
    store: o.Store = o.DEFAULT_STORE,
    run: Annotated[str | None, typer.Option("--run", help="Only this run.")] = None,
    cues: Annotated[bool, typer.Option("--cues", help="Show the records as well.")] = False,
) -> None:
    """What waits for a person. Python: `cp_agents.stores.reviews.open_reviews`."""
    from rich.markup import escape
    from rich.table import Table

    from cp_agents.cli import tables
    from cp_agents.stores.reviews import open_reviews
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        rows = open_reviews(traces, run)
    table = Table()
    for name in ("id", "user", "attribute", "model says", "conf.", "because"):
        table.add_column(name)
    for row in rows:
        reasons = ", ".join(row["reasons"])
        table.add_row(
            str(row["review_id"]), escape(row["user_id"]), row["attribute"], escape(row["proposed"] or ""),
            f"{row['confidence']}/5", escape(reasons),
        )  # fmt: skip
        if cues:
            table.add_row("", "", "", escape(row["cues"]), "", "", end_section=True)
    console = tables.console()
    if rows:
        console.print(table)
    console.print(
        f"{len(rows)} waiting; answer with: cp-agents review answer ID TAG --store {store}", highlight=False
    )


@app.command("answer")
def answer(
    review_id: Annotated[int, typer.Argument(metavar="ID", help="As shown by `review list`.")],
    tag: Annotated[str, typer.Argument(help="A tag of the closed set, or NA.")],
    store: o.Store = o.DEFAULT_STORE,
    reviewer: Annotated[str, typer.Option("--reviewer", help="Who answers.")] = "anonymous",
    note: Annotated[str | None, typer.Option("--note", help="Kept beside the answer.")] = None,
) -> None:
    """Answer one waiting attribute. Python: `cp_agents.stores.reviews.answer_one`."""
    from cp_agents.stores.reviews import answer_one
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        row, value = answer_one(traces, review_id, tag, reviewer, note)
    typer.echo(
        f"{row['user_id']} {row['attribute']}: {value} (the model said {row['proposed']}), by {reviewer}"
    )
