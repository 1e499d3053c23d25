"""Table 4: the same votes with calibrated and with uncalibrated levels."""

from __future__ import annotations

from cp_agents.bench.paper import paper, paper_row
from cp_agents.bench.results import Estimate, Grid, Row
from cp_agents.bench.tables import (
    Result,
    Source,
    averages,
    grid,
    notes_of,
    student_rows,
    tests_grid,
    versus,
)
from cp_agents.evaluation.profile_sums import AVERAGE, LevelMetrics, ProfileMetrics, level_parts, parts
from cp_agents.schema import CONFIDENCE_LEVELS

_NUMBERS = ("evenness", "largest", "auroc", "ece")
_HEADS = {"evenness": "evenness", "largest": "largest level", "auroc": "auroc", "ece": "ece of level / 5"}
_SIDES = ("uncalibrated", "calibrated")


def table_calibration(source: Source) -> Result:
    """How even and how telling the levels are with and without calibration, and the averages at every tau."""
    sides = {"uncalibrated": source.voted(calibrated=False), "calibrated": source.voted()}
    first = sides["uncalibrated"]
    metrics, levels = ProfileMetrics(first), LevelMetrics(first)
    of_levels = {side: source.draws.intervals(levels, level_parts(o)) for side, o in sides.items()}
    gaps = source.draws.differences(
        levels, level_parts(sides["calibrated"]), level_parts(sides["uncalibrated"])
    )
    spread = [
        Row(
            label=f"{name}, {side}", cells=[Estimate.of(of_levels[side][f"{name}.{key}"]) for key in _NUMBERS]
        )
        for name in (*first, AVERAGE)
        for side in _SIDES
    ]
    spread += [
        Row(
            label=f"all attributes together, {side}",
            cells=[None, None, Estimate.of(of_levels[side]["pooled.auroc"]), None],
        )
        for side in _SIDES
    ]
    spread.append(
        Row(
            label="average, calibrated - uncalibrated",
            cells=[Estimate.of(gaps[f"{AVERAGE}.{key}"]) for key in _NUMBERS],
            ranked=False,
        )
    )
    pooled = Estimate.of(gaps["pooled.auroc"])
    spread.append(
        Row(label="together, calibrated - uncalibrated", cells=[None, None, pooled, None], ranked=False)
    )
    rows = [
        averages(source, f"tau {tau}, {side}", metrics, parts(sides[side], tau))
        for tau in CONFIDENCE_LEVELS
        for side in _SIDES
    ]
    rows += student_rows(source, 1)
    for side, stages in paper()["table_4"].items():
        for stage, numbers in stages.items():
            label = f"{side} calibration, {stage.upper().replace('_', '+')}"
            rows.append(paper_row(label, numbers, ["precision", "recall", "f1", "", "", ""]))
    tests = [
        versus(
            source, f"tau {tau}, calibrated - uncalibrated", sides["calibrated"], sides["uncalibrated"], tau
        )
        for tau in CONFIDENCE_LEVELS[1:]
    ]
    if {"with", "without"} <= set(source.students):
        with_, without = source.students["with"], source.students["without"]
        tests += [
            versus(source, f"tau {tau}, student with - without", with_, without, tau)
            for tau in CONFIDENCE_LEVELS
        ]
    return Result(
        name="table 4",
        run=source.run.run_id,
        users=len(source.gold),
        grids=[
            Grid(
                title="table 4: levels of votes for a tag, users with a gold tag",
                label="attribute",
                columns=[_HEADS[key] for key in _NUMBERS],
                rows=spread,
            ),
            grid("averages at every tau (students and paper: tau 1)", rows, label="levels", best=False),
            tests_grid("paired tests", tests),
        ],
        notes=notes_of(
            source,
            "at tau 1 both are the same: calibration changes the levels, not the tags; the paper's difference at tau 1"
            " is what a student learned from the levels, not measured from traces: give students as --student"
            " with=RUN --student without=RUN",
            "uncalibrated: S / M rounded; calibrated: five intervals of S of about equal count per attribute, fitted on"
            " all users of the run. Evenness is entropy over that of five equal levels; a calibrated level is a rank,"
            " so its ece says how far a rank is from a probability",
            "at the same tau the two sides answer for other shares of the users, so a lower selective accuracy with a"
            " higher coverage is no loss: compare them along the curve (`bench figure 5`), or by auroc",
            "a resample is never more even than what it is drawn from, so the intervals of evenness and largest level"
            " lie to one side of the value where that is near its end",
            students="students trained on each",
        ),
    )
