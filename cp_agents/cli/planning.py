"""`plan`: what a run would send and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cp_agents.cli import options as o
from cp_agents.cli.reading import report_bad_lines
from cp_agents.errors import InputError

if TYPE_CHECKING:
    pass


def plan(
    in_file: o.InFile,
    backend: o.Backend = "lexicon",
    base_url: o.BaseUrl = None,
    store: o.Store = o.DEFAULT_STORE,
    samples: o.Samples = 10,
    taxonomy: o.Taxonomy = "profilebench",
    language: o.OwnLanguage = None,
    token_budget: o.TokenBudget = 3000,
    max_tokens: o.MaxTokens = 1200,
    prices: o.PricesFile = None,
    price_prompt: o.PricePrompt = None,
    price_cached: o.PriceCached = None,
    price_completion: o.PriceCompletion = None,
    show: Annotated[int, typer.Option("--show", help="Which record's prompt to show, counted from 1.")] = 1,
) -> None:
    """Preview prompts, tokens and cost; no call is made. Python: `cp_agents.plan.plan_run`."""
    from rich.console import Console

    from cp_agents.backends.registry import BackendOptions
    from cp_agents.backends.student import language_of
    from cp_agents.files import BadLine, read_records
    from cp_agents.plan import check_spec, plan_run
    from cp_agents.prices import find_prices, prices_for
    from cp_agents.profiler import check_samples
    from cp_agents.prompts.render import load_prompt
    from cp_agents.taxonomy import load_taxonomy

    check_samples(samples)
    if max_tokens < 16:
        raise InputError(f"--max-tokens should be 16 or more, found {max_tokens}")
    if token_budget < 64:
        raise InputError(f"--token-budget should be 64 or more, found {token_budget}")
    lines = list(read_records(in_file))
    records = [line for line in lines if not isinstance(line, BadLine)]
    bad = [line for line in lines if isinstance(line, BadLine)]
    chosen = load_taxonomy(taxonomy)
    check_spec(backend, BackendOptions(chosen, base_url=base_url, store=store))
    prompt = load_prompt(chosen, language_of(backend, store) if language is None else language)
    if records and not 1 <= show <= len(records):
        raise InputError(f"--show should be between 1 and {len(records)}, found {show}")
    given = o.prices(price_prompt, price_cached, price_completion)
    priced = prices_for(backend, given, find_prices(prices))
    found = plan_run(
        records, prompt, chosen, samples=samples, token_budget=token_budget, max_tokens=max_tokens, prices=priced
    )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    if records:
        for message in prompt.messages(found.cues[show - 1].text):
            console.rule(message.role)
            console.print(message.content, markup=False)
        console.rule()
    console.print(
        f"{len(records):,} records x {samples} samples on {backend}, prompt {prompt.version} ({prompt.language})\n"
        f"prompt: {found.prompt_tokens:,} tokens a request on average, the same {found.shared_tokens:,} first in each\n"
        f"in all, with one request a sample: {found.total_prompt:,} prompt and about {found.total_completion:,}"
        f" completion tokens (at most {found.most_completion:,})\n"
        f"with one request a record (n honoured): {found.total_prompt_n:,} prompt tokens\n"
        "token counts are estimates from the text's length; no call was made",
        markup=False,
    )
    if found.dropped:
        console.print(
            "left out of the cues: " + ", ".join(f"{k} {v:,}" for k, v in sorted(found.dropped.items()))
        )
    if found.cost_usd is not None:
        console.print(f"cost: about ${found.cost_usd:,.2f} (${found.cost_n_usd:,.2f} where n is honoured)")
    if priced is not None and priced.cached is not None:
        console.print(f"where a prefix cache serves all that was sent before: ${found.cost_cached_usd:,.2f}")
    report_bad_lines(bad)
