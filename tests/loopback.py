"""A real HTTP server on 127.0.0.1 that speaks the chat completions API, for tests and benchmarks.

It answers deterministically in (messages, seed, choice): choice j of a request with seed s is the answer of a
single request with seed s + j, so that runs with n honoured and ignored give the same profiles. Injected failures
are drawn from (request body, attempt number), so that runs repeat. Three ways to run it:

    async with LoopbackServer(LoopbackConfig()) as server: ...       # in this event loop
    with running_server(LoopbackConfig()) as server: ...             # on a thread with a loop of its own
    with server_process("--latency", "0.05", "--no-n") as url: ...   # in a process of its own (benchmarks, kill -9)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web

if __name__ == "__main__":  # run as a file: the checkout root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cp_agents.schema import NA
from cp_agents.taxonomy import Taxonomy, load_taxonomy
from cp_agents.wire import WireAnswer, write_answer

GARBAGE = "I would say that this user likes tea, on balance."
MALFORMED = (
    b"<html>upstream is warming up</html>",
    b'{"object": "chat.completion"',
    b'{"detail": "later"}',
    b"[]",
)

Body = dict[str, Any]


@dataclass
class Reply:
    """A scripted reply: `body` is sent as JSON unless it is bytes; `hang` never answers."""

    body: Body | bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang: bool = False
    hang_up: bool = False
    """Close the connection without an answer."""


Script = Callable[[Body, int], "Reply | None"]
"""(request body, attempt number from 1) -> a reply, or None for the usual one."""


@dataclass
class LoopbackConfig:
    """What the endpoint is like. Probabilities of whole requests: `p_429` ... `p_hang`; of samples: the others."""

    honour_n: bool = True
    latency_s: float = 0.0
    p_429: float = 0.0
    p_500: float = 0.0
    p_malformed: float = 0.0
    """200 with a body that is no JSON or no chat completion."""
    p_hang: float = 0.0
    retry_after_s: float | None = 0.05
    seed: int = 0
    p_garbage: float = 0.0
    """An answer text that answers nothing."""
    p_length: float = 0.0
    """An answer cut by max_tokens, finish_reason "length"."""
    p_refusal: float = 0.0
    reasoning: bool = False
    """Whether messages carry reasoning_content."""
    usage: bool = True
    logprobs: bool = True
    """Whether answers come with log-probabilities where these are asked for; if not, they are ignored."""
    unsupported: tuple[str, ...] = ()
    """Parameters that are answered with a 400 as reasoning endpoints do."""
    api_key: str | None = None
    """Any other key is answered with a 401 that quotes it."""
    model: str | None = None
    """Any other model is answered with a 404."""
    taxonomy: str = "profilebench"
    script: Script | None = None
    keep_bodies: bool = True
    """Whether the server remembers what it was sent, for tests to look at."""
    canned: bool = False
    """One constant body for everything, as fast as it goes."""


@dataclass
class LoggedRequest:
    """One request, in order of arrival. `finished` is set when the reply has been sent completely."""

    id: int
    body: str
    """Hash of the body."""
    block: str
    """`block_key` of the record in the prompt."""
    n: int
    seed: int | None
    attempt: int
    received: float
    finished: float | None = None
    status: int | None = None


def cue_block(messages: list[dict[str, Any]]) -> str:
    """What stands in the fence of the last user message; the whole message where there is no fence."""
    text = next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    fence = re.search(r"^<record>\n(.*)\n</record>$", text, re.DOTALL | re.MULTILINE)
    return fence.group(1) if fence else text


def block_key(block: str) -> str:
    """How the log names a cue block."""
    return hashlib.sha256(block.encode()).hexdigest()[:16]


class Answers:
    """Answer texts: per attribute a preferred tag, named by 80 % of the samples, with a quotation of a real cue."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._known: dict[tuple[str, int], str] = {}

    def __call__(self, block: str, sample_seed: int) -> str:
        key = (block, sample_seed)
        if key not in self._known:
            if len(self._known) > 100_000:
                self._known.clear()
            self._known[key] = self._answer(block, sample_seed)
        return self._known[key]

    def probability(self, block: str, attribute: str, tag: str) -> float:
        """What the pretended model gives a tag of a record, between 0.05 and 0.95."""
        return 0.05 + 0.9 * _unit("probability", block, attribute, tag)

    def tokens(self, block: str, text: str, top: int) -> list[Body]:
        """An answer's tokens as the API gives them: a tag is one token, and the next tag its only alternative."""
        tokens: list[Body] = []
        for piece in re.findall(r"</?\w+>|[^<]+|<", text):
            alternatives = {piece: 1.0}
            before = "".join(token["token"] for token in tokens[-2:])
            opened = re.fullmatch(r"<(\w+)><tag>", before)
            if opened is not None and (attribute := self._taxonomy[opened[1]]).match_tag(piece) is not None:
                names = attribute.names
                other = names[(names.index(piece) + 1) % len(names)]
                p = self.probability(block, attribute.name, piece)
                alternatives = {piece: p, other: 1 - p}
            likely = [{"token": t, "logprob": math.log(p)} for t, p in alternatives.items()]
            tokens.append(likely[0] | {"bytes": None, "top_logprobs": likely[:top]})
        return tokens

    def _answer(self, block: str, sample_seed: int) -> str:
        attributes = self._taxonomy.attributes
        quotes = quotable(block)
        fixed = _stream(4 * len(attributes), "block", block)
        drawn = _stream(16 * len(attributes), "sample", block, str(sample_seed))
        answers = []
        for k, attribute in enumerate(attributes):
            preferred = int.from_bytes(fixed[4 * k : 4 * k + 4]) % len(attribute.names)
            agree, other, level, line = (
                int.from_bytes(drawn[16 * k + i : 16 * k + i + 4]) for i in (0, 4, 8, 12)
            )
            agrees = agree % 10 < 8
            tag = attribute.names[preferred if agrees else other % len(attribute.names)]
            confidence = 3 + level % 3 if agrees else 1 + level % 3
            evidence = "" if tag == NA or not quotes else quotes[line % len(quotes)]
            answers.append(WireAnswer(attribute.name, tag, confidence, evidence))
        return write_answer(answers)


