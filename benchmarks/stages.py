"""Work in stages that goes on where it stopped, each within a time of its own.

OUT/state.json notes every stage: what it found, how long it took over all calls, and why there is nothing where there
is nothing. A stage that fails or takes too long costs only the stages that need it.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.errors import CpAgentsError, InputError
from cp_agents.files import whole_file

STATE = "state.json"
ERRORS = "errors.log"
Facts = dict[str, Any]


class Stage(NamedTuple):
    """One piece of work."""

    name: str
    needs: tuple[str, ...]
    """Stages whose results it takes."""
    budget: float
    """Seconds that it may take, over all calls."""


class OverTime(BaseException):
    """The time is up. Like an interrupt from the keyboard, no handler of ordinary errors on the way may take it."""


class Stages:
    """Runs stages for at most `seconds` in this call.

    `fixed` are settings that all calls have to share. Raises `InputError` where an earlier call had others.
    """

    def __init__(
        self, out: Path, fixed: Mapping[str, Any], seconds: float, say: Callable[[str], None] = print
    ) -> None:
        self.out, self._say = out, say
        self._ends = time.monotonic() + seconds
        self.entries: dict[str, dict[str, Any]] = {}
        file = out / STATE
        if file.is_file():
            state = json.loads(file.read_text(encoding="utf-8"))
            for name, value in fixed.items():
                if state["fixed"].get(name) != value:
                    raise InputError(
                        f"{file} was begun with {name} = {state['fixed'].get(name)!r} and is asked to go on with"
                        f" {value!r}: give the same settings, or another folder"
                    )
            self.entries = state["stages"]
        self._fixed = dict(fixed)
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def left(self) -> float:
        """Seconds that this call has left."""
        return self._ends - time.monotonic()

    def facts(self, name: str) -> Facts:
        """What a finished stage found."""
        found: Facts = self.entries[name]["facts"]
        return found

    def is_done(self, name: str) -> bool:
        """Whether a stage is finished."""
        return self.entries.get(name, {}).get("status") == "done"

    def run(self, stage: Stage, work: Callable[[], Facts]) -> None:
        """Do `work` unless it is done, its needs are not, or its time is up; what becomes of it is noted and said."""
        entry = self.entries.get(stage.name, {})
        if self.is_done(stage.name):
            self._say(f"{stage.name}: done before")
            return
        spent = entry.get("seconds", 0.0)
        # A call that was killed had no chance to note how long it took.
        lower = bool(entry.get("at_least")) or entry.get("status") == "running"
        if lacking := [name for name in stage.needs if not self.is_done(name)]:
            self._note(stage, "skipped", spent, lower, why=f"needs {', '.join(lacking)}")
        elif spent >= stage.budget:
            self._note(stage, "skipped", spent, lower, why=_over(stage))
        elif self.left <= 0:
            self._note(stage, "open", spent, lower, why="the time of the call was up")
        else:
            self._do(stage, work, spent, lower)

    def _do(self, stage: Stage, work: Callable[[], Facts], spent: float, lower: bool) -> None:
        limit = min(stage.budget - spent, self.left)
        self._note(stage, "running", spent, lower)
        began = time.monotonic()
        found: Facts | None = None
        status, why = "done", ""
        try:
            with _alarm(limit):
                found = work()
        except OverTime:
            over = limit >= stage.budget - spent
            status, why = ("skipped", _over(stage)) if over else ("open", "the time of the call was up")
        except Exception as error:
            status, why = "failed", " ".join(str(error).split())[:300] or type(error).__name__
            if not isinstance(error, CpAgentsError):
                why = f"{type(error).__name__}: {why} (see {ERRORS})"
                with (self.out / ERRORS).open("a", encoding="utf-8") as log:
                    log.write(f"{stage.name}\n{traceback.format_exc()}\n")
        _free_memory()
        self._note(stage, status, spent + time.monotonic() - began, lower, why=why, facts=found)

    def _note(
        self,
        stage: Stage,
        status: str,
        seconds: float,
        lower: bool,
        *,
        why: str = "",
        facts: Facts | None = None,
    ) -> None:
        entry: dict[str, Any] = {"status": status, "seconds": round(seconds, 1), "budget": stage.budget}
        if lower:
            entry["at_least"] = True
        if why:
            entry["why"] = why
        if facts is not None:
            entry["facts"] = facts
        self.entries[stage.name] = entry
        self._write()
        if status == "running":
            self._say(f"{stage.name} ...")
        else:
            self._say(f"{stage.name}: {status} after {seconds:.0f} s{f' ({why})' if why else ''}")

    def _write(self) -> None:
        with whole_file(self.out / STATE) as file:
            file.write(json.dumps({"fixed": self._fixed, "stages": self.entries}, indent=1) + "\n")


def _over(stage: Stage) -> str:
    return f"over its budget of {stage.budget:.0f} s"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OverTime` in the main thread when the time is up."""

    def ring(*_: object) -> None:
        raise OverTime

    before = signal.signal(signal.SIGALRM, ring)
    # Once more later: an exception that is raised in a destructor is swallowed.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 30.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _free_memory() -> None:
    """Give back what a stage left on the GPU: the next one estimates what it may take by what is free."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
