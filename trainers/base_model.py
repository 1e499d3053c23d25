"""The model that training starts from: found, checked and loaded as plain floating-point parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cp_agents.backends.hf_files import ModelFiles, find_model
from cp_agents.errors import InputError, MissingExtraError
from cp_agents.files import whole_file
from cp_agents.trainers.card import CARD, StudentCard, read_card, weights_hash

_NEEDS = ("torch", "transformers", "peft", "gguf", "psutil", "trl", "datasets", "accelerate", "matplotlib")
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Base:
    """Where training starts. Nothing of it is loaded yet."""

    spec: str
    """The model below any adapter, as after `transformers:`; a folder by its absolute path."""
    files: ModelFiles
    card: StudentCard | None
    """The student that it is, if it is one."""

    @property
    def hash(self) -> str:
        """`weights_hash` of the model below any adapter."""
        return weights_hash(self.files.folder)


def require_training(what: str) -> None:
    """Raise `MissingExtraError` where a package of the extra [train] is missing."""
    if any(find_spec(name) is None for name in _NEEDS):
        raise MissingExtraError(what, "train")


def find_base(model: str) -> Base:
    """Find `model`: what `transformers:` takes (a folder, a GGUF file, smollm2, a name in the local model cache,
    MODEL+ADAPTER), or a student's folder, of weights or of an adapter, whose card names the base.

    Raises `InputError` where it is not on this machine, has no chat template, or is an adapter for another base.
    """
    folder = Path(model)
    card = read_card(folder) if (folder / CARD).is_file() else None
    if card is not None and (folder / _ADAPTER).is_file():
        below = find_model(card.base)
        files = ModelFiles(below.folder, below.gguf, folder)
        spec = card.base
    else:
        files = find_model(model)
        spec = model if files.adapter is None or folder.exists() else model.rpartition("+")[0]
        if files.adapter is not None and (files.adapter / CARD).is_file():
            card = read_card(files.adapter)
        elif card is None and (files.folder / CARD).is_file():
            card = read_card(files.folder)
    if files.adapter is not None and card is not None and card.base_hash:
        found = weights_hash(files.folder)
        if found != card.base_hash:
            raise InputError(
                f"{files.adapter} is an adapter for another base: it was trained on {card.base} with weights "
                f"{card.base_hash}, and {files.folder} has {found}"
            )
    if not files.has_chat_template():
        raise InputError(
            f"{model} has no chat template, so it cannot be trained to answer: take a chat or instruct model, or put "
            "a chat_template.jinja beside its tokenizer"
        )
    return Base(str(Path(spec).resolve()) if Path(spec).exists() else spec, files, card)


def load_tokenizer(base: Base) -> Any:
    """The tokenizer that serving uses, with a token for padding. Raises `InputError` where it cannot be loaded."""
    import transformers

    files = base.files
    gguf = {"gguf_file": files.gguf} if files.gguf and files.tokenizer_folder == files.folder else {}
    with _loading(base):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            files.tokenizer_folder, local_files_only=True, **gguf
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    model: str | Base,
    *,
    dtype: str = "float32",
    four_bit: bool = False,
    keep_adapter: bool = False,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """The model and its tokenizer, on the CPU unless `four_bit`. Nothing is fetched.

    Parameters are of `dtype` (float32, bfloat16) whatever the files hold: GGUF weights are unpacked, since packed
    ones take no gradient. An adapter is merged into them, or, with `keep_adapter`, laid over them to be trained
    further. `four_bit` loads the linear layers in 4 bits (QLoRA); it needs a GPU and bitsandbytes. `tokenizer` is
    what `load_tokenizer` gave, if it was asked before.
    Raises `InputError` as `find_base`, and where the files do not fit each other.
    """
    base = find_base(model) if isinstance(model, str) else model
    import torch
    import transformers

    files = base.files
    options: dict[str, Any] = {"gguf_file": files.gguf} if files.gguf else {}
    if four_bit:
        check_four_bits(base)
        options |= _four_bits()
    elif files.gguf and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    tokenizer = load_tokenizer(base) if tokenizer is None else tokenizer
    with _loading(base):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            files.folder, dtype=getattr(torch, dtype), local_files_only=True, **options
        )
    if files.gguf:
        loaded = _plain(loaded)
    if len(tokenizer) > loaded.get_input_embeddings().weight.shape[0]:
        raise InputError(
            f"{files.tokenizer_folder} has more tokens ({len(tokenizer):,}) than the model knows"
        )
    loaded.config._name_or_path = ""  # by a name, PEFT would ask the model hub about the base at every save
    if files.adapter is not None:
        loaded = _with_adapter(loaded, files, keep=keep_adapter)
    return loaded, tokenizer


def read_config(base: Base) -> Any:
    """The model's configuration. Raises `InputError` where it cannot be read."""
    import transformers

    gguf = {"gguf_file": base.files.gguf} if base.files.gguf else {}
    with _loading(base):
        return transformers.AutoConfig.from_pretrained(base.files.folder, local_files_only=True, **gguf)


def end_tokens(base: Base, config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, as serving takes them from the loaded model."""
    from cp_agents.backends.hf_model import end_ids

    says = config
    if (base.files.folder / "generation_config.json").is_file():
        import transformers

        says = transformers.GenerationConfig.from_pretrained(base.files.folder, local_files_only=True)
    return end_ids(SimpleNamespace(config=config, generation_config=says), tokenizer)


@contextmanager
def _loading(base: Base) -> Iterator[None]:
    """No progress bars, which would run into those of training; what goes wrong is a sentence."""
    from transformers.utils import logging as said

    shown = said.is_progress_bar_enabled()
    said.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{base.spec} cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    finally:
        if shown:
            said.enable_progress_bar()


def name_base(folder: Path, base: Base) -> None:
    """Write into a saved adapter's configuration what it lies on. Other folders are left as they are."""
    file = folder / _ADAPTER
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        with whole_file(file) as out:
            out.write(json.dumps({**config, "base_model_name_or_path": base.spec}, indent=2) + "\n")


def check_four_bits(base: Base) -> None:
    """Raise `InputError` where `base` cannot be loaded in 4 bits here."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("4-bit training (qlora) needs a GPU, and none is here: use lora without qlora")
    if find_spec("bitsandbytes") is None:
        raise InputError("4-bit training (qlora) needs the package bitsandbytes: pip install bitsandbytes")
    if base.files.gguf:
        raise InputError("4-bit training (qlora) needs a folder of weights, not a GGUF file")


def _four_bits() -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _plain(loaded: Any) -> Any:
    """The same model without a trace of GGUF: that mark keeps it from being trained and saved."""
    import transformers

    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain


def _with_adapter(model: Any, files: ModelFiles, *, keep: bool) -> Any:
    import peft

    try:
        laid = peft.PeftModel.from_pretrained(model, str(files.adapter), is_trainable=keep)
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the adapter {files.adapter} does not fit {files.folder} ({reason})") from None
    if keep:
        laid.active_peft_config.base_model_name_or_path = ""
        return laid
    merged = laid.merge_and_unload()
    merged.requires_grad_(True)
    return merged
