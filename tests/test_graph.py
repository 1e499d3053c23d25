"""The real graph over a real store: fan-out, failures, resume, review, embedding."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.errors import is_invalid_resume
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from pydantic import ValidationError

from cp_agents import InputError, Profiler, ReviewPolicy, TraceStore, build_graph
from cp_agents.backends.base import SampleRequest
from cp_agents.errors import BackendError, ErrorType
from cp_agents.graph import Fanout, compile_graph
from cp_agents.schema import Completion, Status
from cp_agents.stores.forget import forget
from cp_agents.stores.reviews import open_reviews, reviewed
from tests.support import PETS, RECORD, ScriptedBackend, answer

BOTH: list[Fanout] = ["send", "node"]
CONTRADICTION = ReviewPolicy(contradiction=True)


def profiler(
    script: Any = lambda i: answer(), backend: ScriptedBackend | None = None, **options: Any
) -> Profiler:
    return Profiler(backend=backend or ScriptedBackend(script), taxonomy=PETS, **{"samples": 4, **options})


def rows(p: Profiler) -> dict[int, tuple[str, str | None]]:
    found = p.store.rows("select sample_index, outcome, error_type from samples order by 1")
    return {index: (outcome, error) for index, outcome, error in found}


@pytest.mark.parametrize("fanout", BOTH)
async def test_a_record_becomes_a_profile(fanout: Fanout) -> None:
    p = profiler(lambda i: answer("Dog" if i == 3 else "Cat", confidence=2 if i == 3 else 4), fanout=fanout)
    profile = await p.aprofile(RECORD)
    pet = profile["pet"]
    assert (pet.tag, pet.status, pet.score, pet.vote_share) == ("Cat", Status.ACCEPTED, 12.0, 0.75)
    assert (pet.runner_up, pet.agreeing, pet.survivors, pet.confidence) == ("Dog", [0, 1, 2], 4, 3)
    [evidence] = pet.evidence
    cues = p.store.record(1)[1]
    assert cues[evidence.start : evidence.end] == evidence.text == "my cat sleeps all day"
    assert evidence.source == "posted"
    assert profile.calibrator == "uncalibrated"
    assert profile.to_json() == p.store.profile(1).to_json()  # type: ignore[union-attr]


def test_sync_and_async_and_both_fanouts_agree() -> None:
    def script(i: int) -> str:
        return answer(["Cat", "Dog", "Cat", "NA"][i], ["Flat", "House"][i % 2], confidence=1 + i)

    profiles = []
    for fanout in BOTH:
        p = profiler(script, fanout=fanout, run="same")
        profiles.append(p.profile(RECORD).to_json())
        profiles.append(p.graph.invoke({"record": RECORD})["profile"])
    assert all(profile == profiles[0] for profile in profiles)


@pytest.mark.parametrize("fanout", BOTH)
async def test_one_sample_failing_never_loses_the_others(fanout: Fanout) -> None:
    def script(i: int) -> str | Exception:
        return {1: RuntimeError("adapter bug"), 3: BackendError("boom", ErrorType.BAD_REQUEST)}.get(
            i
        ) or answer()

    class OneByOne(ScriptedBackend):
        """A fault in one call says nothing of the other indices, so each is asked for on its own."""

    p = profiler(backend=OneByOne(script), fanout="send" if fanout == "send" else "node")
    profile = await p.aprofile(RECORD)
    stored = rows(p)
    assert set(stored) == {0, 1, 2, 3}
    assert stored[0] == ("ok", None)
    assert stored[1] == ("error", "internal")
    if fanout == "send":
        assert stored[2] == ("ok", None)
        assert stored[3] == ("error", "bad_request")
    survivors = sum(outcome == "ok" for outcome, _ in stored.values())
    assert profile["pet"].survivors == survivors
    assert profile["pet"].voted == "Cat"


@pytest.mark.parametrize("fanout", BOTH)
@pytest.mark.parametrize(
    "error",
    [BackendError("no", ErrorType.BAD_REQUEST), RuntimeError("x"), BackendError("t", ErrorType.SERVER)],
)
async def test_a_record_without_one_good_sample_still_ends_as_a_failed_profile(
    fanout: Fanout, error: Exception
) -> None:
    p = profiler(backend=ScriptedBackend(lambda i: error, retries=False), fanout=fanout)
    profile = await p.aprofile(RECORD)
    assert {profile[a].status for a in profile} == {Status.FAILED}
    assert len(rows(p)) == 4
    assert p.store.profile(1) is not None


async def test_a_fault_is_stored_by_its_type_alone_and_asked_for_again_once_mended() -> None:
    broken = True

    def script(i: int) -> str | Exception:
        return RuntimeError("key sk-SECRET of anna@example.com") if broken else answer()

    for fanout in BOTH:
        broken = True
        p = profiler(script, fanout=fanout)
        await p.aprofile(RECORD)
        assert set(rows(p).values()) == {("error", "internal")}
        assert p.store.rows("select distinct error_message from samples") == [
            ("RuntimeError in the backend",)
        ]
        broken = False
        assert (await p.aprofile(RECORD))["pet"].survivors == 4


async def test_an_answer_that_nobody_asked_for_does_no_harm() -> None:
    class Generous(ScriptedBackend):
        async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
            async for completion in super().sample(request):
                yield completion
            yield Completion(index=99, text=answer("Fish"))
            yield Completion(index=0, text=answer("Fish"))

    p = profiler(backend=Generous(lambda i: answer()), fanout="node")
    profile = await p.aprofile(RECORD)
    assert set(rows(p)) == {0, 1, 2, 3}
    assert profile["pet"].vote_share == 1.0


async def test_a_recording_is_never_shared_between_users_with_equal_cues(tmp_path: Path) -> None:
    lines = [
        {"user_id": u, "samples": [{"text": answer(tag)}] * 3} for u, tag in (("a", "Cat"), ("b", "Dog"))
    ]
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    p = Profiler(backend=f"replay:{path}", taxonomy=PETS, samples=3)
    found = [(await p.aprofile({**RECORD, "user_id": u}))["pet"].voted for u in ("a", "b")]
    assert found == ["Cat", "Dog"]


async def test_too_few_survivors_fail_the_attribute_and_not_the_record() -> None:
    p = profiler(lambda i: answer() if i < 2 else "I cannot say", min_survivors=3)
    profile = await p.aprofile(RECORD)
    assert (profile["pet"].status, profile["pet"].tag) == (Status.FAILED, "NA")
    assert profile["pet"].reasons == ["too_few_survivors"]


async def test_langgraph_retries_a_backend_that_does_not() -> None:
    seen: dict[int, int] = {}

    def flaky(i: int) -> str | Exception:
        seen[i] = seen.get(i, 0) + 1
        return BackendError("busy", ErrorType.SERVER) if i == 2 and seen[i] == 1 else answer()

    p = profiler(backend=ScriptedBackend(flaky, retries=False), fanout="send")
    await p.aprofile(RECORD)
    assert rows(p)[2] == ("ok", None)
    assert seen == {0: 1, 1: 1, 2: 2, 3: 1}


async def test_a_backend_that_retries_itself_is_not_retried_again() -> None:
    backend = ScriptedBackend(lambda i: BackendError("busy", ErrorType.SERVER), retries=True)
    p = profiler(backend=backend, fanout="send")
    profile = await p.aprofile(RECORD)
    assert len(backend.calls) == 4
    assert set(rows(p).values()) == {("error", "server_error")}
    assert profile["pet"].status is Status.FAILED


@pytest.mark.parametrize("fanout", BOTH)
async def test_a_fatal_error_ends_the_run(fanout: Fanout) -> None:
    p = profiler(lambda i: BackendError("wrong key", ErrorType.AUTH), fanout=fanout)
    with pytest.raises(BackendError, match="wrong key"):
        await p.aprofile(RECORD)


@pytest.mark.parametrize("fanout", BOTH)
async def test_resume_asks_only_for_what_is_missing(fanout: Fanout) -> None:
    broken = True

    def script(i: int) -> str | Exception:
        return BackendError("busy", ErrorType.TIMEOUT) if broken and i in (1, 3) else answer()

    backend = ScriptedBackend(script)
    p = profiler(backend=backend, fanout=fanout)
    await p.aprofile(RECORD)
    broken = False
    backend.calls.clear()
    profile = await p.aprofile(RECORD)
    assert sorted(index for _, index in backend.calls) == [1, 3]
    assert profile["pet"].survivors == 4


async def test_the_cache_serves_the_same_request_and_no_other() -> None:
    store, backend = TraceStore(), ScriptedBackend(lambda i: answer())
    first = profiler(backend=backend, store=store, run="first")
    await first.aprofile(RECORD)
    await profiler(backend=backend, store=store, run="second").aprofile(RECORD)
    assert len(backend.calls) == 4  # another run, the same requests
    assert store.rows("select count(*) from samples where from_cache is not null") == [(4,)]
    backend.revision = "2"
    await profiler(backend=backend, store=store, run="second").aprofile(RECORD)
    assert len(backend.calls) == 8  # another revision of the weights
    await profiler(backend=backend, store=store, run="third", temperature=0.5).aprofile(RECORD)
    assert len(backend.calls) == 12  # another request


async def test_ungrounded_evidence_caps_the_confidence() -> None:
    p = profiler(lambda i: answer(evidence="owns a yacht in Monaco", confidence=5))
    pet = (await p.aprofile(RECORD))["pet"]
    assert (pet.score, pet.confidence) == (8.0, 2)
    assert pet.evidence[0].match == "ungrounded"
    assert pet.evidence[0].text == "owns a yacht in Monaco"


async def test_tau_keeps_what_it_would_have_said() -> None:
    p = profiler(lambda i: answer(confidence=3), tau={"pet": 4})
    profile = await p.aprofile(RECORD)
    assert (profile["pet"].tag, profile["pet"].status, profile["pet"].voted) == (
        "NA",
        Status.ABSTAINED,
        "Cat",
    )
    assert profile["home"].tag == "Flat"


async def test_progress_streams() -> None:
    p = profiler(fanout="send")
    updates, samples = [], []
    async for mode, chunk in p.graph.astream({"record": RECORD}, stream_mode=["updates", "custom"]):
        (samples if mode == "custom" else updates).append(chunk)
    assert sorted(s["sample"] for s in samples) == [0, 1, 2, 3]
    assert [name for u in updates for name in u if name != "sample"] == [
        "assemble_cues",
        "vote",
        "calibrate",
        "abstain",
        "finalize",
    ]


async def test_one_compiled_graph_serves_teacher_and_student() -> None:
    teacher, student = profiler(lambda i: answer("Cat"), run="t"), profiler(lambda i: answer("Dog"), run="s")
    graph = build_graph(fanout="node").compile()
    for p, tag in ((teacher, "Cat"), (student, "Dog")):
        result = await graph.ainvoke({"record": RECORD}, context=p.context)
        assert result["profile"]["profile"]["pet"]["voted"] == tag
        assert result["profile"]["run_id"] == p.run_id
    with pytest.raises(InputError, match="has no context"):
        await graph.ainvoke({"record": RECORD})
    with pytest.raises(InputError, match="unknown fanout 'both'"):
        build_graph(fanout="both")  # type: ignore[arg-type]


async def test_checkpoints_are_plain_json_and_hold_no_cues(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.db"
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        p = profiler(fanout="send", checkpointer=saver)
        config = {"configurable": {"thread_id": "t1"}}
        await p.graph.ainvoke({"record": RECORD}, config, durability="exit")
        state = await p.graph.aget_state(config)
        values = {k: v for k, v in state.values.items() if k not in ("record", "profile")}
        assert json.loads(json.dumps(values)) == values
        assert "attributes" in values
        size = (
            await (await saver.conn.execute("select sum(length(checkpoint)) from checkpoints")).fetchone()
        )[0]
        assert size < 8_000
    assert p.store.rows("select thread_id from records") == [("t1",)]
    gone = forget(p.store, "u1", checkpoints=path)
    assert gone.threads == ("t1",)
    assert b"my cat" not in path.read_bytes()


async def test_what_came_in_is_in_no_checkpoint_of_an_invocation_that_saves_at_its_exit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoints.db"
    record = {**RECORD, "posted": [*RECORD["posted"], "write to anna@example.com"]}
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        p = profiler(checkpointer=saver, review=CONTRADICTION)
        config = {"configurable": {"thread_id": "t"}}
        await p.graph.ainvoke({"record": record}, config, durability="exit")
        result = await p.graph.ainvoke(Command(resume={"pet": "Dog"}), config, durability="exit")
        assert result["profile"]["profile"]["pet"]["tag"] == "Dog"
    for file in tmp_path.iterdir():  # noqa: ASYNC240
        assert b"anna@example.com" not in file.read_bytes()


# -- review -----------------------------------------------------------------------------------------------

ANSWERS = {
    "own": {"answers": {"pet": {"tag": "dog", "note": "it barks"}}, "reviewer": "ann"},
    "short": {"pet": "Dog"},
    "inbox edit": [{"type": "edit", "args": {"action": "review_profile", "args": {"pet": "Dog"}}}],
    "inbox response": [{"type": "response", "args": {"pet": "Dog"}}],
    "middleware": {
        "decisions": [{"type": "edit", "edited_action": {"name": "review_profile", "args": {"pet": "Dog"}}}]
    },
}


@pytest.mark.parametrize("shape", ANSWERS)
async def test_one_interrupt_a_record_answered_in_any_known_shape(shape: str) -> None:
    p = profiler(review=CONTRADICTION, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    result = await p.graph.ainvoke({"record": RECORD}, config)
    [asked] = result["__interrupt__"]
    assert asked.value["action_request"] == {"action": "review_profile", "args": {"pet": "Cat"}}
    assert "my cat sleeps all day" in asked.value["description"]
    assert asked.response_schema["properties"].keys() >= {"answers", "accept", "ignore", "reviewer"}
    result = await p.graph.ainvoke(Command(resume=ANSWERS[shape]), config)
    pet = result["profile"]["profile"]["pet"]
    assert (pet["tag"], pet["voted"], pet["status"]) == ("Dog", "Cat", "reviewed")
    stored = reviewed(p.store)[1]["pet"]
    assert stored["tag"] == "Dog"
    assert stored["reviewer"] == ("ann" if shape == "own" else "anonymous")
    assert stored["reviewed_at"]


async def test_accept_and_ignore() -> None:
    for reply, status in (([{"type": "accept"}], "reviewed"), ([{"type": "ignore"}], "needs_review")):
        p = profiler(review=CONTRADICTION, checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "t"}}
        await p.graph.ainvoke({"record": RECORD}, config)
        result = await p.graph.ainvoke(Command(resume=reply), config)
        assert result["profile"]["profile"]["pet"]["status"] == status
        assert len(open_reviews(p.store)) == (status == "needs_review")


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"answers": {"pet": "Horse"}}, "'Horse' is no tag of pet: expected Cat, Dog, Fish, NA"),
        ({"answers": {"home": "Flat"}}, "attribute 'home' is not under review here"),
        ({"answers": {}}, "no answer for pet"),
        ({"tags": {"pet": "Dog"}}, "unknown field 'tags'"),
        ("Dog", "expected an object"),
        ([{"type": "shrug"}], "unknown kind of answer 'shrug'"),
        ([], "expected one decision"),
    ],
)
async def test_a_bad_answer_leaves_the_question_answerable(bad: object, sentence: str) -> None:
    p = profiler(review=CONTRADICTION, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    await p.graph.ainvoke({"record": RECORD}, config)
    with pytest.raises(ValidationError, match=sentence) as raised:
        await p.graph.ainvoke(Command(resume=bad), config)
    assert is_invalid_resume(raised.value)
    result = await p.graph.ainvoke(Command(resume={"pet": "Dog"}), config)
    assert result["profile"]["profile"]["pet"]["tag"] == "Dog"


async def test_without_a_checkpointer_the_record_is_queued() -> None:
    p = profiler(review=CONTRADICTION)
    profile = await p.aprofile(RECORD)
    assert (profile["pet"].status, profile["pet"].voted) == (Status.NEEDS_REVIEW, "Cat")
    assert profile["pet"].reasons == ["contradiction"]
    [row] = open_reviews(p.store)
    assert (row["user_id"], row["attribute"], row["proposed"]) == ("u1", "pet", "Cat")


# -- embedding --------------------------------------------------------------------------------------------


class Parent(TypedDict, total=False):
    record: dict[str, Any]
    profile: dict[str, Any]
    note: str


@dataclass
class ParentContext:
    """A parent's context, which is not ours."""

    tenant: str


