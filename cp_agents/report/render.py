"""A `RunReport` as one self-contained page: no network, no font, script or picture from outside.

What users and models wrote is escaped wherever it stands, and the page's content security policy lets nothing run but
its own script, and nothing be loaded at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import Any

from cp_agents.errors import MissingExtraError
from cp_agents.report import charts, findings, matrix, words
from cp_agents.report.model import FATES, AttributeCoverage, RunReport
from cp_agents.schema import Outcome

FATE_NAMES = {
    "answered": "answered",
    "reviewed": "answered by a person",
    "waiting": "waiting for review",
    "below_tau": "NA: confidence below τ",
    "voted_na": "NA: the record does not tell",
    "failed": "failed: too few usable samples",
}
_EXPLAINED = {
    Outcome.OK: "read, with usable answers",
    Outcome.MALFORMED: "no tag and confidence could be read",
    Outcome.OUT_OF_SET: "the tag is not in the closed set",
    Outcome.MISSING: "attributes were left out",
    Outcome.TRUNCATED: "the answer ended by length",
    Outcome.REFUSED: "the model declined to answer",
    Outcome.FILTERED: "withheld by the endpoint's filter",
    Outcome.EMPTY: "answered with nothing",
    Outcome.ERROR: "the call failed",
}
_QUANTILES = {"p10": "10% are below", "p50": "median", "p90": "90% are below", "max": "longest"}


def render_report(report: RunReport) -> str:
    """The page. Raises `MissingExtraError` without jinja2."""
    try:
        from markupsafe import Markup

        environment = _environment()
    except ImportError:
        raise MissingExtraError("the HTML report", "report") from None
    script = _asset("script.js")
    outcomes = [
        outcome.value
        for outcome in Outcome
        if any(row.get(outcome.value) for row in report.errors.by_attribute.values())
    ]
    page: str = environment.get_template("report.html").render(
        r=report,
        q=report.quality,
        sections=_sections(report),
        style=Markup(_asset("style.css")),
        script=Markup(script),
        script_hash=_hash(script),
        tau=_tau(report),
        curve_top=charts.common_top(
            a.at_tau[0].coverage.value or 0.0 for a in (report.quality.attributes if report.quality else ())
        ),
        shape_top=charts.common_top(
            c / shape.n for shape in report.shapes if shape.n for c in (*shape.before, *shape.after)
        ),
        split_top=charts.common_top(
            c / split.n for split in report.splits if split.n for c in charts.split_totals(split)
        ),
        rules=", ".join(f"{words.label(name)} {value}" for name, value in report.run.review_rules.items()),
        fates=[(f"f-{fate}", FATE_NAMES[fate]) for fate in FATES],
        split_kinds=_split_kinds(report),
        explained={outcome.value: text for outcome, text in _EXPLAINED.items()},
        outcomes=outcomes,
        names=_QUANTILES,
    )
    return page


@cache
def _environment() -> Any:
    """The templates and what they call. Built once: compiling them takes longer than filling them in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return words.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def drawn(draw: Callable[..., str]) -> Callable[..., Any]:
        return lambda *given: Markup(draw(*given))

    environment = Environment(
        loader=PackageLoader("cp_agents.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    environment.globals.update(
        w=words,
        f=findings,
        charts=SimpleNamespace(
            stack=drawn(charts.stack),
            tag_bar=drawn(charts.tag_bar),
            curve=drawn(charts.curve),
            before_after=drawn(charts.before_after),
            reliability=drawn(charts.reliability),
            vote_split=drawn(charts.vote_split),
            latency=drawn(charts.latency),
        ),
        matrix=SimpleNamespace(SMALL=matrix.SMALL, narrow=drawn(matrix.narrow), wide=drawn(matrix.wide)),
        fate_text=_fate_text,
        tag_rows=_tag_rows,
        never=_never,
    )
    return environment


def _asset(name: str) -> str:
    return (resources.files("cp_agents.report") / "templates" / name).read_text(encoding="utf-8").strip()


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _sections(report: RunReport) -> list[tuple[str, str]]:
    found = [("summary", "Summary"), ("coverage", "Coverage"), ("accuracy", "Accuracy")]
    if report.quality is not None:
        found.append(("confusion", "Confusion"))
    return [
        *found,
        ("confidence", "Confidence"),
        ("calls", "Cost"),
        ("errors", "Errors"),
        ("records", "Records"),
        ("review", "Review"),
        ("notes", "How to read"),
    ]


def _tau(report: RunReport) -> str:
    levels = {a.attribute: a.tau for a in report.coverage}
    if len(set(levels.values())) == 1:
        return words.level(next(iter(levels.values())))
    return ", ".join(f"{words.label(name)} {words.level(tau)}" for name, tau in levels.items())


def _split_kinds(report: RunReport) -> list[tuple[str, str]]:
    if report.quality is None:
        return [("k-tag", "votes for a tag"), ("k-NA", "votes for NA")]
    return [("k-right", "right"), ("k-wrong", "wrong"), ("k-none", "no gold tag"), ("k-NA", "votes for NA")]


def _fate_text(found: AttributeCoverage) -> str:
    said = [
        f"{FATE_NAMES[fate]} {words.percent(count / found.n)}" for fate, count in found.fates.items() if count
    ]
    return f"{words.title(found.attribute)}: {', '.join(said)}"


def _tag_rows(found: AttributeCoverage) -> list[tuple[str, float, float | None, float, int]]:
    """Tag, share of what is said, share in gold, the largest of both over all tags, count; no tag that is nowhere."""
    n, gold_n = max(1, found.said.count), found.gold_n
    shares = [
        (tag.tag, tag.said / n, tag.gold / gold_n if tag.gold is not None and gold_n else None, tag.said)
        for tag in found.tags
        if tag.said or tag.gold
    ]
    most = max((max(said, gold or 0) for _, said, gold, _ in shares), default=0.0)
    return [(tag, said, gold, most, count) for tag, said, gold, count in shares]


def _never(found: AttributeCoverage) -> list[str]:
    return [tag.tag for tag in found.tags if not tag.said and not tag.gold]
