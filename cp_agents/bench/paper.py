"""The paper's own numbers, from `paper.yaml`: what the tables print beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cp_agents.bench.results import Cell, Estimate, Row


@cache
def paper() -> dict[str, Any]:
    """The file as it is; numbers in percent."""
    text = files("cp_agents.bench").joinpath("paper.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def estimate(percent: float) -> Estimate:
    """A number of the paper as a ratio."""
    return Estimate(value=round(percent / 100, 6))


def paper_row(label: str, numbers: dict[str, float], columns: Sequence[str]) -> Row:
    """A row of the paper's numbers: `columns` names the key of each cell, "" where the paper has none."""
    cells: list[Cell] = [estimate(numbers[key]) if key in numbers else None for key in columns]
    return Row(label=f"paper: {label}", cells=cells, ranked=False)
