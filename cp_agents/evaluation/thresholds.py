"""Which tau keeps a promised accuracy: one threshold per attribute, from users whose truth is known.

What is promised (`conformal`): with probability 1 - delta over which users were labelled, at least the target share of
what the attribute is answered with at its tau is right, in the long run and among the next users, as many as were
labelled or as many as one names. It holds for any model, any confidence and any number of labels, if

* the labelled users are like those to come: drawn at random from the same people (exchangeable), not the easy ones, not
  those that a rule sent to review. It says nothing of another population, or of any one group of people in it;
* the confidence was not fitted on these labels. The label-free quintiles may be fitted on all users, the labelled ones
  and those to come alike; a calibrator fitted on gold needs other users' gold.

It is for each attribute by itself: of k attributes at once it holds with 1 - k delta. In the long run the walk over the
thresholds is part of the bound (`risk_control`); for the next users each threshold passes wrongly with probability
delta at most, and that the walk over several of them does too was measured (`threshold_check`), not proved. `point`
takes the smallest tau whose accuracy among the labelled users reaches the target: it promises nothing, and is wrong
about every other time where an accuracy is close to the target. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel

from cp_agents.abstention import NEVER
from cp_agents.errors import InputError
from cp_agents.evaluation.agreement import OwnWord
from cp_agents.evaluation.outcomes import Outcomes, Profiles
from cp_agents.evaluation.risk_control import accuracy_interval, fewest_answers, promise_p, walk
from cp_agents.schema import CONFIDENCE_LEVELS, Status

Risk = Literal["conformal", "point"]
RISKS: tuple[Risk, ...] = get_args(Risk)
_MOST_LABELS = 10_000
"""That anybody is told to get."""


class Promise(NamedTuple):
    """What a threshold should keep."""

    target: float
    """Least share of the answers that is right, above 0 and below 1."""
    delta: float = 0.1
    """Probability that the labelled users mislead."""
    risk: Risk = "conformal"
    coming: int | None = None
    """Users among whom it should hold too; None: as many as are labelled, 0: in the long run alone."""


class Level(BaseModel):
    """One attribute at one tau, over the users whose truth is known."""

    tau: int
    answered: int
    right: int
    p: float
    """Of "less than the target is right"; the tau is safe if it, and those above, are at most delta."""


class Choice(BaseModel):
    """The tau of one attribute, and what is known of it."""

    attribute: str
    tau: float
    """1..5, or `NEVER`."""
    labelled: int
    """Users whose truth is known and not NA."""
    answered: int
    """Of these, answered at this tau; 0 with `NEVER`."""
    accuracy: float | None
    low: float
    """Of the exact 95 % interval of the accuracy at this tau."""
    high: float
    coverage: float
    """answered / labelled."""
    guaranteed: bool
    verdict: str
    """A sentence: what holds, or why there is no tau and what would help."""
    levels: list[Level]
    """From tau 1 to 5."""


def check_promise(target: float, delta: float, risk: str, coming: int | None) -> Promise:
    """The promise, checked. Raises `InputError`."""
    if not 0 < target < 1:
        raise InputError(f"the target accuracy should be above 0 and below 1, found {target:g}")
    if not 0 < delta < 1:
        raise InputError(f"delta should be above 0 and below 1, found {delta:g}")
    for known in RISKS:
        if risk == known:
            break
    else:
        raise InputError(f"unknown risk {risk!r}: expected {' or '.join(RISKS)}")
    if coming is not None and coming < 0:
        raise InputError(f"the number of next users should be 0 or more, found {coming}")
    return Promise(target, delta, known, coming)


def own_words(profiles: Profiles) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The profiles as the model said them, a reviewer's answers taken off: what a threshold is to judge."""
    return {
        user: {
            name: OwnWord(row).line if row.get("status") == Status.REVIEWED else row
            for name, row in profile.items()
        }
        for user, profile in profiles.items()
    }


