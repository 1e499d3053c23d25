"""`vllm:` for real: SmolLM2 on the CPU, inside this process."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from cp_agents import Profiler
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.tag_logprobs import ScoredCompletion, tag_probabilities
from cp_agents.backends.vllm import VllmBackend
from cp_agents.backends.wire_grammar import wire_regex
from cp_agents.background import run_sync
from cp_agents.errors import BackendError, ErrorType
from cp_agents.parsing import parse_answer, parse_completion
from cp_agents.prompts.render import load_prompt
from cp_agents.schema import Completion, Outcome
from cp_agents.taxonomy import load_taxonomy
from tests.support import PETS, RECORD
from tests.vllm.conftest import QUICK, SMALL, ask
from tests.vllm.make_model import write_adapter
from tests.vllm.serving import COMPUTED, Models

CUES = "[posted]\n- my cat sleeps all day\n- the flat is small\n[self_reported]\n- pet: dog"
BLOCK = 32


SHORT = {"structured_outputs": {"regex": wire_regex(PETS, evidence_chars=24)}}
"""Tokens are dear on a CPU."""


def open_backend(spec: str, **extra: object) -> VllmBackend:
    backend = resolve_backend(spec, BackendOptions(taxonomy=PETS, extra=extra))
    assert isinstance(backend, VllmBackend)
    return backend


@pytest.fixture(scope="module")
def backend(models: Models) -> Iterator[VllmBackend]:
    # Without chunked prefill, so that seeds can be used on a CPU.
    own = f"logprobs=5&block_size={BLOCK}&enable_chunked_prefill=false"
    backend = open_backend(f"vllm:{models.base}?{own}&{SMALL}", **SHORT)
    yield backend
    run_sync(backend.aclose())


async def unfinished(llm: Any) -> int:
    """Requests that the engine is working on."""
    return int(llm.get_num_unfinished_requests())


async def drawn(backend: VllmBackend, *args: object, **settings: float) -> dict[int, Completion]:
    return {c.index: c async for c in backend.sample(ask(*args, **settings))}  # type: ignore[arg-type]


def computed() -> int:
    from vllm.v1.metrics.reader import get_metrics_snapshot

    return sum(m.value for m in get_metrics_snapshot() if m.labels.get("source") == COMPUTED)


def test_what_it_can_do(backend: VllmBackend) -> None:
    can = backend.capabilities
    assert (can.n, can.logprobs) == (True, True)
    assert not can.seed, "rounding depends on the batch"


async def test_ten_samples_land_one_by_one_and_all_parse(backend: VllmBackend) -> None:
    landed = [c async for c in backend.sample(ask(CUES))]
    assert sorted(c.index for c in landed) == list(range(10))
    assert len({c.latency_s for c in landed}) > 1
    assert [c.latency_s for c in landed] == sorted(c.latency_s for c in landed)
    for completion in landed:
        assert completion.finish_reason == "stop"
        parsed = parse_completion(completion, PETS)
        assert {a.outcome for a in parsed.attributes.values()} == {Outcome.OK}
    usage = {c.index: c.usage for c in landed}
    assert usage[0].prompt_tokens > 500
    assert [usage[i].prompt_tokens for i in range(1, 10)] == [0] * 9
    assert all(u.completion_tokens > 20 for u in usage.values())
    assert len({c.text for c in landed}) > 5


async def test_a_prompt_is_computed_once_for_all_its_samples(backend: VllmBackend) -> None:
    before = computed()
    tokens = (await drawn(backend, CUES.replace("cat", "parrot")))[0].usage
    fresh = tokens.prompt_tokens - tokens.cached_tokens
    assert tokens.cached_tokens > 0.7 * tokens.prompt_tokens, (
        "what prompts have in common is computed once in all"
    )
    assert fresh <= computed() - before <= fresh + 9 * BLOCK, "each other sample computes less than a block"


async def test_a_run_through_the_graph_parses_and_resumes_without_a_call(backend: VllmBackend) -> None:
    profiler = Profiler(backend, taxonomy=PETS, samples=10, **QUICK)
    records = [RECORD | {"user_id": f"u{i}", "seen": [f"猫の動画 {i}", "“Ünïcode” 🐈"]} for i in range(3)]
    _, report = await profiler.aprofile_many(records)
    assert not report.failed
    assert report.meter.outcomes == {"ok": 30}
    asked = computed()
    _, again = await profiler.aprofile_many(records)
    assert (again.resumed, computed()) == (3, asked)


async def test_six_attributes_parse_too(backend: VllmBackend) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    taxonomy = load_taxonomy("profilebench")
    messages = [m.as_dict() for m in load_prompt(taxonomy).messages(CUES)]

    async def straight(llm: Any) -> list[str]:
        prompt = llm.get_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        structured = StructuredOutputsParams(regex=wire_regex(taxonomy, evidence_chars=24))
        whole = RequestOutputKind.FINAL_ONLY
        params = SamplingParams(n=10, max_tokens=1200, structured_outputs=structured, output_kind=whole)
        *_, last = [output async for output in llm.generate(prompt, params, "six")]
        return [choice.text for choice in last.outputs]

    texts = await backend.on_engine(straight)
    assert len(texts) == 10
    for text in texts:
        parsed = parse_answer(text, taxonomy, finish_reason="stop")
        assert {a.outcome for a in parsed.attributes.values()} == {Outcome.OK}


async def test_the_same_seeds_give_the_same_samples(backend: VllmBackend) -> None:
    first, again, others = [
        await drawn(backend, CUES, 0, 1, 2, max_tokens=40, seed=seed) for seed in (3, 3, 300)
    ]
    assert [first[i].text for i in range(3)] == [again[i].text for i in range(3)]
    assert [first[i].text for i in range(3)] != [others[i].text for i in range(3)]


async def test_indices_with_gaps_and_greedy_samples(backend: VllmBackend) -> None:
    assert sorted(await drawn(backend, CUES, 3, 4, 9, max_tokens=20)) == [3, 4, 9]
    greedy = await drawn(backend, CUES, 0, 1, max_tokens=20, temperature=0.0)
    assert greedy[0].text == greedy[1].text
    assert {c.finish_reason for c in greedy.values()} == {"length"}


async def test_probabilities_of_tags(backend: VllmBackend) -> None:
    for completion in (await drawn(backend, CUES, 0, 1)).values():
        assert isinstance(completion, ScoredCompletion)
        parsed = parse_completion(completion, PETS)
        for attribute in PETS.attributes:
            found = tag_probabilities(completion.tag_tokens[attribute.name], attribute)
            assert parsed.attributes[attribute.name].tag in found
            assert set(found) <= set(attribute.names)
            assert len(found) > 1
            assert sum(found.values()) == pytest.approx(1)


async def test_a_prompt_that_is_too_long_is_a_typed_failure_and_says_nothing_of_it(
    backend: VllmBackend,
) -> None:
    failed = await drawn(backend, "[posted]\n" + "- secret words\n" * 1500, 0, 1)
    assert {c.error_type for c in failed.values()} == {ErrorType.CONTEXT_LENGTH}
    assert "takes 4096" in (failed[0].error_message or "")
    assert "secret" not in (failed[0].error_message or "")


async def test_leaving_early_aborts_what_is_in_flight(backend: VllmBackend) -> None:
    stream = backend.sample(ask(CUES))
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    for _ in range(200):
        if not await backend.on_engine(unfinished):
            return
        await asyncio.sleep(0.05)
    pytest.fail("requests are still running")


def test_callers_may_have_loops_of_their_own(backend: VllmBackend) -> None:
    for _ in range(2):
        assert sorted(asyncio.run(drawn(backend, CUES, 0, 1, max_tokens=10))) == [0, 1]


async def test_a_request_that_vllm_refuses_is_a_typed_failure(backend: VllmBackend) -> None:
    failed = await drawn(backend, CUES, 0, top_p=1.5)
    assert failed[0].error_type is ErrorType.BAD_REQUEST
    assert "top_p" in (failed[0].error_message or "")


async def test_an_engine_that_dies_ends_the_run_and_can_be_started_again(backend: VllmBackend) -> None:
    drawing = asyncio.create_task(drawn(backend, CUES, max_tokens=3000))
    for _ in range(600):
        if await backend.on_engine(unfinished):
            break
        await asyncio.sleep(0.05)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(BackendError, match="vLLM's engine has died") as caught:
        await drawing
    assert caught.value.error_type.is_fatal
    await backend.aclose()
    assert sorted(await drawn(backend, CUES, 0, max_tokens=5)) == [0]


async def test_an_adapter_answers_differently_and_its_weights_are_its_identity(
    models: Models, backend: VllmBackend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("adapters") / "adapter"
    shutil.copytree(models.adapter, copy)
    options = "structured=grammar&enable_chunked_prefill=false"
    with_adapter = open_backend(f"vllm:{models.base}+{copy}?{options}&{SMALL}")
    assert with_adapter.identity.model == f"{models.base}+{copy}"
    try:
        base = await drawn(backend, CUES, 0, 1, 2)
        adapted = await drawn(with_adapter, CUES, 0, 1, 2)
        processes = len(multiprocessing.active_children())
    finally:
        await with_adapter.aclose()
    assert len(multiprocessing.active_children()) == processes - 1, "the engine has ended"
    for completion in adapted.values():
        assert parse_completion(completion, PETS).outcome is Outcome.OK
    assert [base[i].text for i in range(3)] != [adapted[i].text for i in range(3)]
    write_adapter(models.base, copy, seed=2)
    retrained = open_backend(f"vllm:{models.base}+{copy}?{options}&{SMALL}")
    elsewhere = open_backend(f"vllm:{models.base}+{copy}?{options}&max_model_len=512")
    free = open_backend(f"vllm:{models.base}+{copy}?{SMALL}")
    assert retrained.identity.revision not in (with_adapter.identity.revision, free.identity.revision)
    assert retrained.identity.revision == elsewhere.identity.revision, "memory has no bearing on answers"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("max_model_lenn=512", "no option 'max_model_lenn': did you mean max_model_len"),
        ("min_p=7", "vLLM could not start"),
        (SMALL, "where memory was short"),
    ],
)
async def test_an_engine_that_cannot_start_ends_the_run_with_a_sentence(
    models: Models, options: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "500")
    broken = open_backend(f"vllm:{models.base}?{options}")
    for _ in range(2):  # the failure is remembered
        with pytest.raises(BackendError, match=says) as caught:
            await drawn(broken, CUES, 0)
        assert caught.value.error_type.is_fatal
    await broken.aclose()
