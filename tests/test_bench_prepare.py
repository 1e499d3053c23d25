"""`bench prepare`: published files become records and gold, or a sentence that says what to fix.

The files are miniatures in the exact formats of the publishers, written here.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents.bench.atus import prepare_atus
from cp_agents.bench.blogs import prepare_blogs, read_posts
from cp_agents.bench.dataset import open_dataset, read_gold
from cp_agents.bench.movielens import prepare_movielens
from cp_agents.bench.prepared import Prepared
from cp_agents.bench.rules import Rules, load_rules, value_tag
from cp_agents.bench.splits import split_of
from cp_agents.bench.synthpai import prepare_synthpai
from cp_agents.cli import app, main
from cp_agents.errors import InputError
from cp_agents.files import read_records
from cp_agents.taxonomy import Taxonomy

Files = dict[str, str | bytes]
SYNTHPAI: tuple[Rules, Taxonomy] = load_rules("synthpai")
ATUS_RULES: tuple[Rules, Taxonomy] = load_rules("atus")


def lay(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(prepared: Prepared, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Users and gold by id; the folder opens as a data set, and its records are read as `profile` reads them."""
    card = prepared.write(out)
    dataset = open_dataset(out)
    assert dataset.card == card
    records = list(read_records(dataset.users))
    assert all(isinstance(record, dict) for record in records)
    assert card.users == len(records) == sum(card.splits.values())
    users = {row["user_id"]: row for row in rows(out / "users.jsonl")}
    assert card.splits["test"] == sum(split_of(user) == "test" for user in users)
    gold = {row["user_id"]: row for row in rows(out / "gold.jsonl")}
    assert read_gold(dataset)[0].keys() == gold.keys()
    return users, gold


# ---------------------------------------------------------------- MovieLens

ML_100K: Files = {
    "ml-100k/u.data": "196\t242\t3\t881250949\n7\t1\t5\t874965706\n196\t1\t4\t881250000\n",
    "ml-100k/u.user": "196|49|M|writer|55105\n7|57|M|administrator|91344\n8|36|F|retired|05201\n",
    "ml-100k/u.item": (
        "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)"
        "|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
        "242|Les Mis\xe9rables (1996)|01-Jan-1996||http://x|0|0|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    ).encode("latin-1"),
}
ML_1M: Files = {
    "ratings.dat": "1::1193::5::978300760\n2::661::3::978302109\n3::661::1::978302109\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n",
    "movies.dat": "661::James and the Giant Peach (1996)::Animation|Musical\n1193::Double: a: Life::Drama\n",
}
RECBOLE: Files = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n",
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n196\t49\tM\twriter\t55105\n"
    ),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n242\tKolya\t1996\tComedy\n"
    ),
}


def test_movielens_100k_from_a_zip(tmp_path: Path) -> None:
    source = zipped(tmp_path / "ml-100k.zip", ML_100K)
    prepared = prepare_movielens(source)
    users, gold = written(prepared, tmp_path / "out")
    assert users["196"]["films_rated_1_to_5"] == [
        {"text": "Toy Story (1995), Animation, Children's, Comedy", "weight": 4.0, "time": "1997-12-04"},
        {"text": "Les Misérables (1996), Comedy", "weight": 3.0, "time": "1997-12-04"},
    ]
    assert gold["196"]["truth"] == {
        "gender": "Male", "age": "41-50", "industry": "NA", "occupation": "Media and Culture",
    }  # fmt: skip
    assert gold["7"]["truth"]["age"] == "50+"
    assert gold["7"]["truth"]["occupation"] == "NA"
    card = open_dataset(tmp_path / "out").card
    assert card.name == "movielens-100k"
    assert not card.redistribute
    assert "Harper" in card.citation
    assert card.left_out == {"users without a rating": 1}


def test_movielens_1m_brackets_across_two_tags_are_na(tmp_path: Path) -> None:
    users, gold = written(prepare_movielens(lay(tmp_path / "ml", ML_1M)), tmp_path / "out")
    ages = {user: row["truth"]["age"] for user, row in gold.items()}
    assert ages == {"1": "0-18", "2": "50+", "3": "NA"}  # under 18, 56 and older, 25 to 34
    assert [row["truth"]["occupation"] for row in gold.values()] == ["Student", "Self-Employed", "NA"]
    assert users["1"]["films_rated_1_to_5"][0]["text"] == "Double: a: Life, Drama"


