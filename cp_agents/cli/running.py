"""A run before the eyes of a person: a progress line, and Ctrl-C that drains."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cp_agents.profiler import Profiler
    from cp_agents.runner import BatchReport, StoredRecord


def run_live(
    profiler: Profiler,
    records: Sequence[dict[str, Any] | StoredRecord],
    *,
    by_batches: bool = False,
    **options: Any,
) -> BatchReport:
    """Run the batch with a progress line; the first Ctrl-C drains, the second one stops at once."""
    import asyncio
    import contextlib
    import signal

    from cp_agents.cli.tables import progress
    from cp_agents.runner import Stop, run_batch

    stop = Stop()
    leaving = "waiting for the records in flight (Ctrl-C again to drop them)"
    go_through = run_batch
    if by_batches:
        from cp_agents.batch_run import run_by_batches

        leaving = "what was submitted goes on at the endpoint"
        go_through = partial(run_by_batches, say=partial(typer.echo, err=True))

    async def go() -> BatchReport:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            if stop.requested:
                task.cancel()
            else:
                typer.echo(f"\nstopping: {leaving}", err=True)
                stop()

        # Windows has no signal handlers on a loop: Ctrl-C stops at once there, and what has landed is kept.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(signal.SIGINT, interrupted)
        with progress(len(records)) as on_record:
            try:
                return await go_through(
                    profiler.context, records, calibrator=profiler.calibrator or "fit", stop=stop,
                    on_record=on_record, **options,
                )  # fmt: skip
            finally:
                await profiler.backend.aclose()

    try:
        return asyncio.run(go())
    except asyncio.CancelledError:
        raise typer.Exit(130) from None
