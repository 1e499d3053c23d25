# %% [markdown]
# # 7. The paper's tables, from stored samples
#
# Conf-Profile (arXiv:2509.18864) rests on a few claims, each with a table: a confidence-weighted vote
# beats a majority vote, calibration makes confidence usable, a frozen confidence is better than a
# self-stated one, a threshold trades coverage for precision. With the samples of one run in a store,
# each of these tables is a command that calls no model:
#
# ```bash
# cp-agents bench table 2 --gold gold.jsonl --store traces.db     # also 3, 4, 5, 7
# cp-agents bench figure 5 --gold gold.jsonl --store traces.db    # also 3 and 9
# ```
#
# The paper's users are not public, and this notebook may use no key. So it **simulates** a teacher:
# samplers whose skill and confidence we set ourselves, answering about users whose truth we drew. The
# answers are drawn; all that follows them (graph, store, votes, calibration, tables) is the real thing.

# %%
import os
import tempfile

from IPython.display import Markdown, display

from cp_agents import Profiler, TraceStore, load_taxonomy
from cp_agents.bench.render import markdown_table
from cp_agents.bench.simulated_data import beside, grouped, write_simulation
from cp_agents.evaluation.simulator import Sampler, simulate
from cp_agents.files import read_records
from cp_agents.taxonomy import Taxonomy

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

USERS = 400
DRAWS = 400

# %% [markdown]
# ## A teacher
#
# Six attributes, some harder than others, and two kinds of users: those who leave *clear* traces and
# those who leave *faint* ones, on whom the teacher is wrong more often and says NA more often.
#
# `correlation` makes the ten answers about one user alike, as those of one model are: it misreads a
# user the same way every time. `stated="informative"` means that the confidence which comes with an
# answer is a little higher when the answer is right.

# %%
skill = {
    "gender": 0.90,
    "age": 0.62,
    "industry": 0.50,
    "occupation": 0.46,
    "education_level": 0.46,
    "life_stage": 0.42,
}
says_na = {
    "gender": 0.05,
    "age": 0.05,
    "industry": 0.3,
    "occupation": 0.4,
    "education_level": 0.4,
    "life_stage": 0.5,
}
profilebench = load_taxonomy("profilebench")


