"""SFT data: prompts as the teacher got them, answers as they were voted, and nothing left out unseen.

After an intended change of the rows, `CP_AGENTS_UPDATE_GOLDEN=1 pytest tests/test_sft_data.py` writes the golden
file anew; review its diff.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_agents import Profiler, replay
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.lexicon import LexiconBackend
from cp_agents.cues import cue_lines
from cp_agents.errors import ErrorType, InputError, StoreError
from cp_agents.exports import whole_folder
from cp_agents.parsing import parse_answer
from cp_agents.prompts.render import fenced_block, load_prompt
from cp_agents.schema import Completion, Message, Outcome
from cp_agents.stores.forget import forget
from cp_agents.stores.reviews import answer_reviews
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy
from cp_agents.trainers.data_card import KIND, SftFilters
from cp_agents.trainers.sft_data import SftData, export_sft, load_sft_data
from cp_agents.trainers.sft_rows import best_sample, clean_thought, reason_to_drop, split_of
from cp_agents.wire import WireAnswer, write_answer
from tests.support import PETS, RECORD, ScriptedBackend, answer
from tests.test_cli import run as cli

ROOT = Path(__file__).parent
GOLDEN = ROOT / "golden" / "sft_row.jsonl"
PARENT = {"watched": [["newborn sleep schedule", 30], "baby stroller review"], "searched": ["daycare costs"]}


class Listening(LexiconBackend):
    """The embedded backend, which notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(load_taxonomy())
        self.asked: dict[str, tuple[Message, ...]] = {}

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        self.asked[request.record_key] = request.messages
        async for completion in super().sample(request):
            yield completion


def pets(
    store: TraceStore,
    script: Callable[[int], str | Completion | Exception] = lambda i: answer(),
    *,
    users: tuple[str, ...] = ("u1",),
    **options: Any,
) -> str:
    """A run of three samples a user, each user with a line of their own; its id."""
    profiler = Profiler(
        ScriptedBackend(script), store, taxonomy=PETS, **{"samples": 3, "run": "r", **options}
    )
    records = [
        {**RECORD, "user_id": user, "posted": [*RECORD["posted"], f"{_word(i)} spoons"]}
        for i, user in enumerate(users)
    ]
    profiler.profile_many(records)
    return profiler.run_id


