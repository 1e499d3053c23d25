"""`plan` and `profile`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cp_agents.cli import options as o
from cp_agents.errors import BackendError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cp_agents.files import BadLine
    from cp_agents.profiler import Profiler
    from cp_agents.routing import ReviewPolicy
    from cp_agents.runner import BatchReport, StoredRecord
    from cp_agents.taxonomy import Taxonomy

_ADAPTIVE_P = 0.95


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


def profile(
    in_file: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="JSONL, one user record a line; or run:NAME, the records of a stored run.",
            show_default=False,
        ),
    ],
    out: o.OutFile,
    backend: o.Backend = "lexicon",
    store: o.Store = o.DEFAULT_STORE,
    samples: o.Samples = 10,
    vote: Annotated[
        str, typer.Option("--vote", help="weighted, majority, mean, softmax or dawid_skene.")
    ] = "weighted",
    confidence: Annotated[
        str,
        typer.Option(
            "--confidence",
            help="What an answer weighs: verbal (as stated), agreement (all alike), logprob (what the model gave its"
            " tag) or combined (the product of the first and the third).",
        ),
    ] = "verbal",
    adaptive: Annotated[
        str | None,
        typer.Option(
            "--adaptive",
            help="Stop drawing when a record's votes are settled. exact: nothing could change them;"
            " bayes: the expected share of tags that stay is above --adaptive-p.",
            show_default=False,
        ),
    ] = None,
    adaptive_p: Annotated[
        float, typer.Option("--adaptive-p", help="For --adaptive bayes, above 0 and below 1.")
    ] = _ADAPTIVE_P,
    wave: Annotated[
        int,
        typer.Option("--wave", help="With --adaptive: fewest samples to draw at once after the first wave."),
    ] = 1,
    tag_weights: o.TagWeights = None,
    tau: o.Tau = None,
    calibrator: Annotated[
        Path | None,
        typer.Option(
            "--calibrator", help="Calibrator file; without it the run is calibrated on its own votes."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Records in flight.")] = 16,
    fanout: Annotated[
        str, typer.Option("--fanout", help="node: one request a record; send: a branch a sample.")
    ] = "node",
    base_url: o.BaseUrl = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one request.")] = 120.0,
    batch_api: Annotated[
        bool,
        typer.Option(
            "--batch-api",
            help="Submit by the endpoint's batch API and wait; the same command collects what it submitted before.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Most requests in one batch.")] = 50_000,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", help="Name of the run; the same name goes on where it stopped. Made up by default."
        ),
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            "--taxonomy",
            help="A built-in taxonomy or a YAML file of yours; profilebench, or that of run:NAME, by default.",
            show_default=False,
        ),
    ] = None,
    language: o.OwnLanguage = None,
    temperature: Annotated[float, typer.Option("--temperature")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 0.95,
    max_tokens: o.MaxTokens = 1200,
    seed: Annotated[int, typer.Option("--seed", help="Sample i is drawn with seed + i.")] = 0,
    token_budget: o.TokenBudget = 3000,
    history: Annotated[
        str,
        typer.Option(
            "--history",
            help="Of a history that does not fit: condense it by rule, truncate it, or select: the teacher reads it in"
            " parts first and chooses.",
        ),
    ] = "condense",
    n: Annotated[
        str, typer.Option("--n", help="Whether the endpoint honours n: probe, yes or no.")
    ] = "probe",
    rpm: Annotated[int | None, typer.Option("--rpm", help="Most requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", help="Most tokens a minute.")] = None,
    budget_usd: Annotated[
        float | None, typer.Option("--budget-usd", help="Stop when this much is spent.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option("--budget-tokens", help="Stop at this many tokens.")
    ] = None,
    prices: o.PricesFile = None,
    price_prompt: o.PricePrompt = None,
    price_cached: o.PriceCached = None,
    price_completion: o.PriceCompletion = None,
    review: Annotated[
        list[str] | None,
        typer.Option(
            "--review",
            help="Send to a person: contradiction, ungrounded, low_confidence=N, split_vote=MARGIN, audit_share=P;"
            " may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Profile every user of IN; goes on where an earlier attempt stopped. Python: `Profiler.profile_many`."""
    from cp_agents.files import BadLine, check_out, read_records, write_jsonl
    from cp_agents.hybrid import load_tag_weights
    from cp_agents.prices import find_prices, prices_for
    from cp_agents.profiler import Profiler
    from cp_agents.runner import StoredRecord, profiles_in_order

    bad: list[BadLine] = []
    records: list[dict[str, Any] | StoredRecord]
    chosen: str | Taxonomy = taxonomy or "profilebench"
    if (source := stored_source(in_file)) is not None:
        records = list(records_of_run(store, source))
        chosen = taxonomy or taxonomy_of_run(store, source)
        if batch_api:
            raise InputError("records of a stored run cannot go by --batch-api: give their file")
    else:
        lines = list(read_records(in_file))
        bad = [line for line in lines if isinstance(line, BadLine)]
        records = [line for line in lines if not isinstance(line, BadLine)]
    if not records:
        report_bad_lines(bad)
        raise InputError(f"{in_file} holds no user records")
    ids = [r.user_id if isinstance(r, StoredRecord) else str(r["user_id"]) for r in records]
    check_out(out, in_file, store, calibrator, prices, tag_weights, *o.files_of(backend, taxonomy or ""))
    if concurrency < 1:
        raise InputError(f"--concurrency should be 1 or more, found {concurrency}")
    if batch_size < 1:
        raise InputError(f"--batch-size should be 1 or more, found {batch_size}")
    if adaptive is None and (adaptive_p != _ADAPTIVE_P or wave != 1):
        raise InputError(
            "--wave and --adaptive-p say when to stop drawing: they take --adaptive exact or --adaptive bayes"
        )
    if batch_api and adaptive is not None:
        raise InputError(
            "--adaptive draws wave by wave and --batch-api all samples at once: choose one of the two"
        )
    if batch_api and (budget_usd is not None or budget_tokens is not None):
        raise InputError(
            "a budget cannot stop a batch once it is submitted: see `plan` for what it will cost"
        )
    given, listed = o.prices(price_prompt, price_cached, price_completion), find_prices(prices)
    profiler = Profiler(
        backend=backend,
        store=store,
        samples=samples,
        taxonomy=chosen,
        language=language,
        vote=vote,  # type: ignore[arg-type]  # checked by Profiler, with a sentence
        confidence=confidence,  # type: ignore[arg-type]  # likewise
        adaptive=adaptive,  # type: ignore[arg-type]  # likewise
        adaptive_p=adaptive_p,
        wave=wave,
        tag_weights=None if tag_weights is None else load_tag_weights(tag_weights),
        calibrator=calibrator,
        review=parse_review(review or []),
        run=run or run_name(in_file, backend),
        base_url=base_url,
        timeout=timeout,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        token_budget=token_budget,
        history=history,  # type: ignore[arg-type]  # likewise
        tau=tau,
        n=n,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        prices=given,
        price_list=listed,
    )
    with profiler.store:
        try:
            if batch_api:
                batch_prices = prices_for(backend, given, listed, batch=True)
                report = run_live(profiler, records, by_batches=True, prices=batch_prices, batch_size=batch_size)
            else:
                report = run_live(profiler, records, concurrency=concurrency, fanout=fanout)
        except BackendError as error:
            kept = f"what landed is kept in {store}, and the same command goes on from there"
            if next(profiler.store.profiles(profiler.run_id), None) is not None:
                so_far = f"cp-agents replay --store {store} --run {profiler.run_id} --out {out}"
                kept += f"; `{so_far}` writes the profiles of what has landed so far"
            raise BackendError(f"{error} ({kept})", error.error_type) from None
        if report.stopped:
            typer.echo(
                f"stopped: {report.done} of {len(records)} records are done and kept in {store};"
                " the same command goes on from there",
                err=True,
            )
            raise typer.Exit(130)
        written = write_jsonl(
            out, (p.to_json() for p in profiles_in_order(profiler.store, profiler.run_id, ids))
        )
        from cp_agents.cli.tables import print_summary

        print_summary(report, len(records), written, out, store)
        for user_id, why in list(report.failed.items())[:5]:
            typer.echo(f"error: user {user_id!r}: {why}", err=True)
        report_bad_lines(bad)
        if sum(report.statuses.values()) == report.statuses.get("failed") != 0:
            some = report.meter.outcomes.get("ok", 0)
            few = "too few samples of a record gave" if some else "no sample gave"
            typer.echo(f"error: {few} a usable answer, see the samples by outcome above", err=True)
            raise typer.Exit(1)
        if report.failed:
            raise typer.Exit(1)


