"""Sets by blocks: equal to the metrics of the rows held, and errors near the true ones."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics import CMMD, FD, FD_INFINITE, KID, NEIGHBOURS, OF_SETS
from bench.metrics.frechet import ExtrapolatedFrechet, FrechetDistance
from bench.metrics.intervals import Deal, SetMetric, Statistic, jackknife_replicates
from bench.types import BenchError, Scored


def drawn(seed: int, n: int, d: int = 8, *, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d))


def statistic(metric: SetMetric, a: np.ndarray, b: np.ndarray, dealt: Deal) -> Statistic:
    nothing = np.empty(0)
    scored = Scored(
        images=nothing, targets=nothing, examples=(), features=a, target_features=b, read=a, read_targets=b
    )
    found = metric.statistic(scored, dealt)
    assert found is not None
    return found


def test_a_deal_is_even_and_keeps_pairs_together() -> None:
    dealt = Deal.of(23, 41, blocks=10)
    for labels, n in ((dealt.first, 23), (dealt.second, 41)):
        sizes = np.bincount(labels)
        assert sizes.sum() == n and len(sizes) == 10 and sizes.max() - sizes.min() <= 1
    same = Deal.of(30, 30, blocks=10)
    np.testing.assert_array_equal(same.first, same.second)
    assert Deal.of(6, 40, blocks=20).blocks == 6
    with pytest.raises(BenchError, match="at least one row"):
        Deal.of(0, 40, blocks=20)


@pytest.mark.parametrize("d", [64, 8])
@pytest.mark.parametrize("metric", [m for m in OF_SETS if not m.by_order], ids=lambda m: m.specs[0].name)
def test_held_blocks_equal_the_metric_of_those_rows(metric: SetMetric, d: int) -> None:
    """Width 64: Gram form of the Fréchet distance; width 8: moments, of blocks and of rows."""
    a, b = drawn(0, 60, d, shift=0.3), drawn(1, 75, d)
    for dealt in (Deal.of(60, 75, blocks=10), Deal.of(60, 75, blocks=55), Deal.of_pairs(60)):
        other = b[: len(dealt.second)]
        held = np.arange(dealt.blocks) % 4 > 0
        left, right = held[dealt.first], held[dealt.second]
        whole = Deal.of_pairs(int(left.sum())) if dealt.paired else Deal.of(left.sum(), right.sum(), blocks=1)
        direct = statistic(metric, a[left], other[right], whole)(whole.whole)
        assert statistic(metric, a, other, dealt)(held) == pytest.approx(direct, rel=1e-7)


def test_extrapolation_takes_the_known_bias_away_with_and_without_pairs() -> None:
    known = 64 * 0.25
    a, b = drawn(10, 400, 64, shift=0.5), drawn(11, 500, 64)
    for dealt, other in ((Deal.of(400, 500, blocks=20), b), (Deal.of_pairs(400), b[:400])):
        plain = FrechetDistance(a, other, dealt)
        far = ExtrapolatedFrechet(plain)
        assert abs(far(dealt.whole) - known) < 0.4 * abs(plain(dealt.whole) - known)


def test_jackknife_errors_of_independent_sets_are_near_the_true_ones() -> None:
    values: dict[str, list[float]] = {"fd": [], "kid": [], "recall": []}
    errors: dict[str, list[float]] = {name: [] for name in values}
    for trial in range(40):
        a, b = drawn(100 + trial, 80, 4, shift=0.7), drawn(900 + trial, 120, 4)
        dealt = Deal.of(80, 120, blocks=20)
        for metric, name, place in ((FD, "fd", 0), (KID, "kid", 0), (NEIGHBOURS, "recall", 1)):
            of = statistic(metric, a, b, dealt)
            replicates = jackknife_replicates(of, blocks=20).reshape(20, -1)[:, place]
            values[name].append(float(np.atleast_1d(of(dealt.whole))[place]))
            errors[name].append(float(np.sqrt(19**2 / 20 * replicates.var())))
    for name in values:
        ratio = np.mean(errors[name]) / np.std(values[name])
        assert 0.75 < ratio < 1.6, (name, ratio)


@pytest.mark.parametrize("groups", [None, np.arange(240) % 100], ids=["items", "groups"])
@pytest.mark.parametrize("metric", [FD, KID, CMMD, FD_INFINITE], ids=lambda m: m.specs[0].name)
def test_what_a_block_adds_is_what_the_jackknife_sees_of_it(
    metric: SetMetric, groups: np.ndarray | None
) -> None:
    b = drawn(1, 240, 3)
    dealt = Deal.of_pairs(240, groups=groups)
    of = statistic(metric, 0.7 * b + drawn(0, 240, 3, shift=0.4), b, dealt)
    added = of.influence()  # type: ignore[attr-defined]
    assert added.sum() == pytest.approx(0.0, abs=1e-9) and added.shape == (dealt.blocks,)
    left = jackknife_replicates(of, blocks=dealt.blocks, groups=dealt.blocks)
    seen = (of(dealt.whole) - left) * (1 - dealt.shares)
    if metric is KID and groups is None:  # a U-statistic of order 2, exactly
        np.testing.assert_allclose(added, seen * 238 / 239, rtol=1e-9)
    assert np.corrcoef(added, seen)[0, 1] > (
        0.8 if metric is FD_INFINITE else 0.995
    )  # whose parts move on by a block
    assert added.std() == pytest.approx(seen.std(), rel=0.25 if metric is FD_INFINITE else 0.1)
