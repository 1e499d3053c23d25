"""Approximate search with a stated bound: at most one character in five differs (one in all in a short text).

Seeds find the places, bit-parallel edit distance (Myers 1999, in Sellers' semi-global form) decides. Cost:
O(n) for the seeds, which the interpreter's own substring search does, and at most `_MAX_PLACES` windows of
O(m) steps each on m-bit integers.
"""

from __future__ import annotations

from collections import Counter

from cp_agents.folded_text import is_unspaced

MIN_LENGTH = 8
"""Folded characters below which a text is too short to be looked for approximately."""
MIN_LENGTH_UNSPACED = 5
"""The same for scripts such as Chinese, where a character says more."""
MAX_LENGTH = 400
_SHORT = 15
_MAX_PLACES = 4
_MAX_HITS = 16
"""Places that one seed may name."""


def allowed_differences(pattern: str) -> int | None:
    """Insertions, deletions and substitutions that `pattern` may differ by; None if its length is out of bounds.

    20 %, rounded down. A short text in letters may have one, as two make another word: "car service", "care services".
    """
    m = len(pattern)
    if not MIN_LENGTH_UNSPACED <= m <= MAX_LENGTH:
        return None
    if m < _SHORT and 2 * sum(map(is_unspaced, pattern)) <= m:
        return 1 if m >= MIN_LENGTH else None
    return m // 5


def find_approximately(pattern: str, text: str, start: int, end: int) -> tuple[int, int, int] | None:
    """The `(start, end, differences)` in `text[start:end]` that is nearest to `pattern`, within one line.

    None where all are further than `allowed_differences`. By the pigeonhole principle a match within k differences
    holds one of k + 1 parts of the pattern unchanged; only the places that most parts agree on are looked at.
    """
    k = allowed_differences(pattern)
    if k is None:
        return None
    best: tuple[int, int, int] | None = None
    for window_start, window_end in _places(pattern, k, text, start, end):
        window = text[window_start:window_end]
        if not _may_hold(pattern, window, k):
            continue
        found = _best_in(pattern, window, k if best is None else best[2] - 1)
        if found is not None:
            best = (window_start + found[0], window_start + found[1], found[2])
            if best[2] == 0:
                break
    return best


def _places(pattern: str, k: int, text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Windows of `text` that may hold the pattern, the likeliest first."""
    m = len(pattern)
    votes: Counter[int] = Counter()
    width = k + 1
    for part in range(k + 1):
        a, b = part * m // (k + 1), (part + 1) * m // (k + 1)
        seed, at = pattern[a:b], start - 1
        for _ in range(_MAX_HITS):
            at = text.find(seed, at + 1, end)
            if at < 0:
                break
            votes[(at - a) // width] += 1
    windows = []
    for bucket, _ in votes.most_common(_MAX_PLACES):
        middle = max(start, bucket * width)
        # A match may begin up to k before or k + width behind the bucket's edge.
        a, b = max(start, middle - k), min(end, middle + width + m + 2 * k)
        inside = min(max(middle + m // 2, a), b)
        line_start = text.rfind("\n", a, inside) + 1
        line_end = text.find("\n", inside, b)
        windows.append((max(a, line_start), b if line_end < 0 else line_end))
    return windows


def _may_hold(pattern: str, window: str, k: int) -> bool:
    """The q-gram lemma for q = 3: each difference spoils at most three of the pattern's trigrams."""
    trigrams = len(pattern) - 2
    needed = trigrams - 3 * k
    return sum(pattern[i : i + 3] in window for i in range(trigrams)) >= needed


def _best_in(pattern: str, window: str, limit: int) -> tuple[int, int, int] | None:
    differences, end = _nearest_end(pattern, window)
    if differences > limit:
        return None
    _, length = _nearest_end(pattern[::-1], window[:end][::-1])
    return end - length, end, differences


def _nearest_end(pattern: str, text: str) -> tuple[int, int]:
    """The least edit distance of `pattern` to any substring of `text`, and the first end of such a substring."""
    masks: dict[str, int] = {}
    for i, char in enumerate(pattern):
        masks[char] = masks.get(char, 0) | 1 << i
    m = len(pattern)
    full, top = (1 << m) - 1, 1 << (m - 1)
    plus, minus, score = full, 0, m
    best, best_end = m, 0
    for j, char in enumerate(text, 1):
        equal = masks.get(char, 0)
        vertical = equal | minus
        horizontal = (((equal & plus) + plus) ^ plus) | equal
        up = minus | (full & ~(horizontal | plus))
        down = plus & horizontal
        if up & top:
            score += 1
        elif down & top:
            score -= 1
        up <<= 1
        down <<= 1
        plus = (down | ~(vertical | up)) & full
        minus = up & vertical
        if score < best:
            best, best_end = score, j
    return best, best_end
