"""Does a sample obey its sketch? Lines read from pixels by morphology, no learned judge.

The extractor sees the image alone. It serves flat drawings with dark outlines about 2 px wide on a
64 px canvas; its constants are in pixels of that canvas and in grey levels of [0, 255].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bench.content import check_array
from bench.types import MetricSpec

LINE_EXTRACTOR_VERSION = 1

LINE_F1 = MetricSpec(
    name="sketch_f1", title="line F1", scale="F1 in [0, 1], tolerance 1 px", better="higher", place=14
)
CHAMFER = MetricSpec(
    name="chamfer", title="chamfer distance", scale="pixels", scale_shown=True, better="lower", place=15
)

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_BLACK = 50.0
_DARK_RELIEF = 40.0
_DARK_LIMIT = 180.0
_WHITE_RELIEF = 60.0
_WHITE_LIMIT = 210
_CLEARANCE = 3


class LineScore(NamedTuple):
    """Agreement of two line drawings, each number in [0, 1]."""

    f1: float
    precision: float
    recall: float


def extract_lines(image: np.ndarray) -> np.ndarray:
    """Return the line pixels of a drawing, [H,W,3] uint8 RGB -> [H,W] bool.

    A pixel is line if it is
    1. black: luminance below 50, so that filled pupils and letters count but not dark grey; or
    2. thin and dark: a black top-hat (closing minus image, a 5 px disc) above 40, luminance below
       180, which finds outlines on dark or coloured fields and passes over broad dark fills; or
    3. thin and white on colour: a white top-hat (image minus opening, a 7 px disc) above 60, all
       channels above 210, more than 3 px from pixels of rules 1 and 2: signs drawn in white lines
       on a coloured plate.

    Works on soft lines too, since relief is measured against the surroundings. Source of the
    top-hat: Serra 1982, Image Analysis and Mathematical Morphology.
    """
    check_image(image)
    grey = image.astype(np.float64) @ _LUMINANCE
    hollow = ndimage.grey_closing(grey, footprint=_disc(2.3), mode="nearest") - grey
    dark = (grey < _BLACK) | ((hollow > _DARK_RELIEF) & (grey < _DARK_LIMIT))
    ridge = grey - ndimage.grey_opening(grey, footprint=_disc(3.0), mode="nearest")
    white = (ridge > _WHITE_RELIEF) & (image.min(axis=-1) > _WHITE_LIMIT)
    if white.any() and dark.any():
        white &= ~ndimage.binary_dilation(dark, iterations=_CLEARANCE)
    return np.asarray(dark | white)


def sketch_lines(sketch: np.ndarray) -> np.ndarray:
    """Return the line pixels of a sketch layer, [H,W] uint8 with 255 = line -> [H,W] bool."""
    check_array(sketch, "a sketch", dtype=np.uint8, shape=(None, None))
    return np.asarray(sketch > 127)


def line_f1(lines: np.ndarray, reference: np.ndarray) -> LineScore:
    """Score lines against reference lines, both [H,W] bool, with a tolerance of a pixel.

    precision: share of line pixels within a pixel of a reference pixel. recall: share of reference
    pixels within a pixel of a line pixel. F1, their harmonic mean, is symmetric;
    swapping the arguments swaps precision and recall. Both empty: 1, 1, 1. One empty: 0, 0, 0.
    Source: boundary matching of Martin, Fowlkes and Malik 2004, with distances in place of a
    one-to-one assignment.
    """
    _check_lines(lines, reference)
    if not lines.any() or not reference.any():
        same = float(lines.any() == reference.any())
        return LineScore(same, same, same)
    precision = float(ndimage.binary_dilation(reference)[lines].mean())
    recall = float(ndimage.binary_dilation(lines)[reference].mean())
    total = precision + recall
    return LineScore(2 * precision * recall / total if total else 0.0, precision, recall)


def chamfer(lines: np.ndarray, reference: np.ndarray) -> float:
    """Return the symmetric chamfer distance of two line drawings, [H,W] bool, in pixels.

    The mean distance of a pixel of one to the nearest of the other, averaged over both directions.
    Both empty: 0. One empty: the diagonal of the canvas, the most two pixels can be apart.
    """
    _check_lines(lines, reference)
    if not lines.any() or not reference.any():
        return 0.0 if lines.any() == reference.any() else float(np.hypot(*lines.shape))
    ways = (lines, reference), (reference, lines)
    forth, back = (ndimage.distance_transform_edt(~there)[here].mean() for here, there in ways)
    return float((forth + back) / 2)


def _disc(radius: float) -> np.ndarray:
    reach = int(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(rows**2 + columns**2 <= radius**2)


def check_image(image: np.ndarray) -> None:
    """Raise BenchError unless an image is [H,W,3] uint8."""
    check_array(image, "an image", dtype=np.uint8, shape=(None, None, 3))


def _check_lines(lines: np.ndarray, reference: np.ndarray) -> None:
    check_array(lines, "a line drawing", dtype=np.bool_, shape=(None, None))
    check_array(reference, "the other line drawing", dtype=np.bool_, shape=lines.shape)
