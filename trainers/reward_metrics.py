"""What a step's rollouts say about the health of the training, as plain numbers."""

from __future__ import annotations

import numpy as np

from cp_agents.schema import CONFIDENCE_LEVELS, NA
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers.rewards import Codes, GroupRewards, RewardSettings


def reward_metrics(
    rewards: GroupRewards,
    tags: Codes,
    confidence: Codes,
    gold: Codes,
    taxonomy: Taxonomy,
    settings: RewardSettings,
) -> dict[str, float]:
    """Numbers of one step; `tags` and `confidence` are [K, P, G], `gold` is [K, P]. What cannot be had is left out.

    * `parse_rate`: share of rollouts all of whose attributes have a tag of the closed set; `answered`: share of
      attributes that have one; `na_rate`: share of NA among these
    * `majority_ratio`: mean share of a group's answers that name the vote's winner
    * `tag_entropy`: mean entropy of a group's tags in nats, 0 where all agree
    * `confidence_mean` and `confidence/1` .. `confidence/5`: mean and shares of the stated confidence
    * `reward_sum`: mean reward of equation 8 summed over attributes, and `reward/ATTRIBUTE` of each
    * `groups_kept`: share of groups that the filter left, where there is one
    * `label_accuracy`: share of targets that are gold; `reward_accuracy`: share of answers that the target judges
      as gold does, right or wrong
    """
    alive = tags >= 0
    answers = int(alive.sum())
    found = {"parse_rate": float(alive.all(axis=0).mean()), "answered": answers / max(alive.size, 1)}
    if answers:
        na = np.array([attribute.codes[NA] for attribute in taxonomy.attributes])[:, None, None]
        stated = confidence[alive]
        voted = rewards.votes.survivors > 0
        found["na_rate"] = float((tags == na).sum() / answers)
        found["majority_ratio"] = float(rewards.votes.share[voted].mean())
        found["tag_entropy"] = _entropy(tags, max(len(a.names) for a in taxonomy.attributes))
        found["confidence_mean"] = float(stated.mean())
        for level in CONFIDENCE_LEVELS:
            found[f"confidence/{level}"] = float((stated == level).mean())
    found["reward_sum"] = float(rewards.by_attribute.sum(axis=0).mean())
    for name, one in zip(taxonomy.names, rewards.by_attribute, strict=True):
        found[f"reward/{name}"] = float(one.mean())
    if settings.filters_groups:
        found["groups_kept"] = float(rewards.kept.mean())
    labelled = (gold >= 0) & (rewards.target >= 0)
    if labelled.any():
        found["label_accuracy"] = float((rewards.target == gold)[labelled].mean())
        judged = labelled[..., None] & alive
        same = (tags == rewards.target[..., None]) == (tags == gold[..., None])
        if judged.any():
            found["reward_accuracy"] = float(same[judged].mean())
    return found


def _entropy(tags: Codes, n_tags: int) -> float:
    """Mean entropy over the groups with an answer."""
    counts = np.stack([(tags == code).sum(axis=-1) for code in range(n_tags)], axis=-1)  # [K, P, T]
    total = counts.sum(axis=-1)
    share = counts / np.maximum(total, 1)[..., None]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)
    return float(entropy[total > 0].mean())
