"""Prices of models, in a file that the user keeps: none are built in, because they go stale.

    ["openai:gpt-4.1-mini"]          # kind:model, or the model alone; quotes, because of the dots and colons
    prompt = 0.40                    # USD per million tokens
    cached = 0.10                    # optional: prompt tokens that come from the endpoint's prefix cache
    completion = 1.60
    batch = { prompt = 0.20, completion = 0.80 }    # optional: what the provider's batch API takes

    ["openai:*-nano"]                # a pattern: *, ? and [abc]
    prompt = 0.10
    completion = 0.40

An exact name goes before a pattern, `kind:model` before the model alone, and of several patterns the first in
the file counts. The same in YAML, where the file ends in .yaml or .yml.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cp_agents.backends.usage import Prices
from cp_agents.errors import InputError

log = logging.getLogger(__name__)

DEFAULT_FILE = Path("prices.toml")
"""Read by the command line where it stands in the working folder."""

_BATCH = "batch"


class Listed(NamedTuple):
    """What the file says of one name or pattern."""

    live: dict[str, float]
    """USD per million tokens: prompt, completion, and cached where it differs."""
    batch: dict[str, float]
    """The same for the provider's batch API; equal to `live` where the file does not tell them apart."""


class PriceList:
    """The prices of a file, by name and pattern in the order of the file."""

    def __init__(self, entries: Mapping[str, Listed], source: str) -> None:
        self.source = source
        self._entries = dict(entries)
        self._told: set[str] = set()

    def find(self, spec: str) -> Listed | None:
        """The prices of the backend `spec`, as in openai:MODEL; None where the list has none."""
        names = [spec, model] if (model := spec.partition(":")[2]) else [spec]
        for name in names:
            if name in self._entries:
                return self._entries[name]
        for pattern, listed in self._entries.items():
            if any(fnmatchcase(name, pattern) for name in names):
                return listed
        return None

    def tell_missing(self, spec: str) -> None:
        """Warn that the list has no price for `spec`, once."""
        if ":" in spec and spec not in self._told:  # what has no model is no endpoint that costs anything
            self._told.add(spec)
            log.warning("%s has no price for %s: its cost is not counted", self.source, spec)


def prices_for(
    spec: str, given: Mapping[str, float] | None, listed: PriceList | None, *, batch: bool = False
) -> Prices | None:
    """The prices of the backend `spec`: `given` ones win over those of the list, one by one; None without any.

    Raises `InputError` where only some of them are known.
    """
    found = listed.find(spec) if listed is not None else None
    if found is None and not given:
        if listed is not None:
            listed.tell_missing(spec)
        return None
    file = {} if found is None else found.batch if batch else found.live
    return Prices.from_dict({**file, **(given or {})})


def load_prices(path: str | Path) -> PriceList:
    """Read a price file, TOML or YAML by its ending.

    Raises `InputError` with one sentence that names the file, the entry and what is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"prices {path}: not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"no price file at {path} ({error.strerror})") from None
    return PriceList(
        {name: _entry(path, name, value) for name, value in _read(path, text).items()}, str(path)
    )


def find_prices(path: Path | None = None) -> PriceList | None:
    """The price list at `path`, else that of ./prices.toml, else None."""
    if path is None and not DEFAULT_FILE.is_file():
        return None
    return load_prices(path or DEFAULT_FILE)


def _read(path: Path, text: str) -> dict[str, Any]:
    if path.suffix.lower() in {".yaml", ".yml"}:
        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"prices {path}: not YAML ({' '.join(str(error).split())})") from None
        except (RecursionError, ValueError):
            raise InputError(f"prices {path}: nested too deeply, or a value that is none") from None
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise InputError(f"prices {path}: expected models with their prices")
        return {str(name): value for name, value in raw.items()}
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"prices {path}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f'prices {path}: not TOML ({error}); names go in quotes, ["kind:model"]') from None


def _entry(path: Path, name: str, value: object) -> Listed:
    where = f"prices {path}, {name!r}"
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected prompt, completion and perhaps cached (USD per million tokens)")
    if nested := [key for key, inner in value.items() if isinstance(inner, dict) and key != _BATCH]:
        raise InputError(
            f'{where}: {nested[0]!r} is no price; a name with dots goes in quotes, ["{name}..."]'
        )
    live = {key: price for key, price in value.items() if key != _BATCH}
    batch = value.get(_BATCH, live)
    if not isinstance(batch, dict):
        raise InputError(f"{where}: {_BATCH} should hold prompt, completion and perhaps cached")
    for prices, part in ((live, where), (batch, f"{where}, {_BATCH}")):
        try:
            Prices.from_dict(prices)
        except InputError as error:
            raise InputError(f"{part}: {error}") from None
    return Listed(live, batch)
