"""Students: the registry, `student:NAME`, and export. A student answers what it was trained on, or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

# ruff: noqa: E402
from typer.testing import CliRunner

from cp_agents.backends import vllm as vllm_module
from cp_agents.backends.base import SampleRequest
from cp_agents.backends.ensemble import EnsembleBackend
from cp_agents.backends.registry import BackendOptions, resolve_backend
from cp_agents.backends.student import StudentBackend
from cp_agents.backends.transformers import TransformersBackend
from cp_agents.backends.vllm import VllmBackend
from cp_agents.calibration import Calibrator
from cp_agents.cli.app import app
from cp_agents.errors import BackendError, CpAgentsError, InputError, StoreError
from cp_agents.profiler import Profiler
from cp_agents.schema import Message
from cp_agents.stores.student_card import CARD, read_card, weights_hash
from cp_agents.stores.students import promote, register, student, students
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy, load_taxonomy
from cp_agents.trainers.export import export_student
from tests.conftest import ROOT
from tests.student_models import make_adapter_student, make_card, make_student
from tests.support import PETS, RECORD
from tests.test_vllm import running_fake

OPTIONS = {"samples": 2, "max_tokens": 24, "extra": {"device": "cpu", "dtype": "float32"}}
OTHER = PETS.model_copy(update={"name": "others", "description": "Pets of others."})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_student(tmp_path_factory.mktemp("students") / "model")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A student that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "s1"))


@pytest.fixture
def store(tmp_path: Path) -> TraceStore:
    return TraceStore(tmp_path / "traces.db")


def calibrator(vote: str = "weighted", taxonomy: Taxonomy = PETS) -> Calibrator:
    scores = {name: [float(i) for i in range(25)] for name in taxonomy.names}
    return Calibrator.fit(scores, samples=10, taxonomy=taxonomy, vote_method=vote)  # type: ignore[arg-type]


# --- the registry -----------------------------------------------------------------------------------------


def test_registered_promoted_and_found(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    first = register(store, "s1", folder, read_card(folder), metrics={"macro_f1": 0.25})
    with pytest.raises(InputError, match=f"no student 's1' is promoted: name one, as in s1@{first}"):
        student(store, "s1")
    promote(store, "s1", first)
    found = student(store, "s1")
    assert found.student_id == first
    assert found == student(store, f"s1@{first}")
    assert found.metrics == {"parse_rate": 0.5, "macro_f1": 0.25}
    assert (found.kind, found.model, found.weights_hash) == ("full", str(folder), weights_hash(folder))
    assert found.taxonomy == PETS
    second = register(store, "s1", make_student(tmp_path / "s2", seed=3))
    assert second != first
    assert student(store, "s1").student_id == first, "registering alone changes nothing that serves"
    promote(store, "s1", second)
    assert student(store, "s1").student_id == second
    promote(store, "s1", first)
    assert student(store, "s1").student_id == first, "back to the one before"
    assert [s.student_id for s in students(store)] == [first, second]


def test_the_same_model_again_is_the_same_student_where_it_lies_now(
    store: TraceStore, folder: Path, tmp_path: Path
) -> None:
    first = register(store, "s1", folder, calibrator_id=None)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="which is not there; register it again"):
        promote(store, "s1", first)
    assert register(store, "s1", moved) == first
    promote(store, "s1", first)
    assert student(store, "s1").path == moved
    assert register(store, "another", moved) != first


def test_unknown_students_are_told_with_what_there_is(store: TraceStore, folder: Path) -> None:
    with pytest.raises(InputError, match=r"no student 's1' in the store .*students: none"):
        student(store, "s1")
    found = register(store, "s1", folder)
    with pytest.raises(InputError, match=r"students: s1\)"):
        student(store, "s2")
    with pytest.raises(InputError, match=f"s1 has: {found}"):
        student(store, "s1@abc")


def _no_card(folder: Path) -> None:
    (folder / CARD).unlink()


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


HALF_WRITTEN = (
    (_no_card, "holds no student"),
    (_cut, "model.safetensors is missing or ends too early"),
    (_no_weights, "no model"),
    (_no_shard, "model-00002-of-00002.safetensors is missing"),
    (_no_config, "no config.json"),
    (_no_tokenizer, "no tokenizer_config.json"),
)


@pytest.mark.parametrize(("harm", "says"), HALF_WRITTEN)
def test_a_half_written_student_is_neither_registered_nor_promoted(
    store: TraceStore, folder: Path, tmp_path: Path, harm: object, says: str
) -> None:
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    harm(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=says):
        register(store, "s1", folder)
    assert not students(store)
    found = register(store, "s1", whole)
    harm(whole)  # type: ignore[operator]
    with pytest.raises(InputError, match=says):
        promote(store, "s1", found)
    assert student(store, f"s1@{found}").promoted_at is None


def test_what_does_not_fit_is_not_registered(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the one that it was to be registered with"):
        register(store, "s1", folder, make_card(stage="grpo"))
    with pytest.raises(InputError, match="a student's name has letters"):
        register(store, "a@b", folder)
    with pytest.raises(StoreError, match="no calibrator 'abc'"):
        register(store, "s1", folder, calibrator_id="abc")
    other = calibrator(taxonomy=Taxonomy(name="x", attributes=PETS.attributes[:1]))
    store.put_calibrator(other.id, other.kind, other.to_json(), None)
    with pytest.raises(InputError, match="no attribute 'home'"):
        register(store, "s1", folder, calibrator_id=other.id)
    with pytest.raises(InputError, match="still being written"):
        register(store, "s1", folder.rename(tmp_path / ".model.tmp"))
    with pytest.raises(InputError, match="no student at"):
        register(store, "s1", tmp_path / "nowhere")
    assert not students(store)


def test_a_student_whose_weights_or_prompt_have_changed_is_not_promoted(
    store: TraceStore, folder: Path, tmp_path: Path
) -> None:
    found = register(store, "s1", folder)
    shutil.copy(make_student(tmp_path / "trained on", seed=5) / "model.safetensors", folder)
    with pytest.raises(InputError, match=r"not those of student s1@.*register it anew"):
        promote(store, "s1", found)
    own = Path(shutil.copytree(ROOT / "prompts" / "en", tmp_path / "own"))
    (own / "example.yaml").unlink()
    in_own = make_student(tmp_path / "s2", language=str(own))
    found = register(store, "s2", in_own)
    system = own / "system.md"
    system.write_text("Be brief. " + system.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"was trained on prompt .* is now .*: bring the templates back"):
        promote(store, "s2", found)
    assert all(s.promoted_at is None for s in students(store))


def test_an_adapter_for_another_base_is_refused(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter_student(folder, tmp_path / "adapter")
    found = register(store, "a", adapter)
    promote(store, "a", found)
    assert student(store, "a").model == f"{folder}+{adapter}"
    shutil.copy(make_student(tmp_path / "else", seed=9) / "model.safetensors", folder)
    for refused in (lambda: promote(store, "a", found), lambda: register(store, "b", adapter)):
        with pytest.raises(InputError, match="trained on another base"):
            refused()


# --- student:NAME -----------------------------------------------------------------------------------------


def test_one_changed_word(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    """`backend="student:s1"` says what the model itself would say, under its own name."""
    found = register(store, "s1", folder)
    promote(store, "s1", found)
    path = store.path
    with Profiler(backend="student:s1", store=path, taxonomy=PETS, **OPTIONS) as profiler:
        profile = profiler.profile(RECORD)
        assert set(profile) == set(PETS.names)
        rows = profiler.store.query("select text, sampler from samples order by sample_index")
        identity = profiler.backend.identity
        run = profiler.store.run()
    assert (identity.kind, identity.model) == ("student", f"s1@{found}")
    assert run["backend"] == "student:s1"
    assert {row["sampler"] for row in rows} == {f"student:s1@{found}"}
    with Profiler(
        backend=f"transformers:{folder}", store=tmp_path / "x.db", taxonomy=PETS, **OPTIONS
    ) as direct:
        direct.profile(RECORD)
        said = direct.store.query("select text from samples order by sample_index")
    assert [row["text"] for row in said] == [row["text"] for row in rows]


def test_a_new_student_never_answers_from_the_old_ones_cache(
    store: TraceStore, folder: Path, tmp_path: Path
) -> None:
    promote(store, "s1", register(store, "s1", folder))
    with Profiler(backend="student:s1", store=store.path, taxonomy=PETS, **OPTIONS) as first:
        first.profile(RECORD)
    promote(store, "s1", register(store, "s1", make_student(tmp_path / "new", seed=4)))
    with Profiler(backend="student:s1", store=store.path, taxonomy=PETS, **OPTIONS) as second:
        second.profile(RECORD)
        assert second.run_id != first.run_id
        assert not second.store.rows("select * from samples where from_cache is not null")


def test_an_adapter_is_served_on_its_base(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter_student(folder, tmp_path / "adapter")
    promote(store, "a", register(store, "a", adapter))
    with Profiler(backend="student:a", store=store.path, taxonomy=PETS, **OPTIONS) as profiler:
        profiler.profile(RECORD)
        assert isinstance(profiler.backend, StudentBackend)
        assert isinstance(profiler.backend.inner, TransformersBackend)
        assert profiler.backend.inner.identity.model == f"{folder}+{adapter}"


def test_the_prompt_follows_the_student_and_any_other_is_refused(store: TraceStore, tmp_path: Path) -> None:
    promote(store, "s1", register(store, "s1", make_student(tmp_path / "s1", language="zh")))
    with Profiler(backend="student:s1", store=store.path, taxonomy=PETS, **OPTIONS) as profiler:
        assert profiler.prompt.language == "zh"
    Profiler(backend="student:s1", store=store.path, taxonomy=PETS, language="zh", **OPTIONS).close()
    before = store.rows("select run_id from runs")
    with pytest.raises(InputError, match=r"trained on prompt zh .* asked with en .*leave --language out"):
        Profiler(backend="student:s1", store=store.path, taxonomy=PETS, language="en", **OPTIONS)
    with pytest.raises(InputError, match=r"trained on taxonomy pets .* asked about others"):
        Profiler(backend="student:s1", store=store.path, taxonomy=OTHER, **OPTIONS)
    assert store.rows("select run_id from runs") == before


async def test_no_graph_of_ones_own_asks_it_otherwise(store: TraceStore, folder: Path) -> None:
    promote(store, "s1", register(store, "s1", folder))
    backend = resolve_backend(
        "student:s1",
        BackendOptions(taxonomy=PETS, store=store, extra=dict(OPTIONS["extra"])),  # type: ignore[call-overload]
    )
    own = student(store, "s1").prompt
    fine = own.messages("[posted]\nmy cat")
    system = Message("system", "Say meow.")
    for messages in ((system, *fine[1:]), fine[1:], (Message("user", "my cat"),)):
        with pytest.raises(BackendError, match="another prompt than it was trained on"):
            [c async for c in backend.sample(SampleRequest(messages, (0,), max_tokens=16))]
    assert [c.index async for c in backend.sample(SampleRequest(fine, (0,), max_tokens=16))] == [0]
    await backend.aclose()


def test_its_calibrator_speaks_where_none_is_named_and_the_vote_fits(store: TraceStore, folder: Path) -> None:
    own, other = calibrator(), calibrator("mean")
    store.put_calibrator(own.id, own.kind, own.to_json(), None)
    promote(store, "s1", register(store, "s1", folder, calibrator_id=own.id))

    def used(**options: object) -> Calibrator | None:
        with Profiler("student:s1", store.path, taxonomy=PETS, **OPTIONS, **options) as profiler:  # type: ignore[arg-type]
            return profiler.calibrator

    assert used() == own
    assert used(vote="mean") is None
    assert used(vote="mean", calibrator=other) == other


def test_students_in_an_ensemble_keep_their_prompt(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    promote(store, "s1", register(store, "s1", folder))
    promote(store, "s2", register(store, "s2", make_student(tmp_path / "s2", seed=2, language="zh")))
    with Profiler(
        "ensemble:student:s1,lexicon", store.path, **{**OPTIONS, "extra": {}}, taxonomy=PETS
    ) as both:
        assert isinstance(both.backend, EnsembleBackend)
        assert both.prompt.language == "en"
    with pytest.raises(InputError, match="students of one run need the same prompt"):
        Profiler("ensemble:student:s1,student:s2", store.path, taxonomy=PETS, **OPTIONS)


def test_vllm_serves_the_same_files(
    store: TraceStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM itself starts with the first sample: tests/vllm has that."""
    monkeypatch.setattr(vllm_module, "find_spec", lambda _: True)
    adapter = make_adapter_student(folder, tmp_path / "adapter")
    promote(store, "a", register(store, "a", adapter))
    options = BackendOptions(taxonomy=PETS, store=store)
    revisions = set()
    for spec in ("student:a", "student:a?serve=vllm", "student:a?serve=vllm&structured=regex"):
        backend = resolve_backend(spec, options)
        assert isinstance(backend, StudentBackend)
        assert isinstance(backend.inner, VllmBackend) == ("vllm" in spec)
        assert backend.inner.identity.model == f"{folder}+{adapter}"
        assert backend.identity.model == student(store, "a").label
        revisions.add(backend.identity.revision)
    assert len(revisions) == 3, "the cache tells apart what answers otherwise"


