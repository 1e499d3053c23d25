"""Whether a student holds: what it answers, measured beside its teacher, and the rule that promotes it."""

from __future__ import annotations

from typing import Any

from cp_agents.evaluation.compare import Comparison
from cp_agents.evaluation.metrics import evaluate
from cp_agents.relabel import stored_run
from cp_agents.schema import Status
from cp_agents.stores.traces import TraceStore
from cp_agents.trainers.distill_config import DistillSettings

Facts = dict[str, Any]
"""What a stage found, plain JSON."""


def measured(store: TraceStore, teacher: str, run: str, compared: Comparison) -> Facts:
    """What the student's answers are worth, over the users that both runs have.

    `parse_rate` is over its attribute answers; `macro_f1` and `constant_macro_f1` are means over the attributes with
    the teacher's votes as truth, the latter of the best constant answer; `gold_*` are both runs' against gold.
    """
    answers = dict(
        store.rows(
            "select p.outcome = 'ok', count(*) from records r join samples s using (record_id)"
            " join predictions p using (sample_id) where r.run_id = ? group by 1",
            (run,),
        )
    )
    student_says = {profile.user_id: profile for _, profile in store.profiles(run)}
    votes: dict[str, dict[str, str]] = {
        profile.user_id: {
            name: value.voted
            for name, value in profile.attributes.items()
            if value.status is not Status.FAILED
        }
        for _, profile in store.profiles(teacher)
        if profile.user_id in student_says
    }
    _, taxonomy, _ = stored_run(store, run)
    found = evaluate((profile.to_json() for profile in student_says.values()), votes, taxonomy)
    facts: Facts = {
        "users": compared.users,
        "parse_rate": answers.get(1, 0) / max(1, sum(answers.values())),
        "macro_f1": found.average[0].macro_f1,
        "constant_macro_f1": found.best_constant_macro_f1,
        "equal_tags": {name: value.equal for name, value in compared.attributes.items()},
    }
    for side, name in ((compared.a, "gold_teacher"), (compared.b, "gold_student")):
        if side.gold is not None:
            facts[name] = side.gold.average[0].macro_f1
    return facts


def verdict(facts: Facts | None, settings: DistillSettings) -> tuple[bool, str]:
    """Whether a student holds by the facts of `measured`, and why, in one sentence."""
    if facts is None:
        return False, "it was not compared with the teacher"
    parse, ours, constant = facts["parse_rate"], facts["macro_f1"] or 0.0, facts["constant_macro_f1"] or 0.0
    if parse < settings.min_parse:
        return False, f"{parse:.1%} of its answers can be read, and {settings.min_parse:.1%} are needed"
    # Where the constant answer is good already, twice as good cannot be: then half of what it leaves is asked.
    needed = min(settings.min_gain * constant, (1 + constant) / 2)
    if ours < needed:
        return False, (
            f"its macro-F1 against the teacher's votes is {ours:.3f}, and {needed:.3f} is needed, with"
            f" {constant:.3f} for the best constant answer"
        )
    teacher, own = facts.get("gold_teacher"), facts.get("gold_student")
    if teacher is not None and own is not None and own < teacher - settings.most_loss:
        return False, f"its macro-F1 against gold is {own:.3f}, the teacher's {teacher:.3f}"
    return True, (
        f"{parse:.1%} of its answers can be read, and its macro-F1 against the teacher's votes is {ours:.3f}"
        f" (best constant answer {constant:.3f})"
    )
