"""Open attributes: free-text values clustered by meaning, so that everything after can count them like tags.

Within one record the values of its M samples are clustered (average linkage, each sample a point, joined while the
mean similarity is `THRESHOLD` or more), and the clusters are what equations 3-5 vote on: codes 0..M-1 in the
order in which they are first named, M for NA, which is a cluster of its own. A cluster goes by the wording with the
highest sum of confidences, then the most confident one, then the first: the vote goes on inside the winner.

Over all users the same clustering makes a table of values, and of an open attribute a closed one (`closed`): its tags
are the clusters, its aliases their wordings. Evaluation, comparison and report look at open attributes through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError
from cp_agents.open_text import THRESHOLD, alike, starts_of, words_of
from cp_agents.schema import NA
from cp_agents.taxonomy import Attribute, Tag, Taxonomy

Words = tuple[str, ...]
Similarity = Callable[[Sequence[Words]], NDArray[np.float64]]
"""From N values, by their words, to how alike they are `[N, N]`: symmetric, 0..1."""

MOST_CLUSTERED = 2_000
"""Different values that are clustered pair by pair; of more, the most frequent are, and each of the others joins the
cluster that has the value most like it."""
_HAIR = 1e-9


class Value(NamedTuple):
    """One cluster of values over many users."""

    name: str
    """The most frequent wording, of equals the first."""
    users: int
    wordings: dict[str, int]
    """How often each was written, the most frequent first."""


def similarities(values: Sequence[Words]) -> NDArray[np.float64]:
    """`alike` for every pair, the default similarity."""
    found = np.eye(len(values))
    earlier = _Index()
    for i, one in enumerate(values):
        for j in earlier.candidates(one):
            found[i, j] = found[j, i] = alike(one, values[j])
        earlier.add(i, one)
    return found


class _Index:
    """Numbered values by how their words begin, so that only pairs with something in common are compared."""

    def __init__(self) -> None:
        self._by_start: dict[str, list[int]] = {}

    def add(self, number: int, words: Words) -> None:
        for start in starts_of(words):
            self._by_start.setdefault(start, []).append(number)

    def candidates(self, words: Words) -> list[int]:
        return sorted({i for start in starts_of(words) for i in self._by_start.get(start, ())})


def linked(
    similar: NDArray[np.floating[Any]], sizes: Sequence[int], threshold: float = THRESHOLD
) -> NDArray[np.int64]:
    """Average linkage: the cluster `[N]` of each of N values, named by its first member.

    `similar[N, N]` is symmetric; value i stands for `sizes[i]` equal points. The two most similar clusters are joined,
    of equals the first, as long as the mean similarity of their points is `threshold` or more.
    """
    n = len(similar)
    near = np.array(similar, np.float64)
    np.fill_diagonal(near, -1.0)
    weight = np.array(sizes, np.float64)
    cluster = np.arange(n)
    best = near.max(axis=1, initial=-1.0)
    for _ in range(n - 1):
        i = int(best.argmax())
        if best[i] < threshold - _HAIR:
            break
        j = int(near[i].argmax())
        i, j = min(i, j), max(i, j)
        touched = np.maximum(near[i], near[j])
        row = np.where(
            (near[i] < 0) | (near[j] < 0),
            -1.0,
            (weight[i] * near[i] + weight[j] * near[j]) / (weight[i] + weight[j]),
        )
        weight[i] += weight[j]
        near[i] = near[:, i] = row
        near[j] = near[:, j] = best[j] = -1.0
        cluster[cluster == j] = i
        # A mean is never above the larger of the two, so only those whose best was i or j can have changed.
        for k in np.flatnonzero((touched >= best) & (best >= 0)):
            best[k] = near[k].max()
        best[i] = near[i].max()
    return cluster


def clusters(
    counts: Mapping[Words, int], similarity: Similarity = similarities, threshold: float = THRESHOLD
) -> dict[Words, Words]:
    """For each value the one that its cluster is named by; the order of `counts` does not matter."""
    if len(counts) == 1:
        return {words: words for words in counts}
    ranked = sorted(counts, key=lambda words: (-counts[words], words))
    core, rest = sorted(ranked[:MOST_CLUSTERED]), ranked[MOST_CLUSTERED:]
    labels = linked(similarity(core), [counts[words] for words in core], threshold)
    found = {words: core[label] for words, label in zip(core, labels.tolist(), strict=True)}
    index = _Index()
    for number, words in enumerate(core if rest else ()):
        index.add(number, words)
    for words in rest:
        near = [(alike(words, core[i]), -i) for i in index.candidates(words)]
        likeness, place = max(near, default=(0.0, 0))
        found[words] = found[core[-place]] if likeness >= threshold else words
    return found


# --- what cannot be done with open attributes


def check_open(
    taxonomy: Taxonomy, *, vote: str | None = None, confidence: str | None = None, adaptive: str | None = None
) -> None:
    """Raises `InputError` for a vote, a source of confidence or a stopping rule that open attributes cannot have."""
    if not (names := [a.name for a in taxonomy.attributes if a.open]):
        return
    if vote == "dawid_skene":
        raise InputError(
            f"a dawid_skene vote learns confusions between the tags that all users share, and {names[0]} is open:"
            " choose weighted, majority, mean or softmax"
        )
    if confidence in ("logprob", "combined"):
        raise InputError(
            f"confidence {confidence} weighs by what the model gave a tag among the attribute's tags, and {names[0]} is"
            " open: choose verbal or agreement"
        )
    if adaptive == "exact":
        raise InputError(
            f"adaptive sampling by exact cannot tell when {names[0]} is settled, since a wording still to come may join"
            " two clusters: choose bayes, or leave out adaptive"
        )


def refuse_open(taxonomy: Taxonomy, what: str) -> None:
    """Raises `InputError` for a taxonomy with open attributes, of which `what` cannot be made."""
    if name := next((a.name for a in taxonomy.attributes if a.open), None):
        raise InputError(
            f"{what} need the tags of a closed set, and {name} is open: `cp-agents values --write-tags` closes it"
        )


# --- one record


Book = tuple[str | None, ...]
"""What the codes of one record's clusters are called `[M + 1]`: wordings, None where there is no cluster, NA last."""


