"""Run the cookbook's notebooks and keep their outputs beside them, so that they can be read without running.

    make notebooks                                     # all of them
    python cookbook/notebooks/run.py 03                # those whose names begin with 03
    python cookbook/notebooks/run.py --check           # run nothing, say which pairs have drifted apart

The percent scripts are the source: each becomes an .ipynb with the outputs of a run in a folder of its own. What would
differ from run to run or from machine to machine (timings, the folder's name, versions in the metadata) is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 300
_SETTING = re.compile(r"^(?P<name>[A-Z_]+) = (?P<value>[^#\n]*?)(?P<comment>\s*#.*)?$", re.MULTILINE)
_TIMING = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?( ?(?:s|ms|seconds)\b| \w+/s\b)")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PLAIN = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts(*beginnings: str) -> list[Path]:
    """The notebooks' scripts in order; with `beginnings`, those whose names start with one of them."""
    return [path for path in sorted(HERE.glob("[0-9][0-9]_*.py")) if path.stem.startswith(beginnings or "")]


def read(script: Path, settings: Mapping[str, Any] | None = None) -> NotebookNode:
    """A script as a notebook without outputs; `settings` change lines such as `USERS = 400` of its code.

    Raises `ValueError` for a setting that the script does not have, so that none is changed in vain.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(_PLAIN)
    missing = set(settings or {})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"  # the default is random
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code" and settings:
            for match in reversed(list(_SETTING.finditer(cell.source))):
                if (name := match["name"]) in settings:
                    missing.discard(name)
                    start, end = match.span("value")
                    cell.source = f"{cell.source[:start]}{settings[name]!r}{cell.source[end:]}"
    if missing:
        raise ValueError(f"{script.name} has no setting {sorted(missing)[0]}")
    return notebook


def execute(
    script: Path, *, settings: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> NotebookNode:
    """Run a script as a notebook, in a temporary folder, and return it with its outputs tidied.

    Raises `nbclient.exceptions.CellExecutionError` for a cell that fails. `environment` is added to the kernel's.
    """
    notebook = read(script, settings)
    with (
        tempfile.TemporaryDirectory(prefix="nb-") as folder,
        tempfile.TemporaryDirectory(prefix="k-") as ends,
    ):
        place = _lay_out(Path(folder))
        manager = AsyncKernelManager(  # files instead of ports: nobody else can talk to the kernel
            kernel_name="python3", transport="ipc", connection_file=f"{ends}/c.json", ip=f"{ends}/c-ipc"
        )
        client = NotebookClient(
            notebook, km=manager, timeout=_TIMEOUT_S, resources={"metadata": {"path": str(place)}}
        )
        client.execute(env=_environment(folder) | dict(environment or {}), cleanup_kc=True)
        tidy(notebook, folder)
    return notebook


def _environment(folder: str) -> dict[str, str]:
    """A new user's shell with the virtual environment active: no keys, plain text, files in `folder` alone."""
    keys = {
        name
        for name in os.environ
        if name.endswith("_API_KEY") or name.startswith(("LANGSMITH_", "LANGCHAIN_"))
    }
    kept = {
        name: value for name, value in os.environ.items() if name not in keys and name != "OPENAI_BASE_URL"
    }
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": folder,
        "IPYTHONDIR": f"{folder}/ipython",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "110",
        "OMP_NUM_THREADS": "1",
    }


def _lay_out(folder: Path) -> Path:
    """A folder to run in, whose parent holds the cookbook's scripts as it does in the repository."""
    for script in HERE.parent.glob("*.py"):
        shutil.copy(script, folder)
    # The kernel promises colours to the programs that it starts; in a kept output they would be rubbish.
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "plain.py").write_text(
        "import os\nfor name in ('FORCE_COLOR', 'CLICOLOR_FORCE', 'CLICOLOR'):\n    os.environ.pop(name, None)\n"
        "os.environ.update(NO_COLOR='1', TERM='dumb')\ndel os, name\n"
    )
    place = folder / "notebooks"
    place.mkdir()
    return place


def tidy(notebook: NotebookNode, folder: str) -> None:
    """Leave in the outputs what is the same in every run, in place."""
    notebook.metadata = nbformat.from_dict(_PLAIN)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            last = outputs[-1] if outputs else {}
            if output.output_type == "stream" and output.name == last.get("name"):
                last["text"] += output.text
                continue
            if "data" in output:
                output.metadata = nbformat.from_dict({})
                for kind, value in output.data.items():
                    if kind.startswith("text/"):
                        output.data[kind] = plain(value, folder)
            outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = plain(output.text, folder)
        cell.outputs = [output for output in outputs if output.get("text") != ""]


def plain(text: str, folder: str) -> str:
    """Text without timings, colours and the folder it ran in."""
    for path in sorted({folder, os.path.realpath(folder)}, key=len, reverse=True):
        text = re.sub(re.escape(path) + r"(/cp-agents-\w+)?", "…", text)
    return _TIMING.sub(r"…\1", _ESCAPES.sub("", text))


def drift(script: Path) -> str | None:
    """What differs between a script and the .ipynb beside it, as a sentence, or None."""
    kept = script.with_suffix(".ipynb")
    if not kept.exists():
        return f"{kept.name} is missing: make notebooks"
    ours = [(cell.cell_type, cell.source) for cell in read(script).cells]
    theirs = [(cell.cell_type, cell.source) for cell in nbformat.read(kept, as_version=4).cells]
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False), 1):
        if a != b:
            return f"cell {number} of {kept.name} is not that of {script.name}: make notebooks"
    if len(ours) != len(theirs):
        return f"{kept.name} has {len(theirs)} cells and {script.name} {len(ours)}: make notebooks"
    return None


def main(words: list[str]) -> int:
    """The command line; the exit code is 1 where --check found a pair that has drifted apart."""
    check = "--check" in words
    found = scripts(*(word for word in words if not word.startswith("-")))
    drifted = 0
    for script in found:
        if check:
            if says := drift(script):
                drifted += 1
                print(says)
            continue
        started = time.monotonic()
        notebook = execute(script)
        nbformat.validate(notebook)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(f"{script.stem}: {time.monotonic() - started:.0f} s", flush=True)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
