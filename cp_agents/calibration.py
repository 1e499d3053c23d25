"""From S to a confidence level 1..5: the calibrator (Conf-Profile section 4.2, "Confidence Calibration").

The paper cuts S into five intervals of about equal sample count, per attribute. What it leaves open:

* Fitted per attribute, on the records whose vote is not NA.
* The level of a score s is 1 + floor(5 * midrank), midrank = the share of fitted scores below s + half the
  share equal to it. So all ties get one level, and the intervals are as equal as ties allow.
* What is kept is threshold j = the smallest fitted score whose midrank is at least j/5 (None where there is
  none); the level of any s, seen in the fit or not, is 1 + the number of thresholds <= s. Scores below M,
  which occur under disagreement, are scores like the others.
* S grows with the number of samples asked for. Scores from another M are first multiplied by M_fit / M.
* An attribute with fewer than `MIN_RECORDS` such records stays uncalibrated: level round(S / M).

Where truth is known for some rows, the kinds `isotonic` and `platt` give a probability of being right.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cp_agents.confidence import ConfidenceSource
from cp_agents.errors import InputError, first_fault
from cp_agents.probability import Isotonic, Platt, fit_isotonic, fit_platt
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import VoteMethod

FloatArray = NDArray[np.float64]
LevelArray = NDArray[np.int64]

CalibratorKind = Literal["quintile", "isotonic", "platt"]
KINDS: tuple[CalibratorKind, ...] = get_args(CalibratorKind)

UNCALIBRATED = "uncalibrated"
"""The label of a profile for which no calibrator spoke."""
MIN_RECORDS = 20
"""An attribute with fewer fitted records stays uncalibrated: under four to an interval, cuts are noise."""
FORMAT = "cp-agents calibrator"
VERSION = 1
_DECIMALS = 9  # as votes round S, so that rescaling by M / M cannot push a score over a threshold


def uncalibrated_levels(scores: ArrayLike, samples: int) -> LevelArray:
    """Levels without a calibrator: S / M rounded half up, clipped to 1..5. M = samples asked for.

    Samples that failed count as if they had spoken against: S / M, not S / survivors.
    """
    mean = np.round(np.asarray(scores, dtype=float) / samples, _DECIMALS)
    return np.clip(np.floor(mean + 0.5), 1, 5).astype(np.int64)


def tags_hash(taxonomy: Taxonomy) -> str:
    """12 hex digits over attribute and tag names alone, in any order: what S is counted over."""
    names = {attribute.name: sorted(attribute.names) for attribute in taxonomy.attributes}
    canonical = json.dumps(names, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class Quintiles(BaseModel):
    """Label-free equal-frequency intervals of S."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["quintile"] = "quintile"
    n: int = Field(ge=1)
    """Records it was fitted on."""
    thresholds: tuple[float | None, float | None, float | None, float | None]
    """The least S of levels 2, 3, 4, 5; None where no fitted score reached the level."""

    @model_validator(mode="after")
    def _check(self) -> Quintiles:
        if list(self._edges) != sorted(self._edges):
            raise ValueError("the thresholds of a calibrator should rise")
        return self

    @cached_property
    def _edges(self) -> tuple[float, ...]:
        return tuple(math.inf if t is None else t for t in self.thresholds)

    def levels(self, scores: FloatArray) -> LevelArray:
        """Levels 1..5 at each S (on the scale of the fit's M)."""
        return np.asarray(1 + np.searchsorted(self._edges, scores, side="right"), dtype=np.int64)

    def probability(self, scores: FloatArray) -> None:
        """None: intervals of equal count say nothing of being right."""


