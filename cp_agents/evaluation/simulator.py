"""Samplers with known skill and known confidence, for tests and for teaching: when does which vote win?

What they answer has the shape of stored samples, so that the real vote, calibration and metrics run on it. One user
and one attribute at a time:

* The truth is drawn from `prior`.
* A sample is missing with `failure_rate`, else NA with `na_rate`, else it names the truth with the skill of the true
  tag, and else another tag: with probability `pull[tag]` that tag, otherwise any other one.
* With `correlation` c, a sample repeats the user's one common answer with probability sqrt(c), so that the rightness
  of two samples of a user correlates by c (users of one tag), and the skill stays what it is.
* It states a confidence by the rule `stated`, and for NA `na_confidence`. An answer that names a tag of
  `overconfident` states 5, right or wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cp_agents.decide import Ballots, empty_ballots
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold
from cp_agents.open_sets import refuse_open
from cp_agents.schema import CONFIDENCE_LEVELS, NA
from cp_agents.taxonomy import Attribute, Tag, Taxonomy

Stated = Literal["informative", "flat", "noisy", "inverted"]
STATED: tuple[Stated, ...] = get_args(Stated)
"""`informative`: higher when right than when wrong. `flat`: always 3. `noisy`: any level, whether right or wrong.
`inverted`: higher when wrong."""

_FLAT = 3
_FULL = CONFIDENCE_LEVELS[-1]


class Sampler(BaseModel):
    """What a sampler is like. Probabilities are 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skill: float = Field(default=0.6, ge=0, le=1)
    """Probability that an answer other than NA is right."""
    skill_of: dict[str, float] = {}
    """The same for users with this true tag."""
    stated: Stated = "informative"
    sharpness: float = Field(default=0.5, ge=0)
    """Of `informative` and `inverted`: a level is exp(sharpness) times as likely as the one next to it."""
    overconfident: tuple[str, ...] = ()
    """Tags that are always named with confidence 5."""
    pull: dict[str, float] = {}
    """Share of the wrong answers that name this tag, of users with another true tag; the rest is any other tag."""
    correlation: float = Field(default=0.0, ge=0, le=1)
    na_rate: float = Field(default=0.0, ge=0, le=1)
    na_confidence: int = Field(default=1, ge=1, le=5)
    failure_rate: float = Field(default=0.0, ge=0, le=1)


class Simulation(NamedTuple):
    """What was drawn, in the shapes of a stored run and its gold; K = 1 attribute."""

    taxonomy: Taxonomy
    users: tuple[str, ...]
    ballots: Ballots
    gold: Gold


def simulated_taxonomy(tags: int = 5) -> Taxonomy:
    """One attribute, `letter`, with the tags A, B, C ... Raises `InputError` for fewer than 2 or more than 26."""
    if not 2 <= tags <= 26:
        raise InputError(f"expected 2 to 26 tags, found {tags}")
    names = [chr(ord("A") + i) for i in range(tags)]
    return Taxonomy(
        name="simulated", attributes=[Attribute(name="letter", tags=[Tag(name=name) for name in names])]
    )


