"""`bench run` and `bench report`: baselines, what is asked for twice, and whose numbers may stand side by side."""

from __future__ import annotations

import json
import random
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cp_agents.bench.baselines import constant_profiles, sample_profiles, voted_profiles
from cp_agents.bench.dataset import open_dataset
from cp_agents.bench.evaluated import read_evaluated
from cp_agents.bench.leaderboard import leaderboards, load_results
from cp_agents.bench.render import markdown_table, print_grid, terminal_cell
from cp_agents.bench.results import BenchResults, DatasetResult, Estimate, Grid, Row
from cp_agents.bench.run import BenchRun, run_bench, titles
from cp_agents.bench.settings import BenchSettings
from cp_agents.bench.splits import split_of
from cp_agents.bench.table1 import METRICS, averages_grid, metric_grid, paper_grid
from cp_agents.errors import InputError, MissingExtraError
from cp_agents.evaluation.metrics import evaluate
from cp_agents.relabel import replay
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy
from cp_agents.wire import WireAnswer, write_answer
from tests.loopback import LoopbackConfig, running_server
from tests.test_cli import run

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

PROFILEBENCH = load_taxonomy("profilebench")
CHEAP = ("constant", "one_sample", "majority")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_dataset(folder: Path, n: int = 36, seed: int = 0) -> Path:
    """Users who say their gender and whose items tell their stage of life; the industry is NA of all."""
    folder.mkdir(parents=True)
    users, gold = [], []
    rng = random.Random(seed)
    for i in range(n):
        parent = rng.random() < 0.5
        items = (
            ["newborn sleep schedule", "baby stroller review"]
            if parent
            else ["exam revision", "dormitory tour"]
        )
        gender = rng.choice(["Male", "Female"])
        items.append(f"street number {1000 * seed + i}")  # equal records would share their samples
        users.append({"user_id": f"u{i}", "watched": items, "self_reported": {"gender": gender}})
        stage = "Parenting (Child 0-2)" if parent else "Single"
        truth = {"gender": gender, "life_stage": stage, "industry": "NA", "age": "NA" if i % 3 else "24-30"}
        gold.append({"user_id": f"u{i}", "truth": truth})
    write_rows(folder / "users.jsonl", users)
    write_rows(folder / "gold.jsonl", gold)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchRun]:
    """A run over one data set, and its folder."""
    folder = tmp_path_factory.mktemp("first")
    make_dataset(folder / "pets")
    found = run_bench([folder / "pets"], folder / "out", BenchSettings(samples=3, draws=100))
    (folder / "out" / "results.json").write_text(found.results.model_dump_json(exclude_none=True))
    return folder, found


def only(found: BenchRun | BenchResults) -> DatasetResult:
    results = found.results if isinstance(found, BenchRun) else found
    [dataset] = results.datasets
    return dataset


# -- the run ------------------------------------------------------------------------------------------------


def test_every_method_has_a_number_with_its_interval_on_every_attribute(first: tuple[Path, BenchRun]) -> None:
    dataset = only(first[1])
    kinds = [method.kind for method in dataset.methods]
    assert kinds == ["constant", "trained", "trained", "one_sample", "majority", "backend"]
    assert dataset.labelled == {"gender": 36, "age": 12, "industry": 0, "life_stage": 36}
    for method in dataset.methods:
        assert list(method.numbers) == ["gender", "age", "industry", "life_stage", "average"]
        macro = method.numbers["gender"]["macro_f1"]
        assert 0 <= (macro.low or 0) <= (macro.value or -1) + 1e-9
        assert (macro.value or 0) <= (macro.high or -1) + 1e-9 <= 1 + 1e-9
        assert method.numbers["industry"]["macro_f1"].value is None  # nobody is labelled
        assert (method.difference is None) == (method.name == dataset.reference)