def test_movielens_of_recbole(tmp_path: Path) -> None:
    users, gold = written(prepare_movielens(lay(tmp_path / "ml", RECBOLE)), tmp_path / "out")
    assert users["196"]["films_rated_1_to_5"][0]["text"] == "Kolya (1996), Comedy"
    assert gold["196"]["truth"]["gender"] == "Male"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ml-100k/u.data": "196\t242\t3\n"}, r"u\.data line 1: 3 fields, expected 4 or more"),
        ({"ml-100k/u.data": "196\t242\tx\t881250949\n"}, "rating should be a number of 0 to 5, found 'x'"),
        ({"ml-100k/u.data": "196\t242\t3\tlate\n"}, "timestamp should be seconds since 1970"),
        ({"ml-100k/u.data": "196\t99\t3\t881250949\n"}, "the film '99' is not in the list of films"),
        ({"ml-100k/u.data": "5\t242\t3\t881250949\n"}, r"1 users are not in .*u\.user, the first is '5'"),
        ({"ml-100k/u.data": ""}, "no ratings"),
        ({"ml-100k/u.item": "1|Toy Story (1995)\n"}, r"u\.item line 1: 2 fields"),
        ({"ml-100k/u.user": "196\n"}, r"u\.user line 1: 1 fields"),
    ],
)
def test_movielens_names_the_line_that_is_wrong(tmp_path: Path, changes: Files, said: str) -> None:
    source = lay(tmp_path / "ml", ML_100K | changes)
    with pytest.raises(InputError, match=said):
        prepare_movielens(source).write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