def teacher(name, easier, seed):
    sampler = Sampler(
        skill=skill[name] + easier, na_rate=max(0, says_na[name] - easier), correlation=0.4, sharpness=0.15
    )
    alone = Taxonomy(name=name, attributes=[profilebench[name]])
    return simulate(sampler, users=USERS // 2, samples=10, taxonomy=alone, seed=seed)


drawn = grouped(
    {
        "clear": beside(*(teacher(name, +0.1, i) for i, name in enumerate(skill))),
        "faint": beside(*(teacher(name, -0.1, 10 + i) for i, name in enumerate(skill))),
    }
)
write_simulation(drawn, ".")

with Profiler("replay:answers.jsonl", "traces.db", run="teacher") as profiler:
    profiles, report = profiler.profile_many(list(read_records("users.jsonl")))
print(f"{len(profiles)} users, {report.meter.samples:,} samples, run {profiler.run_id!r}")
print(profiles[0]["occupation"].model_dump(include={"tag", "voted", "confidence", "score", "vote_share"}))

# %% [markdown]
# `load_source` puts a stored run beside its gold; each table is then one function. A helper shows a
# table with the columns that matter here, `tables.COLUMNS` has the others.

# %%
from cp_agents.bench.tables import load_source
from cp_agents.evaluation.loading import load_gold

store = TraceStore("traces.db")
source = load_source(store, "teacher", load_gold("gold.jsonl"), draws=DRAWS)


def show(grid, columns=None, rows=None):
    """The named columns, and the rows whose labels contain one of the given words."""
    kept = [i for i, name in enumerate(grid.columns) if columns is None or name in columns]
    chosen = [row for row in grid.rows if rows is None or any(word in row.label for word in rows)]
    narrow = [row.model_copy(update={"cells": [row.cells[i] for i in kept]}) for row in chosen]
    best = [grid.best[i] for i in kept] if grid.best else []
    names = [grid.columns[i] for i in kept]
    display(
        Markdown(markdown_table(grid.model_copy(update={"columns": names, "rows": narrow, "best": best})))
    )


P, R, F1 = "selective accuracy (P)", "coverage (R)", "F1 of means"

# %% [markdown]
# ## Table 2: how to vote
#
# What the paper calls precision is `selective_accuracy` here, right among answered; what it calls
# recall behaves like `coverage`, answered among all. In brackets are 95 % bootstrap intervals over
# users, and p is that of a paired randomisation test. The paper's own numbers stand below ours.

# %%
from cp_agents.bench.table_votes import table_votes

table = table_votes(source)
show(table.grids[0], [P, R, F1])
show(table.grids[1], [P, R, F1], ["weighted - majority", "Skene - majority"])

# %% [markdown]
# The pattern is the paper's: **weighting buys coverage** at about equal precision. Why? Not because
# confidence knows which tag is right. Our sampler says NA with confidence 1, so under a weighted vote
# an NA counts a third of a usual answer, and users on whom the majority said NA get a tag.
#
# ## When does weighting win, and when does it hurt?
#
# On real data several causes mix. The simulator can hold all but one still: one attribute with five
# tags, skill 0.6, and five ways to state a confidence.

# %%
import matplotlib.pyplot as plt

from cp_agents.bench.simulate import compare_votes

ways = {
    "informative\nhigher when right": {"stated": "informative", "sharpness": 0.5},
    "flat\nalways 3": {"stated": "flat"},
    "noisy\nany, right or wrong": {"stated": "noisy"},
    "inverted\nhigher when wrong": {"stated": "inverted", "sharpness": 0.5},
    "sure of A\n5 for A, 3 for others": {"stated": "flat", "overconfident": ("A",), "pull": {"A": 0.6}},
}
gaps = {
    na: [
        compare_votes(
            simulate(Sampler(skill=0.6, correlation=0.2, na_rate=na, **way), users=2 * USERS), draws=DRAWS
        )[1]["true_recall"]
        for way in ways.values()
    ]
    for na in (0.0, 0.3)
}

figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for (na, found), shift, colour in zip(gaps.items(), (-0.12, 0.12), ("tab:blue", "tab:orange"), strict=True):
    middle = [gap.value for gap in found]
    reach = [[gap.value - gap.low for gap in found], [gap.high - gap.value for gap in found]]
    places = [i + shift for i in range(len(found))]
    axes.errorbar(
        places, middle, reach, fmt="o", capsize=3, color=colour, label=f"{na:.0%} of the samples say NA"
    )
axes.axhline(0, color="black", linewidth=0.8)
axes.set_xticks(range(len(ways)), ways, fontsize=8)
axes.set(
    title="Weighted less majority vote",
    xlabel="how the confidence is stated",
    ylabel="share of users who are right,\ndifference",
)
axes.legend()
plt.show()

# %% [markdown]
# - Blue, nobody says NA: weighting helps only if confidence is higher for right answers *of the same
#   user*. If a model is over-confident about one tag (last column) or confident when wrong, it **hurts**.
# - Orange: a third of the samples say NA with confidence 1. Now nearly everything gains, even a flat
#   confidence that knows nothing. The gain is the low weight of NA.
#
# So before you believe a gain of the weighted vote, look at `wqd` ([recipe 6](06_confidence_sources.ipynb)),
# or at samples without NA. `cp-agents bench simulate` prints such a table for settings of yours.
#
# ## Table 4 and figures 3 and 9: calibration
#
# S / M, the mean confidence in the winner over all samples, crowds: an easy attribute around 3, a hard
# one at 1, and nothing at 5. The paper cuts S into five intervals with equally many users each, one
# attribute at a time. That needs no label.

# %%
from cp_agents.bench.figures import figure_levels
from cp_agents.bench.table_calibration import table_calibration

panels = figure_levels(source.run, 3).panels + figure_levels(source.run, 9).panels
shown = [panel for panel in panels if panel.title in ("gender", "life_stage")]
figure, grid_of_axes = plt.subplots(2, 2, figsize=(7, 4.4), sharey=True, layout="constrained")
for row, panel in zip(grid_of_axes, shown, strict=True):
    for axes, bars, when in zip(row, panel.bars[1:], ("before", "after"), strict=True):
        axes.bar(bars.labels, bars.shares, color="tab:blue" if when == "after" else "tab:gray")
        axes.axhline(0.2, color="black", linestyle=":", linewidth=0.8)
        axes.set(
            title=f"{panel.title}, {when} calibration", xlabel="confidence level", ylabel="share of votes"
        )
        axes.label_outer()
plt.show()

table = table_calibration(source)
show(table.grids[0], rows=["gender", "life_stage", "average", "together"])

# %% [markdown]
# `evenness` is 1 for five equal levels: calibration does what it says. `auroc` is how well the level
# ranks right above wrong. Within an attribute nothing is lost; five even levels tell even a little more
# than three crowded ones. Over *all attributes together* something is lost: an uncalibrated 3 was mostly
# a gender, which is mostly right, and a calibrated 4 means "among the upper two fifths of this
# attribute", hard or easy. And `ece` says how far level / 5 is from the share that is right: a level is
# a **rank, not a probability**.
#
# ## Table 5: whose confidence?
#
# Left in the paper: what the answer itself states. Right: a confidence frozen from the vote. From traces
# that is each single sample by its own word, against the vote by its calibrated score.

# %%
from cp_agents.bench.table_confidence import table_confidence

table = table_confidence(source)
show(table.grids[0], [P, R], ["tau 1", "tau 3", "tau 5"])

# %% [markdown]
# A single answer's own word sorts little: precision rises slowly with tau. Ten answers together know
# far more. The paper's self-stated confidence is flatter still (its students were *rewarded* by it,
# and learned to say 5): that comes of training, and traces cannot show it.
#
# ## Table 7 and figure 5: precision against coverage

# %%
from cp_agents.bench.figures import figure_curves

curves = figure_curves(source).panels
figure, row = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True, sharey=True, layout="constrained")
for axes, title in zip(row, ("average", "gender", "life_stage"), strict=True):
    panel = next(panel for panel in curves if panel.title == title)
    for curve, style in zip(panel.curves, ("o-", "s--", "^:"), strict=False):
        x = [point.coverage.value for point in curve.points]
        y = [point.selective_accuracy.value for point in curve.points]
        axes.plot(x, y, style, markersize=4, label="ours (simulated)" if curve.name == "ours" else curve.name)
    axes.set(title=title, xlabel="coverage", ylabel="selective accuracy", xlim=(0, 1.05), ylim=(0.3, 1.02))
    axes.label_outer()
