"""Probabilities of tags on their way: from an endpoint's log-probabilities into the store, the vote and the table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cp_agents.backends.base import SampleRequest, cache_keys
from cp_agents.backends.ensemble import EnsembleBackend
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.tag_logprobs import TagToken, written_tag
from cp_agents.background import run_sync
from cp_agents.batch_run import run_by_batches
from cp_agents.calibrate import fit_run
from cp_agents.errors import InputError
from cp_agents.profiler import Profiler
from cp_agents.relabel import replay
from cp_agents.runner import run_batch
from cp_agents.schema import Completion, Message, Profile, Status, TagProbability
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy
from tests.loopback import (
    Answers,
    LoopbackConfig,
    LoopbackServer,
    Reply,
    cue_block,
    error_body,
    running_server,
)
from tests.loopback_batches import BatchConfig, BatchServer
from tests.support import PETS, RECORD, ScriptedBackend, answer
from tests.test_cli import Said
from tests.test_cli import run as invoke
from tests.test_vllm import FakeServer
from tests.test_vllm import server as vllm_server

__all__ = ["vllm_server"]

TAXONOMY = load_taxonomy()
ANSWERS = Answers(TAXONOMY)
RECORDS = [
    {"user_id": f"u{i}", "posted": [f"tea number {i}", "a book"], "self_reported": {}} for i in range(30)
]
LINE = "".join(json.dumps(record) + "\n" for record in RECORDS)


@pytest.fixture
def endpoint() -> Iterator[Callable[..., LoopbackServer]]:
    """Servers that live as long as the test."""
    running = []

    def start(**config: Any) -> LoopbackServer:
        context = running_server(LoopbackConfig(**config))
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


def open_profiler(server: LoopbackServer, store: str | Path = ":memory:", **settings: Any) -> Profiler:
    return Profiler("openai:m", store, base_url=server.url, **{"confidence": "logprob", **settings})


def stored(store: TraceStore) -> list[tuple[str, str, str, float | None]]:
    """`(cues, attribute, tag, probability)` of all usable answers."""
    return store.rows(
        "select r.cues, p.attribute, p.tag, p.probability from records r join samples using (record_id)"
        " join predictions p using (sample_id) where p.outcome = 'ok' order by sample_id, p.attribute"
    )


def lines(profiles: Any) -> list[dict[str, Any]]:
    return [profile.to_json() for profile in profiles]


# --- from an endpoint into the store ------------------------------------------------------------------------


@pytest.mark.parametrize("honour_n", [True, False])
def test_what_an_endpoint_gave_its_tags_is_stored_and_decides(
    endpoint: Callable[..., LoopbackServer], honour_n: bool
) -> None:
    server = endpoint(honour_n=honour_n)
    with open_profiler(server) as profiler:
        assert profiler.backend.capabilities.logprobs is None
        profiles, report = profiler.profile_many(RECORDS)
        assert profiler.backend.capabilities.logprobs is True
        assert not report.failed
        rows = stored(profiler.store)
        assert len(rows) == 30 * 10 * 6
        for cues, attribute, tag, probability in rows:
            assert probability == pytest.approx(ANSWERS.probability(cues, attribute, tag), abs=1e-6)
        # S by hand, from the tags that were stored
        cues, own = rows[0][0], [row for row in rows if row[0] == rows[0][0]]
        for name, value in profiles[0].attributes.items():
            sums: dict[str, float] = {}
            for _, attribute, tag, probability in own:
                if attribute == name:
                    sums[tag] = sums.get(tag, 0.0) + 5 * (probability or 0.0)
            assert value.score == pytest.approx(max(sums.values()), abs=1e-5)
            assert sums[value.voted] == max(sums.values())
        # the graph alone and the run as a whole decide alike
        again = list(replay(profiler.store))
        assert lines(again) == lines(profiles)
        assert report.calibrator is not None
        assert report.calibrator.confidence == "logprob"
    assert all(body["logprobs"] is True and body["top_logprobs"] == 5 for body in server.bodies)


@pytest.mark.parametrize("source", ["verbal", "agreement", "logprob", "combined"])
@pytest.mark.parametrize("vote", ["weighted", "softmax"])
def test_graph_and_replay_agree(endpoint: Callable[..., LoopbackServer], source: Any, vote: Any) -> None:
    with open_profiler(endpoint(p_garbage=0.1, p_length=0.1), confidence=source, vote=vote) as profiler:
        for record in RECORDS[:4]:
            profile = profiler.profile(record)
            votes = profiler.store.query(
                "select attribute, tag, score, survivors from votes join records using (record_id) where user_id = ?",
                [profile.user_id],
            )
            assert {v["attribute"]: (v["tag"], v["score"], v["survivors"]) for v in votes} == {
                name: (a.voted, a.score, a.survivors) for name, a in profile.attributes.items()
            }
            [twin] = [p for p in replay(profiler.store, calibrator=None) if p.user_id == profile.user_id]
            assert twin.to_json() == profile.to_json()


def test_replay_takes_another_source(endpoint: Callable[..., LoopbackServer]) -> None:
    with open_profiler(endpoint()) as profiler:
        scored, _ = profiler.profile_many(RECORDS)
        assert lines(replay(profiler.store, confidence="logprob")) == lines(scored)
        spoken = list(replay(profiler.store, confidence="verbal"))
        assert all(value.score == int(value.score) for p in spoken for value in p.attributes.values())
        alike = list(replay(profiler.store, confidence="agreement", calibrator=None))
        assert all(v.score == 5 * len(v.agreeing) for p in alike for v in p.attributes.values())
        both = {p.user_id: p for p in replay(profiler.store, confidence="combined", calibrator=None)}
        for p in replay(profiler.store, confidence="combined", vote="majority", calibrator=None):
            assert all(both[p.user_id][name].survivors == 10 for name in p)
        with pytest.raises(InputError, match="unknown confidence 'gut'"):
            replay(profiler.store, confidence="gut")  # type: ignore[arg-type]


def test_calibrators_are_fitted_on_the_source_and_refuse_another(
    endpoint: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    with open_profiler(endpoint()) as profiler:
        profiler.profile_many(RECORDS)
        fitted = fit_run(profiler.store)
        assert fitted.confidence == "logprob"
        assert fit_run(profiler.store, confidence="combined").confidence == "combined"
        with pytest.raises(InputError, match="fitted on votes by logprob confidence"):
            replay(profiler.store, confidence="verbal", calibrator=fitted)
        fitted.save(tmp_path / "c.json")
    with pytest.raises(InputError, match="fitted on votes by logprob confidence"):
        Profiler(calibrator=tmp_path / "c.json")


# --- endpoints that refuse or ignore ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says", "asked"),
    [
        ({"unsupported": ("logprobs",)}, "gives no log-probabilities", 1),
        ({"logprobs": False}, "ignores logprobs", 4),
    ],
)
def test_an_endpoint_without_log_probabilities(
    endpoint: Callable[..., LoopbackServer],
    caplog: pytest.LogCaptureFixture,
    config: dict[str, Any],
    says: str,
    asked: int,
) -> None:
    server = endpoint(**config)
    with open_profiler(server) as profiler:
        with pytest.raises(InputError, match=r"openai:m gives no probabilities of its tags.*logprob"):
            profiler.profile_many(RECORDS, concurrency=4)
        assert profiler.backend.capabilities.logprobs is False
        assert caplog.text.count(says) == 1
        assert sum("logprobs" in body for body in server.bodies) == asked
        # it stops at once, and nothing is lost: what was sampled can be decided by what it has
        assert profiler.store.rows("select count(*) from samples where error_type is null") == [(40,)]
        assert len(list(replay(profiler.store, confidence="verbal"))) == 4
        with pytest.raises(InputError, match="openai:m gives no probabilities of its tags"):
            profiler.profile({**RECORDS[0], "user_id": "alone"})


async def test_an_endpoint_that_does_not_say_what_it_refuses(endpoint: Callable[..., LoopbackServer]) -> None:
    def grumble(body: dict[str, Any], attempt: int) -> Reply | None:
        return Reply(error_body("Invalid request."), 400) if "top_logprobs" in body else None

    server = endpoint(script=grumble)
    backend = OpenAIBackend("m", base_url=server.url)
    for user in ("a", "b"):
        asked = SampleRequest((Message("user", user),), (0, 1), score_tags=TAXONOMY)
        assert [c.error_type async for c in backend.sample(asked)] == [None, None]
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]
    await backend.aclose()


async def test_without_alternatives_it_is_what_the_tokens_had(
    endpoint: Callable[..., LoopbackServer],
) -> None:
    server = endpoint(unsupported=("top_logprobs",))
    backend = OpenAIBackend("m", base_url=server.url)
    request = SampleRequest((Message("user", "tea"),), (0,), score_tags=TAXONOMY)
    [completion] = [c async for c in backend.sample(request)]
    block = cue_block(server.bodies[0]["messages"])
    assert completion.probabilities == {
        name: (written.tag, pytest.approx(ANSWERS.probability(block, name, written.tag), abs=1e-6))
        for name, written in completion.probabilities.items()
    }
    assert len(completion.probabilities) == 6
    assert [("logprobs" in body, "top_logprobs" in body) for body in server.bodies] == [
        (True, True),
        (True, False),
    ]
    await backend.aclose()


async def test_a_bad_request_stays_one(endpoint: Callable[..., LoopbackServer]) -> None:
    server = endpoint(script=lambda body, attempt: Reply(error_body("Invalid request."), 400))
    backend = OpenAIBackend("m", base_url=server.url)
    request = SampleRequest((Message("user", "tea"),), (0,), score_tags=TAXONOMY)
    [completion] = [c async for c in backend.sample(request)]
    assert completion.error_type == "bad_request"
    assert backend.capabilities.logprobs is None
    await backend.aclose()


# --- identity, cache, recordings ----------------------------------------------------------------------------


def test_asking_for_probabilities_is_no_part_of_the_request() -> None:
    plain = SampleRequest((Message("user", "tea"),), (0,))
    asked = SampleRequest((Message("user", "tea"),), (0,), score_tags=TAXONOMY)
    assert asked.canonical() == plain.canonical()
    assert asked == plain
    identity = ScriptedBackend(lambda i: "").identity
    assert cache_keys(identity, asked.canonical(), [0]) == cache_keys(identity, plain.canonical(), [0])


def test_a_reused_answer_keeps_its_probability(
    endpoint: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    server, store = endpoint(), tmp_path / "t.db"
    with open_profiler(server, store, run="first") as profiler:
        first, _ = profiler.profile_many(RECORDS)
    sent = len(server.requests)
    with open_profiler(server, store, run="second", min_survivors=1) as profiler:
        second, report = profiler.profile_many(RECORDS)
        assert report.meter.reused == 300
    assert len(server.requests) == sent
    own = [{**line, "run_id": ""} for line in lines(first)]
    assert [{**line, "run_id": ""} for line in lines(second)] == own
    with TraceStore(store) as traces:
        per_run = traces.rows(
            "select run_id, count(*), count(probability), sum(probability) from records join samples using (record_id)"
            " join predictions using (sample_id) group by run_id order by run_id"
        )
    assert [row[0] for row in per_run] == ["first", "second"]
    assert per_run[0][1:] == per_run[1][1:] == (1800, 1800, pytest.approx(per_run[0][3]))


def test_an_answer_without_a_probability_is_asked_for_again(
    endpoint: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    server, store = endpoint(), tmp_path / "t.db"
    with open_profiler(server, store, run="spoken", confidence="verbal") as profiler:
        profiler.profile_many(RECORDS[:2])
    assert not any("logprobs" in body for body in server.bodies)
    for run, drawn in (("scored", 30), ("again", 0)):
        with open_profiler(server, store, run=run) as profiler:
            profiles, report = profiler.profile_many(RECORDS[:3])
            assert report.meter.samples == drawn
            assert all(v.status is not Status.FAILED for p in profiles for v in p.attributes.values())
    with open_profiler(server, store, run="spoken again", confidence="verbal", min_survivors=1) as profiler:
        assert profiler.profile_many(RECORDS[:3])[1].meter.samples == 0


def test_of_an_endpoint_without_probabilities_answers_are_reused(
    endpoint: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    server, store = endpoint(unsupported=("logprobs",)), tmp_path / "t.db"
    with open_profiler(server, store, run="spoken", confidence="verbal") as profiler:
        profiler.profile_many(RECORDS)
    answered = len(server.requests)
    none = pytest.raises(InputError, match="openai:m gives no probabilities of its tags")
    with open_profiler(server, store, run="scored") as profiler, none:
        run_sync(run_batch(profiler.context, RECORDS, concurrency=1))
    # the first record alone: with log-probabilities, and without
    assert len(server.requests) == answered + 2


def test_a_replayed_store_has_its_probabilities(
    endpoint: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    with open_profiler(endpoint(), tmp_path / "t.db", run="r") as profiler:
        first, _ = profiler.profile_many(RECORDS)
    with Profiler(f"replay:{tmp_path / 't.db'}#r", confidence="logprob") as profiler:
        assert profiler.backend.capabilities.logprobs is True
        again, _ = profiler.profile_many(RECORDS)
    assert [p.to_json()["profile"] for p in again] == [p.to_json()["profile"] for p in first]


async def test_members_of_an_ensemble_are_asked_too(endpoint: Callable[..., LoopbackServer]) -> None:
    servers = [endpoint(), endpoint()]
    both = EnsembleBackend([OpenAIBackend("m", base_url=s.url) for s in servers])
    assert both.capabilities.logprobs is None
    request = SampleRequest((Message("user", "tea"),), tuple(range(4)), score_tags=TAXONOMY)
    assert all([len(c.probabilities) == 6 async for c in both.sample(request)])
    assert both.capabilities.logprobs is True
    assert EnsembleBackend([both, ScriptedBackend(lambda i: "x")]).capabilities.logprobs is False
    await both.aclose()


async def test_a_batch_asks_for_them_and_stores_them() -> None:
    async with BatchServer(BatchConfig()) as server:
        profiler = open_profiler(server, n="yes")
        report = await run_by_batches(profiler.context, RECORDS[:20], poll_s=0.01)
        assert report.calibrator is not None
        for cues, attribute, tag, probability in stored(profiler.store):
            assert probability == pytest.approx(ANSWERS.probability(cues, attribute, tag), abs=1e-6)
        await profiler.aclose()


# --- vllm-server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "?logprobs=3"])
async def test_a_vllm_server_tells_probabilities(
    vllm_server: FakeServer, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    plain = vllm_server.answer_to

    def answer_to(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        status, said = plain(path, body)
        if body.get("logprobs"):
            for choice in said["choices"]:
                text = choice["message"]["content"]
                at = text.index("Cat")
                content = [
                    {"token": text[:at], "logprob": 0.0, "top_logprobs": []},
                    {"token": "Cat", "logprob": math.log(0.6), "top_logprobs": [
                        {"token": "Cat", "logprob": math.log(0.6)}, {"token": "Dog", "logprob": math.log(0.2)}]},
                    {"token": text[at + 3 :], "logprob": 0.0, "top_logprobs": []},
                ]  # fmt: skip
                choice["logprobs"] = {"content": content}
        return status, said

    monkeypatch.setattr(vllm_server, "answer_to", answer_to)
    backend = resolve_backend(f"vllm-server:{vllm_server.url}{spec}", BackendOptions(taxonomy=PETS))
    assert backend.capabilities.logprobs is True
    request = SampleRequest((Message("user", "cat"),), (0, 1), score_tags=None if spec else PETS)
    found = [completion async for completion in backend.sample(request)]
    assert [c.probabilities["pet"] for c in found] == [("Cat", 0.75)] * 2
    assert vllm_server.bodies[-1]["top_logprobs"] == (3 if spec else 5)
    await backend.aclose()


# --- which tag a probability is of --------------------------------------------------------------------------


def token(text: str, probability: float = 1.0, **others: float) -> TagToken:
    top = {text: probability} | others
    return TagToken(text, math.log(probability), {name: math.log(p) for name, p in top.items()})


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([token("Cat", 0.6, Dog=0.2), token("</")], ("Cat", 0.75)),
        ([token("cat", 0.6, Dog=0.2), token("</")], ("Cat", 0.75)),  # as the parser reads it
        ([token("Cat", 0.6), token("</")], ("Cat", 0.6)),  # nothing but what was drawn
        ([token("Cat", 1e-12, Dog=1 - 1e-12), token("</")], ("Cat", 1e-6)),  # it was drawn, after all
        ([token("Bird", 0.6, Dog=0.2), token("</")], None),
        ([], None),
    ],
)
def test_the_tag_that_was_written(tokens: list[TagToken], found: tuple[str, float] | None) -> None:
    written = written_tag(tokens, PETS["pet"])
    assert written == (found if found is None else (found[0], pytest.approx(found[1])))


def test_a_probability_of_another_tag_than_was_read_is_dropped() -> None:
    scores = {"pet": TagProbability("Dog", 0.9), "home": TagProbability("Flat", 0.8)}
    backend = ScriptedBackend(lambda i: Completion(index=i, text=answer(), probabilities=scores))
    with Profiler(backend, taxonomy=PETS, samples=3) as profiler:
        profiler.profile(RECORD)
        rows = profiler.store.rows("select distinct attribute, tag, probability from predictions order by 1")
    assert rows == [("home", "Flat", 0.8), ("pet", "Cat", None)]


def test_answers_without_a_probability_have_no_vote() -> None:
    def say(i: int) -> Completion:
        scores = {"pet": TagProbability("Cat" if i < 3 else "Dog", 0.2)} if i < 5 else {}
        return Completion(index=i, text=answer(pet="Cat" if i < 3 else "Dog"), probabilities=scores)

    with Profiler(ScriptedBackend(say), taxonomy=PETS, samples=8, confidence="verbal") as profiler:
        profile = profiler.profile(RECORD)
        assert (profile["pet"].voted, profile["pet"].survivors) == ("Dog", 8)
        [by_logprob] = replay(profiler.store, confidence="logprob", calibrator=None)
    assert (by_logprob["pet"].voted, by_logprob["pet"].survivors) == ("Cat", 5)
    assert by_logprob["pet"].score == pytest.approx(3)
    assert by_logprob["home"].status is Status.FAILED


# --- the command line ---------------------------------------------------------------------------------------


def run(*arguments: object) -> Said:
    return invoke(*map(str, arguments))


def test_profile_replay_calibrate_and_evaluate(
    endpoint: Callable[..., LoopbackServer], tmp_path: Path
) -> None:
    users, store, out = tmp_path / "users.jsonl", tmp_path / "t.db", tmp_path / "out.jsonl"
    users.write_text(LINE)
    base = ("--store", store, "--base-url", endpoint().url, "--backend", "openai:m")
    done = run("profile", users, "--out", out, *base, "--confidence", "combined", "--run", "r")
    assert done.code == 0, done.err
    again = tmp_path / "again.jsonl"
    assert run("replay", "--store", store, "--out", again).code == 0
    assert again.read_text() == out.read_text()
    spoken = tmp_path / "spoken.jsonl"
    assert run("replay", "--store", store, "--out", spoken, "--confidence", "verbal").code == 0
    assert spoken.read_text() != out.read_text()
    fitted = run(
        "calibrate", "fit", "--store", store, "--out", tmp_path / "c.json", "--confidence", "logprob"
    )
    assert fitted.code == 0, fitted.err
    assert json.loads((tmp_path / "c.json").read_text())["confidence"] == "logprob"
    refused = run("replay", "--store", store, "--out", again, "--calibrator", tmp_path / "c.json")
    assert refused.code == 2
    assert "fitted on votes by logprob confidence" in refused.err
    gold = tmp_path / "gold.jsonl"
    profiles = {p.user_id: p for p in map(as_profile, spoken.read_text().splitlines())}
    gold.write_text(
        "".join(
            json.dumps({"user_id": u, "truth": {"gender": "Male" if int(u[1:]) % 2 else p["gender"].voted}})
            + "\n"
            for u, p in profiles.items()
        )
    )
    table = tmp_path / "e.json"
    shown = run("evaluate", spoken, "--gold", gold, "--store", store, "--json", table)
    assert shown.code == 0, shown.err
    found = json.loads(table.read_text())["confidence_sources"]["gender"]
    assert set(found) == {"verbal", "agreement", "logprob", "combined"}
    assert all(0 <= m[name] <= 1 for m in found.values() for name in ("auroc", "ece", "brier", "aurc", "wqd"))
    assert "wqd" in shown.out
    assert "logprob" in shown.out


def as_profile(line: str) -> Profile:
    row = json.loads(line)
    return Profile(user_id=row["user_id"], attributes=row["profile"], run_id=row["run_id"])


def test_what_is_refused_on_the_command_line(tmp_path: Path) -> None:
    users, store, out = tmp_path / "users.jsonl", tmp_path / "t.db", tmp_path / "out.jsonl"
    users.write_text(LINE)
    base = ("profile", users, "--out", out, "--store", store)
    for flags, says in (
        (
            ("--confidence", "logprob"),
            "gives no probabilities of its tags, by which confidence logprob weighs",
        ),
        (("--confidence", "gut"), "unknown confidence 'gut'"),
    ):
        refused = run(*base, *flags)
        assert refused.code == 2
        assert says in " ".join(refused.err.split())
    assert not out.exists()
    assert run(*base, "--run", "lex").code == 0
    refused = run("replay", "--store", store, "--out", tmp_path / "x.jsonl", "--confidence", "combined")
    assert refused.code == 2
    assert "no answer of run lex has a probability" in " ".join(refused.err.split())
    assert not (tmp_path / "x.jsonl").exists()
    fit = run("calibrate", "fit", "--store", store, "--out", tmp_path / "c.json", "--confidence", "logprob")
    assert fit.code == 2
    refused = run("evaluate", out, "--gold", out, "--truth-field", "profile", "--run", "lex")
    assert refused.code == 2
