"""Does a sample obey its regions? Classes, boxes and colours read from pixels, no learned judge.

The extractors see the image alone and serve flat drawings: regions of palette colours between dark
outlines about 2 px wide on a 64 px canvas. Constants were set on the validation side.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bench.content import check_array
from bench.metrics.lines import check_image, extract_lines
from bench.types import BenchError, MetricSpec

REGIONS_VERSION = 1
_IOU, _ERROR, _SHARE = "IoU in [0, 1]", "CIE76 difference, 0 is equal", "share of boxes at IoU 0.5"
MIOU = MetricSpec(name="miou", title="mIoU", scale=_IOU, better="higher", place=10)
BOX_RECALL = MetricSpec(name="box_recall", title="box recall", scale=_SHARE, better="higher", place=11)
BOX_IOU = MetricSpec(name="box_iou", title="box IoU", scale=_IOU, better="higher", place=12)
_COLOUR = "colour error ΔE76"
COLOUR_ERROR = MetricSpec(name="colour_error", title=_COLOUR, scale=_ERROR, better="lower", place=13)
COARSE_CELLS = 8  # along each side, of coarse colours
SMALLEST = 12  # pixels: the data set's own floor for a region that has a box

_VOID_MARGIN = 1  # soft edges beside the ink; any smear of a decoder's lines lies there too
_TOLERANCES = (40.0, 80.0)  # RGB distance: shades held apart; shades of one colour together

_LINEAR_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def merged_classes(palette: np.ndarray) -> np.ndarray:
    """Return for each class the first of its colour, [K,3] uint8 -> [K] int64.

    Pixels cannot tell white things from white paper, so no metric may ask for it.
    """
    check_array(palette, "a palette", dtype=np.uint8, shape=(len(palette) or 1, 3))
    same = (palette[:, None] == palette[None]).all(-1)
    return np.asarray(same.argmax(1), dtype=np.int64)


def nearest_classes(image: np.ndarray, *, palette: np.ndarray) -> np.ndarray:
    """Return each pixel's class of nearest RGB colour, [H,W,3] uint8 -> [H,W] int64, merged.

    RGB and not Lab: on noisy and autoencoded validation drawings it finds more classes again.
    """
    check_image(image)
    merged = merged_classes(palette)  # which checks the palette
    gaps = image[..., None, :].astype(np.int64) - palette.astype(np.int64)
    return merged[(gaps**2).sum(-1).argmin(-1)]


def line_void(sketch: np.ndarray) -> np.ndarray:
    """Return the pixels a line covers or touches, [H,W] uint8 (255 = line) -> [H,W] bool.

    What lies under a line cannot be seen, so it is not judged, like "void" in Cityscapes. Any ink
    counts, and one pixel more on each side.
    """
    check_array(sketch, "a sketch", dtype=np.uint8, shape=(None, None))
    return np.asarray(ndimage.binary_dilation(sketch > 0, iterations=_VOID_MARGIN))


def mean_iou(classes: np.ndarray, reference: np.ndarray, *, void: np.ndarray) -> float:
    """Return the mean IoU of two class maps outside the void; [H,W] int, [H,W] int, [H,W] bool.

    The mean of intersection over union of the reference's classes of at least 12 visible pixels,
    background among them (of all its classes where none has 12); in [0, 1]. BenchError where sizes
    differ or nothing is visible. Source: Everingham et al. 2010, PASCAL VOC.
    """
    sizes = [each.shape for each in (classes, reference, void)]
    if len({*sizes}) > 1:
        raise BenchError(f"class maps and void must have one size, got {', '.join(map(str, sizes))}")
    found, wanted = classes[~void], reference[~void]
    if not wanted.size:
        raise BenchError("no pixel is left to judge: lines cover the whole class map")
    labels, counts = np.unique(wanted, return_counts=True)
    large = counts >= SMALLEST
    judged = labels[large] if large.any() else labels
    pairs = [(found == label, wanted == label) for label in judged]
    return float(np.mean([float((a & b).sum() / (a | b).sum()) for a, b in pairs]))


def find_boxes(image: np.ndarray, *, colour: np.ndarray) -> np.ndarray:
    """Find the boxes of regions of a colour ([3] uint8): [H,W,3] uint8 -> [M,4] int64.

    A row is x0, y0, x1, y1, x1 and y1 exclusive, of a 4-connected region of at least 12 px, as in
    the data set. A line hides what it covers, and the image does not say what that is, so a region
    is proposed in two ways: with lines filled by the nearest pixel beside them (regions that a line
    crosses), and with lines as walls, boxes grown by 1 px, half a line (regions that a line parts
    from their like, as white things from white paper). Each at two tolerances of colour: RGB
    distance 40 keeps shades apart, 80 bears a decoder's blotches. So one region may give several
    boxes: use them for recall, not for precision.
    """
    check_image(image)
    lines = extract_lines(image)
    gap = np.sqrt(((image.astype(np.float64) - colour.astype(np.float64)) ** 2).sum(-1))
    found = []
    for tolerance in _TOLERANCES:
        alike = gap <= tolerance
        found += [_boxes(_filled(alike, lines), grow=0), _boxes(alike & ~lines, grow=1)]
    return np.concatenate(found)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes, [M,4] and [N,4] (x0, y0, x1, y1) -> [M,N]."""
    first, second = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Turn sRGB [...,3] uint8 into CIE L*a*b* [...,3] float64, white point D65 (IEC 61966-2-1)."""
    check_array(rgb.reshape(-1, rgb.shape[-1]), "a set of colours", dtype=np.uint8, shape=(None, 3))
    share = rgb.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _LINEAR_TO_XYZ.T / _LINEAR_TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def coarse_colours(image: np.ndarray, *, cells: int = COARSE_CELLS) -> np.ndarray:
    """Return an image's mean colours in cells x cells fields, [H,W,3] uint8 -> [H,W,3] uint8.

    As the colour condition of T2I-Adapter (arXiv 2302.08453), by area; H and W are multiples of cells.
    """
    check_image(image)
    height, width = image.shape[:2]
    if height % cells or width % cells:
        raise BenchError(f"an image of {width}x{height} has no {cells}x{cells} equal cells")
    fields = image.reshape(cells, height // cells, cells, width // cells, 3)
    means = fields.mean(axis=(1, 3), dtype=np.float64).round().astype(np.uint8)
    return means.repeat(height // cells, 0).repeat(width // cells, 1)


def colour_error(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean CIE76 difference of two sets of colours, [...,3] uint8 each; 0 is equal.

    Black to white is 100; about 2.3 is a just noticeable difference (Mahy et al. 1994).
    """
    if image.shape != reference.shape or not image.size:
        raise BenchError(f"colours must be of one size: {image.shape}, {reference.shape}")
    return float(np.sqrt(((to_lab(image) - to_lab(reference)) ** 2).sum(-1)).mean())


def _filled(mask: np.ndarray, lines: np.ndarray) -> np.ndarray:
    if lines.all():
        return mask
    nearest = ndimage.distance_transform_edt(lines, return_distances=False, return_indices=True)
    return np.asarray(mask[tuple(nearest)])


def _boxes(mask: np.ndarray, *, grow: int) -> np.ndarray:
    height, width = mask.shape
    regions, _ = ndimage.label(mask)
    sizes = np.bincount(regions.ravel())
    boxes = [
        (max(x.start - grow, 0), max(y.start - grow, 0), x.stop + grow, y.stop + grow)
        for index, (y, x) in enumerate(ndimage.find_objects(regions), start=1)
        if sizes[index] >= SMALLEST
    ]
    found = np.array(boxes, dtype=np.int64).reshape(-1, 4)
    return np.minimum(found, (width, height, width, height))
