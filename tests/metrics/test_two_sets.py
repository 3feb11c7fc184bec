"""Two independent sets by blocks: equal to the plain metrics, and errors near the true ones."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics.cmmd import cmmd
from bench.metrics.frechet import ExtrapolatedFrechet, frechet_distance
from bench.metrics.intervals import Resamples, jackknife_replicates
from bench.metrics.kernel import kernel_distance
from bench.metrics.neighbours import NAMES, prdc
from bench.metrics.two_sets import (
    Deal,
    TwoSetCmmd,
    TwoSetExtrapolated,
    TwoSetFrechet,
    TwoSetKernel,
    TwoSetPrdc,
    deal,
)
from bench.types import BenchError


def drawn(seed: int, n: int, d: int = 8, *, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d))


def held(dealt: Deal, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.flatnonzero(counts[dealt.first]), np.flatnonzero(counts[dealt.second])


def test_a_deal_is_even_and_keeps_pairs_together() -> None:
    dealt = deal(23, 41, blocks=10, seed=0)
    for sizes, n in zip(dealt.sizes(), (23, 41), strict=True):
        assert sizes.sum() == n and sizes.max() - sizes.min() <= 1
    same = deal(30, 30, blocks=10, seed=0)
    np.testing.assert_array_equal(same.first, same.second)
    assert deal(6, 40, blocks=20, seed=0).blocks == 6
    with pytest.raises(BenchError, match="at least 2"):
        deal(1, 40, blocks=20, seed=0)


@pytest.mark.parametrize("d", [64, 8])
def test_all_blocks_or_some_equal_the_plain_metrics_of_those_rows(d: int) -> None:
    """Width 64: Gram form of the Fréchet distance; width 8: sums of moments."""
    a, b = drawn(0, 40, d, shift=0.3), drawn(1, 55, d)
    dealt = deal(40, 55, blocks=10, seed=0)
    some = np.ones(10, dtype=np.uint16)
    some[[2, 7]] = 0
    prdc_of = TwoSetPrdc(a, b, dealt)
    for counts in (np.ones(10, dtype=np.uint16), some):
        left, right = held(dealt, counts)
        x, y = a[left], b[right]
        assert TwoSetFrechet(a, b, dealt)(counts) == pytest.approx(frechet_distance(x, y), rel=1e-8)
        assert TwoSetKernel(a, b, dealt)(counts) == pytest.approx(kernel_distance(x, y), rel=1e-8)
        assert TwoSetCmmd(a, b, dealt)(counts) == pytest.approx(cmmd(x, y), rel=1e-8)
        assert prdc_of(counts) == prdc(x, y)
        assert [prdc_of.statistic(n)(counts) for n in NAMES] == list(prdc(x, y).values())


def test_extrapolation_takes_the_known_bias_away_and_needs_no_pairs() -> None:
    known = 64 * 0.25
    a, b = drawn(10, 400, 64, shift=0.5), drawn(11, 500, 64)
    frechet = TwoSetFrechet(a, b, deal(400, 500, blocks=20, seed=0))
    whole = np.ones(20, dtype=np.uint16)
    assert abs(TwoSetExtrapolated(frechet)(whole) - known) < 0.4 * abs(frechet(whole) - known)
    pairs = TwoSetFrechet(a, b[:400], deal(400, 400, blocks=20, seed=0))
    ones = np.ones(400, dtype=np.uint16)
    assert TwoSetExtrapolated(pairs)(whole) == pytest.approx(
        ExtrapolatedFrechet(a, b[:400], seed=0)(ones), rel=1e-6
    )


def test_jackknife_errors_of_independent_sets_are_near_the_true_ones() -> None:
    values: dict[str, list[float]] = {name: [] for name in ("fd", "kid", "recall")}
    errors: dict[str, list[float]] = {name: [] for name in values}
    resamples = Resamples(n_items=20, n_replicates=20, seed=0)
    for trial in range(40):
        a, b = drawn(100 + trial, 80, 4, shift=0.7), drawn(900 + trial, 120, 4)
        dealt = deal(80, 120, blocks=20, seed=0)
        statistics = {
            "fd": TwoSetFrechet(a, b, dealt),
            "kid": TwoSetKernel(a, b, dealt),
            "recall": TwoSetPrdc(a, b, dealt).statistic("recall"),
        }
        for name, statistic in statistics.items():
            replicates = jackknife_replicates(statistic, resamples=resamples, groups=20)
            values[name].append(statistic(np.ones(20, dtype=np.uint16)))
            errors[name].append(float(np.sqrt(19**2 / 20 * replicates.var())))
    for name in values:
        ratio = np.mean(errors[name]) / np.std(values[name])
        assert 0.75 < ratio < 1.6, (name, ratio)
