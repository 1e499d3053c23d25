"""The paper's tables and figures from stored samples: the numbers, the paper's beside them, and no model call."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cp_agents import Profiler, TraceStore, relabel
from cp_agents.bench.draw import text
from cp_agents.bench.figures import Bars, Figure, Panel
from cp_agents.bench.paper import paper
from cp_agents.bench.stored import (
    StoredRun,
    common_gold,
    load_run,
    outcomes,
    profile_traces,
    sample_outcomes,
)
from cp_agents.bench.table_votes import table_votes
from cp_agents.bench.tables import load_source
from cp_agents.cli.app import app
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.evaluation.loading import load_gold
from cp_agents.evaluation.metrics import average_metrics, evaluate, harmonic_mean, threshold_metrics
from cp_agents.evaluation.outcomes import Outcomes, read_outcomes
from cp_agents.evaluation.profile_sums import (
    AVERAGES,
    LevelMetrics,
    ProfileMetrics,
    level_parts,
    parts,
    users_of,
)
from cp_agents.evaluation.statistics import differences, intervals
from cp_agents.evaluation.sums import Draws
from cp_agents.schema import CONFIDENCE_LEVELS
from cp_agents.taxonomy import load_taxonomy
from cp_agents.voting import METHODS
from cp_agents.wire import WireAnswer, write_answer
from tests.support import PETS

CUES = ["my cat sleeps all day", "the flat is small"]
PETS_YAML = """
name: pets
attributes:
  - {name: pet, tags: [Cat, Dog, Fish]}
  - {name: home, tags: [Flat, House]}
"""
# Three samples of each user on `pet`; on `home` all say Flat with 4.
SAID = {
    "u1": [("Cat", 2), ("Cat", 2), ("Dog", 5)],
    "u2": [("Dog", 5), ("Dog", 4), ("NA", 1)],
    "u3": [("NA", 1), ("NA", 1), ("Fish", 4)],
    "u4": [("Dog", 3), ("Dog", 3), ("Dog", 3)],
    "u5": [("Cat", 4), ("Cat", 4), ("Cat", 4)],
}
GOLD = {
    "u1": {"pet": "Cat", "home": "Flat"},
    "u2": {"pet": "Dog", "home": "Flat"},
    "u3": {"pet": "Fish", "home": "House"},
    "u4": {"pet": "Cat", "home": "House"},
    "u5": {"pet": "NA"},
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Options that name the hand-made recording."""
    recorded = []
    for user, answers in SAID.items():
        texts = [
            write_answer(
                [WireAnswer("pet", tag, score, CUES[0]), WireAnswer("home", "Flat", 4, CUES[1])],
            )
            for tag, score in answers
        ]
        samples = [{"text": text, "finish_reason": "stop"} for text in texts]
        recorded.append({"user_id": user, "samples": samples})
    (tmp_path / "pets.yaml").write_text(PETS_YAML)
    return [
        "--traces",
        write_rows(tmp_path / "traces.jsonl", recorded),
        "--users",
        write_rows(tmp_path / "users.jsonl", [{"user_id": u, "posted": CUES} for u in SAID]),
        "--gold",
        write_rows(tmp_path / "gold.jsonl", [{"user_id": u, "truth": t} for u, t in GOLD.items()]),
        "--taxonomy",
        str(tmp_path / "pets.yaml"),
    ]