def _word(i: int) -> str:
    return chr(ord("a") + i // 26) + chr(ord("a") + i % 26)


def on_pet(tag: str = "Cat", confidence: int = 4, evidence: str = "my cat sleeps all day") -> str:
    """An answer that is sure of the home."""
    home = WireAnswer("home", "Flat", 5, "the flat is small")
    return write_answer([WireAnswer("pet", tag, confidence, evidence), home])


def review(store: TraceStore, user: str, **tags: str) -> None:
    [[record]] = store.rows("select record_id from records where user_id = ?", (user,))
    answer_reviews(store, record, {name: (tag, None) for name, tag in tags.items()}, "ann")


def rows(data: SftData) -> list[dict[str, Any]]:
    return [*data.rows("train"), *data.rows("validation")]


def said(row: dict[str, Any]) -> str:
    [message] = row["completion"]
    assert message["role"] == "assistant"
    text: str = message["content"]
    return text


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    with TraceStore(tmp_path / "traces.db") as opened:
        yield opened


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "sft"


# --- what a row says --------------------------------------------------------------------------------------


def test_prompts_are_what_the_teacher_was_asked_and_answers_are_its_votes(
    store: TraceStore, out: Path
) -> None:
    taxonomy, backend = load_taxonomy(), Listening()
    records = [{**PARENT, "user_id": f"same{i}"} for i in range(4)]
    records += [{**PARENT, "user_id": f"v{i}", "posted": [f"{_word(i)} spoons"]} for i in range(26)]
    profiler = Profiler(backend, store, samples=5)
    profiler.profile_many(records)
    data = export_sft(store, profiler.run_id, out, validation=0.3)
    profiles = {p.user_id: p for p in replay(store, profiler.run_id)}
    found = rows(data)
    assert [row["user_id"] for row in found if row["user_id"].startswith("same")] == ["same0"]
    assert data.card.dropped == {**dict.fromkeys(data.card.dropped, 0), "duplicate": 3}
    assert len(found) == 27
    assert 0 < len(list(data.rows("validation"))) < 20
    quoted = 0
    for row in found:
        asked = [message.as_dict() for message in backend.asked[row["user_id"]]]
        assert json.dumps(row["prompt"]) == json.dumps(asked)
        profile = profiles[row["user_id"]]
        assert row["tags"] == {name: profile[name].voted for name in taxonomy.names}
        assert row["confidence"] == {name: profile[name].confidence for name in taxonomy.names}
        assert row["gold"] == []
        parsed = parse_answer(said(row), taxonomy)
        block = fenced_block(Message(**message) for message in row["prompt"])
        contents = [block[line.start : line.end] for line in cue_lines(block)]
        for name, value in parsed.attributes.items():
            assert value[:3] == (Outcome.OK, row["tags"][name], row["confidence"][name])
            assert all(any(piece in line for line in contents) for piece in value.evidence)
            quoted += len(value.evidence)
    assert quoted > 27
    assert data.card.source.calibrator == next(iter(profiles.values())).calibrator
    assert data.card.read_taxonomy().hash == taxonomy.hash
    assert data.card.source.samplers == {"lexicon:profilebench": 150}


def test_a_row_is_byte_equal_to_the_golden_file(store: TraceStore, out: Path) -> None:
    pets(store, lambda i: answer(pet=("Cat", "Cat", "Dog")[i], confidence=i + 3), language="en-compact")
    data = export_sft(store, "r", out, validation=0)
    if os.environ.get("CP_AGENTS_UPDATE_GOLDEN"):
        shutil.copy(data.train, GOLDEN)
    assert data.train.read_bytes() == GOLDEN.read_bytes()
    assert data.validation.read_bytes() == b""


def test_the_rows_may_have_another_prompt_than_the_teacher(store: TraceStore, out: Path) -> None:
    pets(store)
    [full] = rows(export_sft(store, "r", out, validation=0))
    data = export_sft(store, "r", out, validation=0, language="en-compact")
    [compact] = rows(data)
    assert compact["completion"] == full["completion"]
    block = fenced_block(Message(**m) for m in full["prompt"])
    prompt = load_prompt(PETS, "en-compact")
    assert compact["prompt"] == [m.as_dict() for m in prompt.messages(block)]
    assert (data.card.language, data.card.prompt_version) == ("en-compact", prompt.version)
    assert data.card.source.prompt_version == load_prompt(PETS).version


def test_a_prompt_of_ones_own_has_to_be_named(store: TraceStore, out: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT.parent / "prompts" / "en", tmp_path / "mine")
    (folder / "user.md").write_text("Who is this? {{record}}")
    (folder / "example.yaml").unlink()
    pets(store, language=str(folder))
    with pytest.raises(InputError, match=r"run r was sampled with prompt \w{12}, .* with --language$"):
        export_sft(store, "r", out)
    assert not out.exists()
    data = export_sft(store, "r", out, language=str(folder), validation=0)
    assert rows(data)[0]["prompt"][-1]["content"].startswith("Who is this? <record>\n")
    assert data.card.language == str(folder)
    assert load_sft_data(out) == data
    (folder / "user.md").write_text("Who can this be? {{record}}")
    with pytest.raises(
        InputError, match=r"its rows have prompt \w{12}, and .*mine is \w{12} now; export it again$"
    ):
        load_sft_data(out)


def test_evidence_is_the_best_agreeing_samples_without_what_it_made_up(store: TraceStore, out: Path) -> None:
    made_up = "my cat sleeps all day; has two parrots"
    script = [answer(confidence=3), answer(confidence=5, evidence=made_up), answer(pet="Dog", confidence=5)]
    pets(store, lambda i: script[i])
    data = export_sft(store, "r", out, validation=0)
    [row] = rows(data)
    assert "<pet><tag>Cat</tag>" in said(row)
    assert "<evidence>my cat sleeps all day</evidence></pet>" in said(row)
    assert data.card.ungrounded == 1
    [bare] = rows(export_sft(store, "r", out, validation=0, evidence=False))
    assert said(bare).count("<evidence></evidence>") == 2
    assert bare["tags"] == row["tags"]


def test_the_vote_is_taught_also_where_the_profile_abstained(store: TraceStore, out: Path) -> None:
    pets(store, lambda i: answer(confidence=1), tau=5)
    assert all(value.tag == "NA" for profile in replay(store, "r") for value in profile.attributes.values())
    [row] = rows(export_sft(store, "r", out, validation=0))
    assert row["tags"] == {"pet": "Cat", "home": "Flat"}
    assert row["confidence"] == {"pet": 1, "home": 1}


def test_a_vote_for_na_quotes_nothing(store: TraceStore, out: Path) -> None:
    pets(store, lambda i: answer(pet="NA"))
    [row] = rows(export_sft(store, "r", out, validation=0))
    assert said(row).startswith("<pet><tag>NA</tag><score>4</score><evidence></evidence></pet>\n")


# --- reviews ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "evidence"),
    [("Cat", "my cat sleeps all day"), ("Dog", "dog"), ("Fish", ""), ("NA", "")],
)
def test_a_persons_answer_overrides_with_evidence_that_speaks_for_it(
    store: TraceStore, out: Path, tag: str, evidence: str
) -> None:
    pets(store, lambda i: answer(pet="Dog", evidence="dog") if i == 2 else answer(), users=("u1", "u2"))
    review(store, "u1", pet=tag)
    data = export_sft(
        store, "r", out, validation=0, min_share=0.9
    )  # the vote of 2 to 1 fails, a person's word not
    [row] = rows(data)
    assert row["user_id"] == "u1"
    assert said(row).startswith(f"<pet><tag>{tag}</tag><score>5</score><evidence>{evidence}</evidence></pet>")
    assert (row["tags"]["pet"], row["confidence"]["pet"], row["gold"]) == (tag, 5, ["pet"])
    assert data.card.gold == 1
    assert data.card.balance["pet"][tag].train == 1
    assert data.card.dropped["vote_share"] == 1


