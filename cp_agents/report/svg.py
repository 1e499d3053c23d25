"""A small builder of inline SVG. Colours and type come from classes, so that the page's style decides them.

No namespace, no reference to anything outside, and every text escaped: the result can stand in an HTML page as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from cp_agents.report.words import escape


class Svg:
    """One drawing of `width` x `height` units; 1 unit is about 1 px at the size that it is made for."""

    def __init__(self, width: float, height: float, label: str, style: str = "chart", fit: str = "") -> None:
        """`fit` "stretch" fills whatever place it gets (not with text in it), "natural" grows to its own size only."""
        how = {"": "", "stretch": ' preserveAspectRatio="none"', "natural": f' width="{_n(width)}"'}[fit]
        self._head = (
            f'<svg class="{style}" viewBox="0 0 {_n(width)} {_n(height)}"{how} role="img"'
            f' aria-label="{escape(label)}">'
        )
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, style: str, tip: str = "") -> None:
        """A rectangle; `tip` is shown where a mouse rests on it."""
        place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(0, width))}" height="{_n(max(0, height))}"'
        self._add("rect", f'class="{style}" {place}', tip)

    def shade(
        self, x: float, y: float, width: float, height: float, style: str, depth: float, tip: str
    ) -> None:
        """A rectangle as strong as `depth`, 0..1."""
        place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
        self._add("rect", f'class="{style}" {place} fill-opacity="{depth:.2f}"', tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A line."""
        self._add("line", f'class="{style}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"')

    def path(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through points."""
        drawn = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._add("polyline", f'class="{style}" points="{drawn}"')

    def dot(self, x: float, y: float, radius: float, style: str, tip: str = "") -> None:
        """A disc."""
        self._add("circle", f'class="{style}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"', tip)

    def text(
        self,
        x: float,
        y: float,
        said: str,
        style: str = "",
        anchor: str = "start",
        turn: float = 0,
        tip: str = "",
    ) -> None:
        """A text whose baseline begins, is centred or ends at a point; `turn` in degrees."""
        turned = f' transform="rotate({_n(turn)} {_n(x)} {_n(y)})"' if turn else ""
        named = f' class="{style}"' if style else ""
        hint = f"<title>{escape(tip)}</title>" if tip else ""
        self._parts.append(
            f'<text{named} x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{turned}>{escape(said)}{hint}</text>'
        )

    def _add(self, tag: str, attributes: str, tip: str = "") -> None:
        hint = f"<title>{escape(tip)}</title>" if tip else ""
        self._parts.append(f"<{tag} {attributes}>{hint}</{tag}>" if hint else f"<{tag} {attributes}/>")

    def __str__(self) -> str:
        return self._head + "".join(self._parts) + "</svg>"


class Frame:
    """A plot's area inside a drawing, and the way from data to places in it."""

    def __init__(
        self,
        svg: Svg,
        box: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
    ) -> None:
        """`box` is left, top, right, bottom; `x` and `y` the range of the data."""
        self.svg = svg
        self.left, self.top, self.right, self.bottom = box
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        """Where a value stands from left to right."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value stands from bottom to top."""
        low, high = self._y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def grid(self, values: Sequence[float], said: Sequence[str], *, numbers: bool = True) -> None:
        """Horizontal lines, with what they stand for at the left."""
        for value, words in zip(values, said, strict=True):
            at = self.y(value)
            self.svg.line(self.left, at, self.right, at, "axis" if value == self._y[0] else "rule")
            if numbers:
                self.svg.text(self.left - 6, at + 3.5, words, "tick", "end")

    def ticks(self, values: Sequence[float], said: Sequence[str]) -> None:
        """Marks under the plot."""
        for value, words in zip(values, said, strict=True):
            at = self.x(value)
            self.svg.line(at, self.bottom, at, self.bottom + 4, "axis")
            self.svg.text(at, self.bottom + 16, words, "tick", "middle")

    def titles(self, x: str, y: str = "") -> None:
        """What the axes show: x under the ticks, y above the plot."""
        self.svg.text((self.left + self.right) / 2, self.bottom + 33, x, "name", "middle")
        if y:
            self.svg.text(2, self.top - 10, y, "name")


def _n(value: float) -> str:
    """A coordinate in as few characters as it needs."""
    return f"{round(value, 1):g}" if abs(value) < 1e5 else f"{value:.0f}"