def simulate(
    sampler: Sampler,
    *,
    users: int = 1000,
    samples: int = 10,
    taxonomy: Taxonomy | None = None,
    prior: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Simulation:
    """Draw `samples` answers for each of `users` users, about the first attribute of `taxonomy`.

    `prior` gives the weight of each true tag, equal ones by default. The same arguments give the same answers. Raises
    `InputError` for a tag that the attribute lacks, or shares of wrong answers that are no shares.
    """
    taxonomy = taxonomy or simulated_taxonomy()
    taxonomy = Taxonomy(name=taxonomy.name, attributes=taxonomy.attributes[:1])
    refuse_open(taxonomy, "simulated samplers")
    attribute = taxonomy.attributes[0]
    na = attribute.codes[NA]
    _check(sampler, prior, attribute, users, samples)
    rng = np.random.default_rng(seed)
    weights = np.array([1.0 if prior is None else prior.get(name, 0.0) for name in attribute.names[:na]])
    truth = rng.choice(na, size=users, p=weights / weights.sum())
    skill = np.array([sampler.skill_of.get(name, sampler.skill) for name in attribute.names[:na]])
    wrong = _wrong_answers(sampler, attribute)

    def answers(columns: int) -> NDArray[np.int64]:
        right = rng.random((users, columns)) < skill[truth][:, None]
        # by the inverse of each true tag's distribution of wrong answers
        draws = rng.random((users, columns))
        other = (draws[:, :, None] >= np.cumsum(wrong, axis=1)[truth][:, None, :]).sum(axis=2)
        return np.where(right, truth[:, None], np.minimum(other, na - 1))

    common = rng.random((users, samples)) < math.sqrt(sampler.correlation)
    tags = np.where(common, answers(1), answers(samples))
    stated = _stated(sampler, tags == truth[:, None], rng)
    sure = np.isin(tags, [attribute.codes[name] for name in sampler.overconfident])
    stated = np.where(sure, _FULL, stated)
    silent = rng.random((users, samples)) < sampler.na_rate
    tags, stated = np.where(silent, na, tags), np.where(silent, sampler.na_confidence, stated)
    failed = rng.random((users, samples)) < sampler.failure_rate
    ballots = empty_ballots(taxonomy, users, samples)
    ballots.tags[0] = np.where(failed, -1, tags)
    ballots.confidence[0] = np.where(failed, 0, stated)
    ids = tuple(f"user-{i + 1}" for i in range(users))
    gold = {user: {attribute.name: attribute.names[code]} for user, code in zip(ids, truth, strict=True)}
    return Simulation(taxonomy, ids, ballots, gold)


def level_chances(sampler: Sampler, *, right: bool) -> NDArray[np.float64]:
    """Probability of stating 1 to 5 [5] for a right or a wrong answer that is no overconfident tag."""
    if sampler.stated == "flat":
        return np.array([float(level == _FLAT) for level in CONFIDENCE_LEVELS])
    rising = 0.0 if sampler.stated == "noisy" else sampler.sharpness
    if right == (sampler.stated == "inverted"):
        rising = -rising
    chances = np.exp(rising * np.array(CONFIDENCE_LEVELS))
    return np.asarray(chances / chances.sum())


def _stated(sampler: Sampler, right: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    draws = rng.random(right.shape)
    levels = [
        1 + np.searchsorted(np.cumsum(level_chances(sampler, right=side))[:-1], draws, side="right")
        for side in (False, True)
    ]
    return np.where(right, levels[1], levels[0]).astype(np.int64)


def _wrong_answers(sampler: Sampler, attribute: Attribute) -> NDArray[np.float64]:
    """Distribution of the wrong answers [true tag, tag named]."""
    size = len(attribute.names) - 1
    found = np.zeros((size, size))
    for true in range(size):
        pulled = {attribute.codes[name]: share for name, share in sampler.pull.items()}
        pulled.pop(true, None)
        for code, share in pulled.items():
            found[true, code] = share
        rest = [code for code in range(size) if code != true and code not in pulled]
        left = 1.0 - sum(pulled.values())
        if rest:
            found[true, rest] = left / len(rest)
        else:  # nowhere else to go
            found[true] /= found[true].sum() or 1.0
    return found


def _check(
    sampler: Sampler, prior: Mapping[str, float] | None, attribute: Attribute, users: int, samples: int
) -> None:
    if users < 1 or samples < 1:
        raise InputError(f"expected at least one user and one sample, found {users} and {samples}")
    for what, named in (
        ("skill_of", sampler.skill_of),
        ("overconfident", sampler.overconfident),
        ("pull", sampler.pull),
        ("prior", prior or {}),
    ):
        if stray := [name for name in named if name == NA or name not in attribute.codes]:
            tags = ", ".join(name for name in attribute.names if name != NA)
            raise InputError(f"{what}: {stray[0]!r} is none of the tags {tags}")
    for what, shares in (("skill_of", sampler.skill_of), ("pull", sampler.pull)):
        if bad := [share for share in shares.values() if not 0 <= share <= 1]:
            raise InputError(f"{what}: expected a share between 0 and 1, found {bad[0]:g}")
    if sum(sampler.pull.values()) > 1 + 1e-9:
        raise InputError("pull: the shares of wrong answers add up to more than 1")
    if prior is not None and (min(prior.values(), default=0.0) < 0 or not sum(prior.values()) > 0):
        raise InputError("prior: expected weights of 0 or more, at least one above 0")
