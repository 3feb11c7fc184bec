"""Kernel distances: the squared maximum mean discrepancy (MMD) of two sets under a kernel.

    mean of k(x_i, x_j) + mean of k(y_i, y_j) - 2 mean of k(x_i, y_j)

KID   features, k(x, y) = (x.y / D + 1)^3, i != j within a set. Unbiased at every N, unlike the Fréchet
      distance (Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401, section 4); it may therefore be
      slightly negative for equal distributions, and that is left so.
CMMD  CLIP embeddings of length 1, k(x, y) = exp(-|x - y|^2 / (2 * 10^2)), i = j included, times 1000
      (Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603, with the scale and estimator of its
      published code). Biased upwards by about the trace of the kernel's spread over N, 0 for equal sets.

"Unbiased" supposes that the sets are independent. Where row i of one was made to resemble row i of
the other (a sample and the target of its condition), the N own pairs among the N^2 cross pairs pull
the value down by 2 (k(own pair) - k(other pair)) / N, which can outweigh the distance itself when
samples are near their targets. Published tools keep them, and so does KID of a deal of independent
sets; of a paired deal it leaves them out (the U-statistic of torch-fidelity's `mmd2`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.metrics.frechet import checked_pair
from bench.metrics.intervals import Deal, SetMetric, Statistic, of_clip, of_features
from bench.metrics.paired import unit_rows
from bench.types import Scored

_ROWS = 1024
_SIGMA = 10.0
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return k(a_i, b_j) = (a_i.b_j / D + 1)^3, [N,M] float64, for features [N,D] and [M,D]."""
    return np.asarray((a @ b.T / a.shape[1] + 1.0) ** 3)


def gaussian_gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return k - 1 of CMMD for unit rows, [N,M]: near 0 as the kernel is near 1, so no digits are lost."""
    return np.asarray(np.expm1((a @ b.T - 1.0) / _SIGMA**2))


class MeanDiscrepancy:
    """The squared MMD of the rows of held blocks, from sums of the kernel over blocks.

    Memory is 1024 x max(N, M) doubles and three matrices [blocks,blocks].
    """

    def __init__(
        self,
        a: np.ndarray,
        b: np.ndarray,
        dealt: Deal,
        *,
        kernel: Kernel,
        biased: bool = False,
        unit: float = 1,
    ) -> None:
        """Take rows [N,D] and [M,D].

        biased: whether i = j counts within a set; where it does not, own pairs of a paired deal do not
        either. unit: factor on the distance.
        """
        self._least, self._own_pairs = (0 if biased else 1), biased or not dealt.paired
        first, second = (a, dealt.first), (b, dealt.second)
        pairs = (first, first, biased), (second, second, biased), (first, second, self._own_pairs)
        self._sums = [unit * _block_sums(*x, *y, kernel=kernel, diagonal=own) for x, y, own in pairs]
        self._sizes = [np.bincount(labels, minlength=dealt.blocks) for labels in (dealt.first, dealt.second)]

    def __call__(self, held: np.ndarray) -> float:
        """Return the distance of the blocks held, [blocks] bool; at least 2 rows of each set."""
        weights = held.astype(np.float64)
        n, m = (float(sizes @ weights) for sizes in self._sizes)
        own, other, cross = (weights @ sums @ weights for sums in self._sums)
        within = own / (n * (n - self._least)) + other / (m * (m - self._least))
        return float(within - 2.0 * cross / (n * m if self._own_pairs else n * m - n))

    def influence(self) -> np.ndarray:
        """Return what each block adds to the distance, [blocks] float64 of sum 0, of paired rows.

        The distance is the mean over pairs of items of h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j)
        - k(x_j, y_i), so item i adds twice its own mean less the whole's (Hoeffding 1948), over N.
        """
        own, other, cross = self._sums
        n = float(self._sizes[0].sum())
        rows = (own + other - cross - cross.T).sum(axis=1) / (n * (n - self._least))
        return np.asarray(2.0 * (rows - rows.sum() * self._sizes[0] / n))


def _block_sums(
    a: np.ndarray, left: np.ndarray, b: np.ndarray, right: np.ndarray, *, kernel: Kernel, diagonal: bool
) -> np.ndarray:
    """Return the sums of k(a_i, b_j) by the blocks of i and j, [blocks,blocks]; diagonal: i = j counts."""
    order = np.argsort(right, kind="stable")
    starts = np.flatnonzero(np.diff(right[order], prepend=-1))
    sums = np.zeros((len(starts), len(starts)))
    for start in range(0, len(a), _ROWS):
        values = kernel(a[start : start + _ROWS], b)
        if not diagonal:
            rows = np.arange(len(values))
            values[rows, start + rows] = 0.0
        np.add.at(sums, left[start : start + _ROWS], np.add.reduceat(values[:, order], starts, axis=1))
    return sums


def _cmmd(scored: Scored, dealt: Deal) -> Statistic | None:
    if scored.read is None or scored.read_targets is None:
        return None
    pair = checked_pair(unit_rows(scored.read), unit_rows(scored.read_targets))
    return MeanDiscrepancy(*pair, dealt, kernel=gaussian_gap, biased=True, unit=1000.0)


def _kid(scored: Scored, dealt: Deal) -> Statistic:
    pair = checked_pair(scored.features, scored.target_features)
    return MeanDiscrepancy(*pair, dealt, kernel=polynomial_kernel)


_CUBIC, _GAUSSIAN = "MMD^2, cubic kernel, own pairs left out", "MMD^2 x 1000, Gaussian kernel"
_KID = of_features(name="kid", title="KID", scale=_CUBIC, better="lower", place=60)
_CMMD = of_clip(name="cmmd", title="CMMD", scale=_GAUSSIAN, better="lower", detail=True, place=97)
KID = SetMetric(specs=(_KID,), statistic=_kid)
CMMD = SetMetric(specs=(_CMMD,), statistic=_cmmd)
