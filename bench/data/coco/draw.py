"""Draws one item: stored pixels to a square image, its layers and its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.content import sha256_bytes
from bench.data.coco import item_name
from bench.data.coco.geometry import frame_of
from bench.data.coco.official import Picture
from bench.data.coco.recipe import Recipe
from bench.data.coco.sketches import Sketcher, canny_lines
from bench.metrics.regions import coarse_colours
from bench.picture import PictureError, decode, picture_bytes
from bench.types import BenchError, Example


class Broken(Exception):
    """Why an item is left out, in words that do not depend on the machine."""


def draw(
    picture: Picture,
    *,
    recipe: Recipe,
    classes: Mapping[int, int],
    palette: np.ndarray,
    sketcher: Sketcher | None,
) -> Example:
    """Return a picture as an item with the layers of a recipe; Broken where it cannot be one.

    classes: COCO's class id -> index into the palette [K,3] uint8. sketcher: None where no sketch is
    asked for.
    """
    if not picture.captions:
        raise Broken("no caption")
    frame = frame_of(picture.width, picture.height, size=recipe.size, resize=recipe.resize)
    image = frame.picture(_pixels(picture.file, picture))
    layers = {}
    if sketcher is not None:
        layers["sketch"] = sketcher(image)
    if "classes" in recipe.maps:
        layers["classes"] = frame.map(_classes(picture, classes))
    if recipe.boxes:
        layers["boxes"] = frame.boxes((classes[int(b[0])], *b[1:]) for b in picture.boxes)
    return as_example(
        item_name(picture.id),
        caption=caption_of(picture.id, picture.captions),
        image=image,
        layers=layers,
        palette=palette,
        recipe=recipe,
    )


def as_example(
    item: str,
    *,
    caption: str,
    image: np.ndarray,
    layers: Mapping[str, np.ndarray],
    palette: np.ndarray,
    recipe: Recipe,
) -> Example:
    """Join an item's stored parts with what follows from them: coarse colours, and how to redraw."""
    coloured = "drawing" in recipe.tasks
    more = {"colours": coarse_colours(image)} if coloured else {}
    return Example(
        id=item,
        caption=caption,
        image=image,
        layers={**layers, **more},
        palette=palette if len(palette) > 1 else None,
        photo=True,
        redraw=canny_lines if "sketch" in layers and recipe.sketch == "canny" else None,
    )


def caption_of(number: int, captions: Sequence[str]) -> str:
    """Choose one of an image's captions: always the same, whatever other images there are."""
    return captions[int(sha256_bytes(f"caption {number}".encode()), 16) % len(captions)]


def _pixels(path: Path, picture: Picture) -> Image.Image:
    """Read stored pixels as RGB: grey and CMYK are converted, EXIF rotation is not applied."""
    pixels = _decoded(path, "image")
    if pixels.shape[:2] != (picture.height, picture.width):
        raise Broken("the image's size is not that of its annotations")
    return Image.fromarray(pixels)


def _classes(picture: Picture, classes: Mapping[int, int]) -> np.ndarray:
    """Read a panoptic PNG (segment id = R + 256 G + 256² B) as classes, [H,W] uint8, 0 = void."""
    if picture.map is None or picture.segments is None:
        raise Broken("no panoptic map")
    colours = _decoded(picture.map, "panoptic map").astype(np.uint32)
    if colours.shape[:2] != (picture.height, picture.width):
        raise Broken("the panoptic map's size is not that of its image")
    ids, places = np.unique(colours @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    table = {0: 0, **{s: classes[c] for s, c in picture.segments.items()}}
    if any(int(i) not in table for i in ids):
        raise Broken("the panoptic map has segments that its annotation lacks")
    return np.array([table[int(i)] for i in ids], np.uint8)[places].reshape(colours.shape[:2])


def _decoded(path: Path, what: str) -> np.ndarray:
    """Read a file, [H,W,3] uint8; Broken if it is no whole picture. Errors of the disk pass through."""
    try:
        return decode(picture_bytes(path)).pixels
    except PictureError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError):
            raise Broken(f"no {what} file") from None
        if isinstance(cause, OSError) and cause.errno is not None:
            raise BenchError(f"{path} cannot be read ({error}).") from error
        raise Broken(f"the {what} file is damaged") from error
