"""Two runs side by side: agreement, coverage, cost and pace, and the differences that matter most."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents import Profiler, TraceStore
from cp_agents.cli.app import app
from cp_agents.cues import AssembledCues
from cp_agents.errors import InputError, StoreError
from cp_agents.evaluation import compare as compare_module
from cp_agents.evaluation.agreement import cohen_kappa
from cp_agents.evaluation.compare import Comparison, compare_runs
from cp_agents.evaluation.effort import pace
from cp_agents.schema import NA, AttributeProfile, Evidence, Profile, Status
from cp_agents.stores.traces import NewSample
from cp_agents.taxonomy import Attribute, Tag, Taxonomy
from tests.loopback import LoopbackConfig, running_server
from tests.support import PETS, RECORD, ScriptedBackend, answer

Given = Mapping[str, AttributeProfile | tuple[str, int]]
"""What a run says of a user: whole values, or (voted tag, confidence)."""


def value(
    voted: str, confidence: int, status: Status | None = None, reasons: tuple[str, ...] = (), **more: Any
) -> AttributeProfile:
    """An attribute as abstention leaves it; a vote for NA abstains."""
    if status is None:
        status, reasons = (Status.ABSTAINED, ("voted_na",)) if voted == NA else (Status.ACCEPTED, reasons)
    more = {"tag": voted if status is Status.ACCEPTED else NA, "score": 1.0, "vote_share": 0.8, **more}
    return AttributeProfile(voted=voted, confidence=confidence, status=status, reasons=list(reasons), **more)


def put_run(
    store: TraceStore, run: str, users: Mapping[str, Given], *, taxonomy: Taxonomy = PETS, cues: str = "cue"
) -> None:
    """A stored run with these profiles and without samples."""
    columns = {
        **dict.fromkeys(("endpoint", "model", "revision", "taxonomy_hash", "prompt_version"), "x"),
        "backend": f"scripted:{run}",
        "taxonomy": taxonomy.model_dump_json(),
        "samples": 10,
        "settings": "{}",
    }
    run_id = store.open_run(run, f"fingerprint of {run}", columns)
    for user, attributes in users.items():
        record_id = store.put_record(
            run_id, user, AssembledCues(text=cues, self_reported={}, tokens=1, dropped={})
        )
        values = {n: v if isinstance(v, AttributeProfile) else value(*v) for n, v in attributes.items()}
        store.put_profile(record_id, [], Profile(user_id=user, attributes=values, run_id=run_id))


def pets(pet: str, confidence: int = 4) -> Given:
    return {"pet": (pet, confidence), "home": ("Flat", 3)}


def compared(a: Mapping[str, Given], b: Mapping[str, Given], **options: Any) -> Comparison:
    store = TraceStore()
    put_run(store, "a", a)
    put_run(store, "b", b)
    return compare_runs(store, "a", "b", **options)


# -- agreement --------------------------------------------------------------------------------------------


def test_equal_tags_kappa_and_where_both_answer() -> None:
    of_a, of_b = (
        ["Cat", "Cat", "Cat", "Dog", "Dog", NA, NA, "Fish"],
        ["Cat", "Cat", "Dog", "Dog", NA, "Cat", NA, "Fish"],
    )
    found = compared(
        {f"u{i}": pets(tag) for i, tag in enumerate(of_a)}, {f"u{i}": pets(tag) for i, tag in enumerate(of_b)}
    ).attributes["pet"]
    assert (found.users, found.equal) == (8, 5 / 8)
    # Expected by chance: Cat 3*3, Dog 2*2, Fish 1*1, NA 2*2, out of 64.
    assert found.kappa == pytest.approx((5 / 8 - 18 / 64) / (1 - 18 / 64))
    assert (found.both_answer, found.only_a, found.only_b) == (5, 1, 1)
    assert found.equal_where_both_answer == 4 / 5
    assert found.differing == 3


def test_an_attribute_on_which_both_always_say_the_same_has_no_kappa() -> None:
    found = compared({"u1": pets("Cat"), "u2": pets("Dog")}, {"u1": pets("Cat"), "u2": pets("Dog")})
    assert found.attributes["pet"].kappa == 1
    assert found.attributes["home"].equal == 1
    assert found.attributes["home"].kappa is None


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    score = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    ours = cohen_kappa(Counter(pairs))
    if len({tag for pair in pairs for tag in pair}) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(score(*zip(*pairs, strict=True)))
    assert ours == cohen_kappa(Counter((b, a) for a, b in pairs))


def test_coverage_is_that_of_the_run_and_of_every_tau() -> None:
    below = value("Dog", 2, Status.ABSTAINED, ("below_tau",))
    a = {"u1": {"pet": ("Cat", 5)}, "u2": {"pet": below}, "u3": {"pet": (NA, 4)}, "u4": {"pet": ("Cat", 3)}}
    found = compared(a, {user: pets("Cat", 1) for user in a}).attributes["pet"]
    assert (found.coverage_a, found.coverage_at_tau_a) == (0.5, [0.75, 0.75, 0.5, 0.25, 0.25])
    assert (found.coverage_b, found.coverage_at_tau_b) == (1.0, [1.0, 0.0, 0.0, 0.0, 0.0])
    assert (found.equal, found.only_b, found.differing) == (0.5, 2, 2)


def test_failed_attributes_are_counted_and_are_no_agreement() -> None:
    failed = value("Cat", 1, Status.FAILED, ("too_few_survivors",))
    found = compared(
        {"u1": {"pet": failed}, "u2": pets("Cat"), "u3": {}},
        {"u1": {"pet": (NA, 1)}, "u2": pets("Cat"), "u3": pets("Cat")},
    ).attributes["pet"]
    assert (found.users, found.equal, found.failed_a, found.failed_b) == (1, 1.0, 2, 0)
    assert found.coverage_a == pytest.approx(1 / 3)
    assert found.differing == 0


def test_what_a_person_said_is_not_the_runs_word() -> None:
    reviewed = value("Cat", 4, Status.REVIEWED, ("audit",), tag="Dog", reviewer="ann")
    unsure = value("Cat", 1, Status.REVIEWED, ("below_tau", "audit"), tag="Dog", reviewer="ann")
    waiting = value("Cat", 4, Status.NEEDS_REVIEW, ("audit",), tag="Cat")
    found = compared(
        {"u1": {"pet": reviewed}, "u2": {"pet": unsure}, "u3": {"pet": waiting}},
        {user: pets("Cat") for user in ("u1", "u2", "u3")},
    ).attributes["pet"]
    assert found.equal == pytest.approx(2 / 3)
    assert (found.only_b, found.differing) == (1, 0)
    assert found.coverage_a == pytest.approx(2 / 3)


def test_users_of_one_run_only_are_counted_and_compared_in_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "_PAGE", 2)
    a = {f"u{i}": pets("Cat") for i in range(7)}
    b = {f"u{i}": pets("Dog") for i in range(2, 9)}
    found = compared(a, b)
    assert (found.users, found.a.only_here, found.b.only_here) == (5, 2, 2)
    assert {d.user_id for d in found.differences} == {f"u{i}" for i in range(2, 7)}


def test_users_with_other_cues_are_counted() -> None:
    store = TraceStore()
    put_run(store, "a", {"u1": pets("Cat")})
    put_run(store, "b", {"u1": pets("Cat")}, cues="a longer cue")
    assert compare_runs(store, "a", "b").other_cues == 1
    assert compare_runs(store, "a", "a").other_cues == 0


# -- differences ------------------------------------------------------------------------------------------


def test_the_most_confident_differences_come_first_with_their_evidence() -> None:
    quoted = [Evidence(text=f"piece {i}") for i in range(5)]
    a = {
        "u1": pets("Cat", 5),
        "u2": pets("Cat", 3),
        "u3": {"pet": value("Cat", 5, evidence=quoted)},
        "u4": pets("Cat"),
    }
    b = {"u1": pets("Dog", 2), "u2": pets("Dog", 3), "u3": pets(NA, 5), "u4": pets("Cat", 1)}
    found = compared(a, b)
    assert [d.user_id for d in found.differences] == ["u3", "u2", "u1"]
    first = found.differences[0]
    assert (first.a.tag, first.a.confidence, first.b.tag, first.b.confidence) == ("Cat", 5, NA, 5)
    assert first.a.evidence == ["piece 0", "piece 1", "piece 2"]
    for limit in (0, 1, 2):
        fewer = compared(a, b, differences=limit)
        assert [d.user_id for d in fewer.differences] == ["u3", "u2", "u1"][:limit]
        assert fewer.differing == 3


def test_gold_says_which_run_is_right() -> None:
    a = {"u1": pets("Cat"), "u2": pets("Cat"), "u3": pets("Cat"), "u4": pets("Fish")}
    b = {"u1": pets("Dog"), "u2": pets("Dog"), "u3": pets("Dog"), "u4": pets("Fish")}
    gold = {
        "u1": {"pet": "Cat"},
        "u2": {"pet": "Dog"},
        "u3": {"pet": "Fish"},
        "u4": {"pet": "Fish"},
        "u9": {"pet": "Cat"},
    }
    found = compared(a, b, gold=gold)
    pet = found.attributes["pet"]
    assert (pet.differing, pet.right_a, pet.right_b) == (3, 1, 1)
    assert [d.gold for d in found.differences] == ["Cat", "Dog", "Fish"]
    assert found.a.gold is not None
    assert found.a.gold.users == 4
    assert found.a.gold.attributes["pet"].at_tau[0].selective_accuracy == 0.5
    with pytest.raises(InputError, match="gold knows none of the 4 users that runs a and b share"):
        compared(a, b, gold={"u9": {"pet": "Cat"}})
    with pytest.raises(InputError, match="gold of user 'u1': 'Horse' is not a tag of 'pet'"):
        compared(a, b, gold={"u1": {"pet": "Horse"}})


# -- what cannot be compared ------------------------------------------------------------------------------


def test_other_closed_sets_are_refused_in_one_sentence_and_other_descriptions_are_not() -> None:
    def with_pets(*tags: str, name: str = "pet", description: str = "") -> Taxonomy:
        pet = Attribute(name=name, description=description, tags=[Tag(name=tag) for tag in tags])
        return Taxonomy(name="mine", attributes=[pet, PETS["home"]])

    store = TraceStore()
    put_run(store, "a", {"u1": pets("Cat")})
    put_run(store, "worded", {"u1": pets("Dog")}, taxonomy=with_pets("Fish", "Dog", "Cat", description="any"))
    put_run(store, "tags", {"u1": pets("Dog")}, taxonomy=with_pets("Cat", "Dog", "Horse", "Fish"))
    put_run(store, "names", {"u1": pets("Dog")}, taxonomy=with_pets("Cat", name="animal"))
    assert compare_runs(store, "a", "worded").differing == 1
    with pytest.raises(
        InputError, match=r"^runs a and tags cannot be compared: the tag 'Horse' of 'pet' is in"
    ):
        compare_runs(store, "a", "tags")
    with pytest.raises(InputError, match="pets asks for pet, home, and mine for animal, home"):
        compare_runs(store, "a", "names")


def test_no_common_user_and_no_such_run() -> None:
    with pytest.raises(InputError, match="runs a and b have profiles of no common user"):
        compared({"u1": pets("Cat")}, {"u2": pets("Cat")})
    store = TraceStore()
    put_run(store, "a", {"u1": pets("Cat")})
    with pytest.raises(StoreError, match=r"no run 'b' in the store :memory: \(runs: a\)"):
        compare_runs(store, "a", "b")


# -- cost and pace ----------------------------------------------------------------------------------------

USERS = [{"user_id": f"u{i}", "watched": [f"video {i}", "cooking"], "posted": [f"day {i}"]} for i in range(6)]
PRICES = {"prompt": 1.0, "cached": 0.5, "completion": 2.0}


async def test_cost_and_tokens_are_of_the_shared_users() -> None:
    store = TraceStore()
    with running_server(LoopbackConfig()) as server:
        for run, users, prices in (("a", USERS, PRICES), ("b", USERS[:4], None)):
            p = Profiler(
                "openai:m", store, samples=5, seed=len(run), run=run, base_url=server.url, prices=prices,
                temperature=0.5 if prices else 1.0,
            )  # fmt: skip
            await p.aprofile_many(users)
            await p.backend.aclose()
    found = compare_runs(store, "a", "b")
    a, b = found.a.effort, found.b.effort
    assert (found.users, a.samples, b.samples, a.unpriced, b.unpriced) == (4, 20, 20, 0, 20)
    assert a.cost_usd == pytest.approx(
        ((a.prompt_tokens - a.cached_tokens) * 1 + a.cached_tokens * 0.5 + a.completion_tokens * 2) / 1e6
    )
    assert a.cached_tokens > 0
    assert a.cost_per_record == pytest.approx((a.cost_usd or 0) / 4)
    assert a.cost_per_accepted == pytest.approx((a.cost_usd or 0) / found.a.accepted)
    assert b.cost_usd is None
    assert a.mean_latency_s is not None
    assert a.in_turn_per_s == pytest.approx(1 / a.mean_latency_s)


async def test_reused_samples_cost_nothing_and_failed_ones_are_counted() -> None:
    store = TraceStore()
    for run in ("a", "again"):
        p = Profiler(ScriptedBackend(lambda i: answer()), store, samples=4, run=run, taxonomy=PETS)
        await p.aprofile(RECORD)
    broken = ScriptedBackend(lambda i: RuntimeError("bug") if i == 1 else answer())
    broken.revision = "2"
    await Profiler(broken, store, samples=4, run="broken", taxonomy=PETS, fanout="node").aprofile(RECORD)
    found = compare_runs(store, "again", "broken")
    assert (found.a.effort.samples, found.a.effort.reused, found.a.effort.unpriced) == (0, 4, 0)
    assert found.a.samples_per_s is None
    assert found.a.pace_basis == "unknown: no sample was drawn, all were reused"
    assert (found.b.effort.samples, found.b.effort.failed, found.b.effort.unpriced) == (4, 3, 1)


def put_samples(store: TraceStore, started: str, landed: Mapping[str, int], latency_s: float = 0.1) -> None:
    """A run "a" whose samples landed at these times of one day."""
    put_run(store, "a", {"u1": pets("Cat")})
    from cp_agents.schema import Completion, Outcome

    total = sum(landed.values())
    new = [NewSample(Completion(index=i, latency_s=latency_s), Outcome.OK, {}) for i in range(total)]
    ids = iter(sample.sample_id for sample in store.add_samples(1, "x", new))
    with store.transaction() as conn:
        conn.execute("update runs set created_at = ?", (f"2026-01-01T{started}+00:00",))
        for stamp, count in landed.items():
            for _ in range(count):
                at = f"2026-01-01T{stamp}+00:00"
                conn.execute("update samples set created_at = ? where sample_id = ?", (at, next(ids)))


def test_pace_is_given_only_where_it_is_honest() -> None:
    steady, broken, slow, quick = (TraceStore() for _ in range(4))
    put_samples(steady, "10:00:00", {"10:00:05": 30, "10:00:50": 20, "10:01:40": 50})
    assert pace(steady, "a") == (100, 1.0, "100 samples from the run's start to its last sample, ± 1 s")
    put_samples(broken, "10:00:00", {"10:00:05": 30, "11:00:05": 30})
    assert pace(broken, "a") == (
        3605, None, "unknown: nothing landed for 3,600 s, so the run was interrupted",
    )  # fmt: skip
    put_samples(slow, "10:00:00", {"10:01:30": 45, "10:03:00": 45}, latency_s=80)
    assert pace(slow, "a").samples_per_s == 0.5
    with broken.transaction() as conn:  # nothing lands while a batch is away
        conn.execute(
            "insert into batches (batch_key, run_id, status, requests, created_at) values ('k', 'a', 'x', 1, 'x')"
        )
    went = pace(broken, "a")
    assert went.samples_per_s == 60 / 3605
    assert "the waiting for provider batches" in went.basis
    put_samples(quick, "10:00:00", {"10:00:01": 30})
    assert pace(quick, "a").samples_per_s is None


def test_a_run_of_half_a_second_has_a_pace() -> None:
    store = TraceStore()
    put_samples(store, "10:00:00.250", {"10:00:00.500": 30, "10:00:00.750": 20})
    assert pace(store, "a") == (0.5, 100.0, "50 samples from the run's start to its last sample")


# -- the command line -------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return str(result.stdout)


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    db, gold = str(tmp_path / "t.db"), tmp_path / "gold.jsonl"
    with TraceStore(db) as store:
        put_run(store, "a", {"u1": pets("Cat"), "u[2]": pets("Cat", 5), "u3": pets("Fish")})
        put_run(store, "b", {"u1": pets("Cat"), "u[2]": pets("Dog", 5)})
    gold.write_text(json.dumps({"user_id": "u[2]", "inferable": {"pet": "Dog"}}) + "\n")
    said = run("compare", "a", "b", "--store", db)
    for part in ("over 2 shared users", "scripted:b", "u[2]", "Cat 5/5", "Dog 5/5", "1 users are only in a"):
        assert part in said
    assert "gold" not in said
    out = tmp_path / "c.json"
    said = run(
        "compare",
        "a",
        "b",
        "--store",
        db,
        "--gold",
        str(gold),
        "--truth-field",
        "inferable",
        "--json",
        str(out),
    )
    assert "B right" in said
    found = Comparison.model_validate_json(out.read_text())
    assert (found.attributes["pet"].right_a, found.attributes["pet"].right_b) == (0, 1)
    with pytest.raises(StoreError, match=r"no trace store at nowhere\.db"):
        run("compare", "a", "b", "--store", "nowhere.db")
