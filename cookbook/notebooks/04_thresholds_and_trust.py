# %% [markdown]
# # 4. Thresholds and trust: which answers may one use?
#
# A profile is full of answers, and some are wrong. Each comes with a confidence of 1 to 5, and a
# threshold, **tau**, says from which on you use it. This recipe chooses tau by a promise ("nine of ten
# answers that I use are right") instead of by taste. Then it asks whether the promise holds for
# everybody, and what in a record moves an answer.
#
# To judge answers one needs users whose truth is known, and such data may not be passed on. So the
# teacher here is **simulated**: we draw the truth, and answers of a skill that we set. Graph, store,
# votes, calibration and everything after them are the real thing.

# %%
import os
import tempfile

from cp_agents import Profiler, ReviewPolicy, TraceStore, load_taxonomy
from cp_agents.bench.simulated_data import beside, grouped, write_simulation
from cp_agents.evaluation.simulator import Sampler, simulate
from cp_agents.files import read_records, write_jsonl
from cp_agents.taxonomy import Taxonomy

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

USERS = 1000

# %% [markdown]
# ## A teacher, and two regions
#
# Gender is easy, age harder, industry hard. The users come from a north and a south. In the south the
# teacher reads ages and industries less well, say because of a dialect, and it does not know that:
# `correlation` says how much its ten answers about one user agree, right or wrong.
#
# `audit_share=0.3` sends a random three tenths of the users to a person; `low_confidence=1` sends the least
# confident answers as well. More of both below.

# %%
profilebench = load_taxonomy("profilebench")
skill = {
    "north": {"gender": 0.93, "age": 0.88, "industry": 0.6},
    "south": {"gender": 0.93, "age": 0.66, "industry": 0.4},
}
correlation = {"north": 0.5, "south": 0.6}


def teacher(region, seed):
    return beside(
        *(
            simulate(
                Sampler(skill=right, correlation=correlation[region], sharpness=0.2, na_rate=0.1),
                users=USERS // 2,
                taxonomy=Taxonomy(name=name, attributes=[profilebench[name]]),
                seed=seed + i,
            )
            for i, (name, right) in enumerate(skill[region].items())
        )
    )


drawn = grouped({"north": teacher("north", 0), "south": teacher("south", 10)})
regions = {user: {"region": user.partition("-")[0]} for user in drawn.users}
write_simulation(drawn, ".", self_reported=regions)

with Profiler(
    "replay:answers.jsonl",
    "traces.db",
    run="teacher",
    taxonomy=drawn.taxonomy,
    review=ReviewPolicy(audit_share=0.3, low_confidence=1),
) as profiler:
    profiles, report = profiler.profile_many(list(read_records("users.jsonl")))
print(f"{len(profiles)} users, {report.meter.samples:,} samples, calibrated by {report.calibrator.kind}")

# %% [markdown]
# ## Coverage against accuracy
#
# A higher tau answers less and errs less. Since we drew the truth we can look at all users at once.
# You never can: that is the whole difficulty.

# %%
import matplotlib.pyplot as plt

from cp_agents.evaluation.loading import load_gold
from cp_agents.evaluation.outcomes import read_outcomes
from cp_agents.evaluation.thresholds import own_words

gold = load_gold("gold.jsonl")
said = own_words({p.user_id: p.to_json()["profile"] for p in profiles})
outcomes = read_outcomes(said, gold, drawn.taxonomy)

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), sharey=True, layout="constrained")
for (name, found), style in zip(outcomes.items(), ("o-", "s--", "^:"), strict=True):
    coverage, accuracy = [], []
    for tau in (1, 2, 3, 4, 5):
        answered = found.at(tau) != found.na
        coverage.append(answered.mean())
        accuracy.append((found.voted == found.truth)[answered].mean())
    left.plot((1, 2, 3, 4, 5), accuracy, style, label=name)
    right.plot(coverage, accuracy, style)
for axes in (left, right):
    axes.axhline(0.9, color="black", linewidth=0.8)
left.set(
    title="The same tau, three accuracies",
    xlabel="tau",
    ylabel="accuracy of what is answered",
    xticks=range(1, 6),
)
right.set(title="What accuracy costs", xlabel="coverage: share of users answered")
left.legend()
plt.show()

# %% [markdown]
# **A raw tau is no promise.** From tau 3 on gender is nearly always right, and industry less than two times
# of three. A calibrated level is a rank among the answers on *its* attribute, made without labels: it
# says which answers are better, not how good they are. For that one needs some labels, one tau per
# attribute, and a rule that does not fool itself.
#
# ## Fooled by 50 labels
#
# The obvious rule takes the smallest tau at which 90 % of the labelled answers were right. Here it is
# tried on 60 random sets of labelled users; what it chose is judged on all the others.

