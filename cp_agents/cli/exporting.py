"""`export`: a stored run as data for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from cp_agents.trainers.data_card import SftCard

app = typer.Typer()


@app.command("sft")
def sft(
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write, or an earlier export.", show_default=False)
    ],
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            help="Prompt of the rows: en, zh, en-compact, zh-compact or a folder; the run's by default.",
        ),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            help="Keep attributes of this status: accepted, abstained, needs_review, reviewed; may be repeated.",
            show_default=False,
        ),
    ] = None,
    grounded: Annotated[
        bool, typer.Option("--grounded", help="Keep tags whose evidence stands in the record.")
    ] = False,
    min_share: Annotated[float, typer.Option("--min-share", help="Least share of the votes, 0 to 1.")] = 0.0,
    min_confidence: Annotated[
        int, typer.Option("--min-confidence", help="Least calibrated confidence of a tag, 1 to 5.")
    ] = 1,
    may_fail: Annotated[
        int,
        typer.Option(
            "--may-fail",
            help="Attributes that may fail these filters; with more, the whole row is left out.",
        ),
    ] = 0,
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Keep the teacher's reasoning before the answer.")
    ] = False,
    evidence: Annotated[
        bool, typer.Option("--evidence/--no-evidence", help="Keep the quotations in the answers.")
    ] = True,
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the users to validate on.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Of the split.")] = 0,
) -> None:
    """Voted tags, confidence and evidence as TRL rows. Python: `cp_agents.trainers.sft_data.export_sft`."""
    from rich.markup import escape

    from cp_agents.cli import tables
    from cp_agents.trainers.sft_data import export_sft

    data = export_sft(
        store, run, out, language=language, statuses=status or None, grounded=grounded, min_share=min_share,
        min_confidence=min_confidence, may_fail=may_fail, reasoning=reasoning, evidence=evidence, seed=seed,
        validation=validation,
    )  # fmt: skip
    card = data.card
    console = tables.console()
    console.print(_balance(card))
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in card.dropped.items() if count) or "none"
    failing = ", ".join(f"{name} {count:,}" for name, count in card.failing.items() if count)
    train, validate = (card.files[path.name].rows for path in (data.train, data.validation))
    console.print(f"{card.records:,} records of run {escape(card.source.run_id)}; left out: {left_out}")
    if failing:
        console.print(f"failed a filter: {failing}")
    console.print(f"prompt {card.prompt_version} ({escape(card.language)}), {card.gold:,} reviewed values")
    console.print(f"wrote {train:,} rows to train on and {validate:,} to validate on to {escape(str(out))}")


def _balance(card: SftCard) -> Table:
    """The tags that rows have; those that none has are named below their attribute."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="class balance", title_justify="left")
    for name in ("attribute", "tag"):
        table.add_column(name, overflow="fold")
    for name in ("train", "validation", "share"):
        table.add_column(name, justify="right")
    for attribute, tags in card.balance.items():
        total = sum(count.train + count.validation for count in tags.values())
        taught = {tag: count for tag, count in tags.items() if count.train or count.validation}
        for i, (tag, count) in enumerate(taught.items()):
            share = (count.train + count.validation) / total
            table.add_row(
                attribute if i == 0 else "", escape(tag), f"{count.train:,}", f"{count.validation:,}", f"{share:.1%}"
            )  # fmt: skip
        if never := [tag for tag in tags if tag not in taught]:
            table.add_row("", f"[dim]never: {escape(', '.join(never))}[/dim]")
        table.add_section()
    return table
