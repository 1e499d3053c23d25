"""A chat model of transformers in memory: weights, tokenizer, chat template and where answers end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

from cp_agents.backends.hf_files import ModelFiles
from cp_agents.backends.hf_rows import rows_for
from cp_agents.backends.hf_sampling import Stop
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.schema import Message

log = logging.getLogger(__name__)

_WORTH_SHARING = 32
"""Tokens of instructions from which on keeping them for the next prompt pays."""
_UNBOUNDED = 2**31


class Encoded(NamedTuple):
    """A prompt as token ids."""

    ids: tuple[int, ...]
    shared: int
    """How many of them do not depend on the last message; less than all."""
    thinking: bool
    """Whether the prompt ends in an open think block."""

    @property
    def head(self) -> tuple[int, ...]:
        """What is shared."""
        return self.ids[: self.shared]

    @property
    def own(self) -> int:
        """Number of tokens that are not."""
        return len(self.ids) - self.shared


class ChatModel:
    """Loads a model. Raises `InputError` where it cannot be used, and what transformers raises for broken files."""

    def __init__(self, files: ModelFiles, *, device: str, dtype: str, stop: str) -> None:
        import transformers

        with _quiet():
            gguf: dict[str, Any] = {"gguf_file": files.gguf} if files.gguf else {}
            of_tokenizer = dict(gguf) if files.tokenizer_folder == files.folder else {}
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                files.tokenizer_folder, local_files_only=True, **of_tokenizer
            )
            if gguf and hasattr(transformers, "GgufConfig"):
                # Packed weights save memory and cost the speed of every batch; and adapters need dense ones.
                gguf["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                files.folder, dtype=getattr(torch, dtype), local_files_only=True, **gguf
            )
            if files.adapter is not None:
                model = _with_adapter(model, files)
        if not self._tokenizer.chat_template:
            raise InputError(f"{files.tokenizer_folder} has no chat template")
        self._model = model.to(device).eval()
        self.rows = rows_for(self._model)
        config = self._model.config.get_text_config()
        self.context: int = getattr(config, "max_position_embeddings", None) or _UNBOUNDED
        """Most tokens of prompt and answer together."""
        self.room_tokens = _free_bytes(device) // token_bytes(config, self._model.dtype.itemsize)
        """How many generated tokens the memory holds at a time."""
        self.ends = end_ids(self._model, self._tokenizer)
        """Tokens that end an answer."""
        vocabulary = self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))
        self.stop = Stop(stop, [piece or "" for piece in vocabulary], self.text)
        self.encode = lru_cache(maxsize=256)(
            self._encode
        )  # a record's samples may come in requests of their own
        self._head = lru_cache(maxsize=8)(self._encode_head)
        self.piece = lru_cache(maxsize=65_536)(self._piece)
        self._anchor = self._tokenizer("<", add_special_tokens=False)["input_ids"][-1:]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens."""
        decoded: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded

    def _piece(self, token: int) -> str:
        """The text of one token inside an answer; "" for special ones."""
        # Alone, some tokenizers drop the space that a token begins with.
        before, both = self.text(self._anchor), self.text([*self._anchor, token])
        return both[len(before) :] if both.startswith(before) else self.text([token])

    def _encode(self, messages: tuple[Message, ...]) -> Encoded:
        """The prompt up to where the answer begins. Raises `BackendError` where the chat template refuses it."""
        text = prompt_text(self._tokenizer, messages)
        ids = text_ids(self._tokenizer, text)
        head = self._head(messages[:-1], messages[-1].role)
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, head, strict=False)) if a != b), min(len(ids), len(head))
        )
        shared = min(shared, len(ids) - 1)
        thinking = text.rstrip().endswith("<think>")
        return Encoded(ids, shared if shared >= _WORTH_SHARING else 0, thinking)

    def _encode_head(self, messages: tuple[Message, ...], role: Any) -> tuple[int, ...]:
        return text_ids(self._tokenizer, prompt_text(self._tokenizer, (*messages, Message(role, ""))))


def prompt_text(tokenizer: Any, messages: Iterable[Message]) -> str:
    """The prompt as the model's chat template writes it, up to where the answer begins.

    Raises `BackendError` where the template refuses it.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            [message.as_dict() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        message = f"the model's chat template refuses it ({error})"
        raise BackendError(message, ErrorType.BAD_REQUEST) from None
    return text


def text_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text that holds its special tokens already."""
    # A lone surrogate has no UTF-8; one broken character must not lose the record.
    text = text.encode(errors="replace").decode()
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = (configured, model.config.eos_token_id, tokenizer.eos_token_id)
    return frozenset(
        token for ids in found for token in (ids if isinstance(ids, list) else [] if ids is None else [ids])
    )


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: str) -> str:
    """bfloat16 where the device computes with it (GPUs since Ampere, CPUs with AVX512-BF16 or AMX), else float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device == "cpu":
        # Releases of torch without it do not tell.
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bfloat16" if any(able.get(name) for name in ("avx512_bf16", "amx_bf16")) else "float32"
    return "float32"


def token_bytes(config: Any, itemsize: int) -> int:
    """Bytes that one token's keys and values take in all layers (an estimate for unusual architectures)."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * dim * itemsize)


def _free_bytes(device: str) -> int:
    """Memory that generated tokens may take: half of what is free, the rest is for prompts and passes."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    psutil: Any = import_module("psutil")  # it comes with peft, and without types
    return int(psutil.virtual_memory().available) // 2


def _with_adapter(model: Any, files: ModelFiles) -> Any:
    import peft

    try:
        return peft.PeftModel.from_pretrained(model, str(files.adapter)).merge_and_unload()
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the adapter {files.adapter} does not fit {files.folder} ({reason})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers; they would run into those of the command line."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as said

    shown = said.is_progress_bar_enabled()
    said.disable_progress_bar()
    bar = getattr(gguf, "tqdm", None)  # this one does not ask whether bars are wanted
    if bar is not None:
        gguf.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            gguf.tqdm = bar
        if shown:
            said.enable_progress_bar()
