"""Documentation cannot drift: snippets are executed, the command reference is generated, links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        (f"{page.name}-{i}", code)
        for page in PAGES
        for i, code in enumerate(pattern.findall(page.read_text()))
    ]


@pytest.mark.parametrize(("name", "code"), snippets("python"), ids=[name for name, _ in snippets("python")])
def test_python_snippets_run(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("name", "code"), snippets("json"), ids=[name for name, _ in snippets("json")])
def test_json_snippets_are_json(name: str, code: str) -> None:
    assert isinstance(json.loads(code), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_command_reference_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT))
    from docs.generate import cli_reference

    assert (ROOT / "docs" / "cli.md").read_text() == cli_reference(), "run: make docs"


def test_every_verb_of_a_shell_snippet_exists() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text()
    for name, code in snippets("bash"):
        for verb in re.findall(r"^cp-agents (\w+)", code, re.MULTILINE):
            assert f"## `cp-agents {verb}`" in reference, f"{name} names {verb}"


TRAINS = {"train_smoke.py", "train_smollm2.py"}
"""Scripts that take minutes and have make targets of their own."""


@pytest.mark.parametrize(
    "script",
    sorted(path for path in (ROOT / "cookbook").glob("*.py") if path.name not in TRAINS),
    ids=lambda path: path.name,
)
def test_cookbook_scripts_run(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_embedded_app_asks_once_and_goes_on_with_the_answer() -> None:
    sys.path.insert(0, str(ROOT / "cookbook"))
    import embed_in_an_app

    result = embed_in_an_app.main()
    gender = result["profile"]["profile"]["gender"]
    assert (gender["status"], gender["reviewer"], gender["tag"]) == ("reviewed", "ann", "Female")
    assert result["greeting"].startswith("Hello!")
