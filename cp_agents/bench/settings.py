"""What `bench run` compares, and on whom."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, get_args

from cp_agents.backends.registry import BackendOptions
from cp_agents.bench import trained
from cp_agents.bench.evaluated import ALL
from cp_agents.bench.splits import SPLITS
from cp_agents.errors import InputError
from cp_agents.evaluation.statistics import DRAWS
from cp_agents.plan import check_spec
from cp_agents.profiler import check_samples
from cp_agents.schema import CONFIDENCE_LEVELS
from cp_agents.taxonomy import Taxonomy

Baseline = Literal["constant", "tfidf_lr", "lightgbm", "recorded", "one_sample", "majority"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


class BenchSettings(NamedTuple):
    """What to compare, and on whom."""

    backends: tuple[str, ...] = ("lexicon",)
    """Specs; the others are compared with the first one."""
    samples: int = 10
    baselines: tuple[str, ...] = BASELINES
    """Of `BASELINES`."""
    taxonomy: str = "profilebench"
    truth_field: str | None = None
    """Field of the gold rows; by default what `dataset.read_gold` chooses."""
    tau: float = 1
    split: str = ALL
    """All users, or those of one split; trained baselines learn from the other splits then."""
    limit: int | None = None
    """At most so many users of each data set, the first ones."""
    folds: int = 5
    """Of cross-validation, where all users are evaluated."""
    seed: int = 0
    draws: int = DRAWS
    """Bootstrap resamples and random swaps."""
    concurrency: int = 16
    base_url: str | None = None
    store: Path | None = None
    """By default OUT/bench.db. That of a student's registration, to compare the student."""


def check(settings: BenchSettings, taxonomy: Taxonomy, store: Path) -> None:
    """Raises `InputError` or `MissingExtraError` for settings that cannot be; `store` may be there or not."""
    check_samples(settings.samples)
    if not settings.backends:
        raise InputError("name at least one backend")
    for spec in settings.backends:
        if settings.backends.count(spec) > 1:
            raise InputError(f"the backend {spec!r} is named twice")
        given = BackendOptions(taxonomy, base_url=settings.base_url, store=store if store.is_file() else None)
        check_spec(spec, given)
    if unknown := [name for name in settings.baselines if name not in BASELINES]:
        raise InputError(f"unknown baseline {unknown[0]!r}: expected some of {', '.join(BASELINES)}, or none")
    if not CONFIDENCE_LEVELS[0] <= settings.tau <= CONFIDENCE_LEVELS[-1]:
        raise InputError(f"tau should be between 1 and 5, found {settings.tau:g}")
    if settings.split not in (ALL, *SPLITS):
        raise InputError(f"unknown split {settings.split!r}: expected {ALL}, {', '.join(SPLITS)}")
    least = {"limit": 1, "folds": 2, "draws": 1, "concurrency": 1}
    for name, lowest in least.items():
        value = getattr(settings, name)
        if value is not None and value < lowest:
            raise InputError(f"{name} should be {lowest} or more, found {value}")
    if set(settings.baselines) & set(trained.TRAINED):
        trained.check_installed()
