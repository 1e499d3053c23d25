"""`replay:PATH`: recorded answers instead of a model.

PATH is a trace store (its newest run, or `PATH#RUN`), or a JSONL with one line a user:
`{"user_id", "samples": [{"text", "finish_reason", "sampler", "probabilities"}, ...], "usage"}`; a sample names its
sampler where several models were recorded, and what the model gave its tags (`{attribute: [tag, p]}`) where that is
known. What was not recorded is a typed failure, never a made-up answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.backends.registry import BackendOptions
from cp_agents.errors import ErrorType, InputError
from cp_agents.files import parse_line, raw_lines
from cp_agents.schema import Completion, TagProbability, Usage, read_user_id

Recording = dict[str, dict[int, Completion]]

_MOST_TOKENS = 10**12
"""More is no count; it also fits the store's integers."""


class ReplayBackend:
    """Answers from a recording, by user id and sample index."""

    def __init__(self, path: str | Path, run_id: str | None = None) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise InputError(f"no recording at {path}: expected a trace store or a JSONL of recorded answers")
        try:
            with self._path.open("rb") as file:
                is_store = file.read(16).startswith(b"SQLite format 3")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if is_store:
            self._recording, revision = _from_store(self._path, run_id)
        else:
            self._recording, revision = _from_jsonl(self._path)
        self._scored = any(c.probabilities for of in self._recording.values() for c in of.values())
        self._identity = Identity(kind="replay", model=self._path.name, revision=revision)

    @property
    def identity(self) -> Identity:
        """The recording and its hash."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """Everything at once, always the same; probabilities where the recorded run had them."""
        return Capabilities(n=True, seed=True, retries=True, by_record=True, logprobs=self._scored)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """The recorded answers for `request.record_key`."""
        recorded = self._recording.get(request.record_key, {})
        for index in request.indices:
            if index in recorded:
                yield recorded[index]
            else:
                yield Completion(
                    index=index,
                    sampler=self._identity.sampler,
                    error_type=ErrorType.NOT_RECORDED,
                    error_message=f"{self._path.name} has no sample {index} of this user",
                )

    async def aclose(self) -> None:
        """Nothing to free."""


def _from_store(path: Path, run_id: str | None) -> tuple[Recording, str]:
    from cp_agents.stores.traces import TraceStore, completion_of

    recording: Recording = {}
    with TraceStore(path, must_exist=True) as store:
        run = store.run(run_id)
        rows = store.query(
            "select r.user_id, s.* from samples s join records r using (record_id) where r.run_id = ?",
            [run["run_id"]],
        )
        scored = store.scored_tags("run_id = ?", [run["run_id"]])
        for row in rows:
            # A failed call has no answer to replay.
            if row["error_type"] is None:
                recording.setdefault(row["user_id"], {})[row["sample_index"]] = completion_of(row, scored)
    return recording, f"{run['run_id']}@{run['fingerprint']}"


def _from_jsonl(path: Path) -> tuple[Recording, str]:
    recording: Recording = {}
    digest = hashlib.sha256()
    for number, line in raw_lines(path):
        digest.update(line)
        try:
            row = parse_line(line)
            if not isinstance(row, dict) or not isinstance(row.get("samples"), list):
                raise InputError('expected {"user_id", "samples": [{"text", "finish_reason"}, ...]}')
            user_id = read_user_id(row.get("user_id"))
            if user_id in recording:
                raise InputError(f"user {user_id!r} has a line before it already")
            answers = [_answer(sample, i, f"replay:{path.name}") for i, sample in enumerate(row["samples"])]
            usage = _shared_usage(row.get("usage"), len(answers))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
        recording[user_id] = {
            answer.index: answer.model_copy(update={"usage": used})
            for answer, used in zip(answers, usage, strict=True)
        }
    if not recording:
        raise InputError(f"{path} holds no recorded answers")
    return recording, digest.hexdigest()[:12]


def _answer(sample: object, index: int, unnamed: str) -> Completion:
    number = index + 1
    if not isinstance(sample, dict) or not isinstance(sample.get("text"), str):
        raise InputError(f'sample {number} should be an object with a "text"')
    finish = sample.get("finish_reason")
    if finish is not None and not isinstance(finish, str):
        raise InputError(f'the "finish_reason" of sample {number} should be text')
    sampler = sample.get("sampler")
    if sampler is not None and (not isinstance(sampler, str) or not sampler.strip()):
        raise InputError(f'the "sampler" of sample {number} should be the name of a model')
    given = sample.get("probabilities") or {}
    if not isinstance(given, dict) or not all(map(_is_tag_probability, given.values())):
        raise InputError(
            f'the "probabilities" of sample {number} should be {{attribute: [tag, p]}} with p above 0 and at most 1'
        )
    return Completion(
        index=index,
        text=sample["text"],
        finish_reason=finish,
        sampler=sampler or unnamed,
        probabilities={name: TagProbability(tag, float(p)) for name, (tag, p) in given.items()},
    )


def _is_tag_probability(value: object) -> bool:
    match value:
        case [str(), int() | float() as p] if not isinstance(p, bool):
            return 0 < p <= 1
    return False


def _tokens(total: dict[str, Any], name: str) -> int:
    value = total.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
        raise InputError(f'the usage\'s "{name}" should be a number of tokens')
    return int(value)


def _shared_usage(total: object, n: int) -> list[Usage]:
    """A record's total usage over its samples: the prompt on the first, completion tokens split evenly."""
    if total is None:
        return [Usage() for _ in range(n)]
    if not isinstance(total, dict):
        raise InputError('the "usage" should be an object')
    prompt, completion = _tokens(total, "prompt_tokens"), _tokens(total, "completion_tokens")
    each, rest = divmod(completion, max(n, 1))
    return [
        Usage(prompt_tokens=prompt if i == 0 else 0, completion_tokens=each + (i < rest)) for i in range(n)
    ]


def from_spec(rest: str, options: BackendOptions) -> ReplayBackend:
    """`replay:PATH` or `replay:PATH#RUN`."""
    if not rest:
        raise InputError("replay needs a recording: replay:PATH (a trace store or a JSONL)")
    path, _, run_id = rest.partition("#")
    return ReplayBackend(path, run_id or None)
