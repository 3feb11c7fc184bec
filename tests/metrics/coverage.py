"""How often our 95% intervals hold the truth, by simulation of what varies: items, their groups, seeds.

A trial draws 275 groups of the published sizes (363 items, Kish's number 184), whose items share a part
of their features and of their difficulty (intraclass correlation .55, that of the judge's features of
the test side), and S training seeds of two methods. Targets have variances l_j = 1 / (j (1 + j / 120)),
near the judge's; samples are x = 0.7 y + 0.7 e, correlated with their targets as a steered sample is, axes
stretched by 0.8 and 1.3 in turn and means moved; a seed moves the means of one method's samples anew.

An interval is asked whether it holds the value *expected at this N*, over groups and seeds, which is what
rows of one table share. It is the mean over the trials themselves, which flatters the coverage by less
than 0.05% from 200 trials on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from bench.metrics import CMMD, FD, FD_INFINITE, KID, NEIGHBOURS
from bench.metrics.intervals import Deal, Estimates, Interval, SetMetric, crossed_interval
from bench.metrics.neighbours import SHARES
from bench.scoring import measured
from bench.types import Scored

LEAST, MOST = 0.93, 0.97
PUBLISHED = {1: 235, 2: 12, 3: 20, 4: 3, 6: 3, 7: 2}
"""Groups of each size on the test side of openmoji64."""
_CORRELATION, _SHIFT, _STRETCH, _TOGETHER = 0.7, 0.5, (0.8, 1.3), 0.55


@dataclass(frozen=True, kw_only=True)
class World:
    """What a trial draws: groups of each size, width of the features, training seeds.

    seed_shift: how far a seed moves a method's means, in deviations. every_item: intervals are told
    that each item is a group of its own; one_seed: and that seeds do not vary. Both are wrong here.
    """

    groups: Mapping[int, int]
    dimensions: int
    seeds: int = 5
    seed_shift: float = 0.03
    every_item: bool = False
    one_seed: bool = False

    @property
    def labels(self) -> np.ndarray:
        """The group of each item, [N] int."""
        sizes = [size for size, count in self.groups.items() for _ in range(count)]
        return np.repeat(np.arange(len(sizes)), sizes)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often one kind of interval held the truth.

    held: share of trials; error: its Monte Carlo standard error; width: half-width over that of an
    interval with the true standard error (1 is right).
    """

    kind: str
    trials: int
    held: float
    width: float

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


def simulate(kind: str, world: World, *, trials: int, seed: int = 0, shrink: float = 1.0) -> Coverage:
    """Return the coverage of a kind of interval (a name in KINDS), the same for the same arguments.

    shrink: factor on every half-width, to see that a wrong interval is found out.
    """
    found = []
    for trial in range(trials):
        draw = np.random.default_rng([seed, world.dimensions, world.seeds, trial])
        found.append(KINDS[kind](world, draw))
    values = np.array([i.value for i in found])
    low = values - shrink * (values - [i.low for i in found])
    high = values + shrink * ([i.high for i in found] - values)
    right = 2 * NormalDist().inv_cdf(0.975) * values.std(ddof=1)
    held = float(np.mean((low <= values.mean()) & (values.mean() <= high)))
    return Coverage(kind=kind, trials=trials, held=held, width=float((high - low).mean() / right))


