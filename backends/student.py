"""`student:NAME[@ID]`: a registered student, served by transformers or vLLM and asked as it was trained.

    student:s1                                  the one that serves under the name, by transformers
    student:s1@0f3a...?serve=vllm               that very model, by vLLM in process
    student:s1?base_url=http://127.0.0.1:8000   by a running vLLM server; --base-url does the same
    student:s1?max_rows=32                      further options are those of the backend that serves it

A student has its taxonomy and its prompt by heart: it is refused where a run has others, at once and again with
every request, so that nobody can ask it otherwise by a graph of their own. Nothing is loaded before the first sample.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cp_agents.backends.base import Backend, Capabilities, Identity, SampleRequest
from cp_agents.backends.ensemble import EnsembleBackend
from cp_agents.backends.registry import resolve_backend
from cp_agents.backends.vllm_options import split_options
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.prompts.render import Prompt, fenced_block, load_prompt
from cp_agents.schema import Completion
from cp_agents.stores.students import calibrator_of, student
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

if TYPE_CHECKING:
    from cp_agents.backends.registry import BackendOptions
    from cp_agents.calibration import Calibrator
    from cp_agents.confidence import ConfidenceSource
    from cp_agents.stores.students import Student
    from cp_agents.voting import VoteMethod

SERVING = ("transformers", "vllm", "vllm-server")


class StudentBackend:
    """Draws samples from `student`, whose files are served by `inner`; `calibrator` was registered with it."""

    def __init__(self, student: Student, inner: Backend, calibrator: Calibrator | None = None) -> None:
        self.student = student
        self._calibrator = calibrator
        self.inner = inner
        """What serves it."""
        self._prompt = student.prompt
        served = inner.identity
        self._identity = Identity("student", student.label, served.endpoint, served.revision)

    def __repr__(self) -> str:
        return f"StudentBackend({self.student.label!r}, {self.inner!r})"

    @property
    def identity(self) -> Identity:
        """NAME@ID, which covers base, weights, prompt and taxonomy; endpoint and revision are of what serves it."""
        return self._identity

    @property
    def capabilities(self) -> Capabilities:
        """Those of the backend that serves."""
        return self.inner.capabilities

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """One completion per index. Raises `BackendError`, which ends the run, for a prompt that is not its own."""
        if not self._is_own(request):
            # Every other request of the run would be the same mistake, so its kind is one that ends the run.
            raise BackendError(
                f"student {self.student.label} is asked with another prompt than it was trained on"
                f" ({self.student.language}, version {self.student.prompt_version})",
                ErrorType.NOT_FOUND,
            )
        async for completion in self.inner.sample(request):
            yield completion.model_copy(update={"sampler": self._identity.sampler})

    def calibrator_for(self, vote: VoteMethod, confidence: ConfidenceSource = "verbal") -> Calibrator | None:
        """The calibrator that was registered with it, if it speaks of this vote by this confidence."""
        own = self._calibrator
        return own if own is not None and (own.vote_method, own.confidence) == (vote, confidence) else None

    def _is_own(self, request: SampleRequest) -> bool:
        try:
            return self._prompt.messages(fenced_block(request.messages)) == request.messages
        except InputError:
            return False

    async def aclose(self) -> None:
        """Free the model."""
        await self.inner.aclose()


def students_in(backend: Backend) -> Iterator[StudentBackend]:
    """The students that may be asked: the backend itself, or members of an ensemble."""
    if isinstance(backend, StudentBackend):
        yield backend
    elif isinstance(backend, EnsembleBackend):
        for member in backend.members:
            yield from students_in(member)


def prompt_for(backend: Backend, taxonomy: Taxonomy, language: str | None) -> Prompt:
    """The prompt in `language`; by default the students' own where there are any, else English.

    Raises `InputError` for a student that was trained on another prompt.
    """
    asked = list(students_in(backend))
    default = asked[0].student.language if asked else "en"
    prompt = load_prompt(taxonomy, default if language is None else language)
    for one in asked:
        known = one.student
        if known.prompt_version != prompt.version:
            hint = (
                "leave --language out" if language is not None else "students of one run need the same prompt"
            )
            raise InputError(
                f"student {known.label} was trained on prompt {known.language} ({known.prompt_version}) and is asked"
                f" with {prompt.language} ({prompt.version}): {hint}"
            )
    return prompt


def language_of(spec: str, store: str | Path) -> str:
    """The prompt language that a run on the backend `spec` has by default; no backend is made."""
    kind, _, rest = spec.partition(":")
    if kind != "student":
        return "en"
    with TraceStore(store, must_exist=True) as opened:
        return student(opened, split_options(rest)[0]).language


def from_spec(rest: str, options: BackendOptions) -> StudentBackend:
    """`student:NAME[@ID][?serve=vllm&...]`; `options.extra` may hold `serve` and the serving backend's options too.

    With a URL it is served by the vLLM server there: under its own name if it has one, else an adapter is loaded.
    Raises `InputError` where the store has no such student, where its files are not those that were registered, and
    where the run has another taxonomy than it was trained on. Every byte of the weights is read to make sure.
    """
    name, own = split_options(rest)
    extra: dict[str, Any] = {**options.extra, **own}
    url = extra.pop("base_url", None) or options.base_url
    serve = extra.pop("serve", SERVING[2] if url else SERVING[0])
    if serve not in SERVING:
        raise InputError(f"serve should be {', '.join(SERVING[:-1])} or {SERVING[-1]}, found {serve!r}")
    if (serve == SERVING[2]) is not bool(url):
        raise InputError(f"student:{name} takes a URL where a vLLM server serves it, and only there")
    if not name:
        raise InputError("the student backend needs a name, as in student:NAME or student:NAME@ID")
    if options.store is None:
        raise InputError(f"student:{name} is looked up in a store, and there is none: name the store")
    if isinstance(options.store, TraceStore):
        found, calibrator = _look_up(options.store, name)
    else:
        with TraceStore(options.store, must_exist=True) as store:
            found, calibrator = _look_up(store, name)
    if found.taxonomy_hash != options.taxonomy.hash:
        raise InputError(
            f"student {found.label} was trained on taxonomy {found.taxonomy.name} ({found.taxonomy_hash}) and is asked"
            f" about {options.taxonomy.name} ({options.taxonomy.hash})"
        )
    found.check_files()
    derived = options.derived(extra=extra)
    if url:
        return StudentBackend(found, _on_server(str(url), found, derived), calibrator)
    return StudentBackend(found, resolve_backend(f"{serve}:{found.model}", derived), calibrator)


def _on_server(url: str, student: Student, options: BackendOptions) -> Backend:
    """What a running vLLM server has of the student. Raises `InputError` where it has nothing of it."""
    from cp_agents.backends.vllm_server import VllmServer, backend_on

    server = VllmServer(url)
    server.wait_until_ready()
    served = server.models()
    for one in served:
        if one.name == student.label or (one.root and Path(one.root) == student.path):
            return backend_on(url, options, model=one.name)
    if student.kind == "adapter":
        # Its folder has to lie under the same path there, and the server to have been started with --enable-lora.
        return backend_on(url, options, adapter=str(student.path))
    names = ", ".join(one.name for one in served) or "nothing"
    raise InputError(
        f"the vLLM server at {server.url} serves {names}, and not student {student.label}: start it with"
        f" `vllm serve {student.path} --served-model-name {student.label}`"
    )


def _look_up(store: TraceStore, name: str) -> tuple[Student, Calibrator | None]:
    found = student(store, name)
    return found, calibrator_of(store, found)