def test_movielens_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no MovieLens release \(expected u\.data, u\.user and u\.item"):
        prepare_movielens(lay(tmp_path / "other", {"readme.txt": "x"}))
    with pytest.raises(InputError, match=r"users\.dat is missing \(there are 1 files: ratings\.dat\)"):
        prepare_movielens(lay(tmp_path / "half", {"ratings.dat": "1::2::3::4\n"}))
    with pytest.raises(InputError, match="no column 'gender'"):
        prepare_movielens(
            lay(tmp_path / "r", RECBOLE | {"ml-100k.user": "user_id:token\tage:token\n"})
        ).write(tmp_path / "out")


# ---------------------------------------------------------------- SynthPAI

PERSONAS = {
    "pers1": {"username": "AlphaAnt", "age": 31, "sex": "male", "education": "Masters in Physics",
              "occupation": "Software engineer", "relationship_status": "single"},
    "pers2": {"username": "BetaBee", "age": 22, "sex": "female", "education": "studying towards a Bachelor's in Law",
              "occupation": "part-time barista", "relationship_status": "in relationship"},
    "pers3": {"username": "GammaGnu", "age": 66, "sex": "female", "education": "Retired, PhD in Biology",
              "occupation": "retired social worker", "relationship_status": "widowed"},
}  # fmt: skip


def persona_row(name: str, labels: dict[str, Any], **more: Any) -> dict[str, Any]:
    comments = [
        {"text": f"{name} likes tea. ", "username": name, "pii": {}},
        {"text": " \n", "username": name},
    ]
    reviews = {"human": {"timestamp": 0, "time": 0}, "human_evaluated": labels}
    return {"username": name, "comments": comments, "num_comments": 2, "reviews": reviews, **more}


def label(estimate: str, hardness: int = 2, certainty: int = 4) -> dict[str, Any]:
    return {
        "estimate": estimate,
        "hardness": hardness,
        "certainty": certainty,
        "acc_gt": 1 if estimate else 0,
    }


def clone(folder: Path) -> Path:
    users = [
        persona_row(
            "AlphaAnt", {"sex": label("male"), "age": label("", 0, 0), "occupation": label("developer", 1, 5)}
        ),
        persona_row("BetaBee", {"education": label("student", 3, 3)}),
        persona_row("GammaGnu", {}),
        persona_row("NoPersona", {}),
    ]
    answers = [
        persona_row(
            "AlphaAnt",
            {},
            predictions={
                "gpt-4": {
                    "sex": {"inference": "Says so.", "guess": ["Male", "Female"]},
                    "full_answer": "Type:",
                }
            },
            evaluations={"gpt-4": {"human_evaluated": {"sex": [1, 0]}}},
        ),
        persona_row("NoPersona", {}, predictions={"gpt-4": {"sex": {"guess": ["Male"]}}}, evaluations={}),
    ]
    lines = ["\n".join(json.dumps(row) for row in some) for some in (users, answers)]
    return lay(
        folder,
        {
            "data/thread/comments_eval_revised.jsonl": lines[0],
            "data/profiles/user_bot_gen_online_profiles_300.json": json.dumps(PERSONAS),
            "data/thread/eval/gpt-4/gpt4_evaluated.jsonl": lines[1],
            "data/thread/eval/gpt-4/gpt4_gt_evaluated.jsonl": lines[1],
            "data/thread/eval/gpt-4/anonymized/gpt4_anon_evaluated.jsonl": lines[1],
        },
    )


def test_synthpai_from_a_clone(tmp_path: Path) -> None:
    users, gold = written(prepare_synthpai(clone(tmp_path / "SynthPAI")), tmp_path / "out")
    assert list(users) == ["AlphaAnt", "BetaBee", "GammaGnu"]
    assert users["AlphaAnt"] == {"user_id": "AlphaAnt", "posted": ["AlphaAnt likes tea."]}
    assert gold["AlphaAnt"]["truth"] == {
        "gender": "Male", "age": "31-40", "industry": "High-Tech", "occupation": "Software",
        "education_level": "Postgraduate or Above", "life_stage": "Single",
    }  # fmt: skip
    assert gold["AlphaAnt"]["inferable"] == {
        "gender": "Male", "age": "NA", "industry": "High-Tech", "occupation": "Software",
        "education_level": "NA", "life_stage": "NA",
    }  # fmt: skip
    assert gold["AlphaAnt"]["human_certainty"] == {"sex": 4, "occupation": 5}
    assert gold["BetaBee"]["truth"] == {
        "gender": "Female", "age": "18-23", "industry": "Services", "occupation": "Student",
        "education_level": "Senior/Vocational High", "life_stage": "In Relationship",
    }  # fmt: skip
    assert gold["GammaGnu"]["truth"]["occupation"] == "Retiree"
    assert gold["GammaGnu"]["truth"]["life_stage"] == "NA"
    assert open_dataset(tmp_path / "out").card.left_out == {"users without a persona": 1}


def test_synthpai_keeps_what_language_models_answered_once(tmp_path: Path) -> None:
    prepare_synthpai(clone(tmp_path / "SynthPAI")).write(tmp_path / "out")
    assert rows(tmp_path / "out" / "recorded_guesses.jsonl") == [
        {
            "model": "gpt-4", "username": "AlphaAnt", "attr": "sex", "inference": "Says so.",
            "guess": ["Male", "Female"], "guess_category": None, "correct_vs_human": [1, 0],
        }
    ]  # fmt: skip


def test_synthpai_from_the_comment_file_alone(tmp_path: Path) -> None:
    def comment(name: str, text: str, human: dict[str, Any]) -> str:
        profile = next(p for p in PERSONAS.values() if p["username"] == name)
        row = {
            "author": "pers",
            "username": name,
            "text": text,
            "profile": profile,
            "reviews": {"human": human},
        }
        return json.dumps(row)

    wrong, right = {"sex": label("female")}, {"sex": label("male"), "age": label("33", 4, 2)}
    source = lay(
        tmp_path / "hf",
        {"synthpai.jsonl": "\n".join([comment("AlphaAnt", "one", wrong), comment("AlphaAnt", "two", right)])},
    )
    users, gold = written(prepare_synthpai(source), tmp_path / "out")
    assert users["AlphaAnt"]["posted"] == ["one", "two"]
    inferable = gold["AlphaAnt"]["inferable"]
    assert (inferable["gender"], inferable["age"], inferable["industry"]) == ("Male", "31-40", "NA")
    assert gold["AlphaAnt"]["human_hardness"] == {"sex": 2, "age": 4}
    assert not (tmp_path / "out" / "recorded_guesses.jsonl").exists()
    assert "comment file alone" in " ".join(open_dataset(tmp_path / "out").card.notes)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"readme": "x"}, "no SynthPAI clone"),
        ({"comments_eval_revised.jsonl": "{}"}, "user_bot_gen_online_profiles_300.json is missing"),
        ({"synthpai.jsonl": "{}\n"}, r'synthpai\.jsonl line 1: expected a JSON object with a "username"'),
        ({"synthpai.jsonl": '{"username": "a"}\n'}, 'line 1: expected a comment with a "text"'),
        ({"synthpai.jsonl": "\n{oops\n"}, "line 2: not JSON at column 2"),
        (
            {"comments_eval_revised.jsonl": "{}", "user_bot_gen_online_profiles_300.json": "[]"},
            "no personas",
        ),
    ],
)
def test_synthpai_says_what_is_missing(tmp_path: Path, files: Files, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare_synthpai(lay(tmp_path / "in", files)).write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_synthpai_rules_know_the_tags_of_the_published_gold(shared_data: Path) -> None:
    rules, taxonomy = load_rules("synthpai")
    for row in rows(shared_data / "synthpai" / "gold.jsonl"):
        assert list(row["truth"]) == list(rules.truth)
        labels = rules.labels
        for attribute, tag in row["inferable"].items():
            # Inferable is the truth where a person gave the label that the rules name.
            seen = labels[attribute] in row["human_certainty"]
            assert tag == (row["truth"][attribute] if seen else "NA")
            assert tag in taxonomy[attribute].codes


# ---------------------------------------------------------------- ATUS

ATUS: Files = {
    "atusact_0319.dat": (
        "TUCASEID,TUACTIVITY_N,TEWHERE,TUACTDUR,TUACTDUR24,TRCODEP\n"
        "20030100013280,1,-1,60,60,130124\n20030100013280,2,-1,30,30,010101\n20030100013280,3,-1,600,570,010101\n"
        "20030100013344,1,1,1430,1430,110101\n20030100013344,2,1,10,10,500106\n"
        "20030100013352,1,1,1440,1440,500106\n20030100013999,1,1,1440,1440,010101\n"
    ),
    "atusresp_0319.dat": (
        "TUCASEID,TULINENO,TELFS,TRMJIND1,TRMJOCC1,TEIO1COW,TRSPPRES,TRYHHCHILD,TESCHENR,TRDPFTPT\n"
        "20030100013280,1,1,8,5,4,1,7,2,1\n20030100013344,1,5,-1,-1,-1,3,-1,-1,-1\n"
        "20030100013352,1,5,-1,-1,-1,3,-1,-1,-1\n"
    ),
    "atusrost_0319.dat": (
        "TUCASEID,TULINENO,TERRP,TEAGE,TESEX\n20030100013280,2,20,38,2\n20030100013280,1,18,40,1\n"
        "20030100013344,1,18,66,2\n20030100013352,1,18,20,1\n"
    ),
    "atuscps_0319.dat": (
        "TUCASEID,TULINENO,GEREG,PEEDUCA,PEMARITL\n20030100013280,1,3,43,1\n20030100013344,1,1,39,3\n"
        "20039999999999,1,1,39,3\n"
    ),
}


def test_atus_joins_the_files_of_the_survey(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, content in ATUS.items():
        zipped(tmp_path / "in" / f"{name.split('_')[0]}-0319.zip", {name: content, "atusact_0319.sas": "x"})
    users, gold = written(prepare_atus([tmp_path / "in"]), tmp_path / "out")
    assert users["20030100013280"] == {
        "user_id": "20030100013280",
        "diary": [["Sleeping", 600], ["Running", 60]],
    }
    assert gold["20030100013280"]["truth"] == {
        "gender": "Male", "age": "31-40", "industry": "Finance", "occupation": "Clerical Staff",
        "education_level": "Bachelor/Associate", "life_stage": "Parenting (Child 6-11)",
    }  # fmt: skip
    assert gold["20030100013344"]["truth"] == {
        "gender": "Female", "age": "50+", "industry": "Not Employed", "occupation": "Retiree",
        "education_level": "Senior/Vocational High", "life_stage": "NA",
    }  # fmt: skip
    card = open_dataset(tmp_path / "out").card
    assert card.redistribute
    assert card.left_out == {
        "activities that the survey could not code": 2,
        "respondents without a coded activity": 1,
    }


@pytest.mark.parametrize(
    ("fields", "attribute", "tag"),
    [
        ({"enrolled": "yes", "labour": "employed", "hours": "part time"}, "occupation", "Student"),
        ({"enrolled": "yes", "labour": "employed", "hours": "full time", "occupation": "sales"}, "occupation", "NA"),
        ({"labour": "not in the labour force", "age": "40", "youngest_child": "3"}, "occupation", "Homemaker"),
        ({"labour": "not in the labour force", "age": "24", "youngest_child": "3"}, "occupation", "NA"),
        ({"labour": "unemployed", "age": "63"}, "occupation", "NA"),
        ({"labour": "employed", "class_of_work": "self-employed", "occupation": "farming"}, "occupation",
         "Self-Employed"),
        ({"labour": "employed", "class_of_work": "government", "occupation": "professional"}, "occupation",
         "Government and Public Sector"),
        ({"labour": "employed", "industry": "education and health"}, "industry", "NA"),
        ({"age": "20", "youngest_child": "8", "partner": "none", "marital": "never married"}, "life_stage", "Single"),
        ({"age": "34", "youngest_child": "0", "partner": "spouse"}, "life_stage", "Parenting (Child 0-2)"),
        ({"age": "34", "partner": "spouse"}, "life_stage", "Married, No Children"),
        ({"age": "60", "partner": "spouse"}, "life_stage", "NA"),
        ({"age": "60", "partner": "none", "marital": "divorced"}, "life_stage", "NA"),
        ({"age": "30", "partner": "unmarried partner"}, "life_stage", "In Relationship"),
        ({"age": "16", "education": "junior high"}, "education_level", "Junior High or Below"),
    ],
)  # fmt: skip
def test_atus_rules(fields: dict[str, str], attribute: str, tag: str) -> None:
    rules, taxonomy = ATUS_RULES
    assert rules.truth_of(fields, taxonomy)[attribute] == tag


def test_atus_names_come_from_the_lexicon_where_it_is_there(tmp_path: Path) -> None:
    listed = "".join(f"{code:06d},,Activity {code},\n" for code in range(20101, 20301))
    lexicon = (
        "6-digit activity code,Activity,Examples\n,,,,\n010101,Sleep as coded,,\n,,dozing off\n" + listed
    )
    lexicon += '"130124","Running, n.e.c.*",\n'
    source = lay(tmp_path / "in", ATUS | {"lexiconwex0319.csv": lexicon})
    users, _ = written(prepare_atus([source]), tmp_path / "out")
    assert users["20030100013280"]["diary"] == [["Sleep as coded", 600], ["Running (other)", 60]]
    assert users["20030100013344"]["diary"] == [["Eating and drinking", 1430]]  # not in it: our short name
    assert any("lexiconwex0319.csv" in note for note in open_dataset(tmp_path / "out").card.notes)
    with pytest.raises(InputError, match="1 activity codes, expected a lexicon of several hundred"):
        prepare_atus([lay(tmp_path / "in", {"lexiconwex0319.csv": "010101,Sleeping\n"})])


def test_atus_of_the_r_package(tmp_path: Path) -> None:
    source = lay(
        tmp_path / "in",
        {
            "atusact.csv": '"","tucaseid","tiercode","dur"\n"1",20120101120001,50101,480\n'
            '"2",20120101120001,10101,960\n',
            "atusresp.csv": (
                '"","tucaseid","occup_code","ind_code","labor_status","student_status","ptft","work_class","partner_hh",'
                '"hh_child_youngest_age"\n'
                '"1",20120101120001,"office_admin","public_admin","employed - at work",NA,"full time",'
                '"private, for profit","unmarried partner present",NA\n'
            ),
            "atuscps.csv": '"","tucaseid","region","sex","age","edu","marital"\n'
            '"1",20120101120001,"south","female",28,"master\'s degree","never married"\n',
        },
    )
    users, gold = written(prepare_atus([source]), tmp_path / "out")
    assert users["20120101120001"]["diary"] == [["Sleeping", 960], ["Work, main job", 480]]
    assert gold["20120101120001"]["truth"] == {
        "gender": "Female", "age": "24-30", "industry": "Government and Public Institutions",
        "occupation": "Clerical Staff", "education_level": "Postgraduate or Above", "life_stage": "In Relationship",
    }  # fmt: skip


def many_cases(folder: Path, number: int) -> Path:
    cases = [f"{20190101190000 + i}" for i in range(number)]
    tables = {
        "atusact_2019.dat": ("TUCASEID,TUACTDUR24,TUTIER1CODE,TUTIER2CODE,TUTIER3CODE", "1440,1,1,1"),
        "atusresp_2019.dat": ("TUCASEID,TELFS", "5"),
        "atusrost_2019.dat": ("TUCASEID,TULINENO,TEAGE,TESEX", "1,35,2"),
    }
    return lay(
        folder,
        {
            name: "\n".join([header, *(f"{case},{rest}" for case in cases)])
            for name, (header, rest) in tables.items()
        },
    )


def test_atus_self_reports_are_simulated_only_when_asked_for(tmp_path: Path) -> None:
    source = many_cases(tmp_path / "in", 1000)
    plain, gold = written(prepare_atus([source]), tmp_path / "plain")
    assert not any("self_reported" in user for user in plain.values())
    noisy, _ = written(prepare_atus([source], simulate=3), tmp_path / "noisy")
    again, _ = written(prepare_atus([source], simulate=3, users=100), tmp_path / "again")
    assert len(again) == 100
    assert all(noisy[user] == record for user, record in again.items())
    ages = [user["self_reported"]["age"] for user in noisy.values() if "age" in user["self_reported"]]
    assert 400 < len(ages) < 600
    wrong = sum(age != "31-40" for age in ages)
    assert 0.08 < wrong / len(ages) < 0.22
    assert any("SIMULATED" in note for note in open_dataset(tmp_path / "noisy").card.notes)
    assert all(row["truth"]["education_level"] == "NA" for row in gold.values())  # there was no atuscps


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"atusresp_0319.dat": None}, r"no file atusresp \(expected atusact, atusresp and atusrost"),
        ({"atusact_0319.dat": "TUCASEID,TUACTDUR24\n1,2\n"}, "no column TRCODEP or TRCODE or TIERCODE"),
        ({"atusact_0319.dat": "a,b\n1,2\n"}, r"atusact_0319\.dat: no column TUCASEID \(columns: a, b"),
        (
            {"atusact_0319.dat": "TUCASEID,TRCODEP,TUACTDUR24\n20030100013280,010101\n"},
            "line 2: 2 fields, the header has 3",
        ),
        (
            {"atusact_0319.dat": "TUCASEID,TRCODEP,TUACTDUR24\n20030100013280,010101,x\n"},
            "expected minutes, found 'x'",
        ),
        ({"atusrost_0319.dat": "TUCASEID,TULINENO\n20030100013280,1\n"}, "no file has the column TESEX"),
        ({"atusresp_0319.dat": "TUCASEID,TELFS\n"}, "no respondents"),
        (
            {
                "atusact_0319.dat": "TUCASEID,TRCODEP,TUACTDUR24\n20030100013280,010101,5\n20030100013344,010101,5\n"
                "20030100013280,010101,5\n"
            },
            "rows of case '20030100013280' do not stand together",
        ),
    ],
)
def test_atus_says_what_is_wrong(tmp_path: Path, changes: dict[str, str | None], said: str) -> None:
    source = lay(tmp_path / "in", {n: c for n, c in {**ATUS, **changes}.items() if c is not None})
    with pytest.raises(InputError, match=said):
        prepare_atus([source]).write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# ---------------------------------------------------------------- blogs

