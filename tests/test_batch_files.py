"""Requests written to a file, answered as `vllm run-batch` answers them, and read back."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents import Profiler, TraceStore, forget
from cp_agents.backends.batch_api import Line, read_line
from cp_agents.batch_files import FileBackend, read_results, write_requests
from cp_agents.cli.app import app
from cp_agents.errors import BackendError, InputError
from cp_agents.prices import load_prices
from tests.conftest import ROOT
from tests.loopback import LoopbackConfig, running_server
from tests.loopback_batches import BatchConfig, BatchServer
from tests.support import PETS, ScriptedBackend, answer

SAMPLES = 4
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def users(n: int) -> list[dict[str, Any]]:
    return [
        {"user_id": f"user-{i}", "watched": [f"video {i}", "cooking"], "posted": [f"day {i}"]}
        for i in range(n)
    ]


def written(
    store: TraceStore, records: list[dict[str, Any]], *, n: bool = False, **options: Any
) -> list[Row]:
    """The request lines of a run, as they stand in the file."""
    p = Profiler(FileBackend("m", n=n), store, samples=SAMPLES, run="r", **options)
    found = write_requests(p.context, records, "requests.jsonl", language=options.get("language", "en"))
    lines = [json.loads(line) for line in Path("requests.jsonl").read_text().split("\n") if line]
    assert found.requests == len(lines)
    return lines


def answered(requests: list[Row], change: Callable[[int, Row], Row | None] = lambda i, row: row) -> list[Row]:
    """Result lines in the shape of `vllm run-batch`, in another order; `change` may alter or drop one."""
    answer_of = BatchServer(BatchConfig())._completion
    rows = []
    for i, request in enumerate(requests):
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        response = {"status_code": 200, "request_id": f"vllm-{i}", "body": answer_of(request["body"])}
        row = {"id": f"vllm-{i}", "custom_id": request["custom_id"], "response": response, "error": None}
        if (changed := change(i, row)) is not None:
            rows.append(changed)
    random.Random(1).shuffle(rows)
    return rows


def write(rows: list[Row], name: str = "results.jsonl", more: str = "") -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + more)
    return path


def texts(store: TraceStore) -> list[tuple[Any, ...]]:
    return store.rows(
        "select user_id, sample_index, s.prompt_hash, s.outcome, s.text from samples s"
        " join records using (record_id) order by 1, 2"
    )


def failures(store: TraceStore) -> dict[str, int]:
    return dict(
        store.rows("select error_message, count(*) from samples where error_type <> '' group by 1 order by 1")
    )


@pytest.mark.parametrize("n", [True, False])
async def test_results_equal_a_live_run(n: bool) -> None:
    store = TraceStore()
    requests = written(store, users(20), n=n)
    assert len(requests) == 20 * (1 if n else SAMPLES)
    assert {request["body"].get("n") for request in requests} == {SAMPLES if n else None}
    report, strange = read_results(store, [write(answered(requests))])
    assert (report.done, report.meter.samples, strange) == (20, 20 * SAMPLES, 0)
    assert report.calibrator is not None
    with running_server(LoopbackConfig()) as server:
        live = Profiler("openai:m", samples=SAMPLES, run="r", base_url=server.url)
        expected, _ = await live.aprofile_many(users(20))
        await live.backend.aclose()
    assert texts(store) == texts(live.store)
    assert [p.to_json() for _, p in store.profiles("r")] == [p.to_json() for p in expected]
    assert store.rows("select distinct sampler from samples") == [("batch:m",)]


def test_results_may_come_in_several_files_and_what_is_missing_is_typed_until_it_comes() -> None:
    store = TraceStore()
    rows = answered(written(store, users(6)))
    report, _ = read_results(store, [write(rows[:10])])
    assert report.meter.errors == {"server_error": 6 * SAMPLES - 10}
    assert failures(store) == {"the results of the batch have no line for this request": 6 * SAMPLES - 10}
    report, _ = read_results(store, [write(rows[10:20], "b.jsonl"), write(rows[20:], "c.jsonl")])
    assert (failures(store), report.meter.samples) == ({}, 6 * SAMPLES - 10)
    report, _ = read_results(store, [write(rows, "again.jsonl")])
    assert report.meter.samples == 0
    assert len(texts(store)) == 6 * SAMPLES


def test_failed_lines_are_typed_and_only_what_may_yet_be_had_is_written_again() -> None:
    def change(i: int, row: Row) -> Row | None:
        if i == 0:  # vllm: a request that it could not run
            error = {"error": {"message": "maximum context length is 512", "code": 400}}
            return {**row, "response": {"status_code": 400, "request_id": "x", "body": None}, "error": error}
        if i == 1:
            return {
                **row,
                "response": {"status_code": 500, "request_id": "x", "body": None},
                "error": "engine died",
            }
        if i == 2:
            return {**row, "response": {"status_code": 200, "request_id": "x", "body": {"choices": []}}}
        if i == 3:
            return {**row, "response": None, "error": {"code": "request_timeout", "message": "x"}}
        if i == 4:  # U+2028 ends a line for Python, and none in JSONL
            row["response"]["body"]["choices"][0]["message"]["content"] += "\n\u2028after"
            return row
        return None if i == 5 else row

    store = TraceStore()
    requests = written(store, users(4))
    stranger = {"id": "x", "custom_id": "0" * 32, "response": None, "error": None}
    more = json.dumps(stranger) + "\n\nno json\n"
    report, strange = read_results(store, [write(answered(requests, change), more=more)])
    assert strange == 2
    assert report.meter.errors == {"context_length": 1, "server_error": 3, "timeout": 1}
    assert store.rows("select count(*) from samples where text like '%after'") == [(1,)]
    again = written(store, users(4))
    assert {row["custom_id"] for row in again} == {requests[i]["custom_id"] for i in (1, 2, 3, 5)}
    report, _ = read_results(store, [write(answered(again), "again.jsonl")])
    assert report.meter.samples == 4
    assert len(failures(store)) == 1
    p = Profiler(FileBackend("m"), store, samples=SAMPLES, run="r")
    assert write_requests(p.context, users(4), "none.jsonl") == (0, 0, {})
    assert not Path("none.jsonl").exists()


def test_an_unknown_model_ends_it_and_stores_nothing_for_its_lines() -> None:
    def gone(i: int, row: Row) -> Row:
        body = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
        return row if i == 0 else {**row, "response": {"status_code": 404, "body": body}}

    store = TraceStore()
    requests = written(store, users(2))
    with pytest.raises(BackendError, match="the endpoint has no model 'm'"):
        read_results(store, [write(answered(requests, gone))])
    assert len(texts(store)) == 1


def test_users_who_were_forgotten_or_have_changed_since_are_left_alone() -> None:
    store = TraceStore()
    rows = answered(written(store, users(3)))
    forget(store, "user-0")
    changed = {**users(3)[1], "posted": ["something else"]}
    written(store, [changed])
    report, strange = read_results(store, [write(rows)])
    assert strange == 2 * SAMPLES
    found = {row[0]: row for row in texts(store)}
    assert set(found) == {"user-1", "user-2"}
    assert failures(store) == {"the results of the batch have no line for this request": SAMPLES}
    assert report.done == 2


def test_results_are_priced_as_batches() -> None:
    Path("prices.toml").write_text("[m]\nprompt = 9\ncompletion = 9\nbatch = {prompt = 1, completion = 2}\n")
    store = TraceStore()
    read_results(store, [write(answered(written(store, users(2))))], price_list=load_prices("prices.toml"))
    [(prompt, completion, cost)] = store.rows(
        "select sum(prompt_tokens), sum(completion_tokens), sum(cost_usd) from samples"
    )
    assert cost * 1e6 == pytest.approx(prompt + 2 * completion)


def test_a_prompt_that_has_changed_is_noticed() -> None:
    shutil.copytree(ROOT / "prompts" / "en", "mine")
    store = TraceStore()
    rows = answered(written(store, users(1), language="mine"))
    system = Path("mine/system.md")
    before = system.read_text()
    system.write_text(before + "\nBe brief.\n")
    with pytest.raises(InputError, match=r"run r was written with prompt [0-9a-f]{12}, and mine is now"):
        read_results(store, [write(rows)])
    system.write_text(before)
    assert read_results(store, [write(rows)])[0].done == 1


async def test_what_cannot_be() -> None:
    store = TraceStore()
    rows = answered(written(store, users(1)))
    with pytest.raises(InputError, match=r"no file at nowhere\.jsonl"):
        read_results(store, ["nowhere.jsonl"])
    with pytest.raises(
        InputError, match=r"results\.jsonl: no line answers a request that was written from the store"
    ):
        read_results(TraceStore(), [write(rows)])
    p = Profiler(FileBackend("m"), store, samples=2)
    with pytest.raises(InputError, match=r"cannot write no/r\.jsonl"):
        write_requests(p.context, users(1), "no/r.jsonl")
    assert store.rows("select count(*) from batches") == [(1,)]
    _, report = await p.aprofile_many(users(1))
    assert "nobody answers for batch:m" in str(store.rows("select distinct error_message from samples"))
    scripted = Profiler(ScriptedBackend(lambda i: answer()), taxonomy=PETS)
    with pytest.raises(InputError, match="scripted:m answers by itself"):
        write_requests(scripted.context, users(1), "x.jsonl")
    found = write_requests(p.context, [{"user_id": "a", "posted": [3]}], "y.jsonl")
    assert (found.requests, list(found.failed)) == (0, ["a"])
    assert report.done == 1


@given(st.binary() | st.text().map(str.encode) | st.builds(json.dumps, st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["custom_id", "response", "error", "code", "status_code", "body"]), inner
    ),
)).map(str.encode))  # fmt: skip
def test_no_line_is_too_strange(raw: bytes) -> None:
    line = read_line(raw)
    assert line is None or isinstance(line, Line)


# -- the command line -------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_write_read_and_list_on_the_command_line() -> None:
    Path("users.jsonl").write_text("".join(json.dumps(u) + "\n" for u in users(5)) + "{broken\n")
    code, out, err = run(
        "batch", "write", "users.jsonl", "--model", "org/Model-1", "--out", "q.jsonl", "--samples", "3", "--n", "yes",
        "--run", "mine", "--tau", "2",
    )  # fmt: skip
    assert code == 2
    assert "5 requests for 5 records of run mine in q.jsonl" in out
    assert "vllm run-batch -i q.jsonl -o results.jsonl --model org/Model-1" in out
    assert "users.jsonl line 6: not JSON" in err
    requests = [json.loads(line) for line in Path("q.jsonl").read_text().splitlines()]
    assert {request["body"]["model"] for request in requests} == {"org/Model-1"}
    rows = answered(requests)
    write(rows[:-1])
    code, out, err = run("batch", "read", "results.jsonl", "--out", "p.jsonl")
    assert code == 0
    assert "wrote 5 profiles to p.jsonl" in out
    assert "note: 3 samples failed" in err
    profiles = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [p["user_id"] for p in profiles] == [u["user_id"] for u in users(5)]
    code, out, _ = run("batch", "read", str(write(rows[-1:], "rest.jsonl")), "--out", "p.jsonl")
    assert "samples: 3: ok 3" in out
    code, out, _ = run("batch", "list")
    assert "mine" in out
    assert "written" in out
    code, out, _ = run(
        "batch",
        "write",
        "users.jsonl",
        "--model",
        "org/Model-1",
        "--out",
        "none.jsonl",
        "--samples",
        "3",
        "--run",
        "mine",
    )
    assert "run mine lacks nothing: no file was written" in out
    with pytest.raises(InputError, match="--n should be yes or no, found 'probe'"):
        run("batch", "write", "users.jsonl", "--model", "m", "--out", "x.jsonl", "--n", "probe")
    TraceStore("empty.db").close()
    assert "no batches in empty.db" in run("batch", "list", "--store", "empty.db")[1]
