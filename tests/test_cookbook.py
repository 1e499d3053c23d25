"""The cookbook's notebooks: they run without a key or a network, and what is kept of them is what they say."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

# ruff: noqa: E402
from cookbook.notebooks.run import drift, execute, plain, read, scripts, tidy
from tests.conftest import ROOT

SMALL: dict[str, dict[str, Any]] = {
    "04_thresholds_and_trust": {"USERS": 200, "TRIES": 5},
    "06_confidence_sources": {"USERS": 120},
    "05_teacher_to_student": {
        "SFT_USERS": 120,
        "EPOCHS": 3,
        "GRPO_USERS": 8,
        "GRPO_STEPS": 1,
        "UNSEEN_USERS": 8,
    },
}
"""Settings of recipes that would take long; their outputs are then not those that are kept."""
NEEDS = {"04": ["fairlearn"], "05": ["torch", "trl"]}
"""Packages of the extras that a recipe names."""
GUARD = '''
"""Every Python of a notebook reads this first: nothing but this machine can be reached."""
import socket
_NEAR = ("127.0.0.1", "::1", "localhost")
def _guarded(name):
    real = getattr(socket.socket, name)
    def call(self, address, *more):
        if self.family != socket.AF_UNIX and address[0] not in _NEAR:
            raise RuntimeError(f"a notebook reached for the network: {address}")
        return real(self, address, *more)
    return call
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(_name))
'''

RECIPES = scripts()
by_name = pytest.mark.parametrize("script", RECIPES, ids=lambda path: path.stem)


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """An environment in which no Python can leave the machine."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: Any) -> list[str]:
    """All text that a notebook printed."""
    found = [
        o.text if o.output_type == "stream" else o.get("data", {}).get("text/plain", "")
        for o in outputs(notebook)
    ]
    return [text for text in found if text]


def kept(script: Path) -> Any:
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def wording(notebook: Any) -> list[str]:
    """What was printed, without numbers and the widths that hang on them."""
    return [re.sub(r"[\d.,%…\s━─]+", " ", text) for text in texts(notebook)]


def check_outputs(notebook: Any, *folders: str) -> None:
    for output in outputs(notebook):
        assert output.output_type != "error"
        if "image/png" in output.get("data", {}):
            assert len(output.data["image/png"]) > 6000, "an empty figure"
    said = "\n".join(texts(notebook))
    for name in {str(ROOT), str(Path.home()), os.uname().nodename, *folders} - {"/"}:
        assert not re.search(re.escape(name) + r"(?![\w-])", said), f"an output names {name}"
    assert not re.search(r"/(home|Users|root|tmp|private|work|var)/", said)
    assert "\x1b" not in said
    assert "Warning" not in said


def test_the_cookbook_has_its_recipes_and_an_index() -> None:
    index = (ROOT / "cookbook" / "README.md").read_text()
    assert [path.stem[:2] for path in RECIPES] == [f"{n:02}" for n in range(1, len(RECIPES) + 1)]
    for script in RECIPES:
        assert f"(notebooks/{script.stem}.ipynb)" in index
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", index):
        assert (ROOT / "cookbook" / target).exists(), f"the index links to {target}"


@by_name
def test_script_and_notebook_are_the_same(script: Path) -> None:
    assert drift(script) is None


def test_drift_is_found(tmp_path: Path) -> None:
    script = tmp_path / "01_x.py"
    script.write_text("# %%\nprint(1)\n")
    assert "is missing" in (drift(script) or "")
    nbformat.write(read(script), script.with_suffix(".ipynb"))
    assert drift(script) is None
    script.write_text("# %%\nprint(2)\n")
    assert "cell 1" in (drift(script) or "")
    script.write_text("# %%\nprint(1)\n\n# %%\nprint(2)\n")
    assert "1 cells and 01_x.py 2" in (drift(script) or "")


@by_name
def test_what_is_kept_can_be_read_without_running(script: Path) -> None:
    notebook = kept(script)
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert texts(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@by_name
def test_every_recipe_says_what_to_change_for_a_real_teacher(script: Path) -> None:
    words = [cell.source for cell in read(script).cells if cell.cell_type == "markdown"]
    assert words[0].startswith(f"# {int(script.stem[:2])}. ")
    last = words[-1]
    [section] = re.findall(r"^## With a real teacher.*", last, re.MULTILINE | re.DOTALL)
    assert "openai:" in section
    assert "OPENAI_API_KEY" in section


@by_name
def test_links_of_a_recipe_lead_somewhere(script: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)\)", script.read_text()):
        assert (script.parent / target).exists(), f"{script.name} links to {target}"


@by_name
def test_it_runs_without_a_key_and_without_a_network(script: Path, offline: dict[str, str]) -> None:
    for package in NEEDS.get(script.stem[:2], []):
        pytest.importorskip(package)
    small = SMALL.get(script.stem)
    notebook = execute(script, settings=small, environment=offline)
    check_outputs(notebook)
    if small is None:
        assert wording(notebook) == wording(kept(script)), "make notebooks"


def test_no_key_and_no_network_reach_a_notebook(
    tmp_path: Path, offline: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    script = tmp_path / "01_x.py"
    script.write_text(
        textwrap.dedent(
            """\
            # %%
            import os, socket, subprocess, sys
            reach = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
            try:
                exec(reach)
            except RuntimeError as error:
                print(error)
            done = subprocess.run([sys.executable, "-c", reach], capture_output=True, text=True)
            print(done.stderr.splitlines()[-1])
            print([name for name in os.environ if name.endswith("_API_KEY")], os.environ.get("FORCE_COLOR"))
            print(os.getcwd())
            """
        )
    )
    [said] = texts(execute(script, environment=offline))
    first, second, third, fourth = said.splitlines()
    assert "reached for the network" in first
    assert "reached for the network" in second
    assert third == "[] None"
    assert fourth == "…/notebooks"


def test_settings_are_changed_where_they_stand_alone(tmp_path: Path) -> None:
    script = tmp_path / "01_x.py"
    script.write_text("# %%\nUSERS = 400  # of them\nSTEPS = USERS\nprint(USERS == 400)\n")
    [cell] = read(script, {"USERS": 3}).cells
    assert cell.source == "USERS = 3  # of them\nSTEPS = USERS\nprint(USERS == 400)"
    with pytest.raises(ValueError, match="has no setting ROWS"):
        read(script, {"ROWS": 3})


@pytest.mark.parametrize(
    ("printed", "is_kept"),
    [
        ("12 of 12 records in 0.7 s, 17.1 records/s", "12 of 12 records in … s, … records/s"),
        ("took 1,204.5 ms or 3 seconds", "took … ms or … seconds"),
        ("level 5 so far, S 49, GPT-4 says", "level 5 so far, S 49, GPT-4 says"),
        ("\x1b[1mbold\x1b[0m\x1b[?25l", "bold"),
        ("/tmp/nb-1/cp-agents-x_y1/traces.db in /tmp/nb-1", "…/traces.db in …"),
    ],
)
def test_what_differs_from_run_to_run_is_left_out(printed: str, is_kept: str) -> None:
    assert plain(printed, "/tmp/nb-1") == is_kept


def test_pieces_of_one_stream_are_one(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a\x1b", "[0m", "b\n")
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}}
    )
    tidy(notebook, str(tmp_path))
    assert texts(notebook) == ["ab\n"]
    assert "version" not in notebook.metadata.language_info
