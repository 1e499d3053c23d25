"""The options of `vllm` and `vllm-server`, as they stand behind the spec's question mark.

    vllm:MODEL?structured=regex&max_model_len=8192
    vllm-server:http://127.0.0.1:8000?structured=grammar&logprobs=5#MODEL

In Python the same names may come in `extra`; the spec goes before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import yaml

from cp_agents.backends.wire_grammar import constraint
from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy

OF_THE_RUN = frozenset({"n", "seed", "temperature", "top_p", "max_tokens", "messages", "model", "stream"})
"""What the run's own settings say."""


class VllmOptions(NamedTuple):
    """The options that both backends know, and the others by name."""

    structured_outputs: dict[str, str]
    """What vLLM calls so: `{"regex": ...}`, `{"grammar": ...}` or empty."""
    logprobs: int
    """How many alternatives to each token of a tag; 0 for no probabilities at all."""
    seeds: bool | None
    """Whether samples are drawn with seeds; None to leave it to the backend."""
    others: dict[str, Any]


def split_options(spec: str) -> tuple[str, dict[str, Any]]:
    """`HEAD?name=value&...#TAIL` as `HEAD#TAIL` and the options; values are read as in YAML: 4, 0.5, true, {a: b}."""
    head, _, tail = spec.partition("?")
    query, mark, fragment = tail.partition("#")
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InputError(f"{pair!r} in {spec!r} should be name=value")
        try:
            options[name.replace("-", "_")] = yaml.safe_load(unquote(value))
        except yaml.YAMLError:
            raise InputError(f"the value of {name} in {spec!r} cannot be read") from None
    return head + mark + fragment, options


def read_options(options: Mapping[str, Any], taxonomy: Taxonomy) -> VllmOptions:
    """Check options. Raises `InputError` for what the run sets itself and for what vLLM no longer knows."""
    others = dict(options)
    structured = others.pop("structured", "none")
    logprobs, seeds = others.pop("logprobs", 0), others.pop("seeds", None)
    if isinstance(logprobs, bool) or not isinstance(logprobs, int) or not 0 <= logprobs <= 20:
        raise InputError(f"logprobs should be a number from 0 to 20, found {logprobs!r}")
    if seeds is not None and not isinstance(seeds, bool):
        raise InputError(f"seeds should be true or false, found {seeds!r}")
    if taken := sorted(OF_THE_RUN & others.keys()):
        raise InputError(f"{', '.join(taken)} cannot be set here: the run's own settings say so")
    if old := sorted(name for name in others if name.startswith("guided_")):
        raise InputError(f"vLLM ignores {', '.join(old)} without a word: use structured=regex or grammar")
    given = others.pop("structured_outputs", None)
    if given is not None and structured != "none":
        raise InputError("structured and structured_outputs cannot be given together")
    return VllmOptions(dict(given or constraint(str(structured), taxonomy)), logprobs, seeds, others)


def digest(*parts: object) -> str:
    """12 hex digits over JSON-like parts, for a revision."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
