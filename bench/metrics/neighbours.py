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

from functools import partial

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.metrics.intervals import Deal, SetMetric, of_features
from bench.metrics.paired import ItemMetric, unit_rows
from bench.types import BenchError

NEAREST = 5
_ROWS = 512
_FEW = 50  # a block of a hundred twice over: what the jackknife leaves out, and some
SHARES = ("precision", "recall", "coverage")  # density may be above 1


class Neighbours:
    """Precision, recall, density and coverage of the rows of held blocks, [4] float64.

    Keeps of each row its nearest few of its own set, and the pairs of both sets that are near enough to
    matter: about N^2 / 50 numbers of sets that are alike, N M where every ball holds all of the other.
    """

    def __init__(self, sample: np.ndarray, target: np.ndarray, dealt: Deal, *, k: int = NEAREST) -> None:
        """Take features [N,D] of samples and [M,D] of targets; distances are computed once."""
        self._sets = a, b = checked_pair(sample, target)
        self._dealt, self._k = dealt, k
        self._near = [_nearest(rows, 4 * (k + 1) + len(rows) // _FEW) for rows in (a, b)]
        widest = [distances[:, -1] for distances, _ in self._near]
        found = []
        for start in range(0, len(a), _ROWS):
            far = _squared_distances(a[start : start + _ROWS], b)
            reach = np.maximum(widest[0][start : start + _ROWS, None], widest[1])
            rows, columns = np.nonzero(far <= reach)
            found.append((rows + start, columns, far[rows, columns]))
        self._pairs = [np.concatenate(part) for part in zip(*found, strict=True)]

    def __call__(self, held: np.ndarray) -> np.ndarray:
        """Return the four of the blocks held, [blocks] bool: more than k rows of each set."""
        kept = [held[labels] for labels in (self._dealt.first, self._dealt.second)]
        n, m = (int(rows.sum()) for rows in kept)
        if min(n, m) <= self._k:
            raise BenchError(f"neighbour metrics need more than k = {self._k} items a set, got {n} and {m}")
        reaches = [_reach(*near, rows, self._k) for near, rows in zip(self._near, kept, strict=True)]
        if any(np.isnan(reach[rows]).any() for reach, rows in zip(reaches, kept, strict=True)):
            a, b = (rows[chosen] for rows, chosen in zip(self._sets, kept, strict=True))  # too few are left
            dealt = Deal.of(n, m, blocks=1)
            return Neighbours(a, b, dealt, k=self._k)(dealt.whole)
        rows, columns, far = self._pairs
        both = kept[0][rows] & kept[1][columns]
        in_target, in_sample = both & (far < reaches[1][columns]), both & (far < reaches[0][rows])
        precision, recall = len(np.unique(rows[in_target])) / n, len(np.unique(columns[in_sample])) / m
        density, coverage = int(in_target.sum()) / n / self._k, len(np.unique(columns[in_target])) / m
        return np.array([precision, recall, density, coverage])


def _nearest(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances to the nearest rows of [N,D], itself among them, and which: [N,count], in order."""
    count, found = min(count, len(rows)), []
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        far = _squared_distances(part, rows)
        far[np.arange(len(part)), start + np.arange(len(part))] = 0.0
        order = np.argpartition(far, count - 1, axis=1)[:, :count]
        far = np.take_along_axis(far, order, axis=1)
        places = np.argsort(far, axis=1)
        found.append((np.take_along_axis(far, places, axis=1), np.take_along_axis(order, places, axis=1)))
    distances, order = (np.concatenate(part) for part in zip(*found, strict=True))
    return distances, order


def _reach(distances: np.ndarray, order: np.ndarray, held: np.ndarray, k: int) -> np.ndarray:
    """Return each row's distance to its k-th nearest held other row, [N]; NaN where it is not known."""
    counts = held[order].cumsum(axis=1)
    places = (counts > k).argmax(axis=1)
    return np.where(counts[:, -1] > k, distances[np.arange(len(held)), places], np.nan)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
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
        sizes = f"{len(first)}, {len(second)} and {len(other)}"
        raise BenchError(f"memorisation needs N samples, N targets, N - 1 training images, got {sizes}")
    to_test = first @ second.T
    np.fill_diagonal(to_test, -np.inf)  # its own target is what it should resemble
    gap = (first @ other.T).max(axis=1) - to_test.max(axis=1)
    return np.asarray((np.sign(np.where(np.abs(gap) < 1e-9, 0.0, gap)) + 1) / 2)


_more = partial(of_features, detail=True)
_NEARER = "share nearer to training than to test"
NEIGHBOURS = SetMetric(
    specs=tuple(
        _more(name=n, title=n, scale=f"{NEAREST} nearest", better="higher", share=n in SHARES, place=place)
        for place, n in enumerate(("precision", "recall", "density", "coverage"), start=93)
    ),
    statistic=lambda x, dealt: (
        Neighbours(x.features, x.target_features, dealt)
        if min(len(x.features), len(x.target_features)) >= 2 * NEAREST
        else None
    ),
    all_pairs=True,
)
NEARER_TRAINING = ItemMetric(
    _more(name="nearer_training", title="nearer to training", scale=_NEARER, better="none", place=98),
    lambda x: None if x.training is None else nearer_to_training(x.features, x.target_features, x.training),
)