def test_the_backend_s_numbers_are_those_of_evaluate(first: tuple[Path, BenchRun]) -> None:
    folder, found = first
    method = only(found).methods[-1]
    with TraceStore(folder / "out" / "bench.db") as store:
        lines = [profile.to_json() for _, profile in store.profiles(str(method.run))]
    gold = {
        row["user_id"]: row["truth"]
        for row in map(json.loads, (folder / "pets" / "gold.jsonl").read_text().splitlines())
    }
    expected = evaluate(lines, gold, PROFILEBENCH)
    for name, metrics in expected.attributes.items():
        for metric in METRICS:
            value, wanted = method.numbers[name][metric].value, getattr(metrics.at_tau[0], metric)
            assert value == pytest.approx(wanted) if wanted is not None else value is None
    for metric in ("macro_f1", "paper_f1_mean", "paper_f1_of_means", "coverage"):
        assert method.numbers["average"][metric].value == pytest.approx(getattr(expected.average[0], metric))


def test_one_sample_and_majority_come_from_the_store(first: tuple[Path, BenchRun]) -> None:
    folder, found = first
    run_id = str(only(found).methods[-1].run)
    with TraceStore(folder / "out" / "bench.db") as store:
        stored = store.rows(
            "select r.user_id, p.attribute, p.tag, p.confidence from records r join samples s using (record_id)"
            " join predictions p using (sample_id) where r.run_id = ? and s.sample_index = 0 and p.outcome = 'ok'",
            (run_id,),
        )
        single = sample_profiles(store, run_id)
        majority = voted_profiles(store, run_id, "majority")
        replayed = {p.user_id: p for p in replay(store, run_id, vote="majority")}
    assert len(stored) == 36 * 6
    for user, attribute, tag, confidence in stored:
        assert (single[user][attribute]["tag"], single[user][attribute]["confidence"]) == (tag, confidence)
    assert {u: {a: v["voted"] for a, v in p.items()} for u, p in majority.items()} == {
        u: {a: p[a].voted for a in p} for u, p in replayed.items()
    }


def test_a_second_call_asks_for_nothing_and_finds_the_same(first: tuple[Path, BenchRun]) -> None:
    folder, found = first
    again = run_bench([folder / "pets"], folder / "out", BenchSettings(samples=3, draws=100))
    assert found.asked == 36 * 3
    assert again.asked == 0
    assert again.results == found.results


