"""`compare`: two runs of one store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from cp_agents.evaluation.agreement import Said
    from cp_agents.evaluation.compare import Comparison, RunSide


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run in the store, see `stats`.")],
    run_b: Annotated[
        str, typer.Argument(metavar="RUN_B", help="Another run, of the same attributes and tags.")
    ],
    store: o.Store = o.DEFAULT_STORE,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="JSONL with user_id and the truth: says which run is right.")
    ] = None,
    truth_field: o.TruthField = "truth",
    differences: Annotated[
        int, typer.Option("--differences", min=0, help="How many of the most confident differences to show.")
    ] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Compare two runs: agreement, coverage, cost, speed, and where they differ.
    Python: `cp_agents.evaluation.compare.compare_runs`.
    """
    from cp_agents.cli import tables
    from cp_agents.evaluation.compare import compare_runs
    from cp_agents.evaluation.loading import load_gold
    from cp_agents.files import check_out, whole_file
    from cp_agents.stores.traces import TraceStore

    if json_file is not None:
        check_out(json_file, store, gold)
    truth = load_gold(gold, truth_field) if gold is not None else None
    with TraceStore(store, must_exist=True) as traces:
        found = compare_runs(traces, run_a, run_b, gold=truth, differences=differences)
    if json_file is not None:
        with whole_file(json_file) as file:
            file.write(found.model_dump_json(indent=1))
    console = tables.console()
    for table in (_sides(found), _agreement(found), _coverage(found)):
        console.print(table)
    if truth is not None:
        console.print(_against_gold(found))
    if found.differences:
        console.print(_differences(found, with_gold=truth is not None))
    console.print(_notes(found), markup=False)


def _table(title: str, columns: tuple[str, ...], *, left: int = 1) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    return table


def _sides(found: Comparison) -> Table:
    from rich.markup import escape

    sides = (found.a, found.b)
    table = _table(f"over {found.users:,} shared users", ("", "A", "B"))
    rows = {
        "run": [side.run for side in sides],
        "backend": [side.backend for side in sides],
        "samples a record": [str(side.samples) for side in sides],
        "drawn": [_drawn(side) for side in sides],
        "tokens": [_tokens(side) for side in sides],
        "accepted attributes": [f"{side.accepted:,}" for side in sides],
        "cost": [_usd(side, side.effort.cost_usd, 4) for side in sides],
        "  per record": [_usd(side, side.effort.cost_per_record, 6) for side in sides],
        "  per accepted attribute": [_usd(side, side.effort.cost_per_accepted, 6) for side in sides],
        "mean latency of a sample": [_unless_none(side.effort.mean_latency_s, ".4g", " s") for side in sides],
        "  samples/s, in turn": [_unless_none(side.effort.in_turn_per_s, ",.1f") for side in sides],
        "samples/s by the clock": [_unless_none(side.samples_per_s, ",.1f") for side in sides],
        "  that is": [side.pace_basis for side in sides],
    }
    for name, cells in rows.items():
        table.add_row(name, *map(escape, cells))
    return table


def _drawn(side: RunSide) -> str:
    e = side.effort
    more = [f"{n:,} {what}" for n, what in ((e.failed, "failed"), (e.reused, "more reused")) if n]
    return f"{e.samples:,}" + (f" ({', '.join(more)})" if more else "")


def _tokens(side: RunSide) -> str:
    e = side.effort
    if not e.prompt_tokens and not e.completion_tokens:
        return "-"
    about = "about " if e.tokens_estimated else ""
    cached = f" ({e.cached_tokens:,} cached)" if e.cached_tokens else ""
    return f"{about}{e.prompt_tokens:,} prompt{cached}, {e.completion_tokens:,} completion"


def _usd(side: RunSide, amount: float | None, digits: int) -> str:
    if amount is None:
        return "unknown" if side.effort.unpriced else "-"
    return ("at least " if side.effort.unpriced else "") + f"${amount:,.{digits}f}"


def _agreement(found: Comparison) -> Table:
    columns = ("attribute", "users", "equal", "kappa", "both answer", "equal", "kappa", "only A", "only B")
    table = _table("agreement, NA being a tag, and where both answer", columns)
    for name, m in found.attributes.items():
        table.add_row(
            name,
            f"{m.users:,}",
            _share(m.equal),
            _share(m.kappa),
            f"{m.both_answer:,}",
            _share(m.equal_where_both_answer),
            _share(m.kappa_where_both_answer),
            f"{m.only_a:,}",
            f"{m.only_b:,}",
        )
    return table


def _coverage(found: Comparison) -> Table:
    taus = [
        f"tau {tau}" for tau in range(1, len(next(iter(found.attributes.values())).coverage_at_tau_a) + 1)
    ]
    table = _table("coverage", ("attribute", "run", "as run", *taus), left=2)
    for name, m in found.attributes.items():
        table.add_row(name, "A", _share(m.coverage_a), *map(_share, m.coverage_at_tau_a))
        table.add_row("", "B", _share(m.coverage_b), *map(_share, m.coverage_at_tau_b), end_section=True)
    return table


def _against_gold(found: Comparison) -> Table:
    columns = ("attribute", "labelled", "A accuracy", "A coverage", "B accuracy", "B coverage")
    table = _table("gold, at tau 1", (*columns, "differ", "A right", "B right"))
    for name, m in found.attributes.items():
        row = [name]
        for side in (found.a, found.b):
            metrics = side.gold.attributes.get(name) if side.gold is not None else None
            if metrics is None:
                row += ["-"] * (3 if side is found.a else 2)
                continue
            if side is found.a:
                row.append(f"{metrics.n_labelled:,}")
            row += [_share(metrics.at_tau[0].selective_accuracy), _share(metrics.at_tau[0].coverage)]
        table.add_row(*row, f"{m.differing:,}", str(m.right_a), str(m.right_b))
    return table


def _differences(found: Comparison, *, with_gold: bool) -> Table:
    from rich.markup import escape

    shown = f"{len(found.differences):,} of {found.differing:,}"
    table = _table(f"where they differ most confidently ({shown})", ("user", "attribute", "A", "B"), left=4)
    if with_gold:
        table.add_column("gold")
    for d in found.differences:
        cells = (d.user_id, d.attribute, _said(d.a), _said(d.b), *((d.gold or "-",) if with_gold else ()))
        table.add_row(*map(escape, cells), end_section=True)
    return table


def _said(said: Said) -> str:
    evidence = "; ".join(said.evidence)
    return f"{said.tag} {said.confidence}/5" + (f": {evidence}" if evidence else "")


def _notes(found: Comparison) -> str:
    notes = [
        f"{side.only_here:,} users are only in {side.run}" for side in (found.a, found.b) if side.only_here
    ]
    if found.other_cues:
        notes.append(f"{found.other_cues:,} users had other cues in one run than in the other")
    if uncalibrated := [side.run for side in (found.a, found.b) if not side.calibrated]:
        notes.append(f"uncalibrated: {' and '.join(uncalibrated)}")
    if unpriced := [side.run for side in (found.a, found.b) if side.effort.unpriced]:
        notes.append(f"drawn without a price (see --prices of profile): {' and '.join(unpriced)}")
    failed = sum(m.failed_a + m.failed_b for m in found.attributes.values())
    if failed:
        notes.append(f"{failed:,} attributes failed in one run and are left out of the agreement")
    return "; ".join(notes) or "every user is in both runs"


def _share(value: float | None) -> str:
    return _unless_none(value, ".3f")


def _unless_none(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
