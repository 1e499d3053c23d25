"""How long the reward of a GRPO step takes: `python -m benchmarks.reward_speed`.

4,096 completions, as in the paper's step (128 prompts, 32 rollouts), are parsed, voted on and rewarded, once as a
healthy policy writes them and once with all kinds of broken answers, which the tolerant parser reads more slowly.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from cp_agents.taxonomy import Taxonomy, load_taxonomy
from cp_agents.trainers.confidence_reward import ConfidenceReward
from cp_agents.wire import WireAnswer, write_answer

WORDS = (
    "sleeping",
    "cooking",
    "office",
    "meeting",
    "school",
    "football",
    "evening",
    "bus",
    "letters",
    "garden",
)


def completions(taxonomy: Taxonomy, count: int, broken: float, seed: int = 0) -> list[str]:
    """Answers with evidence of some words; a share of them `broken` in one of five ways."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = write_answer(
            WireAnswer(a.name, rng.choice(a.names), rng.randint(1, 5), "; ".join(rng.choices(WORDS, k=6)))
            for a in taxonomy.attributes
        )
        if rng.random() < broken:
            text = rng.choice(
                (
                    text[: len(text) * 2 // 3],
                    "Sure, here is the profile:\n" + text,
                    text.replace("</score>", "", 1),
                    text.replace("<tag>", "<tag>**"),
                    "<think>\nWho may this be?\n</think>\n" + text,
                )
            )
        texts.append(text)
    return texts


def measure(
    prompts: int = 128,
    rollouts: int = 32,
    broken: float = 0.0,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds for one step's rewards by `clock`, the best of `repeats`; texts are new ones every time."""
    taxonomy = load_taxonomy()
    reward = ConfidenceReward(taxonomy, group_size=rollouts)
    keys = [i // rollouts for i in range(prompts * rollouts)]
    c_ref = [[1 + k % 5] * len(taxonomy.names) for k in keys]
    best = float("inf")
    for seed in range(repeats):
        texts = completions(taxonomy, len(keys), broken, seed)
        start = clock()
        reward(None, texts, record_id=keys, c_ref=c_ref)
        best = min(best, clock() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rollouts", type=int, default=32)
    arguments = parser.parse_args()
    count = arguments.prompts * arguments.rollouts
    for broken in (0.0, 0.2, 1.0):
        seconds = measure(arguments.prompts, arguments.rollouts, broken)
        print(f"{count:,} completions, {broken:.0%} broken: {seconds:.2f} s")


if __name__ == "__main__":
    main()
