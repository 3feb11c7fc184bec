"""CMMD: the maximum mean discrepancy of CLIP embeddings under a Gaussian kernel.

    k(x, y) = exp(-|x - y|^2 / (2 * 10^2)), x and y of length 1
    CMMD = 1000 * (mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j))

over all i and j, i = j included (Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603, with the
scale and estimator of its published code). It is biased upwards by about the trace of the kernel's
spread over N and is 0 for equal sets.
"""

from __future__ import annotations

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.metrics.paired import unit_rows
from bench.types import BenchError

SIGMA = 10.0
SCALE = 1000.0


def cmmd(sample: np.ndarray, target: np.ndarray) -> float:
    """Return the CMMD of two sets of CLIP embeddings, [N,D] and [M,D], of any length."""
    first, second = checked_pair(unit_rows(sample), unit_rows(target))
    within = _gap(first, first).mean() + _gap(second, second).mean()
    return float(SCALE * (within - 2.0 * _gap(first, second).mean()))


class PairedCmmd:
    """CMMD as a function of item counts, item i being the pair (sample i, target i)."""

    def __init__(self, sample: np.ndarray, target: np.ndarray) -> None:
        """Take embeddings [N,D] of samples and targets."""
        first, second = checked_pair(unit_rows(sample), unit_rows(target))
        if len(first) != len(second):
            raise BenchError(f"samples and targets must pair up: {len(first)} and {len(second)}")
        self.n_items = len(first)
        cross = _gap(first, second)
        self._joint = _gap(first, first) + _gap(second, second) - cross - cross.T

    def __call__(self, counts: np.ndarray) -> float:
        """Return the distance when item i occurs counts[i] times."""
        share = counts / counts.sum()
        return float(SCALE * (share @ self._joint @ share))


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return k - 1 of unit rows, [N,M]: near 0 as the kernel is near 1, so no digits are lost."""
    return np.asarray(np.expm1((a @ b.T - 1.0) / SIGMA**2))