# --- what is left out -------------------------------------------------------------------------------------


def test_records_without_a_vote_or_a_profile_are_left_out_and_counted(store: TraceStore, out: Path) -> None:
    pets(store, users=("u1", "u2", "u3"))
    no_pet = "<home><tag>Flat</tag><score>4</score><evidence>the flat is small</evidence></home>"
    for user in ("u2", "u3"):
        [[record]] = store.rows("select record_id from records where user_id = ?", (user,))
        with store.transaction() as conn:
            conn.execute(
                "delete from predictions where attribute = 'pet' and sample_id in"
                " (select sample_id from samples where record_id = ?)",
                (record,),
            )
    review(store, "u3", pet="Cat")
    with store.transaction() as conn:  # a run that was killed before it decided the record
        conn.execute(
            "insert into records select 99, run_id, 'u4', cues, tokens, self_reported, dropped, null, created_at,"
            " null, null from records where user_id = 'u1'"
        )
    data = export_sft(store, "r", out, validation=0)
    assert [row["user_id"] for row in rows(data)] == ["u1", "u3"]
    assert rows(data)[1]["gold"] == ["pet"]
    assert data.card.records == 4
    assert {k: v for k, v in data.card.dropped.items() if v} == {"unfinished": 1, "failed": 1}
    assert no_pet in said(rows(data)[1])


@pytest.mark.parametrize(
    ("script", "filters", "reason"),
    [
        (lambda i: on_pet(("Cat", "Cat", "Dog")[i]), {"min_share": 0.7}, "vote_share"),
        (lambda i: on_pet(("NA", "NA", "Dog")[i]), {"min_share": 0.7}, "vote_share"),
        (lambda i: on_pet(("Cat", "Cat", "Dog")[i]), {"min_share": 0.6}, None),
        (lambda i: on_pet(confidence=1), {"min_confidence": 2}, "confidence"),
        (lambda i: on_pet("NA", confidence=1), {"min_confidence": 2}, None),
        (lambda i: on_pet(evidence="nothing of the kind"), {"grounded": True}, "ungrounded"),
        (lambda i: on_pet("NA", evidence="nothing of the kind"), {"grounded": True}, None),
        (lambda i: on_pet(confidence=1), {"statuses": ["accepted"]}, "status"),
        (lambda i: on_pet("NA"), {"statuses": ["accepted"]}, None),
        (lambda i: on_pet(confidence=1), {"statuses": ["accepted"], "may_fail": 1}, None),
        (lambda i: on_pet(confidence=1), {"statuses": ["accepted", "abstained"]}, None),
        (lambda i: on_pet("Dog", confidence=1), {"min_share": 1, "min_confidence": 1}, None),
    ],
)
def test_filters_leave_out_whole_rows_and_are_counted(
    store: TraceStore, out: Path, script: Any, filters: dict[str, Any], reason: str | None
) -> None:
    # The first user's pet is another matter; a second user is always kept, by a person.
    pets(store, script, users=("u1", "u2"), tau=["pet=2"])
    review(store, "u2", pet="Fish", home="House")
    data = export_sft(store, "r", out, validation=0, **filters)
    assert [row["user_id"] for row in rows(data)] == (["u2"] if reason else ["u1", "u2"])
    assert {k: v for k, v in data.card.dropped.items() if v} == ({reason: 1} if reason else {})
    assert data.card.failing["home"] == 0
    if reason is None and not filters.get("may_fail"):
        assert data.card.failing["pet"] == 0
    assert set(rows(data)[0]["tags"]) == {"pet", "home"}