def _together(world: World, draw: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers of items, [N,*shape], of which those of a group have a part in common."""
    labels = world.labels
    common = draw.normal(size=(labels.max() + 1, *shape))[labels]
    own = draw.normal(size=(len(labels), *shape))
    return np.sqrt(_TOGETHER) * common + np.sqrt(1 - _TOGETHER) * own


def features(world: World, draw: np.random.Generator) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Return targets [N,D] and, of two methods and each seed, samples [N,D]."""
    axes = np.arange(1, world.dimensions + 1)
    root = 1.0 / np.sqrt(axes * (1 + axes / 120))
    stretch = np.where(axes % 2, *_STRETCH)
    target = _together(world, draw, world.dimensions)
    methods = []
    for shift in (_SHIFT, 1.1 * _SHIFT):
        own = _CORRELATION * (target + _together(world, draw, world.dimensions))
        methods.append([])
        for _ in range(world.seeds):
            moved = shift + world.seed_shift * draw.normal(size=world.dimensions)
            noise = 0.2 * draw.normal(size=own.shape)
            methods[-1].append(((own + noise) * stretch + moved) * root)
    return target * root, methods


def _interval(world: World, one: Estimates, other: Estimates | None, *, share: bool = False) -> Interval:
    if world.one_seed:
        one, other = (_averaged(one), None if other is None else _averaged(other))
    return crossed_interval(one, other, share=share)


def _averaged(many: Estimates) -> Estimates:
    mean, added = many.values.mean(keepdims=True), many.influence.mean(axis=0, keepdims=True)
    return Estimates(values=mean, influence=added, items=many.items)


def _scores(world: World, draw: np.random.Generator, *, difference: bool) -> Interval:
    """Scores with shared difficulty, the first method's noise skewed, moved a little by each seed."""
    n, s = len(world.labels), world.seeds
    hard, groups = _together(world, draw), None if world.every_item else world.labels
    skewed = hard + draw.exponential(size=n) + 0.3 * draw.normal(size=(s, n))
    other = hard + _together(world, draw) + 0.3 * draw.normal(size=(s, n))
    estimates = [
        Estimates.of_items(
            values + 3 * world.seed_shift * draw.normal(size=(s, 1)), groups=groups, seeds=tuple(range(s))
        )
        for values in (skewed, other)
    ]
    return _interval(world, estimates[0], estimates[1] if difference else None)


def _sets(
    metric: SetMetric, name: str, world: World, draw: np.random.Generator, *, difference: bool
) -> Interval:
    target, methods = features(world, draw)
    groups = None if world.every_item else world.labels
    dealt, nothing = Deal.of_pairs(len(target), groups=groups), np.empty(0)
    estimates = []
    for samples in methods[: 1 + difference]:
        values, replicates = [], []
        for x in samples:
            scored = Scored(
                images=nothing,
                targets=nothing,
                examples=(),
                features=x,
                target_features=target,
                read=x,
                read_targets=target,
            )
            found = {spec.name: (value, drawn) for spec, value, drawn in measured(metric, scored, dealt)}
            values.append(found[name][0])
            replicates.append(found[name][1])
        seeds = tuple(range(len(values)))
        estimates.append(
            Estimates.of_replicates(np.array(values), np.array(replicates), dealt=dealt, seeds=seeds)
        )
    return _interval(world, estimates[0], estimates[1] if difference else None, share=name in SHARES)


_Make = Callable[[World, np.random.Generator], Interval]
SET_METRICS: Sequence[tuple[str, SetMetric, str]] = (
    ("FD", FD, "fd"),
    ("KID", KID, "kid"),
    ("CMMD", CMMD, "cmmd"),
    ("FD∞", FD_INFINITE, "fd_infinite"),
    *((name, NEIGHBOURS, name) for name in ("precision", "recall", "density", "coverage")),
)
KINDS: Mapping[str, _Make] = {
    "item mean": partial(_scores, difference=False),
    "item difference": partial(_scores, difference=True),
    **{title: partial(_sets, metric, name, difference=False) for title, metric, name in SET_METRICS},
    **{
        f"{title} difference": partial(_sets, metric, name, difference=True)
        for title, metric, name in SET_METRICS
    },
}


TRIALS: Mapping[str, int] = {
    **dict.fromkeys(("item difference", "KID difference", "FD difference", "CMMD difference"), 100),
    **dict.fromkeys([f"{name} difference" for name in ("precision", "recall", "density", "coverage")], 40),
    "FD∞ difference": 6,  # takes most of a minute each
}
"""Every kind of interval that reports publish, and how often a test tries it at the published size."""


def main() -> None:
    """Print the coverage at the published size: `python tests/metrics/coverage.py TRIALS [KIND...]`."""
    import sys

    trials, *kinds = sys.argv[1:]
    for seeds in (5, 3, 10):
        for kind in kinds or KINDS:
            world = World(groups=PUBLISHED, dimensions=1280, seeds=seeds)
            found = simulate(kind, world, trials=int(trials))
            print(f"| {kind} | {seeds} | {found.held:.3f} | {found.width:.2f} |", flush=True)


if __name__ == "__main__":
    main()
