"""A student as one folder that needs nothing else: merged weights, tokenizer, chat template and a model card."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.errors import InputError
from cp_agents.stores.student_card import StudentCard, read_card, write_card
from cp_agents.stores.students import Student
from cp_agents.trainers.base_model import Base, find_base, load_base, require_training

CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's, which writes a GGUF file from a folder of weights."""
GGUF = "model-f16.gguf"
_CONTENT = (".json", ".safetensors", ".jinja", ".model", ".txt")
_NOT_OURS = ("training_args", "trainer_state", "optimizer", "scheduler")


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    merged: bool
    """Whether an adapter was merged into its base."""
    gguf: str | None
    """The GGUF file's name in the folder."""


def export_student(student: Student, out: str | Path, *, converter: str | None = None) -> Exported:
    """Write `student` to the new folder `out`, whole or not at all.

    An adapter is merged into its base, in numbers of the type that the base is stored in. `converter` is the path of
    llama.cpp's `convert_hf_to_gguf.py`; by default that of PATH, and no GGUF file without one. Raises `InputError`
    where `out` is there already, where the student's files are not those that were registered and where the converter
    fails, and `MissingExtraError` where an adapter is to be merged without the packages of the extra [train].
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"cannot write {out}: it is there already")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {out}: the folder {out.parent} does not exist")
    found = converter or shutil.which(CONVERTER)
    if converter is not None and not Path(converter).is_file():
        raise InputError(f"no converter at {converter}: expected llama.cpp's {CONVERTER}")
    student.check_files()
    card = read_card(student.path)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        if student.kind == "adapter":
            _merge(student, folder)
            card = card.model_copy(update={"kind": "full"})
        else:
            _copy(student.path, folder)
        write_card(folder, card)
        if found is not None:
            _convert(found, folder)
        (folder / "README.md").write_text(model_card(student, card), encoding="utf-8")
        _open_to_others(folder)
        os.replace(folder, out)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Exported(out, student.kind == "adapter", GGUF if found is not None else None)


def _open_to_others(folder: Path) -> None:
    """`mkdtemp` and safetensors write for the owner alone; a model is to be as readable as any other file."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _CONTENT and not path.name.startswith(_NOT_OURS):
            shutil.copy2(path, target / path.name)


def _merge(student: Student, folder: Path) -> None:
    require_training("merging an adapter")
    base = find_base(student.model)
    merged, tokenizer = load_base(base, dtype=_stored_dtype(base))
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _stored_dtype(base: Base) -> str:
    """The numbers that the base is stored in; float32 where its configuration does not say."""
    if base.files.gguf is not None:
        return "float32"
    config = json.loads((base.files.folder / "config.json").read_text(encoding="utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return stored if stored in ("float32", "bfloat16", "float16") else "float32"


def _convert(converter: str, folder: Path) -> None:
    # The script as it lies in a checkout of llama.cpp need not be a program.
    by = [] if os.access(converter, os.X_OK) else [sys.executable]
    command = [*by, converter, str(folder), "--outfile", str(folder / GGUF), "--outtype", "f16"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode or not (folder / GGUF).is_file():
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{converter} wrote no GGUF file ({last[:200]})")


def model_card(student: Student, card: StudentCard) -> str:
    """README.md: what the model is for, what it was asked with, and what was measured, and nothing else."""
    training = {k: v for k, v in student.training.items() if v not in ("", None)}
    turns = "\n\n".join(f"{m.role}:\n\n````text\n{m.content}\n````" for m in student.prompt.messages("..."))
    parts = [
        f"# {student.name}",
        f"A user profiling model for the taxonomy `{student.taxonomy.name}`, made with cp-agents (stage {card.stage})"
        f" from `{student.base}`. It answers one prompt only, with a tag, a confidence of 1 to 5 and evidence per"
        " attribute.",
        "## Measured",
        _numbers(student.metrics) if student.metrics else "Nothing was measured.",
        "## Identity",
        _numbers(
            {
                "student": student.label,
                "base": student.base,
                "weights of the student as trained": student.weights_hash,
                "prompt": f"{student.language}, version {student.prompt_version}",
                "taxonomy": f"{student.taxonomy.name}, {student.taxonomy_hash}",
                "teacher's run": student.source_run or "not noted",
                "calibrator": student.calibrator_id or "none",
            }
        ),
        "## Training",
        f"```json\n{json.dumps(training, indent=1, ensure_ascii=False)}\n```",
        "## Taxonomy",
        "\n".join(
            f"- `{a.name}`: {'free text, ' if a.open else ''}{', '.join(a.names)}"
            for a in student.taxonomy.attributes
        ),
        "## Prompt",
        f"The user's cues stand where the dots are.\n\n{turns}",
    ]
    return "\n\n".join(parts) + "\n"


def _numbers(values: Mapping[str, Any], prefix: str = "") -> str:
    """A table of names and values; nested ones as `outer.inner`."""
    rows = ["| | |", "|---|---|"] if not prefix else []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += filter(None, _numbers(value, f"{prefix}{name}.").split("\n"))
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append(f"| {prefix}{name} | {shown.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)
