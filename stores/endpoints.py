"""What endpoints were found to be able to do, so that it is found out once an endpoint and not once a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from cp_agents.backends.base import Backend, Capabilities, Identity
from cp_agents.stores.traces import TraceStore, now

NO_HOLDS = timedelta(days=7)
"""How long an endpoint is believed not to be able to do something. To ask anew costs nothing: the answer is used."""
_FOUND_OUT = ("n", "structured_output", "prefix_cache")


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
    """Tell `backend`, or the members of an ensemble, what is known of its endpoint and model.

    What it could not do is forgotten after NO_HOLDS: an endpoint that is upgraded would never be asked again.
    """
    for one in _endpoints(backend):
        found = store.rows(
            "select capabilities, checked_at from endpoints where endpoint = ? and sampler = ?", _key(one)
        )
        if found:
            known: dict[str, Any] = json.loads(found[0][0])
            # A store may have been written by a version that knew other capabilities.
            fields = Capabilities.__dataclass_fields__
            known = dict.fromkeys(_FOUND_OUT) | {k: v for k, v in known.items() if k in fields}
            if found[0][1] < _long_ago():
                known |= {k: None for k in _FOUND_OUT if not known[k]}
            one.recall(Capabilities(**known))


def remember(store: TraceStore, backend: Backend) -> None:
    """Keep what `backend`, or each member of an ensemble, has found out of its endpoint."""
    for one in _endpoints(backend):
        if (can := one.found()) is None:
            continue
        with store.transaction() as conn:
            # What was only recalled keeps its date.
            conn.execute(
                "insert into endpoints values (?, ?, ?, ?) on conflict do update"
                " set capabilities = excluded.capabilities, checked_at = excluded.checked_at"
                " where capabilities <> excluded.capabilities or checked_at < ?",
                (*_key(one), json.dumps(asdict(can)), now(), _long_ago()),
            )


def _endpoints(backend: Backend) -> Iterator[Recalling]:
    for one in getattr(backend, "members", (backend,)):
        if isinstance(one, Recalling) and one.identity.endpoint:
            yield one


def _long_ago() -> str:
    return (datetime.now(UTC) - NO_HOLDS).isoformat(timespec="milliseconds")


def _key(one: Recalling) -> tuple[str, str]:
    return one.identity.endpoint, one.identity.sampler