async def test_embeds_in_a_parent_with_a_context_and_checkpointer_of_its_own() -> None:
    p = profiler(review=CONTRADICTION, fanout="send")
    builder = StateGraph(Parent, context_schema=ParentContext)
    builder.add_node("profile_user", p.graph)
    builder.add_node("after", lambda state: {"note": state["profile"]["profile"]["pet"]["tag"]})
    builder.add_edge(START, "profile_user")
    builder.add_edge("profile_user", "after")
    builder.add_edge("after", END)
    app = builder.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "parent"}}
    result = await app.ainvoke({"record": RECORD}, config, context=ParentContext("acme"))
    [asked] = result["__interrupt__"]
    result = await app.ainvoke(
        Command(resume={asked.id: {"pet": "Fish"}}), config, context=ParentContext("acme")
    )
    assert result["note"] == "Fish"


class Twins(TypedDict, total=False):
    left: dict[str, Any]
    right: dict[str, Any]


async def test_embeds_twice_in_parallel() -> None:
    p = profiler(lambda i: answer(confidence=1 + i))
    graph = compile_graph(p.context, fanout="send")

    def side(name: str) -> Any:
        async def run(state: Twins) -> Twins:
            result = await graph.ainvoke({"record": {**RECORD, "user_id": name}})
            return {name: result["profile"]}  # type: ignore[misc]

        return run

    builder = StateGraph(Twins)
    for name in ("left", "right"):
        builder.add_node(f"profile_{name}", side(name))
        builder.add_edge(START, f"profile_{name}")
        builder.add_edge(f"profile_{name}", END)
    result = await builder.compile(checkpointer=InMemorySaver()).ainvoke(
        {}, {"configurable": {"thread_id": "x"}}
    )
    assert result["left"]["user_id"] == "left"
    assert result["right"]["user_id"] == "right"
    assert result["left"]["profile"] == result["right"]["profile"]


def test_a_completion_object_keeps_its_reasoning_apart() -> None:
    p = profiler(lambda i: Completion(index=i, text=answer(), reasoning="hm", finish_reason="stop"))
    p.profile(RECORD)
    assert p.store.rows("select distinct reasoning, text from samples") == [("hm", answer())]