BLOG = b"""<Blog>

<date>31,May,2004</date>
<post>

      Well, R&B at the caf\xe9 &amp; <3 urlLink
</post>
<date>05,juin,2004</date>
<post>second</post>
<date>30,February,2004</date><post>third <post>never closed"""
BLOGS: Files = {
    "blogs/1000331.female.37.indUnk.Leo.xml": BLOG,
    "blogs/1000866.female.17.Student.Libra.xml": b"<Blog><date>1,May,2004</date><post>school</post></Blog>",
    "blogs/1004904.male.23.Arts.Capricorn.xml": "<Blog><date>1,May,2004</date><post>tak\u0117</post></Blog>".encode(),
    "blogs/1005076.male.25.Student.Aries.xml": b"<Blog><date>1,May,2004</date><post>exam</post></Blog>",
    "blogs/1005077.male.25.Student.Aries.xml": b"<Blog></Blog>",
    "__MACOSX/blogs/._1.male.25.Arts.Leo.xml": b"x",
}


def test_blogs_leave_minors_out(tmp_path: Path) -> None:
    source = zipped(tmp_path / "blogs.zip", BLOGS)
    users, gold = written(prepare_blogs(source), tmp_path / "out")
    assert users["1000331"]["posted"] == [
        {"text": "Well, R&B at the café & <3 urlLink", "time": "2004-05-31"},
        {"text": "second"}, {"text": "third"}, {"text": "never closed"},
    ]  # fmt: skip
    assert users["1004904"]["posted"][0]["text"] == "takė"
    assert gold["1004904"]["truth"] == {
        "gender": "Male", "age": "18-23", "industry": "Media, Culture, Sports and Entertainment", "occupation": "NA",
    }  # fmt: skip
    assert gold["1005076"]["truth"]["occupation"] == "Student"
    assert open_dataset(tmp_path / "out").card.left_out == {"bloggers under 18": 1, "blogs without a post": 1}
    kept, _ = written(prepare_blogs(source, include_minors=True), tmp_path / "all")
    assert set(kept) - set(users) == {"1000866"}


