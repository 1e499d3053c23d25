"""From S to levels: quintiles, their ties, other M, too few rows, files; isotonic and Platt."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents import Profiler, replay
from cp_agents.calibrate import fit_run
from cp_agents.calibration import MIN_RECORDS, Calibrator, uncalibrated_levels
from cp_agents.cli import calibrating
from cp_agents.errors import InputError, MissingExtraError
from cp_agents.probability import Isotonic, probability_levels
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from tests.support import PETS, RECORD, ScriptedBackend, answer

COLOURS = Taxonomy.model_validate(
    {
        "name": "colours",
        "attributes": [
            {"name": "colour", "tags": [{"name": "Red"}, {"name": "Blue"}]},
            {"name": "shade", "tags": [{"name": "Light"}, {"name": "Dark"}]},
        ],
    }
)
KINDS = ("quintile", "isotonic", "platt")


def quintiles(scores: list[float], samples: int = 10) -> Calibrator:
    return Calibrator.fit({"colour": scores}, samples=samples, taxonomy=COLOURS)


def thresholds(calibrator: Calibrator) -> tuple[float | None, ...]:
    return calibrator.attributes["colour"].thresholds  # type: ignore[union-attr]


def fitted(kind: str, scores: list[float], right: list[bool], samples: int = 10) -> Calibrator:
    return Calibrator.fit(
        {"colour": scores},
        samples=samples,
        taxonomy=COLOURS,
        kind=kind,  # type: ignore[arg-type]
        correct=None if kind == "quintile" else {"colour": right},
    )


def test_distinct_scores_fall_into_five_equal_parts() -> None:
    scores = list(range(1, 101))
    calibrator = quintiles(scores, samples=20)
    levels = calibrator.transform("colour", scores, 20)
    assert np.bincount(levels).tolist() == [0, 20, 20, 20, 20, 20]
    assert thresholds(calibrator) == (21, 41, 61, 81)


def test_ties_by_hand() -> None:
    # 20 records: 8 at S=10, 2 at 20, 10 at 50. Midranks .2, .45, .75, so levels 2, 3, 4.
    calibrator = quintiles([10] * 8 + [20] * 2 + [50] * 10)
    assert thresholds(calibrator) == (10, 20, 50, None)
    assert calibrator.transform("colour", [10, 20, 50], 10).tolist() == [2, 3, 4]
    # unseen scores: below the least fitted one, between, above all
    assert calibrator.transform("colour", [3, 19, 49.5, 51], 10).tolist() == [1, 2, 3, 4]


def test_all_equal_is_the_middle_level() -> None:
    calibrator = quintiles([50.0] * 30)
    assert thresholds(calibrator) == (50, 50, None, None)
    assert calibrator.transform("colour", [50, 49], 10).tolist() == [3, 1]


@given(st.lists(st.integers(1, 50), min_size=MIN_RECORDS, max_size=80))
def test_levels_follow_the_midrank_rule(scores: list[int]) -> None:
    levels = quintiles([float(s) for s in scores]).transform("colour", scores, 10)
    for s, level in zip(scores, levels, strict=True):
        below, equal = sum(x < s for x in scores), scores.count(s)
        assert level == 1 + (5 * (2 * below + equal)) // (2 * len(scores))


@given(st.lists(st.integers(1, 50), min_size=MIN_RECORDS, max_size=80), st.randoms(use_true_random=False))
def test_order_of_records_does_not_matter(scores: list[int], random: object) -> None:
    shuffled = list(scores)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert quintiles(shuffled) == quintiles(scores)
    assert quintiles(shuffled).id == quintiles(scores).id


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)  # the first fit imports scikit-learn
@given(data=st.data())
def test_calibrators_never_fall(kind: str, data: st.DataObject) -> None:
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=MIN_RECORDS, max_size=40)
    )
    calibrator = fitted(kind, [float(s) for s, _ in pairs], [r for _, r in pairs])
    grid = np.linspace(-1, 60, 123)
    levels = calibrator.transform("colour", grid, 10)
    assert (np.diff(levels) >= 0).all()
    assert set(levels.tolist()) <= {1, 2, 3, 4, 5}
    probability = calibrator.probability("colour", grid, 10)
    if kind == "quintile":
        assert probability is None
    else:
        assert probability is not None
        assert (np.diff(probability) >= 0).all()
        assert (probability >= 0).all()
        assert (probability <= 1).all()
        assert (levels == probability_levels(probability)).all()


@given(st.lists(st.integers(1, 50), min_size=MIN_RECORDS, max_size=60), st.sampled_from([3, 7, 10, 32]))
def test_scores_of_another_m_are_rescaled(scores: list[int], other: int) -> None:
    calibrator = quintiles([float(s) for s in scores])
    mine = calibrator.transform("colour", scores, 10)
    theirs = calibrator.transform("colour", [s * other / 10 for s in scores], other)
    assert (mine == theirs).all()


@pytest.mark.parametrize(
    ("score", "level"),
    [(0, 1), (3, 1), (14, 1), (14.999, 1), (15, 2), (24, 2), (25, 3), (44, 4), (45, 5), (50, 5)],
)
def test_uncalibrated_levels_round_half_up(score: float, level: int) -> None:
    assert uncalibrated_levels(score, 10) == level


def test_too_few_records_stay_uncalibrated_and_say_so() -> None:
    calibrator = Calibrator.fit(
        {"colour": np.arange(MIN_RECORDS), "shade": np.arange(MIN_RECORDS - 1)}, samples=10, taxonomy=COLOURS
    )
    assert calibrator.uncalibrated == ("shade",)
    assert calibrator.attributes["shade"].n == MIN_RECORDS - 1
    assert calibrator.transform("shade", [12.0, 38.0], 10).tolist() == [1, 4]
    assert calibrator.probability("shade", [12.0], 10) is None
    nothing = Calibrator.fit({}, samples=10, taxonomy=COLOURS)
    assert nothing.uncalibrated == ("colour", "shade")
    assert nothing.transform("elsewhere", 50.0, 10) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_a_file(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(5, 51, 60).astype(float)
    calibrator = fitted(kind, scores.tolist(), (rng.random(60) < scores / 50).tolist())
    calibrator.save(tmp_path / "c.json")
    loaded = Calibrator.load(tmp_path / "c.json")
    assert loaded == calibrator
    assert loaded.label == calibrator.label == f"{kind}:{loaded.id}"
    assert len(loaded.id) == 12
    grid = np.linspace(0, 50, 101)
    assert (loaded.transform("colour", grid, 10) == calibrator.transform("colour", grid, 10)).all()
    raw = json.loads((tmp_path / "c.json").read_text())
    assert raw["version"] == 1
    assert raw["taxonomy"] == "colours"


def test_id_is_a_hash_of_the_content() -> None:
    scores = [float(s) for s in range(30)]
    assert quintiles(scores).id == quintiles(scores).id
    assert quintiles(scores).id != quintiles(scores, samples=5).id
    assert quintiles(scores).id != quintiles([*scores, 99.0]).id
    raw = quintiles(scores).to_json()
    raw["samples"] = 12  # an edited file speaks under a name of its own
    assert Calibrator.from_json(raw).id not in (raw["id"], quintiles(scores).id)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "not a calibrator"),
        ({"version": 2}, r"version 2, from a newer cp-agents \(this one reads up to 1\)"),
        ({"version": None}, "has no version"),
        ({"kind": "magic"}, "kind: "),
        ({"samples": 0}, "samples: "),
        (
            {"attributes": {"colour": {"kind": "quintile", "n": 30, "thresholds": [4, 3, 2, 1]}}},
            "should rise",
        ),
        ({"attributes": {"colour": {"kind": "quintile", "n": 30, "thresholds": [1, 2]}}}, "thresholds"),
        (
            {
                "attributes": {
                    "colour": {"kind": "isotonic", "n": 30, "scores": [1, 2], "probabilities": [0.5]}
                }
            },
            "as many probabilities as scores",
        ),
    ],
)
def test_broken_files_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    raw = quintiles([float(s) for s in range(30)]).to_json() | change
    path = tmp_path / "c.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as caught:
        Calibrator.load(path)
    assert str(caught.value).startswith(f"calibrator {path}: ")
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Calibrator.load(tmp_path / "none.json")
    for content in (b"{", b"\xff\xfe\x00"):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(InputError, match="not a JSON file"):
            Calibrator.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(InputError, match="not a calibrator"):
        Calibrator.load(tmp_path / "c.json")


def test_check_against_a_run() -> None:
    calibrator = quintiles([float(s) for s in range(30)])
    calibrator.check(COLOURS, "weighted")
    with pytest.raises(InputError, match="fitted on weighted votes, and this run votes by majority"):
        calibrator.check(COLOURS, "majority")
    other = Taxonomy.model_validate(
        {"name": "o", "attributes": [{"name": "size", "tags": [{"name": "Big"}]}]}
    )
    with pytest.raises(InputError, match="colours, which has no attribute 'size'"):
        calibrator.check(other, "weighted")


def changed(**changes: object) -> Taxonomy:
    colour = {"name": "colour", "tags": [{"name": "Red"}, {"name": "Blue"}]}
    shade = {"name": "shade", "tags": [{"name": "Light"}, {"name": "Dark"}]}
    return Taxonomy.model_validate({"name": "colours", "attributes": [colour | changes, shade]})


def test_a_calibrator_of_other_tags_is_refused_and_other_descriptions_are_not() -> None:
    calibrator = quintiles([float(s) for s in range(30)])
    calibrator.check(changed(description="What colour it is."), "weighted")
    calibrator.check(COLOURS.model_copy(update={"name": "renamed"}), "weighted")
    other = changed(tags=[{"name": "Red"}, {"name": "Green"}])
    with pytest.raises(InputError, match="their attributes or tags differ"):
        calibrator.check(other, "weighted")


def test_a_calibrator_without_a_tags_hash_is_held_to_the_name_and_keeps_its_id() -> None:
    raw = {k: v for k, v in quintiles([float(s) for s in range(30)]).to_json().items() if k != "tags_hash"}
    old = Calibrator.from_json(raw)
    assert "tags_hash" not in old.to_json()
    content = {k: v for k, v in raw.items() if k not in ("format", "version", "id")}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    assert old.id == hashlib.sha256(canonical.encode()).hexdigest()[:12]
    old.check(changed(description="What colour it is."), "weighted")
    with pytest.raises(InputError, match="their attributes or tags differ"):
        old.check(changed(description="x").model_copy(update={"name": "paints"}), "weighted")


def gold_run(n: int = 24) -> TraceStore:
    """A finished run of `n` users who all have a Cat in a Flat."""
    p = Profiler(backend=ScriptedBackend(lambda i: answer()), taxonomy=PETS, samples=2)
    p.profile_many([{**RECORD, "user_id": f"u{i}", "seen": [f"video {i}"]} for i in range(n)])
    return p.store


def test_gold_is_read_as_tags_are() -> None:
    pytest.importorskip("sklearn")
    store = gold_run()
    gold = {f"u{i}": {"pet": " cat", "home": "n/a", "shoes": "Boots"} for i in range(24)}
    curve = fit_run(store, kind="isotonic", gold=gold).attributes["pet"]
    assert isinstance(curve, Isotonic)
    assert min(curve.probabilities) > 0.5
    with pytest.raises(
        InputError, match=r"gold of user 'u3': 'Horse' is not a tag of 'pet': expected one of Cat, Dog"
    ):
        fit_run(store, kind="isotonic", gold=gold | {"u3": {"pet": "Horse"}})
    with pytest.raises(InputError, match="none of the 1 gold users is in run scripted-"):
        fit_run(store, kind="isotonic", gold={"someone": {"pet": "Cat"}})
    with pytest.raises(InputError, match="quintile calibrator needs no gold"):
        fit_run(store, gold=gold)


def test_replay_keeps_the_calibrator_of_the_run() -> None:
    store = gold_run()
    run = store.run()["run_id"]

    def label(**changes: Any) -> str:
        [found] = {profile.calibrator for profile in replay(store, **changes)}
        return found

    own = quintiles_of_pets()
    store.put_calibrator(own.id, own.kind, own.to_json(), None)
    fitted = label()
    assert fitted == f"quintile:{store.run()['calibrator_id']}" != own.label
    store.finish_run(run, own.id)
    assert label() == own.label
    assert label(calibrator="fit") == fitted
    assert label(calibrator=None) == "uncalibrated"
    assert label(vote="majority") not in (own.label, fitted, "uncalibrated")
    store.finish_run(run, None)
    assert label() == "uncalibrated"
    with store.transaction() as conn:
        conn.execute("update runs set finished_at = null")
    assert label() == fitted


def quintiles_of_pets() -> Calibrator:
    return Calibrator.fit({"pet": [float(s) for s in range(30)]}, samples=2, taxonomy=PETS)


def test_show_refuses_a_word_that_names_no_calibrator(tmp_path: Path) -> None:
    TraceStore(tmp_path / "t.db").close()
    with pytest.raises(InputError, match="'fit' names no one calibrator to show"):
        calibrating.show("fit", tmp_path / "t.db")


def test_fit_refuses_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match="no attribute 'size'"):
        Calibrator.fit({"size": [1.0]}, samples=10, taxonomy=COLOURS)
    with pytest.raises(InputError, match="needs gold or reviewed rows"):
        Calibrator.fit({"colour": [1.0] * 30}, samples=10, taxonomy=COLOURS, kind="platt")
    with pytest.raises(ValueError, match="30 scores and 2 verdicts"):
        fitted("platt", [1.0] * 30, [True, False])


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_probabilities_approach_the_truth(kind: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 50, 4000)
    truth = 1 / (1 + np.exp(-(scores - 25) / 6))
    calibrator = fitted(kind, scores.tolist(), (rng.random(4000) < truth).tolist())
    grid = np.array([5.0, 15, 25, 35, 45])
    expected = 1 / (1 + np.exp(-(grid - 25) / 6))
    assert calibrator.probability("colour", grid, 10) == pytest.approx(expected, abs=0.08)
    assert calibrator.probability("colour", 2 * grid, 20) == pytest.approx(expected, abs=0.08)  # twice the M
    assert calibrator.transform("colour", [5.0, 45.0], 10).tolist() == [1, 5]


def test_isotonic_by_hand() -> None:
    # right shares 0 at S=10, .6 at 20, .4 at 30 (pooled with 20 to .5), 1 at 40
    scores = [10.0] * 5 + [20.0] * 5 + [30.0] * 5 + [40.0] * 5
    right = [False] * 5 + [True] * 3 + [False] * 2 + [True] * 2 + [False] * 3 + [True] * 5
    calibrator = fitted("isotonic", scores, right)
    got = calibrator.probability("colour", [0, 10, 20, 25, 30, 35, 40, 50], 10)
    assert got == pytest.approx([0, 0, 0.5, 0.5, 0.5, 0.75, 1, 1])
    assert calibrator.transform("colour", [0, 25, 35, 40], 10).tolist() == [1, 3, 4, 5]


def test_platt_is_flat_where_the_data_would_have_it_fall() -> None:
    scores = [float(s) for s in range(40)]
    calibrator = fitted("platt", scores, [s < 20 for s in scores])
    probability = calibrator.probability("colour", [0.0, 39.0], 10)
    assert probability == pytest.approx([0.5, 0.5])


def test_platt_where_every_row_is_right_stays_below_certainty() -> None:
    probability = fitted("platt", [float(s) for s in range(30)], [True] * 30).probability(
        "colour", [0, 29], 10
    )
    assert probability == pytest.approx([31 / 32, 31 / 32], abs=1e-3)


@pytest.mark.parametrize(
    ("probability", "level"), [(0, 1), (0.2, 1), (0.2001, 2), (0.6, 3), (0.8, 4), (0.81, 5), (1, 5)]
)
def test_levels_of_probabilities(probability: float, level: int) -> None:
    assert probability_levels(np.array(probability)) == level


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_without_scikit_learn(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [float(s) for s in range(30)], [s > 10 for s in range(30)]
    stored = fitted(kind, *rows).to_json()
    for module in ("sklearn", "sklearn.isotonic", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cp-agents\[calibration\]'"):
        fitted(kind, *rows)
    assert Calibrator.from_json(stored).transform("colour", 29.0, 10) == 5  # using one needs no extra


def test_importing_does_not_load_scikit_learn() -> None:
    code = "import sys, cp_agents.calibration; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
