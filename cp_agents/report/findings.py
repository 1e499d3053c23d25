"""One or two sentences at the head of each section: what its figures show, in numbers. Pure functions of the report."""

from __future__ import annotations

from collections.abc import Iterable

from cp_agents.report import words as w
from cp_agents.report.model import AttributeQuality, Quality, RunReport
from cp_agents.report.numbers import Proportion


def coverage(report: RunReport) -> str:
    """How much is said, and where most and least."""
    rows = report.coverage
    said = sum(row.said.count for row in rows)
    asked = sum(row.n for row in rows)
    text = f"The profiles give a tag to {w.count(said)} of {w.count(asked)} questions ({w.percent(said / asked)})"
    ranked = sorted(rows, key=lambda row: row.said.value or 0)
    most, least = ranked[-1], ranked[0]
    if len(rows) > 1 and most.said.value != least.said.value:
        text += (
            f": most often {w.label(most.attribute)} ({w.percent(most.said.value)}),"
            f" least often {w.label(least.attribute)} ({w.percent(least.said.value)})"
        )
    return text + ". A question is one attribute of one user."


def accuracy(quality: Quality) -> str:
    """How often right where something is said, and what that is beside a constant answer."""
    means = quality.averages
    if means.selective_accuracy.value is None:
        return "Nothing that gold knows was answered."
    text = (
        f"Where the profiles answer, {w.estimate(means.selective_accuracy, True)} are right, and they answer"
        f" {w.estimate(means.coverage, True)} of what gold knows: means over {len(quality.attributes)} attributes."
    )
    if means.macro_f1.value is not None and means.constant_macro_f1:
        text += (
            f" Macro-F1 is {w.estimate(means.macro_f1)}, {means.macro_f1.value / means.constant_macro_f1:.1f} times"
            f" that of always giving each attribute's most frequent tag ({w.ratio(means.constant_macro_f1)})."
        )
    return text


def curve(found: AttributeQuality) -> str:
    """What abstaining buys, in one line."""
    said = [point for point in found.at_tau if point.accuracy.n]
    if not said:
        return "no labelled user was answered"
    first, last = said[0], said[-1]
    if first.accuracy == last.accuracy:
        return f"{w.percent(first.accuracy.value)} right at coverage {w.percent(first.coverage.value)}, at every τ"
    least = f"{w.percent(first.accuracy.value)} right at coverage {w.percent(first.coverage.value)}"
    most = f"{w.percent(last.accuracy.value)} at {w.percent(last.coverage.value)}"
    return f"{least} (τ {w.level(first.tau)}); {most} (τ {w.level(last.tau)})"


def rise(quality: Quality) -> str:
    """For how many attributes answering less means being right more often."""
    ends = [
        (said[0].accuracy.value or 0.0, said[-1].accuracy.value or 0.0)
        for a in quality.attributes
        if len(said := [point for point in a.at_tau if point.accuracy.n]) > 1
    ]
    if not ends:
        return "No attribute is answered at more than one τ."
    higher = sum(last > first for first, last in ends)
    return (
        "Answering less should mean being right more often: from the lowest τ to the highest that answers, the share"
        f" right rises for {higher} of {len(ends)} attributes."
    )


def calibration(report: RunReport) -> str:
    """How evenly the levels are filled before and after."""
    done = [shape for shape in report.shapes if shape.calibrated]
    if not done:
        return (
            "No calibrator spoke: confidence is S/M rounded to 1..5, and votes tend to crowd in a level or two."
            " A calibrator spreads them by rank; it is fitted where an attribute has at least 20 votes for a tag."
        )
    before = _largest(shape.rounded for shape in done)
    after = _largest(shape.after for shape in done)
    return (
        f"The fullest of the five levels holds {w.percent(before)} of the votes when S/M is rounded, and"
        f" {w.percent(after)} after calibration, on average over {len(done)} attributes (20% would be even)."
        " Calibration without labels makes ranks comparable; it does not make a level a probability."
    )


