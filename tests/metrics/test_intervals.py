"""Intervals: determinism, pairing, coverage by simulation, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics.frechet import FrechetDistance
from bench.metrics.intervals import (
    Deal,
    Estimates,
    Interval,
    crossed_interval,
    holm,
    jackknife_replicates,
    seed_spread,
    wilson_interval,
)
from bench.types import BenchError


def test_choices_of_training_items_vary_beside_seeds() -> None:
    """SE^2 = by groups + s^2 of the means of 3 seeds / 3 + s^2 of those of 2 choices / 2."""
    values = np.array([1.0, 2.0, 4.0, 2.0, 3.5, 5.5])
    seeds = tuple((seed, choice) for choice in (0, 1) for seed in (0, 1, 2))
    found = crossed_interval(Estimates(values=values, influence=np.zeros((6, 9)), seeds=seeds))
    of_seeds, of_choices = values.reshape(2, 3).mean(axis=0), values.reshape(2, 3).mean(axis=1)
    expected = of_seeds.var(ddof=1) / 3 + of_choices.var(ddof=1) / 2
    assert found.error == pytest.approx(np.sqrt(expected)) and found.value == values.mean()
    alone = Estimates(values=values[:3], influence=np.zeros((3, 9)), seeds=seeds[:3])
    plain = Estimates(values=values[:3], influence=np.zeros((3, 9)), seeds=(0, 1, 2))
    assert crossed_interval(alone) == crossed_interval(plain)


def test_pairing_makes_difference_intervals_tight() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    a, b = hard + 0.1 + 0.05 * rng.normal(size=200), hard + 0.05 * rng.normal(size=200)
    gap = crossed_interval(Estimates.of_items(a), Estimates.of_items(b))
    alone = crossed_interval(Estimates.of_items(a))
    assert gap.low > 0.05 and gap.high < 0.15
    assert gap.high - gap.low < 0.2 * (alone.high - alone.low)
    assert gap.value == pytest.approx(a.mean() - b.mean())


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = Estimates.of_items(np.random.default_rng(0).normal(size=50))
    widths = [i.high - i.low for i in (crossed_interval(values, level=v) for v in (0.5, 0.9, 0.99))]
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
        interval = crossed_interval(Estimates.of_replicates(of(dealt.whole), drawn, dealt=dealt))
        hits.append(interval.low <= truth <= interval.high)
    assert np.mean(hits) >= least


def test_seed_spread_of_one_seed_has_no_deviation() -> None:
    assert seed_spread(np.array([3.0])) == (3.0, None)
    assert seed_spread(np.array([1.0, 2.0, 3.0])) == (2.0, 1.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (3, 40), (40, 40), (200, 363)])
def test_the_interval_of_a_share_is_that_of_scipy(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    found = wilson_interval(hits / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_share_is_never_surer_than_its_items_allow_and_stays_a_share() -> None:
    dealt = Deal.of_pairs(40)

    def interval(value: float, left: np.ndarray, *, share: bool) -> Interval:
        return crossed_interval(Estimates.of_replicates(value, left, dealt=dealt), share=share)

    no_spread = interval(1.0, np.ones(40), share=True)
    assert (no_spread.low, no_spread.high) == (wilson_interval(1.0, 40).low, 1.0)
    wide = np.linspace(0.0, 0.2, 40)
    assert interval(0.1, wide, share=False).low < 0 == interval(0.1, wide, share=True).low
    assert interval(0.1, wide, share=False).high == interval(0.1, wide, share=True).high


def test_refuses_missing_values_and_wrong_sizes() -> None:
    with pytest.raises(BenchError, match="missing"):
        Estimates.of_items(np.array([1.0, 2.0, np.nan, 1.0, 1.0]))
    with pytest.raises(BenchError, match="2 finite"):
        Estimates.of_items(np.ones(1))
    with pytest.raises(BenchError, match="level"):
        crossed_interval(Estimates.of_items(np.ones(5)), level=95)
    with pytest.raises(BenchError, match="groups"):
        crossed_interval(Estimates.of_items(np.ones(5), groups=np.zeros(5, int)))
    with pytest.raises(BenchError, match="groups"):
        jackknife_replicates(lambda held: 0.0, blocks=5)


def test_one_seed_of_single_items_has_the_t_interval_of_a_mean() -> None:
    from scipy.stats import ttest_1samp, ttest_rel

    a, b = np.random.default_rng(0).normal(0.2, 1.0, (2, 40))
    found = crossed_interval(Estimates.of_items(a))
    expected = ttest_1samp(a, 0.0)
    ends = expected.confidence_interval()
    assert (found.low, found.high, found.chance) == pytest.approx((ends.low, ends.high, expected.pvalue))
    gap, paired = crossed_interval(Estimates.of_items(a), Estimates.of_items(b)), ttest_rel(a, b)
    assert gap.chance == pytest.approx(paired.pvalue) and gap.freedom == pytest.approx(39)


def test_seeds_alone_have_the_t_interval_of_their_mean() -> None:
    from scipy.stats import ttest_1samp

    values = np.array([1.0, 1.4, 0.9])
    estimates = Estimates(values=values, influence=np.zeros((3, 5)), seeds=(0, 1, 2))
    found, ends = crossed_interval(estimates), ttest_1samp(values, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_variances_of_groups_and_seeds_add_and_satterthwaite_lies_between() -> None:
    values = np.random.default_rng(1).normal(size=(4, 30)) + np.array([[0.0], [0.3], [-0.2], [0.1]])
    both = crossed_interval(Estimates.of_items(values, seeds=(0, 1, 2, 3)))
    items = crossed_interval(Estimates.of_items(values.mean(axis=0)))
    seeds = values.mean(axis=1).std(ddof=1) / 2
    assert both.error**2 == pytest.approx(items.error**2 + seeds**2)
    assert 3 < both.freedom < 3 + 29


def test_groups_of_equal_items_count_once() -> None:
    """Each item four times over says no more than once: the interval is that of the 25 means."""
    from scipy.stats import ttest_1samp

    once = np.random.default_rng(2).normal(size=25)
    groups = np.repeat(np.arange(25), 4)
    found = crossed_interval(Estimates.of_items(once[groups], groups=groups))
    ends = ttest_1samp(once, 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    alone = crossed_interval(Estimates.of_items(once[groups]))
    assert alone.high - alone.low < 0.55 * (found.high - found.low)


def test_a_difference_of_other_seeds_counts_the_seeds_of_both() -> None:
    one = Estimates(values=np.array([1.0, 2.0]), influence=np.zeros((2, 9)), seeds=(0, 1))
    other = Estimates(values=np.array([0.5, 1.5]), influence=np.zeros((2, 9)), seeds=(2, 3))
    same = Estimates(values=other.values, influence=other.influence, seeds=(0, 1))
    assert crossed_interval(one, same).error == 0.0
    assert crossed_interval(one, other).error == pytest.approx(np.sqrt(0.5 / 2 + 0.5 / 2))


def test_replicates_tell_what_groups_add_whether_items_or_groups_were_left_out() -> None:
    """Of a mean, which is linear, exact: items left out singly, then gathered, are groups left out."""
    values = np.random.default_rng(3).normal(size=20)
    groups = np.array([0] * 5 + [1] * 2 + list(range(2, 15)))
    found = []
    for dealt, given in ((Deal.of_pairs(20), groups), (Deal.of_pairs(20, groups=groups), None)):
        held = [np.arange(dealt.blocks) != block for block in range(dealt.blocks)]
        left = np.array([values[mask[dealt.first]].mean() for mask in held])
        estimates = Estimates.of_replicates(values.mean(), left, dealt=dealt, groups=given)
        found.append(crossed_interval(estimates))
    expected = crossed_interval(Estimates.of_items(values, groups=groups))
    for interval in found:
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_share_that_no_group_moves_is_as_sure_as_its_independent_items() -> None:
    groups = np.repeat(np.arange(10), 4)
    found = crossed_interval(Estimates.of_items(np.ones(40), groups=groups), share=True)
    assert (found.low, found.high) == (wilson_interval(1.0, 10).low, 1.0)


def test_holms_correction_is_the_textbook_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