def test_a_running_server_serves_a_student(store: TraceStore, folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter_student(folder, tmp_path / "adapter")
    promote(store, "a", register(store, "a", adapter))
    promote(store, "s1", register(store, "s1", folder))
    label = student(store, "s1").label
    with running_fake() as server, running_fake() as moved:
        with Profiler("student:a", store.path, taxonomy=PETS, samples=2, base_url=server.url) as profiler:
            profiler.profile(RECORD)
            assert list(server.adapters.values()) == [str(adapter)]
            assert [body["model"] for body in server.bodies] == 2 * list(server.adapters)
            assert {row["sampler"] for row in profiler.store.query("select sampler from samples")} == {
                f"student:{student(store, 'a').label}"
            }
        with Profiler("student:a", store.path, taxonomy=PETS, samples=2, base_url=moved.url) as profiler:
            profiler.profile(RECORD)
            assert len(moved.bodies) == 2, "nothing stale from the other server"
        with pytest.raises(
            InputError, match=f"serves base, .* and not student {label}: start it with `vllm serve"
        ):
            Profiler("student:s1", store.path, taxonomy=PETS, base_url=server.url)
        for name, root in ((label, "/models/copied"), ("mine", str(folder))):
            server.adapters = {name: root}
            spec = f"student:s1?base_url={server.url}"
            with Profiler(spec, store.path, taxonomy=PETS, samples=1, seed=len(name)) as profiler:
                profiler.profile(RECORD)
            assert server.bodies[-1]["model"] == name


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("student:s1?serve=vllm-server", "takes a URL where a vLLM server serves it"),
        ("student:s1?serve=vllm&base_url=http://127.0.0.1:9", "takes a URL where a vLLM server serves it"),
        ("student:s9", "no student 's9'"),
        ("student:", "needs a name"),
        ("student:s1?serve=magic", "serve should be transformers, vllm or vllm-server, found 'magic'"),
        ("student:s1?colour=red", "takes device, dtype, max_rows"),
        ("student:s1?serve=vllm", r"the vllm backend needs the extra \[vllm\]"),
    ],
)
def test_bad_specs_are_one_sentence(store: TraceStore, folder: Path, spec: str, says: str) -> None:
    if "vllm" in spec and shutil.which("vllm"):
        pytest.skip("vLLM is installed")
    promote(store, "s1", register(store, "s1", folder))
    with pytest.raises(CpAgentsError, match=says):
        Profiler(spec, store.path, taxonomy=PETS)


