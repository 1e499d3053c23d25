"""The configuration file as defaults of the verbs' options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from cp_agents.errors import InputError


class Option(NamedTuple):
    """What a key of the file may hold for one verb."""

    name: str
    """The verb's parameter."""
    many: bool
    """Whether it may be repeated; a single value is then a list of one."""
    kinds: frozenset[type]
    """Of its values."""

    def takes(self, value: Any) -> bool:
        """Whether a value written for every verb means this option: `users` is a file here and a number there."""
        if isinstance(value, list):
            return self.many and all(self.takes(each) for each in value)
        for kind, fitting in _FITTING:
            if isinstance(value, kind):
                return bool(self.kinds & fitting)
        return False

    def default(self, value: Any) -> Any:
        """The value as the option's default."""
        return [value] if self.many and not isinstance(value, list) else value


_FITTING: tuple[tuple[type, frozenset[type]], ...] = (
    (bool, frozenset({bool})),
    (int, frozenset({int, float, str})),
    (float, frozenset({float, str})),
    (str, frozenset({str, Path})),
)
"""Kinds of options that a value of a kind is good for; a bool is an int, so it comes first."""

Verbs = Mapping[str, Any]
"""`{verb: {key: Option}}`; a group of verbs holds its own verbs."""


def options_of(group: Any) -> dict[str, Any]:
    """The options of all verbs of a typer group by their keys: a flag's name, or that of the verb's parameter."""
    return {
        name: options_of(command) if hasattr(command, "commands") else _keys(command)
        for name, command in group.commands.items()
    }


def defaults(path: Path, verbs: Verbs, table: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults per verb of a whole file: keys at the top are for every verb that has them, tables for one.

    Raises `InputError` for what no verb takes.
    """
    return _of_group(path, "", verbs, {}, table)


def _keys(command: Any) -> dict[str, Option]:
    hints = get_type_hints(command.callback)
    found: dict[str, Option] = {}
    for param in command.params:
        if param.name == "help":
            continue
        many = bool(getattr(param, "multiple", False)) or param.nargs == -1
        option = Option(param.name, many, frozenset(_kinds(hints.get(param.name))))
        flags = [flag[2:].replace("-", "_") for flag in param.opts if flag.startswith("--")]
        found |= dict.fromkeys([*flags, param.name], option)
    return found


def _kinds(hint: Any) -> set[type]:
    inner = get_args(hint)
    if inner:
        return set().union(*map(_kinds, inner))
    return {hint} - {NoneType} if isinstance(hint, type) else set()


def _of_group(
    path: Path, where: str, verbs: Verbs, outer: Mapping[str, Any], table: Mapping[str, Any]
) -> dict[str, Any]:
    """`where` is `bench.` within the group bench; `outer` are the shared keys of the groups around it."""
    own = {_key(k): v for k, v in table.items() if k not in verbs}
    for key, value in own.items():
        if not (takers := _takers(verbs, key)):
            heading = (
                f"[{where[:-1]}] has no verb or option {key!r}" if where else f"no option {key!r} in any verb"
            )
            raise InputError(f"{path}: {heading}")
        if isinstance(value, dict) or not any(option.takes(value) for option in takers):
            raise InputError(f"{path}: {where}{key} cannot be {value!r} in any verb")
    shared = {**outer, **own}
    found: dict[str, Any] = {}
    for verb, options in verbs.items():
        inside = table.get(verb, {})
        if not isinstance(inside, dict):
            raise InputError(f"{path}: [{where}{verb}] should be a table of options")
        if _is_group(options):
            found[verb] = _of_group(path, f"{where}{verb}.", options, shared, inside)
            continue
        inside = {_key(k): v for k, v in inside.items()}
        if unknown := sorted(set(inside) - set(options)):
            raise InputError(f"{path}: [{where}{verb}] has no option {unknown[0]!r}")
        fitting = {k: v for k, v in shared.items() if k in options and options[k].takes(v)}
        found[verb] = {options[k].name: options[k].default(v) for k, v in (fitting | inside).items()}
    return found


def _takers(verbs: Verbs, key: str) -> list[Option]:
    found: list[Option] = []
    for options in verbs.values():
        if _is_group(options):
            found += _takers(options, key)
        elif key in options:
            found.append(options[key])
    return found


def _is_group(options: Mapping[str, Any]) -> bool:
    return not all(isinstance(option, Option) for option in options.values())


def _key(word: str) -> str:
    return word.replace("-", "_")
