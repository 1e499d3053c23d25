"""The profiling graph: one record's way through, as in figure 2 of the paper.

    assemble_cues -> M x sample -> vote -> calibrate -> abstain -> (review) -> finalize

With adaptive sampling the vote may send the record back for more samples, wave by wave, until it is settled.
State is plain JSON and small: cue block, samples and raw answers live in the trace store, and the state holds
the record's id there. Backend, store, taxonomy, prompt, calibrator and settings come through
`context_schema`, so one compiled graph serves teacher and student; a context given to `build_graph` is the
default, for graphs embedded in a parent that has a context of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict, cast

from langchain_core.runnables import RunnableConfig
from langgraph.channels import UntrackedValue
from langgraph.config import get_config
from langgraph.errors import NodeError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Checkpointer, Command, RetryPolicy, Send, interrupt

from cp_agents import adaptive, decide, sampling
from cp_agents.backends.base import Backend
from cp_agents.calibration import UNCALIBRATED, Calibrator
from cp_agents.confidence import check_logprobs
from cp_agents.decide import Tally
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.meter import Meter
from cp_agents.nodes import Step, Waiting
from cp_agents.open_sets import n_tags
from cp_agents.prompts.render import Prompt
from cp_agents.review import question, response_schema
from cp_agents.schema import AttributeProfile, Profile, Status, UserRecord
from cp_agents.select_history import select_history
from cp_agents.settings import ProfileSettings, assemble_for
from cp_agents.stores.reviews import answer_reviews, apply_reviews, queue_reviews, reviewed
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

Fanout = Literal["send", "node"]

_CHECKPOINTER = "__pregel_checkpointer"  # LangGraph's own key; set for subgraphs that inherit one, too


@dataclass(frozen=True)
class ProfilingContext:
    """What a run brings to the graph. Never written to a checkpoint."""

    backend: Backend
    store: TraceStore
    taxonomy: Taxonomy
    prompt: Prompt
    run_id: str
    settings: ProfileSettings = field(default_factory=ProfileSettings)
    calibrator: Calibrator | None = None
    meter: Meter = field(default_factory=Meter)


class ProfileInput(TypedDict, total=False):
    """What the graph takes: a user record as it came in, or one that another run of the store has."""

    record: dict[str, Any]
    stored: int
    """`record_id` in the store; its cues are taken as they stand there."""


class ProfileOutput(TypedDict):
    """What the graph gives: one line of OUT.jsonl."""

    profile: dict[str, Any]


def _collect(left: list[int] | None, right: list[int] | None) -> list[int]:
    """Indices as they land; None starts anew, for a thread that profiles again."""
    return [] if right is None else sorted({*(left or []), *right})


class ProfileState(TypedDict, total=False):
    """The graph's channels."""

    record: Annotated[dict[str, Any], UntrackedValue]
    """As it came in, not anonymised: never part of a checkpoint's state."""
    stored: Annotated[int | None, UntrackedValue]
    record_id: int
    asked: int
    """Samples asked for so far: 0 to `asked` - 1."""
    drawn: Annotated[list[int], _collect]
    tallies: dict[str, Tally]
    attributes: dict[str, dict[str, Any]]
    calibrator: str
    profile: dict[str, Any]


class SampleBranch(TypedDict):
    """What one `Send` carries. The index is in it so that LangGraph's cache and resume tell branches apart."""

    record_id: int
    sample_index: int


