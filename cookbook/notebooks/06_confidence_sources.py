# %% [markdown]
# # 6. Sources of confidence, side by side
#
# Where does a confidence come from? Four sources are there in any run, and they mean different things:
#
# | source | what it is, for a vote of ten answers |
# |---|---|
# | `verbal` | what the answers that agree state, 1 to 5 |
# | `agreement` | how many of the ten agree |
# | `logprob` | what the model gave the tokens of the tag that it wrote |
# | `combined` | all three together |
#
# One may ask two things of a confidence: is it **calibrated** (of the answers with 0.7, are seven in ten
# right?), and does it **discriminate** (is it higher for right than for wrong ones)? This recipe shows
# that one is not the other, and what each of them buys.
#
# There is no key and no gold here, so the teacher is **simulated**, with a character of our choice. What
# judges it is the real thing.

# %%
import os
import tempfile

import numpy as np

from cp_agents import Profiler, TraceStore, load_taxonomy, replay
from cp_agents.bench.simulated_data import grouped, write_simulation
from cp_agents.evaluation.simulator import Sampler, simulate
from cp_agents.files import read_records, write_jsonl
from cp_agents.taxonomy import Taxonomy

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

USERS = 600

# %% [markdown]
# ## A teacher with two kinds of confidence
#
# One attribute, and two kinds of users, plain and puzzling: 85 % and 45 % of the answers about them are
# right.
#
# - What it *states* is higher for right answers than for wrong ones **of the same user**. But it states
#   the same mixture of 1 to 5 for plain and for puzzling users.
# - Its *token probabilities* are the other way round: they know how hard the **user** is, and are just as
#   high for a wrong answer about that user as for a right one.

# %%
age = Taxonomy(name="age", attributes=[load_taxonomy("profilebench")["age"]])
skill = {"plain": 0.85, "puzzling": 0.45}
drawn = grouped(
    {
        kind: simulate(
            Sampler(skill=right, correlation=0.3, stated="informative", sharpness=0.35),
            users=USERS // 2,
            samples=10,
            taxonomy=age,
            seed=seed,
        )
        for seed, (kind, right) in enumerate(skill.items())
    }
)
hard = np.array([skill[user.partition("-")[0]] for user in drawn.users])
noise = np.random.default_rng(0).normal(0, 0.1, drawn.ballots.tags.shape)
write_simulation(drawn, ".", probabilities=np.clip(hard[None, :, None] + noise, 0.02, 0.99))

records = list(read_records("users.jsonl"))
with Profiler("replay:answers.jsonl", "traces.db", run="teacher", taxonomy=age) as profiler:
    profiles, report = profiler.profile_many(records)
write_jsonl("profiles.jsonl", (profile.to_json() for profile in profiles))

with TraceStore("traces.db") as store:
    rows = store.rows(
        "select tag, confidence, probability from predictions join samples using (sample_id)"
        " join records using (record_id) where user_id = 'puzzling-1' order by sample_index"
    )
print("truth:", drawn.gold["puzzling-1"]["age"])
for tag, stated, probability in rows[:5]:
    print(f"{tag:6} states {stated}/5, tokens {probability:.2f}")

# %% [markdown]
# ## The table
#
# `evaluate` judges all sources at once. With `--store` it reads the samples too.

# %% language="bash"
# cp-agents evaluate profiles.jsonl --gold gold.jsonl --store traces.db | sed -n '/sources/,$p'

# %% [markdown]
# - **ece** (expected calibration error) and **brier**: how far the number is from a probability. Lower is
#   better, and `logprob` is the best here.
# - **auroc**: how often a right vote has a higher confidence than a wrong one, over all users. 0.5 is a coin.
# - **aurc**: the mean error rate when one starts with the most confident users; the error rate itself is
#   what chance gets.
# - **wqd** (within-question discrimination): the same as auroc, but among the ten answers about *one* user.
#
# ## Calibrated: does 0.7 mean 0.7?

# %%
import matplotlib.pyplot as plt

from cp_agents.evaluation.samples import load_answers, of_vote