def choose(outcomes: Outcomes, promise: Promise) -> Choice:
    """The tau of one attribute; the outcomes are of `own_words`."""
    ratio = _ratio(outcomes, promise)
    levels = _levels(outcomes, promise.target, ratio)
    labelled = int(outcomes.labelled.sum())
    found = _point(levels, promise.target)
    if promise.risk == "conformal":
        strictest_first = levels[::-1]
        counts = [(level.answered - level.right, level.answered) for level in strictest_first]
        index = walk(counts, promise.target, promise.delta, ratio)
        found = None if index is None else strictest_first[index]
    right, answered = (found.right, found.answered) if found else (0, 0)
    low, high = accuracy_interval(right, answered)
    return Choice(
        attribute=outcomes.attribute.name,
        tau=float(found.tau) if found else NEVER,
        labelled=labelled,
        answered=answered,
        accuracy=right / answered if answered else None,
        low=low,
        high=high,
        coverage=answered / labelled if labelled else 0.0,
        guaranteed=found is not None and promise.risk == "conformal",
        verdict=_verdict(found, levels, labelled, promise, ratio),
        levels=levels,
    )


def _ratio(outcomes: Outcomes, promise: Promise) -> float:
    if promise.coming is None:
        return 1.0
    return promise.coming / max(1, len(outcomes.users))


def _levels(outcomes: Outcomes, target: float, ratio: float) -> list[Level]:
    labelled, right = outcomes.labelled, outcomes.voted == outcomes.truth
    speaks = labelled & (outcomes.voted != outcomes.na)
    levels = []
    for tau in CONFIDENCE_LEVELS:
        said = speaks & (outcomes.reach >= tau)
        answered, correct = int(said.sum()), int((said & right).sum())
        p = promise_p(answered - correct, answered, target, ratio)
        levels.append(Level(tau=tau, answered=answered, right=correct, p=p))
    return levels


def _point(levels: list[Level], target: float) -> Level | None:
    """The first of the thresholds whose answers are right often enough."""
    return next((v for v in levels if v.answered and v.right / v.answered >= target), None)


def _verdict(found: Level | None, levels: list[Level], labelled: int, promise: Promise, ratio: float) -> str:
    if found is not None:
        return "promised" if promise.risk == "conformal" else "no promise"
    answered = [level for level in levels if level.answered]
    if not answered:
        return "nothing is answered where the truth is known"
    best = max(answered, key=lambda level: (level.right / level.answered, level.answered))
    if promise.risk == "point":
        return _out_of_reach(best)
    least = fewest_answers(promise.target, promise.delta, ratio)
    most = answered[0].answered
    if least is not None and most < least:
        return f"too few: {most} answers at tau 1, and even without a mistake it takes {least}"
    return _more(answered, best, labelled, promise, ratio)


def _more(answered: list[Level], best: Level, labelled: int, promise: Promise, ratio: float) -> str:
    """How many more labels would do, at the accuracies seen.

    The walk ends at the first tau that fails, so looser ones count for nothing, however good they are; stricter ones
    were left out for having too few answers, and may pass with more.
    """
    wanted = []
    strictest_first = answered[::-1]
    tried = [promise_p(0, v.answered, promise.target, ratio) <= promise.delta for v in strictest_first]
    for level in strictest_first[: tried.index(True) + 1]:
        needs = fewest_answers(promise.target, promise.delta, ratio, level.right / level.answered)
        if needs is not None:
            users = max(1, round((needs - level.answered) * labelled / level.answered))
            wanted.append((users, max(1, needs - level.answered), level))
    if not wanted:
        failed = strictest_first[tried.index(True)]
        if best.right <= promise.target * best.answered or best.tau >= failed.tau:
            return _out_of_reach(best)
        return f"not sure yet: {_seen(failed)}, and looser ones are tried only after it: {_seen(best)}"
    users, answers, level = min(wanted, key=lambda entry: entry[:2])
    seen = _seen(level)
    if users > _MOST_LABELS:
        return f"not sure yet: {seen}; so close to the target that it would take more than {_MOST_LABELS:,} labels"
    return (
        f"not sure yet: {seen}; at this accuracy about {answers:,} more answers ({users:,} labels) would do"
    )


def _out_of_reach(best: Level) -> str:
    return f"no tau reaches it; the best is {_seen(best)}"


def _seen(level: Level) -> str:
    return f"{level.right / level.answered:.2f} at tau {level.tau} ({level.answered} answers)"
