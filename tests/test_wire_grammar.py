"""The wire format as a regular expression and as a grammar, and the probabilities of tag tokens."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.backends.tag_logprobs import (
    TagToken,
    read_openai,
    scored,
    tag_logprobs,
    tag_probabilities,
    tag_tokens,
)
from cp_agents.backends.vllm_options import read_options, split_options
from cp_agents.backends.wire_grammar import EVIDENCE_CHARS, constraint, wire_grammar, wire_regex
from cp_agents.errors import InputError
from cp_agents.parsing import parse_answer
from cp_agents.schema import Completion, Outcome
from cp_agents.taxonomy import Attribute, Tag, Taxonomy, load_taxonomy
from cp_agents.wire import WireAnswer, write_answer
from tests.support import PETS, answer

PROFILEBENCH = load_taxonomy("profilebench")
AWKWARD = Taxonomy(
    name="awkward",
    attributes=[
        Attribute(name="a_b", tags=[Tag(name=r"50+ (a|b) [x] {2} \d ^$.*?/")]),
        Attribute(name="ab", tags=[Tag(name='say "hi"'), Tag(name="数码·科技 – 汽车")]),
    ],
)
ALLOWED = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="<>＜＞"), max_size=EVIDENCE_CHARS
)


@st.composite
def wire_answers(draw: st.DrawFn, taxonomy: Taxonomy) -> str:
    return write_answer(
        WireAnswer(a.name, draw(st.sampled_from(a.names)), draw(st.integers(1, 5)), draw(ALLOWED))
        for a in taxonomy.attributes
    )


@pytest.mark.parametrize("taxonomy", [PROFILEBENCH, PETS, AWKWARD], ids=lambda t: t.name)
@settings(deadline=None)
@given(data=st.data())
def test_whatever_the_format_allows_matches_and_parses(taxonomy: Taxonomy, data: st.DataObject) -> None:
    text = data.draw(wire_answers(taxonomy))
    assert re.fullmatch(wire_regex(taxonomy), text)
    parsed = parse_answer(text, taxonomy)
    assert {a.outcome for a in parsed.attributes.values()} == {Outcome.OK}


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_whatever_matches_parses(data: st.DataObject) -> None:
    text = data.draw(st.from_regex(wire_regex(AWKWARD), fullmatch=True))
    parsed = parse_answer(text, AWKWARD)
    assert [a.outcome for a in parsed.attributes.values()] == [Outcome.OK, Outcome.OK]


@pytest.mark.parametrize(
    "spoilt",
    [
        answer(pet="Horse"),
        answer(confidence=6),
        answer(confidence=0),
        answer(evidence="a<b"),
        answer(evidence="a\nb"),
        answer(evidence="x" * (EVIDENCE_CHARS + 1)),
        answer() + "\n",
        answer().replace("\n", " "),
        "\n".join(reversed(answer().splitlines())),
        answer().splitlines()[0],
        "",
    ],
)
def test_nothing_else_matches(spoilt: str) -> None:
    assert not re.fullmatch(wire_regex(PETS), spoilt)


def test_regex_uses_what_every_server_knows() -> None:
    pattern = wire_regex(AWKWARD)
    assert "(?" not in pattern
    assert not pattern.startswith("^")
    assert not pattern.endswith("$")
    assert "\n" not in pattern
    # An escaped letter, space or hyphen means something else, or nothing, in some dialect.
    assert set(re.findall(r"\\(.)", pattern)) <= set(r"\.^$*+?()[]{}|/nx")


def test_grammar_is_two_rules_and_quotes_what_it_must() -> None:
    rules = wire_grammar(AWKWARD).splitlines()
    assert [rule.split(" ::= ")[0] for rule in rules] == ["root", "evidence"]
    assert r'("50+ (a|b) [x] {2} \\d ^$.*?/" | "NA")' in rules[0]
    assert r'("say \"hi\"" | "数码·科技 – 汽车" | "NA")' in rules[0]
    assert rules[0].count(" evidence ") == 2
    assert rules[1].endswith(f"{{0,{EVIDENCE_CHARS}}}")


def test_constraint_is_what_vllm_calls_structured_outputs() -> None:
    assert constraint("regex", PETS) == {"regex": wire_regex(PETS)}
    assert constraint("grammar", PETS) == {"grammar": wire_grammar(PETS)}
    assert constraint("none", PETS) == {}
    with pytest.raises(InputError, match="structured should be regex, grammar, none, found 'json'"):
        constraint("json", PETS)


# --- options -----------------------------------------------------------------------------------------------


def test_options_stand_behind_the_question_mark() -> None:
    spec, options = split_options("http://h:8000?structured=regex&max-model-len=4096&stop=%5B'%3C'%5D#m+a")
    assert spec == "http://h:8000#m+a"
    assert options == {"structured": "regex", "max_model_len": 4096, "stop": ["<"]}
    assert split_options("some/model") == ("some/model", {})
    assert split_options("m?enforce_eager=true&x={a: 0.5}")[1] == {"enforce_eager": True, "x": {"a": 0.5}}


@pytest.mark.parametrize("spec", ["m?structured", "m?=regex", "m?x=[1"])
def test_options_that_cannot_be_read(spec: str) -> None:
    with pytest.raises(InputError, match=r"name=value|cannot be read"):
        split_options(spec)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"structured": "json"}, "structured should be"),
        ({"logprobs": 21}, "from 0 to 20"),
        ({"logprobs": True}, "from 0 to 20"),
        ({"seeds": 7}, "seeds should be true or false"),
        ({"temperature": 0.5, "n": 3}, "n, temperature cannot be set here"),
        ({"guided_regex": "a"}, "vLLM ignores guided_regex without a word"),
        ({"structured": "regex", "structured_outputs": {"regex": "a"}}, "cannot be given together"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_options(options, PETS)


def test_options_of_ours_and_others() -> None:
    chosen = read_options({"structured": "grammar", "logprobs": 5, "top_k": 20}, PETS)
    assert chosen == ({"grammar": wire_grammar(PETS)}, 5, None, {"top_k": 20})
    own = read_options({"structured_outputs": {"regex": "a|b"}}, PETS)
    assert own == ({"regex": "a|b"}, 0, None, {})


# --- probabilities of tags ---------------------------------------------------------------------------------


def token(text: str, probability: float = 1.0, **others: float) -> TagToken:
    top = {text: probability} | {name.replace("_", " "): p for name, p in others.items()}
    return TagToken(text, math.log(probability), {name: math.log(p) for name, p in top.items()})


def tokens(*inside: TagToken) -> list[TagToken]:
    return [
        token("<pet"),
        token("><"),
        token("tag>"),
        *inside,
        token("</"),
        token("tag><score>4</score></pet>"),
    ]


def test_probabilities_of_the_tags_that_alternatives_tell_apart() -> None:
    found = tag_tokens(tokens(token("C", 0.6, D=0.3, x=0.1), token("at", 0.9, ow=0.1)), PETS)
    assert [t.text for t in found["pet"]] == ["C", "at", "</"]
    logprobs = tag_logprobs(found["pet"], PETS["pet"])
    assert {tag: pytest.approx(math.exp(p)) for tag, p in logprobs.items()} == {"Cat": 0.6, "Dog": 0.3}
    probabilities = tag_probabilities(found["pet"], PETS["pet"])
    assert probabilities == {"Cat": pytest.approx(2 / 3), "Dog": pytest.approx(1 / 3)}


def test_two_ways_to_the_same_tag_are_added() -> None:
    found = tag_tokens(tokens(token("Do", 0.5, Dog=0.25, Cat=0.25), token("g")), PETS)
    assert tag_probabilities(found["pet"], PETS["pet"]) == {
        "Dog": pytest.approx(0.75),
        "Cat": pytest.approx(0.25),
    }


def test_tags_that_share_a_beginning_are_told_apart_where_they_part() -> None:
    stage = Attribute(name="pet", tags=[Tag(name="Child 0-2"), Tag(name="Child 3-5"), Tag(name="None yet")])
    taxonomy = Taxonomy(name="t", attributes=[stage])
    found = tag_tokens(
        tokens(token("Child ", 0.8, None_yet=0.2), token("3", 0.5, **{"0": 0.25}), token("-5")), taxonomy
    )
    assert {tag: pytest.approx(math.exp(p)) for tag, p in tag_logprobs(found["pet"], stage).items()} == {
        "None yet": 0.2,
        "Child 3-5": 0.4,
        "Child 0-2": 0.2,
    }


@pytest.mark.parametrize("closing", ["</tag>", "</"])
def test_a_tag_that_begins_another_is_known_by_its_end(closing: str) -> None:
    work = Attribute(name="pet", tags=[Tag(name="Health"), Tag(name="Health and Care")])
    end = TagToken(closing, math.log(0.7), {" and": math.log(0.3)})
    rest = token("</tag>".removeprefix(closing))
    found = tag_tokens(
        [token("<pet><tag>"), token("Health"), end, rest], Taxonomy(name="t", attributes=[work])
    )
    expected = {"Health": pytest.approx(0.7), "Health and Care": pytest.approx(0.3)}
    assert tag_probabilities(found["pet"], work) == expected


def test_a_token_that_reaches_in_from_the_markup_is_cut() -> None:
    first = TagToken(
        ">Cat", math.log(0.5), {">Cat": math.log(0.5), ">Dog": math.log(0.4), "> ": math.log(0.1)}
    )
    found = tag_tokens([token("<pet><tag"), first, token("</tag></pet>")], PETS)
    assert found["pet"][0].text == "Cat"
    assert tag_probabilities(found["pet"], PETS["pet"]) == {
        "Cat": pytest.approx(5 / 9),
        "Dog": pytest.approx(4 / 9),
    }


def test_the_last_answer_counts_and_others_are_left_out() -> None:
    twice = [token(answer(pet="Cat")), token("\n"), *tokens(token("Fish"))]
    found = tag_tokens(twice, PETS)
    assert [t.text for t in found["pet"]] == ["Fish", "</"]
    assert [t.text.partition("<")[0] for t in found["home"]] == ["Flat"]
    assert tag_tokens([token("I would say a cat.")], PETS) == {}
    assert tag_tokens([], PETS) == {}
    assert tag_probabilities([], PETS["pet"]) == {}


def test_a_scored_completion_is_a_completion_and_survives_a_copy() -> None:
    completion = scored(Completion(index=3, text="x"), tokens(token("Cat", 0.5)), PETS)
    moved = completion.model_copy(update={"index": 4})
    assert isinstance(moved, Completion)
    assert moved.model_dump(mode="json")["tag_tokens"] == {
        "pet": [["Cat", math.log(0.5), {"Cat": math.log(0.5)}], ["</", 0.0, {"</": 0.0}]]
    }


def test_reads_the_shape_of_chat_completions() -> None:
    content = [
        {"token": "Cat", "logprob": -0.5, "bytes": [], "top_logprobs": [
            {"token": "Dog", "logprob": -1.5}, {"token": "Fish", "logprob": -9999.0}, {"token": None}]},
        {"token": "x", "logprob": 0},
        "nonsense", {"token": "y"},
    ]  # fmt: skip
    assert read_openai({"content": content}) == [TagToken("Cat", -0.5, {"Dog": -1.5}), TagToken("x", 0.0, {})]
    assert read_openai(None) == read_openai({"content": None}) == read_openai([]) == []