def na_code(attribute: Attribute, samples: int) -> int:
    """The code of NA in votes."""
    return samples if attribute.open else len(attribute.names) - 1


def n_tags(attribute: Attribute, samples: int) -> int:
    """How many codes a vote on the attribute has, NA's among them: of an open one a cluster per sample at most."""
    return na_code(attribute, samples) + 1


def record_book(
    answers: Iterable[tuple[int, str, float]],
    samples: int,
    similarity: Similarity = similarities,
    threshold: float = THRESHOLD,
) -> tuple[dict[int, int], Book]:
    """The clusters of one record's answers `(sample_index, value, confidence)`: codes by sample, and the book."""
    said = sorted(answers)
    words = {text: words_of(text) for _, text, _ in said if text != NA}
    counts = Counter(words[text] for _, text, _ in said if text != NA)
    of = clusters(counts, similarity, threshold) if words else {}
    code_of: dict[Words, int] = {}
    codes: dict[int, int] = {}
    wordings: list[dict[Words, list[tuple[float, int, str]]]] = []
    for index, text, confidence in said:
        if text == NA:
            codes[index] = samples
            continue
        code = codes[index] = code_of.setdefault(of[words[text]], len(code_of))
        if code == len(wordings):
            wordings.append({})
        wordings[code].setdefault(words[text], []).append((confidence, -index, text))
    names = [_shown(each.values()) for each in wordings]
    return codes, (*names, *[None] * (samples - len(names)), NA)


def _shown(wordings: Iterable[Sequence[tuple[float, int, str]]]) -> str:
    """The name of a cluster; each wording comes as its `(confidence, -sample_index, text)`."""
    weighed = ((sum(confidence for confidence, *_ in written), max(written)) for written in wordings)
    return max((total, *best) for total, best in weighed)[3]


# --- many users


def value_table(counts: Mapping[str, int], similarity: Similarity = similarities) -> list[Value]:
    """Values over many users, the most frequent first; NA is left out."""
    written = {text: count for text, count in counts.items() if text != NA and count > 0}
    if not written:
        return []
    by_words: Counter[Words] = Counter()
    for text, count in written.items():
        by_words[words_of(text)] += count
    of = clusters(by_words, similarity)
    members: dict[Words, list[str]] = {}
    for text in written:
        members.setdefault(of[words_of(text)], []).append(text)
    found = []
    for texts in members.values():
        ordered = sorted(texts, key=lambda text: (-written[text], text))
        # "Teacher" and "teacher" are one wording for the name, so that spelling does not split its votes
        name = max(ordered, key=lambda text: by_words[words_of(text)])
        found.append(Value(name, sum(written[t] for t in texts), {t: written[t] for t in ordered}))
    return sorted(found, key=lambda value: (-value.users, value.name))


def closed_attribute(attribute: Attribute, counts: Mapping[str, int]) -> Attribute:
    """The open attribute as a closed set of the values in `counts`; as it is where there are none."""
    table = value_table(counts)
    if not attribute.open or not table:
        return attribute
    # Not validated: wordings that are spelled alike are of one cluster, and thousands of them take their time.
    tags = [Tag.model_construct(name=v.name, aliases=[w for w in v.wordings if w != v.name]) for v in table]
    return Attribute.model_construct(
        name=attribute.name,
        description=attribute.description,
        self_reported=attribute.self_reported,
        open=False,
        tags=tags,
    )


def closed(taxonomy: Taxonomy, values: Iterable[Mapping[str, str | None]]) -> Taxonomy:
    """The taxonomy with every open attribute closed over `values`, each `{attribute: value}` of one user.

    A taxonomy without open attributes is given back as it is. What the other users wrote decides which wordings are one
    tag, so the same two values may be one in a large run and two in a small one.
    """
    names = [a.name for a in taxonomy.attributes if a.open]
    if not names:
        return taxonomy
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for user in values:
        for name in names:
            if (text := taxonomy[name].match_tag(user.get(name) or "")) is not None:
                counts[name][text] += 1
    attributes = [closed_attribute(a, counts[a.name]) if a.open else a for a in taxonomy.attributes]
    return Taxonomy.model_construct(
        name=taxonomy.name, description=taxonomy.description, attributes=attributes, example=taxonomy.example
    )
