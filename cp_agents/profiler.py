"""`Profiler`: everything in a few lines, for those who do not want to wire the graph themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError

from cp_agents.abstention import parse_tau
from cp_agents.adaptive import Adaptive, check_adaptive
from cp_agents.backends.base import Backend
from cp_agents.backends.limits import check_positive
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.student import StudentBackend, prompt_for
from cp_agents.background import run_sync
from cp_agents.calibration import Calibrator
from cp_agents.confidence import ConfidenceSource, check_logprobs, check_source
from cp_agents.errors import InputError
from cp_agents.graph import Fanout, ProfilingContext, compile_graph
from cp_agents.meter import Meter
from cp_agents.open_sets import check_open
from cp_agents.routing import ReviewPolicy
from cp_agents.runner import BatchReport, StoredRecord, profiles_in_order, run_batch
from cp_agents.schema import Profile, UserRecord
from cp_agents.settings import HISTORIES, History, ProfileSettings
from cp_agents.stores.endpoints import recall
from cp_agents.stores.traces import TraceStore
from cp_agents.tag_weights import check_tag_weights
from cp_agents.taxonomy import Taxonomy, load_taxonomy
from cp_agents.voting import METHODS, VoteMethod

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph
    from langgraph.types import Checkpointer

_MOST_SAMPLES = 1000
_POSITIVE = {
    "timeout_s": "the timeout",
    "requests_per_minute": "a limit of requests per minute",
    "tokens_per_minute": "a limit of tokens per minute",
    "budget_usd": "the budget in USD",
    "budget_tokens": "the budget in tokens",
}
"""Backend options that are finite and above 0 where they are given, and what they are called in a message."""


class Profiler:
    """Profiles users with one backend, one store and one taxonomy.

        profiler = Profiler(backend="openai:MODEL", store="traces.db", samples=10)
        profile = profiler.profile({"user_id": "u1", "watched": ["..."], "self_reported": {}})
        profile["gender"].tag, profile["gender"].confidence, profile["gender"].evidence

    `backend` is a spec such as "lexicon", "openai:MODEL" or "replay:PATH", or a backend object. `language` is by
    default English, and for `student:NAME` that of the student, which brings its calibrator too where it has one for
    this vote and none is named. `tau` is one number, `{attribute: number}` or words as on the command line,
    `["3", "age=4"]`. `confidence` is what an answer weighs in the vote (see `cp_agents.confidence`); `logprob` and
    `combined` have the backend say what it gave each tag. `adaptive` ("exact" or "bayes", with `adaptive_p` and `wave`)
    stops drawing a record's samples when its votes are settled (see `cp_agents.adaptive`). Raises `InputError` for
    settings that cannot be.
    """

    def __init__(
        self,
        backend: str | Backend = "lexicon",
        store: str | Path | TraceStore = ":memory:",
        *,
        samples: int = 10,
        taxonomy: str | Path | Taxonomy = "profilebench",
        language: str | None = None,
        vote: VoteMethod = "weighted",
        confidence: ConfidenceSource = "verbal",
        adaptive: Adaptive | None = None,
        adaptive_p: float = 0.95,
        wave: int = 1,
        tag_weights: Mapping[str, Mapping[str, float]] | None = None,
        tau: float | Mapping[str, float] | Sequence[str] | None = None,
        calibrator: str | Path | Calibrator | None = None,
        review: ReviewPolicy | None = None,
        run: str | None = None,
        base_url: str | None = None,
        timeout: float = 120.0,
        fanout: Fanout = "send",
        checkpointer: Checkpointer = None,
        temperature: float = 1.0,
        top_p: float = 0.95,
        max_tokens: int = 1200,
        seed: int = 0,
        token_budget: int = 3000,
        history: History = "condense",
        evidence_cap: int | None = 2,
        min_survivors: int = 3,
        **backend_options: Any,
    ) -> None:
        if not isinstance(store, str | Path | TraceStore):
            raise InputError(f"the store should be a path or a TraceStore, found {type(store).__name__}")
        self.taxonomy = taxonomy if isinstance(taxonomy, Taxonomy) else load_taxonomy(taxonomy)
        if vote not in METHODS:
            raise InputError(f"unknown vote {vote!r}: expected one of {', '.join(METHODS)}")
        check_source(confidence)
        check_adaptive(adaptive, vote)
        if history not in HISTORIES:
            raise InputError(f"unknown history {history!r}: expected one of {', '.join(HISTORIES)}")
        check_tag_weights(tag_weights or {}, self.taxonomy, vote)
        check_open(self.taxonomy, vote=vote, confidence=confidence, adaptive=adaptive)
        self.settings = _settings(
            samples=check_samples(samples),
            vote=vote,
            confidence=confidence,
            adaptive=adaptive,
            adaptive_p=adaptive_p,
            wave=wave,
            tag_weights=tag_weights or {},
            tau=parse_tau(_tau_words(tau), self.taxonomy),
            review=review or ReviewPolicy(),
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
            token_budget=token_budget,
            history=history,
            evidence_cap=evidence_cap,
            min_survivors=min_survivors,
        )
        options = _backend_options(
            taxonomy=self.taxonomy, base_url=base_url, timeout_s=timeout, store=store, **backend_options
        )
        if not isinstance(backend, str | Backend):
            raise InputError(
                f"backend should be a spec such as 'openai:MODEL' or a backend object, found {type(backend).__name__}"
            )
        self.backend = resolve_backend(backend, options)
        check_logprobs(confidence, self.backend.capabilities.logprobs, self.backend.identity.sampler)
        self.prompt = prompt_for(self.backend, self.taxonomy, language)
        self.calibrator = (
            calibrator
            if isinstance(calibrator, Calibrator) or calibrator is None
            else Calibrator.load(calibrator)
        )
        if self.calibrator is not None:
            self.calibrator.check(self.taxonomy, vote, confidence)
        elif isinstance(self.backend, StudentBackend):
            self.calibrator = self.backend.calibrator_for(vote, confidence)
        self.store = store if isinstance(store, TraceStore) else TraceStore(store)
        recall(self.store, self.backend)
        self._fanout: Fanout = fanout
        self._checkpointer = checkpointer
        spec = backend if isinstance(backend, str) else self.backend.identity.sampler
        self.run_id = self._open_run(run, spec)

    def _open_run(self, name: str | None, spec: str) -> str:
        identity = self.backend.identity
        fingerprint = self.settings.fingerprint(identity, self.prompt.version, self.taxonomy.hash)
        columns = {
            "backend": spec,
            "endpoint": identity.endpoint,
            "model": identity.model,
            "revision": identity.revision,
            "taxonomy": self.taxonomy.model_dump_json(exclude_defaults=True),
            "taxonomy_hash": self.taxonomy.hash,
            "prompt_version": self.prompt.version,
            "samples": self.settings.samples,
            "settings": json.dumps(self.settings.model_dump(mode="json")),
        }
        return self.store.open_run(name or f"{identity.kind}-{fingerprint[:6]}", fingerprint, columns)

    @cached_property
    def context(self) -> ProfilingContext:
        """What the graph is run with; hand it to `graph.invoke(..., context=...)` to use another one."""
        return ProfilingContext(
            backend=self.backend,
            store=self.store,
            taxonomy=self.taxonomy,
            prompt=self.prompt,
            run_id=self.run_id,
            settings=self.settings,
            calibrator=self.calibrator,
            meter=Meter(),
        )

    @cached_property
    def graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        """The compiled LangGraph graph, to embed: takes `{"record": {...}}`, gives `{"profile": {...}}`."""
        return compile_graph(self.context, fanout=self._fanout, checkpointer=self._checkpointer)

    @cached_property
    def _graph_without_checkpointer(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        return compile_graph(self.context, fanout=self._fanout)

    async def aprofile(self, record: Mapping[str, Any]) -> Profile:
        """Profile one user. Raises `InputError` for a record that cannot be read.

        With a checkpointer, a record that needs review still ends here: its attributes come back as
        `needs_review` and wait in the store. To answer an interrupt, run `graph` yourself.
        """
        user = UserRecord.from_dict(dict(record))
        result = await self._graph_without_checkpointer.ainvoke(
            {"record": dict(record)}, context=self.context
        )
        return Profile(
            user_id=user.user_id,
            attributes=result["profile"]["profile"],
            calibrator=result["profile"]["calibrator"],
            run_id=self.run_id,
        )

    def profile(self, record: Mapping[str, Any]) -> Profile:
        """`aprofile` for callers without an event loop."""
        return run_sync(self.aprofile(record))

    async def aprofile_many(
        self,
        records: Iterable[Mapping[str, Any] | StoredRecord],
        *,
        concurrency: int = 16,
        calibrate: Literal["fit"] | None = "fit",
        **options: Any,
    ) -> tuple[list[Profile], BatchReport]:
        """Profile many users; their profiles in order, and what the run did.

        The run's own votes calibrate it at the end unless the profiler was given a calibrator, or `calibrate`
        is None. Records that fail are in `report.failed` and have no profile. `stored_records` of
        `cp_agents.runner` gives the records of another run of the same store.
        """
        checked = _checked(records)
        report = await run_batch(
            self.context,
            checked,
            concurrency=concurrency,
            calibrator=self.calibrator or calibrate,
            **options,
        )
        ids = [r.user_id if isinstance(r, StoredRecord) else r["user_id"] for r in checked]
        return list(profiles_in_order(self.store, self.run_id, ids)), report

    def profile_many(
        self, records: Iterable[Mapping[str, Any] | StoredRecord], **options: Any
    ) -> tuple[list[Profile], BatchReport]:
        """`aprofile_many` for callers without an event loop."""
        return run_sync(self.aprofile_many(records, **options))

    async def aclose(self) -> None:
        """Free the backend's connections and close the store."""
        try:
            await self.backend.aclose()
        finally:
            self.store.close()

    def close(self) -> None:
        """`aclose` for callers without an event loop; `with Profiler(...) as profiler:` calls it at the end."""
        run_sync(self.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_samples(samples: int) -> int:
    """M, when it is a number of samples that a run may draw. Raises `InputError` otherwise."""
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= _MOST_SAMPLES:
        shown = samples if isinstance(samples, int) else repr(samples)
        raise InputError(f"samples should be between 1 and {_MOST_SAMPLES}, found {shown}")
    return samples


def _settings(**given: Any) -> ProfileSettings:
    for name in ("temperature", "top_p"):
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST_SAMPLES:
            raise InputError(f"{name} should be a number, found {value!r}")
    try:
        return ProfileSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the settings"
        wrong = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise InputError(f"{name} {wrong}, found {first['input']!r}") from None


def _backend_options(**given: Any) -> BackendOptions:
    known = {field.name for field in fields(BackendOptions)}
    if unknown := sorted(set(given) - known):
        raise InputError(
            f"the profiler has no setting {unknown[0]!r} (backend options: {', '.join(sorted(known))})"
        )
    for name in _POSITIVE:
        if given.get(name) is not None:
            check_positive(_POSITIVE[name], given[name])
    return BackendOptions(**given)


def _checked(records: Iterable[Mapping[str, Any] | StoredRecord]) -> list[dict[str, Any] | StoredRecord]:
    """Before anything is sent: every record has an id that no other has. Whatever else is wrong fails alone."""
    checked: list[dict[str, Any] | StoredRecord] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        if isinstance(record, StoredRecord):
            checked.append(record)
            continue
        if not isinstance(record, Mapping):
            raise InputError(f"record {number} should be a mapping, found {type(record).__name__}")
        try:
            user_id = UserRecord.from_dict({"user_id": record.get("user_id")}).user_id
        except InputError as error:
            raise InputError(f"record {number}: {error}") from None
        if user_id in seen:
            raise InputError(
                f"record {number}: duplicate user_id {user_id!r}, first seen in record {seen[user_id]}"
            )
        seen[user_id] = number
        checked.append({**record, "user_id": user_id})
    return checked


def _tau_words(tau: float | Mapping[str, float] | Sequence[str] | None) -> list[str]:
    """The command line's spelling, so that both are checked by one rule."""
    if tau is None:
        return []
    if isinstance(tau, Mapping):
        return [f"{name}={value}" for name, value in tau.items()]
    if isinstance(tau, int | float | str):
        return [str(tau)]
    if not isinstance(tau, Sequence) or not all(isinstance(word, str) for word in tau):
        raise InputError(
            f'tau should be a number, {{attribute: number}} or words as ["3", "age=4"], found {tau!r}'
        )
    return list(tau)
