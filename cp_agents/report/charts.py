"""The figures of a report as inline SVG, one function each. Made for 360 px, the width of a phone and of a column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cp_agents.report.calls import nice_top
from cp_agents.report.model import (
    AttributeQuality,
    CallStats,
    ConfidenceShape,
    Reliability,
    TauPoint,
    VoteSplit,
)
from cp_agents.report.numbers import Proportion
from cp_agents.report.svg import Frame, Svg
from cp_agents.report.words import count, level, percent, seconds, share, title

WIDTH = 360
_LEFT, _RIGHT = 40, 348
_PERCENTS = (0, 25, 50, 75, 100)
KINDS = ("right", "wrong", "tag", "NA")
"""The order in which vote splits are stacked, and their classes."""


def curve(found: AttributeQuality, most: int = 100) -> str:
    """Selective accuracy over coverage (to `most` %) at tau 1..5, with intervals; the run's own tau is the full dot."""
    svg = Svg(WIDTH, 262, f"{title(found.attribute)}: accuracy over coverage at tau 1 to 5")
    frame = Frame(svg, (_LEFT, 28, _RIGHT, 216), (0, most), (0, 100))
    _hundred(frame, _MARKS[most])
    frame.titles("answered, % of labelled users", "right, % of answered")
    if found.constant_accuracy is not None:
        at = frame.y(100 * found.constant_accuracy)
        svg.line(frame.left, at, frame.right, at, "baseline")
    points = _merged(found.at_tau)
    placed = [
        (frame.x(100 * _value(p.coverage)), frame.y(100 * _value(p.accuracy)), name, p) for name, p in points
    ]
    svg.path([(x, y) for x, y, *_ in placed], "curve")
    for i, (x, y, name, point) in enumerate(placed):
        low, high = point.accuracy.interval or (0.0, 0.0)
        top, bottom = frame.y(100 * high), frame.y(100 * low)
        svg.line(x, top, x, bottom, "whisker")
        own = found.own.tau in _taus(found.at_tau, point)
        covered = percent(point.coverage.value)
        tip = f"tau {name}: {share(point.accuracy)} right of {count(point.accuracy.n)}, coverage {covered}"
        svg.dot(x, y, 5.5 if own else 4, "point own" if own else "point", tip)
        crowded = i > 0 and abs(x - placed[i - 1][0]) < 14 and i % 2 == 1
        under = crowded or top < frame.top + 8
        svg.text(x, min(bottom + 13, frame.bottom - 3) if under else top - 5, name, "mark", "middle")
    return str(svg)


def _merged(points: Sequence[TauPoint]) -> list[tuple[str, TauPoint]]:
    """Points with an answer at all; equal ones are one, named by the taus that they stand for."""
    groups: list[list[TauPoint]] = []
    for point in points:
        if not point.accuracy.n:
            continue
        if groups and groups[-1][0].accuracy == point.accuracy:
            groups[-1].append(point)
        else:
            groups.append([point])
    return [
        (level(g[0].tau) if len(g) == 1 else f"{level(g[0].tau)}–{level(g[-1].tau)}", g[0]) for g in groups
    ]


def _taus(points: Sequence[TauPoint], point: TauPoint) -> list[float]:
    return [p.tau for p in points if p.accuracy == point.accuracy]


def common_top(shares: Iterable[float]) -> int:
    """The end of a percent axis that figures of one kind share: 30, 50 or 100."""
    most = 100 * max(shares, default=0.0)
    return next(top for top in _MARKS if most <= top)


_MARKS = {30: (0, 10, 20, 30), 50: (0, 25, 50), 100: _PERCENTS}


def before_after(found: ConfidenceShape, top: int = 100) -> str:
    """S / M in steps of 1/4 with the calibrator's cuts, and beside it the levels that came of it."""
    svg = Svg(WIDTH, 204, f"{title(found.attribute)}: confidence before and after calibration")
    n = max(1, found.n)
    marks = _MARKS[top]
    before = Frame(svg, (_LEFT, 28, 216, 158), (0, 5), (0, top))
    after = Frame(svg, (242, 28, _RIGHT, 158), (0.5, 5.5), (0, top))
    before.grid(marks, [f"{m}%" for m in marks])
    after.grid(marks, [""] * len(marks), numbers=False)
    for i, votes in enumerate(found.before):
        low, high = i / 4, (i + 1) / 4
        _bar(before, low, high, 0, 100 * votes / n, "before", f"S/M up to {high:g}: {votes:,} votes", 0.5)
    for cut in found.cuts:
        before.svg.line(before.x(cut), before.top - 4, before.x(cut), before.bottom, "cut")
    for i, votes in enumerate(found.after):
        tip = f"level {i + 1}: {votes:,} votes, {percent(votes / n)}"
        _bar(after, i + 0.5, i + 1.5, 0, 100 * votes / n, "after", tip, 3)
    before.ticks(range(6), [str(i) for i in range(6)])
    after.ticks(range(1, 6), [str(i) for i in range(1, 6)])
    before.titles("before: S/M", "% of votes for a tag")
    after.titles("after: level" if found.calibrated else "S/M, rounded")
    return str(svg)


