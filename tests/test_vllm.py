"""The parts of `vllm` and `vllm-server` that need no vLLM; tests/vllm has the rest."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cp_agents.backends import vllm as vllm_module
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.vllm_engine import adapter_rank, read_failure, sort_out
from cp_agents.backends.vllm_server import VllmServer, VllmServerBackend
from cp_agents.backends.wire_grammar import wire_regex
from cp_agents.errors import BackendError, ErrorType, InputError, MissingExtraError
from cp_agents.schema import Message
from tests.loopback import completion_body
from tests.support import PETS, answer

REQUEST = SampleRequest((Message(role="user", content="cat"),), tuple(range(4)), seed=5)


class FakeServer(ThreadingHTTPServer):
    """The routes of a vLLM server, without a model."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.not_ready = 0
        """How many times /health still says 503."""
        self.key = ""
        self.version = "0.31.0"
        self.adapters: dict[str, str] = {}
        self.updates = True
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer_to(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            self.not_ready -= 1
            return (503, "") if self.not_ready >= 0 else (200, "")
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/v1/models":
            base = [{"id": "base", "root": "/models/base", "parent": None}]
            return 200, {
                "data": base + [{"id": n, "root": r, "parent": "base"} for n, r in self.adapters.items()]
            }
        if path == "/v1/load_lora_adapter" and self.updates:
            if "broken" in body["lora_path"]:
                return 400, {"error": {"message": "rank 64 is above max_lora_rank"}}
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "Success"
        if path == "/v1/unload_lora_adapter" and self.updates:
            known = self.adapters.pop(body["lora_name"], None) is not None
            return (
                (200, "Success")
                if known
                else (404, {"error": {"message": "The lora adapter cannot be found."}})
            )
        if path == "/v1/chat/completions":
            self.bodies.append(body)
            return 200, completion_body([answer()] * body.get("n", 1))
        return 404, {"detail": "Not Found"}


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        allowed = not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}"
        status, said = self.server.answer_to(self.path, body) if allowed else (401, {"error": "Unauthorized"})
        payload = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running_fake() -> Iterator[FakeServer]:
    with FakeServer() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running_fake() as running:
        yield running


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[[str, str], Path]:
    def make(name: str, weights: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text('{"r": 12, "rank_pattern": {"v_proj": 20}}')
        (folder / "adapter_model.safetensors").write_text(weights)
        return folder

    return make


def open_backend(spec: str, **extra: object) -> VllmServerBackend:
    backend = resolve_backend(spec, BackendOptions(taxonomy=PETS, extra=extra))
    assert isinstance(backend, VllmServerBackend)
    return backend


async def test_a_request_asks_for_all_samples_and_says_what_vllm_knows(server: FakeServer) -> None:
    backend = open_backend(f"vllm-server:{server.url}?structured=regex&top_k=20", min_p=0.1)
    assert [c.index async for c in backend.sample(REQUEST)] == [0, 1, 2, 3]
    [body] = server.bodies
    assert body["structured_outputs"] == {"regex": wire_regex(PETS)}
    assert {name: body[name] for name in ("model", "n", "seed", "top_k", "min_p")} == {
        "model": "base", "n": 4, "seed": 5, "top_k": 20, "min_p": 0.1,
    }  # fmt: skip
    await backend.aclose()


async def test_seeds_can_be_left_out(server: FakeServer) -> None:
    backend = open_backend(f"vllm-server:{server.url}?seeds=false")
    assert len([c async for c in backend.sample(REQUEST)]) == 4
    assert server.bodies[0]["seed"] is None
    await backend.aclose()


def test_the_identity_tells_apart_what_answers_differently(server: FakeServer) -> None:
    def of(spec: str, **extra: object) -> tuple[str, str, str, str]:
        one = open_backend(f"vllm-server:{server.url}{spec}", **extra).identity
        return one.kind, one.model, one.endpoint, one.revision

    plain = of("")
    assert plain[:3] == ("vllm-server", "base", f"{server.url}/v1")
    assert [of("/v1/"), of("#base"), of("?wait=5&logprobs=3&seeds=false")] == [plain] * 3
    variants = {of("?structured=regex"), of("?structured=grammar"), of("?top_k=20"), of("?revision=b"), plain}
    assert len(variants) == 5
    assert of("?top_k=20") == of("", top_k=20)


def test_waits_for_a_server_that_is_loading(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.not_ready = 2
    VllmServer(server.url).wait_until_ready(5)
    assert "waiting up to 5 s for a vLLM server" in caplog.text


@pytest.mark.parametrize("not_ready", [0, 1000])
def test_says_so_when_no_server_gets_ready(server: FakeServer, not_ready: int) -> None:
    url = server.url if not_ready else "http://127.0.0.1:9"
    server.not_ready = not_ready
    with pytest.raises(InputError, match=r"no vLLM server was ready at \S+ within 0.3 s .*\?wait=SECONDS"):
        open_backend(f"vllm-server:{url}?wait=0.3")


def test_says_so_when_it_is_another_server(server: FakeServer) -> None:
    with pytest.raises(InputError, match="answers, but not as a vLLM server"):
        VllmServer(f"{server.url}/elsewhere").wait_until_ready(1)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "needs the server's URL"),
        ("127.0.0.1:8000", "should begin with http"),
        ("{url}#nobody", "has no model 'nobody': it has base"),
        ("{url}?wait=soon", "wait should be a number of seconds"),
        ("{url}?guided_regex=a", "vLLM ignores guided_regex"),
        ("{url}?structured=json", "structured should be"),
        ("{url}#base+/no/such/adapter", "no adapter '/no/such/adapter'"),
    ],
)
def test_specs_that_cannot_be(server: FakeServer, spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_backend("vllm-server:" + spec.format(url=server.url))


def test_an_old_server_would_ignore_the_constraint(server: FakeServer) -> None:
    server.version = "0.10.2"
    with pytest.raises(InputError, match=r"vLLM 0.10.2 ignores structured_outputs: it takes 0.11 or newer"):
        open_backend(f"vllm-server:{server.url}?structured=grammar")
    assert open_backend(f"vllm-server:{server.url}").identity.model == "base"


def test_an_adapter_is_loaded_once_under_a_name_that_holds_its_weights(
    server: FakeServer, make_adapter: Callable[[str, str], Path]
) -> None:
    folder = make_adapter("student", "one")
    first = open_backend(f"vllm-server:{server.url}#base+{folder}")
    assert server.adapters == {first.identity.model: str(folder)}
    assert first.identity.model.startswith("student-")
    assert open_backend(f"vllm-server:{server.url}#+{folder}").identity == first.identity
    make_adapter("student", "two")
    retrained = open_backend(f"vllm-server:{server.url}#base+{folder}")
    assert retrained.identity.model != first.identity.model
    first.server.unload_adapter(first.identity.model)
    assert [(one.name, one.base) for one in first.server.models()] == [
        ("base", None),
        (retrained.identity.model, "base"),
    ]
    with pytest.raises(
        BackendError, match="could not unload the adapter 'nobody': The lora adapter cannot be found"
    ):
        first.server.unload_adapter("nobody")


def test_why_an_adapter_is_not_loaded(server: FakeServer, make_adapter: Callable[[str, str], Path]) -> None:
    with pytest.raises(BackendError, match=r"could not load the adapter 'broken-.*': rank 64 is above"):
        open_backend(f"vllm-server:{server.url}#base+{make_adapter('broken', 'x')}")
    server.updates = False
    with pytest.raises(BackendError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        open_backend(f"vllm-server:{server.url}#base+{make_adapter('fine', 'x')}")


def test_the_key_goes_along_and_is_never_shown(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-sesame-1234"
    with pytest.raises(BackendError, match="refused the key") as caught:
        VllmServer(server.url, "sk-wrong-5678").models()
    assert caught.value.error_type is ErrorType.AUTH
    assert "5678" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    backend = open_backend(f"vllm-server:{server.url}")
    assert server.key not in repr(backend) + repr(backend.identity)


# --- in process --------------------------------------------------------------------------------------------


def test_without_vllm_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_module, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"the vllm backend needs the extra \[vllm\]"):
        resolve_backend("vllm:some/model", BackendOptions(taxonomy=PETS))


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed: nothing imports it before the first sample."""
    monkeypatch.setattr(vllm_module, "find_spec", lambda _: object())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.usefixtures("with_vllm")
def test_models_that_cannot_be(model: Path, tmp_path: Path) -> None:
    options = BackendOptions(taxonomy=PETS)
    for spec, says in (
        ("vllm:", "needs a model"),
        ("vllm:no-such-model", "no model 'no-such-model'"),
        (f"vllm:{model}+{tmp_path}/none", "no adapter"),
        (f"vllm:{model}?structured=json", "structured should be"),
    ):
        with pytest.raises(InputError, match=says):
            resolve_backend(spec, options)
    (model / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        resolve_backend(f"vllm:{model}", options)
    (tmp_path / "m.gguf").write_text("chat template in here")
    with pytest.raises(InputError, match="GGUF file"):
        resolve_backend(f"vllm:{tmp_path}/m.gguf", options)


@pytest.mark.usefixtures("with_vllm")
def test_the_revision_follows_weights_adapter_and_what_bears_on_answers(
    model: Path, make_adapter: Callable[[str, str], Path]
) -> None:
    def revision(spec: str) -> str:
        return resolve_backend(f"vllm:{model}{spec}", BackendOptions(taxonomy=PETS)).identity.revision

    plain = revision("")
    adapter = make_adapter("a", "one")
    different = {plain, revision("?structured=regex"), revision("?top_k=5"), revision(f"+{adapter}")}
    make_adapter("a", "two")
    different |= {revision(f"+{adapter}"), revision("?dtype=float32")}
    assert len(different) == 6
    assert revision("?max_model_len=512&gpu_memory_utilization=0.5&logprobs=3&seeds=true") == plain
    (model / "model.safetensors").write_text("trained")
    assert revision("") not in different


def test_options_are_engine_arguments_or_sampling_parameters() -> None:
    known, sampling = {"max_model_len", "seed"}, {"top_k", "seed", "_private"}
    assert sort_out({"max_model_len": 5, "top_k": 2, "chat_template_kwargs": {}}, known, sampling) == (
        {"max_model_len": 5},
        {"top_k": 2},
    )
    for name, says in (
        ("max_model", "did you mean max_model_len"),
        ("_private", "no option"),
        ("xyz", "no option 'xyz'$"),
    ):
        with pytest.raises(BackendError, match=says) as caught:
            sort_out({name: 1}, known, sampling)
        assert caught.value.error_type.is_fatal


def test_the_rank_of_an_adapter(make_adapter: Callable[[str, str], Path]) -> None:
    folder = make_adapter("a", "x")
    assert adapter_rank(folder) == 20
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BackendError, match="the adapter a does not say its rank"):
        adapter_rank(folder)


def test_failures_are_typed() -> None:
    class EngineDeadError(Exception):
        pass

    class VLLMValidationError(Exception):
        pass

    kinds = [
        read_failure(error)[0]
        for error in (
            EngineDeadError("see above"),
            VLLMValidationError("This model's maximum context length is 4096 tokens"),
            VLLMValidationError("top_p must be in (0, 1]"),
            ValueError("Failed to convert the grammar"),
            KeyError("x"),
        )
    ]
    assert kinds[0].is_fatal
    assert kinds[1:] == [
        ErrorType.CONTEXT_LENGTH,
        ErrorType.BAD_REQUEST,
        ErrorType.BAD_REQUEST,
        ErrorType.INTERNAL,
    ]
