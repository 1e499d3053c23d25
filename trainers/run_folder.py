"""The folder of a training run: what it was set to, what it measured, where it stands, and the model it made.

RUN/config.json      the settings; a run is only resumed with the same
RUN/metrics.jsonl    one JSON object a line with its `step`
RUN/*.png            the metrics as plots
RUN/checkpoints/     checkpoint-STEP, each counted only when it is complete
RUN/model/           the finished model, which appears whole or not at all
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cp_agents.errors import InputError, MissingExtraError
from cp_agents.files import whole_file, write_jsonl
from cp_agents.trainers.card import CARD

CONFIG = "config.json"
METRICS = "metrics.jsonl"
COMPLETE = "cp_agents_complete.json"
"""In a checkpoint that was written to its end: name and size of each of its files."""

_TMP = ".model.tmp"


class RunFolder:
    """One training run on disk. Only one process writes; the others may ask for `last_checkpoint`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def checkpoints(self) -> Path:
        """Where the trainer puts `checkpoint-STEP`: its `output_dir`."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The finished model's folder, there once the run is finished."""
        return self.path / "model"

    @property
    def is_finished(self) -> bool:
        """Whether the model and its card are there."""
        return (self.model / CARD).is_file()

    def open(self, settings: Mapping[str, Any]) -> bool:
        """Begin a run, or take up one that was begun with the same settings; whether it is the latter.

        `settings` is plain JSON. What an interrupted writer left behind is removed: half-written checkpoints and
        models, and metrics of steps behind the last complete checkpoint, which are taken again. Raises `InputError`
        where the run has other settings, naming the first field that differs, and where the folder is something else.
        """
        wanted = json.loads(json.dumps(settings))
        file = self.path / CONFIG
        if resumed := file.is_file():
            _same(file, _read_object(file), wanted)
        elif self.path.exists() and not _is_empty(self.path):
            raise InputError(
                f"{self.path} is no training run: expected a new or empty folder, or a run to resume"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not resumed:  # before anything else, so that a kill leaves no folder that is refused later
                with whole_file(file) as out:
                    out.write(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {self.path} ({error.strerror})") from None
        shutil.rmtree(self.path / _TMP, ignore_errors=True)
        if not self.is_finished:
            self._drop_unfinished()
        return resumed

    def _drop_unfinished(self) -> None:
        shutil.rmtree(self.model, ignore_errors=True)
        last = self.last_checkpoint()
        for path in self.checkpoints.glob("checkpoint-*"):
            if not is_complete(path):
                shutil.rmtree(path)
        kept = -1 if last is None else step_of(last)
        if (self.path / METRICS).is_file():
            write_jsonl(self.path / METRICS, [row for row in self.rows() if row["step"] <= kept])

    # --- metrics ------------------------------------------------------------------------------------------

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append what was measured at `step`."""
        line = json.dumps({"step": step, **values}, ensure_ascii=False)
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl in order; a line that a kill cut short is left out."""
        file = self.path / METRICS
        if not file.is_file():
            return []
        rows = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
        return rows

    def plot(self, figures: Mapping[str, Sequence[str]]) -> list[Path]:
        """Draw NAME.png for each `{NAME: keys}`: the keys' numbers over the steps; nothing for a figure without any.

        Raises `MissingExtraError` without matplotlib.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtraError("plots of a training run", "train") from None
        rows, drawn = self.rows(), []
        for name, keys in figures.items():
            lines = {
                key: [(row["step"], row[key]) for row in rows if _is_number(row.get(key))] for key in keys
            }
            lines = {key: points for key, points in lines.items() if points}
            if not lines:
                continue
            figure = Figure(figsize=(8, 4.5), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            for key, points in lines.items():
                axes.plot(*zip(*points, strict=True), label=key, marker="o" if len(points) < 30 else "")
            axes.set_xlabel("step")
            axes.set_title(name)
            axes.grid(alpha=0.3)
            axes.legend()
            path = self.path / f"{name}.png"
            partial = path.with_name(f".{name}.tmp.png")
            figure.savefig(partial, dpi=120)
            os.replace(partial, path)
            drawn.append(path)
        return drawn

    # --- checkpoints --------------------------------------------------------------------------------------

    def checkpoint_at(self, step: int) -> Path:
        """Where the trainer puts the checkpoint of `step`."""
        return self.checkpoints / f"checkpoint-{step}"

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; half-written ones do not count."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if is_complete(path)]
        return max(found, key=step_of, default=None)

    # --- the model ----------------------------------------------------------------------------------------

    @contextmanager
    def new_model(self) -> Iterator[Path]:
        """An empty folder to save the finished model and its card in; it becomes `model` when all is written.

        Raises `InputError` where no card was written: such a folder would not be taken for a student.
        """
        folder = self.path / _TMP
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
            if not (folder / CARD).is_file():
                raise InputError(
                    f"{folder} has no {CARD}: write the student's card before the model is finished"
                )
            _sync(folder)
            shutil.rmtree(self.model, ignore_errors=True)
            os.replace(folder, self.model)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def mark_complete(checkpoint: Path) -> None:
    """Say that `checkpoint` was written to its end: to be called behind the last write to it."""
    _sync(checkpoint)
    sizes = {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir()) if path.is_file()}
    with whole_file(checkpoint / COMPLETE) as out:
        out.write(json.dumps(sizes) + "\n")


def is_complete(checkpoint: Path) -> bool:
    """Whether `checkpoint` was written to its end and every file has the size that it had then."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    """The step in `checkpoint-STEP`; -1 for any other name."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _is_empty(path: Path) -> bool:
    """A folder with nothing but what an interrupted `whole_file` leaves."""
    return path.is_dir() and all(entry.name.startswith(f".{CONFIG}.") for entry in path.iterdir())


def _same(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for field in [*wanted, *(name for name in found if name not in wanted)]:
        before, now = found.get(field), wanted.get(field)
        if before != now:
            raise InputError(
                f"{file.parent} was begun with {field} {_shown(before)} and is asked to go on with {_shown(now)}: "
                "resume with the same settings, or name another folder"
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_object(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raw = None
    if not isinstance(raw, dict):
        raise InputError(f"{file} is not a run's settings (expected a JSON object)")
    return raw


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sync(folder: Path) -> None:
    """Onto the disk: a name must not outlive the bytes it stands for when the machine goes down."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
