"""The difficulty filter's rules and shapes, which are plain arithmetic and lie in `cp_agents.difficulty`."""

from __future__ import annotations

from cp_agents.difficulty import (
    RULES,
    SHAPES,
    LevelArray,
    Rule,
    Shape,
    choose,
    difficulty,
    histogram,
    quotas,
)

__all__ = ["RULES", "SHAPES", "LevelArray", "Rule", "Shape", "choose", "difficulty", "histogram", "quotas"]
