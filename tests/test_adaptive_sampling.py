"""Adaptive sampling through the real graph and the real store: waves, resume, failures, calibration, the numbers."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from typer.testing import CliRunner

from cp_agents import InputError, Profiler, TraceStore, replay
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.batch_files import FileBackend, write_requests
from cp_agents.batch_run import run_by_batches
from cp_agents.calibrate import fit_run
from cp_agents.calibration import Quintiles
from cp_agents.cli.app import app
from cp_agents.errors import BackendError, ErrorType
from cp_agents.files import read_records
from cp_agents.graph import Fanout
from cp_agents.schema import Completion, Profile, Status
from cp_agents.stores.stats import run_stats, sampling_of
from tests.support import PETS, RECORD, ScriptedBackend, answer

BOTH: list[Fanout] = ["send", "node"]


def profiler(script: Any, **options: Any) -> Profiler:
    backend = script if isinstance(script, ScriptedBackend) else ScriptedBackend(script)
    return Profiler(backend, **{"taxonomy": PETS, "samples": 10, **options})


def asked(p: Profiler) -> list[tuple[int | None, str | None]]:
    return p.store.rows("select asked, stop_reason from records order by record_id")


def drawn(p: Profiler) -> list[int]:
    assert isinstance(p.backend, ScriptedBackend)
    return [index for _, index in p.backend.calls]


def voted(profile: Profile) -> dict[str, tuple[str, Status]]:
    return {name: (profile[name].voted, profile[name].status) for name in profile}


def mixed(seed: int, sure: float = 0.8) -> dict[int, str]:
    """Ten answers that mostly agree."""
    rng = random.Random(seed)

    def pick(*tags: str) -> str:
        return tags[0] if rng.random() < sure else rng.choice(tags)

    return {
        i: answer(pick("Cat", "Dog", "Fish", "NA"), pick("Flat", "House", "NA"), rng.choice([3, 4, 5, 5, 5]))
        for i in range(10)
    }


@pytest.mark.parametrize("fanout", BOTH)
async def test_sampling_stops_once_nothing_could_change_the_vote(fanout: Fanout) -> None:
    p = profiler(lambda i: answer(confidence=5), adaptive="exact", fanout=fanout)
    profile = await p.aprofile(RECORD)
    assert sorted(drawn(p)) == [0, 1, 2, 3, 4, 5]
    assert asked(p) == [(6, "exact")]
    pet = profile["pet"]
    assert (pet.tag, pet.status, pet.survivors, pet.agreeing) == ("Cat", Status.ACCEPTED, 6, list(range(6)))
    # S is what was counted; on the scale of ten samples it is 50, which is 5 a sample.
    assert (pet.score, pet.confidence) == (30.0, 5)


@pytest.mark.parametrize("fanout", BOTH)
async def test_waves_follow_until_it_is_settled(fanout: Fanout) -> None:
    said = ["Cat", "Cat", "Dog", "Cat", "Dog", "Cat", "Cat", "Cat", "Dog", "Fish"]
    p = profiler(lambda i: answer(said[i], confidence=5), adaptive="exact", fanout=fanout)
    profile = await p.aprofile(RECORD)
    # After six: 20 to 10 with four left, where one more could do; after seven 25 to 10 with three left; after eight
    # 30 to 10 with two left.
    assert sorted(drawn(p)) == list(range(7))
    assert asked(p) == [(7, "exact")]
    assert profile["pet"].score == 25
    q = profiler(lambda i: answer(said[i], confidence=5), adaptive="exact", fanout=fanout, wave=3)
    await q.aprofile(RECORD)
    assert asked(q) == [(9, "exact")]


@pytest.mark.parametrize("fanout", BOTH)
async def test_a_vote_that_is_never_settled_takes_all_samples(fanout: Fanout) -> None:
    p = profiler(lambda i: answer(["Dog", "Cat"][i % 2]), adaptive="bayes", fanout=fanout)
    full = profiler(lambda i: answer(["Dog", "Cat"][i % 2]), fanout=fanout, run=p.run_id)
    assert (await p.aprofile(RECORD)).to_json() == (await full.aprofile(RECORD)).to_json()
    assert sorted(drawn(p)) == list(range(10))
    assert asked(p) == asked(full) == [(None, None)]


@pytest.mark.parametrize("vote", ["weighted", "majority", "mean", "softmax"])
async def test_exact_gives_the_tags_and_statuses_of_all_samples(vote: Any) -> None:
    saved = 0
    for seed in range(12):
        said = mixed(seed)
        full = await profiler(said.__getitem__, vote=vote).aprofile(RECORD)
        for fanout in BOTH:
            p = profiler(said.__getitem__, vote=vote, adaptive="exact", fanout=fanout)
            assert voted(await p.aprofile(RECORD)) == voted(full)
            assert sorted(drawn(p)) == list(range(len(drawn(p))))
            saved += 10 - len(drawn(p))
    assert saved > 0 or vote == "mean"  # which one sample can always turn


async def test_sync_and_async_and_both_fanouts_agree() -> None:
    found = []
    for fanout in BOTH:
        p = profiler(mixed(3).__getitem__, adaptive="bayes", fanout=fanout, run="same")
        found.append((await p.aprofile(RECORD)).to_json())
        q = profiler(
            mixed(3).__getitem__, adaptive="bayes", fanout=fanout, run="same", checkpointer=InMemorySaver()
        )
        config: Any = {"configurable": {"thread_id": "t"}}
        for _ in range(2):  # the second time on a thread that has profiled before
            found.append((await asyncio.to_thread(q.graph.invoke, {"record": RECORD}, config))["profile"])
        assert len(drawn(q)) == len(drawn(p)) < 10
    assert all(profile == found[0] for profile in found)


class Dying:
    """Gives so many answers, and then no more."""

    def __init__(self, said: dict[int, str], dies_after: int) -> None:
        self.said, self.dies_after = said, dies_after
        self.answered: list[int] = []

    def script(self, index: int) -> str | Exception:
        if len(self.answered) >= self.dies_after:
            return BackendError("the key was taken back", ErrorType.AUTH)
        self.answered.append(index)
        return self.said[index]


@pytest.mark.parametrize("fanout", BOTH)
@pytest.mark.parametrize("wave", [1, 3])
@pytest.mark.parametrize("rule", ["exact", "bayes"])
async def test_broken_off_after_any_call_and_resumed_it_equals_an_unbroken_run(
    fanout: Fanout, rule: Any, wave: int
) -> None:
    said = mixed(3, sure=0.9)
    unbroken = profiler(said.__getitem__, adaptive=rule, adaptive_p=0.97, wave=wave, fanout=fanout, run="r")
    expected = (await unbroken.aprofile(RECORD)).to_json()
    calls = len(drawn(unbroken))
    assert 3 < calls < 10
    for broken_at in range(calls):
        endpoint = Dying(said, broken_at)
        p = profiler(endpoint.script, adaptive=rule, adaptive_p=0.97, wave=wave, fanout=fanout, run="r")
        with pytest.raises(BackendError):
            await p.aprofile(RECORD)
        kept = p.store.rows("select sample_index from samples")
        endpoint.dies_after = 100
        assert (await p.aprofile(RECORD)).to_json() == expected
        # Nothing that was stored is asked for twice.
        assert [i for (i,) in kept if endpoint.answered.count(i) > 1] == []
        assert sorted(set(endpoint.answered)) == list(range(calls))
        assert asked(p) == asked(unbroken)


@pytest.mark.parametrize("fanout", BOTH)
async def test_a_failed_sample_counts_as_drawn_and_against_the_score(fanout: Fanout) -> None:
    lost = Completion(index=0, error_type=ErrorType.BAD_REQUEST, error_message="no")
    p = profiler(
        lambda i: lost if i in (1, 4) else answer("Dog", "House", 5), adaptive="exact", fanout=fanout
    )
    profile = await p.aprofile(RECORD)
    assert asked(p) == [(7, "exact")]  # 20 to 0 after six, and four left; 25 after seven, and three left
    assert (profile["pet"].survivors, profile["pet"].score) == (5, 25.0)
    assert profile["pet"].confidence == 4  # 25 x 10 / 7 over ten samples is 3.6
    q = profiler(lambda i: lost if i > 4 else answer("Dog", "House", 5), samples=7, fanout=fanout)
    assert (await q.aprofile(RECORD))["pet"].confidence == 4  # as without adaptive sampling


async def test_a_failure_that_may_be_mended_is_asked_for_again_and_what_was_drawn_is_kept() -> None:
    broken = True

    def script(i: int) -> str | Exception:
        return (
            BackendError("busy", ErrorType.TIMEOUT) if broken and i in (2, 3) else answer("Dog", "House", 5)
        )

    p = profiler(script, adaptive="exact", fanout="node")
    _, first = await p.aprofile_many([RECORD])
    assert (asked(p), first.resumed) == ([(7, "exact")], 0)
    broken = False
    assert isinstance(p.backend, ScriptedBackend)
    p.backend.calls.clear()
    [profile], second = await p.aprofile_many([RECORD])
    assert (drawn(p), asked(p), second.resumed) == ([2, 3], [(7, "exact")], 0)
    assert profile["pet"].survivors == 7
    _, third = await p.aprofile_many([RECORD])
    assert (drawn(p), third.resumed) == ([2, 3], 1)


async def test_changed_cues_are_sampled_anew() -> None:
    sure = True
    p = profiler(lambda i: answer(["Dog", "Dog" if sure else "Cat"][i % 2], confidence=5), adaptive="exact")
    await p.aprofile(RECORD)
    assert asked(p) == [(6, "exact")]
    sure = False
    await p.aprofile({**RECORD, "posted": ["my cat sleeps all day", "the flat is small", "so is the dog"]})
    assert asked(p) == [(None, None)]


async def test_the_cache_serves_adaptive_and_full_runs_alike() -> None:
    backend = ScriptedBackend(mixed(1, sure=0.95).__getitem__)
    store = TraceStore()
    adaptive = profiler(backend, store=store, run="r", adaptive="bayes")
    await adaptive.aprofile(RECORD)
    saved = 10 - len(backend.calls)
    assert saved > 0
    full = profiler(backend, store=store, run="r")
    assert full.run_id == "r-2"
    assert (await full.aprofile(RECORD))["pet"].survivors == 10
    assert len(backend.calls) == 10
    # Another vote or p may stop elsewhere, so it is another run; what is there costs nothing.
    for options in ({"vote": "majority"}, {"adaptive_p": 0.8}, {"min_survivors": 5}, {"wave": 4}):
        other = profiler(backend, store=store, run="r", **{"adaptive": "bayes", **options})
        assert other.run_id not in (adaptive.run_id, full.run_id)
        await other.aprofile(RECORD)
    assert len(backend.calls) == 10
    assert profiler(backend, store=store, run="r", adaptive="bayes").run_id == "r"


def users(count: int) -> list[dict[str, Any]]:
    return [{**RECORD, "user_id": f"u{i}", "posted": [f"my cat {i} sleeps all day"]} for i in range(count)]


class ByUser(ScriptedBackend):
    """Every user has answers of their own."""

    async def sample(self, request: Any) -> Any:
        said = mixed(int(request.record_key[1:]))
        for index in request.indices:
            self.calls.append((request.record_key, index))
            yield Completion(index=index, text=said[index], finish_reason="stop")


async def test_graph_batch_replay_and_calibrate_agree_on_scores_that_were_scaled(tmp_path: Path) -> None:
    records = users(60)
    p = profiler(ByUser(lambda i: ""), adaptive="bayes", adaptive_p=0.9)
    profiles, report = await p.aprofile_many(records)
    assert report.calibrator is not None
    assert report.sampling is not None
    again = [profile.to_json() for profile in replay(p.store, p.run_id)]
    assert again == [profile.to_json() for profile in profiles]
    assert fit_run(p.store, p.run_id).id == report.calibrator.id
    # With the calibrator at hand the graph alone says what the batch said at its end.
    q = profiler(
        ByUser(lambda i: ""), adaptive="bayes", adaptive_p=0.9, calibrator=report.calibrator, run=p.run_id
    )
    assert [(await q.aprofile(r)).to_json() for r in records] == again
    # What it was fitted on is S x 10 / m: the highest threshold is above any S that was counted.
    [(most, scaled)] = p.store.rows(
        "select max(score), max(score * 10 / coalesce(asked, 10)) from votes join records using (record_id)"
    )
    pet = report.calibrator.attributes["pet"]
    assert isinstance(pet, Quintiles)
    assert most < max(t for t in pet.thresholds if t is not None) <= scaled + 1e-6
    gold = {r["user_id"]: {"pet": "Cat", "home": "Flat"} for r in records}
    platt = fit_run(p.store, p.run_id, kind="platt", gold=gold)
    assert platt.samples == 10


async def test_store_report_and_stats_say_how_many_were_asked_for_and_why_it_stopped() -> None:
    p = profiler(ByUser(lambda i: ""), adaptive="bayes")
    _, report = await p.aprofile_many(users(20))
    samples = p.store.rows("select count(*) from samples group by record_id order by record_id")
    assert [n or 10 for n, _ in asked(p)] == [n for (n,) in samples]
    reasons = [reason or "all" for _, reason in asked(p)]
    assert report.sampling is not None
    assert report.sampling.stops == {r: reasons.count(r) for r in sorted(set(reasons))}
    assert report.sampling.mean == pytest.approx(sum(n for (n,) in samples) / 20)
    assert report.meter.samples == sum(n for (n,) in samples) < 200
    [row] = run_stats(p.store)
    assert (row["adaptive"], row["asked_per_record"]) == ("bayes", report.sampling.mean)
    assert row["stops"] == ", ".join(f"{k} {n}" for k, n in report.sampling.stops.items())
    _, second = await p.aprofile_many(users(20))
    assert (second.resumed, second.meter.samples, second.sampling) == (20, 0, report.sampling)
    full = profiler(ByUser(lambda i: ""))
    _, report = await full.aprofile_many(users(2))
    assert report.sampling is None
    assert run_stats(full.store)[0]["stops"] is None


async def test_other_confidence_sources_stop_too() -> None:
    p = profiler(lambda i: answer(confidence=1 + i % 5), adaptive="exact", confidence="agreement")
    await p.aprofile(RECORD)
    assert asked(p) == [(6, "exact")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"adaptive": "maybe"}, "unknown adaptive sampling 'maybe'"),
        ({"adaptive": "exact", "vote": "dawid_skene"}, "dawid_skene"),
        ({"adaptive": "bayes", "adaptive_p": 1.0}, "adaptive_p should be less than 1"),
        ({"adaptive": "bayes", "adaptive_p": 0}, "adaptive_p should be greater than 0"),
        ({"adaptive": "bayes", "wave": 0}, "wave should be greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        profiler(lambda i: answer(), **options)


async def test_batches_are_drawn_as_a_whole(tmp_path: Path) -> None:
    backend = OpenAIBackend("m", base_url="http://127.0.0.1:9/v1", api_key="k")
    p = Profiler(backend, taxonomy=PETS, adaptive="exact")
    with pytest.raises(InputError, match="wave by wave"):
        await run_by_batches(p.context, [RECORD])
    q = Profiler(FileBackend("m"), taxonomy=PETS, adaptive="exact")
    with pytest.raises(InputError, match="wave by wave"):
        write_requests(q.context, [RECORD], tmp_path / "requests.jsonl")
    assert not (tmp_path / "requests.jsonl").exists()


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = [
        {"user_id": f"u{i}", "watched": ["newborn sleep schedule", "baby stroller review"]} for i in range(3)
    ]
    Path("users.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    go = ["profile", "users.jsonl", "--out", "p.jsonl", "--adaptive", "bayes", "--adaptive-p", "0.8"]
    result = CliRunner().invoke(app, go)
    assert result.exit_code == 0, result.output
    assert "samples asked for: " in result.stdout
    with TraceStore("traces.db") as store:
        sampling = sampling_of(store, store.run()["run_id"])
        stopped = store.rows("select count(*) from records where asked < 10 and stop_reason is not null")[0][
            0
        ]
    assert sampling is not None
    assert stopped > 0
    result = CliRunner().invoke(app, ["stats"])
    assert "adaptive sampling" in result.stdout
    result = CliRunner().invoke(app, [*go, "--batch-api"])
    assert isinstance(result.exception, InputError)
    assert "--adaptive draws wave by wave and --batch-api all samples at once" in str(result.exception)
    result = CliRunner().invoke(app, [*go[:4], "--adaptive", "exact", "--vote", "dawid_skene"])
    assert isinstance(result.exception, InputError)


def replayed(shared_data: Path, name: str, **options: Any) -> tuple[list[Profile], Any]:
    recording = shared_data / "recorded_teacher" / f"{name}.jsonl"
    recorded = {json.loads(line)["user_id"] for line in recording.read_text().splitlines()}
    records: list[Any] = [
        r for r in read_records(shared_data / name / "users.jsonl") if r["user_id"] in recorded
    ]  # type: ignore[index]
    with Profiler(f"replay:{recording}", **options) as p:
        return p.profile_many(records)


@pytest.mark.parametrize("name", ["atus", "synthpai"])
def test_on_a_recorded_teacher_exact_gives_identical_tags_and_bayes_nearly(
    shared_data: Path, name: str
) -> None:
    """What is saved here is little: these answers differ, and a record stops only when six attributes have."""
    full, _ = replayed(shared_data, name)
    exact, report = replayed(shared_data, name, adaptive="exact")
    assert [voted(profile).keys() for profile in exact] == [voted(profile).keys() for profile in full]
    for one, other in zip(exact, full, strict=True):
        assert {a: one[a].voted for a in one} == {a: other[a].voted for a in other}
    assert report.sampling.mean <= 10
    bayes, report = replayed(shared_data, name, adaptive="bayes")
    pairs = [(one[a].voted, other[a].voted) for one, other in zip(bayes, full, strict=True) for a in other]
    assert sum(a == b for a, b in pairs) / len(pairs) >= 0.98
    assert 0.02 < 1 - report.sampling.mean / 10 < 0.2
