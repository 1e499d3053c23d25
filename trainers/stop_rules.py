"""When a GRPO run has gone wrong: the known failures, found in its own metrics. Pure.

A policy that is rewarded for agreeing with itself has shortcuts: to be sure of everything, to answer NA throughout,
to forget the form. Each rule compares the mean of the last steps with that of the first ones, so that a run that
begins badly (a base model that never saw the form) is not stopped for what it began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class StopRules(BaseModel):
    """Thresholds; None switches a rule off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: int = Field(default=5, ge=1)
    """Steps that are averaged, at the run's beginning and now; one step's rollouts are too few to judge by."""
    confidence_rise: float | None = Field(default=1.0, ge=0)
    """Confidence inflation: the mean stated confidence rose by more than this, and ..."""
    confidence_top: float = Field(default=0.8, ge=0, le=1)
    """... more than this share of the answers is stated with 5."""
    na_rise: float | None = Field(default=0.3, ge=0, le=1)
    """NA collapse: the share of NA rose by more than this, or ..."""
    na_most: float | None = Field(default=0.9, ge=0, le=1)
    """... passed this one, having begun below it."""
    parse_least: float | None = Field(default=0.5, ge=0, le=1)
    """Format collapse: the share of well-formed answers fell below this, having been above it at some time."""


def find_collapse(rows: Sequence[Mapping[str, Any]], rules: StopRules) -> str | None:
    """A sentence on what went wrong, or None. `rows` are the run's metrics so far, in order, one per step.

    Nothing is found before there are two windows of steps, so that the last and the first do not overlap.
    """
    if len(rows) < 2 * rules.window:
        return None
    windows = [
        _means(rows[i : i + rules.window]) for i in (0, *range(rules.window, len(rows) - rules.window + 1))
    ]
    first, now = windows[0], windows[-1]
    steps = f"over the last {rules.window} steps"

    def moved(name: str) -> tuple[float, float] | None:
        return (first[name], now[name]) if name in first and name in now else None

    confidence, top = moved("confidence_mean"), now.get("confidence/5", 0.0)
    if confidence is not None and rules.confidence_rise is not None:
        before, after = confidence
        if after - before > rules.confidence_rise and top > rules.confidence_top:
            return (
                f"confidence inflation: the mean confidence rose from {before:.2f} to {after:.2f} and {top:.0%} of"
                f" answers are stated with 5 {steps}"
            )
    na = moved("na_rate")
    if na is not None:
        before, after = na
        rose = rules.na_rise is not None and after - before > rules.na_rise
        passed = rules.na_most is not None and after > rules.na_most >= before
        if rose or passed:
            return f"NA collapse: the share of NA went from {before:.0%} to {after:.0%} {steps}"
    if rules.parse_least is not None and "parse_rate" in now:
        best = max(window.get("parse_rate", 0.0) for window in windows)
        if now["parse_rate"] < rules.parse_least <= best:
            return (
                f"format collapse: the share of well-formed answers went from {best:.0%} to {now['parse_rate']:.0%}"
                f" {steps}"
            )
    return None


_WATCHED = ("confidence_mean", "confidence/5", "na_rate", "parse_rate")


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    given = {name: [row[name] for row in rows if row.get(name) is not None] for name in _WATCHED}
    return {name: fmean(values) for name, values in given.items() if values}