class TooFew(BaseModel):
    """An attribute that stays uncalibrated for want of records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["too_few"] = "too_few"
    n: int = Field(ge=0)


Curve = Annotated[Quintiles | Isotonic | Platt | TooFew, Field(discriminator="kind")]


class Calibrator(BaseModel):
    """A fitted calibrator: plain numbers, JSON, and an id that is a hash of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: CalibratorKind
    vote_method: VoteMethod
    """The vote whose S it was fitted on; another vote's S is on the same scale, but distributed otherwise."""
    confidence: ConfidenceSource = "verbal"
    """What an answer weighed in that vote."""
    samples: int = Field(ge=1)
    """M of the fit."""
    taxonomy: str
    taxonomy_hash: str
    tags_hash: str | None = None
    """See `tags_hash`; None in files of before it was kept."""
    attributes: dict[str, Curve]

    @classmethod
    def fit(
        cls,
        scores: Mapping[str, ArrayLike],
        *,
        samples: int,
        taxonomy: Taxonomy,
        vote_method: VoteMethod = "weighted",
        confidence: ConfidenceSource = "verbal",
        kind: CalibratorKind = "quintile",
        correct: Mapping[str, ArrayLike] | None = None,
    ) -> Calibrator:
        """Fit one curve per attribute of the taxonomy.

        `scores[attribute]` holds S of one record each, from `samples` samples asked for: those whose vote is
        not NA and, for `isotonic` and `platt`, whose truth is known; `correct[attribute]` then says for the
        same records whether the vote was right. Equal input gives an equal calibrator with an equal id.
        Raises `InputError` for an attribute that the taxonomy lacks or for missing truth,
        `MissingExtraError` where scikit-learn is needed and absent.
        """
        if unknown := [name for name in scores if name not in taxonomy]:
            raise InputError(f"taxonomy {taxonomy.name} has no attribute {unknown[0]!r} to calibrate")
        if kind != "quintile" and correct is None:
            raise InputError(f"a calibrator of kind {kind} needs gold or reviewed rows to be fitted on")
        attributes: dict[str, Curve] = {}
        for name in taxonomy.names:
            s = np.round(np.asarray(scores.get(name, ()), dtype=float), _DECIMALS)
            if len(s) < MIN_RECORDS:
                attributes[name] = TooFew(n=len(s))
            elif kind == "quintile":
                attributes[name] = Quintiles(n=len(s), thresholds=_quintile_thresholds(s))
            else:
                right = np.asarray((correct or {}).get(name, ()), dtype=bool)
                if right.shape != s.shape:
                    raise ValueError(f"{name}: {len(s)} scores and {len(right)} verdicts")
                attributes[name] = (fit_isotonic if kind == "isotonic" else fit_platt)(s, right)
        return cls(
            kind=kind,
            vote_method=vote_method,
            confidence=confidence,
            samples=samples,
            taxonomy=taxonomy.name,
            taxonomy_hash=taxonomy.hash,
            tags_hash=tags_hash(taxonomy),
            attributes=attributes,
        )

    def transform(self, attribute: str, scores: ArrayLike, samples: int) -> LevelArray:
        """Levels 1..5 of S from `samples` samples asked for; any shape. Never falls as S rises.

        An attribute in `uncalibrated`, or unknown to this calibrator, gets `uncalibrated_levels`.
        """
        curve = self.attributes.get(attribute)
        if curve is None or isinstance(curve, TooFew):
            return uncalibrated_levels(scores, samples)
        return curve.levels(self._rescaled(scores, samples))

    def probability(self, attribute: str, scores: ArrayLike, samples: int) -> FloatArray | None:
        """Probability that the vote is right, for votes other than NA; None where the kind gives none."""
        curve = self.attributes.get(attribute)
        if curve is None or isinstance(curve, TooFew):
            return None
        return curve.probability(self._rescaled(scores, samples))

    def _rescaled(self, scores: ArrayLike, samples: int) -> FloatArray:
        return np.round(np.asarray(scores, dtype=float) * self.samples / samples, _DECIMALS)

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Attributes that had too few records."""
        return tuple(name for name, curve in self.attributes.items() if isinstance(curve, TooFew))

    @cached_property
    def id(self) -> str:
        """12 hex digits over everything in the calibrator."""
        canonical = json.dumps(self._content(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """What a profile says of who spoke: kind and id."""
        return f"{self.kind}:{self.id}"

    def _content(self) -> dict[str, Any]:
        # What files of before do not have is left out where it says nothing, so that they keep their id.
        exclude = {"tags_hash"} if self.tags_hash is None else set()
        if self.confidence == "verbal":
            exclude |= {"confidence"}
        return self.model_dump(mode="json", exclude=exclude)

    def check(
        self, taxonomy: Taxonomy, vote_method: VoteMethod, confidence: ConfidenceSource = "verbal"
    ) -> None:
        """Raise `InputError` where it cannot speak for a run: another vote or confidence, other attributes or tags.

        Descriptions, aliases and the taxonomy's name may differ. A file without `tags_hash` is held to the name.
        """
        if self.vote_method != vote_method:
            raise InputError(
                f"calibrator {self.label} was fitted on {self.vote_method} votes, "
                f"and this run votes by {vote_method}"
            )
        if self.confidence != confidence:
            raise InputError(
                f"calibrator {self.label} was fitted on votes by {self.confidence} confidence, "
                f"and this run's confidence is {confidence}"
            )
        if missing := [name for name in taxonomy.names if name not in self.attributes]:
            raise InputError(
                f"calibrator {self.label} was fitted for taxonomy {self.taxonomy}, "
                f"which has no attribute {missing[0]!r}"
            )
        same = (
            self.taxonomy == taxonomy.name
            if self.tags_hash is None
            else self.tags_hash == tags_hash(taxonomy)
        )
        if not same and self.taxonomy_hash != taxonomy.hash:
            raise InputError(
                f"calibrator {self.label} was fitted for another taxonomy ({self.taxonomy}) than this run's "
                f"({taxonomy.name}): their attributes or tags differ"
            )

    def to_json(self) -> dict[str, Any]:
        """The JSON shape of files and of the store."""
        return {"format": FORMAT, "version": VERSION, "id": self.id, **self._content()}

    @classmethod
    def from_json(cls, raw: object, where: str = "calibrator") -> Calibrator:
        """Read what `to_json` wrote. The id is computed anew, so an edited calibrator has an id of its own.

        Raises `InputError` with one sentence that starts with `where`.
        """
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise InputError(f"{where}: not a calibrator (expected an object with format {FORMAT!r})")
        version = raw.get("version")
        if not isinstance(version, int) or version < 1:
            raise InputError(f"{where}: the calibrator has no version")
        if version > VERSION:
            raise InputError(
                f"{where}: a calibrator of version {version}, from a newer cp-agents "
                f"(this one reads up to {VERSION})"
            )
        content = {k: v for k, v in raw.items() if k not in ("format", "version", "id")}
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{where}: {first_fault(error)}") from None

    def save(self, path: str | Path) -> None:
        """Write the calibrator as a JSON file."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """Read a file that `save` wrote. Raises `InputError` that names the file and what is wrong."""
        if not isinstance(path, str | Path):
            raise InputError(f"a calibrator should be a Calibrator or its file, found {type(path).__name__}")
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"calibrator {path}: cannot be read ({error.strerror})") from None
        except ValueError:  # not JSON, or not even UTF-8
            raise InputError(f"calibrator {path}: not a JSON file") from None
        return cls.from_json(raw, f"calibrator {path}")


def _quintile_thresholds(
    scores: FloatArray,
) -> tuple[float | None, float | None, float | None, float | None]:
    values, counts = np.unique(scores, return_counts=True)
    # Twice the midrank times n: whole numbers, so that "at least j/5" is exact.
    double_midrank = 2 * (np.cumsum(counts) - counts) + counts
    first, second, third, fourth = (
        next((float(v) for v in values[5 * double_midrank >= 2 * j * len(scores)]), None)
        for j in (1, 2, 3, 4)
    )
    return first, second, third, fourth
