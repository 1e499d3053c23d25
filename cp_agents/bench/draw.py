"""Figures as text, as CSV and as SVG; no packages needed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from cp_agents.bench.figures import Bars, Curve, Figure, Panel
from cp_agents.errors import InputError
from cp_agents.files import whole_file

_WIDTH, _HEIGHT = 61, 16
_BAR = 14
"""Signs of the longest bar of a panel: three histograms beside each other fit a terminal of 80."""
_LETTERS = "abcde"
_COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#475569")
_PAGE, _PLOT, _MARGIN = 360, 230, 50
FORMATS = (".svg", ".csv")


def check_format(path: Path) -> None:
    """Raises `InputError` for a file that is neither SVG nor CSV."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: a figure is written as {' or '.join(FORMATS)}")


def write(figure: Figure, path: Path) -> None:
    """Write the figure as SVG or CSV, by the file's name."""
    check_format(path)
    with whole_file(path) as file:
        if path.suffix.lower() == ".svg":
            file.write(svg(figure))
            return
        rows = csv_rows(figure)
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def text(figure: Figure) -> str:
    """All panels as charts of letters and blocks."""
    return "\n\n".join(_curves(panel) if panel.curves else _bars(panel) for panel in figure.panels)


def csv_rows(figure: Figure) -> list[dict[str, Any]]:
    """One row a point of a curve, or a bar."""
    rows: list[dict[str, Any]] = []
    for panel in figure.panels:
        for curve in panel.curves:
            for p in curve.points:
                row: dict[str, Any] = {"panel": panel.title, "curve": curve.name, "tau": p.tau}
                for name, found in (("coverage", p.coverage), ("selective_accuracy", p.selective_accuracy)):
                    row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
                rows.append(row)
        for bars in panel.bars:
            rows += [
                {"panel": panel.title, "histogram": bars.name, "bar": label, "share": share}
                for label, share in zip(bars.labels, bars.shares, strict=True)
            ]
    return rows


