"""`thresholds`: which tau keeps a promised accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cp_agents.cli import options as o
from cp_agents.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from cp_agents.evaluation.loading import Gold
    from cp_agents.evaluation.outcomes import Outcomes
    from cp_agents.evaluation.threshold_check import SplitCheck
    from cp_agents.evaluation.thresholds import Choice, Promise
    from cp_agents.taxonomy import Taxonomy

_VERBS = ("profile", "replay")
"""The verbs that read tau."""


class _Source(NamedTuple):
    """Profiles, where truth comes from, and what has to be said of them."""

    lines: list[dict[str, Any]]
    truth: Gold
    notes: list[str]
    taxonomy: Taxonomy | None
    """The run's, where the profiles are of a store."""


def thresholds(
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="PRED",
            help="Profiles, as written by `profile`; or --store and --run.",
            show_default=False,
        ),
    ] = None,
    gold: Annotated[
        Path | None, typer.Option("--gold", help="JSONL with user_id and the truth.", show_default=False)
    ] = None,
    truth_field: o.TruthField = "truth",
    from_reviews: Annotated[
        bool,
        typer.Option(
            "--from-reviews",
            help="Truth is what people answered of the users in the run's random audit (--review audit_share=P).",
        ),
    ] = False,
    target_accuracy: Annotated[
        float, typer.Option("--target-accuracy", help="Least share of the answers that should be right.")
    ] = 0.9,
    risk: Annotated[
        str,
        typer.Option(
            "--risk", help="conformal: promised with 1 - delta; point: as counted, promises nothing."
        ),
    ] = "conformal",
    delta: Annotated[
        float, typer.Option("--delta", help="Accepted probability that the promise fails, per attribute.")
    ] = 0.1,
    next_users: Annotated[
        int | None,
        typer.Option(
            "--next",
            help="Users among whom it should hold too, besides the long run; as many as are labelled by default,"
            " 0: the long run alone.",
            show_default=False,
        ),
    ] = None,
    taxonomy: o.RunsTaxonomy = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Trace store, in place of PRED.", show_default=False)
    ] = None,
    run: o.Run = None,
    config: Annotated[
        Path, typer.Option("--config", help="TOML file to write tau into, for profile and replay.")
    ] = Path("cp-agents.toml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show; write no configuration.")] = False,
    splits: Annotated[
        int,
        typer.Option(
            "--splits",
            min=0,
            help="Choose on a random half and test on the other, so many times: is it kept?",
        ),
    ] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Choose tau per attribute for a promised accuracy, and write it into the configuration.
    Python: `cp_agents.evaluation.thresholds.choose`.
    """
    import json

    from cp_agents.abstention import tau_word
    from cp_agents.cli import tables
    from cp_agents.cli.config_file import set_in_config
    from cp_agents.evaluation.outcomes import by_user, read_outcomes
    from cp_agents.evaluation.threshold_check import check_splits
    from cp_agents.evaluation.thresholds import check_promise, choose, own_words
    from cp_agents.files import check_out, whole_file
    from cp_agents.taxonomy import load_taxonomy

    promise = check_promise(target_accuracy, delta, risk, next_users)
    for out in (json_file, None if dry_run else config):
        if out is not None:
            check_out(out, predictions, gold, store, *o.files_of(taxonomy or ""))
    source = _source(predictions, store, run, gold, truth_field, from_reviews)
    chosen = load_taxonomy(taxonomy) if taxonomy else source.taxonomy or load_taxonomy("profilebench")
    outcomes = read_outcomes(own_words(by_user(source.lines)), source.truth, chosen)
    if not outcomes:
        raise InputError("the truth speaks of no attribute of the taxonomy: nothing can be chosen")
    found = {name: choose(of_attribute, promise) for name, of_attribute in outcomes.items()}
    checks = check_splits(outcomes, promise, splits=splits) if splits else {}
    words = [f"{name}={tau_word(choice.tau)}" for name, choice in found.items()]
    if json_file is not None:
        whole = {
            "promise": {**promise._asdict()},
            "tau": words,
            "attributes": {name: choice.model_dump() for name, choice in found.items()},
            "splits": {name: check.model_dump() for name, check in checks.items()},
        }
        with whole_file(json_file) as file:
            json.dump(whole, file, indent=1)
    console = tables.console()
    tables.print_table(console, _choices(found, promise))
    for choice in found.values():
        if not choice.answered:
            console.print(f"{choice.attribute}: {choice.verdict}", markup=False)
    for note in [*what_holds(promise, outcomes, found), *source.notes]:
        console.print(note, markup=False)
    if checks:
        tables.print_table(console, _splits(checks, promise))
    if dry_run:
        console.print(
            "nothing written; by hand: " + " ".join(f"--tau {word}" for word in words), markup=False
        )
        return
    set_in_config(config, _VERBS, "tau", words)
    console.print(f"tau written to {config}, for {' and '.join(_VERBS)}", markup=False)


def _source(
    predictions: Path | None,
    store: Path | None,
    run: str | None,
    gold: Path | None,
    truth_field: str,
    from_reviews: bool,
) -> _Source:
    from cp_agents.evaluation.loading import load_gold, load_predictions
    from cp_agents.stores.reviews import audited
    from cp_agents.stores.traces import TraceStore
    from cp_agents.taxonomy import Taxonomy

    if (gold is None) == (not from_reviews):
        raise InputError("truth comes from --gold FILE or from --from-reviews: give one of them")
    if (predictions is None) == (store is None):
        raise InputError("give profiles as a file, or a store with --store (and --run)")
    if from_reviews and store is None:
        raise InputError("--from-reviews reads what people answered from a store: give it with --store")
    notes: list[str] = []
    taxonomy = None
    if store is not None:
        with TraceStore(store, must_exist=True) as traces:
            row = traces.run(run)
            run_id, taxonomy = row["run_id"], Taxonomy.model_validate_json(row["taxonomy"])
            lines = [profile.to_json() for _, profile in traces.profiles(run_id)]
            if from_reviews:
                truth, asked, by_rule = audited(traces, run_id)
                notes += _review_notes(truth, asked, by_rule, run_id)
    else:
        assert predictions is not None
        lines = load_predictions(predictions)
    if gold is not None:
        truth = load_gold(gold, truth_field)
    if not any(line["user_id"] in truth for line in lines):
        raise InputError("no user has both a profile and a known truth: nothing can be chosen")
    notes += _calibrator_notes(lines)
    return _Source(lines, truth, notes, taxonomy)


def _review_notes(truth: Mapping[str, Mapping[str, str]], asked: int, by_rule: int, run_id: str) -> list[str]:
    answered = sum(len(tags) for tags in truth.values())
    if not answered:
        raise InputError(
            f"run {run_id} has no answered review of a random audit: profile with --review audit_share=0.05, answer"
            " what `review list` shows, and try again (rows that a rule chose for being doubtful measure nothing else)"
        )
    notes = [f"truth: {answered:,} answers on {len(truth):,} users that the audit drew at random"]
    if asked > answered:
        notes.append(
            f"note: {asked - answered:,} of the audit's {asked:,} attributes are not answered yet; what is chosen holds"
            " if those were left at random"
        )
    if by_rule:
        notes.append(
            f"{by_rule:,} answers to rows that a rule had chosen are left out: they are the doubtful ones"
        )
    return notes


def _calibrator_notes(lines: list[dict[str, Any]]) -> list[str]:
    labels = {str(line.get("calibrator", "")).partition(":")[0] for line in lines}
    if fitted := sorted(labels & {"isotonic", "platt"}):
        return [
            f"note: the confidence is calibrated on labels ({', '.join(fitted)}); the promise holds only if those were"
            " of other users than the ones used here"
        ]
    return []


def what_holds(
    promise: Promise, outcomes: Mapping[str, Outcomes], choices: Mapping[str, Choice]
) -> list[str]:
    """The sentences under the table: what is promised, and what is not."""
    from cp_agents.evaluation.risk_control import fewest_answers

    if promise.risk == "point":
        return [
            "point: the smallest tau that reached the target among these users. Nothing is promised: on other users it"
            " is as likely below as above where it was close. --risk conformal promises."
        ]
    users = max(len(found.users) for found in outcomes.values())
    coming = users if promise.coming is None else promise.coming
    among = f" and among the next {coming:,} users" if coming else ""
    k = len(outcomes)
    lines = [
        f"promised: with probability {1 - promise.delta:g} over which users were labelled, at least"
        f" {promise.target:.0%} of what an attribute is answered with at its tau is right, in the long run{among}.",
        "It holds if the labelled users were drawn like those to come, for answers whose truth can be known, and over"
        f" all users together, not within each group. Each attribute by itself: all {k} at once with --delta"
        f" {promise.delta / k:.2g}.",
    ]
    if not any(choice.guaranteed for choice in choices.values()):
        lines[0] = "no attribute can be promised with these labels: none would be answered."
    if (least := fewest_answers(promise.target, promise.delta, coming / users)) is not None:
        lines.append(
            f"A tau needs {least:,} answers whose truth is known to pass without a mistake, and more with some."
        )
    return lines


def _choices(found: Mapping[str, Choice], promise: Promise) -> Table:
    from rich.table import Table

    from cp_agents.abstention import tau_word

    goal = f"{promise.target:.0%} right" + (
        f", delta {promise.delta:g}" if promise.risk == "conformal" else ""
    )
    table = Table(title=f"tau for {goal} ({promise.risk})", title_justify="left")
    for name in ("attribute", "tau", "accuracy", "95 %", "coverage", "answered"):
        table.add_column(name, justify="left" if name == "attribute" else "right")
    for choice in found.values():
        known = choice.accuracy is not None
        table.add_row(
            f"{choice.attribute} ({choice.labelled})",
            tau_word(choice.tau),
            f"{choice.accuracy:.3f}" if known else "-",
            f"{choice.low:.3f}-{choice.high:.3f}" if known else "-",
            f"{choice.coverage:.3f}",
            str(choice.answered),
        )
    return table


def _splits(checks: Mapping[str, SplitCheck], promise: Promise) -> Table:
    from rich.table import Table

    from cp_agents.cli.tables import short_interval

    splits = next(iter(checks.values())).splits
    table = Table(
        title=f"{splits} random splits: tau chosen on one half, {promise.target:.0%} tested on the other",
        title_justify="left",
        pad_edge=False,
    )
    names = (
        "attribute",
        "answered",
        "broken",
        "kept (95 %)",
        "broken on all",
        "coverage",
        "accuracy",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "attribute" else "right")
    for check in checks.values():
        low, high = check.kept_interval
        table.add_row(
            check.attribute,
            str(check.answered),
            str(check.broken),
            f"{check.kept:.3f} {short_interval(low, high)}",
            str(check.broken_all),
            f"{check.coverage:.3f}",
            "-" if check.accuracy is None else f"{check.accuracy:.3f}",
        )
    return table