def test_a_row_goes_for_the_first_reason_when_more_fail_than_may() -> None:
    two = ["confidence", "status"]
    assert reason_to_drop(two, SftFilters()) == "status"
    assert reason_to_drop(two, SftFilters(may_fail=1)) == "status"
    assert reason_to_drop(two, SftFilters(may_fail=2)) is None
    assert reason_to_drop([], SftFilters()) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"statuses": ["failed"]}, "no status 'failed' to keep: expected some of accepted, abstained"),
        ({"min_share": 1.5}, "the least vote share should be from 0 to 1, found 1.5"),
        ({"min_confidence": 6}, "the least confidence should be from 1 to 5, found 6"),
        ({"may_fail": -1}, "the attributes that may fail a filter should be 0 or more, found -1"),
        ({"validation": 1.0}, "the validation share should be from 0 to below 1, found 1.0"),
        ({"min_share": 1.0}, "no row of run r is left to train on: of 1 records, left out as vote_share 1"),
        (
            {"reasoning": True},
            "no row of run r is left to train on: of 1 records, left out as no_reasoning 1",
        ),
        ({"language": "fr"}, "no prompt language 'fr'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    store: TraceStore, out: Path, options: dict[str, Any], says: str
) -> None:
    pets(store, lambda i: answer(pet=("Cat", "Cat", "Dog")[i]))
    with pytest.raises(InputError) as caught:
        export_sft(store, "r", out, **options)
    assert str(caught.value).startswith(says)
    assert [path.name for path in out.parent.iterdir() if "sft" in path.name] == []


# --- reasoning --------------------------------------------------------------------------------------------


def test_reasoning_is_that_of_the_sample_that_agrees_most(store: TraceStore, out: Path) -> None:
    def script(i: int) -> Completion:
        text = answer(pet="Dog" if i == 0 else "Cat", confidence=5 if i == 2 else 3)
        thought = "" if i == 2 else f"sample {i} </think> thinks"
        return Completion(index=i, text=text, reasoning=thought, finish_reason="stop")

    pets(store, script)
    [row] = rows(export_sft(store, "r", out, validation=0))
    assert said(row).startswith("<pet>")
    [row] = rows(export_sft(store, "r", out, validation=0, reasoning=True))
    assert said(row).startswith("<think>\nsample 1   thinks\n</think>\n\n<pet><tag>Cat</tag>")
    parsed = parse_answer(said(row), PETS)
    assert parsed.reasoning == "sample 1   thinks"
    assert {name: value.tag for name, value in parsed.attributes.items()} == row["tags"]


def test_think_blocks_within_the_text_are_reasoning_too(store: TraceStore, out: Path) -> None:
    pets(store, lambda i: f"<think>a cat, I think</think>\n{answer()}")
    [row] = rows(export_sft(store, "r", out, validation=0, reasoning=True))
    assert said(row).startswith("<think>\na cat, I think\n</think>\n\n<pet>")


def test_the_best_sample_agrees_most_then_is_surest_then_first() -> None:
    votes = [(0, "s", "a", "X", 5), (0, "s", "b", "Z", 5), (1, "s", "a", "X", 1), (1, "s", "b", "Y", 1)]
    tags = {"a": "X", "b": "Y"}
    assert best_sample(votes, tags, [0, 1]) == 1
    assert best_sample(votes, {"a": "X"}, [0, 1]) == 0
    assert best_sample([], tags, [4, 3]) == 3
    assert best_sample(votes, tags, []) is None


@given(st.text(alphabet=st.sampled_from("<>/thinkreasonig \n")))
def test_no_thought_ends_its_block_early(text: str) -> None:
    thought = clean_thought(text)
    parsed = parse_answer(f"<think>\n{thought}\n</think>\n\n{answer()}", PETS)
    assert all(value.outcome is Outcome.OK for value in parsed.attributes.values())