def _curves(panel: Panel) -> str:
    """Selective accuracy (up) against coverage (right): our tau as digits, other curves as letters."""
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    legend: list[str] = []
    # ours last, so that it is on top
    for n, curve in reversed(list(enumerate(panel.curves))):
        mark = None if n == 0 else _LETTERS[(n - 1) % len(_LETTERS)]
        legend.insert(0, f"{'1-5 tau of' if mark is None else mark} {curve.name}")
        for tau, x, y in _points(curve):
            row, column = round((1 - y) * (_HEIGHT - 1)), round(x * (_WIDTH - 1))
            cells[row][column] = mark or str(tau)
    ticks = {round((1 - y) * (_HEIGHT - 1)): f"{y:.1f}" for y in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    lines = [f"{panel.title}: selective accuracy against coverage", "     " + "   ".join(legend)]
    lines += [f"{ticks.get(i, ''):>4} |{''.join(row).rstrip()}" for i, row in enumerate(cells)]
    lines.append("     +" + "-" * _WIDTH)
    axis = [" "] * (_WIDTH + 3)
    for x in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        at = round(x * (_WIDTH - 1))
        axis[at : at + 3] = f"{x:.1f}"
    lines.append("     " + "".join(axis).rstrip())
    return "\n".join(lines)


def _bars(panel: Panel) -> str:
    """Every histogram of a panel beside the others, a line a bar."""
    largest = max((share for bars in panel.bars for share in bars.shares), default=0.0) or 1.0
    columns = [_histogram(bars, largest) for bars in panel.bars]
    height = max(map(len, columns))
    widths = [max(map(len, column)) for column in columns]
    lines = [panel.title]
    for i in range(height):
        cells = [column[i] if i < len(column) else "" for column in columns]
        lines.append("   ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())
    return "\n".join(lines)


def _histogram(bars: Bars, largest: float) -> list[str]:
    wide = max(map(len, bars.labels))
    lines = [bars.name]
    for label, share in zip(bars.labels, bars.shares, strict=True):
        lines.append(f"{label:>{wide}} {share:6.1%} {'█' * round(share / largest * _BAR)}".rstrip())
    return lines


def svg(figure: Figure) -> str:
    """A picture with one plot a panel, two beside each other."""
    rows = (len(figure.panels) + 1) // 2
    curves = any(panel.curves for panel in figure.panels)
    names = [curve.name for curve in figure.panels[0].curves] if curves else []
    high = 30 + _PAGE * 5 // 6 * rows + (30 if names else 0)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _PAGE} {high}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{2 * _PAGE}" height="{high}" fill="#ffffff"/>',
        _label(12, 18, f"{figure.name}, run {figure.run}, {figure.users:,} users", size=13),
    ]
    for n, panel in enumerate(figure.panels):
        x, y = _PAGE * (n % 2), 30 + _PAGE * 5 // 6 * (n // 2)
        out.append(f'<g transform="translate({x},{y})">')
        out += _svg_curves(panel) if panel.curves else _svg_bars(panel)
        out.append("</g>")
    for n, name in enumerate(names):
        at = 12 + n * 170
        out.append(f'<rect x="{at}" y="{high - 22}" width="10" height="10" fill="{_colour(n)}"/>')
        out.append(_label(at + 15, high - 13, name))
    return "\n".join([*out, "</svg>", ""])


def _svg_curves(panel: Panel) -> list[str]:
    wide = _PAGE - _MARGIN - 15
    out = [_label(_MARGIN, 8, panel.title, size=12)]
    for i in range(6):
        v = i / 5
        x, y = _MARGIN + v * wide, 20 + (1 - v) * _PLOT
        out.append(_line(_MARGIN, y, _MARGIN + wide, y, "#e2e8f0"))
        out.append(_label(_MARGIN - 5, y + 4, f"{v:.1f}", anchor="end"))
        out.append(_label(x, 20 + _PLOT + 14, f"{v:.1f}", anchor="middle"))
    out.append(_label(_MARGIN + wide / 2, 20 + _PLOT + 28, "coverage", anchor="middle"))
    out.append(
        f'<text transform="translate(13,{20 + _PLOT / 2:.0f}) rotate(-90)" text-anchor="middle" fill="#334155">'
        "selective accuracy</text>"
    )
    for n, curve in enumerate(panel.curves):
        points = [(tau, _MARGIN + x * wide, 20 + (1 - y) * _PLOT) for tau, x, y in _points(curve)]
        path = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in points)
        dash = ' stroke-dasharray="4 3"' if curve.name.startswith("paper") else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{_colour(n)}" stroke-width="1.5"{dash}/>')
        for p in curve.points:
            low, high = p.selective_accuracy.low, p.selective_accuracy.high
            if low is not None and high is not None and p.coverage.value is not None:
                x = _MARGIN + p.coverage.value * wide
                out.append(_line(x, 20 + (1 - low) * _PLOT, x, 20 + (1 - high) * _PLOT, _colour(n)))
        for tau, x, y in points:
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_colour(n)}"/>')
            if n == 0:
                out.append(_label(x + 5, y - 5, str(tau)))
    return out


def _svg_bars(panel: Panel) -> list[str]:
    out = [_label(20, 12, panel.title, size=12)]
    each = (_PAGE - 30) / len(panel.bars)
    most = max(0.2, *(share for bars in panel.bars for share in bars.shares))
    for n, bars in enumerate(panel.bars):
        left, width = 20 + n * each, (each - 12) / len(bars.labels)
        out.append(_label(left, 32, bars.name, size=10))
        for i, (label, share) in enumerate(zip(bars.labels, bars.shares, strict=True)):
            high = share / most * (_PLOT - 25)
            x, y = left + i * width, 20 + _PLOT - high
            out.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{high:.1f}" fill="{_colour(n)}">'
                f"<title>{escape(label)}: {share:.1%}</title></rect>"
            )
            if len(bars.labels) == 5:
                out.append(_label(x + width / 2, y - 3, f"{share:.0%}", anchor="middle", size=8))
                out.append(_label(x + width / 2, 20 + _PLOT + 12, label, anchor="middle", size=9))
        if len(bars.labels) != 5:
            out.append(_label(left, 20 + _PLOT + 12, "0", size=9))
            out.append(_label(left + each - 14, 20 + _PLOT + 12, "5", anchor="end", size=9))
    return out


def _points(curve: Curve) -> list[tuple[int, float, float]]:
    """`(tau, coverage, selective accuracy)` where both are defined."""
    return [
        (p.tau, p.coverage.value, p.selective_accuracy.value)
        for p in curve.points
        if p.coverage.value is not None and p.selective_accuracy.value is not None
    ]


def _colour(n: int) -> str:
    return _COLOURS[n % len(_COLOURS)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _label(x: float, y: float, words: str, *, anchor: str = "start", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#334155">'
        f"{escape(words)}</text>"
    )
