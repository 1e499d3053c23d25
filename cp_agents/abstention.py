"""Whether the profile says what the vote said: the threshold tau (Conf-Profile section 4.2, "Confidence").

A prediction whose confidence is below tau becomes NA. What it would have said is kept as `voted`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cp_agents.errors import InputError
from cp_agents.schema import NA, Status
from cp_agents.taxonomy import Taxonomy

DEFAULT_TAU = 1.0
"""Accepts every vote that is not NA."""
_NEVER_WORD = "never"
NEVER = 6.0
"""Above every confidence: the attribute is never answered. On the command line it is spelled `never`."""
DEFAULT_MIN_SURVIVORS = 2
"""One answer out of several is no vote."""

TOO_FEW_SURVIVORS = "too_few_survivors"
VOTED_NA = "voted_na"
BELOW_TAU = "below_tau"


class Decision(NamedTuple):
    """What the profile says on one attribute, and why."""

    tag: str
    status: Status
    reasons: list[str]
    """Empty when accepted; else one of "too_few_survivors", "voted_na", "below_tau"."""


def decide(
    voted: str | None,
    confidence: int,
    *,
    tau: float,
    survivors: int,
    samples: int,
    min_survivors: int = DEFAULT_MIN_SURVIVORS,
) -> Decision:
    """Accept, abstain or fail, by the first rule that applies.

    1. Fewer than `min_survivors` of the `samples` asked for gave a usable answer (one is always needed, and
       never more than were asked for): failed, "too_few_survivors".
    2. The vote said NA: abstained, "voted_na".
    3. `confidence` (1..5, calibrated) is below `tau`: abstained, "below_tau".
    4. Otherwise the voted tag is accepted.

    `voted` is the winner's tag, None where there is none.
    """
    if voted is None or survivors < max(1, min(min_survivors, samples)):
        return Decision(NA, Status.FAILED, [TOO_FEW_SURVIVORS])
    if voted == NA:
        return Decision(NA, Status.ABSTAINED, [VOTED_NA])
    if confidence < tau:
        return Decision(NA, Status.ABSTAINED, [BELOW_TAU])
    return Decision(voted, Status.ACCEPTED, [])


def parse_tau(values: Iterable[str], taxonomy: Taxonomy) -> dict[str, float]:
    """Thresholds per attribute from values of `--tau`: "3" is for all, "age=4" for one, "age=never" for silence.

    A threshold for one attribute goes before the one for all, in whatever order they come; of two for the
    same, the last counts. Attributes without any get `DEFAULT_TAU`. Raises `InputError` for an unknown
    attribute or a threshold outside 1..5.
    """
    general, special = DEFAULT_TAU, dict[str, float]()
    for value in values:
        name, given, number = value.rpartition("=")
        name = name.strip()
        if given and name not in taxonomy:
            known = ", ".join(taxonomy.names)
            raise InputError(f"--tau {value}: taxonomy {taxonomy.name} has no attribute {name!r} ({known})")
        tau = NEVER if number.strip() == _NEVER_WORD else _level(number)
        if tau is None:
            raise InputError(f"--tau {value}: tau should be between 1 and 5")
        if given:
            special[name] = tau
        else:
            general = tau
    return {name: special.get(name, general) for name in taxonomy.names}


def _level(text: str) -> float | None:
    try:
        tau = float(text)
    except ValueError:
        return None
    return tau if 1 <= tau <= 5 else None


def tau_word(tau: float) -> str:
    """A threshold as `--tau` spells it."""
    return _NEVER_WORD if tau > 5 else f"{tau:g}"