with TraceStore("traces.db") as store:
    answers = load_answers(store, "teacher", [])
votes = [(profile.user_id, profile["age"]) for profile in profiles]
right = np.array([vote.voted == drawn.gold[user]["age"] for user, vote in votes])
found = [of_vote(answers[user, "age"], vote.agreeing) for user, vote in votes]
sources = {
    name: np.array([row[name] for row in found]) for name in ("verbal", "agreement", "logprob", "combined")
}

figure, row = plt.subplots(1, 4, figsize=(9, 2.9), sharex=True, sharey=True, layout="constrained")
for axes, (name, confidence) in zip(row, sources.items(), strict=True):
    bins = np.minimum((confidence * 10).astype(int), 9)
    shown = [b for b in range(10) if (bins == b).sum() >= 10]
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    axes.plot([confidence[bins == b].mean() for b in shown], [right[bins == b].mean() for b in shown], "o-")
    axes.set(title=name, xlabel="confidence", ylabel="share that is right")
    axes.label_outer()
figure.suptitle("Reliability: on the gray line a confidence is a probability")
plt.show()

# %% [markdown]
# `logprob` keeps close to the line: it says 0.45 or 0.85, and is right about as often. `combined` is far
# above it, and `verbal` far too steep; but both *rise*. Such a confidence is not wrong, it is on another
# scale, and a scale can be mended with labels. `agreement` is bent: where few agree and the weighted vote
# went to them all the same, what they stated overruled the heads, mostly rightly.
#
# ## Discriminating: whom to answer first?
#
# Sort the users by confidence and answer from the top. How many of the answers are wrong?

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (name, confidence), style in zip(sources.items(), ("-", "--", ":", "-."), strict=True):
    order = np.argsort(-confidence, kind="stable")
    counted = np.arange(1, len(order) + 1)
    shown = counted > 0.05 * len(order)  # of fewer, a share leaps with every user
    axes.plot((counted / len(order))[shown], (np.cumsum(~right[order]) / counted)[shown], style, label=name)
axes.axhline((~right).mean(), color="gray", linewidth=0.8)
axes.set(
    title="Risk against coverage",
    xlabel="coverage: share of users answered, the surest first",
    ylabel="share of answers that is wrong",
    ylim=(0, 0.4),
)
axes.legend()
plt.show()

# %% [markdown]
# The best calibrated source, `logprob`, is the *worst* here. It splits the users into two heaps and knows
# nothing within them. Calibration alone is cheap: always say the mean accuracy, and you are calibrated.
#
# ## Voting: which source is worth a weight?
#
# In a vote the answers about one user are weighed against each other. So what counts is **wqd**, and
# nothing else. `replay` votes again on the stored answers, weighed by each source:

# %%
from cp_agents.evaluation.confidence import compare_sources

