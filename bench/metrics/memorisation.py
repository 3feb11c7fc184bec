"""Does a method copy its training images? Nearest training neighbour against nearest test one."""

from __future__ import annotations

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.metrics.paired import unit_rows
from bench.types import BenchError


def nearer_to_training(sample: np.ndarray, target: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return for each sample whether a training image is nearer than any other item's target.

    sample, target: features [N,D], row i belonging to item i; training: [N-1,D] of real training
    images, as many as there are other targets, so that a sample that owes nothing to either set has
    an even chance. Nearness is the cosine; 1 = training nearer, 0 = test nearer, 0.5 = tie. A mean
    far above 0.5 says that samples copy (after Meehan et al. 2020, arXiv 2004.05675, who test the
    same three sets by ranks).
    """
    first, second = checked_pair(unit_rows(sample), unit_rows(target))
    other = unit_rows(training)
    if len(first) != len(second) or len(other) != len(first) - 1:
        raise BenchError(
            f"the memorisation check needs N samples, N targets and N - 1 training images, got "
            f"{len(first)}, {len(second)} and {len(other)}"
        )
    to_test = first @ second.T
    np.fill_diagonal(to_test, -np.inf)  # its own target is what it should resemble
    gap = (first @ other.T).max(axis=1) - to_test.max(axis=1)
    return np.asarray((np.sign(np.where(np.abs(gap) < 1e-9, 0.0, gap)) + 1) / 2)
