# %% [markdown]
# # 2. Your own data and your own taxonomy
#
# A library has a table of loans and wants to know what each reader reads, and for whom. This recipe
# turns the table into records, writes a taxonomy of two attributes, looks at the prompt before
# anything is sent, profiles the readers, and forgets one of them.
#
# The commands are those of the command line. Everything runs on the embedded backend: no key.

# %%
import os
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

# %% [markdown]
# ## The table
#
# As such tables are: semicolons, days before months, cells in Chinese, empty cells, a delimiter within
# quotes, a row that belongs to nobody, and addresses that no model should see.

# %% language="bash"
# cat > loans.csv <<'END'
# reader;borrowed;title;note;e-mail;favourite;survey
# r1;13/02/2025;The Detective of Harbour Street;read it in one night;ann@example.com;whodunit;crime
# r1;02/03/2025;A Body in the Library Van;;ann@example.com;;
# r1;20/03/2025;Poems for the Winter;;ann@example.com;;
# r2;14/02/2025;Bedtime Stories for Small Bears;my daughter asks for it every evening;bo@example.com;;crime
# r2;;A Detective in the Nursery;;bo@example.com;;
# r2;;One-Pot Suppers;N/A;bo@example.com;;
# r3;01/03/2025;云南游记;和老伴慢慢走;chen@example.com;游记;travel
# r3;05/03/2025;丝绸之路旅行指南;;chen@example.com;;
# r4;18/02/2025;Sourdough Basics;"for our restaurant; chapter 3 first";di@example.com;;cooking
# r4;19/02/2025;Sauces of the North;for our restaurant;di@example.com;;
# r5;28/02/2025;Organic Chemistry, a Revision Guide;exam in May;ed@example.com;;other
# r5;04/03/2025;Murder at the Faculty;;ed@example.com;;
# r6;07/03/2025;唐诗三百首;给孩子读;fu@example.com;;poetry
# r7;09/03/2025;Large Print Calendar;;gus@example.com;;?
# ;10/03/2025;Lost and Found;;;;
# END

# %% [markdown]
# Look at it first. Without a map nothing is written but a proposal:

# %% language="bash"
# cp-agents bench prepare csv loans.csv --write-map proposed.yaml 2>&1

# %% [markdown]
# Times and texts are found, addresses are left out, and what a table does not tell is left to you:
# which column is the user, and what `favourite` and `survey` are. A map says it. `favourite` is what
# readers say of themselves (a model sees it, and may doubt it). `survey`, what they answered when they
# were asked, is the truth to compare with: `gold` is never shown to a model.

# %% language="bash"
# cat > map.yaml <<'END'
# user: reader
# time: borrowed
# sources:
#   borrowed: title       # what the model sees, under this name
#   wrote: note
# self_reported:
#   favourite: favourite
# gold:
#   genre: {column: survey, values: {other: NA, "?": NA}}
# END

# %% [markdown]
# ## The taxonomy
#
# One YAML file. Every attribute is a closed set of tags, and `NA` is in each without being listed.
#
# - `description` goes into the prompt, in the prompt's language.
# - `aliases` are other names of the *same* tag: in answers, in self-reports, in gold.
# - `self_reported` names the fields that state this attribute, so that contradictions are seen.
# - `phrases` (phrase: weight) are for the embedded backend; a language model does without them.
# - `example` is one invented record with its answer, shown to the model; tags and evidence are checked.

# %% language="bash"
# cat > readers.yaml <<'END'
# name: readers
# description: {en: What somebody borrows from a library., zh: 读者在图书馆借什么书。}
# attributes:
#   - name: genre
#     description: {en: What the reader borrows most., zh: 读者最常借的类型。}
#     self_reported: [favourite]
#     tags:
#       - name: Crime
#         description: {en: "detective stories, thrillers, true crime", zh: 侦探、惊悚、真实罪案}
#         aliases: [whodunit, 推理]
#         phrases: {detective: 2.0, murder: 2.0, body in the: 1.5}
#       - {name: Travel, aliases: [travel writing, 游记], phrases: {travel diary: 2.0, 游记: 2.0, 旅行: 2.0}}
#       - {name: Poetry, aliases: [verse, 诗歌], phrases: {poems: 2.0, 唐诗: 2.5}}
#       - {name: Cooking, aliases: [cookery, 烹饪], phrases: {sourdough: 2.0, sauces: 2.0, suppers: 1.5}}
#   - name: reads_for
#     description: {en: Whom or what the books are for., zh: 为谁或为何借书。}
#     tags:
#       - {name: Pleasure, phrases: {in one night: 2.0, 慢慢走: 1.5}}
#       - {name: A child, phrases: {bedtime stories: 2.5, my daughter: 2.0, nursery: 1.0, 给孩子: 2.5}}
#       - {name: Studies, phrases: {exam: 2.0, revision guide: 2.5}}
#       - {name: Work, phrases: {our restaurant: 2.5}}
# example:
#   record: {borrowed: [Another Whodunit on the Tram], wrote: [finished before my stop]}
#   answer:
#     genre: {tag: Crime, score: 4, evidence: Whodunit}
#     reads_for: {tag: Pleasure, score: 3, evidence: finished before my stop}
# END

