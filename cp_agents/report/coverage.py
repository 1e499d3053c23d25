"""How much the profiles say: answered, NA and why, waiting, failed; which tags; on what evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cp_agents.abstention import BELOW_TAU, DEFAULT_TAU
from cp_agents.report.model import FATES, AttributeCoverage, TagCount
from cp_agents.report.rows import Profiled, Value, is_vote, values_of
from cp_agents.schema import NA, Match, Status
from cp_agents.taxonomy import Attribute, Taxonomy

_FATE_OF = {
    Status.ACCEPTED: "answered",
    Status.REVIEWED: "reviewed",
    Status.NEEDS_REVIEW: "waiting",
    Status.FAILED: "failed",
}
_BEST_FIRST = (Match.EXACT, Match.NORMALISED, Match.FUZZY, Match.UNGROUNDED)
NO_EVIDENCE = "none"
MOST_VALUES = 15
OTHER_VALUES = "(other values)"


def coverage_of(
    rows: Sequence[Profiled],
    taxonomy: Taxonomy,
    tau: Mapping[str, float],
    gold: Mapping[str, Mapping[str, str]] | None,
    most_values: int = MOST_VALUES,
) -> list[AttributeCoverage]:
    """One row an attribute, in taxonomy order. `gold` is canonical and of the run's users.

    Of an open attribute the `most_values` most frequent values are named and the others counted together.
    """
    return [
        _of_attribute(a, rows, tau.get(a.name, DEFAULT_TAU), gold, most_values) for a in taxonomy.attributes
    ]


def fate_of(value: Value) -> str:
    """Which of `FATES` became of an attribute."""
    if value["status"] == Status.ABSTAINED:
        return "below_tau" if BELOW_TAU in value.get("reasons", ()) else "voted_na"
    return _FATE_OF[Status(value["status"])]


def evidence_of(value: Value) -> str:
    """The best match among the winner's evidence: a `Match`, or "none"."""
    found = {piece["match"] for piece in value.get("evidence", ())}
    return next((match.value for match in _BEST_FIRST if match in found), NO_EVIDENCE)


def _of_attribute(
    attribute: Attribute,
    rows: Sequence[Profiled],
    tau: float,
    gold: Mapping[str, Mapping[str, str]] | None,
    most_values: int,
) -> AttributeCoverage:
    fates, said, evidence = Counter[str](), Counter[str](), Counter[str]()
    n = 0
    for _, value in values_of(rows, attribute.name):
        n += 1
        fates[fate_of(value)] += 1
        if value["tag"] != NA:
            said[value["tag"]] += 1
        if is_vote(value) and value["voted"] != NA:
            evidence[evidence_of(value)] += 1
    true = None
    if gold is not None and any(attribute.name in truth for truth in gold.values()):
        true = Counter(truth.get(attribute.name, NA) for truth in gold.values())
        del true[NA]
    if not attribute.tags:  # open: values are free text
        tags = _open_values(said, most_values)
    else:
        tags = [
            TagCount(tag=tag, said=said[tag], gold=None if true is None else true[tag])
            for tag in attribute.names
            if tag != NA
        ]
    return AttributeCoverage(
        attribute=attribute.name,
        tau=tau,
        n=n,
        fates={fate: fates[fate] for fate in FATES},
        tags=tags,
        gold_n=None if true is None else true.total(),
        evidence={kind: evidence[kind] for kind in (*(m.value for m in _BEST_FIRST), NO_EVIDENCE)},
    )


def _open_values(said: Counter[str], most: int) -> list[TagCount]:
    """The most frequent values of an open attribute, and how many records have another."""
    shown = said.most_common(most)
    rest = said.total() - sum(count for _, count in shown)
    counts = [*shown, (OTHER_VALUES, rest)] if rest else shown
    return [TagCount(tag=value, said=count, gold=None) for value, count in counts]
