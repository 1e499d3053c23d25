"""The confidence-guided reward over groups of rollouts (Conf-Profile section 4.3, equations 6-8). Pure, numpy only.

A group is the G rollouts of one prompt. Per attribute the group votes for its quasi ground truth (equation 6, by
`cp_agents.voting`, so with the same tie rules), each rollout gets +w for naming it and -w for naming another tag
(equation 7), or -1 where it gave no tag of the closed set (equation 8); a rollout's reward is the sum over attributes.

What the paper leaves open, and what is done here:

* NA is a tag like the others: it votes, it can win, and a rollout is right to say it when it did.
* A rollout without a readable answer does not vote. Where none of a group has one, there is no target and all get -1.
* Confidence is taken as the rollout states it: unlike in profiling, evidence that stands nowhere in the record does
  not cap it, since the paper's reward looks at tags and form alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cp_agents.parsing import parse_answer
from cp_agents.schema import CONFIDENCE_LEVELS
from cp_agents.taxonomy import Taxonomy
from cp_agents.voting import FULL_CONFIDENCE, Votes, vote_attributes

Codes = NDArray[np.int64]
Numbers = NDArray[np.float64]

ABSENT = -1
"""Code of an answer or a label that is not there."""
BAD_FORM = -1.0
"""Reward for an attribute without a tag of its closed set (equation 8), whatever C_ref is."""
_SPREAD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as TRL does."""


class RewardSettings(BaseModel):
    """How rollouts become rewards. The defaults are the paper's; each other choice says what it is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Literal["online", "clipped", "rank", "none"] = "online"
    """Which confidence weighs the vote for the quasi ground truth.

    `online` (equation 6) takes what the rollouts state. The frozen C_ref keeps a policy from raising its reward's
    weight by boasting, but not from steering the target: a tag always said with 5 outvotes two said with 2. `clipped`
    bounds that pull (see `clip`); `rank` counts only who of the group is surer than whom, so that confidence that
    rises for all alike changes nothing; `none` is a majority vote, with no pull at all.
    """
    clip: tuple[int, int] = (2, 4)
    """Lowest and highest confidence that `clipped` counts: the surest rollout weighs twice the least sure, not five
    times."""
    weight: Literal["reference", "self", "none"] = "reference"
    """What weighs an attribute's reward: the frozen C_ref (equation 7); `self`, the rollout's own confidence, which
    the policy can inflate at will (there to reproduce Table 5); `none`, 1 throughout (the ablation without confidence).
    """
    per_attribute: bool = False
    """Standardise each attribute's rewards within the group (mean 0, deviation 1) before they are weighed and summed.

    In a plain sum an attribute that the group disagrees on drowns one on which a single rollout differs; standardised,
    both say equally much. Dividing by the deviation cancels a weight that is equal for all rollouts, so C_ref (not
    `self`, which differs between rollouts) is applied once more behind it.
    """
    label_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Lambda: the weight, in place of w(C_ref), of attributes that a person has reviewed. There the person's tag is
    the target, since it is worth more than any vote; 1 is the weight of full confidence."""
    lowest: float | None = Field(default=None, allow_inf_nan=False)
    """Groups whose mean reward is below this share of the highest possible teach nothing (all their rewards are 0).

    DF-GRPO: a group that agrees on nothing has a random target. The share is 1 where every rollout names every
    target, and below 0 where most do not."""
    highest: float | None = Field(default=None, allow_inf_nan=False)
    """The same for groups above this share: what is left there to learn is noise about a settled answer."""

    @model_validator(mode="after")
    def _check(self) -> RewardSettings:
        low, high = self.clip
        if not CONFIDENCE_LEVELS[0] <= low <= high <= FULL_CONFIDENCE:
            raise ValueError(f"clip should be two confidences of 1..5 in order, found {low} and {high}")
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            raise ValueError(
                f"lowest ({self.lowest:g}) is above highest ({self.highest:g}): no group would be left"
            )
        return self

    @property
    def filters_groups(self) -> bool:
        """Whether some groups may be made to teach nothing."""
        return self.lowest is not None or self.highest is not None


class Rollouts(NamedTuple):
    """What rollouts say, as codes: one row per rollout, one column per attribute."""

    tags: Codes
    """[N, K]: position in `Attribute.names`, or `ABSENT`."""
    confidence: Codes
    """[N, K]: 1..5, or 0 where the tag is absent."""


class GroupRewards(NamedTuple):
    """The rewards of P groups of G rollouts on K attributes, and how they came about."""

    total: Numbers
    """[P, G]: what is to be maximised. 0 throughout for a group that was filtered out."""
    by_attribute: Numbers
    """[K, P, G]: R_k of equation 8, before anything is standardised or filtered."""
    target: Codes
    """[K, P]: the reviewed tag where there is one, else the quasi ground truth; `ABSENT` where nothing was voted."""
    votes: Votes
    """The vote of equation 6, arrays [K, P] and [K, P, G]."""
    kept: NDArray[np.bool_]
    """[P]: False for groups that the filter took out."""


