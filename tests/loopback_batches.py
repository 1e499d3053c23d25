"""The loopback server with /v1/files and /v1/batches: same answers, in whatever order, after a while, or not at all.

with running_batch_server(BatchConfig(batch_delay_s=0.5)) as server: ...
with batch_server_process("--batch-delay", "1", "--log", path) as url: ...   # kill -9
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

if __name__ == "__main__":  # run as a file: the checkout root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.loopback import Body, LoopbackConfig, LoopbackServer, _unit, error_body


@dataclass
class BatchConfig(LoopbackConfig):
    """What the batch API is like. Probabilities are of request lines, drawn from their custom ids."""

    batch_delay_s: float = 0.0
    """From a batch's submission to its end."""
    p_line_500: float = 0.0
    """A line in the error file with an HTTP status."""
    p_line_missing: float = 0.0
    """No line in either file."""
    p_line_expired: float = 0.0
    """A line that expired, and with it the batch."""
    most_in_flight: int | None = None
    """Requests in batches that have not ended; a batch beyond it fails with token_limit_exceeded."""
    fail: dict[int, str] = field(default_factory=dict)
    """Error codes of batches that fail as a whole, by their number from 0."""
    hang_after_create: bool = False
    """Make every batch, and never say so."""
    no_batches: bool = False
    """Whether there are no such routes."""
    listed: bool = True
    """Whether batches can be listed."""
    most_bytes: int | None = None
    """Larger files are answered with a 413."""
    broken_polls: int = 0
    """How many times the state of a batch is answered with a 503 first."""


@dataclass
class MadeBatch:
    """A batch that was submitted."""

    number: int
    input_file: str
    bytes: int
    lines: list[Body]
    metadata: dict[str, str]
    created: float
    error: str | None = None
    status: str = "in_progress"
    files: dict[str, str] = field(default_factory=dict)
    failed: int = 0

    @property
    def id(self) -> str:
        return f"batch_{self.number}"


