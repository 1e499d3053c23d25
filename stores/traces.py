"""The trace store: one SQLite file that holds every sample asked for, and all that followed from it.

WAL mode, one connection behind a lock, each sample committed when it lands. The tables are meant to be read
with Datasette or `sqlite-utils`; `migrations.py` documents every column.
"""

from __future__ import annotations

from cp_agents.stores.decisions import DecisionTables
from cp_agents.stores.rows import (
    NewSample,
    RecordRow,
    StoredSample,
    VoteRow,
    completion_of,
    cues_hash,
    now,
    pack_evidence,
    unpack_evidence,
)
from cp_agents.stores.runs import RunTables, delete_samples
from cp_agents.stores.samples import SampleTables

__all__ = [
    "NewSample",
    "RecordRow",
    "StoredSample",
    "TraceStore",
    "VoteRow",
    "completion_of",
    "cues_hash",
    "delete_samples",
    "now",
    "pack_evidence",
    "unpack_evidence",
]


class TraceStore(RunTables, SampleTables, DecisionTables):
    """A trace store at `path`; ":memory:" keeps it in memory. Safe to use from several threads.

    Raises `StoreError` when the file is no SQLite database, is no cp-agents store or is of a newer version.
    """
