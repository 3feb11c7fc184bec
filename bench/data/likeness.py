"""How alike two pictures are, whatever was moved by a pixel or two, mirrored, brightened or packed.

Every picture is brought to 64x64. Of one side the middle window of 60x60 is described, of the other
all 25 windows and their mirror images; the likeness of a pair is the highest of the 50 correlations.
So a shift of up to 2 of 64 pixels changes nothing, whatever stands at the border, and each vector
less its own mean, at unit length, is blind to brightness and contrast (but for clipping).
    image   luminance in cells of 2x2, two colour differences in cells of 6x6
    sketch  line density in cells of 2x2 after a 3x3 blur: another line weight stays alike
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

GRID = 64
REACH = 2
WINDOW = GRID - 2 * REACH
FLOOR = 0.9  # pairs less alike than this are of no interest
_FINE, _COARSE = 2, 6
_ROWS = 8192  # of the first side that all of the second are held against at once
_BLOCK = 256  # pictures described at once: memory, not speed, would run out
# luminance, red against blue, green against both: orthonormal, so that distances stay those of RGB
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32)
_COLOURS /= np.sqrt(np.array([[3], [2], [6]], np.float32))


def shrink(picture: np.ndarray) -> np.ndarray:
    """Bring [H,W] or [H,W,3] uint8 of any size to [64,64] or [64,64,3] uint8, by area."""
    if picture.shape[:2] == (GRID, GRID):
        return np.asarray(picture, np.uint8)
    small = Image.fromarray(picture).resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, np.uint8)


def middle(pictures: np.ndarray) -> np.ndarray:
    """Describe the middle windows: [N,64,64(,3)] uint8 -> unit vectors [N,D] float32."""
    starts = range(0, max(len(pictures), 1), _BLOCK)
    blocks = [_sums(pictures[start : start + _BLOCK]) for start in starts]
    return np.concatenate([_describe(block, REACH, REACH) for block in blocks])


def views(pictures: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the vectors of every window, then of the mirrored ones: 50 times [N,D] float32."""
    for side in (pictures, pictures[:, :, ::-1]):
        sums = _sums(side)
        for top in range(2 * REACH + 1):
            for left in range(2 * REACH + 1):
                yield _describe(sums, top, left)


def alike(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs with a likeness above 0.9: rows of the first, rows of the second, likeness.

    first [N,64,64(,3)], second [M,64,64(,3)] uint8 -> [P] int64, [P] int64, [P] float32, in order of rows.
    """
    found = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))]
    for start in range(0, len(first), _ROWS):
        own = middle(first[start : start + _ROWS])
        best = np.zeros((len(own), len(second)), np.float32)
        for other in views(second):
            np.maximum(best, own @ other.T, out=best)
        rows, others = np.nonzero(best > FLOOR)
        found.append((rows + start, others, best[rows, others]))
    rows, others, values = (np.concatenate(part) for part in zip(*found, strict=True))
    return rows, others, values


def likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the likeness of pictures pair by pair: [P,64,64(,3)] uint8 twice -> [P] float32."""
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(first), _BLOCK):
        own = middle(first[start : start + _BLOCK])
        others = views(second[start : start + _BLOCK])
        parts.append(np.max([np.einsum("pd,pd->p", own, other) for other in others], axis=0))
    return np.concatenate(parts)


def _sums(pictures: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return (cell size, sums of cells at every place [N,y,x,C]); colours are taken apart, lines blurred."""
    values = np.asarray(pictures, np.float32)
    if values.ndim == 4:
        colours = values @ _COLOURS.T
        parts = [(_FINE, colours[..., :1]), (_COARSE, colours[..., 1:])]
    else:
        blurred = ndimage.uniform_filter(values, (0, 3, 3), mode="constant")
        parts = [(_FINE, blurred[..., None])]
    return [(size, _boxes(part, size)) for size, part in parts]


def _boxes(values: np.ndarray, size: int) -> np.ndarray:
    """Return sums over size x size pixels from every pixel on, over size: [N,65-size,65-size,C]."""
    wide = GRID - size + 1
    rows: Any = sum(values[:, k : k + wide] for k in range(size))
    boxes: Any = sum(rows[:, :, k : k + wide] for k in range(size))
    return np.asarray(boxes / np.float32(size))


def _describe(sums: list[tuple[int, np.ndarray]], top: int, left: int) -> np.ndarray:
    """Return the vectors [N,D] of the windows at a place: cells side by side, weighed by area."""
    parts = []
    for size, boxes in sums:
        cells = boxes[:, top : top + WINDOW : size, left : left + WINDOW : size]
        cells = cells - cells.mean(axis=(1, 2), keepdims=True)
        parts.append(cells.reshape(len(cells), math.prod(cells.shape[1:])))
    flat = np.concatenate(parts, axis=1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
