"""What SFT and GRPO make of a small model on one GPU: `python -m benchmarks.gpu_student DATA OUT`.

    python -m benchmarks.gpu_student DATA OUT --until eval-teacher    # teacher and data: no GPU needed
    python -m benchmarks.gpu_student DATA OUT --minutes 9             # all else; again until it says that all is done

DATA holds unlabelled.jsonl, users.jsonl and gold.jsonl. The lexicon votes on the first --sft-users and the next
--rl-users of unlabelled.jsonl; the model learns the former's votes (SFT, en-compact prompt) and is reinforced on some
of the latter (GRPO); then every model profiles users.jsonl and is compared with gold:

    base       as it comes, asked with the full prompt (--base-language): it has not learned the compact one
    SFT        after SFT, from here on asked with en-compact
    SFT+GRPO   with the frozen reference confidence
    GRPO without SFT     with the full prompt, in shorter steps (--no-sft-*): full prompts are ten times as long
    SFT+GRPO, self-confidence     the reward weighed by what the rollouts state themselves

The same command goes on where it stopped, also after a kill. A stage has a budget in seconds (--budget NAME=SECONDS);
what takes longer is left out and the tables say so. OUT gets results.json, results.md and curves.png after every call.

The defaults are cut so that the budgets of all that takes a GPU are 25 minutes together: 45 steps of GRPO have 16 users
x 32 rollouts where the paper has 128 x 32, answers have no evidence, and the ablations have fewer steps. The tables say
what was used. Stop rules are off, since how a recipe fails is what an ablation is about; where one would have ended a
run is said.

On another machine OUT goes on without OUT/teacher.db once `eval-teacher` is done, and DATA without unlabelled.jsonl.
--model is a folder, a GGUF file or a packaged model; a file too large to travel in one piece does in two: `split -b 50M
model.gguf part-`, and there `cat part-* > model.gguf`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.stages import Stage, Stages
from benchmarks.student_options import parser
from benchmarks.student_stages import Bench
from benchmarks.student_tables import report
from cp_agents.errors import InputError

STAGES = (
    Stage("teacher", (), 600),
    Stage("export", ("teacher",), 60),
    Stage("filter", ("teacher",), 30),
    Stage("eval-teacher", (), 60),
    Stage("unpack", (), 60),
    Stage("sft", ("export", "unpack"), 120),
    Stage("eval-sft", ("sft",), 60),
    Stage("reference", ("sft", "filter"), 30),
    Stage("grpo", ("reference",), 400),
    Stage("eval-grpo", ("grpo",), 60),
    Stage("eval-base", ("unpack",), 140),
    Stage("grpo-self", ("reference",), 240),
    Stage("eval-grpo-self", ("grpo-self",), 60),
    Stage("base-reference", ("filter", "unpack"), 40),
    Stage("grpo-no-sft", ("base-reference",), 150),
    Stage("eval-grpo-no-sft", ("grpo-no-sft",), 120),
)
"""What the table is about comes first, so that a time that is too short costs the ablations."""


def main(words: Sequence[str] | None = None) -> int:
    """All stages that are left, and the tables. Returns 0 when all is done, 3 when something is left."""
    options = parser(__doc__ or "", [stage.name for stage in STAGES]).parse_args(words)
    budgets = dict(options.budget)
    fixed = {
        name: getattr(options, name)
        for name in ("sft_users", "rl_users", "teacher_samples", "evidence", "shape", "seed", "eval_users")
    }
    try:
        stages = Stages(options.out, fixed, options.minutes * 60, partial(print, flush=True))
        bench = Bench(options, stages)
        for stage in STAGES:
            stages.run(stage._replace(budget=budgets.get(stage.name, stage.budget)), bench.work(stage.name))
            if stage.name == options.until:
                break
        report(options, stages.entries, [stage.name for stage in STAGES])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    left = [stage.name for stage in STAGES if not stages.is_done(stage.name)]
    print(f"left: {', '.join(left)}; the same command goes on" if left else "all is done")
    return 3 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
