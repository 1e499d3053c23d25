"""Tests against vLLM itself. They take minutes and an environment of their own: `make test-vllm`."""

from __future__ import annotations

import os

import pytest

from cp_agents.backends.base import SampleRequest
from cp_agents.prompts.render import load_prompt
from tests.support import PETS
from tests.vllm import serving

if os.environ.get("CP_AGENTS_TEST_VLLM") != "1":
    collect_ignore_glob = ["test_*.py"]

SMALL = "max_model_len=4096&enforce_eager=true"


@pytest.fixture(scope="session")
def models() -> serving.Models:
    return serving.models()


@pytest.fixture(scope="session")
def server() -> str:
    """URL of a vLLM server that loads adapters while it runs."""
    return serving.server_url()


QUICK = {"max_tokens": 600, "top_p": 1.0}
"""A CPU sorts the whole vocabulary for any other top_p, at every token."""


def ask(cues: str, *indices: int, **settings: float) -> SampleRequest:
    """A request about pets."""
    messages = load_prompt(PETS).messages(cues)
    return SampleRequest(messages, indices or tuple(range(10)), **QUICK | {"seed": 7} | settings)  # type: ignore[arg-type]