@pytest.fixture
def tiny_store(tiny: list[str], tmp_path: Path) -> list[str]:
    """The same, in a store."""
    store = tmp_path / "t.db"
    with TraceStore(store) as opened:
        profile_traces(Path(tiny[1]), Path(tiny[3]), opened, tiny[7])
    return ["--store", str(store), *tiny[4:6]]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments], terminal_width=300)
    if isinstance(result.exception, CpAgentsError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def numbers(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """A command's JSON and what it printed."""
    out = tmp_path / "numbers.json"
    printed = run(*arguments, "--draws", "50", "--json", str(out))
    return json.loads(out.read_text()), printed


def cell(found: dict[str, Any], grid: int, row: str, column: str) -> Any:
    table = found["grids"][grid]
    [at] = [i for i, name in enumerate(table["columns"]) if name.startswith(column)]
    [line] = [r for r in table["rows"] if r["label"] == row]
    return line["cells"][at]


def value(found: dict[str, Any], grid: int, row: str, column: str) -> float:
    number = cell(found, grid, row, column)
    return float(number["value"])


# -- the sums behind the tables ---------------------------------------------------------------------------


def random_outcomes(rng: np.random.Generator, n: int = 60) -> dict[str, Outcomes]:
    found = {}
    for attribute, skip in zip(PETS.attributes, (0, 7), strict=True):
        size = len(attribute.names)
        users = tuple(f"u{i}" for i in range(skip, n))
        truth, voted = rng.integers(0, size, n - skip), rng.integers(0, size, n - skip)
        reach = rng.integers(0, 6, n - skip).astype(float)
        found[attribute.name] = Outcomes(attribute, users, truth, voted, reach, np.ones(n - skip, bool))
    return found


def slow_metrics(found: Any) -> dict[str, float | None]:
    row = average_metrics(2, [threshold_metrics(o, 2) for o in found.values()])
    return row.model_dump(include=set(AVERAGES))


@pytest.mark.parametrize("seed", [0, 5])
def test_sums_give_the_intervals_and_tests_of_statistics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = random_outcomes(rng)
    b = {
        name: o._replace(voted=rng.permutation(o.voted), reach=rng.permutation(o.reach))
        for name, o in a.items()
    }
    drawn, metrics = Draws(60, draws=80, seed=seed), ProfileMetrics(a)
    fast = drawn.intervals(metrics, parts(a, 2))
    slow = intervals(slow_metrics, a, draws=80, seed=seed)
    for key in AVERAGES:
        assert fast[f"average.{key}"] == pytest.approx(slow[key], abs=1e-9)
    fast_gaps = drawn.differences(metrics, parts(a, 2), parts(b, 2))
    slow_gaps = differences(slow_metrics, a, b, draws=80, seed=seed)
    for key in AVERAGES:
        assert fast_gaps[f"average.{key}"] == pytest.approx(slow_gaps[key], abs=1e-9)


def test_a_silent_attribute_is_no_number_and_not_a_nought() -> None:
    quiet = {
        n: o._replace(reach=np.zeros(len(o.users)))
        for n, o in random_outcomes(np.random.default_rng(1)).items()
    }
    found = Draws(60, draws=20).intervals(ProfileMetrics(quiet), parts(quiet, 1))
    assert math.isnan(found["pet.selective_accuracy"].value)
    assert found["pet.coverage"].value == 0.0
    assert found["pet.paper_f1"].value == 0.0


def test_level_numbers_are_those_of_a_slow_count() -> None:
    found = random_outcomes(np.random.default_rng(3))
    fast = LevelMetrics(found)(level_parts(found).sum(axis=0, keepdims=True))
    for name, o in found.items():
        rows = o.labelled & (o.voted != o.na) & (o.reach >= 1)
        level, right = o.reach[rows], (o.voted == o.truth)[rows]
        pairs = [(g > b) + (g == b) / 2 for g in level[right] for b in level[~right]]
        assert fast[f"{name}.auroc"][0] == pytest.approx(np.mean(pairs))
        shares = np.array([(level == i).mean() for i in CONFIDENCE_LEVELS])
        entropy = -sum(s * math.log(s) for s in shares if s) / math.log(5)
        assert fast[f"{name}.evenness"][0] == pytest.approx(entropy)
        assert fast[f"{name}.largest"][0] == shares.max()
        gaps = [abs((right[level == i] - i / 5).sum()) for i in CONFIDENCE_LEVELS]
        assert fast[f"{name}.ece"][0] == pytest.approx(sum(gaps) / len(level))
        assert fast[f"{name}.right_at_3"][0] == pytest.approx(right[level == 3].mean())


def test_a_subset_like_all_users_is_not_told_apart_and_a_better_one_is() -> None:
    rng = np.random.default_rng(4)
    found = random_outcomes(rng, 200)
    metrics, added = ProfileMetrics(found), parts(found, 1)
    drawn = Draws(200, draws=300)
    by_chance = drawn.subset(metrics, added, rng.random(200) < 0.5)["average.true_recall"]
    right = (found["pet"].voted == found["pet"].truth) & (found["pet"].reach >= 1)
    better = drawn.subset(metrics, added, right)["pet.true_recall"]
    assert by_chance.low < 0 < by_chance.high
    assert by_chance.p > 0.01
    assert better.low > 0
    assert better.p < 0.01


# -- the paper's own numbers ------------------------------------------------------------------------------


def test_our_formulas_give_the_papers_own_cells() -> None:
    known = paper()
    cells = 0
    for stage in known["table_7"].values():
        for name, at in stage.items():
            for p, r, f1 in zip(at["precision"], at["recall"], at["f1"], strict=True):
                if name != "average":
                    assert harmonic_mean(p, r) == pytest.approx(f1, abs=0.0101)
                    cells += 1
        for i in range(5):  # its average column: means, the F1 included
            for key in ("precision", "recall", "f1"):
                mean = sum(stage[name][key][i] for name in stage if name != "average") / 6
                assert mean == pytest.approx(stage["average"][key][i], abs=0.0101)
    assert cells == 60
    for side in known["table_4"].values():  # and here the F1 of the means
        for at in side.values():
            assert harmonic_mean(at["precision"], at["recall"]) == pytest.approx(at["f1"], abs=0.0101)
    frozen, rl = known["table_5"]["frozen"], known["table_7"]["sft_rl"]["average"]
    assert (frozen["precision"], frozen["recall"]) == (rl["precision"], rl["recall"])


# -- a hand-made run --------------------------------------------------------------------------------------


def test_table_2_of_a_run_counted_by_hand(tiny: list[str], tmp_path: Path) -> None:
    found, printed = numbers(tmp_path, "table", "2", *tiny)
    pet_majority, home = harmonic_mean(2 / 3, 3 / 4), harmonic_mean(1 / 2, 1)
    assert pet_majority is not None
    assert home is not None
    assert value(found, 0, "majority", "selective") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert value(found, 0, "majority", "coverage") == pytest.approx((3 / 4 + 1) / 2)
    assert value(found, 0, "majority", "mean of F1s") == pytest.approx((pet_majority + home) / 2)
    assert value(found, 0, "majority", "F1 of means") == pytest.approx(harmonic_mean(7 / 12, 7 / 8))
    # pet: Cat 2/3, Dog 2/3, Fish 0; home: Flat 2/3, House 0
    assert value(found, 0, "majority", "macro_f1") == pytest.approx((4 / 9 + 1 / 3) / 2)
    assert value(found, 0, "weighted", "selective") == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert value(found, 0, "weighted", "coverage") == 1.0
    assert value(found, 0, "single samples", "selective") == pytest.approx(((2 + 2 + 1) / 9 + 1 / 2) / 2)
    assert value(found, 0, "single samples", "coverage") == pytest.approx((3 / 4 + 1) / 2)
    gap = cell(found, 1, "weighted - majority", "selective")
    assert gap["value"] == pytest.approx(1 / 2 - 7 / 12)
    assert 0 < gap["p"] <= 1
    assert value(found, 0, "paper: Confidence-Voted", "coverage") == 0.8069
    assert found["users"] == 5
    assert "DeepSeek-R1" in printed
    assert "0.807" in printed


def test_tables_4_5_and_7_of_a_run_counted_by_hand(tiny: list[str], tmp_path: Path) -> None:
    four, _ = numbers(tmp_path, "table", "4", *tiny)
    # pet, weighted: S / 3 of 5, 9, 4, 9 are levels 2, 3, 1, 3; too few users to calibrate
    entropy = (2 * 0.25 * math.log(4) + 0.5 * math.log(2)) / math.log(5)
    for side in ("uncalibrated", "calibrated"):
        assert value(four, 0, f"pet, {side}", "evenness") == pytest.approx(entropy)
        assert value(four, 0, f"pet, {side}", "largest") == 0.5
        # right at levels 3 and 1, wrong at 2 and 3: of four pairs one is above, one equal
        assert value(four, 0, f"pet, {side}", "auroc") == pytest.approx(1.5 / 4)
    five, _ = numbers(tmp_path, "table", "5", *tiny)
    # at tau 3 seven of twelve samples on pets are left, three of them right; all on homes
    assert value(five, 0, "self, tau 3", "selective") == pytest.approx((3 / 7 + 1 / 2) / 2)
    assert value(five, 0, "self, tau 3", "coverage") == pytest.approx((7 / 12 + 1) / 2)
    assert value(five, 0, "frozen, tau 3", "coverage") == pytest.approx((2 / 4 + 1) / 2)
    assert value(five, 0, "paper: self, tau 5", "coverage") == 0.919
    seven, _ = numbers(tmp_path, "table", "7", *tiny)
    assert value(seven, 0, "pet, tau 3", "P") == 0.5
    assert value(seven, 0, "pet, tau 1", "R") == 1.0
    assert cell(seven, 0, "home, tau 5", "P")["value"] is None
    assert cell(seven, 0, "pet, tau 1", "paper, SFT: P") is None  # the paper knows no pets


def test_table_3_keeps_what_the_shapes_keep(tiny: list[str], tmp_path: Path) -> None:
    found, _ = numbers(tmp_path, "table", "3", *tiny, "--keep", "2")
    assert cell(found, 0, "original", "kept") == 2
    by_level = [cell(found, 0, "lambda", f"level {i}") for i in CONFIDENCE_LEVELS]
    assert sum(by_level) == 2
    # users' levels, the mean of pet and home: 3, 4 (3.5), 3 (2.5), 4, 4
    assert by_level == [0, 0, 1, 1, 0]
    assert value(found, 0, "lambda", "mean level") == 3.5


def test_figure_5_as_text_csv_and_svg(tiny: list[str], tmp_path: Path) -> None:
    found, printed = numbers(tmp_path, "figure", "5", *tiny, "--out", str(tmp_path / "f.svg"))
    assert "pet: selective accuracy against coverage" in printed
    root = ElementTree.fromstring((tmp_path / "f.svg").read_text())
    polylines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(polylines) == 1 + 2 + 2  # ours thrice, and the paper's two beside the average
    run("figure", "5", *tiny, "--draws", "5", "--out", str(tmp_path / "f.csv"))
    with (tmp_path / "f.csv").open() as file:
        rows = list(csv.DictReader(file))
    ours = [r for r in rows if r["panel"] == "pet" and r["curve"] == "ours"]
    assert [r["tau"] for r in ours] == ["1", "2", "3", "4", "5"]
    assert float(ours[2]["selective_accuracy"]) == 0.5
    assert float(ours[0]["coverage"]) == 1.0
    assert ours[4]["selective_accuracy"] == ""
    assert [p["title"] for p in found["panels"]] == ["average", "pet", "home"]


def test_figures_3_and_9_need_no_gold_and_show_other_attributes_too(tiny: list[str], tmp_path: Path) -> None:
    without = [w for i, w in enumerate(tiny) if "--gold" not in (w, tiny[i - 1])]
    found, printed = numbers(tmp_path, "figure", "3", *without, "--out", str(tmp_path / "f.svg"))
    ElementTree.fromstring((tmp_path / "f.svg").read_text())
    assert [p["title"] for p in found["panels"]] == ["pet", "home"]
    before = next(b for b in found["panels"][0]["bars"] if b["name"] == "S / M")
    # 5/3, 3, 4/3, 3 and, of the user without gold, 4
    assert [round(5 * s) for s in before["shares"]] == [0, 0, 1, 1, 0, 2, 0, 1, 0, 0]
    assert [value(found, 0, "pet, uncalibrated", f"level {i}") for i in CONFIDENCE_LEVELS] == [
        0.2,
        0.2,
        0.4,
        0.2,
        0.0,
    ]
    assert len(found["grids"]) == 1
    assert "share of right" not in printed


def test_histograms_beside_each_other_fit_a_terminal() -> None:
    bars = [
        Bars(name=name, labels=["4.5-5"] if name == "S / M" else ["5"], shares=[share])
        for name, share in (("S / M", 1.0), ("level, uncalibrated", 1.0), ("level, calibrated", 0.5))
    ]
    lines = text(
        Figure(name="f", run="r", users=1, panels=[Panel(title="pet", bars=bars)], grids=[], notes=[])
    )
    assert max(map(len, lines.splitlines())) <= 80
    assert lines.splitlines()[-1].count("█") == 14 + 14 + 7


def test_students_stand_beside_the_run(tiny: list[str], tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    args = ["--store", str(store)]
    run("table", "2", *tiny, *args, "--draws", "5")
    with TraceStore(store) as traces:
        teacher = traces.run()["run_id"]
        recording = f"replay:{tiny[1]}"
        users = [{"user_id": u, "posted": CUES} for u in SAID]
        for name, vote in (("first", "majority"), ("second", "weighted")):
            profiler = Profiler(
                recording, traces, samples=3, taxonomy=tiny[-1], vote=vote, run=name, seed=len(name)
            )
            profiler.profile_many(users)
    gold = ["--gold", tiny[5]]
    students = ["--student", "with=first", "--student", "without=second"]
    found, printed = numbers(tmp_path, "table", "4", *gold, *args, "--run", teacher, *students)
    assert value(found, 1, "student with", "coverage") == pytest.approx((3 / 4 + 1) / 2)
    gap = cell(found, 2, "tau 1, student with - without", "coverage")
    assert gap["value"] == pytest.approx(-1 / 8)
    two, _ = numbers(tmp_path, "table", "2", *gold, *args, "--run", teacher, *students)
    assert value(two, 1, "student without - student with", "coverage") == pytest.approx(1 / 8)
    assert "students named" in printed
    for bad in ("with", "with=", "=first"):
        with pytest.raises(InputError, match="expected NAME=RUN"):
            run("table", "4", *gold, *args, "--student", bad)
    with pytest.raises(CpAgentsError, match="no run 'nobody'"):
        run("table", "4", *gold, *args, "--student", "with=nobody")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["table", "1"], "what `bench run` prints"),
        (["table", "6"], "no table 6 here"),
        (["figure", "4"], "no figure 4 here"),
        (["figure", "5", "--out", "f.png"], "written as .svg or .csv"),
        (["table", "2", "--run", "x"], "give one of them"),
        (["table", "3", "--rule", "mode"], "unknown rule 'mode'"),
        (["table", "3", "--keep", "99"], "between 1 and 5 users"),
        (["table", "2", "--truth-field", "right"], 'no object "right"'),
        (["figure", "9", "--student", "a=b"], "takes no --student"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    tiny: list[str], arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        run(*arguments, *tiny)


def test_users_that_nobody_recorded_are_no_table(tiny: list[str], tmp_path: Path) -> None:
    others = write_rows(tmp_path / "others.jsonl", [{"user_id": "x", "posted": ["a"]}])
    with pytest.raises(InputError, match="no user in common"):
        run("table", "2", *tiny[:2], "--users", others, *tiny[4:])
    gold = write_rows(tmp_path / "g.jsonl", [{"user_id": "x", "truth": {"pet": "Cat"}}])
    with pytest.raises(InputError, match="no user in common"):
        run("table", "2", *tiny, "--gold", gold)
    with pytest.raises(InputError, match="go together"):
        run("table", "2", *tiny[:2], *tiny[4:])


def test_the_benchmark_knows_no_trainer_and_no_torch() -> None:
    code = (
        "import sys, cp_agents.bench.simulate, cp_agents.bench.draw, cp_agents.bench.table_shapes, "
        "cp_agents.bench.table_votes, cp_agents.bench.table_calibration, cp_agents.bench.table_confidence;"
        "print([m for m in sys.modules if m in ('torch', 'matplotlib') or m.startswith('cp_agents.trainers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("socket_disabled")
@pytest.mark.parametrize(
    "words", ["table 2", "table 3", "table 4", "table 5", "table 7", "figure 3", "figure 5"]
)
def test_a_stored_run_needs_no_socket_of_any_kind(words: str, tiny_store: list[str]) -> None:
    assert "paper" in run(*words.split(), *tiny_store, "--draws", "5")


# -- published recordings ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["atus", "synthpai"])
def recorded(request: pytest.FixtureRequest, shared_data: Path) -> tuple[TraceStore, StoredRun, Path]:
    store = TraceStore(":memory:")
    traces, users = (shared_data / folder / name for folder, name in _places(request.param))
    profile_traces(traces, users, store)
    return store, load_run(store), shared_data / request.param / "gold.jsonl"


def _places(name: str) -> list[tuple[str, str]]:
    return [("recorded_teacher", f"{name}.jsonl"), (name, "users.jsonl")]


def test_votes_of_a_store_are_those_of_replay(recorded: tuple[TraceStore, StoredRun, Path]) -> None:
    store, stored, gold_file = recorded
    gold = common_gold(load_gold(gold_file), [stored])
    for method in METHODS:
        votes = stored.votes(method)
        found = outcomes(stored, gold, votes, stored.levels(votes))
        lines = [p.to_json() for p in relabel.replay(store, vote=method)]
        whole = evaluate(lines, gold, stored.taxonomy)
        metrics = ProfileMetrics(found)
        for row in whole.average:
            fast = metrics(parts(found, row.tau).sum(axis=0, keepdims=True))
            for key in AVERAGES:
                slow = getattr(row, key)
                assert fast[f"average.{key}"][0] == pytest.approx(
                    math.nan if slow is None else slow, nan_ok=True
                )
        theirs = read_outcomes({line["user_id"]: line["profile"] for line in lines}, gold, stored.taxonomy)
        for name, o in found.items():
            for tau in CONFIDENCE_LEVELS:
                assert np.array_equal(o.at(tau), theirs[name].at(tau))


def test_tables_of_a_recorded_teacher_are_sane(recorded: tuple[TraceStore, StoredRun, Path]) -> None:
    store, stored, gold_file = recorded
    source = load_source(store, None, load_gold(gold_file), draws=200)
    found = table_votes(source)
    rows = {row.label: row.cells for row in found.grids[0].rows}
    for label, cells in rows.items():
        for number in cells:
            if number is None:
                assert label.startswith("paper")
                continue
            assert not isinstance(number, str | int)
            assert number.value is not None
            assert 0 <= number.value <= 1
            if number.low is not None and number.high is not None:
                assert 0 <= number.low <= number.high <= 1
    weighted, majority = rows["weighted"][1], rows["majority"][1]
    assert not isinstance(weighted, str | int | None)
    assert not isinstance(majority, str | int | None)
    # NA is stated with little confidence, so that the weighted vote answers more
    assert weighted.value > majority.value  # type: ignore[operator]
    each = sample_outcomes(stored, source.gold)
    assert len(each) == stored.settings.samples == 10
    assert users_of(each[0]) == users_of(source.voted())


@pytest.mark.parametrize("number", ["table 2", "table 3", "table 4", "table 5", "table 7"])
def test_every_table_comes_from_published_traces(number: str, shared_data: Path, tmp_path: Path) -> None:
    (traces, users), gold = (
        [shared_data / folder / name for folder, name in _places("synthpai")],
        shared_data / "synthpai" / "gold.jsonl",
    )
    words = ["--gold", str(gold), "--traces", str(traces), "--users", str(users)]
    found, printed = numbers(tmp_path, *number.split(), *words)
    assert found["name"] == number
    assert found["users"] == 30
    assert "'inferable'" in printed  # the fairer truth, and it says so
    assert "paper" in printed


def test_a_run_of_the_lexicon(shared_data: Path, tmp_path: Path) -> None:
    store = tmp_path / "t.db"
    lines = (shared_data / "atus" / "users.jsonl").read_text(encoding="utf-8").splitlines()[:80]
    with TraceStore(store) as traces:
        Profiler("lexicon", traces, samples=10).profile_many([json.loads(line) for line in lines])
    gold = ["--gold", str(shared_data / "atus" / "gold.jsonl"), "--store", str(store)]
    found, _ = numbers(tmp_path, "table", "7", *gold)
    for name in load_taxonomy("profilebench").names:
        coverage = [value(found, 0, f"{name}, tau {tau}", "R") for tau in CONFIDENCE_LEVELS]
        assert coverage == sorted(coverage, reverse=True)
    levels, _ = numbers(tmp_path, "table", "4", *gold)
    gap = cell(levels, 0, "average, calibrated - uncalibrated", "evenness")
    assert gap["low"] > 0
