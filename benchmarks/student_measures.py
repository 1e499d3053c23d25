"""What `benchmarks.gpu_student` reads and measures."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from cp_agents.errors import InputError
from cp_agents.files import BadLine, read_records
from cp_agents.stores.traces import TraceStore


def read_users(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """The first `most` lines of a JSONL file of objects. Raises `InputError` for a line that is none."""
    found = []
    for line in islice(read_records(path), most):
        if isinstance(line, BadLine):
            raise InputError(line.message)
        found.append(line)
    return found


def parse_rate(store: TraceStore, run: str) -> float:
    """Of all attributes of all samples, those that could be read."""
    counts = dict(
        store.rows(
            "select p.outcome = 'ok', count(*) from records r join samples s using (record_id)"
            " join predictions p using (sample_id) where r.run_id = ? group by 1",
            (run,),
        )
    )
    return float(counts.get(1, 0) / max(1, sum(counts.values())))


def mfu(parameters: int, tokens: float, seconds: float, peak_tflops: float) -> float:
    """The share of the device's peak that the model's own arithmetic takes, at 6 operations by parameter and token."""
    return 6 * parameters * tokens / seconds / (peak_tflops * 1e12)


def on_gpu() -> bool:
    """Whether training and sampling take a GPU."""
    from cp_agents.backends.hf_model import best_device

    return best_device() == "cuda"