def test_an_endpoint_is_asked_for_each_sample_once(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", 3)
    make_dataset(tmp_path / "b", 2, seed=1)
    with running_server(LoopbackConfig(honour_n=False)) as server:
        given = BenchSettings(
            ("openai:loopback", "lexicon"), samples=4, baselines=CHEAP, draws=20, base_url=server.url
        )
        one = run_bench([tmp_path / "a"], tmp_path / "out", given)
        asked = len(server.requests)
        both = run_bench([tmp_path / "a", tmp_path / "b"], tmp_path / "out", given)
        later = len(server.requests) - asked
        again = run_bench([tmp_path / "a", tmp_path / "b"], tmp_path / "out", given)
        assert len(server.requests) == asked + later
    assert (one.asked, both.asked, again.asked) == (2 * 12, 2 * 8, 0)
    assert asked >= 12
    assert later >= 8
    assert both.results.datasets[0] == one.results.datasets[0]
    labels = [method.name for method in both.results.datasets[1].methods]
    assert labels == [
        "best constant answer (labels)", "openai:loopback, one sample", "openai:loopback, majority of 4",
        "lexicon, one sample", "lexicon, majority of 4", "openai:loopback, weighted vote of 4",
        "lexicon, weighted vote of 4",
    ]  # fmt: skip
    assert both.results.datasets[1].reference == "openai:loopback, weighted vote of 4"


def test_a_name_in_brackets_is_no_markup(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "[red]名前", 3)
    few = ("--samples", "1", "--draws", "5", "--baseline", "none")
    said = run("bench", "run", str(folder), *few, "--out", str(tmp_path / "o"))
    assert said.code == 0, said.err
    assert "[red]名前: macro_f1 at tau 1, 3 users" in said.out


def test_recorded_answers_are_called_by_their_file(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "a", 3)
    answers = [{"user_id": "u1", "samples": [{"text": answer_text()}, {"text": "no answer"}]}]
    write_rows(tmp_path / "old.jsonl", answers)
    given = BenchSettings((f"replay:{tmp_path}/old.jsonl", "openai:a/b"), samples=2)
    assert list(titles(given.backends).values()) == ["replay:old.jsonl", "openai:a/b"]
    alike = (f"replay:{tmp_path}/old.jsonl", f"replay:{tmp_path}/a/../old.jsonl")
    assert tuple(titles(alike).values()) == alike
    found = run_bench(
        [folder], tmp_path / "out", given._replace(backends=given.backends[:1], baselines=CHEAP, draws=20)
    )
    dataset = only(found)
    assert dataset.reference == "replay:old.jsonl, weighted vote of 2"
    assert dataset.notes == ["replay:old.jsonl: of 6 samples not wholly usable: malformed 1, not_recorded 4"]
    coverage = {method.kind: method.numbers["gender"]["coverage"].value for method in dataset.methods}
    # one usable answer of two is too few for a vote; alone it is an answer
    assert coverage == {"constant": 1.0, "one_sample": pytest.approx(1 / 3), "majority": 0.0, "backend": 0.0}
    assert str(tmp_path) not in found.results.model_dump_json()


def answer_text() -> str:
    """A usable answer in the wire format."""
    return write_answer(
        [WireAnswer(name, "Male" if name == "gender" else "NA", 4, "") for name in PROFILEBENCH.names]
    )


def test_a_dead_endpoint_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", 4)
    with running_server(LoopbackConfig(api_key="other")) as server:
        said = run(
            "bench", "run", str(tmp_path / "a"), "--backend", "openai:m", "--base-url", server.url,
            "--baseline", "none", "--out", str(tmp_path / "out"),
        )  # fmt: skip
    assert said.code == 1
    assert "the same command goes on from there" in said.err
    assert not (tmp_path / "out" / "results.json").exists()


def test_more_samples_or_fewer_users_do_not_touch_what_is_there(first: tuple[Path, BenchRun]) -> None:
    folder, found = first
    given = BenchSettings(samples=2, limit=10, baselines=CHEAP, draws=20)
    small = run_bench([folder / "pets"], folder / "out", given)
    assert only(small).users == 10
    assert only(small).evaluated != only(found).evaluated
    again = run_bench([folder / "pets"], folder / "out", BenchSettings(samples=3, draws=100))
    assert again.results == found.results


def test_a_split_is_evaluated_on_its_own_users_and_learned_from_the_others(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", 60)
    given = BenchSettings(samples=2, split="test", baselines=("constant", "tfidf_lr"), draws=50)
    found = run_bench([tmp_path / "a"], tmp_path / "out", given)
    users = [f"u{i}" for i in range(60) if split_of(f"u{i}") == "test"]
    assert only(found).users == len(users)
    assert only(found).folds == 0
    assert only(found).methods[1].numbers["life_stage"]["macro_f1"].value == 1.0
    assert found.asked == 2 * len(users)


def test_recorded_models_are_rows_and_their_na_is_no_answer(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "a", 8)
    guesses = [
        {"model": "old", "username": f"u{i}", "attr": "sex", "inference": "", "guess": [guess]}
        for i, guess in enumerate(["male", "female", "unknown", "male"])
    ]
    write_rows(folder / "recorded_guesses.jsonl", guesses)
    given = BenchSettings(samples=2, baselines=("recorded",), draws=20)
    found = run_bench([folder], tmp_path / "out", given)
    recorded = only(found).methods[0]
    assert (recorded.name, recorded.kind, recorded.unanswered) == ("old (recorded)", "recorded", 4)
    assert recorded.numbers["gender"]["coverage"].value == pytest.approx(3 / 8)


def test_nothing_is_asked_for_before_all_is_checked(tmp_path: Path) -> None:
    good = make_dataset(tmp_path / "a", 4)
    bad = make_dataset(tmp_path / "b", 4)
    write_rows(bad / "gold.jsonl", [{"user_id": "u1", "truth": {"gender": "Purple"}}])
    with pytest.raises(InputError, match="Purple"):
        run_bench([good, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "svm"], "unknown baseline 'svm'"),
        (["--split", "half"], "unknown split 'half'"),
        (["--tau", "6"], "tau should be between 1 and 5"),
        (["--limit", "0"], "limit should be 1 or more"),
        (["--folds", "1"], "folds should be 2 or more"),
        (["--samples", "0"], "samples should be between"),
        (["--metric", "auc"], "unknown metric 'auc'"),
        (["--truth-field", "label"], 'no object "label"'),
        (["--backend", "nobody"], "unknown backend 'nobody'"),
        (["--backend", "lexicon", "--backend", "lexicon"], "named twice"),
        (["--out", "gold"], "should be a folder"),
    ],
)
def test_settings_that_cannot_be_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "a", 4)
    (tmp_path / "gold").write_text("a file")
    said = run("bench", "run", "a", *arguments)
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ([{"user_id": "someone", "truth": {"gender": "Male"}}], "no user in common"),
        ([{"user_id": "u1", "truth": {"shoe size": "40"}}], "no tag of the taxonomy"),
        ([{"user_id": "u1", "truth": {"gender": "NA"}}], "no tag of the taxonomy"),
    ],
)
def test_gold_that_says_nothing_is_told(tmp_path: Path, gold: list[dict[str, Any]], message: str) -> None:
    folder = make_dataset(tmp_path / "a", 4)
    write_rows(folder / "gold.jsonl", gold)
    with pytest.raises(InputError, match=message):
        read_evaluated(open_dataset(folder), PROFILEBENCH)


