"""The graph that `langgraph.json` names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cp_agents import InputError
from tests.conftest import ROOT


def test_langgraph_json_names_a_graph_that_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CP_AGENTS_STORE", str(tmp_path / "t.db"))
    monkeypatch.setenv("CP_AGENTS_SAMPLES", "3")
    [(name, where)] = json.loads((ROOT / "langgraph.json").read_text())["graphs"].items()
    path, factory = where.split(":")
    spec = importlib.util.spec_from_file_location("served", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    graph = getattr(module, factory)()
    assert graph.name == name
    result = graph.invoke({"record": {"user_id": "u1", "searched": ["maternity leave rules"]}})
    assert len(result["profile"]["profile"]) == 6
    monkeypatch.setenv("CP_AGENTS_SAMPLES", "many")
    with pytest.raises(InputError, match="CP_AGENTS_SAMPLES should be a whole number"):
        getattr(module, factory)()
