"""A run by files: requests out, results in, and whoever likes answers them, such as `vllm run-batch`."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from cp_agents.backends.base import Identity, SampleRequest
from cp_agents.backends.batch_api import ChatLines, read_line
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.batch_requests import Landed, check_all_at_once, enter_records, missing_samples, request_lines
from cp_agents.errors import InputError
from cp_agents.files import whole_file
from cp_agents.graph import ProfilingContext
from cp_agents.prices import PriceList, prices_for
from cp_agents.prompts.render import load_prompt
from cp_agents.relabel import stored_run
from cp_agents.runner import BatchReport, label_run, statuses
from cp_agents.schema import Completion
from cp_agents.stores import batches
from cp_agents.stores.traces import TraceStore

KIND = "batch"
_LINES_LOOKED_AT = 1000


class FileBackend(OpenAIBackend):
    """The model that answers a file of requests. It names the run and cannot be asked.

    `n` says whether whoever answers draws several samples a request, as vLLM does: then a record is one request.
    """

    kind = KIND

    def __init__(self, model: str, *, n: bool = False) -> None:
        super().__init__(model, base_url="http://nobody.invalid/v1", n="yes" if n else "no")
        self._identity = Identity(KIND, model)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        """Raises `InputError`."""
        raise InputError(
            f"nobody answers for {self.identity.sampler}: see `write_requests` and `read_results`"
        )
        yield  # what makes it an iterator


class Written(NamedTuple):
    """What `write_requests` did."""

    requests: int
    records: int
    """Of which samples were missing."""
    failed: dict[str, str]
    """Records that could not be read: user id and why."""


def write_requests(
    ctx: ProfilingContext, records: Iterable[Mapping[str, Any]], path: str | Path, *, language: str = "en"
) -> Written:
    """Write a request line for all samples that the run has not got, and note in the store what they ask for.

    `language` is that of the prompt of `ctx`. No file is written where nothing is missing. Raises `InputError`
    where the file cannot be written, or where the backend of `ctx` is no `FileBackend`.
    """
    backend = ctx.backend
    if not isinstance(backend, FileBackend):
        raise InputError(
            f"{backend.identity.sampler} answers by itself: requests are written for a FileBackend"
        )
    check_all_at_once(ctx)
    entered = enter_records(ctx, records)
    missing = missing_samples(ctx, entered.ids, {})
    lines = request_lines(ctx, ChatLines(backend, None), missing, n=backend.capabilities.n is True)
    first = list(islice(lines, 1))
    if not first:
        return Written(0, 0, entered.failed)
    requests = []
    with whole_file(path) as file:
        for request, line in chain(first, lines):
            file.write(line.decode())
            requests.append(request)
        known = batches.written_requests(ctx.store, ctx.run_id)
        new = [request for request in requests if request.custom_id not in known]
        if new:  # noted before the file appears: there is none that the store does not know
            key = secrets.token_hex(8)
            batches.put_batch(ctx.store, ctx.run_id, key, new, status=batches.WRITTEN, language=language)
    return Written(len(requests), len({request.record_id for request in requests}), entered.failed)


def read_results(
    store: TraceStore, paths: Sequence[str | Path], *, price_list: PriceList | None = None
) -> tuple[BatchReport, int]:
    """Land the results of a written run in any order, decide it, and say how many lines answered nothing.

    A request without a line in any of the files is stored as a typed failure, which a later file mends. Raises
    `InputError` for files that answer nothing of this store, or a run whose prompt is not the same any more, and
    `BackendError` for a failure that every other request would share, such as an unknown model.
    """
    files = [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            raise InputError(f"no file at {file}")
    ids = islice(chain.from_iterable(map(_custom_ids, files)), _LINES_LOOKED_AT)
    if (found := batches.written_run(store, ids)) is None:
        raise InputError(
            f"{files[0]}: no line answers a request that was written from the store {store.path}"
        )
    ctx = _context(store, found["run_id"], found["language"])
    assert isinstance(ctx.backend, FileBackend)
    prices = prices_for(ctx.backend.identity.sampler, None, price_list, batch=True)
    landed = Landed(ctx, ChatLines(ctx.backend, prices), batches.written_requests(store, ctx.run_id))
    for file in files:
        landed.file(file)
    if landed.fatal is not None:
        raise landed.fatal
    landed.missing("completed")
    report = BatchReport(run_id=ctx.run_id, meter=ctx.meter)
    report.calibrator = label_run(ctx, "fit")
    report.statuses = statuses(store, ctx.run_id)
    [(report.done,)] = store.rows(
        "select count(*) from profiles p join records r using (record_id) where r.run_id = ?", (ctx.run_id,)
    )
    return report, landed.strange


def _context(store: TraceStore, run_id: str, language: str) -> ProfilingContext:
    """The context that the requests of a stored run were written with."""
    row = store.run(run_id)
    _, taxonomy, settings = stored_run(store, run_id)
    prompt = load_prompt(taxonomy, language)
    if prompt.version != row["prompt_version"]:
        raise InputError(
            f"run {run_id} was written with prompt {row['prompt_version']}, and {language} is now"
            f" {prompt.version}: the answers are to other questions; write the requests again"
        )
    return ProfilingContext(FileBackend(row["model"]), store, taxonomy, prompt, run_id, settings)


def _custom_ids(path: Path) -> Iterator[str]:
    with path.open("rb") as rows:
        for raw in rows:
            if (line := read_line(raw)) is not None:
                yield line.custom_id
