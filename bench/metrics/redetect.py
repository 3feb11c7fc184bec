"""How near what a detector finds in a sample is to what it finds in the item's own picture.

Obedience of photographs, where nobody's hand drew the condition: as ControlNet++ (arXiv 2404.07987) measures
it. Here are the numbers and what tables call them; the networks are in `bench.judges.detect`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy import ndimage

from bench.types import BenchError, MetricSpec

_F1, _SSIM, _IOU = "F1 in [0, 1], tolerance 1 px", "MS-SSIM in [0, 1]", "IoU in [0, 1]"
REDETECTED = {
    name: MetricSpec(name=name, title=title, scale=scale, better=better, place=place)
    for place, (name, title, scale, better) in enumerate(
        (
            ("canny_f1", "edge F1", _F1, "higher"),
            ("hed_ssim", "HED SSIM", _SSIM, "higher"),
            ("hed_f1", "HED F1", _F1, "higher"),
            ("pidinet_ssim", "PiDiNet SSIM", _SSIM, "higher"),
            ("pidinet_f1", "PiDiNet F1", _F1, "higher"),
            ("depth_rmse", "depth RMSE", "grey levels of 255", "lower"),
            ("miou_annotated", "mIoU, segmenter", _IOU, "higher"),
            ("miou_seen", "mIoU, segmenter on both", _IOU, "higher"),
            ("dino", "DINO similarity", "cosine", "higher"),
            ("lpips", "LPIPS", "distance, 0 is equal", "lower"),
        ),
        start=16,
    )
}

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
_SIGMA, _REACH = 1.5, 5  # of the Gaussian window, in pixels
_C1, _C2 = 0.01**2, 0.03**2


def ms_ssim(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the multi-scale structural similarity of two maps, [H,W] uint8, in [0, 1]; 1 is equal.

    Five scales as published; of maps below 176 px those that hold a window of 11 px, their weights scaled
    to a sum of 1. Negative structure counts as 0. Source: Wang, Simoncelli and Bovik 2003.
    """
    if found.shape != wanted.shape or found.ndim != 2 or min(found.shape) <= 2 * _REACH:
        raise BenchError(f"maps must be [H,W] of one size above 10 px: {found.shape}, {wanted.shape}")
    x, y = found / 255.0, wanted / 255.0
    scales = [w for k, w in enumerate(_WEIGHTS) if min(x.shape) >> k > 2 * _REACH]
    share = sum(scales) if len(scales) < len(_WEIGHTS) else 1.0
    similarity = 1.0
    for k, weight in enumerate(scales):
        luminance, structure = _ssim_parts(x, y)
        part = structure * luminance if k == len(scales) - 1 else structure
        similarity *= max(float(part.mean()), 0.0) ** (weight / share)
        x, y = _halved(x), _halved(y)
    return similarity


def _ssim_parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return luminance and contrast with structure, where the window lies inside."""
    smooth = partial(ndimage.gaussian_filter, sigma=_SIGMA, radius=_REACH)
    a, b = smooth(x), smooth(y)
    variances = smooth(x * x) - a * a + smooth(y * y) - b * b
    luminance = (2 * a * b + _C1) / (a * a + b * b + _C1)
    structure = (2 * (smooth(x * y) - a * b) + _C2) / (variances + _C2)
    inside = (slice(_REACH, -_REACH),) * 2
    return luminance[inside], structure[inside]


def _halved(x: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in x.shape)
    return np.asarray(x[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3)))


def depth_rmse(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the root mean square difference of two depth maps, [H,W] float, each scaled to 0 to 255.

    A network's depth has no unit and no zero: each map's least value becomes 0 and its greatest 255.
    """
    if found.shape != wanted.shape or not np.isfinite([found, wanted]).all():
        raise BenchError(f"depth maps must be finite and of one size: {found.shape}, {wanted.shape}")
    return float(np.sqrt(((_scaled(found) - _scaled(wanted)) ** 2).mean()))


def _scaled(depth: np.ndarray) -> np.ndarray:
    low, span = depth.min(), np.ptp(depth)
    return np.asarray((depth.astype(np.float64) - low) * (255 / span if span else 0.0))
