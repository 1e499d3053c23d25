"""Groups of verbs that are built when one of them is wanted: `cp-agents --help` names the group alone.

Typer reads the annotations of every option of every verb to build a command, some milliseconds each, and more than half
of the verbs are in groups.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

GROUPS = {
    "batch": (
        "batching",
        "Requests to a file and results from a file, as `vllm run-batch` takes and gives them.",
    ),
    "calibrate": (
        "calibrating",
        "Fit a calibrator on a stored run, or show one; learn from labels what tags weigh.",
    ),
    "review": ("reviewing", "The human-review queue."),
    "bench": ("benching", "The open benchmark: public data, baselines, the paper's tables."),
    "train": ("training", "Train a student from a stored run, stage by stage."),
    "students": ("students", "Models that were trained from the traces: list, register, promote, export."),
    "export": ("exporting", "Write a stored run as data for training."),
}
"""Name, module with an `app`, and what it is for."""


class _Deferred(TyperGroup):
    """A group whose verbs are built at first sight."""

    def __init__(self, name: str, module: str, help: str) -> None:
        self._module = module
        self._built: MutableMapping[str, Any] | None = None
        super().__init__(name=name, help=help, no_args_is_help=True)

    @property
    def commands(self) -> MutableMapping[str, Any]:
        """The verbs by name."""
        if self._built is None:
            group: Any = typer.main.get_group(import_module(f"cp_agents.cli.{self._module}").app)
            self._built = group.commands
        assert self._built is not None
        return self._built

    @commands.setter
    def commands(self, _: MutableMapping[str, Any]) -> None:
        """What typer's own constructor sets: nothing yet."""


class WithGroups(TyperGroup):
    """The verbs of the application, and behind them `GROUPS`."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for name, (module, purpose) in GROUPS.items():
            self.commands[name] = _Deferred(name, module, purpose)
