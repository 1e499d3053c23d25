"""The reward as TRL calls it: completions and columns of the data set in, one number per completion out.

Usable alone, without TRL and torch:

    reward = ConfidenceReward(load_taxonomy("profilebench"))
    reward(prompts, completions, record_id=[7, 7], c_ref=[[5, 3, 1, 1, 2, 4]] * 2)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cp_agents.errors import InputError
from cp_agents.open_sets import refuse_open
from cp_agents.parsing import LENGTH
from cp_agents.taxonomy import Attribute, Taxonomy
from cp_agents.trainers.gather import gather, group_rows
from cp_agents.trainers.reward_metrics import reward_metrics
from cp_agents.trainers.rewards import (
    ABSENT,
    BAD_FORM,
    Codes,
    RewardSettings,
    Rollouts,
    read_rollouts,
    reward_groups,
    weigh,
)
from cp_agents.voting import FULL_CONFIDENCE

Completion = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation, of which the last is the answer."""
Labels = Sequence[str | None] | Mapping[str, str | None] | None
"""Tags of one record in the order of the taxonomy, or by attribute; empty or None where there is none."""
Confidences = Sequence[int] | Mapping[str, int]


class _Part(NamedTuple):
    """What one process contributes: parsed where it was sampled, so that little travels."""

    rollouts: Rollouts
    keys: list[Hashable]
    c_ref: list[Confidences]
    reviewed: list[Labels]
    gold: list[Labels]


