"""Tests against vLLM itself. They take minutes and an environment of their own: `make test-vllm`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cp_agents.backends.base import SampleRequest
from cp_agents.prompts.render import load_prompt
from tests.support import PETS

if os.environ.get("CP_AGENTS_TEST_VLLM") != "1":
    collect_ignore_glob = ["test_*.py"]

COMPUTED = "local_compute"
"""The label of vLLM's counter `vllm:prompt_tokens_by_source` for tokens that went through the model."""
SMALL = "max_model_len=4096&enforce_eager=true"


class Models(NamedTuple):
    base: Path
    adapter: Path


@pytest.fixture(scope="session")
def models() -> Models:
    from tests.vllm.make_model import make_model

    folder = Path(os.environ.get("CP_AGENTS_VLLM_MODELS", Path(sys.prefix) / "models"))
    return Models(*make_model(folder))


@pytest.fixture(scope="session")
def server(models: Models) -> Iterator[str]:
    """URL of a vLLM server that loads adapters while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models.base),
        "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--max-model-len", "4096", "--block-size", "32", "--enable-lora", "--max-loras", "2",
        "--enable-prompt-tokens-details",
        # Without it a CPU engine dies of seeds.
        "--no-enable-chunked-prefill",
    ]  # fmt: skip
    env = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    running = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()


def computed(url: str) -> int:
    """Prompt tokens that a server has computed so far, by its own count."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    counts = re.findall(
        rf'^vllm:prompt_tokens_by_source_total{{.*source="{COMPUTED}".*}} (\S+)$', metrics, re.M
    )
    return round(sum(map(float, counts)))


QUICK = {"max_tokens": 600, "top_p": 1.0}
"""A CPU sorts the whole vocabulary for any other top_p, at every token."""


def ask(cues: str, *indices: int, **settings: float) -> SampleRequest:
    """A request about pets."""
    messages = load_prompt(PETS).messages(cues)
    return SampleRequest(messages, indices or tuple(range(10)), **QUICK | {"seed": 7} | settings)  # type: ignore[arg-type]
