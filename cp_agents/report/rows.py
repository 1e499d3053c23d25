"""A run's profiles as the report reads them: once, as plain dicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cp_agents.calibration import Calibrator
from cp_agents.schema import NA, Status
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy

Value = Mapping[str, Any]
"""One attribute of a profile, as in OUT.jsonl."""


class Profiled(NamedTuple):
    """One profiled record."""

    record_id: int
    user_id: str
    asked: int
    """Samples asked for: M, or fewer where adaptive sampling stopped."""
    calibrator: str
    profile: Mapping[str, Value]


def load_rows(store: TraceStore, run_id: str, samples: int) -> list[Profiled]:
    """Every record of the run that has a profile, in the order of the run."""
    found = store.rows(
        "select r.record_id, r.user_id, coalesce(r.asked, ?), p.calibrator, p.profile"
        " from profiles p join records r using (record_id) where r.run_id = ? order by r.record_id",
        (samples, run_id),
    )
    return [Profiled(*row, json.loads(body)) for *row, body in found]  # type: ignore[call-arg]


def values_of(rows: Sequence[Profiled], attribute: str) -> Iterator[tuple[Profiled, Value]]:
    """The rows that have the attribute, with what they say of it."""
    for row in rows:
        if (value := row.profile.get(attribute)) is not None:
            yield row, value


def is_vote(value: Value) -> bool:
    """Whether there was a vote, be it for NA."""
    return bool(value["status"] != Status.FAILED and value.get("survivors", 0) > 0)


def votes_for_tags(rows: Sequence[Profiled], attribute: str) -> Iterator[tuple[Profiled, Value]]:
    """Those whose vote named a tag; people's answers do not change what was voted."""
    for row, value in values_of(rows, attribute):
        if is_vote(value) and value["voted"] != NA:
            yield row, value


def canonical_gold(gold: Mapping[str, Mapping[str, str]], taxonomy: Taxonomy) -> dict[str, dict[str, str]]:
    """Gold with the taxonomy's own names for its tags; what is not in the closed set stays as it is.

    Open attributes are left out: whether a free text is right is not for a comparison of letters to say.
    """
    return {
        user: {
            name: (taxonomy[name].match_tag(tag) or tag) if name in taxonomy else tag
            for name, tag in truth.items()
            if name not in taxonomy or taxonomy[name].tags
        }
        for user, truth in gold.items()
    }


def stored_calibrator(store: TraceStore, calibrator_id: str | None) -> Calibrator | None:
    """The calibrator that spoke last for the run."""
    if calibrator_id is None:
        return None
    return Calibrator.from_json(store.calibrator(calibrator_id), f"calibrator {calibrator_id}")
