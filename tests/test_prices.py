"""Prices from a file: which entry counts, what is refused, and where the cost then shows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cp_agents import Profiler, TraceStore
from cp_agents.backends.usage import Prices
from cp_agents.cli.app import app
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.prices import find_prices, load_prices, prices_for
from cp_agents.schema import Usage
from cp_agents.stores.stats import run_stats
from tests.loopback import LoopbackConfig, running_server
from tests.support import PETS, RECORD, ScriptedBackend, answer

TOML = """
["openai:gpt-4.1-mini"]
prompt = 0.4
cached = 0.1
completion = 1.6
batch = { prompt = 0.2, completion = 0.8 }

["gpt-*"]
prompt = 2
completion = 8

["openai:*"]
prompt = 3
completion = 9

[teacher]
prompt = 0.0
completion = 0.0
"""
YAML = """
openai:gpt-4.1-mini: {prompt: 0.4, cached: 0.1, completion: 1.6, batch: {prompt: 0.2, completion: 0.8}}
gpt-*: {prompt: 2, completion: 8}
openai:*: {prompt: 3, completion: 9}
teacher: {prompt: 0.0, completion: 0.0}
"""
USERS = [{"user_id": f"u{i}", "watched": [f"video {i}", "cooking"]} for i in range(4)]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "p.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


# -- which entry counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["p.toml", "p.yaml", "p.yml"])
@pytest.mark.parametrize(
    ("spec", "prompt"),
    [
        ("openai:gpt-4.1-mini", 0.4),  # the exact name, though patterns fit as well
        ("vllm-server:gpt-4.1-mini", 2),  # another kind: the pattern for the model
        ("openai:gpt-5", 2),  # two patterns fit: the first in the file
        ("openai:o9", 3),
        ("openai:teacher", 0),  # the model alone, exactly, goes before a pattern with the kind
        ("langchain:app:teacher", None),
        ("lexicon", None),
        ("GPT-5", None),
    ],
)
def test_the_most_exact_entry_counts(path: str, spec: str, prompt: float | None) -> None:
    found = load_prices(write(TOML if path == "p.toml" else YAML, path)).find(spec)
    assert (None if found is None else found.live["prompt"]) == prompt


def test_batch_prices_are_the_live_ones_unless_the_file_tells_them_apart() -> None:
    listed = load_prices(write(TOML))
    assert prices_for("openai:gpt-4.1-mini", None, listed) == Prices(0.4, 1.6, 0.1)
    assert prices_for("openai:gpt-4.1-mini", None, listed, batch=True) == Prices(0.2, 0.8)
    assert prices_for("openai:gpt-5", None, listed, batch=True) == Prices(2, 8)


def test_given_prices_win_one_by_one_and_half_a_price_is_refused() -> None:
    listed = load_prices(write(TOML))
    assert prices_for("openai:gpt-4.1-mini", {"prompt": 7.0}, listed) == Prices(7.0, 1.6, 0.1)
    assert prices_for("lexicon", {"prompt": 7.0, "completion": 8.0}, listed) == Prices(7.0, 8.0)
    with pytest.raises(InputError, match="prices should name prompt, completion"):
        prices_for("lexicon", {"prompt": 7.0}, listed)
    assert prices_for("openai:m", None, None) is None


def test_a_model_without_a_price_is_said_once_and_a_backend_without_a_model_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        listed = load_prices(write(TOML))
        assert prices_for("langchain:a:b", None, listed) is None
        assert prices_for("langchain:a:b", None, listed, batch=True) is None
        assert prices_for("lexicon", None, load_prices(write(TOML))) is None
    assert caplog.messages == ["p.toml has no price for langchain:a:b: its cost is not counted"]


def test_the_file_of_the_working_folder_is_found(tmp_path: Path) -> None:
    assert find_prices() is None
    write(TOML, "prices.toml")
    named = write("[m]\nprompt = 1\ncompletion = 1\n", "other.toml")
    listed = find_prices()
    assert listed is not None
    assert listed.find("openai:m").live["prompt"] == 3  # type: ignore[union-attr]
    assert find_prices(named).find("openai:m").live["prompt"] == 1  # type: ignore[union-attr]


# -- what is refused --------------------------------------------------------------------------------------

BAD = {
    "no quotes": ("[openai:gpt]\nprompt = 1\n", "p.toml", r"p\.toml: not TOML \(.*\); names go in quotes"),
    "a name with dots": (
        "[gpt-4.1]\nprompt = 1\ncompletion = 1\n",
        "p.toml",
        r"""p\.toml, 'gpt-4': '1' is no price; a name with dots goes in quotes, \["gpt-4\.\.\."\]""",
    ),
    "not YAML": ("a: b: c", "p.yaml", r"p\.yaml: not YAML"),
    "a list": ("- 1", "p.yaml", r"p\.yaml: expected models with their prices"),
    "a number": ("m = 3", "p.toml", "p.toml, 'm': expected prompt, completion and perhaps cached"),
    "half": ("[m]\nprompt = 1", "p.toml", "p.toml, 'm': prices should name prompt, completion .* found prompt"),
    "a typo": ("[m]\nprompt = 1\ncompletion = 1\ncache = 1", "p.toml", "found cache, completion, prompt"),
    "negative": ("[m]\nprompt = -1\ncompletion = 1", "p.toml", "the price prompt should be a number of 0 or more"),
    "text": ("[m]\nprompt = '1'\ncompletion = 1", "p.toml", "the price prompt should be a number"),
    "infinite": ("[m]\nprompt = inf\ncompletion = 1", "p.toml", "p.toml, 'm': a price should be a finite number"),
    "half a batch": (
        "[m]\nprompt = 1\ncompletion = 1\nbatch = {prompt = 1}", "p.toml", "p.toml, 'm', batch: prices should",
    ),
    "no batch": ("[m]\nprompt = 1\ncompletion = 1\nbatch = 0.5", "p.toml", "'m': batch should hold prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_sentence(name: str) -> None:
    text, path, sentence = BAD[name]
    with pytest.raises(InputError, match=sentence) as refused:
        load_prices(write(text, path))
    assert "\n" not in str(refused.value)


def test_no_file_and_no_text() -> None:
    with pytest.raises(InputError, match=r"no price file at nowhere\.toml"):
        load_prices("nowhere.toml")
    Path("p.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"p\.toml: not UTF-8 text"):
        load_prices("p.toml")
    assert load_prices(write("", "empty.yaml")).find("openai:m") is None


# -- where the cost shows ---------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"})
    if result.exception is not None:
        raise result.exception
    return str(result.stdout)


def users() -> str:
    path = Path("users.jsonl")
    path.write_text("".join(json.dumps(u) + "\n" for u in USERS))
    return str(path)


def cost_of(prices: Prices, run_id: str) -> tuple[float, float]:
    """What the stored samples of a run cost, and what they should."""
    with TraceStore("traces.db") as store:
        rows = store.rows(
            "select coalesce(prompt_tokens, 0), coalesce(cached_tokens, 0), coalesce(completion_tokens, 0), cost_usd"
            " from samples join records using (record_id) where run_id = ?",
            (run_id,),
        )
    usages = [Usage(prompt_tokens=p, cached_tokens=c, completion_tokens=a) for p, c, a, _ in rows]
    return sum(row[3] for row in rows), sum(map(prices.cost, usages))


def test_profile_takes_its_prices_from_the_file_and_flags_win() -> None:
    write(TOML, "prices.toml")
    write('["openai:m"]\nprompt = 1\ncached = 0.5\ncompletion = 2\n', "mine.toml")
    with running_server(LoopbackConfig()) as server:
        base = ("profile", users(), "--out", "p.jsonl", "--samples", "3", "--base-url", server.url)
        said = run(*base, "--backend", "openai:gpt-4.1-mini", "--run", "default")
        assert "cost: $" in said
        run(*base, "--backend", "openai:m", "--prices", "mine.toml", "--run", "named")
        run(
            *base,
            "--backend",
            "openai:m",
            "--prices",
            "mine.toml",
            "--price-cached",
            "0",
            "--seed",
            "1",
            "--run",
            "flag",
        )
    for name, prices in (
        ("default", Prices(0.4, 1.6, 0.1)), ("named", Prices(1, 2, 0.5)), ("flag", Prices(1, 2, 0)),
    ):  # fmt: skip
        stored, expected = cost_of(prices, name)
        assert stored == pytest.approx(expected)
        assert stored > 0


def test_a_budget_in_usd_needs_no_flags_where_the_file_has_a_price() -> None:
    write('["openai:m"]\nprompt = 1000\ncompletion = 1000\n', "prices.toml")
    with running_server(LoopbackConfig()) as server:
        base = ("profile", users(), "--out", "p.jsonl", "--base-url", server.url, "--budget-usd", "2")
        with pytest.raises(BackendError, match="the budget of 2 USD is spent") as spent:
            run(*base, "--backend", "openai:m", "--concurrency", "1")
        assert spent.value.error_type is ErrorType.BUDGET
        with pytest.raises(InputError, match="a budget in USD needs prices"):
            run(*base, "--backend", "openai:unlisted")


async def test_each_member_of_an_ensemble_has_its_own_price() -> None:
    listed = load_prices(write("[a]\nprompt = 1\ncompletion = 1\n[b]\nprompt = 100\ncompletion = 100\n"))
    store = TraceStore()
    with running_server(LoopbackConfig()) as server:
        p = Profiler("ensemble:openai:a,openai:b", store, samples=4, base_url=server.url, price_list=listed)
        await p.aprofile(USERS[0])
        await p.backend.aclose()
    found = store.rows(
        "select sampler, sum(prompt_tokens) + sum(completion_tokens), sum(cost_usd) from samples group by 1 order by 1"
    )
    assert [row[0] for row in found] == ["openai:a", "openai:b"]
    assert [row[2] * 1e6 / row[1] for row in found] == pytest.approx([1, 100])


def test_plan_reads_the_file_and_tells_what_a_prefix_cache_would_save() -> None:
    write(TOML, "prices.toml")
    said = run("plan", users(), "--backend", "openai:gpt-4.1-mini")
    assert "cost: about $" in said
    assert "where a prefix cache serves all that was sent before: $" in said
    assert "prefix cache" not in run("plan", users(), "--backend", "openai:o9")
    assert "cost: about $0.00 ($0.00 where n is honoured)" in run(
        "plan", users(), "--backend", "openai:teacher"
    )
    assert "cost" not in run("plan", users())


def test_plan_counts_each_token_as_cached_but_once() -> None:
    from cp_agents.plan import plan_run
    from cp_agents.prompts.render import load_prompt

    options: dict[str, Any] = {"samples": 3, "token_budget": 3000, "max_tokens": 100}
    prompt = load_prompt(PETS)
    found = plan_run(USERS, prompt, PETS, prices=Prices(prompt=1e6, completion=0, cached=0), **options)
    assert found.cost_usd == found.total_prompt
    assert found.cost_cached_usd == found.shared_tokens + sum(c.tokens for c in found.cues)
    assert found.cost_n_usd == found.total_prompt_n == found.total_prompt / 3


# -- stats ------------------------------------------------------------------------------------------------


async def test_stats_give_the_cost_per_record_and_per_accepted_attribute() -> None:
    store = TraceStore("traces.db")
    with running_server(LoopbackConfig()) as server:
        p = Profiler(
            "openai:m", store, samples=4, run="priced", base_url=server.url,
            prices={"prompt": 10.0, "completion": 20.0},
        )  # fmt: skip
        await p.aprofile_many(USERS)
        await p.backend.aclose()
    scripted = ScriptedBackend(lambda i: answer(pet="NA", home="NA") if i else RuntimeError("bug"))
    q = Profiler(scripted, store, samples=4, run="silent", taxonomy=PETS, fanout="node")
    await q.aprofile(RECORD)
    priced, silent = run_stats(store)
    [(total,)] = store.rows("select sum(cost_usd) from samples")
    accepted = store.rows(
        "select count(*) from profile_attributes where run_id = 'priced' and status = 'accepted'"
    )
    assert priced["cost_usd"] == pytest.approx(total, abs=1e-4)
    assert priced["cost_per_record"] == pytest.approx(total / 4, abs=1e-6)
    assert priced["accepted"] == accepted[0][0] > 0
    assert priced["cost_per_accepted"] == pytest.approx(total / accepted[0][0], abs=1e-6)
    assert priced["unpriced"] == 0
    assert (silent["cost_usd"], silent["cost_per_record"], silent["cost_per_accepted"]) == (None, None, None)
    assert (silent["accepted"], silent["failed"] + silent["unpriced"]) == (0, 4)
    store.close()
    said = run("stats")
    for part in ("cost per record", "cost per accepted", str(priced["cost_per_accepted"]), "silent"):
        assert part in said
