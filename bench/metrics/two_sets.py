"""Set distances of two independent sets, as functions of which blocks of items are held.

Both sets, of any two lengths, are dealt into the same number of blocks. Every statistic here takes
counts [blocks] of 0 or 1 and answers for the rows of the held blocks: all ones is the value itself,
and leaving out each block in turn, in both sets at once, is the delete-a-group jackknife of two
samples (`bench.metrics.intervals.jackknife_replicates` with blocks for items): deviations of the two sets add
as their variances do. Rows of equal index share a block where the sets have one length, so that
pairs leave together and what ties them is accounted for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.metrics.cmmd import SCALE, SIGMA
from bench.metrics.frechet import ExtrapolatedFrechet, Moments, checked_pair, frechet_from_moments
from bench.metrics.kernel import polynomial_kernel
from bench.metrics.neighbours import NEAREST, from_distances, squared_distances
from bench.metrics.paired import unit_rows
from bench.types import BenchError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Deal:
    """The block of each row: first [N] and second [M] int64 in 0..blocks-1."""

    first: np.ndarray
    second: np.ndarray
    blocks: int

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of rows in each block, [blocks] int64 of each set."""
        first, second = (np.bincount(x, minlength=self.blocks) for x in (self.first, self.second))
        return first, second


def deal(n: int, m: int, *, blocks: int, seed: int) -> Deal:
    """Deal N and M rows into blocks of nearly equal size, at most as many as the smaller set has."""
    blocks = min(blocks, n, m)
    if blocks < 2:
        raise BenchError(f"two sets need at least 2 rows each to be dealt, got {n} and {m}")
    return Deal(first=_labels(n, blocks, seed), second=_labels(m, blocks, seed), blocks=blocks)


