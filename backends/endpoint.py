"""Connections to an OpenAI-compatible endpoint, one client an event loop.

The SDK's own retries are off, because they know nothing of a cooldown that other calls should share.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from cp_agents.backends.chat import Asked, CallError, read_error
from cp_agents.backends.posting import Poster, by_aiohttp, by_sdk, is_direct
from cp_agents.errors import ErrorType, InputError

if TYPE_CHECKING:
    import httpx2

_CONNECT_TIMEOUT_S = 10.0


@dataclass
class Line:
    """What belongs to one event loop."""

    client: openai.AsyncOpenAI
    poster: Poster
    slots: asyncio.Semaphore
    """Bounds the requests in flight, so that nobody's timeout runs while they wait for a connection."""
    keeper: AsyncGenerator[None, None]
    """Closes what belongs to the loop."""
    probed: asyncio.Event | None = None
    """Set once the request that finds out about n has come back, with whatever result."""


class Endpoint:
    """Posts request bodies and gives reply bodies, or a typed `CallError` that holds neither key nor prompt."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout_s: float,
        max_connections: int,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        self.public_url = public_url(base_url)
        self._base_url = base_url
        self._key = key
        self._timeout_s = timeout_s
        self._connect_timeout_s = min(_CONNECT_TIMEOUT_S, timeout_s)
        self._max_connections = max_connections
        self._http_client = http_client
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}

    async def line(self) -> Line:
        """The connections of the running loop: those of another loop cannot be used in it."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for other in [known for known in self._lines if known.is_closed()]:
                del self._lines[other]
            client = self._client()
            poster = self._poster(client)
            keeper = _close_at_the_end(client, poster)
            line = Line(client, poster, asyncio.Semaphore(self._max_connections), keeper)
            self._lines[loop] = line
            await anext(line.keeper)
        return line

    @property
    def _by_aiohttp(self) -> bool:
        """It takes half the processor time of httpx, but no user name and password beside a key."""
        return find_spec("aiohttp") is not None and "@" not in urlsplit(self._base_url).netloc

    def _poster(self, client: openai.AsyncOpenAI) -> Poster:
        if self._by_aiohttp and self._http_client is None and is_direct():
            return by_aiohttp(client, self._connect_timeout_s)
        return by_sdk(client)

    def _client(self) -> openai.AsyncOpenAI:
        transport = openai.DefaultAioHttpClient if self._by_aiohttp else openai.DefaultAsyncHttpxClient
        return openai.AsyncOpenAI(
            api_key=self._key or "none",
            **client_url(self._base_url),
            max_retries=0,
            # asyncio.timeout bounds an attempt as a whole; a read timeout starts anew with every byte.
            timeout=openai.Timeout(None, connect=self._connect_timeout_s),
            http_client=self._http_client or transport(),
        )

    async def post(self, line: Line, content: bytes, asked: Asked) -> bytes:
        """The body of the answer to one request. Raises `CallError`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await line.poster.post(content)
        except Exception as error:
            failure = self._lost(error)
        else:
            if 200 <= answer.status < 300:
                return answer.content
            failure = read_error(answer.status, answer.headers, answer.said, asked, self._key)
        # Raised out here, it drags along no exception of a client, which holds the request with key and prompt.
        raise failure

    async def models(self, line: Line) -> object:
        """What the endpoint says of its models, as it came; None where it says nothing of them."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return json.loads(await line.client.get("/models", cast_to=bytes))
        except Exception:  # many endpoints have no such list, and nothing depends on it
            return None

    def _lost(self, error: Exception) -> CallError:
        """Type a call that ended without an answer."""
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        # The aiohttp transport reports every lost connection as a connect timeout; the cause knows better.
        if any(isinstance(link, TimeoutError) for link in chain):
            return CallError(f"no answer within {self._timeout_s:g} s", ErrorType.TIMEOUT)
        name = type(chain[-1]).__name__
        if isinstance(error, openai.APIConnectionError | OSError) or type(error).__module__.startswith(
            "aiohttp"
        ):
            return CallError(f"the endpoint could not be reached or hung up ({name})", ErrorType.CONNECTION)
        return CallError(f"the call failed in an unforeseen way ({name})", ErrorType.INTERNAL)

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.keeper.aclose()


async def _close_at_the_end(client: openai.AsyncOpenAI, poster: Poster) -> AsyncGenerator[None, None]:
    """A loop that shuts down, as asyncio.run does, closes its generators: so nobody need think of it."""
    try:
        yield
    finally:
        await poster.close()
        await client.close()


def client_url(base_url: str) -> dict[str, Any]:
    """The base URL and its query as the SDK takes them; of one string it puts its paths behind the query."""
    parts = urlsplit(base_url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return {"base_url": urlunsplit(parts._replace(query="", fragment="")), "default_query": query}


def public_url(base_url: str) -> str:
    """The base URL without user name, password, query, or differences that make no difference."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise InputError("the base URL is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("the base URL should begin with http:// or https:// and name a host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
        host += f":{port}"
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
