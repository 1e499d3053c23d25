"""Input that is broken, absurd or hostile: always one sentence, never a traceback, never a lost file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cp_agents import Profiler
from cp_agents.backends.limits import Budget, TokenBucket
from cp_agents.backends.replay import ReplayBackend
from cp_agents.backends.usage import Prices, read_usage
from cp_agents.cues import assemble_cues
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import load_gold, load_predictions
from cp_agents.files import BadLine, check_out, read_records, whole_file
from cp_agents.schema import UserRecord
from cp_agents.taxonomy import load_taxonomy
from tests.support import ScriptedBackend, answer
from tests.test_cli import run

GOOD = '{"user_id": "good", "watched": ["baby stroller review"]}'
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def file(name: str, text: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


BAD_LINES = {
    "digits": ('{"user_id": "a", "watched": [["x", ' + "9" * 5000 + "]]}", "too many digits"),
    "weight": ('{"user_id": "a", "watched": [["x", ' + "9" * 400 + "]]}", "item 1: the weight should be"),
    "count": ('{"user_id": "a", "watched": [{"text": "x", "count": 1e300}]}', "item 1: the count should be"),
    "deep": ('{"user_id": "a", "self_reported": ' + DEEP + "}", "nested too deeply"),
    "surrogate": ('{"user_id": "\\ud800x"}', "half a character"),
    "nul": ('{"user_id": "a\\u0000"}', "control character"),
    "line break": ('{"user_id": "a\\nb"}', "control character"),
    "long": (json.dumps({"user_id": "x" * 513}), "longer than 512 characters"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_and_the_next_one_is_read(name: str) -> None:
    line, why = BAD_LINES[name]
    bad, good = read_records(file("in.jsonl", f"{line}\n{GOOD}\n"))
    assert isinstance(bad, BadLine)
    assert bad.number == 1
    assert bad.message.startswith("in.jsonl line 1: ")
    assert why in bad.message
    assert len(bad.message) < 300
    assert not isinstance(good, BadLine)
    assert good["user_id"] == "good"


def test_self_reported_values_from_python_that_are_too_deep() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(InputError, match="nested too deeply"):
        UserRecord.from_dict({"user_id": "a", "self_reported": {"x": deep}})


def test_nested_self_reports_are_words_and_no_python() -> None:
    reported = {"home": {"city": "Oslo", "rooms": [2, None, {"kind": "attic"}], "none": None}}
    record = UserRecord.from_dict({"user_id": "a", "self_reported": reported})
    assert record.self_reported == {"home": "city: Oslo, rooms: 2, kind: attic"}
    assert "- home: city: Oslo, rooms: 2, kind: attic" in assemble_cues(record).text


REPLAYS: dict[str, tuple[str | bytes, str]] = {
    "binary": (b"\x00\xff\xfe\n", "line 1: not UTF-8"),
    "deep": (DEEP, "line 1: not readable JSON: nested too deeply"),
    "null text": ('{"user_id": "a", "samples": [{"text": null}]}', 'line 1: sample 1 should be an object'),
    "finish": ('{"user_id": "a", "samples": [{"text": "", "finish_reason": 3}]}', 'the "finish_reason" of sample 1'),
    "usage": ('{"user_id": "a", "samples": [], "usage": 3}', 'the "usage" should be an object'),
    "tokens": ('{"user_id": "a", "samples": [], "usage": {"prompt_tokens": "9"}}', '"prompt_tokens" should be'),
    "infinite": ('{"user_id": "a", "samples": [], "usage": {"prompt_tokens": 1e400}}', '"prompt_tokens" should be'),
    "user null": ('{"user_id": null, "samples": []}', 'has no "user_id"'),
    "no list": ('{"user_id": "a", "samples": 3}', 'line 1: expected {"user_id", "samples"'),
    "twice": ('{"user_id": "a", "samples": []}\n' * 2, "line 2: user 'a' has a line before it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLAYS)
def test_a_broken_recording_is_named_by_line(name: str) -> None:
    text, why = REPLAYS[name]
    path = file("r.jsonl", text)
    with pytest.raises(InputError) as caught:
        ReplayBackend(path)
    assert why in str(caught.value)
    assert run("profile", str(file("in.jsonl", GOOD)), "--out", "p", "--backend", "replay:r.jsonl").code == 2


def test_a_recording_may_begin_with_a_byte_order_mark() -> None:
    path = file("r.jsonl", "\ufeff" + '{"user_id": "a", "samples": [{"text": "x"}]}')
    assert ReplayBackend(path).identity.model == "r.jsonl"


@pytest.mark.parametrize("load", [load_gold, load_predictions])
def test_gold_and_predictions_that_are_too_deep_or_no_file(load: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match="line 1: not readable JSON"):
        load(file("g.jsonl", DEEP))
    with pytest.raises(InputError, match="cannot be read"):
        load(Path("."))


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("in.jsonl", GOOD)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"in\.jsonl: cannot be read \(Permission denied\)"):
        list(read_records(path))
    with pytest.raises(InputError, match="Permission denied"):
        ReplayBackend(path)


TAXONOMIES = {
    "deep": ("[" * 3000, "nested too deeply"),
    "numbers": ("tags: [1, 2]", "put it in quotes"),
    "yes": ("tags: [yes, no]", "put it in quotes"),
    "named by a number": ("tags: [{name: 1}]", "in quotes"),
    "range": ("tags: [{name: a, range: [.nan, 3]}]", "the range"),
    "phrase": ("tags: [{name: a, phrases: {x: .nan}}]", "finite number"),
    "no date": ("tags: [2024-99-99]", "not YAML"),
}


@pytest.mark.parametrize("name", TAXONOMIES)
def test_a_taxonomy_that_cannot_be(name: str) -> None:
    text, why = TAXONOMIES[name]
    path = file("t.yaml", f"name: t\nattributes: [{{name: pet, {text}" + ("}]" if name != "deep" else ""))
    with pytest.raises(InputError, match=r"taxonomy t\.yaml: ") as caught:
        load_taxonomy(path)
    assert why in str(caught.value)


@pytest.mark.parametrize("name", ["box", "answer", "confidence", "thinking", "thought", "reasoning"])
def test_names_of_the_wire_are_reserved(name: str) -> None:
    with pytest.raises(InputError, match="choose another"):
        load_taxonomy(file("t.yaml", f"name: t\nattributes: [{{name: {name}, tags: [a]}}]"))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": -1}, "temperature should be"),
    "temperature nan": ({"temperature": math.nan}, "temperature should be"),
    "top_p": ({"top_p": 2}, "top_p should be"),
    "max_tokens": ({"max_tokens": 1}, "max_tokens should be"),
    "token_budget": ({"token_budget": 1}, "token_budget should be"),
    "samples": ({"samples": "3"}, "samples should be"),
    "tau": ({"tau": [3]}, "tau should be"),
    "backend": ({"backend": None}, "backend should be"),
    "unknown": ({"temprature": 1}, "no setting 'temprature'"),
    "timeout": ({"timeout": math.nan}, "the timeout should be"),
    "rpm": ({"requests_per_minute": -1}, "requests per minute should be"),
    "tpm": ({"tokens_per_minute": math.inf}, "tokens per minute should be"),
    "usd": ({"budget_usd": math.nan}, "the budget in USD should be"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_is_named(name: str) -> None:
    given, why = SETTINGS[name]
    with pytest.raises(InputError) as caught:
        Profiler(**given)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


FLAGS = {
    "--temperature": ("-1", "nan"), "--top-p": ("2",), "--max-tokens": ("1",), "--token-budget": ("1",),
    "--budget-usd": ("nan", "inf"), "--timeout": ("nan", "0"), "--rpm": ("-1",), "--concurrency": ("0",),
}  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), [(f, v) for f, values in FLAGS.items() for v in values])
def test_a_flag_that_cannot_be(flag: str, value: str) -> None:
    said = run("profile", str(file("in.jsonl", GOOD)), "--out", "p.jsonl", f"{flag}={value}")
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not Path("traces.db").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_limits_take_finite_numbers_above_0(value: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        TokenBucket(value)
    with pytest.raises(InputError, match="above 0"):
        Budget(max_usd=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 10**400])
def test_prices_are_finite(value: float) -> None:
    with pytest.raises(InputError, match="price"):
        Prices.from_dict({"prompt": value, "completion": 1.0})


def test_an_endpoints_absurd_counts_are_not_counted() -> None:
    usages = read_usage({"prompt_tokens": math.inf, "completion_tokens": 4}, 2)
    assert usages is not None
    assert [u.prompt_tokens for u in usages] == [0, 0]
    assert read_usage({"prompt_tokens": math.nan, "completion_tokens": 1e300}, 1) is None


def test_out_may_not_be_the_input_or_a_store() -> None:
    users = file("in.jsonl", GOOD)
    assert run("profile", "in.jsonl", "--out", "first.jsonl", "--samples", "3").code == 0
    Path("link").symlink_to("in.jsonl")
    for out, store in (
        ("in.jsonl", "traces.db"), ("link", "traces.db"), ("traces.db", "traces.db"), ("./traces.db", "o.db"),
        ("new.db", "new.db"),
    ):  # fmt: skip
        said = run("profile", "in.jsonl", "--out", out, "--store", store)
        assert said.code == 2, out
        assert said.err.startswith(f"error: cannot write {Path(out)}: it is a")
    assert users.read_text() == GOOD
    assert run("stats").code == 0
    assert not Path("o.db").exists()


def test_out_is_tried_before_the_run(tmp_path: Path) -> None:
    file("in.jsonl", GOOD)
    Path("folder").mkdir()
    for out in ("folder", "no/p.jsonl", "in.jsonl/p.jsonl", "x" * 300):
        said = run("profile", "in.jsonl", "--out", out)
        assert said.code == 2, out
        assert said.err.startswith("error: cannot write ")
    assert not Path("traces.db").exists()
    check_out(tmp_path / "fine.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "in.jsonl"]


def test_a_folder_that_may_not_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cp_agents.files.tempfile.mkstemp", refuse)
    with pytest.raises(InputError, match=r"cannot write p\.jsonl \(Permission denied\)"):
        check_out("p.jsonl")
    with pytest.raises(InputError, match="cannot write"), whole_file("p.jsonl"):
        pass


def test_a_folder_in_the_place_of_a_whole_file() -> None:
    Path("p.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot write"), whole_file("p.jsonl") as out:
        out.write("x")
    assert [p.name for p in Path().iterdir()] == ["p.jsonl"]


def test_evaluate_spares_its_inputs_and_wants_a_common_user() -> None:
    row = {"user_id": "a", "profile": {"age": {"tag": "NA", "confidence": 1}}}
    pred, gold = file("p.jsonl", json.dumps(row)), file("g.jsonl", '{"user_id": "b", "truth": {"age": "NA"}}')
    before = pred.read_text()
    for target in ("p.jsonl", "g.jsonl"):
        assert run("evaluate", "p.jsonl", "--gold", "g.jsonl", "--json", target).code == 2
    said = run("evaluate", "p.jsonl", "--gold", "g.jsonl")
    assert (said.code, "no user in common" in said.err) == (2, True)
    file("empty.jsonl", "\n")
    assert run("evaluate", "empty.jsonl", "--gold", "g.jsonl").err == "error: empty.jsonl: no lines\n"
    assert pred.read_text() == before
    assert gold.exists()


def test_plan_refuses_what_profile_would() -> None:
    file("in.jsonl", GOOD)
    for flags in (["--samples", "-5"], ["--backend", "foo"], ["--max-tokens", "1"], ["--token-budget", "1"]):
        said = run("plan", "in.jsonl", *flags)
        assert said.code == 2, flags
        assert said.err.startswith("error: ")


def test_demo_in_the_place_of_a_file() -> None:
    file("taken", "x")
    said = run("demo", "--folder", "taken")
    assert (said.code, said.err.startswith("error: cannot make the folder taken")) == (2, True)


def test_a_configuration_with_a_byte_order_mark() -> None:
    file("in.jsonl", GOOD)
    config = file("c.toml", "\ufeffsamples = 3\n")
    assert "x 3 samples" in run("--config", str(config), "plan", "in.jsonl").out
    assert run("--config", str(file("d.toml", b"\xff\xfe")), "plan", "in.jsonl").code == 2


MANY: dict[str, tuple[list[Any], str]] = {
    "twice": (
        [{"user_id": "a"}, {"user_id": "a"}],
        "record 2: duplicate user_id 'a', first seen in record 1",
    ),
    "number and text": ([{"user_id": 1}, {"user_id": "1"}], "record 2: duplicate user_id '1'"),
    "no id": ([{"user_id": "a"}, {"watched": []}], 'record 2: the record has no "user_id"'),
    "no mapping": ([{"user_id": "a"}, 3], "record 2 should be a mapping, found int"),
}


@pytest.mark.parametrize("name", MANY)
def test_records_from_python_are_checked_before_the_run(name: str) -> None:
    records, why = MANY[name]
    backend = ScriptedBackend(lambda _: answer())
    with Profiler(backend, samples=2) as profiler, pytest.raises(InputError) as caught:
        profiler.profile_many(records)
    assert why in str(caught.value)
    assert backend.calls == []


def test_a_profiler_closes_its_backend_and_its_store() -> None:
    backend = ScriptedBackend(lambda _: answer())
    with Profiler(backend, store="s.db", samples=2) as profiler:
        assert profiler.profile({"user_id": "a", "posted": ["my cat"]}).user_id == "a"
        assert not backend.closed
    assert backend.closed
    assert not Path("s.db-wal").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"taxonomy": None},
            "a taxonomy should be the name of a built-in one or a YAML file, found NoneType",
        ),
        ({"taxonomy": 3}, "a taxonomy should be the name of a built-in one or a YAML file, found int"),
        ({"store": None}, "the store should be a path or a TraceStore, found NoneType"),
        ({"store": 3}, "the store should be a path or a TraceStore, found int"),
        ({"calibrator": 3}, "a calibrator should be a Calibrator or its file, found int"),
    ],
)
def test_settings_of_another_type_are_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        Profiler("lexicon", **given)
    assert str(caught.value) == sentence
