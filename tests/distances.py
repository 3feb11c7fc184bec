"""Distances of two independent feature sets, of all their rows, as tests compare them with other tools."""

from __future__ import annotations

import numpy as np

from bench.metrics.frechet import FrechetDistance, checked_pair
from bench.metrics.intervals import Deal
from bench.metrics.kernel import MeanDiscrepancy, polynomial_kernel


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two feature sets, [N,D] and [M,D]; 0 for equal sets."""
    dealt = Deal.of(len(a), len(b), blocks=1)
    return FrechetDistance(a, b, dealt)(dealt.whole)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the KID of two independent feature sets, [N,D] and [M,D]; no randomness."""
    dealt = Deal.of(len(a), len(b), blocks=1)
    return MeanDiscrepancy(*checked_pair(a, b), dealt, kernel=polynomial_kernel)(dealt.whole)