def build_graph(
    context: ProfilingContext | None = None, *, fanout: Fanout = "send"
) -> StateGraph[ProfileState, ProfilingContext, ProfileInput, ProfileOutput]:
    """The graph, not yet compiled.

    `fanout="send"`: a visible branch per sample, with retry, error handler and resume of its own.
    `fanout="node"`: one node gathers all samples, one request where the backend can; for batches.
    Raises `InputError` for another fanout.
    """
    if fanout not in ("send", "node"):
        raise InputError(f"unknown fanout {fanout!r}: expected send or node")

    def current() -> ProfilingContext:
        given = get_runtime().context
        if isinstance(given, ProfilingContext):
            return given
        if context is None:
            raise InputError(
                "the profiling graph has no context: give one to build_graph or to invoke(context=...)"
            )
        return context

    async def assemble(state: ProfileState) -> dict[str, Any]:
        """The cue block; a history that does not fit may be read by the teacher first, see `cp_agents.selection`."""
        ctx = current()
        stored = state.get("stored")
        if stored is not None:
            user_id, cues = ctx.store.assembled(stored)
        else:
            record = UserRecord.from_dict(state.get("record"))
            foremost = await select_history(ctx, record) if ctx.settings.history == "select" else ()
            user_id, cues = record.user_id, assemble_for(ctx.settings, record, foremost)
        thread = get_config()["configurable"].get("thread_id")
        record_id = ctx.store.put_record(ctx.run_id, user_id, cues, None if thread is None else str(thread))
        asked = ctx.settings.samples
        if (stopping := ctx.settings.stopping) is not None:
            # Also where an earlier attempt got further: it is resumed wave by wave, to stop where it would have.
            asked = adaptive.first_wave(_sizes(ctx), stopping)
        return {"record_id": record_id, "asked": asked, "drawn": None}

    async def sample(state: ProfileState) -> dict[str, Any]:
        ctx = current()
        write = get_runtime().stream_writer
        drawn = []
        async for landed in sampling.draw(ctx, state["record_id"], _undrawn(state)):
            write({"sample": landed.index, "outcome": landed.outcome.value})
            drawn.append(landed.index)
        return {"drawn": drawn}

    async def sample_one(state: SampleBranch) -> dict[str, Any]:
        ctx = current()
        index = state["sample_index"]
        async for landed in sampling.draw(ctx, state["record_id"], [index], raise_retryable=True):
            get_runtime().stream_writer({"sample": index, "outcome": landed.outcome.value})
        return {"drawn": [index]}

    def sample_failed(state: SampleBranch, error: NodeError) -> Command[Literal["vote"]]:
        """After the last retry: a typed row in place of the sample, and the others go on.

        It names the way on, because a node that fails on every branch triggers none of its edges.
        """
        raised = error.error
        if isinstance(raised, BackendError) and raised.error_type.is_fatal:
            raise raised
        kind = raised.error_type if isinstance(raised, BackendError) else ErrorType.INTERNAL
        message = sampling.describe(raised)
        sampling.store_failure(current(), state["record_id"], state["sample_index"], kind, message)
        return Command(update={"drawn": [state["sample_index"]]}, goto="vote")

    def branches(state: ProfileState, _: RunnableConfig) -> list[Send]:
        record_id = state["record_id"]
        return [Send("sample", SampleBranch(record_id=record_id, sample_index=i)) for i in _undrawn(state)]

    def settled(state: ProfileState, config: RunnableConfig) -> str | list[Send]:
        if not _undrawn(state):
            return "calibrate"
        return branches(state, config) if fanout == "send" else "sample"

    def vote(state: ProfileState, _: RunnableConfig) -> dict[str, Any]:
        """Equations 3-5 over the surviving samples; with adaptive sampling, perhaps a call for more."""
        ctx = current()
        rows = ctx.store.predictions(state["record_id"])
        ballots = decide.ballots_of(rows, ctx.taxonomy, ctx.settings.samples)
        if ctx.settings.confidence != "verbal":
            known = ctx.store.probabilities(state["record_id"])
            if rows and not known:  # else this attribute or that has none, and fails
                able = ctx.backend.capabilities.logprobs
                check_logprobs(ctx.settings.confidence, able, ctx.backend.identity.sampler)
            ballots = decide.weighed(ballots, ctx.settings.confidence, ctx.taxonomy, known)
        ballots = decide.reweighed(ballots, ctx.taxonomy, ctx.settings.tag_weights)
        if (stopping := ctx.settings.stopping) is not None:
            asked = state["asked"]
            tags, weights = ballots.tags[:, 0, :asked], ballots.confidence[:, 0, :asked]
            wave = adaptive.next_wave(tags, weights, _sizes(ctx), stopping)
            if wave.more:
                return {"asked": asked + wave.more}
            # What an earlier attempt drew beyond, before a failure was mended, is kept: it is there for nothing.
            stored = ctx.store.samples(state["record_id"])
            if (kept := 1 + max((i for i in stored if i < ctx.settings.samples), default=-1)) > asked:
                return {"asked": kept}
            ctx.store.put_stop(state["record_id"], asked if wave.reason else None, wave.reason)
        votes = decide.count(ballots, ctx.taxonomy, ctx.settings.vote)
        return {"tallies": decide.tallies_of(votes, ctx.taxonomy, books=ballots.books)[0]}

    def calibrate(state: ProfileState, _: RunnableConfig) -> dict[str, Any]:
        ctx = current()
        asked = [state["asked"]]
        [tallies] = decide.calibrate([state["tallies"]], ctx.calibrator, ctx.settings.samples, asked)
        return {
            "tallies": tallies,
            "calibrator": ctx.calibrator.label if ctx.calibrator else UNCALIBRATED,
        }

    def abstain(state: ProfileState, _: RunnableConfig) -> dict[str, Any]:
        ctx = current()
        record = ctx.store.record(state["record_id"])
        tallies = state["tallies"]
        found = ctx.store.evidence(decide.wanted_evidence(state["record_id"], tallies))
        evidence = dict(zip(tallies, found, strict=True))
        attributes = decide.abstain(record, tallies, evidence, ctx.taxonomy, ctx.settings)
        return {"attributes": {name: value.model_dump(mode="json") for name, value in attributes.items()}}

    def profile_of(state: ProfileState, ctx: ProfilingContext) -> Profile:
        profile = Profile(
            user_id=ctx.store.record(state["record_id"]).user_id,
            attributes={name: AttributeProfile(**value) for name, value in state["attributes"].items()},
            calibrator=state["calibrator"],
            run_id=ctx.run_id,
        )
        return apply_reviews(profile, reviewed(ctx.store, [state["record_id"]]).get(state["record_id"], {}))

    def needs_review(state: ProfileState, _: RunnableConfig) -> Literal["review", "finalize"]:
        waiting = any(value["status"] == Status.NEEDS_REVIEW for value in state["attributes"].values())
        return "review" if waiting else "finalize"

    def review(state: ProfileState, config: RunnableConfig) -> dict[str, Any]:
        """One question for the whole record; without a checkpointer nobody could answer it, so it is queued."""
        ctx = current()
        record_id = state["record_id"]
        record = ctx.store.record(record_id)
        profile = profile_of(state, ctx)
        wanted = {name: v for name, v in profile.attributes.items() if v.status is Status.NEEDS_REVIEW}
        if not wanted:
            return {}
        # Queueing twice is harmless, and LangGraph runs this node again from the top when it is answered.
        queue_reviews(ctx.store, record_id, wanted)
        if config["configurable"].get(_CHECKPOINTER) is None:
            return {}
        schema = response_schema(ctx.taxonomy, {name: value.voted for name, value in wanted.items()})
        response = interrupt(
            question(record.user_id, ctx.run_id, wanted, record.cues), response_schema=schema
        )
        answers = {name: (answer.tag, answer.note) for name, answer in response.answers.items()}
        answer_reviews(ctx.store, record_id, answers, response.reviewer)
        return {}

    def finalize(state: ProfileState, _: RunnableConfig) -> dict[str, Any]:
        ctx = current()
        profile = profile_of(state, ctx)
        ctx.store.put_profile(
            state["record_id"], decide.vote_rows(state["tallies"], ctx.settings.vote), profile
        )
        return {"profile": profile.to_json()}

    graph = StateGraph(
        ProfileState, context_schema=ProfilingContext, input_schema=ProfileInput, output_schema=ProfileOutput
    )
    graph.add_node("assemble_cues", Waiting(assemble))
    if fanout == "send":
        graph.add_node(
            "sample",
            Waiting(sample_one),
            input_schema=SampleBranch,
            retry_policy=RetryPolicy(max_attempts=3, retry_on=_worth_retrying),
            error_handler=cast(Any, sample_failed),  # its declared type does not know NodeError
        )
        graph.add_conditional_edges("assemble_cues", Step(branches), ["sample"])
    else:
        graph.add_node("sample", Waiting(sample))
        graph.add_edge("assemble_cues", "sample")
    graph.add_node("vote", Step(vote))
    graph.add_node("calibrate", Step(calibrate))
    graph.add_node("abstain", Step(abstain))
    graph.add_node("review", Step(review))
    graph.add_node("finalize", Step(finalize))
    graph.add_edge(START, "assemble_cues")
    graph.add_edge("sample", "vote")
    graph.add_conditional_edges("vote", Step(settled), ["sample", "calibrate"])
    graph.add_edge("calibrate", "abstain")
    graph.add_conditional_edges("abstain", Step(needs_review), ["review", "finalize"])
    graph.add_edge("review", "finalize")
    graph.add_edge("finalize", END)
    return graph


def compile_graph(
    context: ProfilingContext | None = None, *, fanout: Fanout = "send", checkpointer: Checkpointer = None
) -> CompiledStateGraph[ProfileState, ProfilingContext, ProfileInput, ProfileOutput]:
    """`build_graph`, compiled. Without a checkpointer it inherits its parent's when it is embedded."""
    return build_graph(context, fanout=fanout).compile(checkpointer=checkpointer, name="profile_user")


def _undrawn(state: ProfileState) -> list[int]:
    """The samples that were asked for and have not landed yet."""
    drawn = set(state.get("drawn") or ())
    return [index for index in range(state["asked"]) if index not in drawn]


def _sizes(ctx: ProfilingContext) -> list[int]:
    """How many tags each attribute has, NA among them."""
    return [n_tags(attribute, ctx.settings.samples) for attribute in ctx.taxonomy.attributes]


def _worth_retrying(error: Exception) -> bool:
    return isinstance(error, BackendError) and error.is_retryable
