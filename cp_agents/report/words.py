"""Numbers and texts as the page shows them. Pure."""

from __future__ import annotations

import math
import re

from cp_agents.report.numbers import Estimate, Proportion

DASH = "–"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]")


def clean(text: str) -> str:
    """Text without characters that neither HTML nor XML can hold: they become U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def escape(text: object) -> str:
    """Text for HTML and SVG, in elements and in attributes."""
    said = clean(str(text))
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        said = said.replace(raw, safe)
    return said


def label(name: str) -> str:
    """An attribute's or outcome's name as words."""
    return name.replace("_", " ")


def title(name: str) -> str:
    """The same at the head of something."""
    words = label(name)
    return words[:1].upper() + words[1:]


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share of 0..1; what is not 0 or 1 is not rounded to them."""
    if value is None:
        return DASH
    shown = f"{100 * value:.{digits}f}"
    if value > 0 and float(shown) == 0:
        return f"<{10**-digits:.{digits}f}%"
    if value < 1 and float(shown) == 100:
        return f">{100 - 10**-digits:.{digits}f}%"
    return f"{shown}%"


def share(found: Proportion, digits: int = 0) -> str:
    """A share with its interval: 57% [54–60]."""
    if found.interval is None:
        return DASH
    low, high = found.interval
    return f"{percent(found.value, digits)} [{100 * low:.{digits}f}{DASH}{100 * high:.{digits}f}]"


def ratio(value: float | None) -> str:
    """A number of 0..1 to three places."""
    return DASH if value is None else f"{value:.3f}"


def estimate(found: Estimate, in_percent: bool = False) -> str:
    """A number with its interval."""
    if found.value is None:
        return DASH
    if found.low is None or found.high is None:
        return percent(found.value) if in_percent else ratio(found.value)
    if in_percent:
        return f"{percent(found.value)} [{100 * found.low:.0f}{DASH}{100 * found.high:.0f}]"
    return f"{found.value:.3f} [{found.low:.3f}{DASH}{found.high:.3f}]"


def interval(found: Estimate) -> str:
    """The interval alone, in percent."""
    if found.low is None or found.high is None:
        return DASH
    return f"{100 * found.low:.0f}{DASH}{100 * found.high:.0f}"


def short(value: float) -> str:
    """A large number in a few characters: 1.2 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return count(value)


def seconds(value: float | None) -> str:
    """A time in ms, s, min or h."""
    if value is None:
        return DASH
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:,.1f} min" if value < 7200 else f"{value / 3600:,.1f} h"


def dollars(value: float | None) -> str:
    """A sum of money."""
    if value is None:
        return "unknown"
    if value == 0:
        return "$0"
    if value >= 1:
        return f"${value:,.2f}"
    digits = 1 - math.floor(math.log10(value))  # two that count
    return f"${value:.{digits}f}"


def level(value: float) -> str:
    """A threshold or a confidence: 2, 2.5."""
    return f"{value:g}"


def moment(stamp: str | None) -> str:
    """An ISO time to the minute, in UTC as it is stored."""
    return "" if stamp is None else f"{stamp[:10]} {stamp[11:16]} UTC"
