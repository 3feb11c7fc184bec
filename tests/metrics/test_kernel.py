"""KID: a loop over the definition, other packages, no bias, resamples."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics import kernel
from bench.metrics.kernel import PairedKernel, kernel_distance, kernel_distance_subsets
from bench.types import BenchError


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
    kept, left_out = kernel_distance(near, target), kernel_distance(near, target, own_pairs=False)
    own, other, cross = (
        kernel.polynomial_kernel(a, b) for a, b in ((near, near), (target, target), (near, target))
    )
    expected = mmd2(own, cross, other, mmd_est="u-statistic")
    assert left_out == pytest.approx(expected, rel=1e-8)
    assert kept < left_out - 0.02
    whole = np.ones(80, dtype=np.uint16)
    assert PairedKernel(near, target)(whole) == pytest.approx(kept, rel=1e-8)
    assert PairedKernel(near, target, own_pairs=False)(whole) == pytest.approx(left_out, rel=1e-8)
    with pytest.raises(BenchError, match="own pairs"):
        kernel_distance(near, target[:9], own_pairs=False)


def test_is_unbiased_for_equal_distributions() -> None:
    values = [kernel_distance(features(20, 8, s), features(20, 8, 1000 + s)) for s in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert min(values) < 0 < max(values)


def test_grows_with_corruption() -> None:
    target = features(150, 16, 1)
    noise = features(150, 16, 2)
    distances = [kernel_distance(target + level * noise, target) for level in (0.3, 0.6, 1, 2)]
    assert distances == sorted(distances)


def test_standard_error_of_subsets_matches_repeated_sampling() -> None:
    n, d = 200, 6
    values = [kernel_distance(features(n, d, s, 0.5), features(n, d, 500 + s)) for s in range(120)]
    errors = [
        kernel_distance_subsets(
            features(n, d, s, 0.5), features(n, d, 500 + s), seed=0, subsets=60, size=50
        ).standard_error
        for s in range(12)
    ]
    assert np.mean([e for e in errors if e is not None]) == pytest.approx(np.std(values), rel=0.35)


def test_subsets_are_seeded_and_whole_sets_have_no_scaled_error() -> None:
    a, b = features(30, 4, 1), features(40, 4, 2)
    first = kernel_distance_subsets(a, b, seed=3, subsets=5)
    assert first == kernel_distance_subsets(a, b, seed=3, subsets=5)
    assert first != kernel_distance_subsets(a, b, seed=4, subsets=5)
    assert first.size == 15
    assert kernel_distance_subsets(a, b, seed=3, subsets=5, size=30).standard_error is None
    with pytest.raises(BenchError):
        kernel_distance_subsets(a, b, seed=3, size=31)


def test_counts_leave_out_copies_of_an_item() -> None:
    a, b = features(12, 5, 1), features(12, 5, 2, shift=0.4)
    paired = PairedKernel(a, b)
    whole = np.ones(12, dtype=np.uint16)
    assert paired(whole) == pytest.approx(kernel_distance(a, b), rel=1e-10)
    rng = np.random.default_rng(0)
    drawn = [
        paired(np.bincount(rng.integers(12, size=12), minlength=12).astype(np.uint16)) for _ in range(4000)
    ]
    assert np.mean(drawn) == pytest.approx(paired(whole), abs=5 * np.std(drawn) / np.sqrt(4000))
