"""What a teacher chose from the parts of long histories, so that nothing is asked for twice."""

from __future__ import annotations

import json

from cp_agents.schema import Completion
from cp_agents.stores.traces import TraceStore, now


def stored_choice(store: TraceStore, key: str) -> list[int] | None:
    """The numbers chosen before under this key; None where nobody asked."""
    found = store.rows("select kept from selections where key = ?", (key,))
    return json.loads(found[0][0]) if found else None


def store_choice(store: TraceStore, key: str, user_id: str, kept: list[int], answer: Completion) -> None:
    """Keep the numbers, and what the call took. The texts themselves are not kept."""
    usage = answer.usage
    with store.transaction() as conn:
        conn.execute(
            "insert or replace into selections values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key, user_id, json.dumps(kept), usage.prompt_tokens, usage.completion_tokens, answer.latency_s,
                answer.cost_usd, now(),
            ),
        )  # fmt: skip
