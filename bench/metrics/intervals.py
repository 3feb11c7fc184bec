"""Intervals by resampling items, and spread over training seeds.

Every method of a table is scored on the same items. One `Resamples` value, made from the number of
items and a seed, serves the whole table: difference intervals are then paired and tight. One `Deal`
says what a metric of whole sets leaves out together.

    per-item metrics      mean_interval, difference_interval: percentile bootstrap
    FD of paired sets     linear_replicates: the jackknife to first order, from exact derivatives
    other set metrics     jackknife_replicates: groups of blocks left out in turn
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from bench.types import BenchError, MetricSpec, Scored

LEAST_ITEMS = 30  # below, tables show no Fréchet distance: intervals were tested down to it
FEW_ITEMS = 2048  # below, tables warn: the distance lies far above that of infinitely many items


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation (n - 1) over training seeds; no deviation for a single seed."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Bootstrap resamples of N items: counts [n_replicates, N] uint16.

    A pure function of its three fields. n_items: N, at least 2. n_replicates: at least 20. seed:
    any integer >= 0.
    """

    n_items: int
    n_replicates: int = 1000
    seed: int
    counts: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Draw the resamples."""
        if self.n_items < 2 or self.n_replicates < 20:
            raise BenchError(
                "resamples need at least 2 items and 20 replicates, "
                f"got {self.n_items} and {self.n_replicates}"
            )
        draw = np.random.default_rng(self.seed)
        counts = np.empty((self.n_replicates, self.n_items), dtype=np.uint16)
        for row in counts:
            picks = draw.integers(self.n_items, size=self.n_items)
            row[:] = np.bincount(picks, minlength=self.n_items)
        counts.setflags(write=False)
        object.__setattr__(self, "counts", counts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Deal:
    """Two sets dealt into the same number of blocks: what the jackknife leaves out, in both at once.

    first, second: the block of each row, [N] and [M] int64 in 0..blocks-1. paired: row i of both is
    item i, alone in its block. Where the sets are independent, deviations of the two add as their
    variances do; rows of equal index share a block where N = M, so that what ties them is accounted for.
    """

    first: np.ndarray
    second: np.ndarray
    blocks: int
    paired: bool = False

    @classmethod
    def of(cls, n: int, m: int, *, blocks: int, seed: int = 0) -> Deal:
        """Deal N and M rows into blocks of nearly equal size, at most as many as the smaller set has."""
        blocks = min(blocks, n, m)
        if blocks < 1:
            raise BenchError(f"two sets need at least one row each to be dealt, got {n} and {m}")
        return cls(first=_labels(n, blocks, seed), second=_labels(m, blocks, seed), blocks=blocks)

    @classmethod
    def of_pairs(cls, n: int, *, seed: int = 0) -> Deal:
        """Deal N items, each a row of both sets, into a block each."""
        labels = _labels(n, n, seed)
        return cls(first=labels, second=labels, blocks=n, paired=True)

    @property
    def whole(self) -> np.ndarray:
        """All blocks held, [blocks] bool."""
        return np.ones(self.blocks, dtype=bool)


def _labels(n: int, blocks: int, seed: int) -> np.ndarray:
    labels = np.empty(n, dtype=np.int64)
    for block, rows in enumerate(np.array_split(np.random.default_rng(seed).permutation(n), blocks)):
        labels[rows] = block
    return labels


Statistic = Callable[[np.ndarray], float | np.ndarray]
"""One number, or K of them, of the rows of the held blocks ([blocks] bool) of a Deal."""


@dataclass(frozen=True, kw_only=True)
class SetMetric:
    """Numbers of two sets, one for each spec.

    statistic: (scored, deal) -> Statistic of as many numbers, None where a judge or items are missing.
    A statistic with a method `influence` (as `linear_replicates` takes it) is not jackknifed where rows
    pair up. groups: left out in turn by the jackknife, at most. all_pairs: whether it holds a number for
    each pair of rows in memory. by_order: whether the order of rows moves its value.
    """

    specs: tuple[MetricSpec, ...]
    statistic: Callable[[Scored, Deal], Statistic | None]
    groups: int = 100
    all_pairs: bool = False
    by_order: bool = False


def mean_interval(values: np.ndarray, *, resamples: Resamples, level: float = 0.95) -> Interval:
    """Return the mean of per-item values [N] with its percentile bootstrap interval.

    BenchError for a missing (non-finite) value: missing is never zero, so leave such items out of
    every method alike. Source: Efron and Tibshirani 1993, chapter 13.
    """
    items = _checked_values(values, resamples)
    means = resamples.counts @ items / resamples.n_items
    low, high = np.quantile(means, _tails(level))
    return Interval(value=float(items.mean()), low=float(low), high=float(high))


def difference_interval(
    a: np.ndarray, b: np.ndarray, *, resamples: Resamples, level: float = 0.95
) -> Interval:
    """Return mean(a) - mean(b) with its paired interval; a, b: [N] per-item values, one order."""
    first, second = _checked_values(a, resamples), _checked_values(b, resamples)
    return mean_interval(first - second, resamples=resamples, level=level)


def jackknife_replicates(statistic: Statistic, *, blocks: int, groups: int = 100) -> np.ndarray:
    """Return a statistic without each group of blocks in turn, [G] or [G,K] float64, G at most `groups`.

    Differences and means of such arrays, made from one Deal, are the replicates of differences and
    means: stored, they pair two methods long after their samples are gone. No item is ever repeated, so
    the Fréchet distance errs far less than under the bootstrap. Source: Efron and Tibshirani 1993,
    chapter 11; that it errs on the safe side: Efron and Stein 1981.
    """
    groups = min(groups, blocks)
    if groups < 10:
        raise BenchError(f"the jackknife needs at least 10 groups of items, got {groups}")
    values = []
    for group in np.array_split(np.arange(blocks), groups):
        held = np.ones(blocks, dtype=bool)
        held[group] = False
        values.append(statistic(held))
    return np.asarray(values, dtype=np.float64)


def jackknife_interval(
    value: float, replicates: np.ndarray, *, level: float = 0.95, share_of: int | None = None
) -> Interval:
    """Return the normal interval about a value from its jackknife replicates [G].

    share_of: the value is a share of so many items. Near 0 or 1 its replicates hardly differ, so the
    interval is at least Wilson's, and within [0, 1]: it then holds the truth too often rather than
    too rarely (tests/metrics/coverage.py).
    """
    values = np.asarray(replicates, dtype=np.float64)
    groups = len(values)
    error = float(np.sqrt((groups - 1) / groups * ((values - values.mean()) ** 2).sum()))
    reach = NormalDist().inv_cdf(_tails(level)[1]) * error
    low, high = value - reach, value + reach
    if share_of is not None:
        floor = wilson_interval(value, share_of, level=level)
        low, high = max(0.0, min(low, floor.low)), min(1.0, max(high, floor.high))
    return Interval(value=value, low=low, high=high)


def wilson_interval(share: float, n: int, *, level: float = 0.95) -> Interval:
    """Return the score interval of a share of n independent items (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    z = NormalDist().inv_cdf(_tails(level)[1])
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(value=share, low=float(middle - reach), high=float(middle + reach))


def linear_replicates(value: float, influence: np.ndarray, *, dealt: Deal) -> np.ndarray:
    """Return the infinitesimal jackknife's replicates, [N] float64, for `jackknife_interval`.

    influence: [N], mean 0, the derivative of a statistic by each item's share at equal shares (see
    `bench.metrics.frechet.FrechetDistance.influence`); value - influence / (N - 1) is the statistic
    without one item to first order, in the order of the deal's blocks, one an item.

    For the Fréchet distance with N near D, where leaving out an item for good also takes a dimension
    away, the grouped jackknife is up to 1.34 times too wide and holds 99%; this one is 0.96 to 1.07 times
    as wide as it should be and holds 92 to 97% (tests/metrics/coverage.py, 400 trials, N of 30 to 120 below
    and above D, for the distance expected at this N), and costs one decomposition instead of a hundred.
    Source: Jaeckel 1972; Efron 1982, chapter 6.
    """
    return np.asarray(value - influence[np.argsort(dealt.first)] / (dealt.blocks - 1))


def seed_spread(values: np.ndarray) -> Spread:
    """Return mean and standard deviation of one number over training seeds, [S], S at least 1."""
    seeds = np.asarray(values, dtype=np.float64)
    if seeds.ndim != 1 or len(seeds) == 0 or not np.isfinite(seeds).all():
        raise BenchError(f"a spread needs finite values [S], S >= 1, got {seeds!r}")
    deviation = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
    return Spread(mean=float(seeds.mean()), deviation=deviation, n=len(seeds))


def _checked_values(values: np.ndarray, resamples: Resamples) -> np.ndarray:
    items = np.asarray(values, dtype=np.float64)
    if items.shape != (resamples.n_items,):
        raise BenchError(f"values must be [{resamples.n_items}], one an item, got shape {items.shape}")
    if not np.isfinite(items).all():
        raise BenchError(
            f"{int((~np.isfinite(items)).sum())} of {len(items)} values are missing or not finite; "
            "leave those items out of every method alike"
        )
    return items


def _tails(level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise BenchError(f"level must be between 0 and 1, got {level}")
    return (1.0 - level) / 2.0, (1.0 + level) / 2.0
