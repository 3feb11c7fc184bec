"""Tasks, and what they ask of an example, with the errors where it is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.content import check_array
from bench.metrics.lines import extract_lines, sketch_lines
from bench.types import BenchError, Example

# The colour of "nothing here" in class maps and layouts: apart from all palette colours (95 in RGB
# distance from the nearest of OpenMoji's), since white things stand on white paper.
NOTHING = (0, 0, 96)


def need_layer(example: Example, name: str) -> np.ndarray:
    """Return a layer of an item; BenchError that names the layers it has, where it is missing."""
    if name not in example.layers:
        has = ", ".join(sorted(example.layers)) or "none"
        held = f"item {example.id} has no layer '{name}'; it has {has}"
        raise BenchError(f"{held}. Choose another task or data set.")
    return np.asarray(example.layers[name])


def need_map(example: Example, name: str) -> np.ndarray:
    """Return a layer of one number a pixel, [H,W] uint8 of the image's size; BenchError if not."""
    layer = need_layer(example, name)
    check_array(layer, f"layer '{name}' of item {example.id}", dtype=np.uint8, shape=example.shape[:2])
    return layer


def need_palette(example: Example, labels: np.ndarray) -> np.ndarray:
    """Return the class colours, [K,3] uint8; BenchError without them or for a class beyond them."""
    palette = example.palette
    if palette is None:
        raise BenchError(f"item {example.id} comes without a palette. Choose another task or data set.")
    check_array(palette, "a palette", dtype=np.uint8, shape=(None, 3))
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(palette):
        classes = f"{int(labels.min())} to {int(labels.max())}"
        raise BenchError(f"item {example.id} has classes {classes}, the palette ends at {len(palette) - 1}")
    return palette


def nothing(palette: np.ndarray) -> np.ndarray:
    """Return the colour of "nothing here", [3] uint8: the background's own where no class has it."""
    shared = bool((palette[1:] == palette[0]).all(-1).any())
    return np.array(NOTHING, np.uint8) if shared else palette[0]


def emptied(example: Example) -> Example:
    """Return an item of equal size and palette of which nothing is known: no line, class, box, colour."""
    paper = np.zeros(example.shape[:2], dtype=np.uint8)
    empty = {"sketch": paper, "classes": paper, "boxes": np.zeros((0, 5), dtype=np.uint8)}
    empty["colours"] = np.full(example.shape, 255, dtype=np.uint8)
    others = {name: np.zeros_like(example.layers[name]) for name in example.layers if name not in empty}
    return replace(example, layers={**others, **empty}, photo=True)  # a photo's layout may be empty


def find_lines(image: np.ndarray, example: Example) -> np.ndarray | None:
    """Find the lines of a sample ([H,W,3] uint8) as the item's were found, [H,W] bool.

    Lines of a data set that draws its sketches by rule are drawn again by that rule; a designer's
    are looked for in flat colours; of photographs with learned sketches none can be: None.
    """
    if example.redraw is not None:
        return sketch_lines(example.redraw(image))
    return None if example.photo else extract_lines(image)


def check_sample(image: np.ndarray, example: Example) -> None:
    """Raise BenchError if an image is not [H,W,3] uint8 of the size of the item's own."""
    check_array(image, f"an image for item {example.id}", dtype=np.uint8, shape=example.shape)


def as_condition(picture: np.ndarray) -> np.ndarray:
    """Turn a picture [H,W,C] uint8 into a condition [C,H,W] float32 in [0, 1]."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32) / 255.0
