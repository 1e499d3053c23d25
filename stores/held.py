"""One process a run: a lock beside the store, so that two do not pay for the same samples.

The lock is the operating system's (flock), on a small file beside the store that names its holder. It is gone with
the process, however that ends, so a crashed run is taken over by the next attempt without waiting. Between machines
it holds where the network drive passes locks on (NFS since version 4 does); SQLite itself asks for no less. Where
there is no such lock, as on Windows, nothing is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cp_agents.errors import InputError
from cp_agents.stores.traces import TraceStore

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@dataclass
class _Lock:
    file: int | None
    """Open and locked; None where the file system knows no locks."""
    users: int = 0


_mine: dict[Path, _Lock] = {}
"""What this process holds. An app may profile several users of one run at once, each in a batch of its own."""
_changing = threading.Lock()


@contextlib.contextmanager
def held(store: TraceStore, run_id: str) -> Iterator[None]:
    """Hold the run for this process. Raises `InputError` where another process holds it."""
    if store.path == ":memory:" or fcntl is None:
        yield
        return
    path = lock_path(store.path, run_id)
    with _changing:
        if path not in _mine:
            _mine[path] = _Lock(_take(path, run_id))
        _mine[path].users += 1
    try:
        yield
    finally:
        with _changing:
            _mine[path].users -= 1
            if not _mine[path].users:
                _give_up(path, _mine.pop(path).file)


def lock_path(store: str, run_id: str) -> Path:
    """Where the lock of a run lies; a run's name may hold what no file name can."""
    return Path(f"{Path(store).resolve()}-run-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}.lock")


def _take(path: Path, run_id: str) -> int | None:
    """An open, locked file; None where the file system knows no locks."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise InputError(
                f"{holder} is working on run {run_id} of this store: wait for it, or name another run"
            ) from None
        except OSError as error:
            os.close(file)
            log.warning("nothing keeps a second process from working on run %s: %s", run_id, error.strerror)
            return None
        # Whoever held it may have removed the file between our opening and our locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                os.truncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
        os.close(file)


def _give_up(path: Path, file: int | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)
