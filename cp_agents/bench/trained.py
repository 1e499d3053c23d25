"""Models trained on labels, one per attribute: the paper's "ML-based" row, cross-validated over users.

Features of a user, from the cue block as a language model would see it: words and pairs of neighbouring words, short
items as a whole with their weight or count (a diary's minutes, say), and self-reported fields as a whole. They are
TF-IDF with 1 + log(count), of unit length; what stands in one training user alone is left out.

Such a model always answers. Its confidence is the fifth that its highest probability lies in: 1 up to 0.2, 5 above
0.8. Users whose gold is NA teach nothing. An attribute with one class in training is answered by that class, with
the probability of the rule of succession; with none, there is no answer.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cp_agents.bench.splits import fold_of
from cp_agents.cues import cue_lines
from cp_agents.errors import InputError, MissingExtraError
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.outcomes import Profiles
from cp_agents.schema import CONFIDENCE_LEVELS, NA, SELF_REPORTED
from cp_agents.taxonomy import Attribute, Taxonomy

TrainedModel = Literal["tfidf_lr", "lightgbm"]
TRAINED: tuple[TrainedModel, ...] = get_args(TrainedModel)
TITLES: dict[TrainedModel, str] = {
    "tfidf_lr": "logistic regression on TF-IDF",
    "lightgbm": "LightGBM on TF-IDF",
}

Mask = NDArray[np.bool_]
Probabilities = NDArray[np.float64]

# Every sign of the scripts that do without spaces is a word of its own.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_SHORT_ITEM = 12  # words; a longer text hardly occurs twice
_COLUMNS = 2**20  # features are hashed: no vocabulary of millions of pairs is kept
_MOST_FEATURES = 20_000  # those in most training users
_LEAST_USERS = 2  # training users that a feature has to occur in


class Round(NamedTuple):
    """Who teaches and who is answered about, masks [U]."""

    train: Mask
    test: Mask


def check_installed() -> None:
    """Raises `MissingExtraError` where scikit-learn or LightGBM is not there."""
    try:
        import lightgbm  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtraError("training baselines on labels", "bench") from None


def cross_validation(users: Sequence[str], folds: int) -> list[Round]:
    """Every user is answered about by a model of the other folds. Raises `InputError` for fewer than 2 folds."""
    if folds < 2:
        raise InputError(f"cross-validation needs 2 folds or more, found {folds}")
    fold = np.array([fold_of(user, folds) for user in users], np.int64)
    return [Round(fold != i, fold == i) for i in range(folds) if (fold == i).any()]


def held_out(users: Sequence[str], test: Sequence[str]) -> list[Round]:
    """One round: `test` is answered about by a model of all others."""
    chosen = set(test)
    mask = np.array([user in chosen for user in users], np.bool_)
    return [Round(~mask, mask)]


def features(block: str) -> Counter[str]:
    """The features of one cue block, and how much there is of each."""
    found: Counter[str] = Counter()
    for line in cue_lines(block):
        text = line.text.casefold()
        if line.source == SELF_REPORTED:
            found[f"={text}"] += 1
            continue
        words = _WORD.findall(text)
        for word in (*words, *map(" ".join, pairwise(words))):
            found[word] += line.count
        if len(words) <= _SHORT_ITEM and not line.condensed:
            # at least 1, so that the logarithm below is not negative
            found[f"{line.source}:{text}"] += max(1, round(line.weight or line.count))
    return found


def trained_profiles(
    blocks: Mapping[str, str],
    gold: Gold,
    taxonomy: Taxonomy,
    model: TrainedModel,
    rounds: Sequence[Round],
    seed: int = 0,
) -> Profiles:
    """What `model` says about the users that `rounds` test, in the shape of profiles.

    `blocks` are cue blocks by user, in the order of the rounds' masks. Raises `MissingExtraError`.
    """
    check_installed()
    users = list(blocks)
    counts = _hashed(features(block) for block in blocks.values())
    fit = _FITS[model]
    labels = {a.name: _labels(a, gold, users) for a in taxonomy.attributes}
    found: dict[str, dict[str, dict[str, Any]]] = {user: {} for user in users}
    for round_ in rounds:
        matrix = _tfidf(counts, round_.train)
        rows = np.flatnonzero(round_.test)
        for attribute in taxonomy.attributes:
            codes = labels[attribute.name]
            taught = round_.train & (codes >= 0)
            classes, target = np.unique(codes[taught], return_inverse=True)
            if not len(classes):
                continue
            chances = _chances(
                fit, matrix, taught, round_.test, target, len(classes), len(attribute.names), seed
            )
            for row, chance in zip(rows, chances, strict=True):
                best = int(chance.argmax())
                found[users[row]][attribute.name] = answer(
                    attribute.names[classes[best]], float(chance[best])
                )
    return found


def answer(tag: str, chance: float) -> dict[str, Any]:
    """One attribute of a profile: the confidence is the fifth that `chance` lies in."""
    level = math.ceil(round(chance * CONFIDENCE_LEVELS[-1], 9))
    return {"tag": tag, "confidence": min(max(level, CONFIDENCE_LEVELS[0]), CONFIDENCE_LEVELS[-1])}


def _labels(attribute: Attribute, gold: Gold, users: Sequence[str]) -> NDArray[np.int64]:
    """Tag codes [U], -1 where gold is silent or NA."""
    tags = (attribute.match_tag(gold.get(user, {}).get(attribute.name, NA)) for user in users)
    return np.array([-1 if tag in (None, NA) else attribute.codes[tag] for tag in tags], np.int64)


def _hashed(found: Iterator[Counter[str]]) -> Any:
    """Counts [U, columns], sparse."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(_COLUMNS, alternate_sign=False)
    return hasher.transform({k: float(v) for k, v in row.items()} for row in found).tocsr()