def stored_source(in_file: Path) -> str | None:
    """The run that `run:NAME` in place of a file names; None for a file."""
    kind, given, run = str(in_file).partition(":")
    return run if kind == "run" and given and not in_file.exists() else None


def records_of_run(store: Path, run: str) -> list[StoredRecord]:
    """The records of a stored run, to be profiled again. Raises `StoreError` where there is no such run."""
    from cp_agents.runner import stored_records
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        return stored_records(traces, traces.run(run or None)["run_id"])


def taxonomy_of_run(store: Path, run: str) -> Taxonomy:
    """The taxonomy that a stored run was made with."""
    from cp_agents.relabel import stored_run
    from cp_agents.stores.traces import TraceStore

    with TraceStore(store, must_exist=True) as traces:
        return stored_run(traces, run or None)[1]


def run_name(in_file: Path, backend: str) -> str:
    """The made-up name of a run: the same for the same file and kind of backend, so that it is found again."""
    import hashlib

    if (source := stored_source(in_file)) is not None:
        return f"{source}-{backend.partition(':')[0]}"
    place = hashlib.sha256(str(in_file.resolve()).encode()).hexdigest()[:4]
    return f"{in_file.stem}-{backend.partition(':')[0]}-{place}"


def run_live(
    profiler: Profiler,
    records: Sequence[dict[str, Any] | StoredRecord],
    *,
    by_batches: bool = False,
    **options: Any,
) -> BatchReport:
    """Run the batch with a progress line; the first Ctrl-C drains, the second one stops at once."""
    import asyncio
    import contextlib
    import signal

    from cp_agents.cli.tables import progress
    from cp_agents.runner import Stop, run_batch

    stop = Stop()
    leaving = "waiting for the records in flight (Ctrl-C again to drop them)"
    go_through = run_batch
    if by_batches:
        from cp_agents.batch_run import run_by_batches

        leaving = "what was submitted goes on at the endpoint"
        go_through = partial(run_by_batches, say=partial(typer.echo, err=True))

    async def go() -> BatchReport:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            if stop.requested:
                task.cancel()
            else:
                typer.echo(f"\nstopping: {leaving}", err=True)
                stop()

        # Windows has no signal handlers on a loop: Ctrl-C stops at once there, and what has landed is kept.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(signal.SIGINT, interrupted)
        with progress(len(records)) as on_record:
            try:
                return await go_through(
                    profiler.context, records, calibrator=profiler.calibrator or "fit", stop=stop,
                    on_record=on_record, **options,
                )  # fmt: skip
            finally:
                await profiler.backend.aclose()

    try:
        return asyncio.run(go())
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def report_bad_lines(bad: list[BadLine]) -> None:
    """One sentence a line on stderr, then exit code 2; nothing where there are none."""
    for line in bad[:20]:
        typer.echo(f"error: {line.message}", err=True)
    if len(bad) > 20:
        typer.echo(f"error: and {len(bad) - 20} more lines", err=True)
    if bad:
        raise typer.Exit(2)


def parse_review(words: list[str]) -> ReviewPolicy:
    """`--review` words as a policy. Raises `InputError` for a rule that is not there or a value out of range."""
    from pydantic import ValidationError

    from cp_agents.routing import ReviewPolicy

    rules: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        rules[name] = value or True
    try:
        return ReviewPolicy.model_validate(rules)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(ReviewPolicy.model_fields)
        raise InputError(f"--review {first['loc'][0]}: {first['msg'].lower()} (rules: {known})") from None