def test_users_without_gold_and_gold_without_users_are_noted(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "a", 4)
    rows = [{"user_id": name, "truth": {"gender": "Male", "shoe": "40"}} for name in ("u1", "u2", "nobody")]
    write_rows(folder / "gold.jsonl", rows)
    found = read_evaluated(open_dataset(folder), PROFILEBENCH)
    assert found.users == ["u1", "u2"]
    assert found.notes == (
        "users without gold, not profiled: 2",
        "users of gold without a record, not evaluated: 1",
        "attributes that the taxonomy lacks, ignored: shoe",
    )


def test_two_data_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "x" / "a", 4)
    make_dataset(tmp_path / "y" / "a", 4)
    with pytest.raises(InputError, match="two of the data sets are called 'a'"):
        run_bench([tmp_path / "x" / "a", tmp_path / "y" / "a"], tmp_path / "out")


def test_trained_baselines_without_the_extra_say_which_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a", 4)
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"\[bench\]"):
        run_bench([tmp_path / "a"], tmp_path / "out")
    found = run_bench([tmp_path / "a"], tmp_path / "out", BenchSettings(samples=2, baselines=CHEAP, draws=20))
    assert len(only(found).methods) == 4


def test_the_command_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "pets", 12)
    said = run("bench", "run", "pets", "--samples", "2", "--draws", "50", "--baseline", "constant")
    assert said.code == 0
    assert "pets: macro_f1 at tau 1, 12 users" in said.out
    assert "lexicon, weighted vote of 2" in said.out
    assert "24 samples were asked for" in said.out
    whole = (tmp_path / "bench" / "results.json").read_text()
    json.loads(whole, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for title in ("macro_f1 at tau 1", "means over attributes", "selective_accuracy at tau 1"):
        assert f"**pets: {title}" in (tmp_path / "bench" / "results.md").read_text()
    again = run("bench", "run", "pets", "--samples", "2", "--draws", "50", "--baseline", "constant")
    assert "\n0 samples were asked for" in again.out
    assert (tmp_path / "bench" / "results.json").read_text() == whole


def test_both_published_sets_in_one_command(shared_data: Path, tmp_path: Path) -> None:
    said = run(
        "bench", "run", str(shared_data / "atus"), str(shared_data / "synthpai"), "--limit", "20", "--samples", "3",
        "--draws", "50", "--baseline", "constant", "--baseline", "tfidf_lr", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert said.code == 0
    found = load_results(tmp_path / "out").results
    assert [(d.name, d.users, d.truth_field) for d in found.datasets] == [
        ("atus", 20, "truth"),
        ("synthpai", 20, "inferable"),
    ]
    for dataset in found.datasets:
        macro = {m.kind: m.numbers["average"]["macro_f1"].value or 0 for m in dataset.methods}
        assert macro["backend"] > macro["constant"]
        assert len(paper_grid(dataset).rows) == len(dataset.methods) + 5


# -- results side by side -----------------------------------------------------------------------------------


def other_results(folder: Path, beside: str, **changes: Any) -> Path:
    """A copy of the first run's results with something else."""
    results = load_results(folder / "out").results
    dataset = results.datasets[0].model_copy(update=changes)
    out = folder / beside
    out.mkdir(exist_ok=True)
    changed = results.model_copy(update={"datasets": [dataset]})
    (out / "results.json").write_text(changed.model_dump_json(exclude_none=True))
    return out


def test_the_best_comes_first_and_equal_methods_are_shown_once(first: tuple[Path, BenchRun]) -> None:
    folder = first[0]
    methods = only(first[1]).methods
    better = methods[-1].model_copy(
        update={
            "numbers": {
                name: {m: Estimate(value=1.5) for m in row} for name, row in methods[0].numbers.items()
            }
        }
    )
    out = other_results(folder, "theirs", methods=[*methods[:-1], better])
    [grid] = leaderboards([load_results(folder / "out"), load_results(out)], "macro_f1")
    labels = [row.label for row in grid.rows]
    assert labels[0] == "lexicon, weighted vote of 3 (theirs)"
    assert "lexicon, weighted vote of 3 (out)" in labels
    assert len(labels) == len(methods) + 1
    averages = [row.cells[-1].value for row in grid.rows if isinstance(row.cells[-1], Estimate)]
    assert averages == sorted(averages, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "0" * 16}, "the data is not the same"),
        ({"tau": 3.0}, "at tau 1, and truth at tau 3"),
        ({"truth_field": "inferable"}, "gold field truth"),
        ({"evaluated": "0" * 16, "split": "test"}, "other users were evaluated"),
    ],
)
def test_what_was_measured_otherwise_is_not_put_beside(
    first: tuple[Path, BenchRun], changes: dict[str, Any], message: str
) -> None:
    folder = first[0]
    out = other_results(folder, "other", **changes)
    said = run("bench", "report", str(folder / "out"), str(out))
    assert said.code == 2
    assert message in said.err


