"""How the bytes of a chat request get to an endpoint and back.

The openai SDK builds every request anew: headers, query and URL are merged, typed and validated, which costs three
times the processor time of sending it. They are the same for all requests of an endpoint, so where aiohttp is
installed they are taken from the SDK's client once and the bodies go straight to aiohttp. A proxy, a client of the
user's own, or a user name in the URL are left to the SDK.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.request import getproxies

import openai

ROUTE = "/chat/completions"
_KEEP_ALIVE_S = 4.0
"""Below the 5 s after which common servers (uvicorn, Node) hang up on a connection that nobody uses."""


class Answer(NamedTuple):
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def said(self) -> object:
        """The JSON of an error answer, or its text where it is none."""
        try:
            body = json.loads(self.content)
        except ValueError:
            return self.content.decode(errors="replace").strip()
        return body.get("error", body) if isinstance(body, dict) else body


class Poster(NamedTuple):
    """Posts request bodies to the chat completions of one endpoint, in one event loop."""

    post: Callable[[bytes], Awaitable[Answer]]
    """Raises what its client raises where no answer comes."""
    close: Callable[[], Awaitable[None]]


def is_direct() -> bool:
    """Whether requests leave this machine without a proxy."""
    return not getproxies().keys() & {"http", "https", "all"}


def by_sdk(client: openai.AsyncOpenAI) -> Poster:
    """Requests through the SDK's own `post`, which its `chat.completions.create` ends in as well."""

    async def post(content: bytes) -> Answer:
        try:
            return Answer(200, {}, await client.post(ROUTE, cast_to=bytes, content=content))
        except openai.APIStatusError as error:
            return Answer(error.status_code, error.response.headers, error.response.content)

    async def close() -> None:
        pass  # whoever made the client closes it

    return Poster(post, close)


def by_aiohttp(client: openai.AsyncOpenAI, connect_timeout_s: float) -> Poster:
    """Requests with the SDK's headers, by aiohttp alone. To be called in the event loop that will use it."""
    import aiohttp
    import httpx2
    from yarl import URL

    url = URL(str(client.base_url).rstrip("/") + ROUTE)
    query: dict[str, Any] = client.default_query
    headers = {"Authorization": f"Bearer {client.api_key}", **client.default_headers}
    session = aiohttp.ClientSession(
        # How many are in flight, and for how long, is bounded by who posts.
        connector=aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_S,
            ssl=httpx2.create_ssl_context() if url.scheme == "https" else True,
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        headers={name: value for name, value in headers.items() if isinstance(value, str)},
    )
    url = url.update_query(query) if query else url

    async def post(content: bytes) -> Answer:
        async with session.post(url, data=content) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    return Poster(post, session.close)
