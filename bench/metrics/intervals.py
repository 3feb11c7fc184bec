"""Intervals over items and training seeds, and what may be claimed of many of them at once.

A table's numbers vary for two reasons that are crossed: which groups of items were evaluated (items of
one concept or near-duplicates share a group; where nothing is known each item is one) and which seeds
trained. `Estimates` holds both, the number of each seed and what each group adds to it, and one function,
`crossed_interval`, makes the interval of a number or of a difference of two:

    SE^2 = SE^2 by groups of the mean over seeds + s^2 / S      (s: deviation of the S seeds)

with Student's t at Satterthwaite's degrees of freedom. A difference pairs both: groups by groups, and
seeds where both have the same. What a group adds is linear: exact for means of items, kernel distances
and, by derivatives, Fréchet distances; by the jackknife for neighbours. A `Deal` says what is left out
together. `holm` corrects the claims of a table for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from statistics import NormalDist

import numpy as np
from scipy.special import stdtr, stdtrit

from bench.types import BenchError, MetricSpec, Scored

LEAST_ITEMS = 30  # below, tables show no Fréchet distance: intervals were tested down to it
FEW_ITEMS = 2048  # below, tables warn: the distance lies far above that of infinitely many items


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95% interval, standard error, and Student's freedom (infinite for a normal)."""

    value: float
    low: float
    high: float
    error: float = math.nan
    freedom: float = math.inf

    @property
    def chance(self) -> float:
        """The two-sided p-value of 0: how often chance alone would move the estimate as far."""
        if self.error > 0:
            return float(2 * stdtr(min(self.freedom, 1e9), -abs(self.value) / self.error))
        return float(self.value == 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Deal:
    """Two sets dealt into the same number of blocks: what the jackknife leaves out, in both at once.

    first, second: the block of each row, [N] and [M] int64 in 0..blocks-1. paired: row i of both is
    item i, in one block with its group. Where the sets are independent, deviations of the two add as their
    variances do; rows of equal index share a block where N = M, so that what ties them is accounted for.
    """

    first: np.ndarray
    second: np.ndarray
    blocks: int
    paired: bool = False

    @cached_property
    def shares(self) -> np.ndarray:
        """The share of its set's rows that each block holds, [blocks] float64; the mean of both sets'."""
        counts = [np.bincount(labels, minlength=self.blocks) for labels in (self.first, self.second)]
        return np.mean([count / count.sum() for count in counts], axis=0)

    @classmethod
    def of(cls, n: int, m: int, *, blocks: int, seed: int = 0) -> Deal:
        """Deal N and M rows into blocks of nearly equal size, at most as many as the smaller set has."""
        blocks = min(blocks, n, m)
        if blocks < 1:
            raise BenchError(f"two sets need at least one row each to be dealt, got {n} and {m}")
        return cls(first=_labels(n, blocks, seed), second=_labels(m, blocks, seed), blocks=blocks)

    @classmethod
    def of_pairs(cls, n: int, *, groups: np.ndarray | None = None, seed: int = 0) -> Deal:
        """Deal N items, each a row of both sets, into a block each.

        groups: [N] int, as `labels_of` gives them; items of one group are dealt into one block.
        """
        known = np.arange(n) if groups is None else groups
        blocks = int(known.max()) + 1
        labels = _labels(blocks, blocks, seed)[known]
        return cls(first=labels, second=labels, blocks=blocks, paired=True)

    @property
    def whole(self) -> np.ndarray:
        """All blocks held, [blocks] bool."""
        return np.ones(self.blocks, dtype=bool)


def labels_of(groups: Sequence[str]) -> np.ndarray:
    """Number the groups of items in the order of their names: [N] int in 0..G-1."""
    return np.unique(np.asarray(groups), return_inverse=True)[1]


@cache  # a report deals the same few numbers of rows thousands of times
def _labels(n: int, blocks: int, seed: int) -> np.ndarray:
    labels, order = np.empty(n, dtype=np.int64), np.random.default_rng(seed).permutation(n)
    for block, places in enumerate(left_out(n, blocks)):
        labels[order[places]] = block
    labels.setflags(write=False)
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


of_features = partial(MetricSpec, judge="features")
of_clip = partial(MetricSpec, judge="clip")

Seeds = tuple[int | tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimates:
    """One number of each training seed, and what each group of items adds to it.

    values: [S] float64. influence: [S,G] float64, to first order: left without group g, whose share of
    the items is p, value s would be values[s] - influence[s, g] / (1 - p). seeds: S, each once, or each
    crossed with what else was drawn for training, (seed, choice).
    items: how many independent items the groups are worth (Kish), for shares; 0 where it does not matter.
    """

    values: np.ndarray
    influence: np.ndarray
    seeds: Seeds = (0,)
    items: float = 0.0

    @classmethod
    def of_items(
        cls, values: np.ndarray, *, groups: np.ndarray | None = None, seeds: Seeds = (0,)
    ) -> Estimates:
        """Take values of items, [N] or [S,N], and the group of each, [N] int (None: each its own).

        BenchError for a missing (non-finite) value: missing is never zero, so leave such items out of
        every method alike.
        """
        rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
        if rows.shape[1] < 2 or not np.isfinite(rows).all():
            missing = int((~np.isfinite(rows)).any(axis=0).sum())
            raise BenchError(
                f"an interval needs 2 finite values, got {rows.shape[1]}, of which {missing} missing"
            )
        means = rows.mean(axis=1)
        added = by_group((rows - means[:, None]) / rows.shape[1], groups)
        return cls(values=means, influence=added, seeds=seeds, items=_kish(rows.shape[1], groups))

    @classmethod
    def of_replicates(
        cls,
        values: np.ndarray | float,
        replicates: np.ndarray,
        *,
        dealt: Deal,
        groups: np.ndarray | None = None,
        seeds: Seeds = (0,),
    ) -> Estimates:
        """Take the numbers of whole sets, [S], and their jackknife replicates, [R] or [S,R].

        groups: of the items, [N] int, to gather replicates of single items by; those that left out a group
        each are put in the groups' order, those that left out several stay as they are.
        """
        numbers = np.atleast_1d(np.asarray(values, dtype=np.float64))
        left = np.atleast_2d(np.asarray(replicates, dtype=np.float64))
        shares = np.array([dealt.shares[part].sum() for part in left_out(dealt.blocks, left.shape[1])])
        added = (numbers[:, None] - left) * (1.0 - shares)
        if groups is not None and left.shape[1] == len(dealt.first) == len(groups):
            added = by_group(added[:, dealt.first], groups)
        elif groups is not None and left.shape[1] == dealt.blocks < len(groups):
            added = added[:, dealt.first[np.unique(groups, return_index=True)[1]]]
        items = float(min(len(dealt.first), len(dealt.second)))
        if dealt.paired:
            items = _kish(len(dealt.first), dealt.first if groups is None else groups)
        return cls(values=numbers, influence=added, seeds=seeds, items=items)

    def __sub__(self, other: Estimates) -> Estimates:
        """Return the difference of two of equal seeds and groups."""
        assert self.seeds == other.seeds, (self.seeds, other.seeds)
        return Estimates(
            values=self.values - other.values, influence=self.influence - other.influence, seeds=self.seeds
        )

    @property
    def _by_seeds(self) -> list[tuple[float, float]]:
        """Variance and freedom of the mean over seeds, and over choices crossed with them, of 2 or more."""
        terms = []
        for drawn in zip(*(s if isinstance(s, tuple) else (s,) for s in self.seeds), strict=True):
            means = [self.values[[one == level for one in drawn]].mean() for level in dict.fromkeys(drawn)]
            if len(means) > 1:
                terms.append((float(np.var(means, ddof=1)) / len(means), len(means) - 1.0))
        return terms


def by_group(added: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Sum what items add, [S,N], over their groups, [N] int in 0..G-1: [S,G]."""
    if groups is None:
        return added
    return np.stack([np.bincount(groups, weights=row) for row in added])


def _kish(n: int, groups: np.ndarray | None) -> float:
    return float(n if groups is None else n**2 / (np.bincount(groups) ** 2).sum())


def crossed_interval(
    estimates: Estimates, minus: Estimates | None = None, *, level: float = 0.95, share: bool = False
) -> Interval:
    """Return the interval of a number, or of a difference, over groups of items and training seeds.

    minus: subtracted; by seed where both have the same ones, else the seeds of both count apart.
    share: the number is a share of items. Near 0 or 1 the groups hardly differ, so its interval is at
    least Wilson's, and within [0, 1]: it then holds the truth too often rather than too rarely.
    Source: Satterthwaite 1946, Biometrics Bulletin 2; how often it holds: tests/metrics/coverage.py.
    """
    parts = [estimates] if minus is None else [estimates, minus]
    if minus is not None and estimates.seeds == minus.seeds:
        parts = [estimates - minus]
    signed = list(zip((1.0, -1.0), parts, strict=False))
    value = sum(sign * float(part.values.mean()) for sign, part in signed)
    groups = np.asarray(sum(sign * part.influence.mean(axis=0) for sign, part in signed))
    count = len(groups)
    if count < 2:
        raise BenchError(f"an interval needs at least 2 groups of items, got {count}")
    terms = [(count * float(groups.var(ddof=1)), count - 1.0), *(t for part in parts for t in part._by_seeds)]
    variance = sum(term for term, _ in terms)
    spread = sum(term**2 / freedom for term, freedom in terms)
    freedom = variance**2 / spread if spread > 0 else count - 1.0
    error = math.sqrt(variance)
    reach = float(stdtrit(freedom, _upper_tail(level))) * error
    low, high = value - reach, value + reach
    if share and minus is None:
        floor = wilson_interval(value, estimates.items, level=level)
        low, high = max(0.0, min(low, floor.low)), min(1.0, max(high, floor.high))
    return Interval(value=value, low=low, high=high, error=error, freedom=freedom)


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6)."""
    corrected, most = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        most = max(most, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = most
    return corrected


@cache
def left_out(blocks: int, groups: int) -> tuple[np.ndarray, ...]:
    """Return the blocks that the jackknife leaves out in turn, as even as they go."""
    return tuple(np.array_split(np.arange(blocks), groups))


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
    held = (~np.isin(np.arange(blocks), group) for group in left_out(blocks, groups))
    return np.asarray([statistic(part) for part in held], dtype=np.float64)


def wilson_interval(share: float, n: float, *, level: float = 0.95) -> Interval:
    """Return the score interval of a share of n independent items (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    z = NormalDist().inv_cdf(_upper_tail(level))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(value=share, low=float(middle - reach), high=float(middle + reach))


def linear_replicates(value: float, influence: np.ndarray, *, dealt: Deal) -> np.ndarray:
    """Return the infinitesimal jackknife's replicates, [blocks] float64, for `Estimates.of_replicates`.

    influence: [blocks], what each block adds to the statistic (see `Estimates`).

    For the Fréchet distance with N near D, where leaving out an item for good also takes a dimension
    away, the grouped jackknife is up to 1.34 times too wide and holds 99%; this one is 0.96 to 1.07 times
    as wide as it should be and holds 92 to 97% (tests/metrics/coverage.py, 400 trials, N of 30 to 120 below
    and above D, for the distance expected at this N), and costs one decomposition instead of a hundred.
    Source: Jaeckel 1972; Efron 1982, chapter 6.
    """
    return np.asarray(value - influence / (1.0 - dealt.shares))


def seed_spread(values: np.ndarray) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1) over training seeds, [S]; no deviation for a single seed."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def _upper_tail(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise BenchError(f"level must be between 0 and 1, got {level}")
    return (1.0 + level) / 2.0