def _tfidf(counts: Any, train: Mask) -> Any:
    """TF-IDF [U, F] of the features that the training users share; their frequencies are those of `train` alone."""
    from sklearn.feature_extraction.text import TfidfTransformer

    with_it = np.bincount(counts[train].indices, minlength=counts.shape[1])
    order = np.argsort(-with_it, kind="stable")[:_MOST_FEATURES]
    columns = np.sort(order[with_it[order] >= _LEAST_USERS])
    if not len(columns):
        return counts[:, columns]
    matrix = counts[:, columns]
    return TfidfTransformer(sublinear_tf=True).fit(matrix[train]).transform(matrix).tocsr()


Fit = Callable[[Any, NDArray[np.int64], Any, int], Probabilities]
"""From a matrix and the classes 0..C-1 of those who teach, and the matrix of those who are asked, to chances [N, C]."""


def _chances(
    fit: Fit,
    matrix: Any,
    taught: Mask,
    test: Mask,
    target: NDArray[np.int64],
    classes: int,
    tags: int,
    seed: int,
) -> Probabilities:
    """Chances [N, C] of the `classes` that occur; `tags` is how many there could be, NA among them."""
    shares = np.bincount(target, minlength=classes) / len(target)
    if classes == 1:
        # Laplace: one class seen n times is no certainty. NA is no class.
        shares = np.array([(len(target) + 1) / (len(target) + tags - 1)])
    if classes == 1 or not matrix.shape[1]:
        return np.tile(shares, (int(test.sum()), 1))
    return fit(matrix[taught], target, matrix[test], seed)


def _logistic(matrix: Any, target: NDArray[np.int64], asked: Any, seed: int) -> Probabilities:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Balanced: every tag counts alike, as in macro-F1, and a rare one is answered at all.
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix, target)
    return np.asarray(model.predict_proba(asked), np.float64)


def _lightgbm(matrix: Any, target: NDArray[np.int64], asked: Any, seed: int) -> Probabilities:
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(
        n_estimators=50, num_leaves=7, learning_rate=0.1, min_child_samples=10, class_weight="balanced",
        random_state=seed, n_jobs=1, deterministic=True, force_row_wise=True, verbose=-1,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on names that a sparse matrix has not
        model.fit(matrix, target)
        return np.asarray(model.predict_proba(asked), np.float64)


_FITS: dict[TrainedModel, Fit] = {"tfidf_lr": _logistic, "lightgbm": _lightgbm}
