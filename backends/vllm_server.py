"""`vllm-server:URL[#MODEL[+ADAPTER]]`: a vLLM server, by the OpenAI-compatible route and by what it has besides.

Samples are drawn as `openai` draws them, always several in one request. Besides: waiting until the server is ready,
answers constrained to the wire format, probabilities, and LoRA adapters that are loaded while it runs.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cp_agents.backends.base import Capabilities
from cp_agents.backends.endpoint import public_url
from cp_agents.backends.hf_files import ModelFiles
from cp_agents.backends.limits import Budget
from cp_agents.backends.openai import OpenAIBackend
from cp_agents.backends.usage import Prices
from cp_agents.backends.vllm_options import digest, read_options, split_options
from cp_agents.errors import BackendError, ErrorType, InputError
from cp_agents.taxonomy import Taxonomy

if TYPE_CHECKING:
    from cp_agents.backends.registry import BackendOptions

log = logging.getLogger(__name__)

READY_WITHIN_S = 30.0
"""How long a server is waited for that does not answer yet; loading a large model takes minutes, see `wait`."""
_CALL_TIMEOUT_S = 10.0
_LOADING_TIMEOUT_S = 120.0
_STRUCTURED_SINCE = (0, 11)
"""Older servers ignore `structured_outputs` without a word."""


class ServedModel(NamedTuple):
    """A name under which the server answers."""

    name: str
    root: str
    """Where the server has it from."""
    base: str | None
    """The model that an adapter belongs to; None for a model."""


class VllmServer:
    """The routes of a vLLM server besides chat completions. All calls block.

    `url` is with or without /v1; `api_key` is what the server was started with, if it was. Raises `BackendError` for
    what the server refuses.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = public_url(url).removesuffix("/v1")
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""

    def wait_until_ready(self, limit_s: float = READY_WITHIN_S) -> None:
        """Wait until /health says that the engine is up. Raises `InputError` if it does not within `limit_s`."""
        end = time.monotonic() + limit_s
        pause, why = 0.1, ""
        while True:
            try:
                self._call("/health", timeout_s=max(0.1, min(_CALL_TIMEOUT_S, end - time.monotonic())))
                return
            except BackendError as error:
                if error.error_type is ErrorType.NOT_FOUND:
                    raise InputError(
                        f"{self.url} answers, but not as a vLLM server: it has no /health"
                    ) from None
                if not why:
                    log.warning("waiting up to %g s for a vLLM server at %s", limit_s, self.url)
                why = str(error)
            if time.monotonic() + pause > end:
                raise InputError(
                    f"no vLLM server was ready at {self.url} within {limit_s:g} s ({why}): start it with "
                    "`vllm serve MODEL`, or give it longer with ?wait=SECONDS"
                )
            time.sleep(pause)
            pause = min(2.0, 2 * pause)

    def version(self) -> str:
        """vLLM's version."""
        return str(self._json("/version").get("version", ""))

    def models(self) -> list[ServedModel]:
        """What the server answers to: its model first, then the adapters that are loaded."""
        data = self._json("/v1/models").get("data")
        return [
            ServedModel(str(card["id"]), str(card.get("root") or ""), card.get("parent") or None)
            for card in (data if isinstance(data, list) else [])
            if isinstance(card, dict) and "id" in card
        ]

    def load_adapter(self, name: str, path: str) -> None:
        """Load the LoRA adapter in the server's folder `path` under `name`; other requests go on meanwhile."""
        self._lora("load", {"lora_name": name, "lora_path": path})

    def unload_adapter(self, name: str) -> None:
        """Take an adapter out of the server."""
        self._lora("unload", {"lora_name": name})

    def _lora(self, verb: str, body: Mapping[str, str]) -> None:
        try:
            self._call(f"/v1/{verb}_lora_adapter", body, timeout_s=_LOADING_TIMEOUT_S)
        except _NoSuchRoute:
            raise BackendError(
                f"the server at {self.url} does not {verb} adapters while it runs: start it with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment",
                ErrorType.NOT_FOUND,
            ) from None
        except BackendError as error:
            raise BackendError(
                f"the server at {self.url} could not {verb} the adapter {body['lora_name']!r}: {error}",
                error.error_type,
            ) from None

    def _json(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._call(path))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BackendError(f"{self.url}{path} did not answer with JSON", ErrorType.SERVER)
        return found

    def _call(
        self, path: str, body: Mapping[str, str] | None = None, *, timeout_s: float = _CALL_TIMEOUT_S
    ) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data, headers), timeout=timeout_s) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            said = error.read(4096)
            failure = _refusal(error.code, said)
        except OSError as error:
            reason = getattr(error, "reason", error)
            failure = BackendError(str(reason) or type(error).__name__, ErrorType.CONNECTION)
        raise failure


