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
from dataclasses import dataclass

import numpy as np

from bench.types import BenchError


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
        if self.mean.shape != other.mean.shape:
            raise BenchError(f"features differ in width: {len(self.mean)} and {len(other.mean)}")
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
    if first.shape[1] != second.shape[1]:
        raise BenchError(f"features differ in width: {first.shape[1]} and {second.shape[1]}")
    return first, second


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two streams by symmetric eigenvalues; see the module.

    Cost: two symmetric eigenproblems of width D (about 2 s at D=2048 on two cores).
    """
    if a.mean.shape != b.mean.shape:
        raise BenchError(f"features differ in width: {len(a.mean)} and {len(b.mean)}")
    first, second = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    inner = root @ second @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0, None)).sum()
    return _combine(a.mean - b.mean, float(np.trace(first) + np.trace(second)), float(cross))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two feature sets, [N,D] and [M,D]; 0 for equal sets.

    Takes the Gram form when both sets have fewer rows than columns, else the moments.
    """
    first, second = checked_pair(a, b)
    if max(len(first), len(second)) >= first.shape[1]:
        return frechet_from_moments(Moments.of(first), Moments.of(second))
    left, right = _scaled(first), _scaled(second)
    cross = float(np.linalg.svd(left @ right.T, compute_uv=False).sum())
    spread = float((left**2).sum() + (right**2).sum())
    return _combine(first.mean(axis=0) - second.mean(axis=0), spread, cross)


def _scaled(features: np.ndarray) -> np.ndarray:
    return (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)


def _combine(step: np.ndarray, spread: float, cross: float) -> float:
    """Join the three terms; rounding may leave a tiny negative number, which is 0."""
    return max(0.0, float(step @ step) + spread - 2.0 * cross)


class PairedFrechet:
    """The Fréchet distance as a function of item counts, for the bootstrap over items.

    Item i is the pair (sample i, target i); counts[i] says how often a resample holds it. All that
    a resample needs is in three Gram matrices [N,N] computed once: with w = counts / N and the
    items of nonzero count only, the centred and scaled features are sqrt(c_i / (N-1)) (x_i - X'w),
    and their cross-Gram is the doubly centred X Y' scaled by the same roots. One resample costs the
    singular values of a matrix of about 0.63 N rows; for N above D, two eigenproblems of width D.
    """

    def __init__(self, sample: np.ndarray, target: np.ndarray) -> None:
        """Take features [N,D] of samples and targets, row i belonging to item i."""
        self._sample, self._target = checked_pair(sample, target)
        if len(self._sample) != len(self._target):
            raise BenchError(f"samples and targets must pair up: {len(self._sample)} and {len(self._target)}")
        self.n_items = len(self._sample)
        self._by_gram = self.n_items <= self._sample.shape[1]
        if self._by_gram:
            self._joint = _joint_gram(self._sample, self._target)

    def __call__(self, counts: np.ndarray) -> float:
        """Return the distance when item i occurs counts[i] times; counts [N] sum to at least 2."""
        held = np.flatnonzero(counts)
        weights = counts[held].astype(np.float64)
        if not self._by_gram:
            repeat = np.repeat(held, counts[held])
            return frechet_from_moments(Moments.of(self._sample[repeat]), Moments.of(self._target[repeat]))
        return self._gram_distance(held, weights)

    def influence(self) -> np.ndarray:
        """Return how the distance moves with each item's weight, [N] float64 of mean 0.

        The derivative by the share of item i at equal shares, exact, from one singular value
        decomposition. With A, B as in the module, A B' = U s V', g = m - n and a_i, b_i their rows:

            d|m - n|^2   2 g.((x_i - m) - (y_i - n))
            d tr         N (|a_i|^2 + |b_i|^2)
            d cross      N/2 (sum_k U_ik^2 s_k + sum_k V_ik^2 s_k): a share scales row and column i
                         of A B' by its root; the means drop out, as U'1 = V'1 = 0

        (first less twice the third plus the second, then centred). A and B are reduced to triangles
        first, so the decomposition has width min(N, D). Source of the use: Jaeckel 1972; Efron 1982,
        The Jackknife, chapter 6.
        """
        scale = math.sqrt(self.n_items - 1)
        first, second = self._sample, self._target
        gap = first.mean(axis=0) - second.mean(axis=0)
        a, b = ((rows - rows.mean(axis=0)) / scale for rows in (first, second))
        (qa, ra), (qb, rb) = np.linalg.qr(a), np.linalg.qr(b)
        left, values, right = np.linalg.svd(ra @ rb.T)
        cross = (qa @ left) ** 2 @ values + (qb @ right.T) ** 2 @ values
        traces = (a**2).sum(axis=1) + (b**2).sum(axis=1) - cross
        moved = 2.0 * scale * ((a - b) @ gap) + self.n_items * traces
        return np.asarray(moved - moved.mean())

    def _gram_distance(self, held: np.ndarray, weights: np.ndarray) -> float:
        total = weights.sum()
        share = weights / total
        own, other, cross = (part[np.ix_(held, held)] for part in self._joint)
        gap = share @ (own + other - 2.0 * cross) @ share
        scale = weights / (total - 1.0)
        spread = sum(
            float(scale @ np.diagonal(part) - (share @ part @ share) * scale.sum()) for part in (own, other)
        )
        left, right = share @ cross, cross @ share
        centred = cross - left[None, :] - right[:, None] + share @ right
        root = np.sqrt(scale)
        nuclear = np.linalg.svd(root[:, None] * centred * root[None, :], compute_uv=False).sum()
        return max(0.0, float(gap + spread - 2.0 * nuclear))


class ExtrapolatedFrechet:
    """The Fréchet distance extrapolated to infinitely many items, as a function of item counts.

    The distance of N items exceeds the true one by about c / N. A line through the distances of
    nested subsets of N/2 to N items against 1/N, all drawn from one order, is followed to 1/N = 0
    (Chong and Forsyth 2020, arXiv 1911.07023). A line is all it knows: with fewer items than feature
    dimensions the curve bends and the intercept still lies above the true distance.
    """

    SIZES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def __init__(self, sample: np.ndarray, target: np.ndarray, *, seed: int) -> None:
        """Take features [N,D] of samples and targets; seed: of the order of items."""
        self._paired = PairedFrechet(sample, target)
        self.n_items = self._paired.n_items
        self._order = np.random.default_rng(seed).permutation(self.n_items)

    def __call__(self, counts: np.ndarray) -> float:
        """Return the intercept when the items of nonzero count are held, each counts[i] times."""
        held = self._order[counts[self._order] > 0]
        sizes = [max(2, round(share * len(held))) for share in self.SIZES]
        values = [self._paired(self._only(counts, held[:size])) for size in sizes]
        rates = 1.0 / np.asarray(sizes)
        return float(np.polyfit(rates, values, 1)[1])

    def _only(self, counts: np.ndarray, held: np.ndarray) -> np.ndarray:
        part = np.zeros_like(counts)
        part[held] = counts[held]
        return part


def _joint_gram(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return X X', Y Y', X Y', both sets shifted by their common mean, which changes nothing."""
    shift = (a.mean(axis=0) + b.mean(axis=0)) / 2
    first, second = a - shift, b - shift
    return first @ first.T, second @ second.T, first @ second.T
