"""The Fréchet distance: closed forms, both algebras, other packages, streams, resamples."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics.frechet import FrechetDistance, Moments, frechet_from_moments
from bench.metrics.intervals import Deal
from bench.types import BenchError
from tests.distances import frechet_distance


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d)) * np.exp(-np.arange(d) / 8)
    return rng.normal(size=(n, d)) @ mixing.T + shift


def exact(mean: np.ndarray, covariance: np.ndarray, n: int = 64) -> np.ndarray:
    """Features whose sample mean and covariance are exactly the given ones."""
    raw = np.random.default_rng(0).normal(size=(n, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize("n", [40, 400])
def test_identity_is_zero_and_order_does_not_matter(n: int) -> None:
    a, b = features(n, 64, 1), features(n, 64, 2, shift=0.3)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6 * np.var(a) * 64)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, b) > 1.0


def test_closed_form_of_axis_aligned_gaussians() -> None:
    mean, other = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    one, two = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = ((mean - other) ** 2).sum() + ((np.sqrt(one) - np.sqrt(two)) ** 2).sum()
    got = frechet_distance(exact(mean, np.diag(one)), exact(other, np.diag(two)))
    assert got == pytest.approx(expected, rel=1e-10)


def test_closed_form_of_commuting_and_of_general_covariances() -> None:
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    one = rotation @ np.diag([1.0, 2.0, 3.0]) @ rotation.T
    two = rotation @ np.diag([4.0, 0.5, 3.0]) @ rotation.T
    zero = np.zeros(3)
    expected = ((np.sqrt([1.0, 2.0, 3.0]) - np.sqrt([4.0, 0.5, 3.0])) ** 2).sum()
    assert frechet_distance(exact(zero, one), exact(zero, two)) == pytest.approx(expected, rel=1e-9)
    a, b = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    product = np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b))  # (tr sqrt(ab))^2 for 2 x 2
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(product)
    got = frechet_distance(exact(np.zeros(2), a), exact(np.zeros(2), b))
    assert got == pytest.approx(expected, rel=1e-9)


def test_gram_and_moments_agree_below_full_rank() -> None:
    a, b = features(50, 128, 1), features(70, 128, 2, shift=0.2)
    moments = frechet_from_moments(Moments.of(a), Moments.of(b))
    assert frechet_distance(a, b) == pytest.approx(moments, rel=1e-6)


def test_agrees_with_torch_fidelity_and_clean_fid() -> None:
    import torch
    from cleanfid import fid
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(300, 48, 1), features(400, 48, 2, shift=0.1)
    ours = frechet_distance(a, b)
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(fid.fid_from_feats(a, b), rel=1e-6)


def test_stream_in_any_batches_equals_the_whole() -> None:
    data = features(200, 16, 3) + 1e3
    whole = Moments.of(data)
    streamed = Moments.of(data[:1]) + Moments.of(data[1:90]) + Moments.of(data[90:])
    assert streamed.count == 200
    np.testing.assert_allclose(streamed.mean, data.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(data, rowvar=False), rtol=1e-9)
    assert frechet_from_moments(whole, streamed) == pytest.approx(0.0, abs=1e-6)


def test_grows_with_corruption() -> None:
    target = features(200, 24, 1)
    noise = np.random.default_rng(2).normal(size=target.shape) * target.std()
    distances = [frechet_distance(target + level * noise, target) for level in (0, 0.2, 0.5, 1, 2)]
    assert distances == sorted(distances)
    assert distances[1] > distances[0]


@pytest.mark.parametrize(("n", "d"), [(40, 64), (80, 16)])
def test_held_items_are_those_rows(n: int, d: int) -> None:
    a, b = features(n, d, 1), features(n, d, 2, shift=0.3)
    dealt = Deal.of_pairs(n)
    distance, held = FrechetDistance(a, b, dealt), np.arange(n) % 3 > 0
    rows = held[dealt.first]
    assert distance(held) == pytest.approx(frechet_distance(a[rows], b[rows]), rel=1e-6)
    assert distance(dealt.whole) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_float32_features_are_summed_in_float64() -> None:
    a = (features(500, 8, 1) + 3e3).astype(np.float32)
    b = (features(500, 8, 2) + 3e3).astype(np.float32)
    expected = frechet_distance(a.astype(np.float64) - 3e3, b.astype(np.float64) - 3e3)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_refuses_what_it_cannot_measure() -> None:
    good = features(10, 4, 1)
    broken = good.copy()
    broken[3, 2] = np.nan
    for a, b in [(good[:1], good), (good, good[:, :3]), (good, broken), (good[0], good)]:
        with pytest.raises(BenchError):
            frechet_distance(a, b)
    with pytest.raises(BenchError, match="width"):
        Moments.of(good) + Moments.of(good[:, :2])


def weighted(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """The distance where item i occurs weights[i] times, by the definition."""
    share = weights / weights.sum()
    gap = share @ (a - b)
    spread = [np.cov(x, rowvar=False, aweights=share, ddof=0) * len(a) / (len(a) - 1) for x in (a, b)]
    values = np.linalg.eigvals(spread[0] @ spread[1])
    return float(gap @ gap + sum(map(np.trace, spread)) - 2 * np.sqrt(values.astype(complex)).real.sum())


@pytest.mark.parametrize(("n", "d"), [(20, 8), (40, 6)])
def test_influence_is_the_derivative_by_each_items_weight(n: int, d: int) -> None:
    """Below D = N by moments, above by padding with zeros, which takes the Gram form."""
    a, b = features(n, d, 1), features(n, d, 2, shift=0.3)
    dealt, step = Deal.of_pairs(n), 1e-5
    found = FrechetDistance(a, b, dealt).influence()
    wide = FrechetDistance(*(np.pad(x, ((0, 0), (0, n))) for x in (a, b)), dealt).influence()
    np.testing.assert_allclose(found, wide, rtol=1e-6, atol=1e-8 * np.abs(found).max())
    assert found.mean() == pytest.approx(0.0, abs=1e-9 * np.abs(found).max())
    for item in range(0, n, 5):
        move = -np.ones(n) / n
        move[item] += 1.0
        ends = [weighted(a, b, np.ones(n) + sign * step * move) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert found[dealt.first[item]] == pytest.approx(slope, rel=1e-4, abs=1e-5 * np.abs(found).max())
