"""Continuous batching: which rows run, what becomes of their tokens, and what happens when memory is short.

One worker thread owns the model. Calls of `submit` from any thread put samples in line; before every step, free rows
are given to waiting samples, and the prompts that this needs are read in batches of similar length.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cp_agents.backends.base import SampleRequest
from cp_agents.backends.hf_queue import Call, Draw, Landed, Line, Queue
from cp_agents.backends.tag_logprobs import scored
from cp_agents.errors import BackendError, CpAgentsError, ErrorType
from cp_agents.schema import Completion, Usage

if TYPE_CHECKING:
    from torch import Tensor

    from cp_agents.backends.hf_model import ChatModel

log = logging.getLogger(__name__)

_CLOSED = "the backend was closed"


class Engine:
    """Draws samples from one model. `submit` and `close` may be called from any thread."""

    def __init__(self, load: Callable[[], ChatModel], *, max_rows: int, sampler: str) -> None:
        self._load = load
        self._model: ChatModel | None = None
        self._failed: BackendError | None = None
        self._most_rows = self._max_rows = max_rows
        self._sampler = sampler
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._busy = self._closing = False
        self._submitted: list[Call] = []
        self._queue = Queue()
        self._rows: list[tuple[Line, Draw]] = []
        self._logits: list[Tensor] = []

    def submit(self, request: SampleRequest, landed: Landed) -> Call:
        """Put the samples of `request` in line. `landed` is called in the worker thread: one completion per index,
        or a single error that would meet every other call too."""
        call = Call(request, landed)
        with self._lock:
            self._submitted.append(call)
            if not self._busy:
                self._busy = True
                self._worker = self._worker or ThreadPoolExecutor(
                    1, thread_name_prefix="cp-agents-transformers"
                )
                self._worker.submit(self._run)
        return call

    def close(self) -> None:
        """End what runs as cancelled, wait for the worker and free the model. The next `submit` loads it again."""
        with self._lock:
            worker, self._worker = self._worker, None
            if self._busy:
                self._closing = True
            else:
                self._model = self._failed = None
        if worker is not None:
            worker.shutdown()

    # --- in the worker thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while self._take_calls():
                model = self._model
                if model is None:
                    continue
                out_of_memory = False
                try:
                    self._drop_cancelled(model)
                    self._admit(model)
                    self._advance(model)
                except Exception as error:
                    out_of_memory = is_out_of_memory(error)
                    if not out_of_memory:
                        log.exception("generation failed")
                        self._fail_all(ErrorType.INTERNAL, f"{type(error).__name__}: {error}")
                if out_of_memory:  # outside of the handler, whose traceback holds on to the memory
                    self._retreat(model)

    def _take_calls(self) -> bool:
        """Bring in what was submitted; False when there is nothing left to do."""
        with self._lock:
            calls, self._submitted = self._submitted, []
            closing, self._closing = self._closing, False
            if not (closing or calls or self._queue):
                self._busy = False
                return False
        if closing:
            for call in calls:
                self._fail(call, call.request.indices, ErrorType.CANCELLED, _CLOSED)
            self._fail_all(ErrorType.CANCELLED, _CLOSED)
            self._model = self._failed = None
            return True
        for call in calls:
            if not call.cancelled:
                self._take(call)
        return True

    def _take(self, call: Call) -> None:
        request = call.request
        if self._model is None and self._failed is None:
            try:
                self._model = self._load()
            except CpAgentsError as error:
                self._failed = BackendError(str(error), ErrorType.NOT_FOUND)
            except Exception as error:
                self._failed = BackendError(
                    f"{self._sampler} could not be loaded ({type(error).__name__}: {error})",
                    ErrorType.NOT_FOUND,
                )
        if self._model is None:
            call.land(self._failed or BackendError("no model"))
            return
        try:
            prompt = self._model.encode(request.messages)
        except Exception as error:  # a chat template is a program
            kind = error.error_type if isinstance(error, BackendError) else ErrorType.INTERNAL
            self._fail(call, request.indices, kind, f"the prompt could not be encoded: {error}")
            return
        room = self._model.context - len(prompt.ids)
        if room < 1:
            message = f"the prompt has {len(prompt.ids)} tokens and the model takes {self._model.context}"
            self._fail(call, request.indices, ErrorType.CONTEXT_LENGTH, message)
            return
        self._queue.add(call, prompt, room)

    def _drop_cancelled(self, model: ChatModel) -> None:
        self._queue.drop_cancelled()
        gone = {i for i, (_, draw) in enumerate(self._rows) if draw.call.cancelled}
        if gone:
            self._leave(model, gone)
        self._forget_done(model)

    def _admit(self, model: ChatModel) -> None:
        """Give free rows to waiting samples, the longest waiting first."""
        if self._rows and not model.rows.joinable:
            return
        for line in self._queue:
            if line.read is not None:
                self._join(model, line)
        while lines := self._queue.to_read(self._free(model), len(self._rows)):
            read = model.rows.read([line.prompt.ids for line in lines], lines[0].prompt.shared)
            for line, prompt in zip(lines, read, strict=True):
                line.read = prompt
                self._join(model, line)
            if not model.rows.joinable:
                break

    def _free(self, model: ChatModel) -> int:
        """How many rows can be added: by their number, and by the memory that they may come to need."""
        taken = sum(draw.limit for _, draw in self._rows)
        by_memory = (model.room_tokens - taken) // self._queue.longest_answer()
        return max(0 if self._rows else 1, min(self._max_rows - len(self._rows), by_memory))

    def _join(self, model: ChatModel, line: Line) -> None:
        from cp_agents.backends.hf_sampling import uniforms
        from cp_agents.backends.hf_scores import TagScores

        prompt = line.read
        assert prompt is not None, "only prompts that were read are joined"
        count = min(len(line.waiting), self._free(model))
        for _ in range(count):
            draw = line.waiting.popleft()
            draw.tokens, draw.started = [], time.perf_counter()
            draw.uniforms = uniforms(draw.call.request.seed + draw.index)
            draw.scores = None if draw.call.request.score_tags is None else TagScores(model.piece)
            if draw.bears_prompt:
                cached = prompt.tokens if line.counted else prompt.cached
                draw.usage = Usage(prompt_tokens=prompt.tokens, cached_tokens=cached)
                line.counted = True
            self._rows.append((line, draw))
            self._logits.append(prompt.logits)
        line.running += count
        if count:
            model.rows.add([prompt] * count)

    def _advance(self, model: ChatModel) -> None:
        """Draw a token of every row, part with those that are complete, and step the others."""
        import torch

        from cp_agents.backends.hf_sampling import next_uniforms, pick
        from cp_agents.backends.hf_scores import score

        if not self._rows:
            return
        draws = [draw for _, draw in self._rows]
        requests = [draw.call.request for draw in draws]
        logits = torch.stack(self._logits)
        tokens = pick(
            logits,
            [request.temperature for request in requests],
            [request.top_p for request in requests],
            next_uniforms([draw.uniforms for draw in draws if draw.uniforms is not None]),
        )
        score([draw.scores for draw in draws], logits, tokens)
        done = set()
        for i, (token, (line, draw)) in enumerate(zip(tokens, self._rows, strict=True)):
            draw.tokens.append(token)
            if self._complete(model, line, draw):
                done.add(i)
        if done:
            self._leave(model, done)
            tokens = [draw.tokens[-1] for _, draw in self._rows]
        if self._rows:
            self._logits = list(model.rows.step(tokens))
        self._forget_done(model)

    def _complete(self, model: ChatModel, line: Line, draw: Draw) -> bool:
        """Land the sample if its newest token has ended it."""
        reason = "stop"
        if draw.tokens[-1] in model.ends:
            text = model.text(draw.tokens[:-1])
        elif (stopped := model.stop(draw.tokens, thinking=line.prompt.thinking)) is not None:
            text = stopped
        elif len(draw.tokens) >= draw.limit:
            text, reason = model.text(draw.tokens), "length"
        else:
            return False
        completion = Completion(
            index=draw.index,
            text=("<think>" if line.prompt.thinking else "") + text,
            finish_reason=reason,
            usage=draw.usage.model_copy(update={"completion_tokens": len(draw.tokens)}),
            latency_s=time.perf_counter() - draw.started,
            sampler=self._sampler,
        )
        taxonomy = draw.call.request.score_tags
        if draw.scores is not None and taxonomy is not None:
            completion = scored(completion, draw.scores.tokens, taxonomy)
        draw.land(completion)
        return True

    def _leave(self, model: ChatModel, gone: set[int]) -> None:
        """Part with some rows. The last ones move into their places, so that few have to be copied."""
        order = closed_up(len(self._rows), gone)
        for i in gone:
            self._rows[i][0].running -= 1
        self._rows = [self._rows[i] for i in order]
        self._logits = [self._logits[i] for i in order]
        model.rows.keep(order)

    def _forget_done(self, model: ChatModel) -> None:
        self._queue.forget_done()
        if not (model.rows.joinable or self._rows):
            for line in self._queue:
                line.read = None

    def _retreat(self, model: ChatModel) -> None:
        """Memory is short: start again what ran, with half as many rows; a sample alone that does not fit fails."""
        import torch

        alone = self._max_rows == 1
        self._max_rows = max(1, min(self._max_rows, len(self._rows) or self._max_rows) // 2)
        for line, draw in reversed(self._rows):
            line.waiting.appendleft(draw)
        for line in self._queue:
            line.running, line.read, line.counted = 0, None, False
        self._rows, self._logits = [], []
        model.rows.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not alone:
            log.warning("%s: out of memory; going on with %d rows", self._sampler, self._max_rows)
            return
        message = "out of memory with a single sample; use a smaller model or a shorter prompt"
        for draw in self._queue.give_up_first():
            draw.land(self._failure(draw.index, ErrorType.INTERNAL, message))
        self._max_rows = self._most_rows

    def _fail_all(self, kind: ErrorType, message: str) -> None:
        for draw in [*self._queue.clear(), *(draw for _, draw in self._rows)]:
            draw.land(self._failure(draw.index, kind, message))
        self._rows, self._logits = [], []
        if self._model is not None:
            self._model.rows.clear()

    def _fail(self, call: Call, indices: Sequence[int], kind: ErrorType, message: str) -> None:
        for index in indices:
            call.land(self._failure(index, kind, message))

    def _failure(self, index: int, kind: ErrorType, message: str) -> Completion:
        return Completion(index=index, sampler=self._sampler, error_type=kind, error_message=message)


def closed_up(count: int, gone: set[int]) -> list[int]:
    """Which of `count` rows stands where once those in `gone` have left: the last rows fill the gaps."""
    kept = count - len(gone)
    movers = iter(i for i in range(kept, count) if i not in gone)
    return [next(movers) if i in gone else i for i in range(kept)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on whichever device."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
