"""Precision, recall, density and coverage: what a Fréchet distance folds into one number, apart.

Around each feature lies the ball that reaches its k-th nearest neighbour of its own set:

    precision  share of samples inside the ball of some target      (Kynkäänniemi et al. 2019,
    recall     share of targets inside the ball of some sample       arXiv 1904.06991)
    density    mean number of target balls that hold a sample, / k  (Naeem et al. 2020,
    coverage   share of targets whose ball holds some sample         arXiv 2002.09797)

Distances are Euclidean, k is 5, balls are open, as in the `prdc` package. Beside them: does a method
copy its training images? The nearest training neighbour against the nearest test one.
"""

from __future__ import annotations

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.metrics.intervals import Deal, SetMetric, Statistic
from bench.metrics.paired import ItemMetric, unit_rows
from bench.types import BenchError, MetricSpec, Scored

NEAREST = 5
SHARES = ("precision", "recall", "coverage")  # density may be above 1


class Neighbours:
    """Precision, recall, density and coverage of the rows of held blocks, [4] float64.

    Keeps N^2 + M^2 + NM doubles.
    """

    def __init__(self, sample: np.ndarray, target: np.ndarray, dealt: Deal, *, k: int = NEAREST) -> None:
        """Take features [N,D] of samples and [M,D] of targets; distances are computed once."""
        a, b = checked_pair(sample, target)
        self._parts = [_squared_distances(*pair) for pair in ((a, a), (b, b), (a, b))]
        self._dealt, self._k = dealt, k

    def __call__(self, held: np.ndarray) -> np.ndarray:
        """Return the four of the blocks held, [blocks] bool: more than k rows of each set."""
        rows, columns = (np.flatnonzero(held[labels]) for labels in (self._dealt.first, self._dealt.second))
        if min(len(rows), len(columns)) <= self._k:
            raise BenchError(
                f"neighbour metrics need more than k = {self._k} items in each set, got {len(rows)} and "
                f"{len(columns)}"
            )
        own, other, cross = self._parts
        sample_reach, target_reach = _reach(own, rows, self._k), _reach(other, columns, self._k)
        far = cross[np.ix_(rows, columns)]
        in_target = far < target_reach[None, :]
        in_sample = far < sample_reach[:, None]
        return np.array(
            [
                in_target.any(axis=1).mean(),
                in_sample.any(axis=0).mean(),
                in_target.sum(axis=1).mean() / self._k,
                (far.min(axis=0) < target_reach).mean(),
            ]
        )


def _reach(own: np.ndarray, held: np.ndarray, k: int) -> np.ndarray:
    """Return each held row's distance to its k-th nearest other row (the nearest of all is itself)."""
    return np.asarray(np.partition(own[np.ix_(held, held)], k, axis=1)[:, k])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances [N,M]; exactly 0 on the diagonal of a set with itself."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    if a is b:
        np.fill_diagonal(squares, 0.0)
    return np.asarray(np.maximum(squares, 0.0))


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


def _neighbours(scored: Scored, dealt: Deal) -> Statistic | None:
    few = min(len(scored.features), len(scored.target_features)) < 2 * NEAREST
    return None if few else Neighbours(scored.features, scored.target_features, dealt)


NEIGHBOURS = SetMetric(
    specs=tuple(
        MetricSpec(
            name=name,
            title=name,
            scale=f"{NEAREST} nearest",
            better="higher",
            judge="features",
            share=name in SHARES,
            detail=True,
            place=place,
        )
        for place, name in enumerate(("precision", "recall", "density", "coverage"), start=93)
    ),
    statistic=_neighbours,
    all_pairs=True,
)
NEARER_TRAINING = ItemMetric(
    spec=MetricSpec(
        name="nearer_training",
        title="nearer to training",
        scale="share nearer to training than to test",
        better="none",
        judge="features",
        detail=True,
        place=98,
    ),
    items=lambda scored: (
        None
        if scored.training is None
        else nearer_to_training(scored.features, scored.target_features, scored.training)
    ),
)
