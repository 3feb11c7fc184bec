"""How often our 95% intervals hold the truth, by simulation on Gaussians whose distances are known.

Targets are y ~ N(0, diag l), l_j = 1 / j (like features of a network) or 1; samples are
x = 0.7 y' + 0.7 e, correlated with their targets as a steered sample is, axes stretched by 0.8 and 1.3 in
turn and means moved by half a standard deviation.
So the true Fréchet distance has a closed form. Per-item metrics are scores that share their items'
difficulty: normal, and a skewed one.

A biased statistic (the Fréchet distance of N items, a neighbour metric) is asked whether its interval
holds the value *expected at this N*, which is what rows of one table share. The expected value is the
mean over the trials themselves, which flatters the coverage by less than 0.05% from 200 trials on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from bench.metrics import FD, KID, NEIGHBOURS
from bench.metrics.frechet import FrechetDistance
from bench.metrics.intervals import (
    Deal,
    Interval,
    Resamples,
    SetMetric,
    difference_interval,
    jackknife_interval,
    jackknife_replicates,
    linear_replicates,
    mean_interval,
)
from bench.metrics.neighbours import SHARES
from bench.types import Scored

LEAST, MOST = 0.93, 0.97
_CORRELATION, _SHIFT, _STRETCH = 0.7, 0.5, (0.8, 1.3)
_PRDC = "coverage"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Items and feature dimensions of a simulated set; dimensions 1 for per-item scores.

    flat: whether all axes have variance 1 instead of 1 / j.
    """

    items: int
    dimensions: int
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often one kind of interval held the truth.

    held: share of trials; error: its Monte Carlo standard error; width: half-width over that of an
    interval with the true standard error (1 is right); published: whether records hold this kind.
    """

    kind: str
    items: int
    dimensions: int
    flat: bool
    trials: int
    held: float
    width: float
    published: bool

    @property
    def error(self) -> float:
        """The Monte Carlo standard error of `held`; at least that of one miss."""
        share = min(max(self.held, 1 / self.trials), 1 - 1 / self.trials)
        return float(np.sqrt(share * (1 - share) / self.trials))

    @property
    def right(self) -> bool:
        """Whether the trials speak for 93 to 97%.

        A coverage at an edge of the band passes 95 of 100 times: the band is widened by 1.64 Monte
        Carlo errors of its own edge. With 400 trials an interval of 0.75 or 1.4 times the right
        width (86%, 99.4%) fails.
        """
        reach = NormalDist().inv_cdf(0.95) * np.sqrt(MOST * (1 - MOST) / self.trials)
        below = NormalDist().inv_cdf(0.95) * np.sqrt(LEAST * (1 - LEAST) / self.trials)
        return bool(LEAST - below <= self.held <= MOST + reach)


def simulate(
    *,
    trials: int,
    seed: int,
    sizes: Sequence[Size],
    kinds: Sequence[str],
    shrink: float = 1.0,
) -> tuple[Coverage, ...]:
    """Return the coverage of every kind of interval at every size, the same for the same arguments.

    kinds: names in KINDS; shrink: factor on every half-width, to see that a wrong interval is found out.
    """
    return tuple(
        _cover(name, size, trials=trials, seed=seed, shrink=shrink)
        for size, name in cells(sizes, kinds=kinds)
    )


def cells(sizes: Sequence[Size], *, kinds: Sequence[str]) -> list[tuple[Size, str]]:
    """Return what is simulated, kind by kind; scores of items have no dimensions, so one N is enough."""
    found = []
    for name in kinds:
        own = {s.items: Size(items=s.items, dimensions=1) for s in sizes}
        found += [(size, name) for size in (own.values() if name in UNBIASED else sizes)]
    return found


def true_frechet(size: Size) -> float:
    """Return the Fréchet distance of the simulated Gaussians: commuting covariances, closed form."""
    spread = _spread(size)
    gap = (_SHIFT**2 * spread).sum()
    own = np.sqrt(2) * _CORRELATION * _stretch(size.dimensions)
    return float(gap + (spread * (own - 1.0) ** 2).sum())


def draw_sets(size: Size, draw: np.random.Generator, *, methods: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return samples [methods,N,D], each method at one distance, and their targets [N,D]."""
    n, d = size.items, size.dimensions
    root = np.sqrt(_spread(size))
    target = draw.normal(size=(n, d))
    own = _CORRELATION * (target + draw.normal(size=(methods, n, d)))
    return (own * _stretch(d) + _SHIFT) * root, target * root


