"""The Dawid-Skene model: who errs how, and what is true, learned together from votes alone.

Each sampler j (a teacher, whose repeated samples are exchangeable) has a confusion matrix: the probability
that it says tag l where tag t is true. Truths and matrices are estimated in turn by
expectation-maximisation (Dawid and Skene 1979), here with priors that keep rarely seen tags sensible: every
matrix row starts from `PSEUDO_VOTES` imaginary votes, of which a share of `PRIOR_SKILL` is right and the
rest is spread evenly; every tag starts from one imaginary record.

The model takes the samples of one sampler as independent given the truth. Samples of one LLM are not, so its
posteriors lie closer to 0 and 1 than they should; their order is what is of use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PSEUDO_VOTES = 5.0
PRIOR_SKILL = 0.6


class DawidSkene(NamedTuple):
    """A fitted model over R records, T tags and J samplers."""

    prior: NDArray[np.float64]
    """`[T]`: how frequent each tag is."""
    confusion: NDArray[np.float64]
    """`[J, T, T]`: probability that sampler j says tag l (last axis) where t (middle axis) is true."""
    posterior: NDArray[np.float64]
    """`[R, T]`: of each tag for each record; the prior where no sample survived."""
    iterations: int


def fit_dawid_skene(
    tags: NDArray[np.integer[Any]],
    n_tags: int,
    samplers: NDArray[np.integer[Any]] | None = None,
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
) -> DawidSkene:
    """Fit by expectation-maximisation from the shares of the votes; deterministic.

    `tags[R, M]` holds codes 0..n_tags-1, -1 for an absent answer (taken as missing at random). `samplers`
    says who drew each, as any integers, shape `[R, M]` or `[M]`; None means one sampler. The samplers of
    the result are in ascending order of these integers. Stops when no posterior moves by more than
    `tolerance`, at the latest after `max_iterations`.
    """
    rows, row = len(tags), np.arange(len(tags))[:, None]
    who = np.zeros(tags.shape, dtype=np.int64)
    if samplers is not None:
        names, codes = np.unique(np.broadcast_to(samplers, tags.shape), return_inverse=True)
        who = codes.reshape(tags.shape)
        n_samplers = max(1, len(names))
    else:
        n_samplers = 1
    alive = tags >= 0
    width = n_samplers * n_tags
    cell = row * width + who * n_tags + tags
    # votes[r, (j, l)]: how often sampler j said l of record r. The samples enter through these counts alone.
    votes = np.bincount(cell[alive], minlength=rows * width).reshape(rows, width).astype(float)
    heard = alive.any(axis=1, keepdims=True)

    pseudo = np.full((n_tags, n_tags), PSEUDO_VOTES * (1 - PRIOR_SKILL) / max(1, n_tags - 1))
    np.fill_diagonal(pseudo, PSEUDO_VOTES * PRIOR_SKILL)

    per_tag = votes.reshape(rows, n_samplers, n_tags).sum(axis=1)
    posterior = per_tag / np.maximum(per_tag.sum(axis=1, keepdims=True), 1.0)
    iteration = 0
    while True:
        iteration += 1
        weight = posterior * heard
        prior = (weight.sum(axis=0) + 1.0) / (weight.sum() + n_tags)
        said = (votes.T @ weight).reshape(n_samplers, n_tags, n_tags).transpose(0, 2, 1) + pseudo
        confusion = said / said.sum(axis=2, keepdims=True)

        log_p = np.log(prior) + votes @ np.log(confusion).transpose(0, 2, 1).reshape(width, n_tags)
        log_p -= log_p.max(axis=1, keepdims=True)
        updated = np.exp(log_p)
        updated /= updated.sum(axis=1, keepdims=True)
        moved = np.abs(updated - posterior).max(initial=0.0)
        posterior = updated
        if moved <= tolerance or iteration >= max_iterations:
            return DawidSkene(prior, confusion, posterior, iteration)