class VllmServerBackend(OpenAIBackend):
    """Draws samples from a vLLM server.

    Without `model` it is the server's own; `adapter` is a folder that the server sees under the same path: it is
    loaded, under a name that holds a hash of its files, unless it is there already. Of `options`, `structured`,
    `logprobs` and `seeds` are as for `VllmBackend`, but seeds are sent unless they are false; `wait` is how many
    seconds the server may take to be ready; `revision` is a word of yours that tells other weights under the same
    name apart; the rest goes into the body of every request (`top_k`, `chat_template_kwargs`, ...). Blocks until
    the server is ready. Raises `InputError` if it is not, or has no such model.
    """

    kind = "vllm-server"

    def __init__(
        self,
        url: str,
        taxonomy: Taxonomy,
        *,
        model: str = "",
        adapter: str = "",
        options: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
    ) -> None:
        chosen = read_options(options or {}, taxonomy)
        extra = dict(chosen.others)
        wait, own_revision = extra.pop("wait", READY_WITHIN_S), str(extra.pop("revision", ""))
        if isinstance(wait, bool) or not isinstance(wait, int | float) or wait < 0:
            raise InputError(f"wait should be a number of seconds, found {wait!r}")
        self.server = VllmServer(url, api_key)
        self.server.wait_until_ready(float(wait))
        if chosen.structured_outputs:
            self._check_version()
            extra["structured_outputs"] = chosen.structured_outputs
        bearing = dict(extra)  # what follows has no bearing on what is answered
        if chosen.seeds is False:
            extra["seed"] = None
        if chosen.logprobs:
            extra |= {"logprobs": True, "top_logprobs": chosen.logprobs}
        served = self._loaded(adapter) if adapter else self._named(model)
        super().__init__(
            served.name,
            base_url=f"{self.server.url}/v1",
            api_key=api_key,
            n="yes",
            timeout_s=timeout_s,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            budget=budget,
            prices=prices,
            extra_body=extra,
            revision=digest(served.root, served.base, own_revision, bearing),
        )
        self.attempts.taxonomy = taxonomy
        self.facts.logprobs = self.facts.structured_output = True

    def __repr__(self) -> str:
        return f"VllmServerBackend({self._identity.model!r}, url={self._identity.endpoint!r})"

    @property
    def capabilities(self) -> Capabilities:
        """As `VllmBackend`'s, but whether the server computes batch-invariantly cannot be seen from here."""
        return super().capabilities

    def _check_version(self) -> None:
        version = self.server.version()
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if len(numbers) == 2 and numbers < _STRUCTURED_SINCE:
            raise InputError(f"vLLM {version} ignores structured_outputs: it takes 0.11 or newer")

    def _named(self, model: str) -> ServedModel:
        served = self.server.models()
        if not served:
            raise InputError(f"the vLLM server at {self.server.url} lists no model")
        if not model:
            return served[0]
        for one in served:
            if one.name == model:
                return one
        names = ", ".join(one.name for one in served)
        raise InputError(f"the vLLM server at {self.server.url} has no model {model!r}: it has {names}")

    def _loaded(self, path: str) -> ServedModel:
        folder = Path(path).expanduser().resolve()
        if not (folder / "adapter_config.json").is_file():
            raise InputError(f"no adapter {path!r}: expected a folder with an adapter_config.json")
        # The server's prefix cache, and ours of answers, know an adapter by its name: other weights, another name.
        name = f"{folder.name}-{ModelFiles(folder).revision()}"
        if name not in (one.name for one in self.server.models()):
            self.server.load_adapter(name, str(folder))
        return self._named(name)


class _NoSuchRoute(BackendError):
    pass


def _refusal(status: int, said: bytes) -> BackendError:
    try:
        body = json.loads(said)
        message = body.get("error", {}).get("message") or body.get("message") or body.get("detail") or ""
    except (ValueError, AttributeError):
        message = ""
    words = " ".join(str(message).split())[:200] or f"HTTP {status}"
    if status in (401, 403):
        return BackendError(f"the server refused the key ({status})", ErrorType.AUTH)
    if status == 404:
        # The server's own 404 speaks of a model or an adapter, the web framework's of the route.
        return (BackendError if words.lower() not in ("not found", "http 404") else _NoSuchRoute)(
            words, ErrorType.NOT_FOUND
        )
    return BackendError(words, ErrorType.SERVER if status >= 500 else ErrorType.BAD_REQUEST)


def from_spec(rest: str, options: BackendOptions) -> VllmServerBackend:
    """`vllm-server:URL[?name=value&...][#MODEL[+ADAPTER]]`; the base URL may also come in `options.base_url`."""
    spec, own = split_options(rest)
    url, _, name = spec.partition("#")
    model, _, adapter = name.partition("+")
    if not (url := url or options.base_url or ""):
        raise InputError("vllm-server needs the server's URL, as in vllm-server:http://127.0.0.1:8000")
    return backend_on(url, options, model=model, adapter=adapter, own=own)


def backend_on(
    url: str,
    options: BackendOptions,
    *,
    model: str = "",
    adapter: str = "",
    own: Mapping[str, Any] | None = None,
) -> VllmServerBackend:
    """A model or an adapter on the server at `url`; its `own` options go before those in `options.extra`."""
    name = f"{model}+{adapter}" if adapter else model
    return VllmServerBackend(
        url,
        options.taxonomy,
        model=model,
        adapter=adapter,
        options={**options.extra, **(own or {})},
        timeout_s=options.timeout_s,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        budget=options.budget,
        prices=options.prices_of(f"vllm-server:{name}"),
    )
