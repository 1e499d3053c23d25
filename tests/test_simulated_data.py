"""Simulated samplers as a data set: what the real store holds afterwards is what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cp_agents import Profiler, TraceStore
from cp_agents.bench.dataset import open_dataset, read_gold
from cp_agents.bench.simulated_data import beside, grouped, write_simulation
from cp_agents.bench.stored import load_run, profile_traces
from cp_agents.errors import InputError
from cp_agents.evaluation.simulator import Sampler, Simulation, simulate, simulated_taxonomy
from cp_agents.files import read_records
from cp_agents.taxonomy import Attribute, Tag, Taxonomy, load_taxonomy

COLOUR = Taxonomy(
    name="colours", attributes=[Attribute(name="colour", tags=[Tag(name="Red"), Tag(name="Blue")])]
)


def two_attributes(users: int = 12, samples: int = 4) -> Simulation:
    silent = Sampler(skill=0.5, na_rate=0.3, failure_rate=0.1)
    letters = simulate(silent, users=users, samples=samples, seed=1)
    return beside(letters, simulate(silent, users=users, samples=samples, taxonomy=COLOUR, seed=2))


def profiled(folder: Path) -> TraceStore:
    store = TraceStore(":memory:")
    profile_traces(folder / "answers.jsonl", folder / "users.jsonl", store, str(folder / "taxonomy.yaml"))
    return store


def test_the_store_holds_what_was_drawn(tmp_path: Path) -> None:
    drawn = two_attributes()
    write_simulation(drawn, tmp_path)
    run = load_run(profiled(tmp_path))
    assert run.taxonomy == drawn.taxonomy
    assert run.users == drawn.users
    assert np.array_equal(run.ballots.tags, drawn.ballots.tags)
    assert np.array_equal(run.ballots.confidence, drawn.ballots.confidence)
    dataset = open_dataset(tmp_path)
    assert read_gold(dataset)[0] == drawn.gold
    assert load_taxonomy(tmp_path / "taxonomy.yaml") == drawn.taxonomy


def test_groups_keep_their_answers_and_their_truth() -> None:
    north, south = (
        simulate(Sampler(skill=skill), users=5, samples=3, seed=i) for i, skill in enumerate((1.0, 0.0))
    )
    both = grouped({"north": north, "south": south})
    assert (both.users[0], both.users[-1]) == ("north-1", "south-5")
    assert both.gold["south-2"] == south.gold["user-2"]
    assert np.array_equal(both.ballots.tags[:, 5:], south.ballots.tags)
    truth = [both.taxonomy.attributes[0].codes[both.gold[user]["letter"]] for user in both.users]
    right = both.ballots.tags[0] == np.array(truth)[:, None]
    assert right[:5].all()
    assert not right[5:].any()


def test_fields_and_probabilities_arrive(tmp_path: Path) -> None:
    drawn = simulate(Sampler(skill=0.5, na_rate=0.3), users=6, samples=3)
    given = np.linspace(0.1, 1.0, 18).reshape(1, 6, 3)
    write_simulation(drawn, tmp_path, self_reported={"user-2": {"region": "north"}}, probabilities=given)
    records = [record for record in read_records(tmp_path / "users.jsonl") if isinstance(record, dict)]
    assert [record["self_reported"].get("region") for record in records[:2]] == [None, "north"]
    with Profiler(
        f"replay:{tmp_path / 'answers.jsonl'}", samples=3, taxonomy=drawn.taxonomy, confidence="logprob"
    ) as profiler:
        profiles, _ = profiler.profile_many(records)
        rows = profiler.store.rows(
            "select p.probability from predictions p join samples s using (sample_id) join records r using (record_id)"
            " order by cast(substr(r.user_id, 6) as integer), s.sample_index"
        )
    assert [p for (p,) in rows] == pytest.approx(given.ravel(), abs=1e-6)
    winner = profiles[0]["letter"]
    assert winner.score == pytest.approx(5 * sum(given[0, 0, m] for m in winner.agreeing), abs=1e-4)


@pytest.mark.parametrize("p", [0, -0.1, 1.5, True, "0.9", None])
def test_a_probability_that_is_none_is_refused(tmp_path: Path, p: object) -> None:
    line = {"user_id": "u", "samples": [{"text": "x", "probabilities": {"letter": ["A", p]}}]}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r'line 1: the "probabilities" of sample 1 should be'):
        Profiler(f"replay:{tmp_path / 'answers.jsonl'}")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    letters, colours = simulate(Sampler(), users=5), simulate(Sampler(), users=5, taxonomy=COLOUR)
    with pytest.raises(InputError, match="'letter' is simulated twice"):
        beside(letters, letters)
    with pytest.raises(InputError, match="the same users"):
        beside(letters, simulate(Sampler(), users=6, taxonomy=COLOUR))
    with pytest.raises(InputError, match="the same attributes"):
        grouped({"a": letters, "b": colours})
    with pytest.raises(InputError, match="as many samples"):
        grouped({"a": letters, "b": simulate(Sampler(), users=5, samples=3)})
    with pytest.raises(InputError, match=r"shape \(1, 5, 10\)"):
        write_simulation(letters, tmp_path, probabilities=np.ones((1, 5, 3)))
    with pytest.raises(InputError, match="does not exist"):
        write_simulation(letters, tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
    assert simulated_taxonomy() == letters.taxonomy
