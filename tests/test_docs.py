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


@pytest.mark.parametrize("page", ["cli.md", "config.md", "schema.md"])
def test_generated_pages_are_up_to_date(page: str) -> None:
    sys.path.insert(0, str(ROOT))
    from docs.generate import GENERATED

    assert (ROOT / "docs" / page).read_text() == GENERATED[page](), "run: make docs"


def test_the_picture_of_the_graph_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT))
    from docs.generate import graph_picture, with_picture

    readme = (ROOT / "README.md").read_text()
    assert graph_picture() in readme
    assert with_picture(readme) == readme, "run: make docs"


def test_the_schema_page_has_every_table_and_column() -> None:
    from cp_agents.stores.traces import TraceStore

    page = (ROOT / "docs" / "schema.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    with TraceStore(":memory:") as store:
        tables = store.rows(
            "select name from sqlite_master where type = 'table' and name not like 'sqlite_%'"
        )
        for (table,) in tables:
            if not table.startswith("_"):
                for _, column, *_ in store.rows(f"pragma table_info({table})"):
                    assert f"| `{column}` |" in sections.get(table, ""), f"{table}.{column}"


def test_the_configuration_snippet_is_accepted(tmp_path: Path) -> None:
    from cp_agents.cli.app import read_config

    [text] = [code for name, code in snippets("toml") if name.startswith("config.md")]
    (tmp_path / "c.toml").write_text(text)
    assert read_config(tmp_path / "c.toml")["profile"]["tau"] == ["2", "age=3"]


def test_the_site_builds_without_a_warning_and_names_every_page(tmp_path: Path) -> None:
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation, f"{page.name} is not in the navigation"


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
