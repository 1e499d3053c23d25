"""One store for every kind of backend: the same users and settings, only the word after --backend is another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cp_agents.cli.app import app
from cp_agents.profiler import Profiler
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy
from cp_agents.wire import WireAnswer, write_answer
from tests.loopback import LoopbackConfig, running_server

SAMPLES = 4
APP = """
import os
from tests.chat_models import HttpChatModel

def teacher():
    return HttpChatModel(base_url=os.environ["OPENAI_BASE_URL"])
"""
PRICES = '["openai:*"]\nprompt = 1.0\ncompletion = 2.0\n'


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server, an app with a chat model that asks it, and a price list, in the working folder."""
    (tmp_path / "one_store_app.py").write_text(APP)
    (tmp_path / "prices.toml").write_text(PRICES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with running_server(LoopbackConfig()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield


@pytest.fixture
def published(shared_data: Path, tmp_path: Path) -> tuple[Path, str]:
    """Users whose answers by a real teacher were recorded, and how they are replayed."""
    recording = shared_data / "recorded_teacher" / "atus.jsonl"
    recorded = [json.loads(line)["user_id"] for line in recording.read_text().splitlines()[:6]]
    known = {
        json.loads(line)["user_id"]: line for line in (shared_data / "atus" / "users.jsonl").read_text().splitlines()
    }  # fmt: skip
    users = tmp_path / "users.jsonl"
    users.write_text("".join(known[user] + "\n" for user in recorded))
    return users, f"replay:{recording}"


@pytest.fixture
def shipped(tmp_path: Path) -> tuple[Path, str]:
    """The sample users that come with the package, and a recording of what the lexicon says of half of them."""
    import cp_agents

    lines = (Path(cp_agents.__file__).parent / "samples" / "users.jsonl").read_text().splitlines()[:6]
    users = tmp_path / "users.jsonl"
    users.write_text("".join(line + "\n" for line in lines))
    with Profiler("lexicon", tmp_path / "before.db", samples=SAMPLES, seed=7) as profiler:
        profiler.profile_many([json.loads(line) for line in lines])
    return users, f"replay:{tmp_path / 'before.db'}"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose every token is what it says of one attribute."""
    for package in ("torch", "transformers", "peft", "gguf", "psutil"):
        pytest.importorskip(package)
    from tests.test_transformers_backend import make_model

    taxonomy = load_taxonomy("profilebench")
    words = {
        write_answer([WireAnswer(attribute.name, tag, 4, "")]): 2.0 - (attribute is taxonomy.attributes[-1])
        for attribute in taxonomy.attributes
        for tag in attribute.names[:3]
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("one-store") / "tiny"
    return f"transformers:{make_model(folder, context=32_768, words=words, end=-10.0)}"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exception is None, (result.exception, result.output)
    return str(result.stdout)


def lines(path: Path) -> dict[str, dict[str, Any]]:
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["user_id"]: line["profile"] for line in read}


@pytest.mark.parametrize("data", ["published", "shipped"])
def test_one_word_switches_the_backend(
    data: str, endpoint: None, model: str, request: pytest.FixtureRequest
) -> None:
    users, replay = request.getfixturevalue(data)
    specs = ("lexicon", replay, "openai:loopback", "langchain:one_store_app:teacher", model)
    out = {}
    for spec in specs:
        kind = spec.partition(":")[0]
        run("profile", str(users), "--backend", spec, "--samples", str(SAMPLES), "--out", f"{kind}.jsonl")
        out[kind] = lines(Path(f"{kind}.jsonl"))
    with TraceStore("traces.db") as store:
        runs = {row["backend"].partition(":")[0]: row["run_id"] for row in store.query("select * from runs")}
        drawn = store.rows("select run_id, count(*) from samples join records using (record_id) group by 1")
    assert list(runs) == ["lexicon", "replay", "openai", "langchain", "transformers"]
    assert dict(drawn) == dict.fromkeys(runs.values(), len(out["lexicon"]) * SAMPLES)

    for a, b in itertools.combinations(runs, 2):
        said = run("compare", runs[a], runs[b], "--json", "c.json", "--differences", "0")
        found = json.loads(Path("c.json").read_text())
        assert found["users"] == len(out[a]) == len(out[b])
        for side, kind in (("a", a), ("b", b)):
            assert found[side]["effort"]["samples"] == found["users"] * SAMPLES
            assert found[side]["samples_per_s"] > 0
            cost = found[side]["effort"]["cost_usd"]
            if kind == "openai":
                assert cost > 0
                assert f"${cost:,.4f}" in said
            else:
                assert cost == (0 if kind == "lexicon" else None)
            notes = " ".join(said.rpartition("┘")[2].split())
            assert (runs[kind] in notes.partition("(see --prices of profile): ")[2]) == (cost is None)
        for name, measured in found["attributes"].items():
            pairs = [(out[a][user][name], out[b][user][name]) for user in out[a]]
            told = [(x, y) for x, y in pairs if "failed" not in (x["status"], y["status"])]
            assert measured["users"] == len(told)
            if told:
                assert measured["equal"] == pytest.approx(
                    sum(x["tag"] == y["tag"] for x, y in told) / len(told)
                )
            for i, side in enumerate("ab"):
                answered = sum(pair[i]["tag"] != "NA" for pair in pairs)
                assert measured[f"coverage_{side}"] == pytest.approx(answered / len(pairs))
