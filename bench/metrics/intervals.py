"""Intervals by resampling items, and spread over training seeds.

Every method of a table is scored on the same items. One `Resamples` value, made from the number of
items and a seed, serves the whole table: difference intervals are then paired and tight.

    per-item metrics      mean_interval, difference_interval: percentile bootstrap
    FD (of a set)         linear_replicates: the jackknife to first order, from exact derivatives
    KID and others        jackknife, jackknife_difference: groups of items left out in turn
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from bench.types import BenchError

LEAST_ITEMS = 30  # below, tables show no Fréchet distance: intervals were tested down to it
FEW_ITEMS = 2048  # below, tables warn: the distance lies far above that of infinitely many items

Statistic = Callable[[np.ndarray], float]
"""A number as a function of item counts [N]: counts[i] is how often a resample holds item i."""


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


def replicate(statistic: Statistic, *, resamples: Resamples, replicates: int | None = None) -> np.ndarray:
    """Return a statistic on the first `replicates` resamples (all by default), [R] float64."""
    rows = resamples.counts if replicates is None else resamples.counts[:replicates]
    if len(rows) < 20 or (replicates is not None and replicates > resamples.n_replicates):
        raise BenchError(f"replicates must be between 20 and {resamples.n_replicates}, got {replicates}")
    return np.asarray([statistic(row) for row in rows], dtype=np.float64)


def centred_interval(value: float, replicates: np.ndarray, *, level: float = 0.95) -> Interval:
    """Return the basic interval of a biased statistic, with the bootstrap's own bias taken out.

    The Fréchet distance grows when items repeat or are few, so its replicates lie above the value
    and a percentile interval would often not even hold it. The basic interval, value - (replicates
    - value), overcorrects: it aims at the distance of infinitely many items, which N < D items
    cannot tell. This one is value - (replicates - mean of replicates): it keeps the spread and
    shape, holds the value, and aims at the distance *expected at this number of items*. That is
    what two methods of one table share, so compare only rows of equal N. Measured with 95% asked:
    0.88 to 0.93 for N=100, D=5; always for N <= D, where repeated items make it 1.4 to 2.1 times
    too wide: `linear_replicates` is better there. Source of the basic interval:
    Davison and Hinkley 1997, section 5.2; the centring is ours.
    """
    low, high = np.quantile(replicates, _tails(level))
    centre = replicates.mean()
    return Interval(value=float(value), low=float(value - high + centre), high=float(value - low + centre))


def bootstrap(
    statistic: Statistic,
    *,
    resamples: Resamples,
    replicates: int | None = None,
    level: float = 0.95,
) -> Interval:
    """Return a set statistic with its centred interval, see `centred_interval`.

    statistic: `bench.metrics.frechet.PairedFrechet(sample, target)` or
    `bench.metrics.kernel.PairedKernel(sample, target)`, or any function of item counts.
    """
    value = statistic(np.ones(resamples.n_items, dtype=np.uint16))
    drawn = replicate(statistic, resamples=resamples, replicates=replicates)
    return centred_interval(value, drawn, level=level)


def bootstrap_difference(
    a: Statistic,
    b: Statistic,
    *,
    resamples: Resamples,
    replicates: int | None = None,
    level: float = 0.95,
) -> Interval:
    """Return a - b of two set statistics over the same resamples, with its centred interval."""
    return bootstrap(
        lambda counts: a(counts) - b(counts),
        resamples=resamples,
        replicates=replicates,
        level=level,
    )


def jackknife(
    statistic: Statistic, *, resamples: Resamples, groups: int = 100, level: float = 0.95
) -> Interval:
    """Return a set statistic with its normal interval by the jackknife over groups of items.

    Items are dealt into `groups` groups (at most N), the same for every method of a table; each is
    left out in turn, and the variance is (groups - 1) / groups times the sum of squared deviations.
    No item is ever repeated, so it errs far less than the bootstrap for the Fréchet distance of
    N < D items: the standard error measured there was 1.05 to 1.25 times the true one, on the safe
    side (Efron and Stein 1981), and 95% intervals held the distance expected at this N 92 to 100%
    of the time. Source: Efron and Tibshirani 1993, chapter 11.

    statistic: `bench.metrics.frechet.PairedFrechet(sample, target)`,
    `bench.metrics.kernel.PairedKernel(sample, target)`, or any function of item counts.
    """
    return jackknife_interval(
        statistic(np.ones(resamples.n_items, dtype=np.uint16)),
        jackknife_replicates(statistic, resamples=resamples, groups=groups),
        level=level,
    )


def jackknife_replicates(statistic: Statistic, *, resamples: Resamples, groups: int = 100) -> np.ndarray:
    """Return the statistic without each group of items in turn, [G] float64; see `jackknife`.

    Differences and means of such arrays, made from one `Resamples`, are the replicates of differences
    and means: stored, they pair two methods long after their samples are gone.
    """
    n = resamples.n_items
    groups = min(groups, n)
    if groups < 10:
        raise BenchError(f"the jackknife needs at least 10 groups of items, got {groups}")
    whole = np.ones(n, dtype=np.uint16)
    order = np.random.default_rng(resamples.seed).permutation(n)
    values = np.empty(groups)
    for index, group in enumerate(np.array_split(order, groups)):
        counts = whole.copy()
        counts[group] = 0
        values[index] = statistic(counts)
    return values


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


def linear_replicates(value: float, influence: np.ndarray, *, resamples: Resamples) -> np.ndarray:
    """Return the infinitesimal jackknife's replicates, [N] float64, for `jackknife_interval`.

    influence: [N], mean 0, the derivative of a statistic by each item's share at equal shares (see
    `bench.metrics.frechet.PairedFrechet.influence`); value - influence / (N - 1) is the statistic
    without one item to first order, in the order in which `jackknife_replicates` leaves items out.

    For the Fréchet distance with N near D, where leaving out an item for good also takes a dimension
    away, the grouped jackknife is up to 1.34 times too wide and holds 99%; this one is 0.96 to 1.07 times
    as wide as it should be and holds 92 to 97% (tests/metrics/coverage.py, 400 trials, N of 30 to 120 below
    and above D, for the distance expected at this N), and costs one decomposition instead of a hundred.
    Source: Jaeckel 1972; Efron 1982, chapter 6.
    """
    moved = _checked_values(influence, resamples)
    order = np.random.default_rng(resamples.seed).permutation(resamples.n_items)
    return np.asarray(value - moved[order] / (resamples.n_items - 1))


def jackknife_difference(
    a: Statistic,
    b: Statistic,
    *,
    resamples: Resamples,
    groups: int = 100,
    level: float = 0.95,
) -> Interval:
    """Return a - b of two set statistics, leaving out the same items in both; see `jackknife`."""
    return jackknife(lambda counts: a(counts) - b(counts), resamples=resamples, groups=groups, level=level)


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
