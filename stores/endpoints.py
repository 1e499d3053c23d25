"""What endpoints were found to be able to do, so that it is found out once an endpoint and not once a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

from cp_agents.backends.base import Backend, Capabilities, Identity
from cp_agents.stores.traces import TraceStore, now


@runtime_checkable
class Recalling(Protocol):
    """A backend whose capabilities are found out, and that can be told them."""

    @property
    def identity(self) -> Identity:
        """Whose endpoint it is."""
        ...

    def found(self) -> Capabilities | None:
        """What was found out and not declared; None where nothing has answered yet."""
        ...

    def recall(self, known: Capabilities) -> None:
        """Take what is `known` for what has not been declared or found out yet."""
        ...


def recall(store: TraceStore, backend: Backend) -> None:
    """Tell `backend`, or the members of an ensemble, what is known of its endpoint and model."""
    for one in _endpoints(backend):
        found = store.rows("select capabilities from endpoints where endpoint = ? and sampler = ?", _key(one))
        if found:
            known: dict[str, Any] = json.loads(found[0][0])
            # A store may have been written by a version that knew other capabilities.
            fields = Capabilities.__dataclass_fields__
            one.recall(Capabilities(**{name: value for name, value in known.items() if name in fields}))


def remember(store: TraceStore, backend: Backend) -> None:
    """Keep what `backend`, or each member of an ensemble, has found out of its endpoint."""
    for one in _endpoints(backend):
        if (can := one.found()) is None:
            continue
        with store.transaction() as conn:
            conn.execute(
                "insert or replace into endpoints values (?, ?, ?, ?)",
                (*_key(one), json.dumps(asdict(can)), now()),
            )


def _endpoints(backend: Backend) -> Iterator[Recalling]:
    for one in getattr(backend, "members", (backend,)):
        if isinstance(one, Recalling) and one.identity.endpoint:
            yield one


def _key(one: Recalling) -> tuple[str, str]:
    return one.identity.endpoint, one.identity.sampler
