"""Embed the profiling graph as a node of your own LangGraph app, and answer its review question from outside.

Run it: python cookbook/embed_in_an_app.py
"""

from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command

from cp_agents import Profiler, ReviewPolicy


class App(TypedDict, total=False):
    record: dict[str, Any]
    profile: dict[str, Any]
    greeting: str


def greet(state: App) -> App:
    stage = state["profile"]["profile"]["life_stage"]
    return {"greeting": f"Hello! We take it that your life stage is {stage['tag']} ({stage['status']})."}


# Any attribute whose tag contradicts what the user says of themselves goes to a person.
profiler = Profiler(backend="lexicon", review=ReviewPolicy(contradiction=True))
builder = StateGraph(App)
builder.add_node("profile_user", profiler.graph)  # takes `record` from your state, puts `profile` into it
builder.add_node("greet", greet)
builder.add_edge(START, "profile_user")
builder.add_edge("profile_user", "greet")
builder.add_edge("greet", END)
app = builder.compile(checkpointer=InMemorySaver())


def main() -> App:
    record = {
        "user_id": "u1",
        "searched": [
            "breast pump reviews",
            "newborn sleep schedule",
            "maternity leave rules",
            "baby stroller",
        ],
        "posted": ["As a first-time mom I am so tired, my husband does the night shift"],
        "self_reported": {"gender": "Male"},
    }
    thread = {"configurable": {"thread_id": "u1"}}
    result = app.invoke({"record": record}, thread)
    for question in result.get(
        "__interrupt__", ()
    ):  # one question a record, whatever the number of attributes
        print(question.value["description"])
        answer = {"answers": dict.fromkeys(question.value["attributes"], "Female"), "reviewer": "ann"}
        result = app.invoke(Command(resume={question.id: answer}), thread)
    print(result["greeting"])
    print(result["profile"]["profile"]["gender"])
    return result


if __name__ == "__main__":
    main()
