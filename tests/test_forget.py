"""`forget`: every thread, every file, and no claim that is not true."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from sqlite_utils import Database

import cp_agents
from cp_agents import Profiler
from cp_agents.errors import InputError, StoreError
from cp_agents.routing import ReviewPolicy
from cp_agents.stores.forget import Forgotten, forget
from cp_agents.stores.migrations import migrations
from cp_agents.stores.traces import TraceStore
from tests.support import PETS, RECORD, ScriptedBackend, answer
from tests.test_store import COLUMNS, add, cues

SECRET = "secret-user-77"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    with TraceStore(tmp_path / "traces.db") as opened:
        yield opened


def put(store: TraceStore, user: str, thread: str | None = None) -> int:
    record = store.put_record(
        store.open_run("r", "f", COLUMNS), user, cues(f"[posted]\n- words of {user}"), thread
    )
    add(store, record, len(store.samples(record)))
    return record


def holding(folder: Path, text: str) -> list[str]:
    return [file.name for file in folder.iterdir() if text.encode() in file.read_bytes()]


async def profile_on_threads(
    path: Path, store: TraceStore, *calls: tuple[str | int, str], review: bool = False, **options: Any
) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        p = Profiler(
            backend=ScriptedBackend(lambda i: answer()),
            taxonomy=PETS,
            samples=2,
            store=store,
            checkpointer=saver,
            review=ReviewPolicy(contradiction=True) if review else None,
        )
        for user, thread in calls:
            config: Any = {"configurable": {"thread_id": thread}}
            await p.graph.ainvoke({"record": {**RECORD, "user_id": user}}, config, **options)


async def test_every_thread_is_erased_and_shared_ones_are_named(store: TraceStore, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.db"
    await profile_on_threads(
        path,
        store,
        (SECRET, "first"),
        (SECRET, "second"),
        (SECRET, "both"),
        ("other", "both"),
        ("other", "o"),
    )
    assert holding(tmp_path, SECRET)
    gone = forget(store, SECRET, checkpoints=path)
    assert gone == Forgotten(1, 2, ("both", "first", "second"), 0, shared_threads=("both",))
    assert holding(tmp_path, SECRET) == []
    with sqlite3.connect(path) as conn:
        assert conn.execute("select distinct thread_id from checkpoints").fetchall() == [("o",)]
    assert store.rows("select distinct thread_id from record_threads order by 1") == [("both",), ("o",)]


@pytest.mark.parametrize("user", [SECRET, 77])
@pytest.mark.parametrize("options", [{}, {"durability": "exit"}, {"review": True, "durability": "exit"}])
async def test_checkpoints_may_be_named_afterwards(
    store: TraceStore, tmp_path: Path, user: str | int, options: dict[str, Any]
) -> None:
    path = tmp_path / "checkpoints.db"
    await profile_on_threads(path, store, (user, "t"), ("other", "o"), **options)
    assert forget(store, str(user)).threads == ("t",)
    assert forget(store, str(user), checkpoints=path) == Forgotten(0, 0, ("t",), 0)
    with sqlite3.connect(path) as conn:
        assert conn.execute("select distinct thread_id from checkpoints").fetchall() == [("o",)]


def test_threads_are_only_added_to(store: TraceStore) -> None:
    record = put(store, "u", "t1")
    assert put(store, "u", "t2") == record
    store.put_record("r", "u", cues("[posted]\n- other words"), "t3")
    store.put_record("r", "u", cues("[posted]\n- other words"))
    assert store.rows("select thread_id from record_threads") == [("t1",), ("t2",), ("t3",)]
    assert store.rows("select thread_id from records") == [("t3",)]


def test_threads_of_an_older_store_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with Database(sqlite3.connect(path)).conn as conn:
        migrations.apply(Database(conn), stop_before="m003_record_threads")
        row = {"run_id": "r", "name": "r", "fingerprint": "f", **COLUMNS, "created_at": ""}
        Database(conn)["runs"].insert(row)
        conn.execute("insert into records values (1, 'r', 'u', '', 0, '{}', '{}', 'old-thread', '')")
    with TraceStore(path) as store:
        assert forget(store, "u").threads == ("old-thread",)


def test_success_is_not_claimed_while_another_program_reads(store: TraceStore, tmp_path: Path) -> None:
    put(store, SECRET)
    reader = sqlite3.connect(tmp_path / "traces.db", isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from records").fetchone()
    with pytest.raises(StoreError, match=r"rows are deleted, but the log of .* run it again") as caught:
        forget(store, SECRET, patience_s=0.05)
    assert "\n" not in str(caught.value)
    assert store.rows("select * from records") == []
    reader.close()
    assert forget(store, SECRET, patience_s=0.05).records == 0
    assert holding(tmp_path, SECRET) == []


def test_a_store_that_another_program_writes_is_one_sentence(store: TraceStore, tmp_path: Path) -> None:
    put(store, SECRET)
    writer = sqlite3.connect(tmp_path / "traces.db", isolation_level=None)
    writer.execute("begin immediate")
    with pytest.raises(StoreError, match=r"no row of .secret-user-77. could be deleted .*locked"):
        forget(store, SECRET, patience_s=0.05)
    writer.execute("rollback")
    assert forget(store, SECRET, patience_s=0.05).records == 1
    assert store.rows("pragma busy_timeout") == [(30_000,)]


async def test_locked_checkpoints_keep_the_rows_that_know_their_threads(
    store: TraceStore, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints.db"
    await profile_on_threads(path, store, (SECRET, "t"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(StoreError, match=r"checkpoints in .* could not be deleted"):
        forget(store, SECRET, checkpoints=path, patience_s=0.05)
    other.close()
    assert forget(store, SECRET, checkpoints=path).threads == ("t",)
    assert holding(tmp_path, SECRET) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b'{"user_id": "x"}\n\xff\xfe\n', "line 2: not UTF-8"), (b"SQLite format 3\0ab\n", "line 1: not text")],
)
def test_an_export_that_is_no_text_is_refused_before_anything_is_deleted(
    store: TraceStore, tmp_path: Path, content: bytes, sentence: str
) -> None:
    put(store, SECRET)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(f'{{"user_id": "{SECRET}"}}\n')
    bad.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        forget(store, SECRET, exports=[good, bad])
    assert SECRET in good.read_text()
    assert bad.read_bytes() == content
    assert store.rows("select count(*) from samples") == [(1,)]


@pytest.mark.parametrize("kind", ["text", "another database", "nothing"])
def test_checkpoints_in_another_file_are_refused_before_anything_is_deleted(
    store: TraceStore, tmp_path: Path, kind: str
) -> None:
    put(store, SECRET, "t")
    path = tmp_path / "checkpoints.db"
    if kind == "text":
        path.write_text("no database, only a text of some length\n" * 50)
    elif kind == "another database":
        Database(path)["things"].insert({"a": 1})
    with pytest.raises(InputError, match=r"no file (of a LangGraph SQLite checkpointer|at)"):
        forget(store, SECRET, checkpoints=path)
    assert store.rows("select count(*) from samples") == [(1,)]


def test_export_lines_behind_a_mark_and_integer_ids_are_found(store: TraceStore, tmp_path: Path) -> None:
    export = tmp_path / "out.jsonl"
    export.write_bytes(
        b'\xef\xbb\xbf{"user_id": 77}\r\n{"user_id": "77"}\n{"user_id": 7}\r\nno json\n{"user_id": null}'
    )
    assert forget(store, "77", exports=[export]).export_lines == 2
    assert export.read_bytes() == b'{"user_id": 7}\r\nno json\n{"user_id": null}'


def test_the_store_may_be_a_path(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "traces.db") as store:
        put(store, SECRET)
    assert cp_agents.forget(str(tmp_path / "traces.db"), SECRET).samples == 1
    with pytest.raises(StoreError, match="no trace store at"):
        cp_agents.forget(tmp_path / "absent.db", SECRET)
