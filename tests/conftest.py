"""Fixtures of all tests. Sockets other than loopback are blocked by pytest-socket (see pyproject.toml)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_keys_and_no_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see neither the developer's keys nor tracing settings."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published data sets that are not part of the project: $CP_AGENTS_DATA, else ../shared/data."""
    folder = Path(os.environ.get("CP_AGENTS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no published data at hand (set CP_AGENTS_DATA)")
    return folder
