"""What an answer weighs in the vote: the sources of confidence, and the rule for each.

The paper's source is `verbal`, the confidence that the model states. Which one tells right from wrong depends on the
model, see `evaluate`; all are stored with every sample, so that a stored run can be decided by any of them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError

FULL = 5

ConfidenceSource = Literal["verbal", "agreement", "logprob", "combined"]
SOURCES: tuple[ConfidenceSource, ...] = get_args(ConfidenceSource)
"""`verbal`: C, 1..5, as stated and capped. `agreement`: 5 for every answer, so that only their number counts.
`logprob`: 5 p, where p is what the model gave the tag among the attribute's tags. `combined`: C p."""


def needs_probability(source: ConfidenceSource) -> bool:
    """Whether answers without a probability have no weight under `source`."""
    return source in ("logprob", "combined")


def check_source(source: str) -> None:
    """Raises `InputError` for a source that is none."""
    if source not in SOURCES:
        raise InputError(f"unknown confidence {source!r}: expected one of {', '.join(SOURCES)}")


def weigh(
    source: ConfidenceSource,
    tags: NDArray[np.int16],
    stated: NDArray[Any],
    probability: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int16], NDArray[Any]]:
    """Tags and weights for the vote, of the shape of `tags`: codes with -1 for no answer, and weights in (0, 5].

    `stated` holds C, `probability` p in 0..1 with NaN where there is none. An answer without a probability takes no
    part in a vote that weighs by it, as one without a stated confidence takes no part in any: whatever weight it
    were given, somebody would have made it up.
    """
    if source == "verbal":
        return tags, stated
    if source == "agreement":
        return tags, np.where(tags >= 0, FULL, 0).astype(np.int16)
    if probability is None:
        raise ValueError(f"confidence {source} needs probabilities")
    known = (tags >= 0) & (probability > 0)
    weights = probability * (FULL if source == "logprob" else stated)
    return np.where(known, tags, -1).astype(np.int16), np.where(known, weights, 0.0)


class NoProbabilitiesError(InputError):
    """A backend turned out to give no probabilities to weigh by: no other record would fare better."""


def check_logprobs(source: ConfidenceSource, able: bool | None, whose: str) -> None:
    """Raises `NoProbabilitiesError` where `source` weighs by probabilities and the backend `whose` is known to give
    none.
    """
    if needs_probability(source) and able is False:
        raise NoProbabilitiesError(
            f"{whose} gives no probabilities of its tags, by which confidence {source} weighs: choose verbal or"
            " agreement, or a backend that gives log-probabilities"
        )
