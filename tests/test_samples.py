"""The shipped sample users: they show what they are there to show."""

from __future__ import annotations

import json
from importlib import resources

from cp_agents.cues import AssembledCues, assemble_cues
from cp_agents.schema import UserRecord
from cp_agents.taxonomy import load_taxonomy


def sample_cues() -> dict[str, AssembledCues]:
    text = (resources.files("cp_agents") / "samples" / "users.jsonl").read_text(encoding="utf-8")
    records = [UserRecord.from_dict(json.loads(line)) for line in text.splitlines()]
    return {record.user_id: assemble_cues(record) for record in records}


def test_the_sample_users_load_and_fit() -> None:
    cues = sample_cues()
    assert len(cues) == 12
    assert all(0 < c.tokens < 500 for c in cues.values())
    assert not any(kind.startswith("dropped") for c in cues.values() for kind in c.dropped)
    assert sum(any("\u4e00" <= char <= "\u9fff" for char in c.text) for c in cues.values()) == 3


def test_contact_data_of_a_sample_user_stay_out_of_the_cues() -> None:
    found = {kind for c in sample_cues().values() for kind in c.dropped if kind.startswith("redacted_")}
    assert found >= {"redacted_email", "redacted_phone", "redacted_handle", "redacted_url"}
    assert not any(
        "@" in c.text or "example.com" in c.text or "555" in c.text for c in sample_cues().values()
    )


def test_self_reports_of_sample_users_are_thin_and_read_where_they_state_a_tag() -> None:
    taxonomy = load_taxonomy()
    reported = {user: taxonomy.reported_tags(c.self_reported) for user, c in sample_cues().items()}
    assert reported["demo-07"] == {}
    assert reported["demo-04"] == {"age": "18-23", "occupation": "Student"}
    assert all(len(tags) <= 3 for tags in reported.values())
