"""Settings of the whole road from a teacher's run to a student that serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cp_agents.errors import InputError
from cp_agents.stores.students import check_name
from cp_agents.trainers.difficulty import Rule, Shape
from cp_agents.trainers.grpo_config import GrpoSettings, grpo_settings
from cp_agents.trainers.sft_config import SftSettings, sft_settings

Stage = Literal["export", "sft", "filter", "reference", "grpo", "calibrate", "compare", "promote"]
STAGES: tuple[Stage, ...] = (
    "export", "sft", "filter", "reference", "grpo", "calibrate", "compare", "promote",
)  # fmt: skip
SKIPPABLE: tuple[Stage, ...] = ("filter", "grpo", "calibrate", "compare", "promote")
"""Stages that a road can do without. Without `grpo` there is no use for `filter` and `reference`, and without
`calibrate`, which lets the student answer, nothing to compare."""


class DistillSettings(BaseModel):
    """What `distill` does. The users of the run are shared out by a hash of their id: `validation` of them are held
    out, of the others `rl_share` go to GRPO and the rest to SFT, as the paper keeps both apart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path
    """The trace store with the teacher's run; what the student answers goes there too."""
    run: str
    """The teacher's run."""
    base: str = Field(min_length=1)
    """The model that becomes the student, as after `transformers:`."""
    out: Path
    """Folder for data, training runs and models."""
    name: str = "student"
    """Under which the student is registered and serves."""
    preset: str = "paper"
    """Of both trainers."""
    language: str | None = None
    """The student's prompt language, for example en-compact. None: the run's."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    rl_share: float = Field(default=0.5, gt=0, lt=1)
    shape: Shape = "m"
    """Of the difficulty filter."""
    rule: Rule = "quintile"
    """Levels as ranks: the shape then keeps about half of the users, whatever the teacher's confidences are like."""
    keep: int | None = Field(default=None, ge=1)
    """Users that the filter keeps; None: as many as the shape allows."""
    samples: int = Field(default=10, ge=1)
    """M of the student, when it profiles the held-out users."""
    max_tokens: int = Field(default=1200, ge=16)
    """Of one answer of the student."""
    gold: Path | None = None
    """Gold JSONL of held-out users. Nothing learns from it."""
    seed: int = Field(default=0, ge=0)
    sft: dict[str, Any] = {}
    """Changes to the preset of `train sft`."""
    grpo: dict[str, Any] = {}
    """Changes to the preset of `train grpo`."""
    skip: tuple[Stage, ...] = ()
    promote: Literal["if-holds", "always", "never"] = "if-holds"
    min_parse: float = Field(default=0.98, ge=0, le=1)
    """Share of the student's attribute answers that have to be readable for it to hold."""
    min_gain: float = Field(default=2.0, ge=0)
    """Its macro-F1 against the teacher's votes has to be this many times that of the best constant answer, or, where
    that is less, as far from it as from 1."""
    most_loss: float = Field(default=0.02, ge=0)
    """How far its macro-F1 against gold, where there is some, may stay behind the teacher's."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those to be run, in order."""
        left_out = set(self.skip)
        if "grpo" in left_out:
            left_out |= {"filter", "reference"}
        if "calibrate" in left_out:
            left_out |= {"compare"}
        return tuple(stage for stage in STAGES if stage not in left_out)


FREE = ("skip", "promote", "min_parse", "min_gain", "most_loss")
"""Settings that may be others when a road is gone on with: nothing that is done depends on them."""


def distill_settings(**given: Any) -> DistillSettings:
    """Checked settings. Raises `InputError` that names the field, or a stage that cannot be skipped."""
    try:
        settings = DistillSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{field}: {first['msg']}, found {str(first['input'])[:80]!r}") from None
    if fixed := [stage for stage in settings.skip if stage not in SKIPPABLE]:
        raise InputError(f"the stage {fixed[0]!r} cannot be skipped: only {', '.join(SKIPPABLE)}")
    for part, owned in (
        ("sft", {"model", "data", "out", "gold"}),
        ("grpo", {"model", "store", "reference", "out", "users", "gold", "language"}),
    ):
        if own := sorted(set(getattr(settings, part)) & owned):
            raise InputError(f"{part}.{own[0]} is not to be set: the road sets it")
    check_name(settings.name)
    # Now, and not when the stages before them have taken their hours.
    sft_of(settings)
    if "grpo" in settings.stages:
        grpo_of(settings, reference="reference", users=None)
    return settings


def sft_of(settings: DistillSettings) -> SftSettings:
    """Settings of the road's SFT. Raises `InputError` that names the field."""
    changes = {"seed": settings.seed, **settings.sft}
    with _named("sft"):
        return sft_settings(
            settings.preset, model=settings.base, data=settings.out / "data", out=settings.out / "sft",
            gold=settings.gold, **changes,
        )  # fmt: skip


def grpo_of(settings: DistillSettings, reference: str, users: Path | None) -> GrpoSettings:
    """Settings of the road's GRPO, over the run `reference`. Raises `InputError` that names the field."""
    changes = {"seed": settings.seed, "max_tokens": settings.max_tokens, **settings.grpo}
    with _named("grpo"):
        return grpo_settings(
            settings.preset, model=str(settings.out / "sft" / "model"), store=settings.store, reference=reference,
            out=settings.out / "grpo", users=users, gold=settings.gold, **changes,
        )  # fmt: skip


@contextmanager
def _named(part: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{part}: {error}") from None
