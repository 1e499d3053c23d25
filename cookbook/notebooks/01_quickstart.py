# %% [markdown]
# # 1. Quickstart: one profile, and what its numbers mean
#
# Twelve invented users come with cp-agents. Here they are profiled by `lexicon`, the embedded
# backend: a list of phrases that plays the part of a language model, so that everything below runs
# in seconds, without a key and without a network. Its answers are crude; the way they are asked,
# voted on, stored and doubted is the same for every backend.
#
# You will see one profile with its evidence, what a confidence and an `NA` are, where every answer
# is kept, and how to decide again without asking again.

# %%
import json
import os
import tempfile
from collections import Counter
from importlib import resources

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

samples = resources.files("cp_agents") / "samples" / "users.jsonl"
users = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
print(json.dumps(users[3], indent=1))

# %% [markdown]
# A **record** is what a user did and wrote (any list is a source of *cues*), and what they say of
# themselves, which may be wrong: this one claims to be a student of 19.
#
# ## Profile it
#
# `samples=10` asks the backend ten times. Each answer names, per attribute, a tag of a closed set, a
# stated confidence of 1 to 5, and evidence: words of the record. The ten answers vote.

# %%
from cp_agents import Profiler

profiler = Profiler(backend="lexicon", store="traces.db", samples=10)
profile = profiler.profile(users[3])

print(f"{'attribute':16} {'tag':29} conf.  S  share  evidence")
for name, answer in profile.attributes.items():
    quotes = "; ".join(f"{found.text} [{found.source}]" for found in answer.evidence)
    print(
        f"{name:16} {answer.tag:29} {answer.confidence}/5 {answer.score:4.0f} {answer.vote_share:5.0%}  {quotes}"
    )

# %% [markdown]
# - **share** is how many of the ten answers said so.
# - **S** is the sum of their stated confidences, at most 50: what the *weighted* vote counts.
# - **conf.** is 1 to 5. For a single user it is S / 10, rounded. A run over many users puts it on the
#   scale of that run's own votes instead (*calibration*, from 20 users on): level 5 is then the fifth
#   of the votes with the highest S. Either way it is a rank, no probability.
# - **evidence** are words that stand in the record. A model that quotes what is not there has its
#   confidence cut to 2 before the vote.
#
# Two of these are wrong. The age is what the user says of himself, against all that he writes; and
# "In Relationship" comes of *long distance* driving, at 2/5. Confidence is not truth: review (recipe
# 3) and thresholds (recipe 4) are for that.
#
# Evidence can be pointed to. Its offsets refer to the cue block, the text that the model saw:

# %%
[(cues,)] = profiler.store.rows("select cues from records")
found = profile["occupation"].evidence[0]
line = next(line for line in cues.splitlines() if found.text in line)
print(f"{found.source}, characters {found.start} to {found.end}: {cues[found.start : found.end]!r}")
print(line)
print(" " * line.index(found.text) + "^" * len(found.text))

# %% [markdown]
# ## All twelve

# %%
import matplotlib.pyplot as plt

profiles, report = profiler.profile_many(users)
levels = [[a.confidence if a.tag != "NA" else float("nan") for a in p.attributes.values()] for p in profiles]

figure, axes = plt.subplots(figsize=(6.5, 4.4), layout="constrained")
shades = plt.get_cmap("Blues").copy()
shades.set_bad("0.92")
image = axes.imshow(levels, cmap=shades, vmin=0, vmax=6, aspect="auto")
for row, person in enumerate(profiles):
    for column, answer in enumerate(person.attributes.values()):
        known = answer.tag != "NA"
        shown = str(answer.confidence) if known else "NA"
        dark = known and answer.confidence > 3
        axes.text(column, row, shown, ha="center", va="center", color="white" if dark else "black")
axes.set_xticks(range(len(profile)), [name.replace("_", "\n") for name in profile])
axes.set_yticks(range(len(profiles)), [person.user_id for person in profiles])
axes.set(title="Confidence of every answer, 1 to 5", xlabel="attribute", ylabel="user")
plt.show()

# %% [markdown]
# ## What NA means
#
# `NA` is an answer: *the record does not tell*. demo-07 watched two things that say nothing, and all
# ten answers said NA. The other way to an NA is a threshold: below **tau**, the least confidence that
# you are willing to act on, the profile keeps its tag to itself (`voted` still shows it).


# %%
def what_became_of(profiles):
    answers = (answer for person in profiles for answer in person.attributes.values())
    return Counter(answer.reasons[0] if answer.reasons else "answered" for answer in answers)


print("tau 1:", dict(what_became_of(profiles)))

# %% [markdown]
# ## Everything is stored
#
# `traces.db` is one SQLite file. Each answer was written down when it came, word for word:

# %%
[(text,)] = profiler.store.rows(
    "select text from samples join records using (record_id) where user_id = 'demo-04' and sample_index = 0"
)
print(text, "\n")
[(answers, people)] = profiler.store.rows(
    "select count(*), count(distinct user_id) from samples join records using (record_id)"
)
print(f"{answers} answers about {people} users. The twelve took {report.meter.samples} new ones:")
print(f"the {answers - report.meter.samples} about demo-04 were there already.")

# %% [markdown]
# ## Decide again, without asking again
#
# Whatever follows the samples is arithmetic on stored rows. `replay` repeats it with another vote or
# another tau: no model is called, nothing is paid for.

# %%
from cp_agents import replay

for tau in (1, 2, 3, 4, 5):
    became = what_became_of(replay("traces.db", report.run_id, tau=[str(tau)]))
    print(f"tau {tau}: {became['answered']:2} of 72 answered, {became['below_tau']:2} below tau")

# %%
before = {person.user_id: person for person in profiles}
for method in ("majority", "mean", "dawid_skene"):
    for person in replay("traces.db", report.run_id, vote=method):
        for name, answer in person.attributes.items():
            was = before[person.user_id][name]
            if answer.voted != was.voted:
                changed = f"{answer.voted} instead of {was.voted} (S {was.score:.0f})"
                print(f"{method:11} {person.user_id} {name}: {changed}")

# %% [markdown]
# The vote matters only where the ten answers disagree, which is mostly where S is low. On the command
# line all of this is
#
# ```bash
# cp-agents profile users.jsonl --backend lexicon --out profiles.jsonl
# cp-agents replay --vote majority --tau 3 --out decided-again.jsonl
# cp-agents report RUN --out report.html
# ```

# %%
profiler.close()

# %% [markdown]
# ## With a real teacher
#
# Change one word, `backend="lexicon"`:
#
# ```python
# profiler = Profiler(backend="openai:MODEL", store="traces.db", samples=10)
# ```
#
# - The key is read from the environment, `OPENAI_API_KEY`; it is never stored.
# - Any endpoint that speaks the same protocol: `base_url="http://localhost:8000/v1"`, or `OPENAI_BASE_URL`.
# - Models in this process or behind vLLM: `transformers:MODEL`, `vllm-server:URL`
#   ([docs/backends.md](../../docs/backends.md)).
# - Before you spend anything: `cp-agents plan users.jsonl --backend openai:MODEL` shows prompt, tokens
#   and cost; `budget_usd=5` stops a run when so much is spent, and the same call goes on later.
#
# Next: [your own data and taxonomy](02_your_data_and_taxonomy.ipynb).
