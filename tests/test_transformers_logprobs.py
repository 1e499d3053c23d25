"""Probabilities of tags from a model's own logits: a model that speaks by a table of what follows what."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

# ruff: noqa: E402
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.transformers import TransformersBackend
from cp_agents.profiler import Profiler
from cp_agents.relabel import replay
from cp_agents.schema import Completion, Message
from tests.support import PETS, RECORD
from tests.test_transformers_backend import TEMPLATE, ask, make_model, texts

OPEN, MIDDLE, CLOSE = "<pet><tag>", "</tag><score>4</score></pet><home><tag>", "</tag><score>4</score></home>"
FOLLOWS = {
    OPEN: {"Cat": 0.5, "Do": 0.2, "Dog": 0.05, "Fish": 0.15, "Bird": 0.1},
    "Do": {"g": 0.9, "ne": 0.1},
    "Cat": {MIDDLE: 1.0}, "g": {MIDDLE: 1.0}, "Dog": {MIDDLE: 1.0}, "Fish": {MIDDLE: 1.0}, "Bird": {MIDDLE: 1.0},
    "ne": {MIDDLE: 1.0},
    MIDDLE: {"Flat": 0.6, "House": 0.4},
    "Flat": {CLOSE: 1.0}, "House": {CLOSE: 1.0},
}  # fmt: skip
PETS_GIVEN = {"Cat": 0.5, "Dog": 0.25, "Fish": 0.15}
"""Of the first token; "Do" begins no other pet."""


def make_speaker(folder: Path) -> Path:
    """One-hot embeddings, no attention worth the name, and a head that is the table above."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    words = sorted({*FOLLOWS, *(word for of in FOLLOWS.values() for word in of)})
    inner.add_tokens([AddedToken(word, normalized=False) for word in words if len(word) > 1])
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant")]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", extra_special_tokens=roles
    )
    tokenizer.chat_template = TEMPLATE
    size = -(-len(tokenizer) // 8) * 8
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False, rms_norm_eps=1e-12,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config).float()
    head = torch.full((size, size), -30.0)
    head[tokenizer.convert_tokens_to_ids(OPEN)] = 0.0
    for word, following in FOLLOWS.items():
        column = tokenizer.convert_tokens_to_ids(word)
        head[:, column] = -30.0
        for other, p in following.items():
            head[tokenizer.convert_tokens_to_ids(other), column] = math.log(p)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(head / math.sqrt(size))  # the last norm makes a one-hot sqrt(size) long
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaker(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture
def backend(speaker: Path) -> Iterator[TransformersBackend]:
    made = TransformersBackend(str(speaker), stop="</home>", dtype="float32", device="cpu")
    yield made
    made._engine.close()


async def drawn(backend: TransformersBackend, request: SampleRequest) -> dict[int, Completion]:
    return {c.index: c async for c in backend.sample(request)}


REQUEST = SampleRequest(
    (Message("user", "my cat sleeps all day"),),
    tuple(range(60)),
    top_p=1.0,
    max_tokens=40,
    seed=3,
    score_tags=PETS,
)


async def test_probabilities_are_those_of_the_model(backend: TransformersBackend) -> None:
    assert backend.capabilities.logprobs is True
    found = await drawn(backend, REQUEST)
    seen = set()
    for completion in found.values():
        pet, home = completion.probabilities.get("pet"), completion.probabilities["home"]
        assert home.probability == pytest.approx({"Flat": 0.6, "House": 0.4}[home.tag], abs=1e-5)
        if pet is None:
            assert ("Bird" in completion.text) or ("Done" in completion.text)  # no pets
            continue
        seen.add(pet.tag)
        assert f"<tag>{pet.tag}</tag>" in completion.text
        # All that leads to a pet shares what the tags have; "Do" is Dog with all that follows, as it leads to no other.
        assert pet.probability == pytest.approx(PETS_GIVEN[pet.tag] / sum(PETS_GIVEN.values()), abs=1e-5)
    assert seen == set(PETS_GIVEN)


async def test_temperature_changes_what_is_drawn_and_not_what_it_had(backend: TransformersBackend) -> None:
    found = await drawn(backend, replace(REQUEST, temperature=0.0, indices=(0,)))
    assert found[0].probabilities["pet"] == ("Cat", pytest.approx(0.5 / 0.9, abs=1e-5))


async def test_asking_changes_no_sample(backend: TransformersBackend, tmp_path: Path) -> None:
    plain = await drawn(backend, replace(REQUEST, score_tags=None))
    assert texts(plain) == texts(await drawn(backend, REQUEST))
    assert not any(completion.probabilities for completion in plain.values())
    random = TransformersBackend(
        str(make_model(tmp_path / "m")), stop="</home>", dtype="float32", device="cpu"
    )
    with_scores, without = await asyncio.gather(
        drawn(random, replace(ask(), score_tags=PETS)), drawn(random, ask())
    )
    assert texts(with_scores) == texts(without)
    await random.aclose()


def test_a_run_by_the_models_own_probabilities(backend: TransformersBackend) -> None:
    # Without evidence a stated confidence is capped, and its probability is not.
    with Profiler(
        backend, taxonomy=PETS, samples=8, confidence="logprob", top_p=1.0, max_tokens=40
    ) as profiler:
        profile = profiler.profile(RECORD)
        [again] = replay(profiler.store, calibrator=None)
        rows = profiler.store.rows(
            "select tag, count(*) from predictions where attribute = 'home' and outcome = 'ok' group by tag"
        )
    assert again.to_json() == profile.to_json()
    by_hand = {tag: 5 * {"Flat": 0.6, "House": 0.4}[tag] * count for tag, count in rows}
    assert profile["home"].score == pytest.approx(max(by_hand.values()), abs=1e-4)
