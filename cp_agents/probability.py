"""From S to the probability of being right, where truth is known for some rows (gold or reviewed).

Fitting needs scikit-learn; what is kept is plain numbers, so that using a fitted curve needs numpy alone.
Both curves never fall as S rises. Platt's two numbers are steady from a few dozen rows on; isotonic follows
any rising shape and wants hundreds.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cp_agents.errors import MissingExtraError

FloatArray = NDArray[np.float64]

_DIGITS = 9


def probability_levels(probability: FloatArray) -> NDArray[np.int64]:
    """Levels 1..5 of probabilities: clip(ceil(5 p), 1, 5), so that level 5 means p > 0.8."""
    return np.clip(np.ceil(np.round(5 * np.asarray(probability), _DIGITS)), 1, 5).astype(np.int64)


class Isotonic(BaseModel):
    """A rising curve, linear between its knots and flat outside them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["isotonic"] = "isotonic"
    n: int = Field(ge=1)
    """Records it was fitted on."""
    scores: tuple[float, ...] = Field(min_length=1)
    probabilities: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Isotonic:
        if len(self.scores) != len(self.probabilities):
            raise ValueError("an isotonic curve needs as many probabilities as scores")
        rising = (np.diff(self.scores) > 0).all() and (np.diff(self.probabilities) >= 0).all()
        if not rising or self.probabilities[0] < 0 or self.probabilities[-1] > 1:
            raise ValueError(
                "the scores and probabilities of an isotonic curve should rise, the latter within 0..1"
            )
        return self

    def probability(self, scores: FloatArray) -> FloatArray:
        """Probability of being right at each S (on the scale of the fit's M)."""
        return np.asarray(np.interp(scores, self.scores, self.probabilities), dtype=np.float64)

    def levels(self, scores: FloatArray) -> NDArray[np.int64]:
        """Levels 1..5 at each S."""
        return probability_levels(self.probability(scores))


class Platt(BaseModel):
    """A logistic curve: p = 1 / (1 + exp(-(a S + b))), a >= 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["platt"] = "platt"
    n: int = Field(ge=1)
    """Records it was fitted on."""
    a: float = Field(ge=0)
    b: float

    def probability(self, scores: FloatArray) -> FloatArray:
        """Probability of being right at each S (on the scale of the fit's M)."""
        z = np.clip(self.a * np.asarray(scores, dtype=np.float64) + self.b, -500, 500)  # exp(709) overflows
        return np.asarray(1 / (1 + np.exp(-z)), dtype=np.float64)

    def levels(self, scores: FloatArray) -> NDArray[np.int64]:
        """Levels 1..5 at each S."""
        return probability_levels(self.probability(scores))


def fit_isotonic(scores: FloatArray, correct: NDArray[np.bool_]) -> Isotonic:
    """Isotonic regression of `correct[n]` on S. Raises `MissingExtraError` without scikit-learn."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise MissingExtraError("isotonic calibration", "calibration") from None
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, correct.astype(float))
    return Isotonic(
        n=len(scores), scores=_rounded(model.X_thresholds_), probabilities=_rounded(model.y_thresholds_)
    )


def fit_platt(scores: FloatArray, correct: NDArray[np.bool_]) -> Platt:
    """Platt scaling of `correct[n]` on S. Raises `MissingExtraError` without scikit-learn.

    With Platt's softened targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so that rows that are all right do
    not end at probability 1. Where the data would have the curve fall, it is flat: S then says nothing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError("Platt calibration", "calibration") from None
    right = int(correct.sum())
    target = np.where(correct, (right + 1) / (right + 2), 1 / (len(correct) - right + 2))
    base = float(target.mean())
    flat = Platt(n=len(scores), a=0.0, b=round(float(np.log(base / (1 - base))), _DIGITS))
    scale = float(np.abs(scores).max(initial=0.0))
    if scale == 0:
        return flat
    # A soft target is a row that is right with weight t and wrong with weight 1 - t.
    x = np.tile(np.asarray(scores, dtype=float) / scale, 2)[:, None]
    y = np.repeat([1, 0], len(scores))
    model = LogisticRegression(C=1e6, max_iter=1000, tol=1e-8)
    model.fit(x, y, sample_weight=np.concatenate([target, 1 - target]))
    a, b = round(float(model.coef_[0, 0]) / scale, _DIGITS), round(float(model.intercept_[0]), _DIGITS)
    return Platt(n=len(scores), a=a, b=b) if a > 0 else flat


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    """Plain floats without the last, machine-dependent digits, so that equal fits have equal hashes."""
    return tuple(round(float(v), _DIGITS) for v in values)
