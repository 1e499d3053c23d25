"""`evaluate`: profiles against gold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from cp_agents.evaluation.confidence import SourceMetrics
    from cp_agents.evaluation.metrics import Evaluation


RATIOS = ("selective_accuracy", "coverage", "true_recall", "macro_f1", "paper_f1", "paper_f1_tp_na")


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Profiles, as written by `profile`.")],
    gold: Annotated[
        Path, typer.Option("--gold", help="JSONL with user_id and the truth.", show_default=False)
    ],
    truth_field: o.TruthField = "truth",
    taxonomy: o.Taxonomy = "profilebench",
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", help="Trace store of the run, for what its samples add to the confidence sources."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="The run in the store; the one that the profiles name by default."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Compare profiles with gold at every tau. Python: `cp_agents.evaluation.metrics.evaluate`."""
    import json

    from cp_agents.cli import tables
    from cp_agents.errors import InputError
    from cp_agents.evaluation.confidence import compare_sources
    from cp_agents.evaluation.loading import load_gold, load_predictions
    from cp_agents.evaluation.metrics import evaluate as compare
    from cp_agents.evaluation.samples import load_answers
    from cp_agents.files import check_out, whole_file
    from cp_agents.stores.traces import TraceStore
    from cp_agents.taxonomy import load_taxonomy

    if json_file is not None:
        check_out(json_file, predictions, gold, *([store] if store else []), *o.files_of(taxonomy))
    if run is not None and store is None:
        raise InputError("--run names a run of a store: give the store with --store")
    lines, truth, chosen = (
        load_predictions(predictions),
        load_gold(gold, truth_field),
        load_taxonomy(taxonomy),
    )
    if not any(line["user_id"] in truth for line in lines):
        raise InputError(f"{predictions} and {gold} have no user in common: nothing can be compared")
    found = compare(lines, truth, chosen)
    answers = None
    if store is not None:
        with TraceStore(store, must_exist=True) as traces:
            answers = load_answers(traces, run, lines)
    sources = compare_sources(lines, truth, chosen, answers)
    if json_file is not None:
        whole = found.model_dump(mode="json")
        whole["confidence_sources"] = {
            name: {source: m.model_dump() for source, m in rows.items()} for name, rows in sources.items()
        }
        with whole_file(json_file) as file:
            json.dump(whole, file, indent=1)
    console = tables.console()
    console.print(_attributes(found))
    console.print(_averages(found))
    if sources:
        console.print(_sources(sources))
    best = found.best_constant_macro_f1
    ours = found.average[0].macro_f1
    if best and ours is not None:
        console.print(
            f"macro_f1 at tau 1: {ours:.3f}, {ours / best:.2f} times the best constant answers' {best:.3f}"
        )
    notes = [f"{found.users} users in gold"]
    if found.missing:
        notes.append(f"{found.missing} without a profile, counted as unanswered")
    if found.not_in_gold:
        notes.append(f"{found.not_in_gold} profiles of users that gold does not know, ignored")
    if found.not_evaluated:
        notes.append(f"attributes that the taxonomy lacks, ignored: {', '.join(found.not_evaluated)}")
    console.print("; ".join(notes))


def _attributes(found: Evaluation) -> Table:
    from rich.table import Table

    table = Table(title="per attribute and tau", title_justify="left")
    columns = (
        "attribute,tau,answered,selective accuracy,coverage,true recall,macro_f1,paper_f1,paper_f1 tp_na"
    )
    for name in (*columns.split(","), "constant macro_f1"):
        table.add_column(name.replace(" ", "\n"), justify="left" if name == "attribute" else "right")
    for attribute, metrics in found.attributes.items():
        for i, m in enumerate(metrics.at_tau):
            constant = metrics.best_constant
            table.add_row(
                f"{attribute} ({metrics.n_labelled})" if i == 0 else "",
                str(m.tau),
                str(m.answered),
                *(_number(getattr(m, name)) for name in RATIOS),
                _number(constant.macro_f1) if constant is not None and i == 0 else "",
                end_section=i == len(metrics.at_tau) - 1,
            )
    return table


def _averages(found: Evaluation) -> Table:
    from rich.table import Table

    from cp_agents.evaluation.metrics import AverageMetrics

    table = Table(title="means over attributes", title_justify="left")
    names = [name for name in AverageMetrics.model_fields if name not in {"tau", "recall_tp_na"}]
    for name in ("tau", *names):
        table.add_column(name.replace("_", "\n", 1), justify="right")
    for row in found.average:
        table.add_row(str(row.tau), *(_number(getattr(row, name)) for name in names))
    return table


def _sources(found: dict[str, dict[str, SourceMetrics]]) -> Table:
    from rich.table import Table

    table = Table(title="confidence sources: which tells right from wrong", title_justify="left")
    for name in ("attribute", "source", "n", "auroc", "wqd", "ece", "brier", "aurc", "error rate"):
        table.add_column(name, justify="left" if name in ("attribute", "source") else "right")
    for attribute, rows in found.items():
        for i, (source, m) in enumerate(rows.items()):
            numbers = map(_number, (m.auroc, m.wqd, m.ece, m.brier, m.aurc, m.risk))
            table.add_row(
                attribute if i == 0 else "", source, str(m.n), *numbers, end_section=i == len(rows) - 1
            )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
