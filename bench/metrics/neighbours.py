"""Precision, recall, density and coverage: what a Fréchet distance folds into one number, apart.

Around each feature lies the ball that reaches its k-th nearest neighbour of its own set:

    precision  share of samples inside the ball of some target      (Kynkäänniemi et al. 2019,
    recall     share of targets inside the ball of some sample       arXiv 1904.06991)
    density    mean number of target balls that hold a sample, / k  (Naeem et al. 2020,
    coverage   share of targets whose ball holds some sample         arXiv 2002.09797)

Distances are Euclidean, k is 5, balls are open, as in the `prdc` package.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.types import BenchError

NEAREST = 5
NAMES = ("precision", "recall", "density", "coverage")
SHARES = ("precision", "recall", "coverage")  # density may be above 1


def prdc(sample: np.ndarray, target: np.ndarray, *, k: int = NEAREST) -> dict[str, float]:
    """Return the four numbers by name for features [N,D] and [M,D], N and M above k.

    precision, recall and coverage are in [0, 1]; density can exceed 1.
    """
    first, second = checked_pair(sample, target)
    return from_distances(
        squared_distances(first, first),
        squared_distances(second, second),
        squared_distances(first, second),
        k,
    )


class PairedPrdc:
    """The four numbers as functions of item counts, for the jackknife: `statistic("recall")`.

    Item i is the pair (sample i, target i). Counts are 0 or 1: an item held twice would be its own
    nearest neighbour, so the bootstrap is refused.
    """

    def __init__(self, sample: np.ndarray, target: np.ndarray, *, k: int = NEAREST) -> None:
        """Take features [N,D] of samples and targets, N above k; distances are computed once."""
        first, second = checked_pair(sample, target)
        if len(first) != len(second):
            raise BenchError(f"samples and targets must pair up: {len(first)} and {len(second)}")
        self.n_items, self._k = len(first), k
        pairs = ((first, first), (second, second), (first, second))
        self._parts = [squared_distances(a, b) for a, b in pairs]
        self._found: dict[bytes, dict[str, float]] = {}

    def statistic(self, name: str) -> Callable[[np.ndarray], float]:
        """Return one of the four as a function of item counts [N]."""
        return lambda counts: self(counts)[name]

    def __call__(self, counts: np.ndarray) -> dict[str, float]:
        """Return all four for the items of count 1."""
        if counts.max() > 1:
            raise BenchError("neighbour metrics cannot hold an item twice; use the jackknife.")
        key = counts.tobytes()
        if key not in self._found:
            held = np.flatnonzero(counts)
            own, other, cross = (part[np.ix_(held, held)] for part in self._parts)
            self._found[key] = from_distances(own, other, cross, self._k)
        return self._found[key]


def from_distances(own: np.ndarray, other: np.ndarray, cross: np.ndarray, k: int) -> dict[str, float]:
    """Return the four from squared distances among samples, among targets and between them."""
    if not 1 <= k < min(len(own), len(other)):
        raise BenchError(
            f"neighbour metrics need more than k = {k} items in each set, got {len(own)} and {len(other)}"
        )
    sample_reach, target_reach = _reach(own, k), _reach(other, k)
    in_target = cross < target_reach[None, :]
    in_sample = cross < sample_reach[:, None]
    return {
        "precision": float(in_target.any(axis=1).mean()),
        "recall": float(in_sample.any(axis=0).mean()),
        "density": float(in_target.sum(axis=1).mean() / k),
        "coverage": float((cross.min(axis=0) < target_reach).mean()),
    }


def _reach(own: np.ndarray, k: int) -> np.ndarray:
    """Return each row's distance to its k-th nearest other row (the nearest of all is itself)."""
    return np.asarray(np.partition(own, k, axis=1)[:, k])


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances [N,M]; exactly 0 on the diagonal of a set with itself."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    if a is b:
        np.fill_diagonal(squares, 0.0)
    return np.asarray(np.maximum(squares, 0.0))
