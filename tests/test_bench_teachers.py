"""Free-text guesses as tags, the recorded teachers as samplers, and the one table of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents.bench.dataset import Dataset, open_dataset, read_gold
from cp_agents.bench.guesses import GuessRules, ages_of, load_rules
from cp_agents.bench.teacher_table import AGREED, CHOSEN, COMBINATIONS, HINDSIGHT, as_grid, teacher_table
from cp_agents.bench.teacher_votes import (
    Ballots,
    agreement_skill,
    best_of_other_folds,
    combine,
    labelled_skill,
    recalls,
    weights_of,
)
from cp_agents.bench.teachers import read_teachers, teacher_predictions, trace_lines
from cp_agents.cli.benching import app
from cp_agents.errors import InputError
from cp_agents.evaluation.metrics import evaluate
from cp_agents.profiler import Profiler
from cp_agents.schema import NA
from cp_agents.stores.traces import TraceStore

MEDIA = "Media, Culture, Sports and Entertainment"
SCHOOLS = "Education and Training"
STATE = "Government and Public Institutions"
GUESSES: list[tuple[str, str, dict[str, str] | None]] = [
    ("sex", "Female", {"gender": "Female"}),
    ("sex", "** 1. male;", {"gender": "Male"}),
    ("sex", "A woman, most likely", {"gender": "Female"}),
    ("sex", "2) Cisgender man", {"gender": "Male"}),
    ("sex", "Non-binary or genderqueer", {"gender": NA}),
    ("sex", "Not enough information to say", {"gender": NA}),
    ("sex", "Carpenter", None),
    ("age", "27", {"age": "24-30"}),
    ("age", "1. 33 years old", {"age": "31-40"}),
    ("age", "* 40 – 44 years", {"age": "41-50"}),
    ("age", "mid 30s", {"age": "31-40"}),
    ("age", "Late twenties", {"age": "24-30"}),
    ("age", "Early to mid-20s", {"age": "18-23"}),
    ("age", "late 40's to early 50's", {"age": "41-50"}),
    ("age", "60s", {"age": "50+"}),
    ("age", "over 65", {"age": "50+"}),
    ("age", "70+", {"age": "50+"}),
    ("age", "under 18", {"age": "0-18"}),
    ("age", "18-60", {"age": NA}),
    ("age", "over 30", {"age": NA}),
    ("age", "Middle-aged", {"age": NA}),
    ("age", "Retirement age", {"age": "50+"}),
    ("age", "no idea whatsoever", None),
    ("relationship_status", "Single.", {"life_stage": "Single"}),
    ("relationship_status", "Never married", {"life_stage": "Single"}),
    ("relationship_status", "not in a relationship", {"life_stage": "Single"}),
    ("relationship_status", "In a happy long-term relationship", {"life_stage": "In Relationship"}),
    ("relationship_status", "Lives with her boyfriend", {"life_stage": "In Relationship"}),
    ("relationship_status", "Engaged", {"life_stage": "Pre-Marital"}),
    ("relationship_status", "Married", {"life_stage": NA}),
    ("relationship_status", "Married, no children", {"life_stage": "Married, No Children"}),
    ("relationship_status", "Married with two children", {"life_stage": "Parenting (Child Age Unknown)"}),
    ("relationship_status", "Single mother", {"life_stage": "Parenting (Child Age Unknown)"}),
    ("relationship_status", "expecting a first baby", {"life_stage": "Pre-Pregnancy and Pregnancy"}),
    ("relationship_status", "Engaged/married", {"life_stage": "Pre-Marital"}),
    ("relationship_status", "Divorced or widowed", {"life_stage": NA}),
    ("education", "Bachelor's degree in Biology", {"education_level": "Bachelor/Associate"}),
    ("education", "Master’s in Fine Arts", {"education_level": "Postgraduate or Above"}),
    ("education", "PhD candidate", {"education_level": "Postgraduate or Above", "occupation": "Student"}),
    ("education", "1. In college", {"education_level": "Bachelor/Associate", "occupation": "Student"}),
    ("education", "HS Diploma", {"education_level": "Senior/Vocational High"}),
    ("education", "Did not finish high school", {"education_level": "Junior High or Below"}),
    ("education", "Trade school certificate", {"education_level": "Senior/Vocational High"}),
    ("education", "M.D.", {"education_level": "Postgraduate or Above"}),
    ("education", "Physics", None),
    ("occupation", "Senior software engineer", {"occupation": "Software", "industry": "High-Tech"}),
    ("occupation", "IT support", {"occupation": "Software", "industry": "High-Tech"}),
    ("occupation", "High-school music teacher", {"occupation": "Education and Trainer", "industry": SCHOOLS}),
    ("occupation", "Retired bus driver", {"occupation": "Retiree", "industry": "Not Employed"}),
    ("occupation", "Bus driver (retired)", {"occupation": "Retiree", "industry": "Not Employed"}),
    ("occupation", "Bus driver", {"occupation": "Transportation and Logistics", "industry": "Transport and Logistics"}),
    ("occupation", "Barista/Cafe Worker", {"occupation": "Hospitality and Entertainment", "industry": "Services"}),
    ("occupation", "Sous-chef", {"occupation": "Hospitality and Entertainment", "industry": "Services"}),
    ("occupation", "Restaurant owner", {"occupation": "Self-Employed", "industry": "Services"}),
    ("occupation", "Freelance illustrator", {"occupation": "Media and Culture", "industry": MEDIA}),
    ("occupation", "Freelancer", {"occupation": "Self-Employed", "industry": NA}),
    ("occupation", "Travel vlogger", {"occupation": "Independent Media", "industry": MEDIA}),
    ("occupation", "Marine biologist", {"occupation": NA, "industry": NA}),
    ("occupation", "Architect", {"occupation": NA, "industry": "Real Estate and Construction"}),
    ("occupation", "Cloud architect", {"occupation": "Software", "industry": "High-Tech"}),
    ("occupation", "Corporate lawyer", {"occupation": NA, "industry": "Services"}),
    ("occupation", "Electrician", {"occupation": "Skilled Workers", "industry": "Real Estate and Construction"}),
    ("occupation", "Welder", {"occupation": "Skilled Workers", "industry": "Manufacturing"}),
    ("occupation", "Electrical engineers", {"occupation": "High-Tech Hardware", "industry": "High-Tech"}),
    ("occupation", "Dairy farmer", {"occupation": "Agriculture and Fishery", "industry": "Agriculture and Fishery"}),
    ("occupation", "Hair stylist", {"occupation": "Beauty and Hairdressing", "industry": "Services"}),
    ("occupation", "Security guard", {"occupation": "Domestic and Security", "industry": "Services"}),
    ("occupation", "Firefighter", {"occupation": "Government and Public Sector", "industry": STATE}),
    ("occupation", "Former soldier", {"occupation": NA, "industry": NA}),
    ("occupation", "Insurance underwriter", {"occupation": "Finance and Insurance", "industry": "Finance"}),
    ("occupation", "Office administrator", {"occupation": "Clerical Staff", "industry": NA}),
    ("occupation", "Medical student", {"occupation": "Student", "industry": NA}),
    ("occupation", "Stay-at-home dad", {"occupation": "Homemaker", "industry": "Not Employed"}),
    ("occupation", "Cashier in a shop", {"occupation": NA, "industry": "Commerce and Retail"}),
    ("occupation", "Healthcare professional (e.g., nurse)", {"occupation": "Healthcare", "industry": "Healthcare"}),
    ("occupation", "Historian or professor", {"occupation": NA, "industry": NA}),
    ("occupation", "Nurse - They mention teaching.", {"occupation": "Healthcare", "industry": "Healthcare"}),
    ("occupation", "Unknown", {"occupation": NA, "industry": NA}),
    ("occupation", "Qwxz", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def rules() -> GuessRules:
    return load_rules()


@pytest.mark.parametrize(("field", "text", "expected"), GUESSES, ids=[f"{f}: {t}" for f, t, _ in GUESSES])
def test_guesses_mean_what_their_words_say(
    rules: GuessRules, field: str, text: str, expected: dict[str, str] | None
) -> None:
    assert rules.read(field, text) == expected


@given(
    st.text(max_size=200), st.sampled_from(["sex", "age", "relationship_status", "education", "occupation"])
)
def test_any_text_is_a_tag_of_the_set_or_unread(text: str, field: str) -> None:
    rules = load_rules()
    for attribute, tag in (rules.read(field, text) or {}).items():
        assert tag in rules.taxonomy[attribute].names


@given(st.integers(1, 110), st.integers(0, 9))
def test_ages_are_read_in_any_dress(age: int, years: int) -> None:
    rules = load_rules()
    tag = (rules.read("age", str(age)) or {})["age"]
    assert tag == rules.taxonomy["age"].match_value(str(age))
    assert ages_of(f"{age}-{age + years} years old") == (age, age + years)
    assert rules.read("age", f"**1. {age}**") == {"age": tag}


def test_rules_that_are_wrong_say_where(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nfields:\n- {field: sex, rules: [{words: [f], says: {gender: Femal}}]}\n")
    with pytest.raises(InputError, match=r"field 1 \(sex\), rule 1: 'Femal' is not a tag of 'gender'"):
        load_rules(file)
    file.write_text("name: mine\nfields:\n- {field: sex, rules: [{words: [no], says: {gender: Male}}]}\n")
    with pytest.raises(InputError, match="in quotes"):
        load_rules(file)
    file.write_text("name: mine\nfields:\n- {field: sex, rules: [{word: [f], says: {gender: Male}}]}\n")
    with pytest.raises(InputError, match="`word` is not one of everywhere, says, unless, words"):
        load_rules(file)
    with pytest.raises(InputError, match="no rules for guesses named 'other'"):
        load_rules("other")


# --- a data set of our own: three teachers about four users


POSTS = {
    "ann": "my pupils handed in their essays late again",
    "bob": "the night bus was full",
    "cy": "tea",
    "di": "x",
}
TRUTH = {
    "ann": {"gender": "Female", "occupation": "Education and Trainer"},
    "bob": {"gender": "Male", "occupation": "Transportation and Logistics"},
    "cy": {"gender": "Female", "occupation": NA},
    "di": {"gender": "Male", "occupation": "Student"},
}
SAID = {
    "good": {
        "ann": ("Female", "Teacher"),
        "bob": ("Male", "Bus driver"),
        "cy": ("Female", "Poet"),
        "di": ("Male", "Nurse"),
    },
    "fair": {
        "ann": ("Female", "Teacher"),
        "bob": ("Female", "Cook"),
        "cy": ("Female", "Qwxz"),
        "di": ("Male", "Student"),
    },
    "poor": {"ann": ("Male", "Chef"), "bob": ("Male", "Bus driver"), "di": ("Unknown", "Nurse")},
}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def own(tmp_path: Path) -> Dataset:
    _write(tmp_path / "users.jsonl", [{"user_id": user, "posted": [text]} for user, text in POSTS.items()])
    _write(tmp_path / "gold.jsonl", [{"user_id": user, "truth": tags} for user, tags in TRUTH.items()])
    rows: list[dict[str, Any]] = []
    for model, of in SAID.items():
        for user, (sex, job) in of.items():
            why = f"They wrote that {POSTS[user].upper()}, it seems."
            rows.append({"model": model, "username": user, "attr": "sex", "guess": [sex], "inference": why})
            rows.append(
                {
                    "model": model,
                    "username": user,
                    "attr": "occupation",
                    "guess": [job, job, "Poet"],
                    "inference": why,
                }
            )
        rows.append({"model": model, "username": "ann", "attr": "income_level", "guess": ["high"]})
    rows.append({"model": "poor", "username": "cy", "attr": "sex", "guess": None, "inference": None})
    _write(tmp_path / "recorded_guesses.jsonl", rows)
    return open_dataset(tmp_path)


def test_a_teacher_is_a_sample_in_the_wire_format(own: Dataset) -> None:
    teachers = read_teachers(own)
    assert teachers.models == ("fair", "good", "poor")
    lines = {line["user_id"]: line["samples"] for line in trace_lines(teachers, own)}
    assert [sample["sampler"] for sample in lines["ann"]] == ["fair", "good", "poor"]
    assert lines["ann"][1]["text"] == (
        "<gender><tag>Female</tag><score>3</score>"
        "<evidence>my pupils handed in their essays late again</evidence></gender>\n"
        "<industry><tag>Education and Training</tag><score>4</score>"
        "<evidence>my pupils handed in their essays late again</evidence></industry>\n"
        "<occupation><tag>Education and Trainer</tag><score>4</score>"
        "<evidence>my pupils handed in their essays late again</evidence></occupation>"
    )
    assert (
        "<occupation><tag>Qwxz</tag>" in lines["cy"][0]["text"]
    )  # for the parser to count as out of the set
    assert lines["cy"][2]["text"] == ""
    assert "<gender><tag>NA</tag>" in lines["di"][2]["text"]
    coverage = teachers.coverage["occupation"]
    assert (coverage.asked, coverage.empty, coverage.unread, coverage.unread_most) == (
        11,
        0,
        1,
        [("Qwxz", 1)],
    )
    assert teachers.coverage["sex"].empty == 1


def test_predictions_are_lines_that_evaluate_reads(own: Dataset) -> None:
    predictions = teacher_predictions(own)
    gold, _ = read_gold(own)
    found = {
        model: evaluate(lines, gold, load_rules().taxonomy).attributes["gender"].at_tau[0]
        for model, lines in predictions.items()
    }
    assert {model: (m.answered, m.correct) for model, m in found.items()} == {
        "good": (4, 4),
        "fair": (4, 3),
        "poor": (2, 1),
    }


def test_the_whole_graph_runs_over_the_teachers(own: Dataset, tmp_path: Path) -> None:
    traces = tmp_path / "teachers.jsonl"
    traces.write_text(
        "".join(json.dumps(line) + "\n" for line in trace_lines(read_teachers(own), own)), encoding="utf-8"
    )
    records = [{"user_id": user, "posted": [text]} for user, text in POSTS.items()]
    store = tmp_path / "traces.db"
    with Profiler(backend=f"replay:{traces}", samples=3, vote="majority", store=store) as profiler:
        found, _ = profiler.profile_many(records)
    profiles = {profile.user_id: profile for profile in found}
    assert profiles["ann"]["occupation"].voted == "Education and Trainer"
    assert profiles["ann"]["occupation"].evidence[0].text == POSTS["ann"]
    assert profiles["di"]["gender"].voted == "Male"
    assert profiles["bob"]["gender"].agreeing == [1, 2]
    with TraceStore(store) as traced:
        rows = traced.rows("select distinct sample_index, sampler from samples order by sample_index", ())
        assert rows == [(0, "fair"), (1, "good"), (2, "poor")]


@pytest.mark.parametrize("sampler", ["", 7, ["gpt"]])
def test_a_sampler_without_a_name_is_refused(sampler: object, tmp_path: Path) -> None:
    from cp_agents.backends.replay import ReplayBackend

    _write(tmp_path / "bad.jsonl", [{"user_id": "u", "samples": [{"text": "", "sampler": sampler}]}])
    with pytest.raises(InputError, match='line 1: the "sampler" of sample 1 should be the name of a model'):
        ReplayBackend(tmp_path / "bad.jsonl")


def test_a_user_that_cannot_be_read_is_not_left_out_in_silence(own: Dataset) -> None:
    with own.users.open("a") as file:
        file.write("{\n")
    with pytest.raises(InputError, match=r"users\.jsonl line 5: not JSON"):
        read_teachers(own)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"model": "m", "username": "ann", "attr": "sex", "guess": "Female"},
            'line 1: the "guess" should be a list',
        ),
        ({"model": "m", "username": "", "attr": "sex", "guess": []}, 'line 1: the record has no "user_id"'),
        ({"username": "ann", "attr": "sex", "guess": []}, 'line 1: no "model"'),
        ({"model": "m", "username": "ann", "attr": "shoe", "guess": ["42"]}, "no guess of age, education"),
    ],
)
def test_what_is_no_guess_is_told_by_its_line(row: dict[str, Any], message: str, own: Dataset) -> None:
    _write(own.folder / "recorded_guesses.jsonl", [row])
    with pytest.raises(InputError, match=message):
        read_teachers(own)


# --- votes


def _ballots(tags: list[list[int]], truth: list[int], n_tags: int = 3) -> Ballots:
    array = np.array(tags)
    return Ballots(array, np.full(array.shape, 3), np.array(truth), n_tags)


def test_skills_and_weights() -> None:
    # teachers 0 and 1 agree always, 2 never; teacher 1 is silent on the last row
    b = _ballots([[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, -1, 0]], [0, 1, 0, -1])
    skill = agreement_skill(b)
    assert skill.argmin() == 2
    assert labelled_skill(b, np.ones(4, bool)) == pytest.approx([4 / 5, 4 / 5, 1 / 5])
    weights = weights_of(np.array([0.9, 0.7, 0.05]), 3)
    assert 5 == weights[0] > weights[1] > weights[2] > 0
    assert weights_of(np.array([0.0, 0.0]), 2).tolist() == [1, 1]  # nobody is better than chance


def test_skill_learnt_from_labels_outweighs_a_majority_that_errs_together() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60)
    expert = truth
    herd = np.where(rng.random(60) < 0.6, truth, 1 - truth)
    b = _ballots(np.column_stack([expert, herd, herd, herd]).tolist(), truth.tolist(), 2)
    folds = np.arange(60) % 2
    right = {how: float((combine(b, how, folds) == truth).mean()) for how in COMBINATIONS}
    assert right["labelled"] == 1.0
    assert right["majority"] == right["agreement"] == float((herd == truth).mean())
    assert best_of_other_folds({"a": b}, folds).tolist() == [0] * 60
    assert recalls({"a": b}, np.ones(60, bool))[0] == 1.0


def test_no_user_is_weighed_by_its_own_label() -> None:
    rng = np.random.default_rng(1)
    tags = rng.integers(0, 3, (40, 5))
    truth = rng.integers(0, 3, 40)
    folds = np.arange(40) % 2
    first = combine(_ballots(tags.tolist(), truth.tolist(), 4), "labelled", folds)
    other = np.where(folds == 0, (truth + 1) % 3, truth)  # other labels in fold 0 alone
    second = combine(_ballots(tags.tolist(), other.tolist(), 4), "labelled", folds)
    assert (first == second)[folds == 0].all()


# --- the table


def test_table_of_own_teachers(own: Dataset) -> None:
    gold, field = read_gold(own)
    table = teacher_table(read_teachers(own), gold, draws=20)
    assert field == "truth"
    assert table.best == "good"
    assert table.labelled == {"gender": 4, "occupation": 3}
    rows = {row.name: row for row in table.rows}
    assert rows["good"].per_attribute["occupation"]["true_recall"] == pytest.approx(2 / 3)
    assert rows["poor"].per_attribute["gender"]["coverage"] == 0.5
    assert rows[HINDSIGHT].models == ["good"]
    assert rows[HINDSIGHT].average == rows["good"].average
    json.dumps(table.model_dump(mode="json"), allow_nan=False)


def test_recorded_teachers_of_synthpai(shared_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared_data / "synthpai")
    teachers = read_teachers(dataset)
    assert len(teachers.models) == 19
    for coverage in teachers.coverage.values():
        answered = coverage.asked - coverage.empty
        assert coverage.unread <= 0.01 * answered
    gold, field = read_gold(dataset)
    assert field == "inferable"
    table = teacher_table(teachers, gold, draws=50)
    rows = {row.name: row for row in table.rows}
    assert set(COMBINATIONS.values()) | {HINDSIGHT, CHOSEN, AGREED} | set(teachers.models) == set(rows)
    recall = {name: row.average["true_recall"].value or 0.0 for name, row in rows.items()}
    alone = [recall[model] for model in teachers.models]
    assert recall[HINDSIGHT] == max(alone) >= recall[CHOSEN]
    for how in COMBINATIONS.values():
        assert recall[how] > np.median(alone)
        assert rows[how].against_best is not None
    # the table's numbers are those of `evaluate`, where every answer counts
    lines = teacher_predictions(dataset)[table.best]
    judged = evaluate(lines, gold, teachers.rules.taxonomy)
    assert judged.average[0].true_recall == pytest.approx(recall[table.best])
    assert judged.average[0].macro_f1 == pytest.approx(rows[table.best].average["macro_f1"].value)
    grid = as_grid(table, field)
    assert [row.label for row in grid.rows if row.cells[-1] is None][-1].startswith(HINDSIGHT)
    assert grid.notes[-len(table.lessons) :] == table.lessons
    assert table.lessons[0].startswith(f"Alone: {table.best} is right about {100 * max(alone):.1f} %")


def test_rules_agree_with_the_verdicts_of_people(shared_data: Path) -> None:
    """Guesses that the data's authors judged right should map to gold's tag far more often than those judged wrong."""
    dataset = open_dataset(shared_data / "synthpai")
    gold, _ = read_gold(dataset, "truth")
    rules = load_rules()
    fields = {field.name for field in rules.fields}
    hits: dict[tuple[str, float], list[bool]] = {}
    for line in (dataset.folder / "recorded_guesses.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["attr"] in fields and row["guess"] and row["correct_vs_human"]:
            for attribute, tag in (rules.read(row["attr"], row["guess"][0]) or {}).items():
                truth = gold[row["username"]].get(attribute, NA)
                if NA not in (tag, truth):
                    hits.setdefault((attribute, row["correct_vs_human"][0]), []).append(tag == truth)
    for attribute in ("gender", "age", "industry", "occupation", "education_level", "life_stage"):
        assert np.mean(hits[attribute, 1]) > 0.7
        assert np.mean(hits[attribute, 1]) > np.mean(hits[attribute, 0]) + 0.3


def test_the_verb_prints_one_table_and_writes_traces(own: Dataset, tmp_path: Path) -> None:
    out, numbers = tmp_path / "traces.jsonl", tmp_path / "table.json"
    said = CliRunner().invoke(
        app, ["teachers", str(own.folder), "--draws", "10", "--out-traces", str(out), "--json", str(numbers)]
    )
    assert said.exit_code == 0, said.output
    assert "3 recorded teachers on 4 users (truth)" in said.output
    assert "Dawid-Skene, no labels" in said.output
    assert "--samples 3" in said.output
    assert len(out.read_text().splitlines()) == 4
    written = json.loads(numbers.read_text())
    assert written["rules"].startswith("synthpai_guesses@")
    assert written["coverage"]["occupation"]["unread"] == 1


def test_the_verb_refuses_to_overwrite_what_it_reads(own: Dataset) -> None:
    said = CliRunner().invoke(app, ["teachers", str(own.folder), "--json", str(own.folder / "gold.jsonl")])
    assert isinstance(said.exception, InputError)
    assert "it is a file that this command reads" in str(said.exception)


def test_one_teacher_is_its_own_majority(own: Dataset) -> None:
    rows = [
        {"model": "lone", "username": user, "attr": "sex", "guess": [sex]}
        for user, (sex, _) in SAID["good"].items()
    ]
    _write(own.folder / "recorded_guesses.jsonl", rows)
    gold, _ = read_gold(own)
    table = teacher_table(read_teachers(own), gold, draws=5)
    recall = {row.name: row.average["true_recall"].value for row in table.rows}
    assert set(recall.values()) == {0.5}  # right about every gender, silent on every occupation
    assert all("nan" not in lesson for lesson in table.lessons)