lines = [profile.to_json() for profile in profiles]
judged = compare_sources(lines, drawn.gold, age, answers)["age"]
correct = {
    source: np.array(
        [
            profile["age"].voted == drawn.gold[profile.user_id]["age"]
            for profile in replay("traces.db", "teacher", confidence=source)
        ]
    )
    for source in sources
}
draws = np.random.default_rng(0).integers(0, len(right), (1000, len(right)))
print("weighed by    ece   wqd   users right   more than by counting heads (95 %)")
for source, was_right in correct.items():
    gain = was_right.astype(float) - correct["agreement"]
    low, high = np.quantile(gain[draws].mean(axis=1), (0.025, 0.975))
    numbers = judged[source]
    print(
        f"{source:11} {numbers.ece:.3f} {numbers.wqd:.3f}   {was_right.mean():.3f}"
        f"         {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    )

# %% [markdown]
# By `agreement` all answers weigh the same: a majority vote. `logprob`, the best calibrated, adds nothing that
# can be told from luck. `verbal`, more than three times as badly calibrated, makes more users right. **The
# best calibrated source need not be the best one to vote with.** With a real teacher the order may be
# another: measure, then choose `--confidence`.
#
# ## Calibration can be bought
#
# A hundred labels put a source on the scale of probabilities: `calibrate fit` with gold learns the map from S
# to the share that is right. Judge it on other users than it was fitted on.

# %%
mixed = np.random.default_rng(1).permutation(drawn.users)
gold = [{"user_id": user, "truth": drawn.gold[user]} for user in mixed]
write_jsonl("labelled.jsonl", gold[: USERS // 6])
write_jsonl("others.jsonl", gold[USERS // 6 :])

# %% language="bash"
# cp-agents calibrate fit --store traces.db --gold labelled.jsonl --kind isotonic --out isotonic.json
# cp-agents replay --store traces.db --calibrator isotonic.json --out scaled.jsonl
# cp-agents evaluate scaled.jsonl --gold others.jsonl --store traces.db | sed -n '/sources/,$p'

# %% [markdown]
# `probability` is the new row: better calibrated than any of the others, and as discriminating as S, which it
# was made of (`combined` without the tokens). Discrimination cannot be bought so: no map of a number tells
# users apart whom the number does not.
#
# ## What confidence buys: fewer samples
#
# A sure vote needs no ten answers. With `adaptive` the graph stops drawing when the votes are settled: `exact`
# when nothing that is left could change them, `bayes` when that is improbable.

# %%
asked = {}
for rule, p in (("exact", 0.95), ("bayes", 0.98)):
    with Profiler(
        "replay:answers.jsonl", "traces.db", run=rule, taxonomy=age, adaptive=rule, adaptive_p=p
    ) as profiler:
        stopped, _ = profiler.profile_many(records)
        rows = profiler.store.rows("select user_id, asked from records where run_id = ?", (rule,))
        drawn_for = {user: 10 if m is None else m for user, m in rows}
    asked[rule] = np.array([drawn_for[user] for user in drawn.users])
    same = np.mean([a["age"].voted == b["age"].voted for a, b in zip(stopped, profiles, strict=True)])
    means = ", ".join(f"{kind} {asked[rule][hard == value].mean():.1f}" for kind, value in skill.items())
    print(
        f"{rule:5} {1 - asked[rule].mean() / 10:4.0%} saved, {same:.1%} of the votes the same; answers a user: {means}"
    )

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
steps = np.arange(1, 11)
for (kind, value), shift in zip(skill.items(), (-0.2, 0.2), strict=True):
    shares = [(asked["bayes"][hard == value] == m).mean() for m in steps]
    axes.bar(steps + shift, shares, width=0.4, label=f"{kind} users")
axes.set(
    title="bayes, p = 0.98: when the graph stopped",
    xlabel="answers drawn, of ten",
    ylabel="share of users",
    xticks=steps,
)
axes.legend()
plt.show()

# %% [markdown]
# The answers go where they are needed: two thirds of the plain users are settled by three, most puzzling ones
# take six to ten. `exact` never changes a vote and saves less. A real run saves less than this one, since an
# answer covers all attributes and goes on for the most doubtful: see [docs/graph.md](../../docs/graph.md).
#
# ## With a real teacher
#
# Take away the cell that makes the teacher, put a data set's published files under a folder of yours and name it
# `CP_AGENTS_DATA` ([docs/benchmark-data.md](../../docs/benchmark-data.md)):
#
# ```bash
# cp-agents bench prepare synthpai $CP_AGENTS_DATA/synthpai --out synthpai
# export OPENAI_API_KEY=...
# cp-agents doctor --backend openai:MODEL      # does the endpoint give log-probabilities?
# cp-agents profile synthpai/users.jsonl --backend openai:MODEL --confidence combined --run teacher --out p.jsonl
# cp-agents evaluate p.jsonl --gold synthpai/gold.jsonl --store traces.db
# cp-agents replay --run teacher --confidence verbal --out verbal.jsonl
# ```
#
# `--confidence combined` (or `logprob`) has the endpoint asked for probabilities; without, they are not sent.
# Everything about the sources stands in [docs/evaluation.md](../../docs/evaluation.md).