def test_without_a_store_there_is_no_student(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the store"):
        resolve_backend("student:s1", BackendOptions(taxonomy=PETS))
    with pytest.raises(StoreError, match="no trace store at"):
        Profiler("student:s1", tmp_path / "none.db", taxonomy=PETS)
    assert not (tmp_path / "none.db").exists()


def test_the_registry_needs_no_torch(store: TraceStore, folder: Path) -> None:
    register(store, "s1", folder)
    code = (
        "import sys; from cp_agents.stores.students import students; from cp_agents.stores.traces import TraceStore;"
        f"assert len(students(TraceStore({store.path!r}))) == 1; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- export -----------------------------------------------------------------------------------------------


def test_export_of_an_adapter_is_one_model_that_says_the_same(
    store: TraceStore, folder: Path, tmp_path: Path
) -> None:
    adapter = make_adapter_student(folder, tmp_path / "adapter", metrics={"parse_rate": 0.75})
    found = register(store, "a", adapter, metrics={"macro_f1": {"pet": 0.125}})
    out = tmp_path / "exported"
    exported = export_student(student(store, f"a@{found}"), out)
    assert exported.merged
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {adapter.stat().st_mode & 0o666}
    readme = (out / "README.md").read_text(encoding="utf-8")
    for part in (
        "| parse_rate | 0.75 |",
        "| macro_f1.pet | 0.125 |",
        "`pet`: Cat, Dog, Fish, NA",
        f"a@{found}",
    ):
        assert part in readme
    assert student(store, f"a@{found}").prompt.shared[0].content in readme
    again = register(store, "b", out)
    assert student(store, f"b@{again}").kind == "full"

    def said(spec: str) -> list[str]:
        with Profiler(
            spec, tmp_path / f"{len(spec)}.db", taxonomy=PETS, temperature=0.0, **OPTIONS
        ) as profiler:
            profiler.profile(RECORD)
            return [row[0] for row in profiler.store.rows("select text from samples order by sample_index")]

    assert (
        said(f"transformers:{out}")
        == said(f"transformers:{folder}+{adapter}")
        != said(f"transformers:{folder}")
    )


def test_export_of_full_weights_copies_them_without_what_training_left(
    store: TraceStore, folder: Path, tmp_path: Path
) -> None:
    (folder / "training_args.bin").write_bytes(b"x")
    found = register(store, "s1", folder)
    exported = export_student(student(store, f"s1@{found}"), tmp_path / "out")
    assert (exported.merged, exported.gguf) == (False, None)
    assert not (tmp_path / "out" / "training_args.bin").exists()
    assert weights_hash(tmp_path / "out") == weights_hash(folder)
    assert "chat_template" in " ".join(p.name for p in (tmp_path / "out").iterdir()) or "chat_template" in (
        tmp_path / "out" / "tokenizer_config.json"
    ).read_text(encoding="utf-8")


def test_gguf_by_the_converter_that_is_named_and_nothing_half_written(
    store: TraceStore, folder: Path, tmp_path: Path
) -> None:
    """The converter is another project's program: what is ours is how it is called, and what happens if it fails."""
    found = student(store, f"s1@{register(store, 's1', folder)}")
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(
        '#!/bin/sh\ntest -f "$1/model.safetensors" && test "$2" = --outfile && echo GGUF > "$3"\n'
    )
    converter.chmod(0o755)
    exported = export_student(found, tmp_path / "with", converter=str(converter))
    assert (exported.folder / str(exported.gguf)).read_text() == "GGUF\n"
    converter.chmod(0o644)  # a script in a checkout, which is no program
    converter.write_text("import sys; open(sys.argv[3], 'w').write('GGUF2')\n")
    exported = export_student(found, tmp_path / "script", converter=str(converter))
    assert (exported.folder / str(exported.gguf)).read_text() == "GGUF2"
    converter.chmod(0o755)
    converter.write_text("#!/bin/sh\necho unknown architecture >&2; exit 1\n")
    with pytest.raises(InputError, match=r"wrote no GGUF file \(unknown architecture\)"):
        export_student(found, tmp_path / "failed", converter=str(converter))
    with pytest.raises(InputError, match="no converter at"):
        export_student(found, tmp_path / "failed", converter=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is there already"):
        export_student(found, tmp_path / "with")
    assert sorted(p.name for p in tmp_path.iterdir() if "failed" in p.name) == []


# --- the command line -------------------------------------------------------------------------------------


def test_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    def cli(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    said = cli("students", "register", "s1", str(folder))
    label = said.split()[1].rstrip(";")
    assert cli("students", "list").count("yes") == 0
    cli("students", "promote", label)
    listed = cli("students", "list")
    assert label in listed
    assert "yes" in listed
    shown = json.loads(cli("students", "show", "s1"))
    assert shown["student"] == label
    assert shown["metrics"] == {"parse_rate": 0.5}
    assert "no GGUF" in cli("students", "export", "s1", "--out", "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="promote names one student"):
        cli("students", "promote", "s1")
    for words in (("a@b", str(folder)), ("s2", str(tmp_path)), ("s2", str(tmp_path / "nowhere"))):
        with pytest.raises(CpAgentsError):
            cli("students", "register", *words, "--store", "new.db")
        assert not Path("new.db").exists()


def test_plan_shows_the_students_own_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "users.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    with TraceStore("traces.db") as store:
        made = make_student(tmp_path / "m", taxonomy=load_taxonomy(), language="zh")
        promote(store, "s1", register(store, "s1", made))
    result = CliRunner().invoke(
        app, ["plan", "users.jsonl", "--backend", "student:s1"], catch_exceptions=False
    )
    assert "(zh)" in result.output