def _largest(counts: Iterable[list[int]]) -> float:
    shares = [max(c) / sum(c) for c in counts if sum(c)]
    return sum(shares) / len(shares) if shares else 0.0


def trust(quality: Quality) -> str:
    """Whether confidence tells right from wrong."""
    known = [a for a in quality.attributes if a.reliability is not None and a.reliability.auroc is not None]
    if not known:
        return "Too few labelled votes to say whether confidence means anything."
    ranked = sorted(known, key=lambda a: a.reliability.auroc or 0 if a.reliability else 0)
    best, least = ranked[-1], ranked[0]
    assert best.reliability is not None
    assert least.reliability is not None
    text = (
        "Confidence tells right votes from wrong ones best for"
        f" {w.label(best.attribute)} (AUROC {best.reliability.auroc:.2f})"
    )
    if len(ranked) > 1:
        text += f" and least for {w.label(least.attribute)} ({least.reliability.auroc:.2f})"
    return text + "; 0.5 is chance. On the diagonal a confidence could be read as a probability."


def splits(report: RunReport) -> str:
    """How often the samples are of one mind."""
    n = sum(split.n for split in report.splits)
    if not n:
        return "No attribute got a vote."
    one = sum(split.unanimous for split in report.splits)
    text = f"All samples agree in {w.percent(one / n)} of {w.count(n)} votes."
    right = sum(split.kinds["right"][-1] for split in report.splits)
    wrong = sum(split.kinds["wrong"][-1] for split in report.splits)
    if right + wrong:
        most = w.share(Proportion(count=right, n=right + wrong))
        text += f" Where nine in ten samples or more agree on a tag that gold can judge, {most} are right."
    return text


def calls(report: RunReport) -> str:
    """What was asked for and what it took."""
    found = report.calls
    text = f"{w.count(found.samples)} samples were drawn"
    if found.reused:
        text += f" and {w.count(found.reused)} reused from earlier runs"
    tokens = found.prompt_tokens + found.completion_tokens
    if tokens:
        kind = "estimated tokens" if found.tokens_estimated else "tokens"
        text += f", with {w.count(tokens)} {kind}"
    if found.cost_usd is not None and (tokens or found.cost_usd):
        text += f", for {w.dollars(found.cost_usd)}"
        text += " or more (some answers have no price)" if found.unpriced else ""
    elif tokens:
        text += "; no price is known"
    if found.samples_per_s:
        text += f"; {w.count(found.samples_per_s)} samples a second"
    return text + "."


def errors(report: RunReport) -> str:
    """What could not be used."""
    samples = sum(report.errors.outcomes.values())
    bad = samples - report.errors.outcomes.get("ok", 0)
    answers = [n for row in report.errors.by_attribute.values() for n in row.values()]
    unusable = sum(answers) - sum(row.get("ok", 0) for row in report.errors.by_attribute.values())
    if not bad and not unusable:
        return f"All {w.count(samples)} samples were read, with a tag of the closed set for every attribute."
    failed = report.errors.outcomes.get("error", 0)
    said = [f"{w.count(failed)} calls failed"] if failed else []
    said += [f"{w.count(bad - failed)} answers could not be read whole"] if bad > failed else []
    text = f"Of {w.count(samples)} samples, " + (" and ".join(said) or "all were read")
    if answers:
        share = w.percent(unusable / sum(answers), 1)
        text += (
            f". {w.count(unusable)} of {w.count(sum(answers))} single answers were no usable vote ({share})"
        )
    return text + "."


def review(report: RunReport) -> str:
    """What waits for a person."""
    queue = report.review
    if not queue.waiting and not queue.answered:
        if report.run.review_rules:
            return "No attribute waits for a person."
        return "No review rule was on, so nothing waits for a person; cp-agents profile --review sets them."
    text = f"{w.count(queue.waiting)} attributes wait for a person, {w.count(queue.answered)} were answered"
    if queue.answered:
        text += f"; {w.count(queue.confirmed)} of those answers left the model's tag as it was"
    return text + "."
