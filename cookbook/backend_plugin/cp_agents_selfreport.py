"""`selfreport` or `selfreport:CONFIDENCE`: believes what users say of themselves. The baseline of wishful thinking."""

from collections.abc import AsyncIterator

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.registry import BackendOptions
from cp_agents.cues import cue_lines
from cp_agents.errors import InputError
from cp_agents.prompts.render import fenced_block
from cp_agents.schema import NA, SELF_REPORTED, Completion
from cp_agents.taxonomy import Taxonomy
from cp_agents.wire import WireAnswer, write_answer


class SelfReportBackend:
    def __init__(self, taxonomy: Taxonomy, confidence: int = 3) -> None:
        self._taxonomy = taxonomy
        self._confidence = confidence
        # All that determines an answer belongs into the identity: stored answers are found again by it.
        self.identity = Identity("selfreport", taxonomy.name, revision=f"{taxonomy.hash}-{confidence}")
        self.capabilities = Capabilities(n=True, seed=True, retries=True)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        lines = [line for line in cue_lines(fenced_block(request.messages)) if line.source == SELF_REPORTED]
        answers = []
        for attribute in self._taxonomy.attributes:
            said = {line.text: self._tag(attribute.name, line.text) for line in lines}
            evidence, tag = next(((text, tag) for text, tag in said.items() if tag), ("", NA))
            answers.append(WireAnswer(attribute.name, tag, self._confidence, evidence))
        for index in request.indices:  # exactly one completion for each
            yield Completion(index=index, text=write_answer(answers), finish_reason="stop")

    async def aclose(self) -> None:
        pass

    def _tag(self, attribute: str, line: str) -> str | None:
        field, _, value = line.partition(": ")
        return self._taxonomy.reported_tags({field: value}).get(attribute)


def from_spec(rest: str, options: BackendOptions) -> SelfReportBackend:
    if rest not in ("", "1", "2", "3", "4", "5"):
        raise InputError(f"selfreport takes a confidence of 1 to 5, as in selfreport:4, found {rest!r}")
    return SelfReportBackend(options.taxonomy, int(rest or 3))
