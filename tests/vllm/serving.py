"""vLLM for the tests: what is slow to make or to start, once for all of them. It ends with the process."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cp_agents.backends.vllm import VllmBackend
from tests.support import PETS
from tests.vllm.make_model import make_model, write_adapter

COMPUTED = "local_compute"
"""The label of vLLM's counter `vllm:prompt_tokens_by_source` for tokens that went through the model."""

_at_exit = ExitStack()
atexit.register(_at_exit.close)


class Models(NamedTuple):
    base: Path
    adapter: Path


@cache
def models() -> Models:
    """SmolLM2 and a random adapter, in $CP_AGENTS_VLLM_MODELS or beside the installed packages."""
    return Models(*make_model(Path(os.environ.get("CP_AGENTS_VLLM_MODELS", Path(sys.prefix) / "models"))))


def adapter_in(folder: Path, version: int) -> Path:
    """`folder`/adapter: the same name for every version, with other weights in it."""
    target = folder / "adapter"
    if version == 0:
        shutil.copytree(models().adapter, target, dirs_exist_ok=True)
    else:
        write_adapter(models().base, target, seed=100 + version)
    return target


@cache
def engine(adapter_parent: Path, version: int) -> VllmBackend:
    """A backend whose engine starts with its first sample."""
    adapter = adapter_in(adapter_parent / str(version), version)
    options = {"max_model_len": 4096, "enforce_eager": True, "enable_chunked_prefill": False}
    return VllmBackend(f"{models().base}+{adapter}", PETS, options=options)


@cache
def server_url() -> str:
    """URL of a vLLM server that loads adapters while it runs; it is not ready yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models().base),
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
    _at_exit.callback(_end, subprocess.Popen(command, env=env, start_new_session=True))
    return f"http://127.0.0.1:{port}"


def _end(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    try:
        running.wait(30)
    except subprocess.TimeoutExpired:
        running.kill()


def computed(url: str) -> int:
    """Prompt tokens that a server has computed so far, by its own count."""
    return round(sum(_counts(url, f'vllm:prompt_tokens_by_source_total{{.*source="{COMPUTED}".*}}')))


def at_work(url: str) -> int:
    """Requests that a server is working on."""
    return round(sum(_counts(url, r"vllm:num_requests_(?:running|waiting){.*}")))


def _counts(url: str, name: str) -> list[float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return [float(value) for value in re.findall(rf"^{name} (\S+)$", answer.read().decode(), re.M)]