def _spread(size: Size) -> np.ndarray:
    return 1.0 / np.arange(1, size.dimensions + 1) ** (0.0 if size.flat else 1.0)


def _stretch(d: int) -> np.ndarray:
    return np.where(np.arange(d) % 2, _STRETCH[1], _STRETCH[0])


def _cover(name: str, size: Size, *, trials: int, seed: int, shrink: float) -> Coverage:
    make, published = KINDS[name]
    resamples = Resamples(n_items=size.items, seed=0)
    found = []
    for trial in range(trials):
        draw = np.random.default_rng([seed, size.items, size.dimensions, trial])
        found.append(make(size, draw, resamples))
    values = np.array([i.value for i in found])
    low = values - shrink * (values - [i.low for i in found])
    high = values + shrink * ([i.high for i in found] - values)
    at_n = UNBIASED.get(name, values.mean())
    right = 2 * NormalDist().inv_cdf(0.975) * values.std(ddof=1)
    held = float(np.mean((low <= at_n) & (at_n <= high)))
    return Coverage(
        kind=name,
        items=size.items,
        dimensions=size.dimensions,
        flat=size.flat,
        trials=trials,
        held=held,
        width=float((high - low).mean() / right),
        published=published,
    )


def _scores(size: Size, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two methods' scores, [N] each: shared difficulty, the first's noise skewed; means 1 and 0.5."""
    hard = draw.normal(size=size.items)
    return hard + draw.exponential(size=size.items), hard + 0.5 + 0.5 * draw.normal(size=size.items)


def _item_mean(size: Size, draw: np.random.Generator, resamples: Resamples) -> Interval:
    return mean_interval(_scores(size, draw)[0], resamples=resamples)


def _item_difference(size: Size, draw: np.random.Generator, resamples: Resamples) -> Interval:
    return difference_interval(*_scores(size, draw), resamples=resamples)


def _linear(sample: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    dealt = Deal.of_pairs(len(sample))
    distance = FrechetDistance(sample, target, dealt)
    value = distance(dealt.whole)
    return value, linear_replicates(value, distance.influence(), dealt=dealt)


def _fd(size: Size, draw: np.random.Generator, resamples: Resamples) -> Interval:
    (sample,), target = draw_sets(size, draw)
    return jackknife_interval(*_linear(sample, target))


def _fd_difference(size: Size, draw: np.random.Generator, resamples: Resamples) -> Interval:
    (one, other), target = draw_sets(size, draw, methods=2)
    a, b = _linear(one, target), _linear(other * 1.1, target)
    return jackknife_interval(a[0] - b[0], a[1] - b[1])


def _by_groups(
    metric: SetMetric, name: str, size: Size, draw: np.random.Generator, _: Resamples, *, groups: int = 30
) -> Interval:
    """The grouped jackknife of one of a set metric's numbers."""
    (sample,), target = draw_sets(size, draw)
    nothing, dealt = np.empty(0), Deal.of_pairs(size.items)
    scored = Scored(images=nothing, targets=nothing, examples=(), features=sample, target_features=target)
    statistic = metric.statistic(scored, dealt)
    assert statistic is not None
    place = [spec.name for spec in metric.specs].index(name)
    value = float(np.atleast_1d(statistic(dealt.whole))[place])
    drawn = jackknife_replicates(statistic, blocks=dealt.blocks, groups=groups).reshape(groups, -1)[:, place]
    return jackknife_interval(value, drawn, share_of=size.items if name in SHARES else None)


_Make = Callable[[Size, np.random.Generator, Resamples], Interval]
KINDS: Mapping[str, tuple[_Make, bool]] = {
    "item mean": (_item_mean, True),
    "difference of item means": (_item_difference, True),
    "FD": (_fd, True),
    "FD difference": (_fd_difference, True),
    "KID": (partial(_by_groups, KID, "kid"), True),
    f"{_PRDC} of neighbours": (partial(_by_groups, NEIGHBOURS, _PRDC), True),
    "FD, grouped jackknife": (partial(_by_groups, FD, "fd"), False),
}
UNBIASED = {"item mean": 1.0, "difference of item means": 0.5}  # their true values
