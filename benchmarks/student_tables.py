"""The tables of `benchmarks.gpu_student`, made of what its stages noted: on screen, as files, and a plot."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from cp_agents.files import whole_file

MODELS = (
    ("teacher (lexicon)", "", "teacher"),
    ("base", "", "base"),
    ("SFT", "sft", "sft"),
    ("SFT+GRPO", "grpo", "grpo"),
    ("GRPO without SFT", "grpo-no-sft", "grpo-no-sft"),
    ("SFT+GRPO, self-confidence", "grpo-self", "grpo-self"),
)
"""Row, stage that trains, name that `eval-` stands before."""
METRICS = (
    "paper_f1_mean",
    "paper_f1_of_means",
    "selective_accuracy",
    "coverage",
    "true_recall",
    "macro_f1",
)
Entries = Mapping[str, Mapping[str, Any]]


class Table(NamedTuple):
    """Cells are finished texts."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def report(options: argparse.Namespace, entries: Entries, stages: Sequence[str]) -> None:
    """Write results.json, results.md and curves.png into OUT, and print the tables."""
    out: Path = options.out
    made = tables(entries, stages)
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    told = {name: value for name, value in told.items() if name not in ("data", "out", "model")}
    results = {
        "machine": machine(),
        "options": told,
        "stages": entries,
        "tables": [t._asdict() for t in made],
    }
    with whole_file(out / "results.json") as file:
        file.write(json.dumps(results, indent=1) + "\n")
    with whole_file(out / "results.md") as file:
        file.write(markdown(made, told))
    plot(entries, out / "curves.png")
    console = Console()
    for table in made:
        shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE)
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def tables(entries: Entries, stages: Sequence[str]) -> list[Table]:
    """Quality, quality by tau, training, speed, and what became of every stage."""
    return [
        _quality(entries),
        _by_tau(entries),
        _training(entries),
        _speed(entries),
        _stages(entries, stages),
    ]


