"""One peer sends all prompts M times and prints its records a second; run by `benchmarks/peers.py` in the peers' venv.

    python benchmarks/peer_ways.py WAY URL PROMPTS.json REQUESTS_IN_FLIGHT

Every peer is used at its plainest: chat messages in, text out, no parsing, no cache, no retries where that can be
said. Only the sending is timed, not the import. Needs nothing of cp-agents.
"""

from __future__ import annotations

import asyncio
import json
import operator
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

SAMPLES = 10
MODEL = "gpt-4o-mini"  # a name that the peers' tables know; the server answers to any
Prompts = list[list[dict[str, str]]]
Run = Callable[[Prompts], Awaitable[None]]


def langgraph_send(url: str, in_flight: int) -> Run:
    """A LangGraph graph with a `Send` a sample, over `ChatOpenAI`; records by `abatch`."""
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    model = ChatOpenAI(
        model=MODEL, base_url=url, api_key="none", max_retries=0, max_tokens=1200, temperature=1.0
    )

    class State(TypedDict):
        messages: list[dict[str, str]]
        texts: Annotated[list[str], operator.add]

    async def sample(state: dict[str, Any]) -> dict[str, Any]:
        answer = await model.ainvoke(state["messages"], seed=state["seed"])
        return {"texts": [answer.content]}

    graph = StateGraph(State)
    graph.add_node("sample", sample)
    graph.add_conditional_edges(
        START,
        lambda state: [Send("sample", {"messages": state["messages"], "seed": k}) for k in range(SAMPLES)],
        ["sample"],
    )
    graph.add_edge("sample", END)
    compiled = graph.compile()

    async def run(prompts: Prompts) -> None:
        inputs = [{"messages": messages, "texts": []} for messages in prompts]
        done = await compiled.abatch(inputs, config={"max_concurrency": in_flight // SAMPLES})
        assert all(len(state["texts"]) == SAMPLES for state in done)

    return run


def chat_openai_abatch(url: str, in_flight: int) -> Run:
    """`ChatOpenAI.abatch` over all samples, without a graph."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model=MODEL, base_url=url, api_key="none", max_retries=0, max_tokens=1200, temperature=1.0
    )

    async def run(prompts: Prompts) -> None:
        inputs: list[Any] = [messages for messages in prompts for _ in range(SAMPLES)]
        done = await model.abatch(inputs, config={"max_concurrency": in_flight})
        assert all(answer.content for answer in done)

    return run


def instructor(url: str, in_flight: int) -> Run:
    """`instructor` over the async openai client, without a response model."""
    import instructor as package
    from openai import AsyncOpenAI

    async def run(prompts: Prompts) -> None:
        client = package.from_openai(AsyncOpenAI(base_url=url, api_key="none", max_retries=0))

        async def one(messages: list[dict[str, str]], seed: int) -> None:
            done = await client.chat.completions.create(
                model=MODEL, messages=messages, response_model=None, max_retries=0, seed=seed, max_tokens=1200
            )
            assert done.choices[0].message.content

        await _bounded(prompts, in_flight, one)

    return run


def dspy(url: str, in_flight: int) -> Run:
    """`dspy.LM` called with messages, cache off."""
    import dspy as package

    model = package.LM(
        f"openai/{MODEL}", api_base=url, api_key="none", cache=False, num_retries=0, max_tokens=1200
    )

    async def run(prompts: Prompts) -> None:
        async def one(messages: list[dict[str, str]], seed: int) -> None:
            assert (await model.acall(messages=messages, seed=seed))[0]

        await _bounded(prompts, in_flight, one)

    return run


def langextract(url: str, in_flight: int) -> Run:
    """The OpenAI provider of `langextract`, which takes one text a prompt and works on threads."""
    from langextract.providers.openai import OpenAILanguageModel

    model = OpenAILanguageModel(model_id=MODEL, api_key="none", base_url=url, max_workers=in_flight)

    async def run(prompts: Prompts) -> None:
        texts = ["\n\n".join(message["content"] for message in messages) for messages in prompts]
        inputs = [text for text in texts for _ in range(SAMPLES)]
        done = await asyncio.to_thread(lambda: list(model.infer(inputs, temperature=1.0)))
        assert len(done) == SAMPLES * len(texts)
        assert all(outputs[0].output for outputs in done)

    return run


def curator(url: str, in_flight: int) -> Run:
    """`curator.LLM` through its LiteLLM backend: its OpenAI backend downloads a tokenizer first."""
    os.environ |= {
        "CURATOR_DISABLE_CACHE": "1",
        "TELEMETRY_ENABLED": "0",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
    }
    os.environ |= {"OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    from bespokelabs import curator as package

    class Profile(package.LLM):  # type: ignore[misc, name-defined]
        def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
            return list(row["messages"])

        def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
            return {"text": response}

    model = Profile(
        model_name=f"openai/{MODEL}",
        backend="litellm",
        backend_params={
            "base_url": url,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "max_concurrent_requests": in_flight,
            "max_retries": 0,
        },
        generation_params={"max_tokens": 1200},
    )

    async def run(prompts: Prompts) -> None:
        rows = [{"messages": messages} for messages in prompts for _ in range(SAMPLES)]
        with tempfile.TemporaryDirectory() as folder:
            done = await asyncio.to_thread(model, rows, working_dir=folder)
            assert len(done.dataset) == len(rows)

    return run


def distilabel(url: str, in_flight: int) -> Run:
    """`OpenAILLM` of `distilabel`, which sends what it is given all at once; given a part at a time."""
    from distilabel.models.llms import OpenAILLM

    model = OpenAILLM(model=MODEL, base_url=url, api_key="none", max_retries=0)
    model.load()

    def send(prompts: Prompts) -> None:
        inputs = [messages for messages in prompts for _ in range(SAMPLES)]
        for start in range(0, len(inputs), in_flight):
            done = model.generate_outputs(inputs[start : start + in_flight], max_new_tokens=1200)
            assert all(outputs["generations"][0] for outputs in done)

    async def run(prompts: Prompts) -> None:
        await asyncio.to_thread(send, prompts)

    return run


WAYS: dict[str, Callable[[str, int], Run]] = {
    "langgraph-send": langgraph_send,
    "langchain-abatch": chat_openai_abatch,
    "instructor": instructor,
    "dspy": dspy,
    "langextract": langextract,
    "curator": curator,
    "distilabel": distilabel,
}
PACKAGES = {
    "langgraph-send": "langgraph",
    "langchain-abatch": "langchain-openai",
    "curator": "bespokelabs-curator",
}
"""The distribution whose version is printed, where it has another name than the way."""


async def _measure(way: str, url: str, prompts: Prompts, in_flight: int) -> float:
    """Seconds to send all, after a tenth of them has warmed up connections and imports."""
    run = WAYS[way](url, in_flight)
    await run(prompts[: max(2, len(prompts) // 10)])
    started = time.perf_counter()
    await run(prompts)
    return time.perf_counter() - started


async def _bounded(
    prompts: Prompts, in_flight: int, one: Callable[[list[dict[str, str]], int], Awaitable[None]]
) -> None:
    """`one(messages, seed)` for every sample, `in_flight` at a time."""
    todo = iter([(messages, seed) for messages in prompts for seed in range(SAMPLES)])

    async def work() -> None:
        for messages, seed in todo:
            await one(messages, seed)

    await asyncio.gather(*(work() for _ in range(in_flight)))


def main() -> None:
    way, url, path, in_flight = sys.argv[1:]
    from importlib.metadata import version

    with open(path, encoding="utf-8") as file:
        prompts: Prompts = json.load(file)
    seconds = asyncio.run(_measure(way, url, prompts, int(in_flight)))
    print(json.dumps({"records_s": len(prompts) / seconds, "version": version(PACKAGES.get(way, way))}))


if __name__ == "__main__":
    main()