@given(st.text(alphabet="<>/datepos x,\n", max_size=200))
def test_any_text_is_read_as_a_blog(text: str) -> None:
    for post in read_posts(text):
        assert post["text"].strip()
        assert set(post) <= {"text", "time"}


def test_blogs_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no blogs \(expected files named ID\.gender\.age\.industry\.sign\.xml"
    ):
        prepare_blogs(lay(tmp_path / "in", {"a.xml": "x"}))


# ---------------------------------------------------------------- files that are not what they seem


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "blogs.zip", BLOGS).read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.zip: the zip is damaged; download it again"):
        prepare_blogs(cut)
    flipped = bytearray(whole)
    flipped[whole.index(b"1000331.female.37.indUnk.Leo.xml") + 45] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(bytes(flipped))
    with pytest.raises(InputError, match=r"flipped\.zip \('blogs/1000331.*the zip is damaged"):
        prepare_blogs(tmp_path / "flipped.zip").write(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    lay(tmp_path / "atus", ATUS | {"atusresp-0319.zip": whole[:50]})
    (tmp_path / "atus" / "atusresp_0319.dat").unlink()
    with pytest.raises(InputError, match=r"no file atusresp \(.*atusresp-0319\.zip is damaged"):
        prepare_atus([tmp_path / "atus"])


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "b.zip", {"1000331.female.37.indUnk.Leo.xml": b"\0" * (40 << 20)})
    with pytest.raises(InputError, match="would unpack to 40 MiB, which no file of this set does"):
        prepare_blogs(bomb).write(tmp_path / "out")


