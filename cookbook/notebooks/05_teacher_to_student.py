# %% [markdown]
# # 5. From an API teacher to a student of your own
#
# A language model behind an API profiles well, slowly and for money, and your users' words leave the
# house. Its stored answers are all it takes to train a small model that takes its place. No label is
# used anywhere:
#
# 1. the **teacher** profiles your users; their voted tags, confidences and quotations become rows;
# 2. **SFT**: a small model learns to write these answers;
# 3. **reference**: that model states once, for every user, how sure it is; this is frozen;
# 4. **GRPO**: it answers each user several times, the answers vote, and agreeing with the vote is
#    rewarded, more where the reference was sure;
# 5. the **student** is compared with the teacher on users that neither step has seen, and serves.
#
# Everything here is a toy, so that it runs on two cores in two minutes or so: four kinds of
# invented people, `lexicon` for the teacher, and a model of a million random weights for the student.
# What it shows is the road, which is the same for a real one; what to change stands at the end.
#
# This recipe needs `pip install 'cp-agents[train]'`.

# %%
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(os.path.abspath(".."))  # where train_smoke.py is, with the people and the tiny model
from train_smoke import tiny_model, users

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

SFT_USERS = 300
EPOCHS = 8
GRPO_USERS = 40
GRPO_STEPS = 8
UNSEEN_USERS = 40

people = users()
first, second, third = SFT_USERS, SFT_USERS + GRPO_USERS, SFT_USERS + GRPO_USERS + UNSEEN_USERS
parts = {"known": people[:first], "grpo": people[first:second], "unseen": people[second:third]}
for name, part in parts.items():
    Path(f"{name}.jsonl").write_text("".join(json.dumps(user) + "\n" for user in part), encoding="utf-8")
print(people[0])
print(people[1])

# %% [markdown]
# Two attributes are enough for a toy. The phrases are the stand-in teacher's knowledge.

# %% language="bash"
# cat > people.yaml <<'END'
# name: people
# attributes:
#   - name: stage
#     description: {en: Where in life the user stands.}
#     tags:
#       - {name: Parent, phrases: {stroller: 2, toddlers: 2, nursery school: 2, packed lunch: 1}}
#       - {name: Student, phrases: {exam revision: 2, dorm room: 2, lecture notes: 2, first year at university: 2}}
#       - {name: Driver, phrases: {truck repair: 2, long haul: 2, night shift: 2, tyre pressure: 1}}
#       - {name: Retired, phrases: {retirement: 2, pension: 2, grandchildren: 2, slow walks: 1}}
#   - name: age
#     description: {en: Age in years.}
#     self_reported: [age]
#     tags:
#       - {name: Below 30, range: [0, 29], phrases: {exam revision: 1.5, dorm room: 1.5, lecture notes: 1.5}}
#       - {name: 30 to 59, range: [30, 59], phrases: {stroller: 1, truck repair: 1, long haul: 1, night shift: 1}}
#       - {name: 60 and more, range: [60, 120], phrases: {retirement: 2, pension: 2, grandchildren: 1.5}}
# END

# %% [markdown]
# ## 1. The teacher, and its answers as rows
#
# The prompt of the rows is `en-compact`: a hundred tokens instead of thousands, since a student learns
# the tags by heart. Whatever prompt it is trained on, it is served with.

# %% language="bash"
# cp-agents profile known.jsonl --taxonomy people.yaml --run teacher --out teacher.jsonl
# cp-agents profile unseen.jsonl --taxonomy people.yaml --run unseen --out unseen-teacher.jsonl > /dev/null
# cp-agents export sft --run teacher --language en-compact --out sft
# head -1 sft/train.jsonl | python -m json.tool --no-ensure-ascii

# %% [markdown]
# ## 2. SFT
#
# The tiny model stands where you would name a real one. `cp-agents train sft` is the same as a verb;
# it can be stopped at any time, and the same call goes on from the last checkpoint.

# %%
import sqlite3
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # a wish of tqdm's, of no use here
import transformers

from cp_agents.trainers.sft import train_sft
from cp_agents.trainers.sft_config import sft_settings

transformers.utils.logging.disable_progress_bar()

with sqlite3.connect("traces.db") as store:
    texts = [text for (text,) in store.execute("select text from samples union all select cues from records")]
tiny_model(Path("tiny"), texts)

taught = train_sft(
    sft_settings(
        "cpu-smoke", model="tiny", data="sft", out="runs/sft",
        epochs=EPOCHS, batch=8, learning_rate=0.005, eval_every=0,
    )
)  # fmt: skip
print(f"{taught.steps} steps; on {taught.metrics['users']:.0f} held-out users:")
for name in ("parse_rate", "macro_f1", "constant_macro_f1"):
    print(f"  {name:18} {taught.metrics[name]:.2f}")

# %% [markdown]
# `parse_rate` is the share of answers that can be read, `macro_f1` agreement with the teacher's votes,
# and `constant_macro_f1` what always giving the best single answer would reach: the bar to clear.
#
# ## 3. The frozen reference
#
# One answer a user, at temperature 0. Its stated confidences, C_ref, weigh the reward of the next step
# and never change again: a model that is rewarded by its *own* current confidence learns to shout.

# %%
from cp_agents.trainers.reference import load_reference, run_reference
from cp_agents.stores.traces import TraceStore

