"""Intervals: determinism, pairing, coverage by simulation, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics.frechet import FrechetDistance
from bench.metrics.intervals import (
    Deal,
    Resamples,
    difference_interval,
    jackknife_interval,
    jackknife_replicates,
    mean_interval,
    seed_spread,
    wilson_interval,
)
from bench.types import BenchError


def test_resamples_are_a_pure_function_of_their_fields() -> None:
    first, second = Resamples(n_items=30, seed=1), Resamples(n_items=30, seed=1)
    np.testing.assert_array_equal(first.counts, second.counts)
    assert first == second
    assert first.counts.shape == (1000, 30)
    assert (first.counts.sum(axis=1) == 30).all()
    assert (first.counts != Resamples(n_items=30, seed=2).counts).any()
    short = Resamples(n_items=30, n_replicates=50, seed=1)
    np.testing.assert_array_equal(short.counts, first.counts[:50])


def test_mean_interval_covers_the_mean_as_often_as_it_says() -> None:
    n, trials = 60, 500
    rng = np.random.default_rng(0)
    resamples = Resamples(n_items=n, seed=3)
    for draw, truth in (
        (lambda: rng.normal(size=n), 0.0),
        (lambda: (rng.random(n) < 0.3).astype(float), 0.3),
    ):
        intervals = [mean_interval(draw(), resamples=resamples) for _ in range(trials)]
        coverage = np.mean([i.low <= truth <= i.high for i in intervals])
        assert 0.91 <= coverage <= 0.98


def test_pairing_makes_difference_intervals_tight() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    a, b = hard + 0.1 + 0.05 * rng.normal(size=200), hard + 0.05 * rng.normal(size=200)
    resamples = Resamples(n_items=200, seed=0)
    gap = difference_interval(a, b, resamples=resamples)
    alone = mean_interval(a, resamples=resamples)
    assert gap.low > 0.05 and gap.high < 0.15
    assert gap.high - gap.low < 0.2 * (alone.high - alone.low)
    assert gap.value == pytest.approx(a.mean() - b.mean())


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    resamples = Resamples(n_items=50, seed=0)
    widths = [
        i.high - i.low
        for i in (mean_interval(values, resamples=resamples, level=v) for v in (0.5, 0.9, 0.99))
    ]
    assert widths == sorted(widths)


@pytest.mark.parametrize(("n", "d", "least"), [(100, 5, 0.85), (40, 50, 0.9)])
def test_jackknifed_frechet_intervals_cover_the_distance_expected_at_this_n(
    n: int, d: int, least: float
) -> None:
    dealt = Deal.of_pairs(n)

    def distance(seed: int) -> FrechetDistance:
        rng = np.random.default_rng(seed)
        target = rng.normal(size=(n, d))
        return FrechetDistance(0.7 * (target + rng.normal(size=(n, d))) + 0.5 / np.sqrt(d), target, dealt)

    truth = np.mean([distance(10_000 + s)(dealt.whole) for s in range(200)])
    hits = []
    for seed in range(40):
        of = distance(seed)
        drawn = jackknife_replicates(of, blocks=n, groups=20)
        interval = jackknife_interval(of(dealt.whole), drawn)
        hits.append(interval.low <= truth <= interval.high)
    assert np.mean(hits) >= least


def test_seed_spread_of_one_seed_has_no_deviation() -> None:
    assert seed_spread(np.array([3.0])).deviation is None
    spread = seed_spread(np.array([1.0, 2.0, 3.0]))
    assert (spread.mean, spread.deviation, spread.n) == (2.0, 1.0, 3)


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (3, 40), (40, 40), (200, 363)])
def test_the_interval_of_a_share_is_that_of_scipy(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    found = wilson_interval(hits / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_share_is_never_surer_than_its_items_allow_and_stays_a_share() -> None:
    no_spread = jackknife_interval(1.0, np.ones(30), share_of=40)
    assert (no_spread.low, no_spread.high) == (wilson_interval(1.0, 40).low, 1.0)
    wide = np.linspace(0.0, 0.2, 30)
    assert jackknife_interval(0.1, wide).low < 0 == jackknife_interval(0.1, wide, share_of=40).low
    assert jackknife_interval(0.1, wide).high == jackknife_interval(0.1, wide, share_of=40).high


def test_refuses_missing_values_and_wrong_sizes() -> None:
    resamples = Resamples(n_items=5, seed=0)
    with pytest.raises(BenchError, match="missing"):
        mean_interval(np.array([1.0, 2.0, np.nan, 1.0, 1.0]), resamples=resamples)
    with pytest.raises(BenchError, match="one an item"):
        mean_interval(np.ones(4), resamples=resamples)
    with pytest.raises(BenchError, match="level"):
        mean_interval(np.ones(5), resamples=resamples, level=95)
    with pytest.raises(BenchError, match="groups"):
        jackknife_replicates(lambda held: 0.0, blocks=5)
    with pytest.raises(BenchError):
        Resamples(n_items=1, seed=0)
    with pytest.raises(BenchError):
        seed_spread(np.array([]))
