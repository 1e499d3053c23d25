# %% [markdown]
# # 3. Profiling inside an agent of your own
#
# Your app is a LangGraph graph. Here profiling joins it in two ways: as a **tool**, which the agent's
# model calls when it wants to know whom it serves, and as a **subgraph**, one node of your graph, which
# may stop to ask a person and go on days later, in another process.
#
# Two things stand in for models, so that no key is needed: `lexicon` for the one that profiles, and a
# few lines of Python for your app's chat model.

# %%
import json
import os
import re
import tempfile
from importlib import resources
from itertools import groupby

os.chdir(tempfile.mkdtemp(prefix="cp-agents-"))  # the files of this notebook get a folder of their own

samples = resources.files("cp_agents") / "samples" / "users.jsonl"
users = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
records = {user["user_id"]: user for user in users}

# %% [markdown]
# ## The app's chat model
#
# Any chat model of LangChain will do. This one knows two moves: it calls the tool when it is asked
# about a user, and it puts into words what it was told. Replace it with yours:
# `ChatOpenAI(model=...).bind_tools([who_is])`, or `init_chat_model(...)`.

# %%
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult


class StandIn(BaseChatModel):
    """Two moves, always the same."""

    @property
    def _llm_type(self):
        return "stand-in"

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **options):
        told = next((m for m in reversed(messages) if isinstance(m, ToolMessage | SystemMessage)), None)
        if told is None:
            [user_id] = re.findall(r"demo-\d+", messages[-1].content)
            call = {"name": "who_is", "args": {"user_id": user_id}, "id": "call-1"}
            reply = AIMessage("", tool_calls=[call])
        else:
            known = json.loads(told.content)
            reply = AIMessage("I take it that: " + ", ".join(f"{k} is {v}" for k, v in known.items()))
        return ChatResult(generations=[ChatGeneration(message=reply)])


model = StandIn()

# %% [markdown]
# ## As a tool
#
# What a tool returns becomes part of a prompt. So hand over tags that are sure enough, not scores, and
# leave out what is `NA`: `tau=4` makes everything below 4 of 5 an `NA`.

# %%
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from cp_agents import Profiler, ReviewPolicy

sure = Profiler(backend="lexicon", store="traces.db", run="tool", tau=4)


@tool
async def who_is(user_id: str) -> dict[str, str]:
    """What can be said of a user with some confidence: attribute to tag."""
    profile = await sure.aprofile(records[user_id])
    return {name: answer.tag for name, answer in profile.attributes.items() if answer.tag != "NA"}