def read_rollouts(
    texts: Sequence[str], taxonomy: Taxonomy, finish_reasons: Sequence[str | None] | None = None
) -> Rollouts:
    """Parse completions with the tolerant parser that serving uses, so that both call the same answers good.

    `finish_reasons` says which ended by "length": their half-written last attribute is no answer. Never raises.
    """
    attributes = taxonomy.attributes
    tags = np.full((len(texts), len(attributes)), ABSENT, dtype=np.int64)
    confidence = np.zeros_like(tags)
    for row, text in enumerate(texts):
        reason = None if finish_reasons is None else finish_reasons[row]
        parsed = parse_answer(text, taxonomy, finish_reason=reason).attributes
        for column, attribute in enumerate(attributes):
            found = parsed[attribute.name]
            if found.outcome == "ok" and found.tag is not None and found.confidence is not None:
                tags[row, column] = attribute.codes[found.tag]
                confidence[row, column] = found.confidence
    return Rollouts(tags, confidence)


def weigh(confidence: NDArray[Any]) -> Numbers:
    """w of equation 7: 1..5 to 0.2..1, linear."""
    return np.asarray(confidence, dtype=float) / FULL_CONFIDENCE


def quasi_ground_truth(
    tags: Codes, confidence: Codes, n_tags: Sequence[int], settings: RewardSettings
) -> Votes:
    """Equation 6 over whole groups: `tags[K, P, G]`, `confidence[K, P, G]`, `n_tags[k]` tags of attribute k."""
    if settings.target == "none":
        return vote_attributes(tags, confidence, n_tags, "majority")
    if settings.target == "clipped":
        confidence = np.clip(confidence, *settings.clip)
    elif settings.target == "rank":
        confidence = rank_confidence(tags, confidence)
    return vote_attributes(tags, confidence, n_tags)


def rank_confidence(tags: Codes, confidence: Codes) -> Codes:
    """Each rollout's place among the answers of its group (last axis), as a level 1..5.

    The level is the fifth in which the middle of those equally sure lies: all equally sure are all 3. What raises all
    confidences and keeps their order leaves it as it is.
    """
    alive = tags >= 0
    per_level = np.stack([(alive & (confidence == level)).sum(axis=-1) for level in CONFIDENCE_LEVELS])
    below = np.cumsum(per_level, axis=0) - per_level
    answers = np.maximum(alive.sum(axis=-1), 1)
    level_of = 1 + FULL_CONFIDENCE * (2 * below + per_level) // (2 * answers)
    index = np.clip(confidence - 1, 0, FULL_CONFIDENCE - 1)
    ranked = np.take_along_axis(np.moveaxis(level_of, 0, -1), index, axis=-1)
    return np.where(alive, ranked, 0)


def reward_groups(
    tags: Codes,
    confidence: Codes,
    n_tags: Sequence[int],
    c_ref: Codes,
    settings: RewardSettings | None = None,
    *,
    reviewed: Codes | None = None,
) -> GroupRewards:
    """The rewards of P groups: equations 6-8, with what `settings` changes.

    `tags[K, P, G]` and `confidence[K, P, G]` are as in `Rollouts`, attributes first; `c_ref[K, P]` is 1..5;
    `reviewed[K, P]` are tag codes, `ABSENT` where no person has spoken. Raises `ValueError` for arrays that break this.
    """
    settings = settings or RewardSettings()
    attributes, groups, _ = tags.shape
    reviewed = np.full((attributes, groups), ABSENT) if reviewed is None else reviewed
    if c_ref.shape != (attributes, groups) or reviewed.shape != c_ref.shape:
        raise ValueError(f"expected c_ref and reviewed of shape {(attributes, groups)}, found {c_ref.shape}")
    if c_ref.size and not ((c_ref >= 1) & (c_ref <= FULL_CONFIDENCE)).all():
        raise ValueError(f"a reference confidence lies outside 1..{FULL_CONFIDENCE}")
    votes = quasi_ground_truth(tags, confidence, n_tags, settings)
    has_label = reviewed >= 0
    target = np.where(has_label, reviewed, votes.winner)

    group_weight = weigh(c_ref) if settings.weight == "reference" else np.ones(c_ref.shape)
    group_weight = np.where(has_label, settings.label_weight, group_weight)[..., None]
    weight = np.broadcast_to(group_weight, tags.shape)
    if settings.weight == "self":
        weight = np.where(has_label[..., None], weight, weigh(confidence))

    right = tags == target[..., None]
    by_attribute = np.where(tags >= 0, weight * (2.0 * right - 1.0), BAD_FORM)
    summed = _standardise(by_attribute) * group_weight if settings.per_attribute else by_attribute
    total = summed.sum(axis=0)
    kept = _kept(by_attribute, group_weight, settings)
    return GroupRewards(np.where(kept[:, None], total, 0.0), by_attribute, target, votes, kept)


def _standardise(rewards: Numbers) -> Numbers:
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    spread = rewards.std(axis=-1, ddof=1, keepdims=True)
    standard: Numbers = centred / (spread + _SPREAD_FLOOR)
    return standard


def _kept(by_attribute: Numbers, highest: Numbers, settings: RewardSettings) -> NDArray[np.bool_]:
    """Which groups' mean reward, as a share of the highest possible, lies between the thresholds.

    A share, because the highest possible reward differs between users with their C_ref: by the bare mean, a user
    whom the reference was unsure of would look like one whom the group disagrees on.
    """
    possible = np.maximum(highest.sum(axis=(0, 2)), 1e-9)
    share = by_attribute.sum(axis=0).mean(axis=-1) / possible
    low = -np.inf if settings.lowest is None else settings.lowest
    high = np.inf if settings.highest is None else settings.highest
    kept: NDArray[np.bool_] = (share >= low) & (share <= high)
    return kept