def _facts(entries: Entries, name: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = entries.get(name, {}).get("facts")
    return found


def _quality(entries: Entries) -> Table:
    rows, constant = [], None
    for label, stage, name in MODELS:
        facts = _facts(entries, f"eval-{name}")
        if facts is None:
            why = (
                entries.get(stage, {}).get("why")
                or entries.get(f"eval-{name}", {}).get("why")
                or "not reached"
            )
            rows.append((label, why, *["-"] * (2 + len(METRICS))))
            continue
        at = facts["at_tau"][0]
        constant = facts["constant_macro_f1"]
        rows.append(
            (
                label,
                _how(_facts(entries, stage)),
                "-" if name == "teacher" else f"{facts['prompt']}, M={facts['samples']}",
                _share(facts["parse_rate"]),
                *(_share(at[metric]) for metric in METRICS),
            )
        )
    title = "Against gold at tau = 1, in percent, means over the attributes"
    if constant is not None:
        title += f" (macro_f1 of the best constant answer: {_share(constant)})"
    return Table(title, ("model", "trained", "asked", "parse_rate", *METRICS), rows)


def _how(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "-"
    if "rollouts" in facts:
        return f"{facts['steps']} steps x {facts['users_a_step']} users x {facts['rollouts']} rollouts"
    return f"{facts['steps']} steps x {facts['batch']} rows"


def _by_tau(entries: Entries) -> Table:
    rows = []
    for label, _, name in MODELS:
        facts = _facts(entries, f"eval-{name}")
        for at in facts["at_tau"] if facts else ():
            rows.append((label, str(at["tau"]), *(_share(at[metric]) for metric in METRICS)))
    return Table("By confidence threshold tau, in percent", ("model", "tau", *METRICS), rows)


def _training(entries: Entries) -> Table:
    watched = ("reward_sum", "parse_rate", "na_rate", "majority_ratio", "confidence_mean")
    rows = []
    for label, stage, _ in MODELS:
        facts = _facts(entries, stage) if stage.startswith("grpo") else None
        if facts is not None:
            moved = (f"{_number(facts['first'][n])} > {_number(facts['last'][n])}" for n in watched)
            rows.append((label, *moved, facts["would_stop"] or "no"))
    title = "Rollouts: the first step > the mean of the last five"
    return Table(title, ("model", *watched, "a stop rule would have ended it"), rows)


def _speed(entries: Entries) -> Table:
    rows = []
    if sft := _facts(entries, "sft"):
        rows.append(("SFT", f"{sft['tokens_per_s']:,.0f} tokens/s"))
        if sft["mfu"] is not None:
            rows.append((f"SFT, MFU (of {sft['peak_tflops']:g} TFLOP/s)", f"{sft['mfu']:.1%}"))
    for label, stage, _ in MODELS:
        facts = _facts(entries, stage) if stage.startswith("grpo") else None
        if facts is not None:
            by = f"{facts['rollouts_by']}, {facts['generation_batch']:,} at a time"
            rows += [
                (f"{label}, rollouts sampled ({by})", f"{facts['sampled_per_s']:,.1f} samples/s"),
                (f"{label}, the same", f"{facts['sampled_tokens_per_s']:,.0f} tokens/s"),
                (f"{label}, whole steps", f"{facts['rollouts_per_s']:,.1f} samples/s"),
            ]
    for label, _, name in MODELS:
        facts = _facts(entries, f"eval-{name}")
        if facts is not None:
            speed = f"{facts['samples_per_s']:,.1f} samples/s, {facts['tokens_per_s']:,.0f} tokens/s"
            rows.append((f"{label}, profiling (loading included)", speed))
    return Table(f"Speed on {machine()['device']}", ("what", "speed"), rows)


def _stages(entries: Entries, stages: Sequence[str]) -> Table:
    rows = []
    for name in stages:
        entry = entries.get(name, {"status": "not reached", "seconds": 0.0})
        seconds = f"{'at least ' if entry.get('at_least') else ''}{entry['seconds']:.1f}"
        rows.append((name, entry["status"], seconds, f"{entry.get('budget', 0):.0f}", entry.get("why", "")))
    total = sum(entry["seconds"] for entry in entries.values())
    rows.append(("all", "", f"{total:.1f}", "", ""))
    return Table("Stages, in seconds over all calls", ("stage", "status", "took", "budget", "why"), rows)


def markdown(made: Sequence[Table], options: Mapping[str, Any]) -> str:
    """All tables, and the options of the last call."""
    parts = []
    for table in made:
        lines = [
            f"## {table.title}",
            "",
            _line(table.columns),
            _line(["---"] + ["---:"] * (len(table.columns) - 1)),
        ]
        parts.append("\n".join([*lines, *map(_line, table.rows)]))
    parts.append("## Options of the last call\n\n" + ", ".join(f"{k} {v}" for k, v in options.items()))
    parts.append("![selective accuracy over coverage](curves.png)")
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def plot(entries: Entries, path: Path) -> None:
    """Selective accuracy over coverage, one line a model, a point for each tau."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, _, name in MODELS:
        facts = _facts(entries, f"eval-{name}")
        points = [
            (at["coverage"], at["selective_accuracy"], at["tau"])
            for at in (facts["at_tau"] if facts else ())
            if at["coverage"] is not None and at["selective_accuracy"] is not None
        ]
        if points:
            axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=label)
            axes.annotate(f"tau {points[-1][2]}", points[-1][:2], fontsize=8)
    axes.set_xlabel("coverage: answered / labelled")
    axes.set_ylabel("selective accuracy: correct / answered")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120, format="png")
    os.replace(partial, path)


def machine() -> dict[str, str]:
    """What it ran on."""
    from importlib.metadata import PackageNotFoundError, version

    def known(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "-"

    device = f"{platform.machine()} CPU"
    if known("torch") != "-":  # the teacher does without
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else device
    return {"device": device, **{name: known(name) for name in ("torch", "transformers", "trl", "vllm")}}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
