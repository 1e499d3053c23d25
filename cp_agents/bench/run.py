"""`bench run`: every method over every data set, into one folder that can be gone on with and put beside others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents import __version__
from cp_agents.background import run_sync
from cp_agents.bench import trained
from cp_agents.bench.baselines import constant_profiles, sample_profiles, voted_profiles
from cp_agents.bench.dataset import open_dataset
from cp_agents.bench.evaluated import ALL, Evaluated, cue_blocks, digest, read_evaluated
from cp_agents.bench.results import BenchResults, DatasetResult
from cp_agents.bench.settings import BenchSettings, check
from cp_agents.bench.table1 import Comparison, Method
from cp_agents.errors import BackendError, InputError
from cp_agents.evaluation.outcomes import by_user
from cp_agents.profiler import Profiler
from cp_agents.runner import BatchReport, profiles_in_order
from cp_agents.schema import Outcome
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy, load_taxonomy

STORE = "bench.db"
"""The trace store in the folder of a run."""


Run = Callable[[Profiler, Sequence[dict[str, Any]]], BatchReport]
"""Profiles records, and frees the backend."""


class BenchRun(NamedTuple):
    """What `run_bench` found, and what it cost."""

    results: BenchResults
    asked: int
    """Samples that were asked for in this call; those that lay in the store are not among them."""


def run_bench(
    folders: Sequence[str | Path],
    out: str | Path,
    settings: BenchSettings = BenchSettings(),  # noqa: B008  # immutable
    *,
    profile: Run | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> BenchRun:
    """Profile the data sets in `folders` with every backend and compare all methods with gold. Writes the store alone.

    Samples are kept: a later call asks only for what is not there. Nothing is asked for before all files and settings
    have been checked. Raises `InputError`, `MissingExtraError` and what profiling raises.
    """
    taxonomy = load_taxonomy(settings.taxonomy)
    path = settings.store or Path(out) / STORE
    check(settings, taxonomy, path)
    sets = [
        read_evaluated(
            open_dataset(folder),
            taxonomy,
            truth_field=settings.truth_field,
            split=settings.split,
            limit=settings.limit,
            tau=settings.tau,
        )
        for folder in folders
    ]
    _check_names([found.dataset.name for found in sets])
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {out} ({error.strerror})") from None
    bench = _Bench(settings, taxonomy, profile or _quietly(settings.concurrency), say)
    with TraceStore(path) as store:
        # All that costs something comes first, so that a mistake there shows before minutes of arithmetic.
        runs = [[bench.profiled(found, spec, store) for spec in settings.backends] for found in sets]
        with _one_thread():
            datasets = [bench.compared(found, own, store) for found, own in zip(sets, runs, strict=True)]
    results = BenchResults(
        version=__version__,
        taxonomy=taxonomy.name,
        backends=list(titles(settings.backends).values()),
        samples=settings.samples,
        seed=settings.seed,
        draws=settings.draws,
        datasets=datasets,
    )
    return BenchRun(results, bench.asked)


class _Profiled(NamedTuple):
    title: str
    run_id: str
    model: str
    failed: int


class _Bench:
    """The settings, and what was asked for so far."""

    def __init__(
        self, settings: BenchSettings, taxonomy: Taxonomy, run: Run, say: Callable[[str], None]
    ) -> None:
        self._settings, self._taxonomy, self._run, self._say = settings, taxonomy, run, say
        self._titles = titles(settings.backends)
        self.asked = 0

    def profiled(self, found: Evaluated, spec: str, store: TraceStore) -> _Profiled:
        """The run of one backend over one data set, made or gone on with."""
        settings = self._settings
        profiler = Profiler(
            spec,
            store,
            samples=settings.samples,
            taxonomy=self._taxonomy,
            seed=settings.seed,
            base_url=settings.base_url,
            run=run_name(found, spec),
        )
        self._say(f"{found.dataset.name}: {len(found.records):,} users, {spec}, M={settings.samples}")
        try:
            report = self._run(profiler, found.records)
        except BackendError as error:
            raise BackendError(
                f"{error} (what landed is kept in {store.path}, and the same command goes on from there)",
                error.error_type,
            ) from None
        self.asked += report.meter.samples
        return _Profiled(
            self._titles[spec], profiler.run_id, profiler.backend.identity.model, len(report.failed)
        )

    def compared(self, found: Evaluated, runs: Sequence[_Profiled], store: TraceStore) -> DatasetResult:
        """One data set's table."""
        settings = self._settings
        self._say(f"{found.dataset.name}: baselines, intervals and tests")
        compare = Comparison(found.gold, self._taxonomy, settings.tau, settings.draws, settings.seed)
        # The first backend's vote is what the others are compared with, so it comes first; it is shown last.
        voted = [compare.result(_voted(run, settings.samples, found, store)) for run in runs]
        cheap = [compare.result(method) for method in self._baselines(found, runs, store)]
        notes = [*found.notes, *(note for run in runs for note in _notes(run, store))]
        card = found.dataset.card
        return DatasetResult(
            name=found.dataset.name,
            licence=card.licence,
            citation=card.citation,
            data=found.data,
            evaluated=found.key,
            truth_field=found.truth_field,
            split=settings.split,
            tau=settings.tau,
            folds=settings.folds if settings.split == ALL else 0,
            users=len(found.records),
            labelled={name: int(o.labelled.sum()) for name, o in compare.blank.items()},
            reference=voted[0].name,
            methods=[*cheap, *voted],
            notes=notes,
        )

    def _baselines(self, found: Evaluated, runs: Sequence[_Profiled], store: TraceStore) -> Iterator[Method]:
        settings, chosen = self._settings, self._settings.baselines
        if "constant" in chosen:
            yield Method(
                "best constant answer (labels)", "constant", constant_profiles(found.gold, self._taxonomy)
            )
        yield from self._trained(found)
        if "recorded" in chosen and found.dataset.guesses is not None:
            from cp_agents.bench.teachers import teacher_predictions

            for model, lines in teacher_predictions(found.dataset).items():
                yield Method(f"{model} (recorded)", "recorded", by_user(lines), model=model)
        for run in runs:
            if "one_sample" in chosen:
                one = sample_profiles(store, run.run_id)
                yield Method(f"{run.title}, one sample", "one_sample", one, run.model, run.run_id, 1)
            if "majority" in chosen and settings.samples > 1:
                majority = voted_profiles(store, run.run_id, "majority")
                name = f"{run.title}, majority of {settings.samples}"
                yield Method(name, "majority", majority, run.model, run.run_id, settings.samples)

    def _trained(self, found: Evaluated) -> Iterator[Method]:
        models = [model for model in trained.TRAINED if model in self._settings.baselines]
        if not models:
            return
        blocks = cue_blocks([*found.records, *found.teachers])
        users = list(blocks)
        if self._settings.split == ALL:
            rounds = trained.cross_validation(users, self._settings.folds)
        else:
            rounds = trained.held_out(users, found.users)
        gold = {**found.gold, **found.teachers_gold}
        for model in models:
            profiles = trained.trained_profiles(
                blocks, gold, self._taxonomy, model, rounds, self._settings.seed
            )
            yield Method(f"{trained.TITLES[model]} (labels)", "trained", profiles)


