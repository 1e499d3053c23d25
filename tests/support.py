"""Small helpers that several tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.errors import BackendError
from cp_agents.schema import Completion
from cp_agents.taxonomy import Attribute, Tag, Taxonomy
from cp_agents.wire import WireAnswer, write_answer

PETS = Taxonomy(
    name="pets",
    attributes=[
        Attribute(
            name="pet", self_reported=["pet"], tags=[Tag(name="Cat"), Tag(name="Dog"), Tag(name="Fish")]
        ),
        Attribute(name="home", tags=[Tag(name="Flat"), Tag(name="House")]),
    ],
)
RECORD = {
    "user_id": "u1",
    "posted": ["my cat sleeps all day", "the flat is small"],
    "self_reported": {"pet": "dog"},
}


def answer(
    pet: str = "Cat", home: str = "Flat", confidence: int = 4, evidence: str = "my cat sleeps all day"
) -> str:
    """An answer about RECORD in the wire format."""
    flat = "the flat is small"
    return write_answer(
        [WireAnswer("pet", pet, confidence, evidence), WireAnswer("home", home, confidence, flat)]
    )


class ScriptedBackend:
    """Answers from a function of the sample index: a text, a whole completion, or an exception to raise.

    Used where a test is about what happens after the backend; the real backends have tests of their own.
    """

    def __init__(
        self, script: Callable[[int], str | Completion | Exception], *, retries: bool = True, n: bool = True
    ) -> None:
        self.script = script
        self.calls: list[tuple[str, int]] = []
        self.revision = "1"
        self.closed = False
        self._capabilities = Capabilities(n=n, seed=True, retries=retries)

    @property
    def identity(self) -> Identity:
        return Identity(kind="scripted", model="m", revision=self.revision)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        for index in request.indices:
            await asyncio.sleep(0)
            self.calls.append((request.record_key, index))
            said = self.script(index)
            if isinstance(said, Completion):
                yield said.model_copy(update={"index": index})
            elif isinstance(said, BackendError) and not said.error_type.is_fatal:
                yield Completion(index=index, error_type=said.error_type, error_message=str(said))
            elif isinstance(said, Exception):
                raise said
            else:
                yield Completion(index=index, text=said, finish_reason="stop")

    async def aclose(self) -> None:
        self.closed = True
