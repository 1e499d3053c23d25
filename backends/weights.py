"""Model and adapter folders: which files make a model what it is, and a fingerprint of their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cp_agents.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"
_SUFFIXES = frozenset(
    {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json", ".jinja", ".model", ".txt", ".tiktoken"}
)
# What training leaves beside the weights; the optimiser's state alone is twice as large as they are.
_OF_TRAINING = ("optimizer", "scheduler", "rng_state", "trainer_state", "training_args")


def split_adapter(rest: str) -> tuple[str, str]:
    """`MODEL+ADAPTER` as its two parts, the adapter empty without one. A folder whose name holds a + is a model."""
    if "+" not in rest or Path(rest).expanduser().exists():
        return rest, ""
    model, _, adapter = rest.rpartition("+")
    # An adapter's folder may hold a + as well: the first cut that leaves a folder behind it is meant.
    for at in (i for i, c in enumerate(rest) if c == "+"):
        if Path(rest[at + 1 :]).expanduser().exists():
            model, adapter = rest[:at], rest[at + 1 :]
            break
    return model, adapter


def adapter_folder(path: str) -> Path:
    """The folder of a LoRA adapter in PEFT's format. Raises `InputError` for anything else."""
    folder = Path(path).expanduser().resolve()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise InputError(f"{path} is no adapter folder: it has no {ADAPTER_CONFIG}")
    return folder


def adapter_rank(folder: Path) -> int:
    """The largest LoRA rank in an adapter."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {"": 0}).values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / ADAPTER_CONFIG} does not say the adapter's rank (r)") from None


def fingerprint(path: Path) -> str:
    """12 hex digits over the names and contents of a model's or an adapter's files.

    Everything is read, about a second per gigabyte: two stages of a training differ in no other way. The operating
    system then has the files at hand for loading.
    """
    files = sorted(_files(path))
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = list(pool.map(_digest, files))
    whole = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        whole.update(f"{file.name}\x1f{digest}\x1e".encode())
    return whole.hexdigest()[:12]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.iterdir():
        if file.suffix in _SUFFIXES and file.is_file() and not file.name.startswith(_OF_TRAINING):
            yield file


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
