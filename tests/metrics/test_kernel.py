"""KID and CMMD: loops over the definition, other packages, no bias."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics import kernel
from bench.metrics.intervals import Deal
from bench.metrics.kernel import MeanDiscrepancy, gaussian_gap, polynomial_kernel
from tests.distances import kernel_distance


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(a), len(b)
    own = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_equals_the_definition_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(13, 5, 1), features(9, 5, 2, shift=0.4)
    expected = by_definition(a, b)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(b, a) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(kernel, "_ROWS", 4)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_agrees_with_clean_fid_and_torch_fidelity() -> None:
    import torch
    from cleanfid import fid
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = features(60, 12, 1), features(60, 12, 2, shift=0.3)
    ours = kernel_distance(a, b)
    assert ours == pytest.approx(fid.kernel_distance(a, b, num_subsets=1), rel=1e-6)
    theirs = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=60, verbose=False
    )
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_own_pairs_pull_the_value_down_unless_left_out() -> None:
    from torch_fidelity.metric_kid import mmd2

    target = features(80, 12, 1)
    near = 0.8 * target + 0.6 * features(80, 12, 2)  # the same distribution, paired
    dealt = Deal.of_pairs(80)
    left_out = MeanDiscrepancy(near, target, dealt, kernel=polynomial_kernel)(dealt.whole)
    own, other, cross = (polynomial_kernel(a, b) for a, b in ((near, near), (target, target), (near, target)))
    expected = mmd2(own, cross, other, mmd_est="u-statistic")
    assert left_out == pytest.approx(expected, rel=1e-8)
    assert kernel_distance(near, target) < left_out - 0.02


def test_is_unbiased_for_equal_distributions() -> None:
    values = [kernel_distance(features(20, 8, s), features(20, 8, 1000 + s)) for s in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert min(values) < 0 < max(values)


def test_grows_with_corruption() -> None:
    target = features(150, 16, 1)
    noise = features(150, 16, 2)
    distances = [kernel_distance(target + level * noise, target) for level in (0.3, 0.6, 1, 2)]
    assert distances == sorted(distances)


def test_cmmd_follows_its_formula_and_is_zero_for_equal_sets() -> None:
    x, y = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (features(20, 32, 8, shift=0.2), features(30, 32, 9))
    )

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 200.0).mean())

    def ours(a: np.ndarray, b: np.ndarray) -> float:
        dealt = Deal.of(len(a), len(b), blocks=5)
        return MeanDiscrepancy(a, b, dealt, kernel=gaussian_gap, biased=True)(dealt.whole)

    direct = mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
    assert ours(x, y) == pytest.approx(direct, rel=1e-8)
    assert ours(x, x) == pytest.approx(0.0, abs=1e-14)