# %%
import numpy as np

from cp_agents.evaluation.thresholds import Promise, choose

TRIES = 60
TARGET = 0.9
sizes = [USERS // 20, USERS // 10, USERS // 5, USERS // 5 * 2]  # 50, 100, 200, 400


def trial(found, labels, risk, rng):
    """Coverage and accuracy among the users without a label, of the tau chosen from `labels` random ones."""
    mixed = rng.permutation(len(found.users))
    tau = choose(found.take(mixed[:labels]), Promise(TARGET, 0.1, risk)).tau
    others = found.take(mixed[labels:])
    answered = others.at(tau) != others.na
    return answered.mean(), (others.voted == others.truth)[answered].mean() if answered.any() else np.nan


tried = {
    risk: {
        name: np.array(
            [[trial(found, n, risk, np.random.default_rng(t)) for t in range(TRIES)] for n in sizes]
        )
        for name, found in outcomes.items()
    }
    for risk in ("point", "conformal")
}
figure, panels = plt.subplots(2, 3, figsize=(9, 4.8), sharex=True, sharey="row", layout="constrained")
for risk, style in (("point", "s--"), ("conformal", "o-")):
    for (above, below), (name, numbers) in zip(panels.T, tried[risk].items(), strict=True):
        broken = (numbers[:, :, 1] < TARGET).mean(axis=1)
        above.plot(sizes, broken, style, label=risk)
        below.plot(sizes, numbers[:, :, 0].mean(axis=1), style)
        above.axhline(0.1, color="black", linewidth=0.8)
        above.set(title=name, ylabel="promise broken,\nshare of tries")
        below.set(xlabel="labelled users", ylabel="coverage, mean", xticks=sizes)
        above.label_outer()
        below.label_outer()
panels[0, 0].legend()
plt.show()

# %% [markdown]
# Where some tau is right about as often as promised (tau 2 of age, above), the obvious rule (`point`) is
# wrong about every other time, and more labels hardly cure it: it takes that tau whenever it was *lucky*.
#
# `conformal` goes from tau 5 downwards as long as an exact test rejects "fewer than 90 % are right". With
# probability 1 - delta (0.9) over which users were labelled, the promise holds: the line at 0.1 is kept
# everywhere. The price is coverage, and with 50 labels nearly all of it, but where an attribute is easy.
#
# ## Choose, with 50 labels and with 200

# %%
rows = [{"user_id": user, "truth": gold[user]} for user in gold]
mixed = [rows[i] for i in np.random.default_rng(2).permutation(len(rows))]
few, more = USERS // 20, USERS // 5  # 50 and 200 of 1,000
write_jsonl("few.jsonl", mixed[:few])
write_jsonl("more.jsonl", mixed[:more])
write_jsonl("others.jsonl", mixed[more:])

# %% language="bash"
# cp-agents thresholds --store traces.db --gold few.jsonl --target-accuracy 0.9 --dry-run

# %% language="bash"
# cp-agents thresholds --store traces.db --gold more.jsonl --target-accuracy 0.9

# %% [markdown]
# Fifty labels do for gender and are too few for the rest: of fifty users, ten have a tau of 5, and it takes
# thirty without a mistake. The lines under the table say what is missing. What cannot be promised gets
# `never` and is not answered at all: here that is all of industry, though its best fifth is right in
# nine of ten cases. The test does not know that yet.
#
# The choice went to `cp-agents.toml`, which `profile` and `replay` read. Decide again with it, and look at the
# users who had no label:

# %% language="bash"
# cat cp-agents.toml
# cp-agents replay --store traces.db --out decided.jsonl

# %%
from cp_agents.evaluation.loading import load_predictions
from cp_agents.evaluation.outcomes import by_user

decided = by_user(load_predictions("decided.jsonl"))
for name in drawn.taxonomy.names:
    used = [user for user in load_gold("others.jsonl") if decided[user][name]["tag"] != "NA"]
    right = sum(decided[user][name]["tag"] == gold[user][name] for user in used)
    print(f"{name:9} {len(used):4} answers used" + (f", {right / len(used):.1%} right" if used else ""))

# %% [markdown]
# ## Labels from review
#
# Where do labels come from, if there is no gold? From the people who review. The run above queued a
# random audit, and the doubtful answers. Let a person (here: the truth) answer everything:

# %%
from cp_agents.stores.reviews import answer_one, open_reviews

with TraceStore("traces.db") as store:
    waiting = open_reviews(store, "teacher")
    print(waiting[0]["user_id"], waiting[0]["attribute"], waiting[0]["reasons"])
    for row in waiting:
        answer_one(store, row["review_id"], gold[row["user_id"]][row["attribute"]], reviewer="ann")

# %% language="bash"
# cp-agents thresholds --store traces.db --from-reviews --target-accuracy 0.9 --dry-run

# %% [markdown]
# The audit's people are others than the two hundred above, so age gets another tau; each choice keeps its
# promise, and luck decides how much coverage it costs.
#
# Only the audit counts. The other reviewed rows were chosen *because* they are doubtful: they say nothing
# of answers that nobody doubted, and a tau chosen on them would answer too little or break its word. So give
# the audit its share from the first run on (`profile --review audit_share=0.05`).
#
# ## For everybody alike? The audit by group
#
# (Extra `[audit]`.) The groups are those of a field that users report themselves:

# %% language="bash"
# cp-agents audit decided.jsonl --gold gold.jsonl --by self_reported.region --records users.jsonl

# %% [markdown]
# The promise of 90 % is one over *all* users, and it is kept. But with age, two in a hundred answers are
# wrong in the north and nine in the south, and fewer people there get an answer at all. A profile that is
# used for something would treat them worse, and no number above said so. Beside every gap stands how
# often groups dealt out at random differ as much, so that noise is not called unfair. The audit finds a
# gap; what to do (leave the attribute out, another tau, more data, another teacher) it cannot tell.
#
# ## What moves an answer? The stereotype probe
#
# An audit needs gold and groups. The probe needs neither: it swaps one self-reported field and watches the
# rest of the profile. Recorded answers cannot answer a changed record, so this part asks a backend that
# reads: `lexicon`, on invented people who search for a few things.

# %%
import random

lives = [
    (range(18, 24), ["exam timetable", "seminar reading list", "student railcard renewal", "cheap noodles"]),
    (
        range(25, 60),
        ["quarterly report template", "meeting room booking", "spreadsheet formulas", "team lunch"],
    ),
    (
        range(28, 50),
        ["packed lunch ideas", "parents evening questions", "school run traffic", "bedtime stories"],
    ),
    (
        range(62, 85),
        ["pension statement", "bus pass renewal", "allotment tomatoes", "grandchildren coming over"],
    ),
]
anybody = [
    "rain radar",
    "tram timetable",
    "bread recipe",
    "football results",
    "new phone battery",
    "crossword help",
]
dice = random.Random(4)
people = []
for i in range(USERS // 8):
    ages, words = dice.choice(lives)
    people.append(
        {
            "user_id": f"person-{i}",
            "searched": dice.sample(words, 2) + dice.sample(anybody, 3),
            "self_reported": {"gender": dice.choice(["Female", "Male"]), "age": str(dice.choice(ages))},
        }
    )
write_jsonl("people.jsonl", people)

# %% language="bash"
# cp-agents probe people.jsonl --swap gender --backend lexicon --store probe.db 2>&1

# %% [markdown]
# `other samples` is how often a tag changes when the *same* record is asked again: the noise. `swapped` is
# how often it changes when only the field does; `beyond noise` is the difference. The lexicon turns a
# *Homemaker* into a *Skilled Worker* when the same searches come from a man: a stereotype that somebody
# once wrote into its list of phrases. Language models have theirs; ask yours.
#
# ## With a real teacher
#
# Take away the cell that makes the teacher. Put a data set's published files under a folder of yours and
# name it `CP_AGENTS_DATA` ([docs/benchmark-data.md](../../docs/benchmark-data.md)):
#
# ```bash
# cp-agents bench prepare atus $CP_AGENTS_DATA/atus --out atus
# export OPENAI_API_KEY=...
# cp-agents profile atus/users.jsonl --backend openai:MODEL --run teacher --review audit_share=0.05 --out p.jsonl
# cp-agents thresholds --store traces.db --gold atus/gold.jsonl --target-accuracy 0.9 --splits 200
# cp-agents audit p.jsonl --gold atus/gold.jsonl --by gender
# cp-agents probe atus/users.jsonl --swap gender --users 200 --backend openai:MODEL
# ```
#
# For your own users: profile with an audit share, answer what `cp-agents review list` shows, and take
# `--from-reviews`. What was measured on public data, and all that is *not* promised, stands in
# [docs/trust.md](../../docs/trust.md) and [docs/limits.md](../../docs/limits.md).
