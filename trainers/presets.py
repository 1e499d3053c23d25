"""Settings from a preset and what is changed of it, for both trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cp_agents.errors import InputError

Settings = TypeVar("Settings", bound=BaseModel)

_ADAPTER_FACTOR = 10
"""An adapter begins as zero and is the product of two small matrices: with the rate of full fine-tuning the weights'
sum hardly moves."""


def from_preset(
    kind: type[Settings], presets: Mapping[str, Mapping[str, Any]], preset: str, changes: Mapping[str, Any]
) -> Settings:
    """The preset's settings with `changes` on top. Raises `InputError` that names the preset or the field.

    A mode other than the preset's brings the learning rate of its own kind along, unless one is given.
    """
    if preset not in presets:
        raise InputError(f"no preset {preset!r}: there are {', '.join(presets)}")
    chosen = presets[preset]
    values = {**chosen, **changes}
    was_full, is_full = chosen["mode"] == "full", values["mode"] == "full"
    if was_full != is_full and "learning_rate" not in changes:
        values["learning_rate"] = chosen["learning_rate"] * (
            _ADAPTER_FACTOR if was_full else 1 / _ADAPTER_FACTOR
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        says = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{field}: {says}, found {str(first['input'])[:80]!r}") from None