# --- the split --------------------------------------------------------------------------------------------


@given(
    st.text(min_size=1), st.integers(), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)
)
def test_a_larger_share_only_adds_users(user: str, seed: int, one: float, other: float) -> None:
    small, large = sorted((one, other))
    if split_of(user, seed, small) == "validation":
        assert split_of(user, seed, large) == "validation"
    assert split_of(user, seed, 0.0) == "train"


def test_the_share_is_met_and_the_seed_matters() -> None:
    users = [f"user {i}" for i in range(5000)]
    sides = {seed: [split_of(user, seed, 0.1) == "validation" for user in users] for seed in (0, 1)}
    assert all(430 < sum(side) < 570 for side in sides.values())
    both = sum(a and b for a, b in zip(*sides.values(), strict=True))
    assert both < 90


def test_new_users_move_nobody_and_the_same_export_has_the_same_bytes(store: TraceStore, out: Path) -> None:
    users = tuple(f"u{i}" for i in range(40))
    pets(store, users=users[:20])
    before = export_sft(store, "r", out, validation=0.3)
    bytes_before = {path.name: path.read_bytes() for path in out.iterdir()}
    sides = {side: [row["user_id"] for row in before.rows(side)] for side in ("train", "validation")}
    again = export_sft(store, "r", out, validation=0.3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == bytes_before
    assert again == before
    pets(store, users=users)
    after = export_sft(store, "r", out, validation=0.3)
    for side, there in sides.items():
        assert [row["user_id"] for row in after.rows(side)][: len(there)] == there
    assert sum(sealed.rows for sealed in after.card.files.values()) == 40


# --- the folder -------------------------------------------------------------------------------------------


def test_a_loaded_export_is_the_written_one_and_its_card_names_nobody(store: TraceStore, out: Path) -> None:
    users = tuple(f"user-{i}" for i in range(10))
    pets(store, users=users)
    written = export_sft(store, None, out)
    loaded = load_sft_data(str(out))
    assert loaded == written
    assert loaded.card.read_taxonomy() == PETS
    assert loaded.card.taxonomy_hash == PETS.hash
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "card.json", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip
    for name in ("card.json", "README.md"):
        assert "user-" not in (out / name).read_text()
        assert "my cat" not in (out / name).read_text()
    assert "| pet | Cat |" in (out / "README.md").read_text()


def test_datasets_reads_the_folder_whichever_row_is_reviewed(
    store: TraceStore, out: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    users = tuple(f"user-{i}" for i in range(10))
    pets(store, users=users)
    review(store, "user-9", pet="Dog")
    export_sft(store, "r", out, validation=0)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"), chunksize=4000)
    assert list(loaded) == ["train"]
    assert loaded["train"]["gold"][:] == [[]] * 9 + [["pet"]]
    assert loaded["train"][9]["tags"] == {"pet": "Dog", "home": "Flat"}


def test_a_changed_or_missing_file_is_refused(store: TraceStore, out: Path) -> None:
    pets(store)
    data = export_sft(store, "r", out, validation=0)
    before = data.train.read_text()
    data.train.write_text(before.replace("Cat", "Dog"))
    with pytest.raises(InputError, match=r"train\.jsonl is not as it was exported"):
        load_sft_data(out)
    data.train.write_text(before)
    data.validation.unlink()
    with pytest.raises(InputError, match=r"the file validation\.jsonl is missing"):
        load_sft_data(out)
    (out / "card.json").write_text('{"kind": "cp-agents sft data"}')
    with pytest.raises(InputError, match=r"card\.json: not a card of SFT data \(source: Field required\)"):
        load_sft_data(out)
    with pytest.raises(InputError, match="holds no SFT data"):
        load_sft_data(out.parent)


def test_forget_reaches_an_export_and_leaves_it_usable(store: TraceStore, out: Path) -> None:
    pets(store, users=("secret-77", "u2", "u3", "u4"))
    data = export_sft(store, "r", out, validation=0.4)
    assert forget(store, "secret-77", exports=[out]).export_lines == 1
    assert not any(b"secret-77" in path.read_bytes() for path in out.iterdir())
    loaded = load_sft_data(out)
    assert sorted(row["user_id"] for row in rows(loaded)) == ["u2", "u3", "u4"]
    assert sum(sealed.forgotten for sealed in loaded.card.files.values()) == 1
    assert sum(sealed.rows for sealed in loaded.card.files.values()) == 3
    side = "train" if any(row["user_id"] == "u2" for row in data.rows("train")) else "validation"
    assert forget(store, "u2", exports=[getattr(data, side)]).export_lines == 1
    assert len(rows(load_sft_data(out))) == 2
    assert forget(store, "nobody", exports=[out]).export_lines == 0
    with pytest.raises(InputError, match="is a folder without an export"):
        forget(store, "u3", exports=[out.parent])


def test_forget_does_not_seal_what_somebody_else_has_changed(store: TraceStore, out: Path) -> None:
    pets(store, users=("u1", "u2"))
    data = export_sft(store, "r", out, validation=0)
    data.train.write_text(data.train.read_text().replace("Cat", "Dog"))
    assert forget(store, "u1", exports=[out]).export_lines == 1
    with pytest.raises(InputError, match="is not as it was exported"):
        load_sft_data(out)


def test_only_an_earlier_export_is_replaced(store: TraceStore, out: Path, tmp_path: Path) -> None:
    pets(store)
    out.mkdir()
    export_sft(store, "r", out, validation=0)  # an empty folder may be filled
    (out / "weights.bin").write_bytes(b"1")
    with pytest.raises(InputError, match=r"cannot replace the export in .*also holds 'weights.bin'"):
        export_sft(store, "r", out)
    assert (out / "weights.bin").is_file()
    with pytest.raises(InputError, match="is not empty and holds no earlier export"):
        export_sft(store, "r", tmp_path)
    with pytest.raises(InputError, match="it is a file, expected a folder"):
        export_sft(store, "r", tmp_path / "traces.db")
    with pytest.raises(InputError, match=r"the folder .*absent does not exist"):
        export_sft(store, "r", tmp_path / "absent" / "sft")


def test_an_export_that_fails_leaves_the_earlier_one(store: TraceStore, out: Path) -> None:
    pets(store)
    export_sft(store, "r", out, validation=0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="no row of run r is left"):
        export_sft(store, "r", out, reasoning=True)
    with pytest.raises(RuntimeError, match="power cut"), whole_folder(out, KIND, before) as part:  # noqa: PT012
        (part / "train.jsonl").write_text("half")
        raise RuntimeError("power cut")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in out.parent.iterdir() if path.is_dir()) == ["sft"]


def test_a_run_without_profiles_is_one_sentence(store: TraceStore, out: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        export_sft(store, None, out)
    with pytest.raises(StoreError, match=r"no run 'x' in the store .* \(runs: none\)"):
        export_sft(store, "x", out)
    pets(store, users=())
    with pytest.raises(InputError, match="run r holds no finished record to export"):
        export_sft(store, "r", out)
    error = Completion(index=0, error_type=ErrorType.BAD_REQUEST, error_message="no")
    pets(store, lambda i: error, run="dead")
    with pytest.raises(InputError, match=r"no row of run dead is left to train on: .* failed 1$"):
        export_sft(store, "dead", out)
    assert not out.exists()


# --- the command line -------------------------------------------------------------------------------------


def test_the_command_prints_counts_and_balance_and_forget_takes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [{"user_id": f"u{i}", "posted": [f"daycare costs {i}", "newborn"]} for i in range(12)]
    Path("in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert cli("profile", "in.jsonl", "--out", "p.jsonl", "--samples", "3", "--run", "teacher").code == 0
    done = cli("export", "sft", "--out", "sft", "--language", "en-compact", "--min-share", "0.3")
    assert done.code == 0, done.err
    for words in ("class balance", "Parenting (Child 0-2)", "12 records of run teacher; left out: none",
                  "(en-compact)", "rows to train on", "never: "):  # fmt: skip
        assert words in done.out
    assert cli("forget", "u3", "--export", "sft").out.endswith("3 samples, 1 export lines\n")
    assert len(rows(load_sft_data("sft"))) == 11


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--store", "absent.db"], "no trace store at absent.db"),
        ([], "holds no run"),
        (["--status", "wrong"], "no status 'wrong'"),
        (["--min-share", "2"], "the least vote share"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    TraceStore("traces.db").close()
    done = cli("export", "sft", "--out", "sft", *arguments)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not Path("sft").exists()