# %% [markdown]
# Now the table becomes records, and the survey becomes gold in our tags:

# %% language="bash"
# cp-agents bench prepare csv loans.csv --map map.yaml --taxonomy readers.yaml --out loans 2>&1
# head -2 loans/users.jsonl
# cat loans/gold.jsonl

# %% [markdown]
# What is wrong with a taxonomy or a table is said in a sentence, and nothing is written. The exit code
# is 2, which `|| true` hides here:

# %% language="bash"
# sed 's/tag: Crime, score: 4/tag: Thriller, score: 4/' readers.yaml > broken.yaml
# cp-agents profile loans/users.jsonl --taxonomy broken.yaml --out nothing.jsonl 2>&1 || true

# %% [markdown]
# ## The prompt, before anything is sent
#
# `plan` makes no call. It shows the prompt of one record and what a run would take. What users wrote
# stands between `<record>` and `</record>`, as data; ids and addresses in it are replaced.

# %% language="bash"
# cp-agents plan loans/users.jsonl --taxonomy readers.yaml --show 3

# %% [markdown]
# ## Profile

# %% language="bash"
# cp-agents profile loans/users.jsonl --taxonomy readers.yaml --out profiles.jsonl --run loans
# cp-agents evaluate profiles.jsonl --gold loans/gold.jsonl --taxonomy readers.yaml | sed '/^means/,$d'

# %%
import json

for line in Path("profiles.jsonl").read_text(encoding="utf-8").splitlines():
    person = json.loads(line)
    for name, answer in person["profile"].items():
        quotes = "; ".join(found["text"] for found in answer["evidence"])
        print(f"{person['user_id']} {name:9} {answer['tag']:9} {answer['confidence']}/5  {quotes}")

# %% [markdown]
# r7 borrowed a calendar, and nothing can be known of that. The phrases are few, so a word decides;
# a language model reads the whole record. Seven users are too few to calibrate on (20 are needed) and
# far too few to evaluate: the table above only shows how it is done.
#
# ## Forget a reader
#
# `forget` erases a user from the store, with every answer about them, and from the files that it is
# told of. The store is rewritten, so that no deleted page keeps a word.

# %% language="bash"
# echo "files with r3's words before: $(grep -l 云南游记 traces.db* profiles.jsonl loans/users.jsonl | tr '\n' ' ')"
# cp-agents forget r3 --export profiles.jsonl --export loans/users.jsonl --export loans/gold.jsonl
# echo "files with r3's words after: $(grep -l 云南游记 traces.db* profiles.jsonl loans/users.jsonl | tr '\n' ' ')"
# echo "profiles left: $(wc -l < profiles.jsonl)"

# %% [markdown]
# `loans.csv` is yours: cp-agents erases what it wrote, not what it was given.
#
# ## With a real teacher
#
# Everything stays but `--backend`, and the prompt's language where your users write Chinese:
#
# ```bash
# export OPENAI_API_KEY=...                      # or --base-url http://localhost:8000/v1
# cp-agents plan loans/users.jsonl --taxonomy readers.yaml --backend openai:MODEL \
#   --price-prompt 0.5 --price-completion 1.5   # what your model costs, in USD per million tokens
# cp-agents profile loans/users.jsonl --taxonomy readers.yaml --backend openai:MODEL --language zh --out profiles.jsonl
# ```
#
# Then leave `phrases` out of the taxonomy and put your work into `description`: it is what the model
# reads. `forget` cannot reach what your provider has kept; read its terms, and
# [limits and responsible use](../../docs/limits.md).
#
# Next: [the graph in an agent of your own](03_embed_in_an_agent.ipynb).
