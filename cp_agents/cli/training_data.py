"""`train filter` and `train reference`: the users of reinforcement learning, and how sure the student is of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from cp_agents.trainers.user_filter import Filtered

_SHOWN = 15
_FEW = 0.25


def filter_users(
    out: Annotated[
        Path, typer.Option("--out", help="JSONL to write, one kept user a line.", show_default=False)
    ],
    store: o.Store = o.DEFAULT_STORE,
    run: o.Run = None,
    shape: Annotated[
        str, typer.Option("--shape", help="original, uniform, v, lambda or m: the levels' proportions.")
    ] = "m",
    rule: Annotated[
        str,
        typer.Option(
            "--rule", help="One level per user from its attributes': mean, median, min or quintile."
        ),
    ] = "mean",
    seed: Annotated[int, typer.Option("--seed", help="Which users of a level are kept.")] = 0,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            help="Users to keep, as near to the shape as the levels allow; by default the most that fit it.",
            show_default=False,
        ),
    ] = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="Gold JSONL, to audit by gold tags too.", show_default=False)
    ] = None,
    truth_field: o.TruthField = "truth",
    limit: Annotated[
        float, typer.Option("--limit", help="Warn where a group is kept at less than this ratio to all.")
    ] = 0.8,
    min_users: Annotated[int, typer.Option("--min-users", help="Smaller groups are not judged.")] = 20,
    plot: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the levels before and after.")] = True,
) -> None:
    """Keep the users that a difficulty shape asks for, and audit who is dropped.

    Python: `cp_agents.trainers.user_filter.filter_users`.
    """
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.stores.traces import TraceStore
    from cp_agents.trainers import user_filter

    truth = load_gold(gold, truth_field) if gold is not None else None
    with TraceStore(store, must_exist=True) as traces:
        result = user_filter.filter_users(
            traces, run, out, shape=shape, rule=rule, seed=seed, keep=keep, gold=truth, limit=limit,  # type: ignore[arg-type]
            min_users=min_users, plot=plot,
        )  # fmt: skip
    _show(result)
    typer.echo(
        f"{sum(result.after):,} of {sum(result.before):,} users of run {result.run_id} written to {out}"
    )
    if sum(result.after) < _FEW * sum(result.before):
        typer.echo(
            "note: few users fit the shape, because a level has few of them: --rule quintile makes levels of equal"
            " size, and --keep N keeps N users as near to the shape as the levels allow",
            err=True,
        )
    if flagged := result.flagged:
        worst = ", ".join(f"{g.attribute} {g.tag} ({g.source}, {g.ratio:.2f})" for g in flagged[:5])
        more = f" and {len(flagged) - 5} more" if len(flagged) > 5 else ""
        typer.echo(f"warning: groups kept less than {limit:g} times as often as all: {worst}{more}", err=True)


def _show(result: Filtered) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cp_agents.cli import tables

    console = tables.console()
    levels = Table(
        title=f"levels ({result.rule} over attributes), shape {result.shape}", title_justify="left"
    )
    for name in ("level", "before", "after", "share"):
        levels.add_column(name, justify="right")
    for level, (before, after) in enumerate(zip(result.before, result.after, strict=True), 1):
        levels.add_row(str(level), f"{before:,}", f"{after:,}", f"{after / sum(result.after):.1%}")
    console.print(levels)
    groups = Table(title="who is dropped: groups kept least often", title_justify="left")
    for name in ("group", "by", "users", "kept", "share", "all", "ratio", "difference", "by chance"):
        groups.add_column(name, justify="left" if name in ("group", "by") else "right")
    for group in result.groups[:_SHOWN]:
        mark = "  !" if group.flagged else ""
        groups.add_row(
            escape(f"{group.attribute}: {group.tag}"),
            group.source,
            f"{group.users:,}",
            f"{group.kept:,}",
            f"{group.share:.1%}",
            f"{group.overall:.1%}",
            f"{group.ratio:.2f}{mark}",
            f"{group.difference:+.1%}",
            f"{group.chance:.3f}",
        )
    console.print(groups)
    shapes = Table(title="groups beyond the limit in every shape", title_justify="left")
    for name in ("shape", "users", "groups", "worst"):
        shapes.add_column(name, justify="left" if name in ("shape", "worst") else "right")
    for shape, found in result.shapes.items():
        named = "".join(
            f"{g['attribute']}: {g['tag']} ({g['source']}, {g['ratio']:.2f})" for g in found["flagged"][:1]
        )
        shapes.add_row(shape, f"{found['kept']:,}", str(len(found["flagged"])), escape(named))
    console.print(shapes)


def reference(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="The SFT student's folder, or its NAME or NAME@ID.")
    ],
    in_file: Annotated[Path, typer.Option("--in", help="JSONL, one user record a line.", show_default=False)],
    kept: Annotated[
        Path | None,
        typer.Option(
            "--users", help="Only those of IN that `train filter` kept: its JSONL.", show_default=False
        ),
    ] = None,
    store: o.Store = o.DEFAULT_STORE,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Name of the run; the same name goes on where it stopped.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0: the student's most probable answer.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the one sample, where the temperature is above 0.")
    ] = 0,
    max_tokens: o.MaxTokens = 1200,
    token_budget: o.TokenBudget = 3000,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Records in flight.")] = 64,
) -> None:
    """Let the SFT student answer once for every user: the frozen C_ref of the reward.

    Goes on where an earlier attempt stopped. Python: `cp_agents.trainers.reference.run_reference`.
    """
    from cp_agents.cli import tables
    from cp_agents.stores.student_card import read_card
    from cp_agents.stores.traces import TraceStore
    from cp_agents.trainers.reference import load_reference, read_users, run_reference

    users = read_users(in_file, kept)
    where: str | Path = Path(student) if Path(student).is_dir() else student
    if isinstance(where, Path):
        read_card(where)  # before a store is made for it
    with (
        TraceStore(store, must_exist=isinstance(where, str)) as traces,
        tables.progress(len(users)) as on_record,
    ):
        run_id = run_reference(
            traces, where, users, run=run, temperature=temperature, seed=seed, max_tokens=max_tokens,
            token_budget=token_budget, concurrency=concurrency, on_record=on_record,
        )  # fmt: skip
        rows = load_reference(traces, run_id, where)
    counts = Counter(level for row in rows for level in row["c_ref"].values())
    levels = ", ".join(f"{level}: {counts[level]:,}" for level in range(1, 6))
    typer.echo(
        f"reference confidence of {len(rows):,} users in run {run_id} of {store}; attributes by C_ref {levels}"
    )
