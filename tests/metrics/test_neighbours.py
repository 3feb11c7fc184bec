"""Precision, recall, density, coverage, CMMD, extrapolation and the memorisation check."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics.cmmd import PairedCmmd, cmmd
from bench.metrics.frechet import ExtrapolatedFrechet, PairedFrechet
from bench.metrics.intervals import Resamples, jackknife_replicates
from bench.metrics.memorisation import nearer_to_training
from bench.metrics.neighbours import NAMES, PairedPrdc, prdc
from bench.types import BenchError


def drawn(seed: int, n: int, d: int = 8, *, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def by_definition(sample: np.ndarray, target: np.ndarray, k: int) -> dict[str, float]:
    """Follow the papers' formulas point by point."""

    def reach(points: np.ndarray) -> list[float]:
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]

    far = np.linalg.norm(sample[:, None] - target[None], axis=2)
    own, other = reach(sample), reach(target)
    n, m = far.shape
    inside = [[far[i, j] < other[j] for j in range(m)] for i in range(n)]
    return {
        "precision": sum(any(row) for row in inside) / n,
        "recall": sum(any(far[i, j] < own[i] for i in range(n)) for j in range(m)) / m,
        "density": sum(map(sum, inside)) / (k * n),
        "coverage": sum(far[:, j].min() < other[j] for j in range(m)) / m,
    }


@pytest.mark.parametrize(("n", "m", "shift"), [(40, 40, 0.0), (30, 50, 0.8), (25, 25, 6.0)])
def test_the_four_numbers_follow_their_definitions(n: int, m: int, shift: float) -> None:
    sample, target = drawn(0, n, shift=shift, scale=0.8), drawn(1, m)
    assert prdc(sample, target, k=3) == pytest.approx(by_definition(sample, target, 3))


def test_the_package_of_the_paper_agrees() -> None:
    package = pytest.importorskip("prdc")
    sample, target = drawn(2, 60, 16, shift=0.4), drawn(3, 80, 16)
    theirs = package.compute_prdc(real_features=target, fake_features=sample, nearest_k=5)
    assert prdc(sample, target) == pytest.approx({k: float(v) for k, v in theirs.items()}, rel=1e-9)


def test_equal_sets_are_perfect_far_sets_share_nothing_and_a_copied_mode_loses_recall() -> None:
    target = drawn(4, 50)
    same = prdc(target, target)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert set(prdc(target + 100.0, target).values()) == {0.0}
    narrow = target[:1] + 1e-3 * drawn(5, 50)
    assert prdc(narrow, target)["precision"] == 1.0 and prdc(narrow, target)["recall"] < 0.2


def test_counts_leave_items_out_and_never_hold_one_twice() -> None:
    sample, target = drawn(6, 30, shift=0.5), drawn(7, 30)
    paired = PairedPrdc(sample, target)
    counts = np.ones(30, dtype=np.uint16)
    counts[[3, 17]] = 0
    kept = np.flatnonzero(counts)
    for name in NAMES:
        assert paired.statistic(name)(counts) == prdc(sample[kept], target[kept])[name]
    counts[4] = 2
    with pytest.raises(BenchError, match="item twice"):
        paired(counts)
    with pytest.raises(BenchError, match="more than k"):
        prdc(sample[:5], target)


def test_jackknife_errors_of_the_four_are_near_the_true_ones() -> None:
    values: dict[str, list[float]] = {name: [] for name in NAMES}
    errors: dict[str, list[float]] = {name: [] for name in NAMES}
    resamples = Resamples(n_items=80, n_replicates=20, seed=0)
    for trial in range(40):
        target = drawn(100 + trial, 80, 6)
        paired = PairedPrdc(0.8 * target + drawn(500 + trial, 80, 6, scale=0.9), target)
        whole = paired(np.ones(80, dtype=np.uint16))
        for name in NAMES:
            drawn_values = jackknife_replicates(paired.statistic(name), resamples=resamples)
            values[name].append(whole[name])
            groups = len(drawn_values)
            errors[name].append(np.sqrt((groups - 1) ** 2 / groups * drawn_values.var()))
    for name in NAMES:
        ratio = np.mean(errors[name]) / np.std(values[name])
        assert 0.7 < ratio < 2.0, (name, ratio)


def test_cmmd_follows_its_formula_and_is_zero_for_equal_sets() -> None:
    sample, target = drawn(8, 20, 32, shift=0.2), drawn(9, 30, 32)
    x = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    y = target / np.linalg.norm(target, axis=1, keepdims=True)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 200.0).mean())

    direct = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(sample, target) == pytest.approx(direct, rel=1e-8)
    assert cmmd(3.0 * sample, target) == pytest.approx(direct, rel=1e-8), "length is no matter"
    assert cmmd(sample, sample) == pytest.approx(0.0, abs=1e-12)
    paired = PairedCmmd(sample, target[:20])
    counts = np.arange(20) % 3
    repeated = np.repeat(np.arange(20), counts)
    assert paired(counts) == pytest.approx(cmmd(sample[repeated], target[:20][repeated]), rel=1e-8)


def test_extrapolation_comes_nearer_to_a_known_distance() -> None:
    sample, target = drawn(10, 400, 64, shift=0.5), drawn(11, 400, 64)
    whole = np.ones(400, dtype=np.uint16)
    plain, known = PairedFrechet(sample, target)(whole), 64 * 0.25
    extrapolated = ExtrapolatedFrechet(sample, target, seed=0)(whole)
    assert abs(extrapolated - known) < 0.4 * abs(plain - known)
    counts = whole.copy()
    counts[:40] = 0
    fewer = ExtrapolatedFrechet(sample, target, seed=0)(counts)
    assert fewer != extrapolated and fewer == ExtrapolatedFrechet(sample, target, seed=0)(counts)


def test_copies_of_training_images_are_seen() -> None:
    n, d = 200, 16
    target, training = drawn(12, n, d), drawn(13, n - 1, d)
    fresh = nearer_to_training(drawn(14, n, d), target, training)
    assert 0.4 < fresh.mean() < 0.6, "an independent sample has an even chance"
    copied = training[np.arange(n) % (n - 1)] + 0.01 * drawn(15, n, d)
    assert nearer_to_training(copied, target, training).mean() > 0.99
    other = np.roll(target, 1, axis=0)
    assert nearer_to_training(other, target, training).mean() < 0.01
    own = nearer_to_training(target, target, training)
    assert 0.3 < own.mean() < 0.7, "its own target is left out"
    with pytest.raises(BenchError, match="N - 1 training images"):
        nearer_to_training(target, target, drawn(13, n, d))
