"""The numbers of which a report is made: shares and estimates, each with its interval."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

Z = 1.959964
"""Of a 95 % interval."""


class Plain(BaseModel):
    """Base of the shapes of a report."""

    model_config = ConfigDict(frozen=True)


class Proportion(Plain):
    """`count` of `n`, with its 95 % Wilson interval; None where n is 0."""

    count: int
    n: int

    @property
    def value(self) -> float | None:
        """The share itself."""
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's, which stays inside 0..1 and is honest at small n."""
        if not self.n:
            return None
        p, n = self.count / self.n, self.n
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


class Estimate(Plain):
    """A number with its 95 % bootstrap interval over users; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