def run_name(found: Evaluated, spec: str) -> str:
    """The run of a backend over these users: the same for the same, so that it is found again."""
    name = re.sub(r"[^\w.-]+", "-", found.dataset.name).strip("-") or "data"
    return f"{name}-{spec.partition(':')[0]}-{digest(found.users_key, spec)[:6]}"


def titles(specs: Sequence[str]) -> dict[str, str]:
    """What backends are called in tables: files by their names alone, unless two would be called alike."""
    short = {spec: _title(spec) for spec in specs}
    return short if len(set(short.values())) == len(short) else {spec: spec for spec in specs}


def _title(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    place, mark, run = rest.partition("#")
    return f"{kind}:{Path(place).name}{mark}{run}" if place and Path(place).exists() else spec


def _voted(run: _Profiled, samples: int, found: Evaluated, store: TraceStore) -> Method:
    profiles = {p.user_id: p.to_json()["profile"] for p in profiles_in_order(store, run.run_id, found.users)}
    how = f"weighted vote of {samples}" if samples > 1 else "one sample, calibrated"
    return Method(f"{run.title}, {how}", "backend", profiles, run.model, run.run_id, samples)


def _notes(run: _Profiled, store: TraceStore) -> Iterator[str]:
    if run.failed:
        yield f"{run.title}: users that could not be profiled, counted as unanswered: {run.failed:,}"
    outcomes = dict(
        store.rows(
            "select coalesce(s.error_type, s.outcome) as what, count(*) from records r join samples s using (record_id)"
            " where r.run_id = ? group by what order by what",
            (run.run_id,),
        )
    )
    lost = {name: n for name, n in outcomes.items() if name != Outcome.OK}
    if lost:
        which = ", ".join(f"{name} {n:,}" for name, n in lost.items())
        yield f"{run.title}: of {sum(outcomes.values()):,} samples not wholly usable: {which}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep BLAS to one thread, where it is known how.

    Threads that wait for each other cost many times what they save on matrices of this size when the machine is
    busy, and how a sum is shared out would show in its last digit.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # it comes with scikit-learn
        yield
        return
    with threadpool_limits(1):
        yield


def _quietly(concurrency: int) -> Run:
    """The way of callers without a terminal."""

    def run(profiler: Profiler, records: Sequence[dict[str, Any]]) -> BatchReport:
        try:
            return profiler.profile_many(records, concurrency=concurrency)[1]
        finally:
            run_sync(profiler.backend.aclose())

    return run


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise InputError("name at least one data set's folder")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two of the data sets are called {twice!r}: run them into a folder each")
