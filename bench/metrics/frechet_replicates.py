"""Fréchet distances of several methods over shared resamples: the same target, many replicates.

A resample holds item i c_i times; with n = sum c, s = c / n and r_i = sqrt(c_i / (n - 1)):

    means          m = X's, for all resamples in one matrix product
    tr S           sum_i r_i^2 |x_i|^2 - n / (n - 1) |m|^2; features themselves are not touched again
    Gram form      the centred, scaled features are a_i = r_i (x_i - m), b_i = r_i (y_i - n), and their
                   product A B' is r_i r_j (C_ij - (Cs)_i - (C's)_j + s'Cs), where C = X Y' is made
                   once a method. tr (S^1/2 T S^1/2)^1/2 is its nuclear norm, the sum of the roots of
                   the eigenvalues of the symmetric A B' B A', [K,K] for the K items held: a product
                   and a symmetric eigenproblem cost a fourth of a singular value decomposition.
    moments form   with more items held than dimensions: T^1/2 once a resample for all methods, then
                   the eigenvalues of T^1/2 S T^1/2, [D,D], one method after another.

The root of an eigenvalue loses half of its digits near 0: a singular value below 1e-8 of the largest
is off by as much as 1e-8 of it, which no interval can see. Values that are published come from
`bench.metrics.frechet`, by singular values.

Half-samples (`bench.stats.half_samples`) hold N/2 items once each: no item is repeated, which is what
makes the plain bootstrap too wide with N <= D, and the eigenproblems are the smaller for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.types import BenchError

_Cross = Callable[[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def frechet_replicates(
    samples: Mapping[str, np.ndarray], target: np.ndarray, *, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the Fréchet distance of each method to the target on every resample, [R] float64 each.

    samples: features [N,D] by method, row i of each belonging to item i, as row i of target [N,D];
    counts: [R,N], how often each resample holds each item (`Resamples.counts`, `half_samples`). The
    replicates of two methods subtract: both hold the same items. BenchError for other shapes.
    """
    pairs = {name: checked_pair(features, target) for name, features in samples.items()}
    for name, (first, second) in pairs.items():
        if len(first) != len(second) or counts.shape[1:] != (len(second),):
            raise BenchError(
                f"samples, targets and counts must pair up: {name} has {len(first)} items, the "
                f"target {len(second)}, the counts {counts.shape[-1]}"
            )
    total = counts.sum(axis=1, dtype=np.float64)
    if len(counts) == 0 or total.min() < 2:
        raise BenchError("every resample needs at least 2 items")
    weights = counts.astype(np.float64)
    few = int((counts > 0).sum(axis=1).max()) <= np.shape(target)[1]
    return _replicates(pairs, weights, total, cross=_gram_cross if few else _moments_cross)


def _replicates(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    total: np.ndarray,
    *,
    cross: _Cross,
) -> dict[str, np.ndarray]:
    """Join mean gap, traces and cross trace; all features are shifted by the target's mean."""
    if not pairs:
        return {}
    shift = next(iter(pairs.values()))[1].mean(axis=0)
    target = next(iter(pairs.values()))[1] - shift
    share = weights / total[:, None]
    names = list(pairs)
    sets = [pairs[name][0] - shift for name in names]
    centre = share @ target
    own = _spread(target, centre, weights, total)
    traces = cross(sets, target, weights, total)
    found = {}
    for name, features, trace in zip(names, sets, traces, strict=True):
        mean = share @ features
        gap = ((mean - centre) ** 2).sum(axis=1)
        spread = own + _spread(features, mean, weights, total)
        found[name] = np.maximum(0.0, gap + spread - 2.0 * trace)
    return found


def _spread(features: np.ndarray, mean: np.ndarray, weights: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the trace of the unbiased covariance on each resample, [R]."""
    squares = weights @ (features**2).sum(axis=1) - total * (mean**2).sum(axis=1)
    return np.asarray(squares / (total - 1.0))


def _gram_cross(
    sets: list[np.ndarray], target: np.ndarray, weights: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """Return the nuclear norms of A B', [methods,R], from X Y' made once a method."""
    norms = np.empty((len(sets), len(weights)))
    share = weights / total[:, None]
    for line, features in zip(norms, sets, strict=True):
        gram = features @ target.T
        left, right = share @ gram, share @ gram.T
        middle = (left * share).sum(axis=1)
        for k, row in enumerate(weights):
            held = np.flatnonzero(row)
            root = np.sqrt(row[held] / (total[k] - 1.0))
            centred = gram[np.ix_(held, held)] - left[k, held] - right[k, held, None] + middle[k]
            product = root[:, None] * centred * root
            line[k] = _root_sum(product @ product.T)
    return norms


def _moments_cross(
    sets: list[np.ndarray], target: np.ndarray, weights: np.ndarray, total: np.ndarray
) -> np.ndarray:
    """Return tr (T^1/2 S T^1/2)^1/2, [methods,R]; T^1/2 is shared by the methods."""
    traces = np.empty((len(sets), len(weights)))
    for k, row in enumerate(weights):
        values, vectors = np.linalg.eigh(_covariance(target, row, total[k]))
        root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
        for line, features in zip(traces, sets, strict=True):
            line[k] = _root_sum(root @ _covariance(features, row, total[k]) @ root)
    return traces


def _covariance(features: np.ndarray, row: np.ndarray, total: float) -> np.ndarray:
    held = np.flatnonzero(row)
    some, weight = features[held], row[held]
    centred = some - (weight @ some) / total
    return np.asarray((centred * (weight / (total - 1.0))[:, None]).T @ centred)


def _root_sum(symmetric: np.ndarray) -> float:
    values = np.linalg.eigvalsh((symmetric + symmetric.T) / 2)
    return float(np.sqrt(np.clip(values, 0.0, None)).sum())
