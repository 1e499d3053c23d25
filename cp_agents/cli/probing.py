"""`probe`: the same record with one self-reported field changed; what else moves?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cp_agents.cli import options as o
from cp_agents.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from cp_agents.calibration import Calibrator
    from cp_agents.evaluation.probe import Probe, Shift
    from cp_agents.schema import Profile


def probe(
    in_file: o.InFile,
    swap: Annotated[
        str,
        typer.Option(
            "--swap", help="The self-reported field to change, or an attribute: the fields that speak of it."
        ),
    ] = "gender",
    backend: o.Backend = "lexicon",
    store: o.Store = o.DEFAULT_STORE,
    samples: o.Samples = 10,
    users: Annotated[
        int | None,
        typer.Option(
            "--users", min=1, help="Only so many users who report it, chosen by hash.", show_default=False
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Runs are stored as NAME-as-is, -again, -swapped and -missing. Made up by default."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Records in flight.")] = 16,
    base_url: o.BaseUrl = None,
    taxonomy: o.Taxonomy = "profilebench",
    language: o.OwnLanguage = None,
    seed: Annotated[int, typer.Option("--seed", help="Sample i is drawn with seed + i.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")] = None,
) -> None:
    """Swap a self-reported field and see what else moves, beyond the noise of sampling; four runs of the backend.
    Python: `cp_agents.evaluation.probe.plan_probe` and `shifts`.
    """
    import json

    from cp_agents.backends.registry import BackendOptions
    from cp_agents.cli import tables
    from cp_agents.evaluation.probe import plan_probe, shifts
    from cp_agents.files import BadLine, check_out, read_records, whole_file
    from cp_agents.plan import check_spec
    from cp_agents.profiler import check_samples
    from cp_agents.taxonomy import load_taxonomy

    if json_file is not None:
        check_out(json_file, in_file, store, *o.files_of(backend, taxonomy))
    lines = list(read_records(in_file))
    if bad := [line for line in lines if isinstance(line, BadLine)]:
        raise InputError(bad[0].message)
    records = [line for line in lines if not isinstance(line, BadLine)]
    chosen = load_taxonomy(taxonomy)
    check_samples(samples)
    given = BackendOptions(chosen, base_url=base_url, store=store if store.is_file() else None)
    check_spec(backend, given)
    planned = plan_probe(records, swap, chosen)
    if users is not None:
        planned = plan_probe(_some(records, planned, users), swap, chosen)
    name = run or f"probe-{in_file.stem}-{backend.partition(':')[0]}-{swap}"
    options = {"samples": samples, "base_url": base_url, "taxonomy": chosen, "language": language}
    profiles = _profile_arms(planned, backend, store, name, seed, concurrency, options)
    found = shifts(profiles, planned.swaps, chosen)
    if not found:
        raise InputError("no attribute has a vote in all four runs: nothing can be compared")
    if json_file is not None:
        with whole_file(json_file) as file:
            json.dump({"swap": swap, "attributes": [shift.model_dump() for shift in found]}, file, indent=1)
    console = tables.console()
    tables.print_table(console, _table(found, planned, swap))
    for line in sentences(found, planned, swap):
        console.print(line, markup=False)
    console.print(f"runs {name}-as-is, -again, -swapped and -missing are in {store}", markup=False)


def _some(records: list[dict[str, Any]], planned: Probe, users: int) -> list[dict[str, Any]]:
    """Of the records that report the field, so many as a hash of the user id chooses."""
    import hashlib

    def luck(record: dict[str, Any]) -> bytes:
        return hashlib.sha256(str(record["user_id"]).encode()).digest()

    able = [record for record in records if record["user_id"] in planned.swaps]
    kept = {record["user_id"] for record in sorted(able, key=luck)[:users]}
    return [record for record in able if record["user_id"] in kept]


def _profile_arms(
    planned: Probe, backend: str, store: Path, name: str, seed: int, concurrency: int, options: dict[str, Any]
) -> dict[str, dict[str, Profile]]:
    """Every arm as a run of its own. The first calibrates all, or levels would move with the arm's own votes."""
    from cp_agents.evaluation.probe import ARMS, AS_IS
    from cp_agents.profiler import Profiler
    from cp_agents.stores.traces import TraceStore

    found: dict[str, dict[str, Profile]] = {}
    calibrator: Calibrator | None = None
    with TraceStore(store) as traces:
        first = Profiler(backend, traces, run=f"{name}-{AS_IS}", seed=seed, **options)
        try:
            for arm in ARMS:
                typer.echo(f"profiling {len(planned.swaps):,} users {arm}", err=True)
                # other samples than as-is in all the other arms: each is as fresh a draw as any
                profiler = first if arm == AS_IS else Profiler(
                    first.backend, traces, run=f"{name}-{arm}", seed=seed + options["samples"],
                    calibrator=calibrator, **options,
                )  # fmt: skip
                fit = "fit" if arm == AS_IS else None
                profiles, report = profiler.profile_many(
                    planned.records[arm], concurrency=concurrency, calibrate=fit
                )
                if arm == AS_IS:
                    calibrator = report.calibrator
                found[arm] = {profile.user_id: profile for profile in profiles}
        finally:
            from cp_agents.background import run_sync

            run_sync(first.backend.aclose())
    return found


def sentences(found: list[Shift], planned: Probe, swap: str) -> list[str]:
    """What the probe says in words."""
    others = [shift for shift in found if shift.attribute != planned.attribute]
    moved = [shift for shift in others if shift.p <= 0.05 / len(others) and shift.excess > 0]
    lines = []
    for shift in sorted(moved, key=lambda shift: -shift.excess):
        lines.append(
            f"{shift.attribute} follows {swap}: {shift.swapped:.0%} of the tags change with it, {shift.again:.0%} with"
            f" other samples alone; {shift.excess:.0%} beyond noise ({shift.low:.0%} to {shift.high:.0%})"
        )
        lines += [
            f"  {move.swap}: {move.before} becomes {move.after} for {move.swapped} users (other samples: {move.again})"
            for move in shift.moves
        ]
    if still := [shift.attribute for shift in others if shift not in moved]:
        lines.append(f"not told from noise by {max(s.users for s in found)} users: {', '.join(still)}")
    if planned.without:
        lines.append(f"{planned.without:,} records that do not report {swap} are in no run")
    return lines


def _table(found: list[Shift], planned: Probe, swap: str) -> Table:
    from rich.table import Table

    from cp_agents.cli import tables

    counts = sorted({shift.users for shift in found})
    whose = f"share of {counts[0]:,} users" if len(counts) == 1 else "share of users"
    title = f"what changes when {swap} is swapped ({whose}, 95 %)"
    table = Table(title=title, title_justify="left", pad_edge=False)
    names = ("attribute", "users", "other samples", "swapped", "left out", "beyond noise", "p", "confidence")
    for name in names:
        if name != "users" or len(counts) > 1:
            table.add_column(name, justify="left" if name == "attribute" else "right")
    for shift in found:
        mark = " (swapped)" if shift.attribute == planned.attribute else ""
        table.add_row(
            shift.attribute + mark,
            *([str(shift.users)] if len(counts) > 1 else []),
            f"{shift.again:.3f}",
            f"{shift.swapped:.3f}",
            f"{shift.missing:.3f}",
            f"{shift.excess:+.3f} {tables.short_interval(shift.low, shift.high)}",
            "<.001" if shift.p < 0.001 else f"{shift.p:.3f}",
            f"{shift.confidence:+.2f} {tables.short_interval(shift.confidence_low, shift.confidence_high)}",
        )
    return table
