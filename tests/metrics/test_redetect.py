"""Numbers of redetected maps: closed forms, another implementation, and order under corruption."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from bench.metrics.lines import line_f1
from bench.metrics.redetect import depth_rmse, ms_ssim
from bench.types import BenchError


def soft(seed: int, size: int) -> np.ndarray:
    rough = np.random.default_rng(seed).normal(size=(size, size))
    smooth = ndimage.gaussian_filter(rough, 2)
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


@pytest.mark.parametrize("size", [16, 64, 200])
def test_equal_maps_are_fully_similar_and_the_measure_is_symmetric(size: int) -> None:
    a, b = soft(0, size), soft(1, size)
    assert ms_ssim(a, a) == pytest.approx(1) and ms_ssim(0 * a, 0 * a) == pytest.approx(1)
    assert ms_ssim(a, b) == pytest.approx(ms_ssim(b, a)) and 0 <= ms_ssim(a, b) < 1


def test_one_scale_is_the_plain_measure_and_five_are_its_weighted_product() -> None:
    """Below 22 px there is one scale, which scikit-image knows; flat maps have luminance alone."""
    a, b = soft(0, 20), soft(1, 20)
    b = np.uint8((a.astype(int) + b) // 2)
    theirs = structural_similarity(
        a / 255, b / 255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    assert ms_ssim(a, b) == pytest.approx(theirs, abs=1e-9)
    black, grey = np.zeros((200, 200), np.uint8), np.full((200, 200), 51, np.uint8)
    flat = (0.01**2 / (0.2**2 + 0.01**2)) ** 0.1333  # of the coarsest scale alone
    assert ms_ssim(black, grey) == pytest.approx(flat)
    assert ms_ssim(black[:60, :60], grey[:60, :60]) == pytest.approx(flat ** (0.3001 / 0.1333 / 0.6305))


def test_similarity_falls_with_noise_and_shift() -> None:
    a = soft(0, 128)
    noise = np.random.default_rng(5).normal(size=a.shape)
    noisy = [ms_ssim(np.uint8(np.clip(a + s * noise, 0, 255)), a) for s in (0, 10, 40, 120)]
    moved = [ms_ssim(np.roll(a, step, 0), a) for step in (0, 1, 3, 9)]
    assert noisy == sorted(noisy, reverse=True) and moved == sorted(moved, reverse=True)
    assert noisy[-1] < 0.7 and moved[-1] < 0.5


def test_depth_knows_no_unit_and_no_zero() -> None:
    ramp = np.linspace(2.0, 7.0, 64).reshape(8, 8)
    assert depth_rmse(ramp, 3 * ramp + 5) == pytest.approx(0, abs=1e-9)
    assert depth_rmse(ramp, ramp + 0 * ramp) == 0
    ends = np.repeat([0.0, 1.0], 32).reshape(8, 8)
    assert depth_rmse(ends, 1 - ends) == pytest.approx(255)
    assert depth_rmse(np.ones((4, 4)), np.ones((4, 4))) == 0  # flat: all at the least
    assert depth_rmse(ends, np.ones((8, 8))) == pytest.approx(255 / np.sqrt(2))


def test_other_forms_are_refused() -> None:
    with pytest.raises(BenchError, match="one size"):
        ms_ssim(soft(0, 32), soft(0, 16))
    with pytest.raises(BenchError, match="above 10 px"):
        ms_ssim(np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8))
    with pytest.raises(BenchError, match="finite"):
        depth_rmse(np.array([[np.nan]]), np.array([[1.0]]))


def test_an_edge_that_moves_by_a_pixel_is_forgiven_and_by_two_not() -> None:
    """The tolerance by dilation is that by distances."""
    edge = np.zeros((32, 32), bool)
    edge[8:24, 16] = True
    scores = [line_f1(np.roll(edge, step, 1), edge).f1 for step in (0, 1, 2)]
    assert scores == [1, 1, 0]
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.random((2, 24, 24)) < 0.1
        near = [(ndimage.distance_transform_edt(~y)[x] <= 1).mean() for x, y in ((a, b), (b, a))]
        assert line_f1(a, b)[1:] == tuple(near)