def reliability(found: Reliability, name: str) -> str:
    """Share right over stated confidence, in tenths; a dot's area is its number of votes."""
    svg = Svg(WIDTH, 262, f"{title(name)}: share right by confidence")
    frame = Frame(svg, (_LEFT, 28, _RIGHT, 216), (0, 100), (0, 100))
    _hundred(frame)
    frame.titles(SOURCE_AXES[found.source], "right, % of votes")
    svg.line(frame.x(0), frame.y(0), frame.x(100), frame.y(100), "ideal")
    most = max(b.accuracy.n for b in found.bins)
    placed = [(frame.x(100 * b.mean), frame.y(100 * _value(b.accuracy)), b) for b in found.bins]
    svg.path([(x, y) for x, y, _ in placed], "curve")
    for x, y, b in placed:
        low, high = b.accuracy.interval or (0.0, 0.0)
        svg.line(x, frame.y(100 * high), x, frame.y(100 * low), "whisker")
        tip = f"confidence {percent(b.mean)}: {share(b.accuracy)} right of {count(b.accuracy.n)}"
        svg.dot(x, y, 2.5 + 6 * (b.accuracy.n / most) ** 0.5, "point own", tip)
    return str(svg)


SOURCE_AXES = {
    "probability": "probability of being right, %",
    "combined": "confidence S / 5M′, %",
    "agreement": "share of samples that agree, %",
}
"""What the x axis of `reliability` shows, by source."""


def vote_split(found: VoteSplit, top: int = 100) -> str:
    """Votes by the winner's share of the surviving samples, stacked by what became of them."""
    svg = Svg(WIDTH, 204, f"{title(found.attribute)}: share of the samples behind the winner")
    n = max(1, found.n)
    totals = split_totals(found)
    marks = _MARKS[top]
    frame = Frame(svg, (_LEFT, 28, _RIGHT, 158), (0, 100), (0, top))
    frame.grid(marks, [f"{m}%" for m in marks])
    for i in range(len(totals)):
        base = 0.0
        for kind in KINDS:
            votes = found.kinds[kind][i]
            if votes:
                size = 100 * votes / n
                tip = f"{10 * i}–{10 * (i + 1)}%: {votes:,} {_SAID[kind]}"
                _bar(frame, 10 * i, 10 * (i + 1), base, base + size, f"kind-{kind}", tip, 2)
                base += size
    frame.ticks(range(0, 101, 20), [str(i) for i in range(0, 101, 20)])
    frame.titles("samples that named the winner, %", "% of votes")
    return str(svg)


def split_totals(found: VoteSplit) -> list[int]:
    """Votes by step of the share, of all kinds."""
    return [sum(column) for column in zip(*found.kinds.values(), strict=True)]


_SAID = {"right": "right", "wrong": "wrong", "tag": "without gold", "NA": "for NA"}


def latency(found: CallStats) -> str:
    """How long an answer was waited for; the last step takes all that is longer."""
    svg = Svg(WIDTH, 204, "Latency of a sample")
    n, most = max(1, found.latency_n), found.latency_edges[-1]
    unit, scale = ("ms", 1000.0) if most < 1 else ("s", 1.0)
    peak = 100 * max(found.latency_counts) / n
    top = nice_top(peak)
    frame = Frame(svg, (_LEFT, 28, _RIGHT, 158), (0, most), (0, top))
    frame.grid((0, top / 2, top), [f"{v:g}%" for v in (0, top / 2, top)])
    for i, votes in enumerate(found.latency_counts):
        low, high = found.latency_edges[i], found.latency_edges[i + 1]
        last = i == len(found.latency_counts) - 1
        tip = f"{'above ' + seconds(low) if last else 'up to ' + seconds(high)}: {votes:,} samples"
        _bar(frame, low, high, 0, 100 * votes / n, "before", tip, 1)
    median = min(found.latency["p50"], most)
    svg.line(frame.x(median), frame.top - 4, frame.x(median), frame.bottom, "cut")
    at = [most * i / 4 for i in range(5)]
    said = [f"{v * scale:.3g}" for v in at]
    frame.ticks(at, said)
    beyond = ", the last bar and longer" if found.latency["max"] > most else ""
    frame.titles(f"latency, {unit}{beyond}", "% of samples")
    return str(svg)


def stack(parts: Sequence[tuple[str, int]], n: int, label: str) -> str:
    """A bar as wide as its place, in pieces by class; texts stand beside it in the page."""
    svg = Svg(100, 10, label, "strip", "stretch")
    at = 0.0
    for style, votes in parts:
        size = 100 * votes / n if n else 0.0
        if size:
            svg.rect(at, 0, size, 10, f"part-{style}")
        at += size
    return str(svg)


def tag_bar(said: float, gold: float | None, most: float, label: str) -> str:
    """A tag's share of what is said as a bar, and gold's as a line across it, both of 0..`most`."""
    svg = Svg(100, 10, label, "strip", "stretch")
    svg.rect(0, 1, 100 * said / most if most else 0, 8, "part-answered")
    if gold is not None and most:
        svg.rect(min(98.6, max(0.0, 100 * gold / most - 0.7)), 0, 1.4, 10, "goldmark")
    return str(svg)


def _hundred(frame: Frame, across: Sequence[float] = _PERCENTS) -> None:
    frame.grid(_PERCENTS, [f"{m}%" for m in _PERCENTS])
    frame.ticks(across, [f"{m:g}" for m in across])


def _bar(
    frame: Frame, left: float, right: float, low: float, high: float, style: str, tip: str, gap: float
) -> None:
    x, y = frame.x(left), frame.y(high)
    frame.svg.rect(x + gap / 2, y, frame.x(right) - x - gap, frame.y(low) - y, style, tip)


def _value(found: Proportion) -> float:
    return found.value or 0.0