row[0].legend(fontsize=8, loc="lower left")
plt.show()

# %%
from cp_agents.bench.table_taus import table_taus

table = table_taus(source)
show(
    table.grids[0],
    ["P", "R (coverage)", "F1", "paper, SFT: P", "paper, SFT: R"],
    ["gender,", "life_stage,", "average,"],
)

# %% [markdown]
# Every curve starts at tau 1 on the right and climbs to tau 5 on the left. That ours lies near the
# paper's is no finding: we set the skills so. That it *rises* is one: quintiles of S, made without a
# single label, sort right from wrong. Compare two methods **along the curve**, not at equal tau.
#
# ## Table 3: which users to train on
#
# The paper gives reinforcement learning users of chosen difficulty. What a student learns from them
# cannot be read from traces; what the shapes keep can.

# %%
from cp_agents.bench.table_shapes import table_shapes

table = table_shapes(source, rule="quintile", keep=USERS // 4)
show(table.grids[0], ["kept", "mean level", *(f"level {i}" for i in range(1, 6))])
show(table.grids[1], [P, R])

# %% [markdown]
# The votes on the kept users are as good as those on any other hundred: the intervals overlap. If a
# shape helps, it helps by what is *learned* from it. Nothing in this table can say so, and it does not.
#
# ## What differs, always
#
# Every table ends with notes that say what stands between it and the paper's:

# %%
for note in table_votes(source).notes:
    print("-", note)
store.close()

# %% [markdown]
# ## With a real teacher
#
# Only the cell that makes the teacher changes. Put a data set's published files under a folder of
# yours and name it `CP_AGENTS_DATA` ([docs/benchmark-data.md](../../docs/benchmark-data.md)); SynthPAI
# is a clone of its repository:
#
# ```bash
# cp-agents bench prepare synthpai $CP_AGENTS_DATA/synthpai --out synthpai
# export OPENAI_API_KEY=...
# cp-agents profile synthpai/users.jsonl --backend openai:MODEL --samples 10 --out profiles.jsonl --run teacher
# cp-agents bench table 2 --gold synthpai/gold.jsonl --run teacher
# ```
#
# Students of [recipe 5](05_teacher_to_student.ipynb) come in by name, beside the votes that they learned from:
# `bench table 4 --student with=RUN --student without=RUN`. What we measured on public data stands in
# [docs/tables.md](../../docs/tables.md).
