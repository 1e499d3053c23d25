"""How sure an accuracy is that was counted on few users: exact tests, and the walk down the thresholds.

Learn then Test (Angelopoulos et al. 2021) with fixed-sequence testing. Of each threshold the hypothesis "less than the
target is right" is tested, from the strictest on, each at the whole error rate delta, and the walk stops at the first
that is not rejected: whatever the thresholds' number, and however their accuracies hang together, the chance that it
goes too far is at most delta. Two exact p-values are used, the larger of both counting:

* in the long run: wrong ~ Binomial(answered, 1 - target), were the accuracy no better than the target;
* among the next users: the labelled and the next ones are one pool, of which a random part was labelled, so wrong is
  hypergeometric. With the fewest mistakes `f` among the `m` next answers that break the promise, P(as few as `wrong` of
  the pool's wrong + f are among the labelled) bounds, whatever the pool holds, the chance that this threshold passes
  and fails on the next users. A small next batch is luck as well, so this test asks for more than the first.

MAPIE's BinaryClassificationController does the long-run part for a classifier's probabilities. It is not used here: its
p-value is the Hoeffding-Bentkus bound where the exact one is to be had, it has none for a batch of known size, its walk
cannot leave out the thresholds with too few answers, and choosing a threshold would need scikit-learn. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MOST_ROWS = 1_000_000


def long_run_p(wrong: int, answered: int, target: float) -> float:
    """P(no more than `wrong` of `answered` are wrong) where a share 1 - target is wrong in the long run."""
    if not answered:
        return 1.0
    k = np.arange(wrong + 1)
    logs = _log_choose(answered, k) + k * math.log(1 - target) + (answered - k) * math.log(target)
    return float(min(1.0, np.exp(logs).sum()))


def next_p(wrong: int, answered: int, coming: int, target: float) -> float:
    """The p-value of "among the next `coming` answers a share of at least `target` is right". 1 with no answers."""
    if not answered or not coming:
        return 1.0
    bad = wrong + most_wrong(coming, target) + 1
    # wrong of the labelled answers out of `bad` in the pool; the rest of them is among the next ones
    k = np.arange(max(0, bad - coming), wrong + 1)
    pool = answered + coming
    logs = _log_choose(answered, k) + _log_choose(coming, bad - k) - _log_choose(pool, np.array([bad]))
    return float(min(1.0, np.exp(logs).sum()))


def most_wrong(answers: int, target: float) -> int:
    """The most mistakes among `answers` that keep the accuracy at `target` or above."""
    return math.floor(round(answers * (1 - target), 9))


def promise_p(wrong: int, answered: int, target: float, ratio: float) -> float:
    """The larger of both p-values; `ratio` = next users / labelled ones, 0 for the long run alone.

    As many of the next users as of the labelled ones are taken to be answered. More than a million are the long run.
    """
    in_the_long_run = long_run_p(wrong, answered, target)
    if ratio <= 0 or not answered:
        return in_the_long_run
    coming = min(_MOST_ROWS, max(1, round(answered * ratio)))
    return max(in_the_long_run, next_p(wrong, answered, coming, target))


def walk(counts: Sequence[tuple[int, int]], target: float, delta: float, ratio: float) -> int | None:
    """The index of the loosest threshold that is safe, of `(wrong, answered)` from the strictest to the loosest.

    Thresholds with too few answers to pass even without a mistake are left out: that is known before any truth is
    looked at, so it costs nothing. None where no threshold is safe.
    """
    safe = None
    for i, (wrong, answered) in enumerate(counts):
        if safe is None and promise_p(0, answered, target, ratio) > delta:
            continue
        if promise_p(wrong, answered, target, ratio) > delta:
            break
        safe = i
    return safe


@lru_cache(maxsize=4096)
def fewest_answers(target: float, delta: float, ratio: float, accuracy: float = 1.0) -> int | None:
    """The fewest answers with which the test passes at this accuracy; None where a million would not do.

    Without mistakes and in the long run alone: the least n with target ** n <= delta.
    """

    def passes(n: int) -> bool:
        return promise_p(math.ceil(round(n * (1 - accuracy), 9)), n, target, ratio) <= delta

    if accuracy <= target:
        return None
    return _first(passes)


def _first(passes: Callable[[int], bool]) -> int | None:
    """About the least n that passes: whole mistakes make the tests a saw, so it is exact only for small n."""
    n = 1
    while not passes(n):
        n = n + 1 if n < 200 else math.ceil(n * 1.02)
        if n > _MOST_ROWS:
            return None
    return n


def accuracy_interval(right: int, answered: int, level: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of an accuracy; (0, 1) without answers."""
    if not answered:
        return 0.0, 1.0
    tail = (1 - level) / 2
    wrong = answered - right
    low = 0.0 if not right else _bisect(lambda p: long_run_p(wrong, answered, p) > tail)
    high = 1.0 if not wrong else _bisect(lambda p: long_run_p(right, answered, 1 - p) <= tail)
    return low, high


def _bisect(is_above: Callable[[float], bool]) -> float:
    """Where in (0, 1) a condition turns true."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if is_above(middle) else (middle, high)
    return (low + high) / 2


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    logs = _log_factorials(n.bit_length())
    return np.asarray(logs[n] - logs[k] - logs[n - k])


@lru_cache(maxsize=24)
def _log_factorials(bits: int) -> NDArray[np.float64]:
    """log n! for every n below 2 ** bits."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 2**bits)))])
