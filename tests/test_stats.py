"""Intervals: determinism, pairing, coverage by simulation, time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bench.metrics.frechet import PairedFrechet, frechet_distance
from bench.metrics.intervals import (
    Resamples,
    bootstrap,
    bootstrap_difference,
    centred_interval,
    difference_interval,
    jackknife,
    jackknife_difference,
    jackknife_interval,
    mean_interval,
    replicate,
    seed_spread,
    wilson_interval,
)
from bench.metrics.kernel import PairedKernel
from bench.types import BenchError


def pair(n: int, d: int, seed: int, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(n, d))
    sample = 0.7 * target + 0.7 * rng.normal(size=(n, d)) + shift / np.sqrt(d)
    return sample, target


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


def test_bootstrapped_frechet_is_biased_upward_and_the_interval_corrects_it() -> None:
    statistic = PairedFrechet(*pair(80, 40, 1))
    resamples = Resamples(n_items=80, n_replicates=100, seed=0)
    drawn = replicate(statistic, resamples=resamples)
    interval = bootstrap(statistic, resamples=resamples)
    assert drawn.min() > interval.value  # a percentile interval would not hold the value
    assert interval.low < interval.value < interval.high
    assert interval.value == pytest.approx(frechet_distance(*pair(80, 40, 1)), rel=1e-6)


@pytest.mark.parametrize(("n", "d", "least"), [(100, 5, 0.85), (40, 50, 0.9)])
def test_frechet_intervals_cover_the_distance_expected_at_this_n(n: int, d: int, least: float) -> None:
    whole = np.ones(n, dtype=np.uint16)
    truth = np.mean([PairedFrechet(*pair(n, d, 10_000 + s))(whole) for s in range(300)])
    resamples = Resamples(n_items=n, n_replicates=100, seed=0)
    hits = np.zeros(2)
    trials = 60
    for seed in range(trials):
        statistic = PairedFrechet(*pair(n, d, seed))
        found = (
            bootstrap(statistic, resamples=resamples),
            jackknife(statistic, resamples=resamples, groups=40),
        )
        hits += [i.low <= truth <= i.high for i in found]
    assert (hits / trials >= least).all(), hits / trials


def test_jackknife_error_is_closer_than_the_bootstrap_when_items_are_few() -> None:
    n, d = 40, 50
    whole = np.ones(n, dtype=np.uint16)
    spread = np.std([PairedFrechet(*pair(n, d, 5000 + s))(whole) for s in range(200)])
    resamples = Resamples(n_items=n, n_replicates=100, seed=0)
    statistics = [PairedFrechet(*pair(n, d, s)) for s in range(10)]
    errors = [
        (i.high - i.low) / 3.92 for i in (jackknife(s, resamples=resamples, groups=40) for s in statistics)
    ]
    drawn = [replicate(s, resamples=resamples).std() for s in statistics]
    assert 0.9 * spread < np.mean(errors) < 1.5 * spread
    assert np.mean(errors) < np.mean(drawn)


def test_kernel_intervals_and_set_differences() -> None:
    near, target = pair(80, 6, 1, shift=0.2)
    far = near + 1.0
    resamples = Resamples(n_items=80, n_replicates=200, seed=0)
    kernel = bootstrap(PairedKernel(near, target), resamples=resamples)
    assert kernel.low < kernel.value < kernel.high
    a, b = PairedFrechet(far, target), PairedFrechet(near, target)
    for gap in (
        bootstrap_difference(a, b, resamples=resamples, replicates=50),
        jackknife_difference(a, b, resamples=resamples, groups=20),
    ):
        assert gap.low > 0
        alone = jackknife(a, resamples=resamples)
        assert gap.high - gap.low < alone.high - alone.low


def test_frechet_bootstrap_is_fast_at_the_suite_size() -> None:
    statistic = PairedFrechet(*pair(350, 1280, 0))
    resamples = Resamples(n_items=350, n_replicates=20, seed=0)
    start = time.perf_counter()
    bootstrap(statistic, resamples=resamples)
    assert (time.perf_counter() - start) * 10 < 20  # 200 replicates in less than 20 s


def test_centred_interval_holds_the_value() -> None:
    interval = centred_interval(5.0, np.random.default_rng(0).normal(9.0, 1.0, size=500))
    assert interval.low < 5.0 < interval.high
    assert interval.high - interval.low == pytest.approx(3.92, rel=0.15)


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
    with pytest.raises(BenchError, match="replicates"):
        replicate(lambda counts: 0.0, resamples=resamples, replicates=2000)
    with pytest.raises(BenchError, match="groups"):
        jackknife(lambda counts: 0.0, resamples=resamples)
    with pytest.raises(BenchError):
        Resamples(n_items=1, seed=0)
    with pytest.raises(BenchError):
        seed_spread(np.array([]))
