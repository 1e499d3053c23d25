"""SFT rows as token ids: the prompt exactly as serving feeds it, and the answer up to where serving stops reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.errors import BackendError, InputError
from cp_agents.schema import Message

_NO_LOSS = -100


class TokenRow(NamedTuple):
    """One row."""

    user_id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """With the token that ends it."""

    def columns(self) -> dict[str, list[int]]:
        """As TRL takes it; only the answer has labels."""
        return {
            "input_ids": [*self.prompt, *self.answer],
            "labels": [_NO_LOSS] * len(self.prompt) + list(self.answer),
        }

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def read_messages(row: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], str]:
    """A row's prompt and the text of its completion. Raises `InputError` where it has another shape."""
    try:
        prompt = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
        (said,) = row["completion"]
        if not prompt or said["role"] != "assistant" or not isinstance(row["user_id"], str):
            raise ValueError
        texts = [*(message.content for message in prompt), said["content"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f'{where}: expected "user_id", "prompt" (messages) and "completion" (one assistant message)'
        ) from None
    return prompt, texts[-1]


def token_rows(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, ends: Set[int], file: Path
) -> list[TokenRow]:
    """The rows of `file` as token ids. Raises `InputError` that names the line."""
    from cp_agents.backends.hf_model import prompt_text, text_ids

    found = []
    for number, row in enumerate(rows, 1):
        where = f"{file} line {number}"
        messages, answer = read_messages(row, where)
        try:
            text = prompt_text(tokenizer, messages)
        except BackendError as error:
            raise InputError(f"{where}: {error}") from None
        ids = text_ids(tokenizer, _closed(tokenizer, messages, text, answer))
        found.append(TokenRow(row["user_id"], text_ids(tokenizer, text), _ended(ids, ends, tokenizer)))
    return found


def _closed(tokenizer: Any, messages: tuple[Message, ...], prompt: str, answer: str) -> str:
    """The answer as the chat template writes it behind the prompt, with what closes an assistant's turn."""
    turns = [message.as_dict() for message in (*messages, Message("assistant", answer))]
    whole: str = tokenizer.apply_chat_template(turns, tokenize=False)
    if whole.startswith(prompt) and answer in whole[len(prompt) :]:
        return whole[len(prompt) :]
    return answer  # the template writes finished turns in another way than the one that it asks for


def _ended(ids: tuple[int, ...], ends: Set[int], tokenizer: Any) -> tuple[int, ...]:
    """Up to and with the last token that ends an answer, which is where serving stops."""
    last = max((i for i, token in enumerate(ids) if token in ends), default=None)
    return ids[: last + 1] if last is not None else (*ids, tokenizer.eos_token_id)
