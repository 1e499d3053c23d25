"""`profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cp_agents.cli import options as o
from cp_agents.cli.planning import plan
from cp_agents.cli.reading import records_of_run, report_bad_lines, run_name, stored_source, taxonomy_of_run
from cp_agents.cli.running import run_live
from cp_agents.errors import BackendError, InputError

if TYPE_CHECKING:
    from cp_agents.files import BadLine
    from cp_agents.routing import ReviewPolicy
    from cp_agents.runner import StoredRecord
    from cp_agents.taxonomy import Taxonomy

__all__ = ["parse_review", "plan", "profile", "report_bad_lines", "run_live"]

_ADAPTIVE_P = 0.95


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
                report = run_live(
                    profiler, records, by_batches=True, prices=batch_prices, batch_size=batch_size
                )
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