class ConfidenceReward:
    """The confidence-guided reward (equations 6-8) with TRL's signature; see `rewards` for what it computes."""

    __name__ = "confidence"

    def __init__(
        self,
        taxonomy: Taxonomy,
        settings: RewardSettings | None = None,
        *,
        group_size: int | None = None,
        end_tokens: Collection[int] = (),
    ) -> None:
        """`group_size` is G, checked at every call; without one all groups have to be of one size.

        `end_tokens` are the ids that end an answer: with them, a completion whose `completion_ids` end by none counts
        as cut by length. Raises `InputError` for a group size below 2, and for a taxonomy with an open attribute: a
        group that votes over wordings would be rewarded for writing alike.
        """
        refuse_open(taxonomy, "rewards")
        if group_size is not None:
            group_rows(["any"] * group_size, group_size)
        self.taxonomy = taxonomy
        self.settings = settings or RewardSettings()
        self.group_size = group_size
        self.end_tokens = frozenset(end_tokens)
        self.metrics: dict[str, float] = {}
        """Of the latest call, over all processes; see `reward_metrics`."""

    def __call__(
        self,
        prompts: Sequence[Any] | None,
        completions: Sequence[Completion],
        *,
        record_id: Sequence[Hashable],
        c_ref: Sequence[Confidences],
        reviewed: Sequence[Labels] | None = None,
        gold: Sequence[Labels] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """The reward of each completion.

        All columns have one entry per completion. `record_id` says which belong to one group, also across processes;
        `c_ref` holds K confidences 1..5; `reviewed` people's tags (the target where given), `gold` tags that are only
        compared with. Raises `InputError` for groups of the wrong size, and for values out of range.
        """
        count = len(completions)
        for name, column in (
            ("record_id", record_id),
            ("c_ref", c_ref),
            ("reviewed", reviewed),
            ("gold", gold),
        ):
            if column is not None and len(column) != count:
                raise InputError(f"{name} has {len(column)} entries for {count} completions")
        reasons = None
        if completion_ids is not None and self.end_tokens:
            reasons = [None if len(ids) and ids[-1] in self.end_tokens else LENGTH for ids in completion_ids]
        texts = [answer_text(completion) for completion in completions]
        own = _Part(
            read_rollouts(texts, self.taxonomy, reasons),
            list(record_id),
            list(c_ref),
            [None] * count if reviewed is None else list(reviewed),
            [None] * count if gold is None else list(gold),
        )
        parts, rank = gather(own)
        # From here on every process sees the same, and fails or goes on together with the others.
        totals = self._reward(parts)
        if log_metric is not None:
            for name, value in self.metrics.items():
                log_metric(name, value)
        start = sum(len(part.keys) for part in parts[:rank])
        return [float(total) for total in totals[start : start + count]]

    def against(self, completion: Completion, target: Labels, c_ref: Confidences) -> float:
        """The reward of one completion against a target that is known beforehand: equations 7 and 8 without a vote.

        Of an attribute without a target every tag is wrong. Options that look at a group (`per_attribute`, the group
        filter) have no meaning here and are left out. Raises `InputError` for values out of range.
        """
        rollouts = read_rollouts([answer_text(completion)], self.taxonomy)
        tags, confidence = rollouts.tags[0], rollouts.confidence[0]
        right = tags == self._labels([target], np.zeros(1, np.int64), "target")[:, 0]
        weights = weigh(self._confidences([c_ref], np.zeros(1, np.int64))[:, 0])
        if self.settings.weight != "reference":
            weights = weigh(confidence) if self.settings.weight == "self" else np.ones(len(tags))
        return float(np.where(tags >= 0, weights * (2.0 * right - 1.0), BAD_FORM).sum())

    def _reward(self, parts: Sequence[_Part]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The rewards of all parts' rollouts, in order."""
        keys = [key for part in parts for key in part.keys]
        groups = group_rows(keys, self.group_size)
        totals = np.zeros(len(keys))
        if not groups:
            self.metrics = {}
            return totals
        rows = np.array(groups)  # [P, G]
        tags, confidence = (
            np.concatenate([part.rollouts[field] for part in parts])[rows].transpose(2, 0, 1)
            for field in (0, 1)
        )
        first = rows[:, 0]
        rewards = reward_groups(
            tags,
            confidence,
            [len(attribute.names) for attribute in self.taxonomy.attributes],
            self._confidences([c for part in parts for c in part.c_ref], first),
            self.settings,
            reviewed=self._labels([label for part in parts for label in part.reviewed], first, "reviewed"),
        )
        gold = self._labels([label for part in parts for label in part.gold], first, "gold")
        self.metrics = reward_metrics(rewards, tags, confidence, gold, self.taxonomy, self.settings)
        totals[rows] = rewards.total
        return totals

    def _confidences(self, column: Sequence[Confidences], rows: Codes) -> Codes:
        """C_ref as [K, P], from one row of each group."""
        names = self.taxonomy.names
        found = np.zeros((len(names), len(rows)), dtype=np.int64)
        for place, row in enumerate(rows):
            given = column[row]
            values = [given.get(name) for name in names] if isinstance(given, Mapping) else list(given)
            if len(values) != len(names):
                raise InputError(
                    f"c_ref should have one confidence for each of the {len(names)} attributes, found {len(values)}"
                )
            for k, value in enumerate(values):
                # Floats too: a data set that went through a table has lost its integers.
                if value is None or value not in range(1, FULL_CONFIDENCE + 1):
                    raise InputError(f"c_ref of {names[k]!r} should be 1..{FULL_CONFIDENCE}, found {value!r}")
                found[k, place] = int(value)
        return found

    def _labels(self, column: Sequence[Labels], rows: Codes, what: str) -> Codes:
        """Tags as codes [K, P], from one row of each group; `ABSENT` where none is given."""
        attributes = self.taxonomy.attributes
        found = np.full((len(attributes), len(rows)), ABSENT, dtype=np.int64)
        for place, row in enumerate(rows):
            given = column[row]
            if given is None:
                continue
            values = (
                [given.get(attribute.name) for attribute in attributes]
                if isinstance(given, Mapping)
                else list(given)
            )
            if len(values) != len(attributes):
                raise InputError(
                    f"{what} should have one tag for each of the {len(attributes)} attributes, found {len(values)}"
                )
            for k, (attribute, value) in enumerate(zip(attributes, values, strict=True)):
                if value:
                    found[k, place] = _code(attribute, value, what)
        return found


def _code(attribute: Attribute, tag: str, what: str) -> int:
    matched = attribute.match_tag(tag)
    if matched is None:
        raise InputError(f"{what}: {tag!r} is no tag of {attribute.name!r}")
    return attribute.codes[matched]


def answer_text(completion: Completion) -> str:
    """The text of a completion: itself, or the content of its last message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""