def _labels(n: int, blocks: int, seed: int) -> np.ndarray:
    labels = np.empty(n, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(n)
    for block, rows in enumerate(np.array_split(order, blocks)):
        labels[rows] = block
    return labels


class TwoSetFrechet:
    """The Fréchet distance of the held rows; both algebras of `bench.metrics.frechet`.

    Gram form while neither set has more rows than columns: one product X Y' serves all calls. Else
    moments of each block, which add.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, dealt: Deal) -> None:
        """Take features [N,D] and [M,D]."""
        a, b = checked_pair(first, second)
        self.dealt = dealt
        self._by_gram = max(len(a), len(b)) <= a.shape[1]
        if self._by_gram:
            shift = (a.mean(axis=0) + b.mean(axis=0)) / 2
            self._a, self._b = a - shift, b - shift
            self._cross = self._a @ self._b.T
        else:
            self._moments = [
                [Moments.of(rows[labels == block]) for block in range(dealt.blocks)]
                for rows, labels in ((a, dealt.first), (b, dealt.second))
            ]

    def __call__(self, counts: np.ndarray) -> float:
        """Return the distance of the rows whose block has count 1; at least 2 rows of each set."""
        if self._by_gram:
            return self._gram_distance(*(counts[x] > 0 for x in (self.dealt.first, self.dealt.second)))
        held = np.flatnonzero(counts)
        sums = []
        for blocks in self._moments:
            total = blocks[held[0]]
            for block in held[1:]:
                total = total + blocks[block]
            sums.append(total)
        return frechet_from_moments(*sums)

    def _gram_distance(self, in_a: np.ndarray, in_b: np.ndarray) -> float:
        a, b = self._a[in_a], self._b[in_b]
        means = a.mean(axis=0), b.mean(axis=0)
        cross = self._cross[np.ix_(in_a, in_b)]
        cross = cross - cross.mean(axis=0) - cross.mean(axis=1, keepdims=True) + cross.mean()
        spread = sum(
            float((rows**2).sum() - len(rows) * (mean @ mean)) / (len(rows) - 1)
            for rows, mean in zip((a, b), means, strict=True)
        )
        nuclear = float(np.linalg.svd(cross, compute_uv=False).sum())
        nuclear /= np.sqrt((len(a) - 1.0) * (len(b) - 1.0))
        step = means[0] - means[1]
        return max(0.0, float(step @ step) + spread - 2.0 * nuclear)


class TwoSetExtrapolated:
    """The Fréchet distance of two sets followed to infinitely many items.

    A line through the distances of nested shares of the held blocks, 1/2 to all, against the mean of
    1/n and 1/m, read at 0 (Chong and Forsyth 2020, arXiv 1911.07023; `ExtrapolatedFrechet` says
    what a line cannot know).
    """

    def __init__(self, frechet: TwoSetFrechet) -> None:
        """Take the distance to extrapolate; 20 blocks give the shares exactly."""
        self._frechet = frechet

    def __call__(self, counts: np.ndarray) -> float:
        """Return the intercept of the held blocks."""
        held = np.flatnonzero(counts)
        rates, values = [], []
        for size in (max(2, round(share * len(held))) for share in ExtrapolatedFrechet.SIZES):
            part = np.zeros_like(counts)
            part[held[:size]] = 1
            n, m = (float(sizes @ part) for sizes in self._frechet.dealt.sizes())
            rates.append((1 / n + 1 / m) / 2)
            values.append(self._frechet(part))
        return float(np.polyfit(rates, values, 1)[1])


class _Sums:
    """Sums of a kernel over blocks, [blocks,blocks] within each set and across."""

    def __init__(self, a: np.ndarray, b: np.ndarray, dealt: Deal, kernel: Kernel) -> None:
        first, second = (np.eye(dealt.blocks)[x] for x in (dealt.first, dealt.second))
        self.sizes = tuple(sizes.astype(np.float64) for sizes in dealt.sizes())
        self.first = _block_sums(a, a, first, first, kernel)
        self.second = _block_sums(b, b, second, second, kernel)
        self.cross = _block_sums(a, b, first, second, kernel)

    def means(self, counts: np.ndarray, *, diagonal: bool) -> float:
        """Return mean within + mean within - 2 mean across, the diagonal counted or not."""
        held = counts.astype(np.float64)
        n, m = (float(sizes @ held) for sizes in self.sizes)
        own = n * n if diagonal else n * (n - 1)
        other = m * m if diagonal else m * (m - 1)
        within = held @ self.first @ held / own + held @ self.second @ held / other
        return float(within - 2.0 * (held @ self.cross @ held) / (n * m))


def _block_sums(
    a: np.ndarray, b: np.ndarray, left: np.ndarray, right: np.ndarray, kernel: Kernel
) -> np.ndarray:
    """Return the sums of k(a_i, b_j) by block; left, right: membership [N,blocks], [M,blocks]."""
    return np.asarray(
        sum(left[i : i + _ROWS].T @ (kernel(a[i : i + _ROWS], b) @ right) for i in range(0, len(a), _ROWS))
    )


class TwoSetKernel:
    """KID of the held rows (`bench.metrics.kernel.kernel_distance`), unbiased."""

    def __init__(self, first: np.ndarray, second: np.ndarray, dealt: Deal) -> None:
        """Take features [N,D] and [M,D]; memory is 1024 x max(N, M) doubles."""
        a, b = checked_pair(first, second)
        self._sums = _Sums(a, b, dealt, polynomial_kernel)
        for rows, labels, sums in ((a, dealt.first, self._sums.first), (b, dealt.second, self._sums.second)):
            own = ((rows**2).sum(axis=1) / rows.shape[1] + 1.0) ** 3
            sums -= np.diag(np.bincount(labels, own, minlength=dealt.blocks))

    def __call__(self, counts: np.ndarray) -> float:
        """Return the distance of the rows whose block has count 1."""
        return self._sums.means(counts, diagonal=False)


class TwoSetCmmd:
    """CMMD of the held rows (`bench.metrics.cmmd.cmmd`)."""

    def __init__(self, first: np.ndarray, second: np.ndarray, dealt: Deal) -> None:
        """Take CLIP embeddings [N,D] and [M,D]."""
        a, b = checked_pair(unit_rows(first), unit_rows(second))
        self._sums = _Sums(a, b, dealt, lambda x, y: np.expm1((x @ y.T - 1.0) / SIGMA**2))

    def __call__(self, counts: np.ndarray) -> float:
        """Return the distance of the rows whose block has count 1."""
        return SCALE * self._sums.means(counts, diagonal=True)


class TwoSetPrdc:
    """Precision, recall, density and coverage of the held rows: `statistic("recall")`."""

    def __init__(self, first: np.ndarray, second: np.ndarray, dealt: Deal, *, k: int = NEAREST) -> None:
        """Take features [N,D] of samples and [M,D] of targets; keeps N^2 + M^2 + NM doubles."""
        a, b = checked_pair(first, second)
        self._dealt, self._k = dealt, k
        self._parts = [squared_distances(*pair) for pair in ((a, a), (b, b), (a, b))]
        self._found: dict[bytes, dict[str, float]] = {}

    def statistic(self, name: str) -> Callable[[np.ndarray], float]:
        """Return one of the four as a function of block counts."""
        return lambda counts: self(counts)[name]

    def __call__(self, counts: np.ndarray) -> dict[str, float]:
        """Return all four for the rows whose block has count 1."""
        key = counts.tobytes()
        if key not in self._found:
            in_a, in_b = (np.flatnonzero(counts[x]) for x in (self._dealt.first, self._dealt.second))
            own, other, cross = self._parts
            self._found[key] = from_distances(
                own[np.ix_(in_a, in_a)],
                other[np.ix_(in_b, in_b)],
                cross[np.ix_(in_a, in_b)],
                self._k,
            )
        return self._found[key]
