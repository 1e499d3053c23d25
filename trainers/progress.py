"""Where training stands and how long it will take, on one line of a terminal, or now and then in a log file."""

from __future__ import annotations

import time
from typing import TextIO

_SECONDS = 30.0
"""Between two lines where the stream is no terminal."""
_SECONDS_TERMINAL = 0.5


class Progress:
    """Writes to `stream`; to none at all if it is None. `done` steps were taken before this session."""

    def __init__(self, stream: TextIO | None, done: int, total: int) -> None:
        self._stream, self._total = stream, total
        self._first, self._began = done, time.monotonic()
        self._shown, self._open = 0.0, False

    def step(self, step: int, says: str) -> None:
        """Show that `step` was taken, unless something was shown just now."""
        now = time.monotonic()
        terminal = self._stream is not None and self._stream.isatty()
        if self._stream is None or now - self._shown < (_SECONDS_TERMINAL if terminal else _SECONDS):
            return
        self._shown = now
        line = f"step {step} of {self._total}  {says}  {self._left(step, now)}"
        self._stream.write(f"\r\x1b[K{line}" if terminal else line + "\n")
        self._stream.flush()
        self._open = terminal

    def say(self, line: str) -> None:
        """Show a line that stays."""
        if self._stream is not None:
            self._stream.write(("\r\x1b[K" if self._open else "") + line + "\n")
            self._stream.flush()
            self._open = False

    def _left(self, step: int, now: float) -> str:
        taken = step - self._first
        if taken < 1:
            return ""
        return f"{_clock((now - self._began) / taken * (self._total - step))} left"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