class BatchServer(LoopbackServer):
    """`requests` logs live requests only; `batches` and `uploads` what came by the batch API."""

    config: BatchConfig

    def __init__(self, config: BatchConfig | None = None, **options: Any) -> None:
        super().__init__(config or BatchConfig(), **options)
        self.batches: list[MadeBatch] = []
        self.files: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.deleted: list[str] = []

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")[1:]
        if parts[:1] not in (["files"], ["batches"]):
            return await super()._handle(request)
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.config.api_key is not None and key != self.config.api_key:
            return web.json_response(error_body(f"Incorrect API key provided: {key}."), status=401)
        if self.config.no_batches:
            return web.json_response({"detail": "Not Found"}, status=404)
        match request.method, *parts:
            case "POST", "files":
                return await self._upload(request)
            case "GET", "files", file_id, "content" if file_id in self.files:
                return web.Response(body=self.files[file_id])
            case "DELETE", "files", file_id if file_id in self.files:
                del self.files[file_id]
                self.deleted.append(file_id)
                return web.json_response({"id": file_id, "object": "file", "deleted": True})
            case "POST", "batches":
                return await self._create(json.loads(await request.read()))
            case "GET", "batches" if self.config.listed:
                return web.json_response(self._list(request))
            case "GET", "batches", batch_id if (made := self._made(batch_id)) is not None:
                if self.config.broken_polls > 0:
                    self.config.broken_polls -= 1
                    return web.json_response(error_body("overloaded"), status=503)
                return web.json_response(self._state(made))
        return web.json_response(error_body("no such thing"), status=404)

    async def _upload(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()  # a whole-body read past the size that the server allows otherwise
        boundary = request.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        fields = {}
        for part in raw.split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            fields[head.partition(b' name="')[2].partition(b'"')[0].decode()] = value.removesuffix(b"\r\n")
        content, purpose = fields["file"], fields["purpose"].decode()
        assert purpose == "batch"
        if self.config.most_bytes is not None and len(content) > self.config.most_bytes:
            return web.json_response(error_body("too large"), status=413)
        file_id = self._store(content)
        self.uploads.append(file_id)
        self._note({"event": "upload", "file": file_id, "bytes": len(content)})
        body = {
            "id": file_id, "object": "file", "bytes": len(content), "created_at": int(time.time()),
            "filename": "x", "purpose": "batch", "status": "processed",
        }  # fmt: skip
        return web.json_response(body)

    def _store(self, content: bytes) -> str:
        file_id = f"file_{len(self.files) + len(self.deleted)}"
        self.files[file_id] = content
        return file_id

    async def _create(self, body: Body) -> web.StreamResponse:
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        content = self.files[body["input_file_id"]]
        lines = [json.loads(line) for line in content.split(b"\n") if line]
        number = len(self.batches)
        metadata = body.get("metadata") or {}
        made = MadeBatch(number, body["input_file_id"], len(content), lines, metadata, time.time())
        most = self.config.most_in_flight
        in_flight = sum(len(b.lines) for b in self.batches if b.status == "in_progress")
        made.error = self.config.fail.get(number)
        if most is not None and in_flight + len(lines) > most:
            made.error = "token_limit_exceeded"
        self.batches.append(made)
        ids = [line["custom_id"] for line in lines]
        self._note({"event": "batch", "id": made.id, "requests": len(lines), "custom_ids": ids})
        if self.config.hang_after_create:
            assert self._closing is not None
            await self._closing.wait()
        return web.json_response(self._state(made))

    def _made(self, batch_id: str) -> MadeBatch | None:
        return next((made for made in self.batches if made.id == batch_id), None)

    def _list(self, request: web.BaseRequest) -> Body:
        newest = self.batches[::-1]
        after, limit = request.query.get("after"), int(request.query.get("limit", 20))
        start = next((i + 1 for i, made in enumerate(newest) if made.id == after), 0)
        page = newest[start : start + limit]
        return {
            "object": "list", "data": [self._state(made) for made in page], "has_more": start + limit < len(newest),
            "first_id": page[0].id if page else None, "last_id": page[-1].id if page else None,
        }  # fmt: skip

    def _state(self, made: MadeBatch) -> Body:
        if made.status == "in_progress" and made.error is not None:
            made.status = "failed"
        elif made.status == "in_progress" and time.time() >= made.created + self.config.batch_delay_s:
            self._process(made)
        done = len(made.lines) if made.status == "completed" else 0
        errors = [{"code": made.error, "message": f"{made.error} for this organisation", "line": None}]
        return {
            "id": made.id, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "created_at": int(made.created), "input_file_id": made.input_file, "status": made.status,
            "metadata": made.metadata, "errors": {"object": "list", "data": errors} if made.error else None,
            "request_counts": {"total": len(made.lines), "completed": done - made.failed, "failed": made.failed},
            **made.files,
        }  # fmt: skip

    def _process(self, made: MadeBatch) -> None:
        """Answer all lines at once, and give them back in another order."""
        config = self.config
        answers: list[Body] = []
        errors: list[Body] = []
        for line in made.lines:
            assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
            name, body = line["custom_id"], line["body"]
            draw = _unit("line", str(config.seed), name)
            if draw < config.p_line_missing:
                continue
            draw -= config.p_line_missing
            if 0 <= draw < config.p_line_expired:
                errors.append(
                    {"custom_id": name, "response": None, "error": {"code": "batch_expired", "message": "x"}}
                )
                continue
            draw -= config.p_line_expired
            if 0 <= draw < config.p_line_500:
                status, reply = 500, error_body("The server had an error")
            elif config.model is not None and body["model"] != config.model:
                status, reply = 404, error_body(f"The model {body['model']} does not exist")
            elif refused := next((p for p in config.unsupported if p in body), None):
                status, reply = (
                    400,
                    error_body(f"Unsupported parameter: '{refused}'", "unsupported_parameter", refused),
                )
            else:
                status, reply = 200, self._completion(body)
            (answers if status == 200 else errors).append(
                {
                    "id": "x",
                    "custom_id": name,
                    "response": {"status_code": status, "body": reply},
                    "error": None,
                }
            )
        random.Random(made.number).shuffle(answers)
        made.failed = len(errors)
        for field_name, rows in (("output_file_id", answers), ("error_file_id", errors)):
            if rows:
                made.files[field_name] = self._store("".join(map(_line, rows)).encode())
        made.status = "expired" if config.p_line_expired else "completed"

    def _note(self, row: Body) -> None:
        if self._log is not None:
            os.write(self._log, (json.dumps(row) + "\n").encode())


def _line(row: Body) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"  # U+2028 stays as it is: no line ends there


@contextlib.contextmanager
def running_batch_server(config: BatchConfig | None = None) -> Iterator[BatchServer]:
    """The server on a thread with a loop of its own."""
    server = BatchServer(config)
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
def batch_server_process(*arguments: str) -> Iterator[str]:
    """The server in a process of its own; gives its base URL."""
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
    parser = argparse.ArgumentParser(description="The loopback server with files and batches.")
    parser.add_argument("--log", help="append uploads, batches and live requests to this JSONL file")
    parser.add_argument("--batch-delay", type=float, default=0.0)
    parser.add_argument("--no-n", action="store_true")
    parser.add_argument("--hang-after-create", action="store_true")
    options = parser.parse_args()
    config = BatchConfig(
        honour_n=not options.no_n,
        keep_bodies=False,
        batch_delay_s=options.batch_delay,
        hang_after_create=options.hang_after_create,
    )

    async def serve() -> None:
        async with BatchServer(config, log_path=options.log) as server:
            print(server.url, flush=True)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