def test_a_report_of_other_data_is_refused_from_end_to_end(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "a", 6)
    given = BenchSettings(samples=2, baselines=CHEAP, draws=20)
    for name in ("one", "two"):
        found = run_bench([folder], tmp_path / name, given)
        (tmp_path / name / "results.json").write_text(found.results.model_dump_json())
        with (folder / "users.jsonl").open("a") as file:  # somebody's copy has one user more
            file.write(json.dumps({"user_id": "more", "watched": ["tea"]}) + "\n")
    with pytest.raises(InputError, match="the data is not the same"):
        leaderboards([load_results(tmp_path / "one"), load_results(tmp_path / "two")], "macro_f1")


def test_other_data_sets_have_tables_of_their_own(first: tuple[Path, BenchRun], tmp_path: Path) -> None:
    folder = first[0]
    out = other_results(folder, "elsewhere", name="birds", data="0" * 16)
    said = run("bench", "report", str(folder / "out"), str(out), "--markdown", str(tmp_path / "board.md"))
    assert said.code == 0
    for text in (said.out, (tmp_path / "board.md").read_text()):
        assert "pets: macro_f1" in text
        assert "birds: macro_f1" in text


def test_what_is_no_results_is_told(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": 2}')
    for path, message in ((tmp_path, "no results of `bench run`"), (tmp_path / "x", "holds no results.json")):
        with pytest.raises(InputError, match=message):
            load_results(path)


# -- tables -------------------------------------------------------------------------------------------------


def test_the_best_of_a_column_is_bold_and_the_paper_takes_no_part() -> None:
    rows = [
        Row(label="a", cells=[Estimate(value=0.5, low=0.4, high=0.6), 1]),
        Row(label="b", cells=[Estimate(value=0.7), 1]),
        Row(label="paper: c", cells=[Estimate(value=0.9), None], ranked=False),
    ]
    grid = Grid(title="t", columns=["x|y", "n"], rows=rows, best=["high", "high"])
    text = markdown_table(grid)
    assert "| b | **0.700** | 1 |" in text
    assert "| a | 0.500 [0.400, 0.600] | 1 |" in text
    assert "| paper: c | 0.900 | - |" in text


def test_numbers_as_the_terminal_shows_them() -> None:
    assert terminal_cell(Estimate(value=0.38, low=-0.0361, high=1.0)) == "0.380 [-.036,1.000]"
    assert terminal_cell(Estimate(value=0.02, low=-0.01, high=0.05, p=0.25)) == "+0.020 [-.010,.050] p=0.250"
    assert terminal_cell(Estimate()) == terminal_cell(None) == "-"
    assert terminal_cell(1200) == "1,200"


@settings(deadline=None, max_examples=20)
@given(width=st.integers(60, 240))
def test_a_terminal_of_any_width_shows_every_column_whole(width: int) -> None:
    names = ["gender (1000)", "age (1000)", "education_level (1000)", "average"]
    cell = Estimate(value=0.5, low=0.456, high=0.567)
    rows = [Row(label=f"a backend with a name, weighted vote of {i}", cells=[cell] * 4) for i in range(3)]
    console = Console(width=width, record=True, file=StringIO())
    print_grid(console, Grid(title="t", columns=names, rows=rows))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("0.500") == text.count("[.456,.567]") == 12
    assert "…" not in text


def test_the_paper_s_rows_stand_under_its_own_attributes_alone(first: tuple[Path, BenchRun]) -> None:
    dataset = only(first[1])
    rows = paper_grid(dataset).rows[len(dataset.methods) :]
    assert [row.ranked for row in rows] == [False] * 5
    # four of six attributes: an average over the six would be beside the point
    assert all(row.cells[-2:] == [None, None] for row in rows)
    other = dataset.model_copy(update={"labelled": {"pet": 3}, "methods": []})
    assert paper_grid(other).rows == []


def test_the_reference_stands_beside_no_difference(first: tuple[Path, BenchRun]) -> None:
    dataset = only(first[1])
    grid = averages_grid(dataset)
    cells = {row.label: row.cells[-1] for row in grid.rows}
    assert cells.pop(dataset.reference) == "="
    assert all(isinstance(cell, Estimate) and cell.p is not None for cell in cells.values())
    assert len(metric_grid(dataset, "paper_f1").columns) == len(dataset.labelled) + 2


def test_the_constant_answer_is_the_most_frequent_tag() -> None:
    gold = {
        "a": {"gender": "Male"},
        "b": {"gender": "Male"},
        "c": {"gender": "Female"},
        "d": {"gender": "NA"},
    }
    found = constant_profiles(gold, PROFILEBENCH)
    assert all(profile == {"gender": {"tag": "Male", "confidence": 4}} for profile in found.values())
    assert constant_profiles({"a": {"gender": "NA"}}, PROFILEBENCH) == {"a": {}}