reference = run_reference("traces.db", taught.model, "grpo.jsonl", run="reference", max_tokens=120)
with TraceStore("traces.db") as store:
    rows = load_reference(store, reference, taught.model)
for row in rows[:3]:
    print(row["user_id"], row["c_ref"])

# %% [markdown]
# ## 4. GRPO
#
# Each step: a few users, several answers each, one vote per user, a reward for each answer, one update.

# %%
from cp_agents.trainers.grpo import train_grpo
from cp_agents.trainers.grpo_config import grpo_settings

reinforced = train_grpo(
    grpo_settings(
        "cpu-smoke", model=str(taught.model), store="traces.db", reference=reference, out="runs/grpo",
        steps=GRPO_STEPS, prompts=4, rollouts=6, learning_rate=0.0002, max_tokens=120,
    )
)  # fmt: skip
print(f"{reinforced.steps} steps, stopped by a rule: {reinforced.stopped_by}")

# %%
import matplotlib.pyplot as plt


def curve(run, name):
    lines = map(json.loads, Path(f"runs/{run}/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)


figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(*curve("sft", "loss"), color="tab:blue")
left.set(title="SFT", xlabel="step", ylabel="loss", ylim=(0, None))
right.plot(*curve("grpo", "majority_ratio"), marker="o", color="tab:orange", label="agreement within a group")
right.plot(*curve("grpo", "parse_rate"), marker="o", color="tab:green", label="answers that can be read")
right.set(title="GRPO", xlabel="step", ylabel="share", ylim=(0, 1.05))
right.legend(frameon=False)
plt.show()

# %% [markdown]
# A handful of steps teaches nothing; look instead at what a real run is watched by. Agreement within a
# group should rise slowly while answers stay readable. A model may find a shortcut, such as always
# saying NA, or always 5: stop rules end such a run and give out no model.
#
# ## 5. The student in the teacher's place
#
# Registered, it has a name; promoted, it serves under it. Then one word is another, `student:toy` in
# place of the teacher's backend: prompt and taxonomy come along with the student, and any others are
# refused. The records are those that the teacher has answered, as the store has them.

# %%
from collections import Counter

from cp_agents import Profiler
from cp_agents.evaluation.compare import compare_runs
from cp_agents.runner import stored_records
from cp_agents.stores.students import promote, register

with TraceStore("traces.db") as store:
    student = register(store, "toy", reinforced.model or taught.model)  # no model where a rule stopped GRPO
    promote(store, "toy", student)
    profiler = Profiler(
        backend="student:toy", store=store, taxonomy="people.yaml", run="student", samples=5, max_tokens=120
    )
    _, report = profiler.profile_many(stored_records(store, "unseen"))
    found = compare_runs(store, "unseen", "student")
    said = store.rows("select attribute, tag from profile_attributes where run_id = 'unseen'")

outcomes = report.meter.outcomes
print(
    f"{found.users} unseen users; {outcomes['ok'] / outcomes.total():.0%} of the student's answers can be read"
)
for name, compared in found.attributes.items():
    tags = Counter(tag for attribute, tag in said if attribute == name)
    constant = tags.most_common(1)[0][1] / found.users
    print(f"{name:5} {compared.equal or 0:4.0%} equal tags, best constant answer {constant:.0%}")

# %% [markdown]
# The same as commands: `cp-agents students register toy runs/grpo/model`, `students promote`,
# `profile run:unseen --backend student:toy --run student --out student.jsonl`, `compare unseen student`.
#
# Four kinds of people who never watch each other's films are easily told apart; real people are not.
# And agreement with a teacher is not truth: a student repeats its teacher's mistakes. Where you have gold,
# `cp-agents compare unseen student --gold gold.jsonl` says which of the two is right.
#
# ## With a real teacher, and a real student
#
# | here | for real |
# |---|---|
# | the lexicon | `--backend openai:MODEL`, key in `OPENAI_API_KEY`; another endpoint by `--base-url` |
# | 300 invented people | thousands of your users; their number matters more than the samples of each |
# | `tiny` | `--model Qwen/Qwen3-0.6B`, a folder, or `smollm2` |
# | `cpu-smoke`, a large learning rate | `--preset paper` on GPUs (full, 32 rows a step) or `--preset lora` on one |
# | 8 steps of 4 users, 6 answers each | the preset's: 128 users a step; `--rollout-backend vllm-colocate` |
#
# The whole road is also one command, which goes on where it was stopped and promotes a student only if
# it holds (98 % readable answers, twice the macro-F1 of the best constant answer):
#
# ```bash
# cp-agents distill --store traces.db --run teacher --base MODEL --out road --name s1 --language en-compact
# ```
#
# **What to expect.** On two CPU cores SmolLM2-135M learnt the lexicon's votes about 628 users by SFT
# alone in 42 minutes; on 72 users it had never seen, 99.2 % of its answers could be read, and its
# macro-F1 against the teacher's votes was 0.362, where the best constant answer has 0.168
# (`cookbook/train_smollm2.py`; the table is in [docs/training.md](../../docs/training.md)).
#
# **Who was trained on.** A model may remember. `cp-agents forget USER` cleans store and exports; weights
# have to be trained anew. See [limits and responsible use](../../docs/limits.md).
#
# Next: [confidence sources](06_confidence_sources.ipynb).
