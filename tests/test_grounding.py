# ruff: noqa: E501
"""Evidence is found where it stands, and nowhere else."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_agents.cues import assemble_cues, cue_lines
from cp_agents.folded_text import FoldedText, fold_words
from cp_agents.fuzzy import allowed_differences, find_approximately
from cp_agents.grounding import CueIndex, ground
from cp_agents.parsing import ParsedAnswer, ParsedAttribute, parse_answer
from cp_agents.schema import Evidence, Match, Outcome, UserRecord
from cp_agents.taxonomy import load_taxonomy

BLOCK = """\
[watched]
- [2024-05-03] Baby stroller review (x3)
- Comparing prams (x2, 40.5)
- 宝宝辅食的做法，第一口辅食怎么加 (x12)
- It doesn’t get better 👌🔥 than this
- [2021] 1,204 items: stroller (x40), diapers (x22)
[diary]
- Sleeping (750)
- Television and movies (not religious) (570)
- Washing, dressing and grooming oneself (60)
- Travel related to participating in sports/exercise/recreation (20)
- Ｆｕｌｌ－ｗｉｄｔｈ ｔｅｘｔ and ﬁne ligatures
- 42
- 猫
[self_reported]
- gender: Male
- age: 25
- region: west
- about: moving bricks all day lol"""
INDEX = CueIndex(BLOCK)


def locate(text: str, index: CueIndex = INDEX) -> tuple[Match, str | None, str | None]:
    """(match, source, the words of the block)."""
    found = index.locate(text)
    assert found.text == text
    check_span(found, index)
    words = None if found.start is None else index.block[found.start : found.end]
    return found.match, found.source, words


def check_span(found: Evidence, index: CueIndex) -> None:
    """What holds of every evidence: it lies in the content of one line of its source."""
    if found.match is Match.UNGROUNDED:
        assert (found.source, found.start, found.end) == (None, None, None)
        return
    assert found.start is not None
    assert found.end is not None
    line = next(
        line for line in cue_lines(index.block) if line.start <= found.start and found.end <= line.end
    )
    assert line.source == found.source
    assert found.start < found.end
    if found.match is Match.EXACT:
        assert index.block[found.start : found.end] == found.text


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        ("Baby stroller review", "watched", None),
        ("Sleeping (750)", "diary", None),
        ("[2024-05-03] Baby stroller review (x3)", "watched", None),
        ("gender: Male", "self_reported", None),
        ("宝宝辅食", "watched", None),
        ("第一口", "watched", None),
        ("👌🔥", "watched", None),
        ("doesn’t", "watched", None),
        ("It doesn", "watched", None),
        ("moving bricks", "self_reported", None),
        ("diapers", "watched", None),
        ("猫", "diary", None),
        ("42", "diary", None),
        ("25", "self_reported", None),
    ],
)
def test_exact(text: str, source: str, words: str | None) -> None:
    assert locate(text) == (Match.EXACT, source, words or text)


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        ("baby STROLLER review", "watched", "Baby stroller review"),
        ("- Comparing prams", "watched", "Comparing prams"),
        ("watched: comparing prams", "watched", "Comparing prams"),
        ("Watched - Comparing prams", "watched", "Comparing prams"),
        ("diary Sleeping 750", "diary", "Sleeping (750)"),
        ("yesterday (minutes): Sleeping 750", "diary", "Sleeping (750)"),
        ("Sleeping, 750 minutes", "diary", "Sleeping"),
        ("Television and movies 570", "diary", "Television and movies"),
        ("Comparing prams x2", "watched", "Comparing prams (x2"),
        ("television & movies (not religious)", None, None),
        ("washing dressing and grooming oneself", "diary", "Washing, dressing and grooming oneself"),
        ("sports / exercise / recreation", "diary", "sports/exercise/recreation"),
        ("full-width text and fine ligatures", "diary", "Ｆｕｌｌ－ｗｉｄｔｈ ｔｅｘｔ and ﬁne ligatures"),
        ("宝宝辅食的做法,第一口辅食怎么加", "watched", "宝宝辅食的做法，第一口辅食怎么加"),
        ("宝宝 辅食", "watched", "宝宝辅食"),
        ("watched：宝宝辅食的做法", "watched", "宝宝辅食的做法"),
        ("it doesn't get better👌", "watched", "It doesn’t get better 👌"),
        ("self-reported Male", "self_reported", "Male"),
        ("self-reported: gender Male", "self_reported", "gender: Male"),
        ("Self-reported gender male", "self_reported", "gender: Male"),
        ("self_reported age 25", "self_reported", "age: 25"),
        ("self-reported 25", "self_reported", "25"),
        ("自填信息：Male", "self_reported", "Male"),
        ("gender=male", "self_reported", "gender: Male"),
        ("a 25-year-old, self-reported", "self_reported", "age: 25"),
        ("lives in the west region", "self_reported", "region: west"),
        ("self-reported male, age 25", "self_reported", "gender: Male"),
        ("Self-reported: moving bricks all day lol", "self_reported", "moving bricks all day lol"),
        ("Self-reported: comparing prams", "watched", "Comparing prams"),
    ],
)
def test_normalised(text: str, source: str | None, words: str | None) -> None:
    if source is None:  # "&" for "and" is a difference, of 9 %
        assert locate(text)[0] is Match.FUZZY
    else:
        assert locate(text) == (Match.NORMALISED, source, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Travelling related to participating in sports", "Travel related to participating in sports"),
        ("baby strollers reviewed", "Baby stroller review"),
        ("Television and movies (no religion)", "Television and movies (not religious)"),
        ("宝宝辅食做法", "宝宝辅食的做法"),
        ("第一口辅食应该怎么加", "第一口辅食怎么加"),
        ("It doesn't get any better than this 👌🔥", None),
        ("Sleeping 600", "Sleeping"),
        ("moving brick", "moving bricks"),
        ("t get better", "get better"),
    ],
)
def test_fuzzy(text: str, words: str | None) -> None:
    if words is None:
        assert locate(text)[0] is Match.UNGROUNDED
    else:
        assert locate(text)[::2] == (Match.FUZZY, words)


@pytest.mark.parametrize(
    "text",
    [
        "watched", "[watched]", "diary", "self-reported", "self_reported",  # headings, and labels of them
        "a", "and", "the", "it", "60", "750", "x3", "1,204", "2021", "s", "宝", "的", "…", "", " ", "()",  # no meaning
        "art", "oth", "leep", "avel related",  # parts of words
        "first-year physics lectures", "no mention of sleeping", "程序员的一天",  # not there
        "review (x3)\n- Comparing", "Sleeping (750) Television", "prams 宝宝",  # across lines
        "self-reported Female", "self-reported sleeping",  # not what is reported
        "car", "Washin machine repair manual",
    ],
)  # fmt: skip
def test_ungrounded(text: str) -> None:
    assert locate(text) == (Match.UNGROUNDED, None, None)


def test_lists_are_taken_apart_when_they_stand_nowhere_as_a_whole() -> None:
    found = [(e.text, e.match) for e in INDEX.cite("Sleeping 750, comparing prams, playing chess")]
    assert found == [
        ("Sleeping 750", Match.NORMALISED),
        ("comparing prams", Match.NORMALISED),
        ("playing chess", Match.UNGROUNDED),
    ]
    assert [e.match for e in INDEX.cite("Washing, dressing and grooming oneself")] == [Match.EXACT]
    assert [e.match for e in INDEX.cite("宝宝辅食、Sleeping")] == [Match.EXACT, Match.EXACT]
    assert [e.match for e in INDEX.cite("Baby stroller … review")] == [Match.NORMALISED]
    assert [e.text for e in INDEX.cite("chess, go")] == ["chess, go"]
    assert [e.match for e in INDEX.cite("no mention of sleeping, diapers")] == [Match.UNGROUNDED]


def test_the_same_words_in_two_sources_are_found_where_the_label_says_self_reported() -> None:
    index = CueIndex("[posted]\n- male nurse on duty\n[self_reported]\n- gender: Male")
    assert locate("male", index)[1] == "posted"
    assert locate("self-reported male", index)[1] == "self_reported"
    assert locate("self-reported male nurse on duty", index)[1] == "posted"


@pytest.mark.parametrize(
    "block", ["", "no grammar", "[empty]", "- orphan line", "[a]\n- ", "[self_reported]\n- :"]
)
def test_blocks_without_items(block: str) -> None:
    index = CueIndex(block)
    assert locate("orphan line", index)[0] is Match.UNGROUNDED
    assert locate("", index)[0] is Match.UNGROUNDED


WORDS = st.lists(
    st.sampled_from([*"aé猫辅食👌ßﬁ", "stroller", "it's", "don’t", "Ｗｉｄｅ", "x2", "(3)", "—", "!", "हिन्दी", "e\u0301t", "㎏", "고양이"]),
    min_size=1,
    max_size=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(before=WORDS, after=WORDS, others=st.lists(WORDS, max_size=4), data=st.data())
def test_whatever_a_user_wrote_is_found_when_it_is_quoted(
    before: list[str], after: list[str], others: list[list[str]], data: st.DataObject
) -> None:
    items = [*others, [*before, "stroller", *after]]
    index = CueIndex("[posted]\n" + "\n".join("- " + " ".join(words) for words in items))
    first, last = data.draw(st.integers(0, len(before))), data.draw(st.integers(0, len(after)))
    quotation = " ".join([*before[first:], "stroller", *after[:last]])
    found = index.locate(quotation)
    check_span(found, index)
    assert found.match is Match.EXACT
    loose = data.draw(
        st.sampled_from([quotation.upper(), quotation.replace(" ", "  "), quotation.replace("’", "'")])
    )
    check_span(index.locate(loose), index)
    assert index.locate(loose).match in (Match.EXACT, Match.NORMALISED)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | WORDS.map(" ".join), block=st.text(max_size=80))
def test_no_text_raises(text: str, block: str) -> None:
    for index in (INDEX, CueIndex(block), CueIndex(f"[posted]\n- {block}\n- {text}")):
        check_span(index.locate(text), index)
        index.cite(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_folded_text_maps_back(text: str) -> None:
    folded = FoldedText(text)
    assert folded.folded == "".join(fold_words(text)) + "\n"
    for at in range(len(folded.folded) - 1):
        start, end = folded.origin(at, at + 1)
        assert 0 <= start < end <= len(text)
    if len(folded.folded) > 1:
        start, end = folded.origin(0, len(folded.folded) - 1)
        assert "".join(fold_words(text[start:end])) == folded.folded[:-1]


def edit_distance(a: str, b: str) -> int:
    """The textbook's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_approximate_search_keeps_its_bound_and_finds_what_is_within_it() -> None:
    rng = random.Random(7)
    for _ in range(300):
        text = "".join(rng.choices("abcdefgh", k=120))
        length = rng.randint(15, 60)
        start = rng.randint(0, 120 - length)
        pattern = list(text[start : start + length])
        edits = rng.randint(0, length // 5)
        for _ in range(edits):
            at = rng.randrange(len(pattern))
            pattern[at : at + rng.randint(0, 1)] = rng.choices("abcdefgh", k=rng.randint(0, 1))
        wanted = "".join(pattern)
        found = find_approximately(wanted, text, 0, len(text))
        if found is None:
            assert edits > len(wanted) // 5 - 3  # only hard against the bound may one be missed
            continue
        a, b, differences = found
        assert edit_distance(wanted, text[a:b]) == differences <= (allowed_differences(wanted) or 0)


def test_fuzzy_matches_are_within_a_fifth() -> None:
    rng = random.Random(11)
    fuzzy = 0
    lines = [line for line in cue_lines(BLOCK) if len(line.text) > 20 and ":" not in line.text]
    for _ in range(400):
        text = list(rng.choice(lines).text)
        for _ in range(rng.randint(1, 8)):
            text[rng.randrange(len(text))] = rng.choice("aeiou 辅食")
        wanted = "".join(text)
        found = INDEX.locate(wanted)
        check_span(found, INDEX)
        if found.match is Match.FUZZY:
            fuzzy += 1
            pattern = "".join(fold_words(wanted))
            span = "".join(fold_words(BLOCK[found.start : found.end]))
            assert edit_distance(pattern, span) <= len(pattern) // 5
    assert fuzzy > 50


# --- ground --------------------------------------------------------------------------------------------------


def parsed(**answers: ParsedAttribute) -> ParsedAnswer:
    return ParsedAnswer(Outcome.OK, dict(answers), "")


def answer(tag: str, confidence: int, *evidence: str) -> ParsedAttribute:
    return ParsedAttribute(Outcome.OK, tag, confidence, evidence)


@pytest.mark.parametrize(
    ("said", "cap", "confidence"),
    [
        (answer("Male", 5, "gender: Male"), 2, 5),
        (answer("Male", 5, "he says so", "gender: Male"), 2, 5),
        (answer("Male", 5, "he says so"), 2, 2),
        (answer("Male", 5), 2, 2),
        (answer("Male", 1, "he says so"), 2, 1),
        (answer("Male", 5, "he says so"), None, 5),
        (answer("Male", 5, "he says so"), 3, 3),
        (answer("NA", 5), 2, 5),
        (answer("NA", 5, "nothing here"), 2, 5),
    ],
)
def test_the_cap(said: ParsedAttribute, cap: int | None, confidence: int) -> None:
    prediction = ground(parsed(gender=said), INDEX, cap=cap)["gender"]
    assert (prediction.outcome, prediction.tag, prediction.confidence) == (Outcome.OK, said.tag, confidence)
    assert [e.text for e in prediction.evidence] == list(said.evidence)


def test_other_outcomes_pass_through() -> None:
    said = parsed(
        gender=ParsedAttribute(Outcome.OUT_OF_SET, "Robot", 5, ("beep",)),
        age=ParsedAttribute(Outcome.MISSING),
    )
    predictions = ground(said, INDEX)
    assert (predictions["gender"].outcome, predictions["gender"].tag) == (Outcome.OUT_OF_SET, "Robot")
    assert predictions["gender"].confidence == 5
    assert predictions["age"].outcome is Outcome.MISSING
    assert predictions["age"].evidence == []


def test_evidence_is_bounded_and_what_is_grounded_stays() -> None:
    said = answer("Male", 5, "chess", "go, Sleeping", "backgammon", "draughts", "poker")
    evidence = ground(parsed(gender=said), INDEX)["gender"].evidence
    assert len(evidence) == 5
    assert evidence[0].text == "Sleeping"


def test_samples_do_not_share_evidence_objects() -> None:
    said = parsed(gender=answer("Male", 5, "gender: Male"))
    first, second = (ground(said, INDEX)["gender"].evidence[0] for _ in range(2))
    assert first == second
    assert first is not second


def best_time(block: str, samples: list[ParsedAnswer]) -> float:
    """Seconds a sample, with the index built anew each time."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        index = CueIndex(block)
        for sample in samples:
            ground(sample, index)
        times.append((time.perf_counter() - began) / len(samples))
    return min(times)


def test_grounding_takes_microseconds() -> None:
    rng = random.Random(3)
    taxonomy = load_taxonomy()
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(600)]

    def measure(n_lines: int) -> float:
        items = [" ".join(rng.choices(vocabulary, k=9)) for _ in range(n_lines)]
        block = "[posted]\n" + "\n".join(f"- {item}" for item in items)
        pool = [" ".join(rng.choice(items).split()[2:6]) for _ in range(12)]  # quoted word for word
        pool += [p.title() for p in pool[:4]] + [p.replace("e", "o") for p in pool[4:6]]
        pool += [" ".join(rng.choices(vocabulary, k=4)) for _ in range(3)]  # invented
        samples = [
            parsed(**{name: answer("A", 4, *rng.sample(pool, 2)) for name in taxonomy.names})
            for _ in range(10)
        ]
        return best_time(block, samples)

    assert measure(12) < 2e-3  # about 90 microseconds on an idle core
    assert measure(200) < 8e-3


def test_hostile_evidence_has_bounded_cost() -> None:
    block = "[posted]\n" + "\n".join("- " + "ab " * 300 for _ in range(60))
    index = CueIndex(block)
    began = time.process_time()
    for text in (
        "ab" * 200,
        "ba " * 130,
        "a" * 400,
        " " * 1000,
        ", " * 500,
        "ab ac " * 60,
        "x" * 1_000_000,
        ":" * 1000,
    ):
        index.cite(text)
    assert time.process_time() - began < 1


def test_evidence_of_a_weak_real_model(shared_data: Path) -> None:
    """Its prompt worded the cues otherwise than our block does; a third of what it quotes, it invents."""
    taxonomy = load_taxonomy()
    found: dict[str, Counter[Match]] = {}
    for name in ("atus", "synthpai"):
        users = [json.loads(line) for line in (shared_data / name / "users.jsonl").open(encoding="utf-8")]
        records = {user["user_id"]: user for user in users}
        matches = found[name] = Counter()
        for line in (shared_data / "recorded_teacher" / f"{name}.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            index = CueIndex(assemble_cues(UserRecord.from_dict(records[row["user_id"]])).text)
            for sample in row["samples"]:
                answers = parse_answer(sample["text"], taxonomy, finish_reason=sample["finish_reason"])
                for prediction in ground(answers, index).values():
                    for evidence in prediction.evidence:
                        check_span(evidence, index)
                        matches[evidence.match] += 1
                        if "railcard" in evidence.text:  # the example's, not the user's
                            assert evidence.match is Match.UNGROUNDED
    share = {name: 1 - matches[Match.UNGROUNDED] / matches.total() for name, matches in found.items()}
    assert share["atus"] > 0.7
    assert share["synthpai"] > 0.5


@pytest.mark.parametrize("emoji", ["🍼", "👩‍🍼", "🎓"])
def test_one_emoji_is_evidence(emoji: str) -> None:
    block = f"[posted]\n- so tired {emoji} today\n- 宝宝"
    found = CueIndex(block).locate(emoji)
    assert block[found.start : found.end] == emoji