def test_names_inside_an_archive_are_never_paths(tmp_path: Path) -> None:
    evil = zipped(
        tmp_path / "e.zip", {f"../../{name.rpartition('/')[2]}": text for name, text in BLOGS.items()}
    )
    before = {path.name for path in tmp_path.parent.iterdir()}
    users, _ = written(prepare_blogs(evil), tmp_path / "out")
    assert "1000331" in users
    assert {path.name for path in tmp_path.parent.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"e.zip", "out"}


def test_a_path_with_nothing_at_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing at .*nowhere; expected the folder or zip"):
        prepare_blogs(tmp_path / "nowhere")


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize("name", ["atus", "blogs", "movielens", "synthpai"])
def test_rules_give_only_tags_of_the_taxonomy(name: str) -> None:
    rules, taxonomy = load_rules(name)
    assert rules.licence
    assert rules.citation
    assert rules.home.startswith("https://")
    assert rules.redistribution
    for attribute, listed in rules.truth.items():
        tags = {rule.tag for rule in listed if rule.tag is not None}
        assert tags <= set(taxonomy[attribute].codes)
        assert listed
    assert len(rules.version) == 12


def edited(tmp_path: Path, change: Any) -> Path:
    import cp_agents.bench

    raw = yaml.safe_load((Path(cp_agents.bench.__file__).parent / "mappings" / "blogs.yaml").read_text())
    change(raw)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_rules_of_ones_own(tmp_path: Path) -> None:
    def artists(raw: dict[str, Any]) -> None:
        raw["truth"]["occupation"].append({"tag": "Media and Culture", "when": {"industry": "Arts"}})

    source = zipped(tmp_path / "blogs.zip", BLOGS)
    mine = edited(tmp_path, artists)
    _, gold = written(prepare_blogs(source, mine), tmp_path / "out")
    assert gold["1004904"]["truth"]["occupation"] == "Media and Culture"
    assert load_rules(mine)[0].version != load_rules("blogs")[0].version


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda raw: raw["truth"].update(age=[{"tag": "thirties"}]),
            "age, rule 1: the tag 'thirties' is not in",
        ),
        (lambda raw: raw["truth"].update(height=[]), "has no attribute 'height'"),
        (lambda raw: raw["truth"].update(age=[{"value_of": "size"}]), "no format has a field 'size'"),
        (lambda raw: raw["truth"].update(age=[{}]), "expected either `tag` or `value_of`"),
        (
            lambda raw: raw["truth"].update(age=[{"tag": "NA", "when": {"agee": 1}}]),
            "no format has a field 'agee'",
        ),
        (lambda raw: raw.pop("licence"), "licence: Field required"),
        (lambda raw: raw.update(colour="red"), "colour: Extra inputs"),
        (lambda raw: raw.update(labels={"height": "x"}), "'height' is no attribute of `truth`"),
        (lambda raw: raw.update(simulate={"gender": {"present": 2}}), "less than or equal to 1"),
        (lambda raw: raw.update(simulate={"sign": {"present": 1}}), "no format has a field 'sign'"),
    ],
)
def test_rules_that_do_not_fit(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_rules(edited(tmp_path, change))


def test_rules_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no built-in rules 'films'"):
        load_rules("films")
    (tmp_path / "r.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="expected a mapping"):
        load_rules(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        load_rules(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="no format 'ml-1m'"):
        prepare_movielens(lay(tmp_path / "ml", ML_1M), "blogs")


@given(st.integers(0, 120), st.integers(0, 120))
def test_a_bracket_is_a_tag_only_if_it_lies_in_one(low: int, high: int) -> None:
    age = SYNTHPAI[1]["age"]
    named = f"{low}-{high}" in age.codes
    expected = value_tag(age, str(low)) if value_tag(age, str(low)) == value_tag(age, str(high)) else None
    assert named or value_tag(age, f"{low}-{high}") == expected


@given(
    st.dictionaries(
        st.sampled_from(["sex", "age", "education", "occupation", "relationship"]), st.text(max_size=20)
    )
)
def test_any_field_gives_a_tag_of_each_closed_set(fields: dict[str, str]) -> None:
    rules, taxonomy = SYNTHPAI
    assert all(tag in taxonomy[name].codes for name, tag in rules.truth_of(fields, taxonomy).items())


# ---------------------------------------------------------------- the verbs


def test_the_verb_prints_the_licence_and_writes_a_folder_that_can_be_profiled(tmp_path: Path) -> None:
    source = lay(tmp_path / "ml", ML_100K)
    out = tmp_path / "ml100k"
    ran = CliRunner().invoke(app.app, ["bench", "prepare", "movielens", str(source), "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    for said in (
        "MovieLens 100K: 2 users",
        "left out: 1 users without a rating",
        "licence: ",
        "cite: ",
        "Nothing may be",
    ):
        assert said in ran.output
    profiles = tmp_path / "profiles.jsonl"
    arguments = [
        "profile",
        str(out / "users.jsonl"),
        "--out",
        str(profiles),
        "--store",
        str(tmp_path / "t.db"),
    ]
    assert CliRunner().invoke(app.app, [*arguments, "--backend", "lexicon", "--samples", "3"]).exit_code == 0
    assert {row["user_id"] for row in rows(profiles)} == {"196", "7"}
    judged = CliRunner().invoke(app.app, ["evaluate", str(profiles), "--gold", str(out / "gold.jsonl")])
    assert judged.exit_code == 0, judged.output


@pytest.mark.parametrize(
    ("verb", "files", "more"),
    [
        ("atus", ATUS, ["--simulate-self-reports", "--seed", "4", "--users", "2"]),
        ("blogs", BLOGS, ["--include-minors"]),
        ("synthpai", None, []),
    ],
)
def test_the_other_verbs(tmp_path: Path, verb: str, files: Files | None, more: list[str]) -> None:
    source = clone(tmp_path / "in") if files is None else lay(tmp_path / "in", files)
    out = tmp_path / "out"
    ran = CliRunner().invoke(app.app, ["bench", "prepare", verb, str(source), "--out", str(out), *more])
    assert ran.exit_code == 0, ran.output
    assert "licence: " in ran.output
    profiles = tmp_path / "profiles.jsonl"
    arguments = [
        "profile",
        str(out / "users.jsonl"),
        "--out",
        str(profiles),
        "--store",
        str(tmp_path / "t.db"),
    ]
    ran = CliRunner().invoke(app.app, [*arguments, "--backend", "lexicon", "--samples", "1"])
    assert ran.exit_code == 0, ran.output
    assert len(rows(profiles)) == open_dataset(out).card.users


def test_a_mistake_ends_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["bench", "prepare", "blogs", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["cp-agents", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "no blogs (expected files named ID.gender.age.industry.sign.xml" in said


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source, out = lay(tmp_path / "ml", ML_100K), lay(tmp_path / "out", {"mine.txt": "x"})
    with pytest.raises(InputError, match="it is there already"):
        prepare_movielens(source).write(out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="does not exist"):
        prepare_movielens(source).write(tmp_path / "no" / "such")
    (tmp_path / "empty").mkdir()
    assert prepare_movielens(source).write(tmp_path / "empty").users == 2
