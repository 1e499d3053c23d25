"""How well a model in training profiles held-out users: it answers their prompts, and the answers are parsed as in
serving and compared with the voted labels, and with gold where there is some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from cp_agents.errors import InputError
from cp_agents.evaluation.loading import Gold, load_gold
from cp_agents.evaluation.metrics import evaluate
from cp_agents.files import parse_line, raw_lines
from cp_agents.parsing import parse_answer
from cp_agents.schema import NA, Outcome, Status
from cp_agents.taxonomy import Taxonomy

_ROWS = 32
"""Users whose answers are generated at a time."""
_WINDOW = 16
"""Tokens at the end of an answer in which the text that completes it is looked for."""


class Answer(NamedTuple):
    """What the model wrote."""

    text: str
    complete: bool
    """Whether it ended by itself, rather than at the most tokens."""


@dataclass(frozen=True)
class EvalSet:
    """Held-out users and what they should come out as."""

    prompts: Mapping[str, tuple[int, ...]]
    """Token ids by user."""
    voted: Gold
    gold: Gold | None
    taxonomy: Taxonomy


def read_gold(path: Path, users: Set[str], taxonomy: Taxonomy) -> Gold:
    """Gold rows, `{"user_id", "truth": {...}}` or `{"user_id", "tags": {...}}`, of `users`.

    Raises `InputError` for other rows, where they speak of none of the users, and for tags that `taxonomy` has not:
    before a step is trained, since they are compared with only at the end.
    """
    plain = False
    for number, raw in raw_lines(path):
        try:
            first = parse_line(raw)
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
        plain = isinstance(first, dict) and "truth" not in first and "tags" in first
        break
    gold = {
        user: tags for user, tags in load_gold(path, "tags" if plain else "truth").items() if user in users
    }
    if not gold:
        raise InputError(f"{path} has none of the {len(users):,} users that it is to be compared with")
    _check_tags(path, gold, taxonomy)
    return gold


def _check_tags(path: Path, gold: Gold, taxonomy: Taxonomy) -> None:
    """Attributes that the taxonomy has not are nobody's business here, unless there are no others."""
    known = {attribute.name: attribute for attribute in taxonomy.attributes}
    for user, tags in gold.items():
        for name, tag in tags.items():
            if name in known and known[name].match_tag(tag) is None:
                raise InputError(
                    f"{path}: gold of user {user!r}: {tag!r} is not a tag of {name!r}: expected"
                    f" {', '.join(known[name].names)}"
                )
    if not any(name in known for tags in gold.values() for name in tags):
        raise InputError(f"{path} speaks of no attribute of {taxonomy.name}: expected {', '.join(known)}")


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    ends: Set[int],
    stop: str,
    max_tokens: int,
) -> list[Answer]:
    """The model's likeliest answer to each prompt, in order, several at a time.

    Answers end at a token of `ends` or with the text `stop`. Draws no random number, so training goes on as if
    nothing had happened.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        found = _generate(model, tokenizer, [prompts[i] for i in chosen], ends, stop, max_tokens)
        answers.update(zip(chosen, found, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], ends: Set[int], stop: str, max_tokens: int
) -> list[Answer]:
    import torch
    from transformers import StoppingCriteriaList

    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)

    def completed(so_far: Any, _scores: Any, **_: Any) -> Any:
        texts = tokenizer.batch_decode(so_far[:, width:][:, -_WINDOW:], skip_special_tokens=True)
        return torch.tensor([stop in text for text in texts], device=so_far.device)

    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([completed]),
        )
    answers = []
    for tokens in out[:, width:].tolist():
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        text = tokenizer.decode(tokens if end is None else tokens[:end], skip_special_tokens=True)
        head, closed, _ = text.partition(stop)
        answers.append(Answer(head + closed, end is not None or bool(closed)))
    return answers


def profiling_metrics(answers: Mapping[str, Answer], eval_set: EvalSet) -> dict[str, float]:
    """Numbers on the answers by user, all but the counts 0..1 or, for confidences, 1..5.

    `parse_rate`: users all of whose attributes were answered with a tag of the closed set. `na_rate` and
    `confidence` are means over the answered attributes. `macro_f1` and `macro_f1/ATTRIBUTE` are against the voted
    labels, silence and malformed answers being misses; `constant_macro_f1` is what the most frequent label answered
    for everyone reaches. `accuracy` and `coverage` are `evaluation.metrics`' selective_accuracy and coverage.
    With gold the same again, as `gold_macro_f1` and so on. A number that nothing defines is left out.
    """
    taxonomy = eval_set.taxonomy
    parsed = {
        user: parse_answer(a.text, taxonomy, finish_reason="stop" if a.complete else "length").attributes
        for user, a in answers.items()
    }
    answered = [v for values in parsed.values() for v in values.values() if v.outcome is Outcome.OK]
    found: dict[str, float | None] = {
        "users": float(len(parsed)),
        "parse_rate": _mean(
            all(v.outcome is Outcome.OK for v in values.values()) for values in parsed.values()
        ),
        "ended": _mean(a.complete for a in answers.values()),
        "na_rate": _mean(v.tag == NA for v in answered),
        "confidence": _mean(v.confidence or 0 for v in answered),
    }
    lines = [
        {
            "user_id": user,
            "profile": {
                name: {"status": Status.ACCEPTED, "tag": v.tag, "confidence": v.confidence}
                if v.outcome is Outcome.OK
                else {"status": Status.FAILED, "tag": NA, "confidence": 1}
                for name, v in values.items()
            },
        }
        for user, values in parsed.items()
    ]
    for prefix, truth in (("", eval_set.voted), ("gold_", eval_set.gold)):
        known = {user: tags for user, tags in (truth or {}).items() if user in parsed}
        if not known:
            continue
        result = evaluate(lines, known, taxonomy)
        average = result.average[0]  # tau 1: every answer counts
        found |= {
            f"{prefix}macro_f1": average.macro_f1,
            f"{prefix}accuracy": average.selective_accuracy,
            f"{prefix}coverage": average.coverage,
            f"{prefix}constant_macro_f1": result.best_constant_macro_f1,
        }
        found |= {f"{prefix}macro_f1/{name}": a.at_tau[0].macro_f1 for name, a in result.attributes.items()}
    return {name: value for name, value in found.items() if value is not None}


def should_stop(scores: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` rounds all failed to better the best one before them."""
    if patience is None or len(scores) <= patience:
        return False
    return max(scores[-patience:]) <= max(scores[:-patience])


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
