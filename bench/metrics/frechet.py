"""Fréchet distance between two sets of features, in float64, by symmetric eigenvalues.

With means m, n and covariances S, T the squared 2-Wasserstein distance of the two Gaussians is

    |m - n|^2 + tr S + tr T - 2 tr (S^1/2 T S^1/2)^1/2          (Dowson and Landau 1982;
                                                                 Heusel et al. 2017, equation 6)

Two ways to the last trace, equal in exact arithmetic:

moments  S^1/2 by a symmetric eigendecomposition, then the eigenvalues of S^1/2 T S^1/2, which is
         symmetric as well: no complex numbers and no iteration (SciPy's sqrtm has both).
Gram     let A [N,D] and B [M,D] be the centred features divided by sqrt(N-1) and sqrt(M-1), so that
         S = A'A and T = B'B. S^1/2 T S^1/2 has the eigenvalues of ST = A'A B'B, whose nonzero ones
         are those of (A B')(A B')'. The trace is therefore the sum of the singular values of
         A B' [N,M]: cheaper than the first way when N and M are below D, and more exact there,
         because the covariances are singular and their roots are never taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from bench.metrics.intervals import Deal, SetMetric, of_features
from bench.types import BenchError, Scored

_SUMMED = 50  # blocks at most whose moments are kept, each D x D
_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Number, mean and scatter of a stream of features; `a + b` merges two streams.

    count: rows seen. mean: [D] float64. scatter: [D,D] float64, the sum of (x - mean)(x - mean)'.
    Merging is exact for any order of batches up to rounding (Chan, Golub and LeVeque 1983), without
    the cancellation of raw sums of squares.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Return the moments of one batch, [N,D] of any float type, N at least 1."""
        rows = checked_features(features, least=1)
        mean = rows.mean(axis=0)
        centred = rows - mean
        return cls(count=len(rows), mean=mean, scatter=centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both streams together."""
        _same_width(self.mean, other.mean)
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = np.outer(step, step) * (self.count * other.count / count)
        return Moments(count=count, mean=mean, scatter=self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, [D,D] float64, as torch-fidelity and clean-fid use it."""
        if self.count < 2:
            raise BenchError(f"a covariance needs at least 2 features, got {self.count}")
        return self.scatter / (self.count - 1)


def checked_features(features: np.ndarray, *, least: int = 2) -> np.ndarray:
    """Return features as float64 [N,D]; BenchError if they are not 2-d, too few or not finite."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < least or rows.shape[1] == 0:
        raise BenchError(f"features must be [N,D] with N >= {least}, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise BenchError(f"features hold {int((~np.isfinite(rows)).sum())} values not finite")
    return rows


def checked_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two feature sets as float64 [N,D] and [M,D]; BenchError if the widths differ."""
    first, second = checked_features(a), checked_features(b)
    _same_width(first, second)
    return first, second


def _same_width(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise BenchError(f"features differ in width: {a.shape[-1]} and {b.shape[-1]}")


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two streams by symmetric eigenvalues; see the module.

    Cost: two symmetric eigenproblems of width D (about 2 s at D=2048 on two cores).
    """
    _same_width(a.mean, b.mean)
    first, second = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    inner = root @ second @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0, None)).sum()
    return _combine(a.mean - b.mean, float(np.trace(first) + np.trace(second)), float(cross))


def _combine(step: np.ndarray, spread: float, cross: float) -> float:
    """Join the three terms; rounding may leave a tiny negative number, which is 0."""
    return max(0.0, float(step @ step) + spread - 2.0 * cross)


class FrechetDistance:
    """The Fréchet distance of the rows of held blocks, both of at least 2 rows.

    Gram form while neither set has more rows than columns: one product X Y' serves all calls, each of
    which costs the singular values of a part of it. Else moments, those of few blocks kept and added.
    Of blocks whose influence was asked before, its decomposition has told the distance too.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, dealt: Deal) -> None:
        """Take features [N,D] and [M,D], dealt into blocks."""
        a, b = checked_pair(first, second)
        self.dealt, self._labels = dealt, (dealt.first, dealt.second)
        self._known: dict[bytes, tuple[float, np.ndarray]] = {}  # of blocks held: distance, influence
        self._gram = max(len(a), len(b)) <= a.shape[1]
        shift = (a.mean(axis=0) + b.mean(axis=0)) / 2 if self._gram else 0.0
        self._rows = a - shift, b - shift

    @cached_property
    def _cross(self) -> np.ndarray:
        return np.asarray(self._rows[0] @ self._rows[1].T)

    @cached_property
    def _moments(self) -> list[list[Moments]]:
        return [
            [Moments.of(rows[labels == block]) for block in range(self.dealt.blocks)]
            for rows, labels in zip(self._rows, self._labels, strict=True)
        ]

    def __call__(self, held: np.ndarray) -> float:
        """Return the distance of the blocks held, [blocks] bool."""
        if held.tobytes() in self._known:
            return self._known[held.tobytes()][0]
        if self._gram:
            return self._gram_distance(*(held[labels] for labels in self._labels))
        if self.dealt.blocks > _SUMMED:
            sets = zip(self._rows, self._labels, strict=True)
            return frechet_from_moments(*(Moments.of(rows[held[labels]]) for rows, labels in sets))
        first, *rest = np.flatnonzero(held)
        sums = (sum((blocks[i] for i in rest), start=blocks[first]) for blocks in self._moments)
        return frechet_from_moments(*sums)

    def _gram_distance(self, in_a: np.ndarray, in_b: np.ndarray) -> float:
        parts = self._rows[0][in_a], self._rows[1][in_b]
        means = [rows.mean(axis=0) for rows in parts]
        cross = self._cross[np.ix_(in_a, in_b)]
        cross = cross - cross.mean(axis=0) - cross.mean(axis=1, keepdims=True) + cross.mean()
        spread = sum(
            float((rows**2).sum() - len(rows) * (mean @ mean)) / (len(rows) - 1)
            for rows, mean in zip(parts, means, strict=True)
        )
        nuclear = float(np.linalg.svd(cross, compute_uv=False).sum())
        nuclear /= math.sqrt((len(parts[0]) - 1.0) * (len(parts[1]) - 1.0))
        return _combine(means[0] - means[1], spread, nuclear)

    def influence(self, held: np.ndarray | None = None) -> np.ndarray:
        """Return what each block adds to the distance, [blocks] float64 of sum 0, of paired rows.

        held: [blocks] bool, of which blocks the distance is; others add nothing. The sum over a block's
        items of the derivative by the share of item i at equal shares, over N, exact, from one singular
        value decomposition. With A, B as in the module, A B' = U s V', g = m - n and a_i, b_i their rows:

            d|m - n|^2   2 g.((x_i - m) - (y_i - n))
            d tr         N (|a_i|^2 + |b_i|^2)
            d cross      N/2 (sum_k U_ik^2 s_k + sum_k V_ik^2 s_k): a share scales row and column i
                         of A B' by its root; the means drop out, as U'1 = V'1 = 0

        (first less twice the third plus the second, then centred). A and B are reduced to triangles
        first, so the decomposition has width min(N, D). Source of the use: Jaeckel 1972; Efron 1982,
        The Jackknife, chapter 6.
        """
        held = self.dealt.whole if held is None else held
        if held.tobytes() in self._known:
            return self._known[held.tobytes()][1]
        kept = held[self._labels[0]]
        first, second = (rows[kept] for rows in self._rows)
        scale = math.sqrt(len(first) - 1)
        gap = first.mean(axis=0) - second.mean(axis=0)
        a, b = ((rows - rows.mean(axis=0)) / scale for rows in (first, second))
        (qa, ra), (qb, rb) = np.linalg.qr(a), np.linalg.qr(b)
        left, values, right = np.linalg.svd(ra @ rb.T)
        cross = (qa @ left) ** 2 @ values + (qb @ right.T) ** 2 @ values
        spread = (a**2).sum(axis=1) + (b**2).sum(axis=1)
        moved = 2.0 * scale * ((a - b) @ gap) + len(first) * (spread - cross)
        added = (moved - moved.mean()) / len(first)
        added = np.bincount(self._labels[0][kept], weights=added, minlength=self.dealt.blocks)
        distance = _combine(gap, float(spread.sum()), float(values.sum()))
        self._known[held.tobytes()] = distance, added
        return added


class ExtrapolatedFrechet:
    """The Fréchet distance extrapolated to infinitely many items, as a function of held blocks.

    The distance of N items exceeds the true one by about c / N. A line through the distances of
    nested shares of the held blocks, 1/2 to all, against the mean of 1/n and 1/m is followed to 0
    (Chong and Forsyth 2020, arXiv 1911.07023). A line is all it knows: with fewer items than feature
    dimensions the curve bends and the intercept still lies above the true distance.
    """

    def __init__(self, distance: FrechetDistance) -> None:
        """Take the distance that is extrapolated; 20 blocks, or as many as items, give the shares exactly."""
        self._distance, dealt = distance, distance.dealt
        self._sizes = [np.bincount(labels, minlength=dealt.blocks) for labels in (dealt.first, dealt.second)]

    def __call__(self, held: np.ndarray) -> float:
        """Return the intercept of the blocks held, [blocks] bool."""
        parts, weights = self._parts(held)
        return float(weights @ [self._distance(part) for part in parts])

    def influence(self) -> np.ndarray:
        """Return what each block adds to the intercept, [blocks] float64 of sum 0, of paired rows."""
        parts, weights = self._parts(self._distance.dealt.whole)
        return np.asarray(weights @ [self._distance.influence(part) for part in parts])

    def _parts(self, held: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the shares of the held blocks, [blocks] bool each, and their weights in the intercept."""
        blocks, parts, rates = np.flatnonzero(held), [], []
        for size in (max(2, round(share * len(blocks))) for share in _SHARES):
            parts.append(np.zeros_like(held))
            parts[-1][blocks[:size]] = True
            n, m = (float(sizes @ parts[-1]) for sizes in self._sizes)
            rates.append((1 / n + 1 / m) / 2)
        line = np.stack([rates, np.ones(len(rates))], axis=1)
        return parts, np.linalg.pinv(line)[1]


@lru_cache(maxsize=1)
def _of(scored: Scored, dealt: Deal) -> FrechetDistance:
    """Return the distance that both metrics of the same sets share: what one decomposed, the other knows."""
    return FrechetDistance(scored.features, scored.target_features, dealt)


_FD = of_features(name="fd", title="FD", scale="squared Fréchet distance", better="lower", place=70)
FD = SetMetric(specs=(_FD,), statistic=_of)
_OF_ALL = replace(_FD, name="fd_infinite", title="FD∞", scale=f"{_FD.scale}, N extrapolated")
FD_INFINITE = SetMetric(
    specs=(replace(_OF_ALL, detail=True, place=92),),
    statistic=lambda scored, dealt: ExtrapolatedFrechet(_of(scored, dealt)),
    by_order=True,
    groups=20,  # each replicate costs as much as six of the others, where derivatives do not serve
)
