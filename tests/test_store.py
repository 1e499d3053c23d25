"""The trace store: nothing lost, nothing overwritten, nothing left behind."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlite_utils import Database

from cp_agents.cues import AssembledCues
from cp_agents.errors import ErrorType, InputError, StoreError
from cp_agents.review import ReviewAnswer, parse_response, question
from cp_agents.schema import (
    AttributeProfile,
    Completion,
    Evidence,
    Match,
    Outcome,
    Prediction,
    Profile,
    Status,
)
from cp_agents.stores.forget import forget
from cp_agents.stores.reviews import (
    answer_one,
    answer_reviews,
    apply_reviews,
    open_reviews,
    requeue,
    reviewed,
)
from cp_agents.stores.stats import run_stats, table_sizes
from cp_agents.stores.traces import NewSample, TraceStore, VoteRow, cues_hash, unpack_evidence
from cp_agents.taxonomy import Attribute, Tag, Taxonomy

PETS = Taxonomy(name="pets", attributes=[Attribute(name="pet", tags=[Tag(name="Cat"), Tag(name="Dog")])])
COLUMNS = {
    "backend": "lexicon",
    "endpoint": "",
    "model": "m",
    "revision": "r",
    "taxonomy": PETS.model_dump_json(),
    "taxonomy_hash": PETS.hash,
    "prompt_version": "p",
    "samples": 2,
    "settings": "{}",
}

REVIEWING = COLUMNS | {"settings": '{"review": {"split_vote": 0.5}}'}


def cues(text: str = "[posted]\n- my cat sleeps") -> AssembledCues:
    return AssembledCues(text=text, self_reported={"name": "x"}, tokens=5, dropped={})


def good(tag: str = "Cat") -> dict[str, Prediction]:
    span = Evidence(text="my cat", source="posted", start=11, end=17, match=Match.EXACT)
    return {
        "pet": Prediction(outcome=Outcome.OK, tag=tag, confidence=4, evidence=[span, Evidence(text="purrs")])
    }


def add(store: TraceStore, record: int, index: int, key: str | None = None, **fields: object) -> int:
    completion = Completion(index=index, text="<pet>", sampler="s", **fields)  # type: ignore[arg-type]
    outcome = Outcome.ERROR if completion.error_type else Outcome.OK
    return store.add_samples(record, "h", [NewSample(completion, outcome, good(), key)])[0].sample_id


def value(**changes: object) -> AttributeProfile:
    fields = {
        "tag": "Cat",
        "confidence": 4,
        "score": 8.0,
        "vote_share": 1.0,
        "status": "accepted",
        "voted": "Cat",
    }
    return AttributeProfile.model_validate(fields | changes)


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(tmp_path / "traces.db")


def test_a_run_name_is_shared_only_by_what_samples_the_same(store: TraceStore) -> None:
    first = store.open_run("mine", "aaa", COLUMNS)
    other = store.open_run("mine", "bbb", COLUMNS)
    assert (first, other) == ("mine", "mine-2")
    assert store.open_run("mine", "aaa", COLUMNS) == first
    assert store.open_run("mine", "bbb", COLUMNS) == other
    assert store.run()["run_id"] == other
    assert store.open_run("mine-2", "bbb", COLUMNS) == other
    assert store.open_run("mine-2", "aaa", COLUMNS) == "mine-2-2"
    with pytest.raises(StoreError, match=r"no run 'nope' .*runs: mine, mine-2, mine-2-2\)"):
        store.run("nope")


def test_what_is_stored_comes_back(store: TraceStore) -> None:
    run = store.open_run("r", "f", COLUMNS)
    record = store.put_record(run, "u1", cues())
    add(store, record, 0)
    add(store, record, 1, error_type=ErrorType.TIMEOUT, error_message="no answer")
    samples = store.samples(record)
    assert samples[0].is_final
    assert samples[0].outcome is Outcome.OK
    assert samples[1].error_type is ErrorType.TIMEOUT
    assert not samples[1].is_final
    assert store.record(record) == ("u1", "[posted]\n- my cat sleeps", {"name": "x"})
    rows = store.predictions(record)
    assert set(rows) == {(0, "s", "pet", "Cat", 4), (1, "s", "pet", "Cat", 4)}
    packed, absent = store.evidence([(record, 0, "pet"), (record, -1, "pet")])
    assert json.loads(packed or "") == [[11, 17, "exact"], ["purrs"]]
    assert absent is None
    [exact, free] = unpack_evidence(packed, cues().text)
    assert (exact.text, exact.source, exact.start, exact.end) == ("my cat", "posted", 11, 17)
    assert (free.text, free.match) == ("purrs", Match.UNGROUNDED)


def test_a_failed_sample_is_replaced_and_a_good_one_is_cached(store: TraceStore) -> None:
    record = store.put_record(store.open_run("r", "f", COLUMNS), "u1", cues())
    add(store, record, 0, key="k", error_type=ErrorType.SERVER)
    assert store.cached(["k"]) == {}
    again = add(store, record, 0, key="k")
    assert list(store.samples(record)) == [0]
    assert store.cached(["k", "other"])["k"][0] == again
    assert store.rows("select count(*) from predictions")[0][0] == 1


def test_changed_cues_start_anew_and_keep_what_people_said(store: TraceStore) -> None:
    run = store.open_run("r", "f", COLUMNS)
    record = store.put_record(run, "u1", cues())
    add(store, record, 0)
    answer_reviews(store, record, {"pet": ("Dog", None)}, "ann")
    assert store.put_record(run, "u1", cues()) == record
    assert len(store.samples(record)) == 1
    assert store.put_record(run, "u1", cues("[posted]\n- my dog barks")) == record
    assert store.samples(record) == {}
    assert store.record(record)[1] == "[posted]\n- my dog barks"
    assert reviewed(store, [record])[record]["pet"]["tag"] == "Dog"


def test_a_record_is_finished_only_with_a_profile_and_final_samples(store: TraceStore) -> None:
    run = store.open_run("r", "f", COLUMNS)
    record = store.put_record(run, "u1", cues())
    add(store, record, 0)
    add(store, record, 1, error_type=ErrorType.TIMEOUT)
    assert store.finished(run, 2) == {}
    profile = Profile(user_id="u1", attributes={"pet": value()}, run_id=run)
    store.put_profile(record, [VoteRow("pet", "weighted", "Cat", 8.0, 1.0, None, 1.0, 2)], profile)
    assert store.finished(run, 2) == {}  # a timeout is worth another try
    add(store, record, 1, error_type=ErrorType.BAD_REQUEST)
    assert store.finished(run, 2) == {"u1": cues_hash(cues().text)}
    assert store.finished(run, 3) == {}
    assert [p.user_id for _, p in store.profiles(run)] == ["u1"]
    assert store.rows("select tag, confidence, status from profile_attributes") == [("Cat", 4, "accepted")]


def test_the_review_queue_follows_profiles_and_keeps_every_answer(store: TraceStore) -> None:
    run = store.open_run("r", "f", REVIEWING)
    record = store.put_record(run, "u1", cues())
    waiting = Profile(
        user_id="u1", attributes={"pet": value(status="needs_review", reasons=["split_vote"])}, run_id=run
    )
    store.put_profile(record, [], waiting)
    requeue(store, {record: waiting})
    requeue(store, {record: waiting})
    [row] = open_reviews(store)
    assert (row["attribute"], row["proposed"], row["reasons"]) == ("pet", "Cat", ["split_vote"])

    settled = waiting.model_copy(update={"attributes": {"pet": value()}})
    requeue(store, {record: settled})
    assert open_reviews(store) == []

    requeue(store, {record: waiting})
    [row] = open_reviews(store)
    with pytest.raises(InputError, match=r"'Fish' is no tag of pet: expected Cat, Dog, NA"):
        answer_one(store, row["review_id"], "Fish", "ann")
    answer_one(store, row["review_id"], "dog", "ann", "seen on a photo")
    stored = store.profile(record)
    assert stored is not None
    assert (stored["pet"].tag, stored["pet"].voted, stored["pet"].status) == ("Dog", "Cat", Status.REVIEWED)
    assert stored["pet"].reviewer == "ann"
    assert open_reviews(store) == []

    answer_one(store, row["review_id"], "NA", "bob")
    assert [r["tag"] for r in store.query("select tag from reviews order by review_id")] == ["Dog", "NA"]
    assert apply_reviews(waiting, reviewed(store)[record])["pet"].reviewer == "bob"
    with pytest.raises(InputError, match="no review 99"):
        answer_one(store, 99, "Cat", "ann")


def test_the_queue_keeps_waiting_when_the_run_goes_on_without_a_review_policy(store: TraceStore) -> None:
    run = store.open_run("r", "f", REVIEWING)
    record = store.put_record(run, "u1", cues())
    waiting = Profile(user_id="u1", attributes={"pet": value(status="needs_review")}, run_id=run)
    settled = waiting.model_copy(update={"attributes": {"pet": value()}})
    requeue(store, {record: waiting})
    store.open_run("r", "f", COLUMNS)
    requeue(store, {record: settled})
    assert len(open_reviews(store, run)) == 1
    store.open_run("r", "f", REVIEWING)
    requeue(store, {record: settled})
    assert open_reviews(store, run) == []
    with pytest.raises(StoreError, match="no run 'nope'"):
        open_reviews(store, "nope")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([{"type": "edit", "args": {"args": {"pet": "dog"}}, "reviewer": "ana", "note": "seen"}], "Dog"),
        ({"decisions": [{"type": "approve", "reviewer": "ana", "note": "seen"}]}, "Cat"),
        ([{"type": "response", "args": {"pet": "Dog"}, "reviewer": "ana", "note": "seen"}], "Dog"),
        ({"answers": {"pet": "Dog"}, "reviewer": "ana", "note": "seen"}, "Dog"),
        ({"answers": {"pet": {"tag": "Dog", "note": "seen"}}, "reviewer": "ana", "note": "other"}, "Dog"),
    ],
)
def test_every_shape_of_answer_keeps_reviewer_and_note(said: object, expected: str) -> None:
    response = parse_response(said, PETS, {"pet": "Cat"})
    assert response.reviewer == "ana"
    assert response.answers["pet"] == ReviewAnswer(tag=expected, note="seen")


def test_an_inbox_offers_no_free_text_that_would_be_refused() -> None:
    asked = question("u1", "r", {"pet": value(reasons=["audit"])}, cues().text)
    assert asked["config"] == {
        "allow_accept": True,
        "allow_edit": True,
        "allow_respond": False,
        "allow_ignore": True,
    }
    with pytest.raises(InputError, match="attributes and tags in `args`"):
        parse_response([{"type": "response", "args": "looks like a dog"}], PETS, {"pet": "Cat"})


def test_a_record_without_samples_is_not_unpriced(store: TraceStore) -> None:
    store.put_record(store.open_run("r", "f", COLUMNS), "u1", cues())
    [stats] = run_stats(store)
    assert (stats["records"], stats["samples"], stats["unpriced"]) == (1, 0, 0)


def test_forget_leaves_no_byte(store: TraceStore, tmp_path: Path) -> None:
    run = store.open_run("r", "f", COLUMNS)
    for user in ("secret-user-77", "other"):
        record = store.put_record(run, user, cues(f"[posted]\n- words of {user}"))
        add(store, record, 0, key=f"key-{user}")
        store.put_profile(record, [], Profile(user_id=user, attributes={"pet": value()}, run_id=run))
        answer_reviews(store, record, {"pet": ("Dog", f"note on {user}")}, "ann")
    export = tmp_path / "out.jsonl"
    export.write_text('{"user_id": "secret-user-77"}\n{"user_id": "other"}\nnot json\n')
    gone = forget(store, "secret-user-77", exports=[export])
    assert (gone.records, gone.samples, gone.export_lines) == (1, 1, 1)
    assert export.read_text() == '{"user_id": "other"}\nnot json\n'
    assert store.cached(["key-secret-user-77"]) == {}
    assert list(store.cached(["key-other"])) == ["key-other"]
    for file in tmp_path.iterdir():
        assert b"secret-user-77" not in file.read_bytes(), file
    assert forget(store, "secret-user-77").records == 0
    with pytest.raises(InputError, match="no file at"):
        forget(store, "other", exports=[tmp_path / "absent.jsonl"])


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    TraceStore(path).close()
    Database(path)["_sqlite_migrations"].insert(
        {"migration_set": "cp_agents", "name": "m999_future", "applied_at": "2030"}
    )
    with pytest.raises(StoreError, match=r"newer version of cp-agents \(it has 'm999_future'\)"):
        TraceStore(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda p: p.write_text("this is no database, only a text file of some length\n" * 50),
            "cannot open the store",
        ),
        (lambda p: sqlite3.connect(p).execute("create table runs (x)"), "is no cp-agents store"),
        (lambda p: None, "no trace store at"),
    ],
)
def test_a_file_that_is_no_store_is_one_sentence(tmp_path: Path, make: object, sentence: str) -> None:
    path = tmp_path / "traces.db"
    make(path)  # type: ignore[operator]
    with pytest.raises(StoreError, match=sentence):
        TraceStore(path, must_exist=True)


def test_a_failed_transaction_leaves_nothing(store: TraceStore) -> None:
    run = store.open_run("r", "f", COLUMNS)

    def fail() -> None:
        with store.transaction():
            store.put_record(run, "u1", cues())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.rows("select * from records") == []


def test_threads_share_a_store(store: TraceStore) -> None:
    run = store.open_run("r", "f", COLUMNS)

    def write(user: str) -> None:
        record = store.put_record(run, user, cues())
        for index in range(20):
            add(store, record, index)

    threads = [threading.Thread(target=write, args=(f"u{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.rows("select count(*) from samples") == [(160,)]
    [stats] = run_stats(store)
    assert (stats["records"], stats["samples"], stats["outcomes"]) == (8, 160, "ok 160")
    assert {size.table: size.rows for size in table_sizes(store)}["predictions"] == 160


def test_a_new_store_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    code = f"from cp_agents import TraceStore; TraceStore({str(tmp_path / 'new.db')!r}).open_run('r', 'f', {COLUMNS!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    assert [(p.communicate()[1], p.returncode) for p in processes] == [(b"", 0)] * 4
