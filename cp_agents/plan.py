"""What a run would send and cost, without sending anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cp_agents.backends.endpoint import public_url
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.usage import Prices
from cp_agents.cues import AssembledCues, assemble_cues, estimate_tokens
from cp_agents.errors import InputError
from cp_agents.prompts.render import Prompt
from cp_agents.schema import Usage, UserRecord
from cp_agents.taxonomy import Taxonomy

_TOKENS_PER_ATTRIBUTE = 40  # one element of the wire format with a short quotation


class Plan(NamedTuple):
    """Estimates for a run. All token counts come from the text's length, not from a tokenizer."""

    cues: list[AssembledCues]
    prompt_tokens: int
    """Of one request, on average."""
    shared_tokens: int
    """Of one request, those that are equal for all users and come first."""
    total_prompt: int
    """With one request a sample."""
    total_prompt_n: int
    """With one request a record."""
    total_completion: int
    most_completion: int
    dropped: dict[str, int]
    """What cue assembly left out, over all records."""
    cost_usd: float | None
    """With one request a sample and no prefix cache."""
    cost_cached_usd: float | None
    """With one request a sample and every token that was sent before read from the endpoint's prefix cache."""
    cost_n_usd: float | None


def check_spec(spec: str, options: BackendOptions) -> None:
    """Check a backend's spec as far as it goes without a call, a key or a loaded model. Raises `InputError`."""
    kind, _, rest = spec.partition(":")
    if kind == "ensemble":
        for member in rest.split(","):
            check_spec(member.strip(), options)
    elif spec == "lexicon":  # the built-in phrases fit every taxonomy, and take half a second to compile
        return
    elif kind == "openai":
        if not rest.strip():
            raise InputError("the openai backend needs a model name, as in openai:MODEL")
    elif kind == "vllm-server":  # it asks the server for its models as soon as it is made
        if not (url := rest.partition("?")[0].partition("#")[0] or options.base_url or ""):
            raise InputError("vllm-server needs the server's URL, as in vllm-server:http://127.0.0.1:8000")
        public_url(url)
    else:
        resolve_backend(spec, options)


def plan_run(
    records: Iterable[Mapping[str, Any]],
    prompt: Prompt,
    taxonomy: Taxonomy,
    *,
    samples: int,
    token_budget: int,
    max_tokens: int,
    prices: Prices | None = None,
) -> Plan:
    """Assemble every record and add up."""
    cues = [assemble_cues(UserRecord.from_dict(dict(r)), token_budget=token_budget) for r in records]
    shared = sum(estimate_tokens(m.content) for m in prompt.messages("")) if cues else 0
    per_record = shared * len(cues) + sum(c.tokens for c in cues)
    completion = samples * len(cues) * min(max_tokens, _TOKENS_PER_ATTRIBUTE * len(taxonomy.names))
    dropped: Counter[str] = Counter()
    for c in cues:
        dropped.update(c.dropped)

    def cost(prompt_tokens: int, cached_tokens: int = 0) -> float | None:
        usage = Usage(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, completion_tokens=completion)
        return None if prices is None else prices.cost(usage)

    whole = per_record * samples
    sent_once = shared + sum(c.tokens for c in cues)

    return Plan(
        cues=cues,
        prompt_tokens=round(per_record / len(cues)) if cues else 0,
        shared_tokens=shared,
        total_prompt=whole,
        total_prompt_n=per_record,
        total_completion=completion,
        most_completion=samples * len(cues) * max_tokens,
        dropped=dict(dropped),
        cost_usd=cost(whole),
        cost_cached_usd=cost(whole, whole - sent_once),
        cost_n_usd=cost(per_record),
    )
