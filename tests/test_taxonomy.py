"""Taxonomies: Table 6, matching of tags and values, validation of users' own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy, fold, load_taxonomy

CHINESE = """
name: 阅读偏好
attributes:
  - name: genre
    description: 最常读的类型
    self_reported: [最爱, 喜欢的类型]
    tags:
      - {name: 科幻, description: 太空与未来, aliases: [sci-fi]}
      - {name: 推理, aliases: [侦探, 悬疑]}
      - 武侠
  - name: books_per_year
    self_reported: [每年读书]
    tags:
      - {name: 少于5本, range: [0, 4]}
      - {name: 5本及以上, range: [5, 2000]}
"""


TABLE_6 = load_taxonomy()


@pytest.fixture
def table6() -> Taxonomy:
    return TABLE_6


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- Table 6 ----------------------------------------------------------------------------------------------


def test_table_6_has_its_attributes_in_order_and_its_numbers_of_tags(table6: Taxonomy) -> None:
    counts = {a.name: len(a.names) for a in table6.attributes}
    assert list(counts.items()) == [
        ("gender", 3),
        ("age", 7),
        ("industry", 14),
        ("occupation", 20),
        ("education_level", 5),
        ("life_stage", 13),
    ]
    assert all(a.names[-1] == "NA" for a in table6.attributes)
    assert table6["life_stage"].names[5] == "Parenting (Child 0-2)"


def test_every_attribute_and_tag_is_described_in_both_languages(table6: Taxonomy) -> None:
    for attribute in table6.attributes:
        for text in (attribute.description, *(tag.description for tag in attribute.tags)):
            assert isinstance(text, dict)
            assert set(text) == {"en", "zh"}
            assert all(words.strip() for words in text.values())
        assert attribute.self_reported


def test_the_tags_are_those_of_the_gold_labels(table6: Taxonomy, shared_data: Path) -> None:
    for line in (shared_data / "atus" / "gold.jsonl").read_text(encoding="utf-8").splitlines():
        truth = json.loads(line)["truth"]
        assert set(truth) == set(table6.names)
        assert all(tag in table6[name].names for name, tag in truth.items())


def test_the_hash_is_stable_and_follows_the_content(table6: Taxonomy, tmp_path: Path) -> None:
    assert len(table6.hash) == 12
    assert load_taxonomy().hash == table6.hash
    one, other = (load_taxonomy(write(tmp_path, CHINESE.replace("武侠", tag))) for tag in ("武侠", "言情"))
    assert len({table6.hash, one.hash, other.hash}) == 3


# --- matching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "text", "tag"),
    [
        ("gender", "female", "Female"),
        ("gender", "Ｍａｌｅ", "Male"),
        ("gender", " 女 ", "Female"),
        ("gender", "F", "Female"),
        ("gender", "malefemale", None),
        ("gender", "", None),
        ("age", "18–23", "18-23"),
        ("age", "18 — 23", "18-23"),
        ("age", "５０＋", "50+"),
        ("age", "20-30", None),
        ("life_stage", "parenting (child 0–2)", "Parenting (Child 0-2)"),
        ("life_stage", "Parenting（Child 12 - 14）", "Parenting (Child 12-14)"),
        ("life_stage", "MARRIED,NO CHILDREN", "Married, No Children"),
        ("life_stage", "已婚未育", "Married, No Children"),
        ("life_stage", "married", None),
        ("education_level", "Senior / Vocational High", "Senior/Vocational High"),
        ("education_level", "硕士", "Postgraduate or Above"),
        ("industry", "high_tech", "High-Tech"),
        ("industry", "Transportation and Logistics", "Transport and Logistics"),
        ("occupation", "Transport and Logistics", "Transportation and Logistics"),
        ("occupation", "self employed", "Self-Employed"),
        ("occupation", "程序员", "Software"),
        ("gender", "N/A", "NA"),
        ("occupation", "Unknown (NA)", "NA"),
        ("age", "未知", "NA"),
    ],
)
def test_match_tag(table6: Taxonomy, attribute: str, text: str, tag: str | None) -> None:
    assert table6[attribute].match_tag(text) == tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("0", "0-18"),
        ("17", "0-18"),
        ("18", "18-23"),
        ("23", "18-23"),
        ("24", "24-30"),
        ("30", "24-30"),
        ("31", "31-40"),
        ("40", "31-40"),
        ("41", "41-50"),
        ("50", "41-50"),
        ("51", "50+"),
        ("130", "50+"),
        ("131", None),
        ("25岁", "24-30"),
        ("约２５岁", "24-30"),
        ("25 years old", "24-30"),
        ("24-30", "24-30"),
        ("under 18", "0-18"),
        ("18岁以下", "0-18"),
        ("60+", "50+"),
        # numbers that stand for a range name no tag
        ("90后", None),
        ("20s", None),
        ("30多岁", None),
        ("over 30", None),
        ("<25", None),
        ("30+", None),
        ("-5", None),
        ("25 to 30", None),
        ("1990", None),
        ("old enough", None),
        ("", None),
    ],
)
def test_match_value_reads_ages(table6: Taxonomy, text: str, tag: str | None) -> None:
    assert table6["age"].match_value(text) == tag


def test_match_value_reads_no_number_where_no_tag_has_a_range(table6: Taxonomy) -> None:
    assert table6["gender"].match_value("男") == "Male"
    assert table6["gender"].match_value("1") is None


@given(st.text())
def test_match_value_stays_in_the_closed_set(text: str) -> None:
    for attribute in TABLE_6.attributes:
        assert attribute.match_value(text) in {None, *attribute.names}


@given(st.text())
def test_fold_is_idempotent(text: str) -> None:
    assert fold(fold(text)) == fold(text)


def test_every_name_and_alias_of_table_6_leads_to_its_tag(table6: Taxonomy) -> None:
    for attribute in table6.attributes:
        for tag in attribute.tags:
            for name in (tag.name, *tag.aliases):
                assert attribute.match_value(name) == tag.name, name


@pytest.mark.parametrize(
    ("fields", "tags"),
    [
        ({"gender": "Male", "region": "west"}, {"gender": "Male"}),
        ({"Sex": "f", "Age": "33"}, {"gender": "Female", "age": "31-40"}),
        (
            {"性别": "男", "年龄": "25岁", "职业": "程序员", "学历": "本科"},
            {
                "gender": "Male",
                "age": "24-30",
                "occupation": "Software",
                "education_level": "Bachelor/Associate",
            },
        ),
        ({"Education_Level": "PhD"}, {"education_level": "Postgraduate or Above"}),
        ({"job": "manager", "occupation": "nurse"}, {"occupation": "Healthcare"}),
        ({"age": "unknown", "gender": "NA"}, {}),
        ({"bio": "woman, 25, teacher", "signature": "Male"}, {}),
        ({}, {}),
    ],
)
def test_reported_tags(table6: Taxonomy, fields: dict[str, str], tags: dict[str, str]) -> None:
    assert table6.reported_tags(fields) == tags


# --- a user's own file ------------------------------------------------------------------------------------


def test_a_taxonomy_in_another_language(tmp_path: Path) -> None:
    own = load_taxonomy(write(tmp_path, CHINESE))
    assert own.names == ("genre", "books_per_year")
    assert "genre" in own
    assert "gender" not in own
    assert own["genre"].names == ("科幻", "推理", "武侠", "NA")
    assert own["genre"].match_tag("悬疑") == "推理"
    assert own["genre"].match_tag("言情") is None
    assert own["books_per_year"].match_value("3本") == "少于5本"
    assert own.reported_tags({"最爱": "Sci-Fi", "每年读书": "12"}) == {
        "genre": "科幻",
        "books_per_year": "5本及以上",
    }


HEAD = "name: x\nattributes:\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "- {name: a, tags: [A, B, A]}", "attribute 'a': duplicate tag 'A'"),
        (HEAD + "- {name: a, tags: [A b, a_B]}", "attribute 'a': duplicate tag 'a_B'"),
        (HEAD + "- {name: a, tags: [A, {name: B, aliases: [a]}]}", "attribute 'a': duplicate tag 'a'"),
        (HEAD + "- {name: a, tags: [A]}\n- {name: a, tags: [B]}", "duplicate attribute 'a'"),
        (HEAD + "- {name: a, tags: [A, NA]}", "attribute 'a': NA is in every closed set, do not list 'NA'"),
        (HEAD + "- {name: a, tags: [A, Unknown]}", "attribute 'a': NA is in every closed set, do not list 'Unknown'"),
        (HEAD + "- {name: My Tag, tags: [A]}", "attribute name 'My Tag' should be lower-case letters, digits and _"),
        (HEAD + "- {name: 性别, tags: [A]}", "attribute name '性别' should be lower-case letters, digits and _"),
        (HEAD + "- {name: record, tags: [A]}", "attribute name 'record' is taken by the wire format"),
        (HEAD + "- {name: a, tags: ['A</tag>']}", "tag 'A</tag>' contains <, > or a line break"),
        (HEAD + "- {name: a, tags: [' ']}", "attribute 'a': a tag or an alias is empty"),
        (HEAD + "- {name: a, tags: []}", "attribute 'a', tags should not be empty"),
        (HEAD + "- {name: a, tags: [{nam: A}]}", "attribute 'a', tag 1, name is missing"),
        (HEAD + "- {name: a, tags: [{name: A, alias: [b]}]}", "attribute 'a', tag 'A', alias is not a known field"),
        (HEAD + "- {name: a, tags: [{name: A, range: [5, 1]}]}", "tag 'A': the range [5.0, 1.0] ends before it begins"),
        (HEAD + "- {name: a, tags: [{name: A, aliases: b}]}", "attribute 'a', tag 'A', aliases should be a list"),
        (HEAD + "- {name: a, description: [b], tags: [A]}", "attribute 'a', description should be a text, or one"),
        ("name: x", "attributes is missing"),
        ("name: x\nattributes: []", "attributes should not be empty"),
        ("- just\n- a list", "expected a mapping with `name` and `attributes`"),
        ("", "expected a mapping with `name` and `attributes`"),
        ("name: [", "not YAML ("),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_clear_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_taxonomy(path)
    message = str(caught.value)
    assert message.startswith(f"taxonomy {path}: {says}")
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no taxonomy file at .*none\.yaml$"):
        load_taxonomy(tmp_path / "none.yaml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_bytes("name: 画像".encode("gb18030"))
    with pytest.raises(InputError, match=r"not UTF-8 text$"):
        load_taxonomy(path)


def test_an_unknown_built_in() -> None:
    with pytest.raises(
        InputError, match=r"^no built-in taxonomy 'table7' \(a file of your own should end in \.yaml\)$"
    ):
        load_taxonomy("table7")
