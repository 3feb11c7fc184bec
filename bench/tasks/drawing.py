"""Artistic drawing -> image: coarse colour strokes with a line sketch over them, four channels.

The strokes are simulated: each region of the class map is hatched with a few thick strokes of its
colour, side by side in one slanting and slightly wavy direction, some left out, some short, the
way a child colours a drawing in. The rest is white paper.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from bench.metrics.lines import LINE_F1, line_f1, sketch_lines
from bench.metrics.regions import COLOUR_ERROR, SMALLEST, coarse_colours, colour_error, line_void
from bench.randomness import generator
from bench.tasks import as_condition, check_sample, find_lines, need_map, need_palette
from bench.types import BenchError, Example, MetricSpec

_THICKNESS = 4.5  # px
_PITCH = 8.0  # px from stroke to stroke
_KEPT = 0.75  # share of strokes that are drawn
_SHORTEST = 0.6  # of the region's length along the stroke
_WAVE = 1.0  # px, amplitude of the hand's tremble
_WAVELENGTH = 40.0  # px
_PAPER = 255


class Drawing:
    """Strokes and lines as condition; judged by the colours at the strokes and by the lines."""

    name = "drawing"
    channels = 4
    version = 1
    metrics: tuple[MetricSpec, ...] = (COLOUR_ERROR, LINE_F1)

    def condition(self, example: Example) -> np.ndarray:
        """Return coarse colours and lines, [4,H,W] float32 in [0, 1]; BenchError without their layers."""
        given = "colours" in example.layers
        picture = example.layers["colours"] if given else _strokes(example)[0]
        lines = need_map(example, "sketch").astype(np.float32) / 255.0
        return np.concatenate([as_condition(picture), lines[None]])

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Compare an image ([H,W,3] uint8) with the strokes outside the lines, and with the lines.

        Strokes that lie all within a pixel of lines are judged outside the ink itself, and where
        even that leaves nothing, under it (25 of 1,871 items need this). White regions have strokes
        too: white crayon, which the condition shows as bare paper and the image should show white.
        Coarse colours that a data set brings are compared with the image's own, cell by cell.
        """
        check_sample(image, example)
        sketch = need_map(example, "sketch")
        ink, found = sketch_lines(sketch), find_lines(image, example)
        score = math.nan if found is None else line_f1(found, ink).f1
        if "colours" in example.layers:
            error = colour_error(coarse_colours(image), example.layers["colours"])
        else:
            picture, drawn = _strokes(example)
            at = next(where for where in (drawn & ~line_void(sketch), drawn & ~ink, drawn) if where.any())
            error = colour_error(image[at], picture[at])
        return {"colour_error": error, "sketch_f1": score}


def _strokes(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Draw an item's strokes: [H,W,3] uint8 on white, and where they lie, [H,W] bool.

    The strokes of the mirrored item are the mirrored strokes, unless the item is its own mirror image:
    both are drawn in the same one of the two directions, the one whose bytes come first.
    """
    classes = need_map(example, "classes")
    palette = need_palette(example, classes)
    layers = (classes, need_map(example, "sketch"), example.image)
    turned = [layer[:, ::-1].tobytes() for layer in layers] < [layer.tobytes() for layer in layers]
    upright = classes[:, ::-1] if turned else classes
    drawn = _hatch(upright, generator(0, "strokes", example.id))
    if not drawn.any():
        raise BenchError(f"item {example.id} has no region of {SMALLEST} px to draw strokes in")
    if turned:
        drawn = drawn[:, ::-1]
    return np.where(drawn[..., None], palette[classes], _PAPER).astype(np.uint8), drawn


def _hatch(classes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Hatch each sizeable region of a class map, [H,W] uint8 -> [H,W] bool."""
    slant = draw.uniform(-1.0, 1.0) * np.pi / 3
    drawn = np.zeros(classes.shape, dtype=bool)
    for label in np.unique(classes[classes > 0]):
        regions, _ = ndimage.label(classes == label)
        for index, window in enumerate(ndimage.find_objects(regions), start=1):
            region = regions[window] == index
            if region.sum() >= SMALLEST:
                drawn[window] |= _hatched(region, slant + draw.normal() * 0.2, draw)
    return drawn


def _hatched(region: np.ndarray, slant: float, draw: np.random.Generator) -> np.ndarray:
    """Hatch one region, [H,W] bool -> [H,W] bool inside it: at least one stroke, in its middle."""
    rows, columns = np.nonzero(region)
    along = columns * np.cos(slant) + rows * np.sin(slant)
    phase = draw.uniform(0, 2 * np.pi)
    across = rows * np.cos(slant) - columns * np.sin(slant)
    across = across + _WAVE * np.sin(2 * np.pi * along / _WAVELENGTH + phase)
    across -= np.median(across)
    stroke = np.round(across / _PITCH).astype(np.int64)
    inside = np.abs(across - stroke * _PITCH) <= _THICKNESS / 2
    for number in range(int(stroke.min()), int(stroke.max()) + 1):
        kept, length, start = draw.random() < _KEPT, draw.uniform(_SHORTEST, 1.0), draw.random()
        mine = (stroke == number) & inside
        if not mine.any() or number == 0:
            continue
        low, high = along[mine].min(), along[mine].max()
        begin = low + start * (1 - length) * (high - low)
        half = length * (high - low) / 2
        inside[mine] = kept & (np.abs(along[mine] - begin - half) <= half + 0.5)
    if not inside.any():
        inside[:] = True
    drawn = np.zeros(region.shape, dtype=bool)
    drawn[rows[inside], columns[inside]] = True
    return drawn
