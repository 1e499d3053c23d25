"""The embedded baseline and the recorded teacher on published data, where it is at hand (see conftest)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from cp_agents import Profiler
from cp_agents.evaluation.loading import load_gold
from cp_agents.evaluation.metrics import Evaluation, evaluate
from cp_agents.files import BadLine, read_records
from cp_agents.schema import Outcome
from cp_agents.taxonomy import load_taxonomy


def evaluated(folder: Path, truth_field: str) -> Evaluation:
    records = list(read_records(folder / "users.jsonl"))
    assert not any(isinstance(record, BadLine) for record in records)
    profiles, report = Profiler(backend="lexicon").profile_many(records)  # type: ignore[arg-type]
    assert report.failed == {}
    assert len(profiles) == len(records)
    gold = load_gold(folder / "gold.jsonl", truth_field)
    return evaluate((p.to_json() for p in profiles), gold, load_taxonomy())


@pytest.mark.parametrize(
    ("name", "truth_field", "times"), [("atus", "truth", 2.0), ("synthpai", "inferable", 1.5)]
)
def test_the_embedded_baseline_beats_the_best_constant_answers(
    shared_data: Path, name: str, truth_field: str, times: float
) -> None:
    found = evaluated(shared_data / name, truth_field)
    assert found.average[0].macro_f1 is not None
    assert found.best_constant_macro_f1 is not None
    assert found.average[0].macro_f1 >= times * found.best_constant_macro_f1
    for attribute, metrics in found.attributes.items():
        accuracies = [
            m.selective_accuracy for m in metrics.at_tau if m.answered >= 100 and m.selective_accuracy
        ]
        steps = [later - earlier for earlier, later in itertools.pairwise(accuracies)]
        assert all(step > -0.02 for step in steps), (
            f"{attribute}: {accuracies}"
        )  # a handful of answers either way
        assert not steps or accuracies[-1] > accuracies[0], f"{attribute}: {accuracies}"


@pytest.mark.parametrize("name", ["atus", "synthpai"])
def test_every_recorded_answer_of_a_real_model_is_read(shared_data: Path, name: str) -> None:
    recording = shared_data / "recorded_teacher" / f"{name}.jsonl"
    recorded = {json.loads(line)["user_id"]: json.loads(line) for line in recording.read_text().splitlines()}
    records = [r for r in read_records(shared_data / name / "users.jsonl") if not isinstance(r, BadLine)]
    p = Profiler(backend=f"replay:{recording}")
    profiles, report = p.profile_many([r for r in records if r["user_id"] in recorded])
    assert len(profiles) == len(recorded)
    assert report.meter.samples == sum(len(row["samples"]) for row in recorded.values())
    assert report.meter.outcomes[Outcome.OK] / report.meter.samples > 0.98
    taxonomy = load_taxonomy()
    for profile in profiles:
        cues = p.store.rows("select cues from records where user_id = ?", (profile.user_id,))[0][0]
        for attribute in profile:
            value = profile[attribute]
            assert value.tag in taxonomy[attribute].names
            for evidence in value.evidence:
                if evidence.start is not None:
                    assert cues[evidence.start : evidence.end] == evidence.text
