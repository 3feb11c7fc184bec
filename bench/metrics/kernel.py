"""Kernel distance (KID): the squared maximum mean discrepancy under a cubic polynomial kernel.

    k(x, y) = (x.y / D + 1)^3
    KID = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

Unbiased at every N, unlike the Fréchet distance (Bińkowski et al. 2018,
https://arxiv.org/abs/1801.01401, section 4); it may therefore be slightly negative for equal
distributions, and that is left so.

"Unbiased" supposes that the sets are independent. Where row i of one was made to resemble row i of
the other (a sample and the target of its condition), the N own pairs among the N^2 cross pairs pull
the value down by 2 (k(own pair) - k(other pair)) / N, which can outweigh the distance itself when
samples are near their targets. Published tools keep them, and so does the default here;
`own_pairs=False` leaves them out (the U-statistic of torch-fidelity's `mmd2`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.types import BenchError

_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class KernelSubsets:
    """KID over random subsets: what torch-fidelity and clean-fid report.

    mean: mean over the subsets. deviation: standard deviation over the subsets (torch-fidelity's
    KID std); it belongs to sets of `size` items, not to the full sets. standard_error: the same
    scaled to the full sets, deviation * sqrt(size / (N - size)): subsets without replacement vary
    by s^2 (1/size - 1/N) where the full estimate varies by s^2 / N; None when size equals N. Needs
    distributions that differ: for equal ones the estimate's error shrinks faster than this says.
    """

    mean: float
    deviation: float
    standard_error: float | None
    size: int
    subsets: int


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return k(a_i, b_j) = (a_i.b_j / D + 1)^3, [N,M] float64, for features [N,D] and [M,D]."""
    return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3)


def kernel_distance(a: np.ndarray, b: np.ndarray, *, own_pairs: bool = True) -> float:
    """Return the KID of two full feature sets, [N,D] and [M,D]; no randomness.

    own_pairs: whether row i of one is compared with row i of the other, see the module; False needs
    N = M. Works in blocks of rows, so memory stays below 2048 x max(N, M) doubles.
    """
    first, second = checked_pair(a, b)
    within = _off_diagonal_mean(first) + _off_diagonal_mean(second)
    total, count = _total(first, second), len(first) * len(second)
    if not own_pairs:
        if len(first) != len(second):
            raise BenchError(f"own pairs need sets of one size: {len(first)} and {len(second)}")
        own = ((first * second).sum(axis=1) / first.shape[1] + 1.0) ** 3
        total, count = total - float(own.sum()), count - len(first)
    return within - 2.0 * total / count


def kernel_distance_subsets(
    a: np.ndarray, b: np.ndarray, *, seed: int, subsets: int = 100, size: int | None = None
) -> KernelSubsets:
    """Return mean and spread of KID over random subsets drawn without replacement from each set.

    size: items a subset, by default half of the smaller set, at most 1000. BenchError if the sets
    are smaller than `size`.
    """
    first, second = checked_pair(a, b)
    smaller = min(len(first), len(second))
    size = min(1000, smaller // 2) if size is None else size
    if not 2 <= size <= smaller or subsets < 2:
        raise BenchError(
            f"KID subsets need 2 <= size <= {smaller} items and subsets >= 2, got {size}, {subsets}"
        )
    draw = np.random.default_rng(seed)
    values = [
        kernel_distance(
            first[draw.choice(len(first), size, replace=False)],
            second[draw.choice(len(second), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    deviation = float(np.std(values))
    error = None if size == smaller else deviation * float(np.sqrt(size / (smaller - size)))
    return KernelSubsets(
        mean=float(np.mean(values)),
        deviation=deviation,
        standard_error=error,
        size=size,
        subsets=subsets,
    )


def _total(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(polynomial_kernel(a[i : i + _ROWS], b).sum() for i in range(0, len(a), _ROWS)))


def _off_diagonal_mean(a: np.ndarray) -> float:
    diagonal = float((((a**2).sum(axis=1) / a.shape[1] + 1.0) ** 3).sum())
    return (_total(a, a) - diagonal) / (len(a) * (len(a) - 1))


class PairedKernel:
    """KID as a function of item counts, for the bootstrap over items.

    Item i is the pair (sample i, target i). Two copies of one item count as the item itself, not as
    two that happen to be alike: they form no pair within a set, and the item's own sample-target
    pair keeps its weight of 1 in N. So resampling adds no bias.
    """

    def __init__(self, sample: np.ndarray, target: np.ndarray, *, own_pairs: bool = True) -> None:
        """Take features [N,D] of samples and targets, row i belonging to item i.

        own_pairs: whether a sample is compared with its own target, see the module.
        """
        first, second = checked_pair(sample, target)
        if len(first) != len(second):
            raise BenchError(f"samples and targets must pair up: {len(first)} and {len(second)}")
        self.n_items = len(first)
        within = polynomial_kernel(first, first) + polynomial_kernel(second, second)
        cross = polynomial_kernel(first, second)
        self._own = np.diagonal(cross).copy()
        for kernel in (within, cross):
            np.fill_diagonal(kernel, 0.0)
        self._within, self._cross, self._own_pairs = within, cross, own_pairs

    def __call__(self, counts: np.ndarray) -> float:
        """Return the distance when item i occurs counts[i] times; needs two different items."""
        weights = counts.astype(np.float64)
        total = weights.sum()
        pairs = total**2 - (weights**2).sum()
        within = weights @ self._within @ weights / pairs
        between = weights @ self._cross @ weights / pairs
        if not self._own_pairs:
            return float(within - 2.0 * between)
        own = weights @ self._own / total
        return float(within - 2.0 * (between * (total - 1.0) + own) / total)