@lru_cache
def _answers(taxonomy: str) -> Answers:
    return Answers(load_taxonomy(taxonomy))


@lru_cache(maxsize=1024)
def quotable(block: str) -> list[str]:
    """The items of a cue block without their time, count and weight."""
    items = [line[2:] for line in block.splitlines() if line.startswith("- ")]
    return [re.sub(r"^\[[^\]]*\] |(?: \([x\d., ]+\))$", "", item) for item in items]


def _stream(size: int, *parts: str) -> bytes:
    return hashlib.shake_128("\x1f".join(parts).encode()).digest(size)


def _unit(*parts: str) -> float:
    return int.from_bytes(_stream(6, *parts)) / 2**48


def error_body(message: str, code: str | None = None, param: str | None = None) -> Body:
    """The error shape of the API."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def completion_body(
    texts: list[str],
    *,
    finish: str | list[str] = "stop",
    usage: Body | None = None,
    model: str = "loopback",
    **message: Any,
) -> Body:
    """A chat completion with one choice per text; `message` holds further fields of every message."""
    finishes = [finish] * len(texts) if isinstance(finish, str) else finish
    choices = [
        {
            "index": j,
            "message": {"role": "assistant", "content": text, **message},
            "finish_reason": finishes[j],
        }
        for j, text in enumerate(texts)
    ]
    body: Body = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": choices,
    }
    return body | ({"usage": usage} if usage is not None else {})


class LoopbackServer:
    """The server. `requests` logs every request; with `log_path` also as JSON lines, received and finished."""

    def __init__(
        self, config: LoopbackConfig | None = None, *, port: int = 0, log_path: str | None = None
    ) -> None:
        self.config = config or LoopbackConfig()
        self.requests: list[LoggedRequest] = []
        self.bodies: list[Body] = []
        """The parsed body of every logged request."""
        self.headers: list[dict[str, str]] = []
        self._port = port
        self._log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if log_path else None
        self._attempts: Counter[str] = Counter()
        self._answers = _answers(self.config.taxonomy)
        self._canned = json.dumps(completion_body([self._answers("", 0)], usage=_usage(1000, 200))).encode()
        self._canned_n: dict[int, bytes] = {}
        self._closing: asyncio.Event | None = None
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """The base URL to give to a client."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def open_requests(self) -> int:
        """Requests received and not answered (yet)."""
        return sum(r.finished is None for r in self.requests)

    async def __aenter__(self) -> LoopbackServer:
        self._closing = asyncio.Event()
        handler = self._handle_canned if self.config.canned else self._handle
        self._runner = web.ServerRunner(
            web.Server(handler, handler_cancellation=True, access_log=None), shutdown_timeout=0.2
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=2048)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._closing is not None
        assert self._runner is not None
        self._closing.set()
        await self._runner.cleanup()
        if self._log is not None:
            os.close(self._log)

    async def _handle_canned(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        if self.config.latency_s:
            await asyncio.sleep(self.config.latency_s)
        body = self._canned
        found = re.search(rb'"n": ?(\d+)', raw) if self.config.honour_n else None
        if found and (n := int(found.group(1))) > 1:
            if n not in self._canned_n:
                texts = [self._answers("", 0)] * n
                self._canned_n[n] = json.dumps(completion_body(texts, usage=_usage(1000, 200 * n))).encode()
            body = self._canned_n[n]
        return web.Response(body=body, content_type="application/json")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET" and request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": self.config.model or "loopback"}]})
        if request.method == "GET" and request.path == "/health":  # as vLLM servers have it
            return web.Response()
        if request.method != "POST" or request.path != "/v1/chat/completions":
            return web.json_response(error_body("no such route"), status=404)
        raw = await request.read()
        body = json.loads(raw)
        logged = self._received(raw, body, dict(request.headers))
        reply = self._decide(request, body, logged)
        await asyncio.sleep(self.config.latency_s + reply.delay_s)
        if reply.hang:
            assert self._closing is not None
            await self._closing.wait()
        if reply.hang or reply.hang_up:
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        payload = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        response = web.Response(
            body=payload, status=reply.status, headers=reply.headers, content_type="application/json"
        )
        with contextlib.suppress(ConnectionError):  # the client may have gone
            await response.prepare(request)
            await response.write_eof()
            self._finished(logged, reply.status)
        return response

    def _decide(self, request: web.BaseRequest, body: Body, logged: LoggedRequest) -> Reply:
        config = self.config
        if config.script is not None and (scripted := config.script(body, logged.attempt)) is not None:
            return scripted
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if config.api_key is not None and key != config.api_key:
            return Reply(error_body(f"Incorrect API key provided: {key}.", "invalid_api_key"), 401)
        if config.model is not None and body["model"] != config.model:
            return Reply(error_body(f"The model `{body['model']}` does not exist", "model_not_found"), 404)
        for name in config.unsupported:
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                if name == "max_tokens":
                    message += " Use 'max_completion_tokens' instead."
                return Reply(error_body(message, "unsupported_parameter", name), 400)
        draw = _unit("failure", str(config.seed), logged.body, str(logged.attempt))
        edges = (config.p_hang, config.p_429, config.p_500, config.p_malformed)
        for i, probability in enumerate(edges):
            if draw < probability:
                return self._failure(i, draw / probability)
            draw -= probability
        return Reply(self._completion(body))

    def _failure(self, kind: int, within: float) -> Reply:
        if kind == 0:
            return Reply(hang=True)
        if kind == 1:
            after = self.config.retry_after_s
            headers = {} if after is None else {"Retry-After": f"{after:g}"}
            return Reply(error_body("Rate limit reached", "rate_limit_exceeded"), 429, headers)
        if kind == 2:
            return Reply(error_body("The server had an error"), 500)
        return Reply(MALFORMED[int(within * len(MALFORMED))])

    def _completion(self, body: Body) -> Body:
        config = self.config
        block = cue_block(body["messages"])
        count = int(body.get("n") or 1) if config.honour_n else 1
        seed = int(body.get("seed") or 0)
        texts, finishes, refusals = [], [], []
        for j in range(count):
            text, finish, refusal = self._answers(block, seed + j), "stop", None
            if config.p_garbage or config.p_length or config.p_refusal:
                draw = _unit("sample", str(config.seed), block, str(seed + j))
                if draw < config.p_garbage:
                    text = GARBAGE
                elif draw < config.p_garbage + config.p_length:
                    text, finish = text[: len(text) // 2], "length"
                elif draw < config.p_garbage + config.p_length + config.p_refusal:
                    text, refusal = "", "I can't help with that."
            texts.append(text)
            finishes.append(finish)
            refusals.append(refusal)
        prompt_tokens = sum(len(m["content"]) for m in body["messages"]) // 4
        usage = _usage(prompt_tokens, sum(map(len, texts)) // 4) if config.usage else None
        extra = {"reasoning_content": "The record was read line by line."} if config.reasoning else {}
        reply = completion_body(texts, finish=finishes, usage=usage, model=body["model"], **extra)
        if body.get("logprobs") and config.logprobs:
            top = int(body.get("top_logprobs") or 0)
            for choice, text in zip(reply["choices"], texts, strict=True):
                choice["logprobs"] = {"content": self._answers.tokens(block, text, top)}
        for choice, refusal in zip(reply["choices"], refusals, strict=True):
            if refusal is not None:
                choice["message"] |= {"content": None, "refusal": refusal}
        return reply

    def _received(self, raw: bytes, body: Body, headers: dict[str, str]) -> LoggedRequest:
        digest = hashlib.sha256(raw).hexdigest()[:16]
        self._attempts[digest] += 1
        logged = LoggedRequest(
            id=len(self.requests),
            body=digest,
            block=block_key(cue_block(body["messages"])),
            n=int(body.get("n") or 1),
            seed=body.get("seed"),
            attempt=self._attempts[digest],
            received=time.time(),
        )
        self.requests.append(logged)
        if self.config.keep_bodies:
            self.bodies.append(body)
            self.headers.append(headers)
        self._write("received", logged)
        return logged

    def _finished(self, logged: LoggedRequest, status: int) -> None:
        logged.finished, logged.status = time.time(), status
        self._write("finished", logged)

    def _write(self, event: str, logged: LoggedRequest) -> None:
        if self._log is not None:
            os.write(self._log, (json.dumps({"event": event, **asdict(logged)}) + "\n").encode())


def _usage(prompt: int, completion: int) -> Body:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": prompt // 2},
    }


@contextlib.contextmanager
def running_server(
    config: LoopbackConfig | None = None, *, log_path: str | None = None
) -> Iterator[LoopbackServer]:
    """The server on a thread with a loop of its own."""
    server = LoopbackServer(config, log_path=log_path)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the loopback server did not start")
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def server_process(*arguments: str) -> Iterator[str]:
    """The server in a process of its own, with the arguments of the command line; gives its base URL."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not (url := process.stdout.readline().strip()):
                raise RuntimeError("the loopback server did not start")
            yield url
        finally:
            process.terminate()


def main() -> None:
    """Serve until terminated; the first line on stdout is the base URL."""
    parser = argparse.ArgumentParser(description="A loopback server that speaks the chat completions API.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", help="append received and finished requests to this JSONL file")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--no-n", action="store_true", help="answer one choice whatever n says")
    parser.add_argument("--canned", action="store_true", help="one constant body, as fast as it goes")
    parser.add_argument("--reasoning", action="store_true")
    parser.add_argument("--retry-after", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--taxonomy", default="profilebench")
    failures = ("429", "500", "malformed", "hang", "garbage", "length", "refusal")
    for name in failures:
        parser.add_argument(f"--p-{name}", type=float, default=0.0)
    options = parser.parse_args()
    config = LoopbackConfig(
        honour_n=not options.no_n,
        latency_s=options.latency,
        canned=options.canned,
        keep_bodies=False,
        reasoning=options.reasoning,
        retry_after_s=options.retry_after,
        seed=options.seed,
        taxonomy=options.taxonomy,
        **{f"p_{name}": getattr(options, f"p_{name}") for name in failures},
    )

    async def serve() -> None:
        async with LoopbackServer(config, port=options.port, log_path=options.log) as server:
            print(server.url, flush=True)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