def talk(state: MessagesState):
    return {"messages": [model.bind_tools([who_is]).invoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("talk", talk)
builder.add_node("tools", ToolNode([who_is]))
builder.add_edge(START, "talk")
builder.add_conditional_edges("talk", tools_condition)
builder.add_edge("tools", "talk")
agent = builder.compile()

said = await agent.ainvoke({"messages": [HumanMessage("Greet demo-05 in a way that suits them.")]})
for message in said["messages"]:
    print(f"{message.type:5} {message.content or message.tool_calls[0]['args']}")

# %% [markdown]
# `life_stage` is missing: the record hints at it, at 2 of 5. An agent that is not told a guess cannot
# repeat it.
#
# ## As a subgraph
#
# `profiler.graph` is a compiled graph. A node of yours takes `record` from your state and puts
# `profile` into it. With a `ReviewPolicy`, a record that needs a person makes one *interrupt*; here a
# tag that contradicts what users say of themselves does. The checkpointer keeps what waits, in a file.

# %%
from typing import Annotated, Any

from langgraph.channels import UntrackedValue
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command


class App(MessagesState, total=False):
    record: Annotated[dict[str, Any], UntrackedValue]  # as it came in: in no checkpoint
    profile: dict[str, Any]


def answer(state: App):
    profile = state["profile"]["profile"]
    known = {name: value["tag"] for name, value in profile.items() if value["tag"] != "NA"}
    return {"messages": [model.invoke([SystemMessage(json.dumps(known)), *state["messages"]])]}


def build_app(saver):
    """Everything that a process of your app needs, from the files alone."""
    profiler = Profiler(
        backend="lexicon", store="traces.db", run="app", tau=4, review=ReviewPolicy(contradiction=True)
    )
    builder = StateGraph(App)
    builder.add_node("profile_user", profiler.graph)
    builder.add_node("answer", answer)
    builder.add_edge(START, "profile_user")
    builder.add_edge("profile_user", "answer")
    builder.add_edge("answer", END)
    return builder.compile(checkpointer=saver)


thread = {"configurable": {"thread_id": "order-4711"}}
start = {"record": records["demo-04"], "messages": [HumanMessage("Greet this user.")]}

# %% [markdown]
# `stream` shows the nodes as they finish, those of the subgraph too. The ten samples are ten branches.
# `durability="exit"` writes a checkpoint when the graph stops, not at every step.

# %%
with SqliteSaver.from_conn_string("checkpoints.db") as saver:
    app = build_app(saver)
    steps = []
    for where, update in app.stream(start, thread, stream_mode="updates", subgraphs=True, durability="exit"):
        steps += [("  " if where else "") + node for node in update]
    print("profile_user")
    for step, same in groupby(step for step in steps if step != "__interrupt__"):
        count = len(list(same))
        print(step + (f" x{count}" if count > 1 else ""))

# %% [markdown]
# It stopped to ask. The `answer` node has not run, and the process may end here.
#
# ## Answered later
#
# Another day, another process: nothing is left but two files and the thread's name. The question says
# what is asked, why, and what the record holds.

# %%
with SqliteSaver.from_conn_string("checkpoints.db") as saver:
    app = build_app(saver)
    [question] = app.get_state(thread).interrupts
    print(question.value["description"][:640], "...")

# %% [markdown]
# Ann is asked, and answers by the interrupt's id. An answer that is no tag is refused, and the question
# stays; Agent Inbox's form and that of LangChain's human-in-the-loop middleware are understood as well.

# %%
with SqliteSaver.from_conn_string("checkpoints.db") as saver:
    app = build_app(saver)
    for tag in ("Lorry driver", "Transportation and Logistics"):
        said = {"answers": {"occupation": tag}, "reviewer": "ann"}
        try:
            result = app.invoke(Command(resume={question.id: said}), thread, durability="exit")
        except Exception as error:
            print("refused:", str(error)[:110], "...\n")
    occupation = result["profile"]["profile"]["occupation"]
    print(f"{occupation['tag']}, {occupation['status']} by {occupation['reviewer']}")
    print(result["messages"][-1].content)

# %% [markdown]
# The samples from before the interrupt were in the store; none was drawn again. Nobody was asked about
# the age, because it agrees with what the user says of himself, wrongly: a rule sends to a person what
# it can see. `ReviewPolicy` has others (low confidence, split votes, no evidence, a random share).
#
# ## What a checkpoint holds
#
# Records are personal data, and a checkpointer likes to keep everything. Compare two ways of running
# the same graph, on a user whose signature has a handle (`@t_moor_builds`) in it:

# %%
import sqlite3

with SqliteSaver.from_conn_string("compared.db") as saver:
    app = build_app(saver)
    start = {"record": records["demo-05"], "messages": [HumanMessage("Greet this user.")]}
    for durability in ("async", "exit"):
        app.invoke(start, {"configurable": {"thread_id": durability}}, durability=durability)

with sqlite3.connect("compared.db") as opened:
    for durability in ("async", "exit"):
        rows = opened.execute(
            "select checkpoint from checkpoints where thread_id = ?", (durability,)
        ).fetchall()
        writes = opened.execute("select value from writes where thread_id = ?", (durability,)).fetchall()
        known = any(b"t_moor_builds" in value for (value,) in rows + writes)
        size = sum(len(value) for (value,) in rows + writes)
        print(f"{durability:5} {len(rows):2} checkpoints, {size / 1000:3.0f} kB, the handle in them: {known}")

# %% [markdown]
# And when a user wants to be forgotten, name both files:

# %% language="bash"
# cp-agents forget demo-04 --store traces.db --checkpoints checkpoints.db
# echo "files that know demo-04: $(grep -l demo-04 traces.db* checkpoints.db* | tr '\n' ' ')"

# %% [markdown]
# ## With a real teacher
#
# Two words, one for each stand-in:
#
# ```python
# profiler = Profiler(backend="openai:MODEL", store="traces.db", run="app")
# model = init_chat_model("openai:MODEL")  # pip install langchain langchain-openai
# ```
#
# Both read the key from `OPENAI_API_KEY`; `base_url=...` names another endpoint.
# The profiling may also use your app's chat model, with its callbacks and tracing:
# `Profiler(backend=from_langchain(model))`. Each of the ten samples is a request of its own, side by
# side; `fanout="node"` makes one request of them where the endpoint honours `n`. Users who come back
# cost nothing: their answers are in the store. More on the graph: [docs/graph.md](../../docs/graph.md).
#
# Next: [thresholds and trust](04_thresholds_and_trust.ipynb).
