"""`vllm-server:` for real: a vLLM server with SmolLM2 on the CPU."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from cp_agents import Profiler
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.vllm_server import VllmServer, VllmServerBackend
from cp_agents.backends.wire_grammar import wire_regex
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.parsing import parse_completion
from cp_agents.schema import Completion, Outcome
from tests.support import PETS, RECORD
from tests.vllm.conftest import QUICK, ask
from tests.vllm.make_model import write_adapter
from tests.vllm.serving import Models, at_work, computed

CUES = "[posted]\n- my cat sleeps all day\n- the flat is small"
WAIT = "wait=180"
SHORT = {"regex": wire_regex(PETS, evidence_chars=24)}


def open_backend(spec: str, **extra: object) -> VllmServerBackend:
    backend = resolve_backend(spec, BackendOptions(taxonomy=PETS, extra=extra, timeout_s=300))
    assert isinstance(backend, VllmServerBackend)
    return backend


async def drawn(backend: VllmServerBackend, *indices: int, **settings: float) -> dict[int, Completion]:
    found = {c.index: c async for c in backend.sample(ask(CUES, *indices, **settings))}
    assert [c.error_message for c in found.values() if c.error_type] == []
    return found


@pytest.mark.parametrize("structured", ["regex", "grammar"])
async def test_ten_constrained_samples_in_one_request_all_parse(server: str, structured: str) -> None:
    backend = open_backend(f"vllm-server:{server}?{WAIT}&structured={structured}")
    assert backend.identity.kind == "vllm-server"
    assert backend.identity.model == "smollm2"
    assert (backend.capabilities.n, backend.capabilities.logprobs) == (True, True)
    for completion in (await drawn(backend)).values():
        parsed = parse_completion(completion, PETS)
        assert {a.outcome for a in parsed.attributes.values()} == {Outcome.OK}


async def test_a_run_computes_every_prompt_once(server: str) -> None:
    backend = open_backend(f"vllm-server:{server}/v1?{WAIT}", structured_outputs=SHORT)
    await drawn(backend, 0, max_tokens=1)  # the instructions, which all prompts begin with
    before = computed(server)
    records = [RECORD | {"user_id": f"u{i}", "seen": [f"film {i}" * 20]} for i in range(3)]
    profiler = Profiler(backend, taxonomy=PETS, samples=10, **QUICK)
    _, report = await profiler.aprofile_many(records)
    assert report.meter.outcomes == {"ok": 30}
    fresh = report.meter.prompt_tokens - report.meter.cached_tokens
    assert computed(server) - before < report.meter.prompt_tokens / 2
    assert computed(server) - before <= fresh + 30 * 32


async def test_adapters_are_loaded_and_unloaded_while_the_server_runs(
    server: str, models: Models, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(models.adapter, folder)
    base = open_backend(f"vllm-server:{server}?{WAIT}#smollm2", structured_outputs=SHORT)
    before = [one.name for one in base.server.models()]
    first = open_backend(f"vllm-server:{server}#smollm2+{folder}", structured_outputs=SHORT)
    assert [one.name for one in first.server.models()] == [*before, first.identity.model]
    assert first.identity.model.startswith("adapter-")
    answers = await drawn(first, 0, 1, 2)
    assert {parse_completion(c, PETS).outcome for c in answers.values()} == {Outcome.OK}
    assert [c.text for c in answers.values()] != [c.text for c in (await drawn(base, 0, 1, 2)).values()]

    again = open_backend(f"vllm-server:{server}#smollm2+{folder}", structured_outputs=SHORT)
    assert again.identity == first.identity
    assert len(again.server.models()) == len(before) + 1, "it is not loaded twice"

    write_adapter(models.base, folder, seed=2)
    retrained = open_backend(f"vllm-server:{server}#+{folder}", structured_outputs=SHORT)
    assert retrained.identity.model != first.identity.model
    assert len(retrained.server.models()) == len(before) + 2

    for backend in (first, retrained):
        backend.server.unload_adapter(backend.identity.model)
    assert [one.name for one in base.server.models()] == before
    with pytest.raises(BackendError, match="could not unload the adapter 'nobody'"):
        base.server.unload_adapter("nobody")


def test_a_model_that_is_not_served(server: str) -> None:
    with pytest.raises(InputError, match="has no model 'gpt': it has smollm2"):
        open_backend(f"vllm-server:{server}?{WAIT}#gpt")
    assert VllmServer(server).version().startswith("0.")


async def test_a_prompt_that_is_too_long_is_a_typed_failure_and_says_nothing_of_it(server: str) -> None:
    backend = open_backend(f"vllm-server:{server}?{WAIT}")
    failed = [c async for c in backend.sample(ask("[posted]\n" + "- secret words\n" * 1500, 0, 1))]
    assert [(c.index, c.error_type) for c in failed] == [(i, ErrorType.CONTEXT_LENGTH) for i in (0, 1)]
    assert "secret" not in (failed[0].error_message or "")


async def test_the_same_seeds_give_the_same_samples(server: str) -> None:
    backend = open_backend(f"vllm-server:{server}?{WAIT}")
    # vLLM's numbers hang on what shares a batch: on a busy machine the requests of a draw may fall into other steps.
    for _ in range(3):
        first, again, others = [await drawn(backend, 0, 1, max_tokens=30, seed=seed) for seed in (3, 3, 300)]
        assert [c.text for c in first.values()] != [c.text for c in others.values()]
        if [c.text for c in first.values()] == [c.text for c in again.values()]:
            return
    raise AssertionError("three draws with the same seeds were never alike")


async def becomes(server: str, *, busy: bool) -> bool:
    """Whether the server is at work, or idle, within half a minute."""
    for _ in range(300):
        if bool(await asyncio.to_thread(at_work, server)) is busy:
            return True
        await asyncio.sleep(0.1)
    return False


async def test_cancelling_frees_the_server(server: str) -> None:
    backend = open_backend(f"vllm-server:{server}?{WAIT}")
    drawing = asyncio.create_task(drawn(backend, max_tokens=3000))
    assert await becomes(server, busy=True)
    drawing.cancel()
    assert await becomes(server, busy=False), "the server goes on without its caller"
    with pytest.raises(asyncio.CancelledError):
        await drawing
