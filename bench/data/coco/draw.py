"""Draws one item: stored pixels to a square image, its layers and its caption, and what protocols say of it.

crop      the middle square of the short side's length, then resized: aspect kept, ends cut off
squash    the whole picture resized to a square, aspect lost: what the release of BPS does

pidinet   PiDiNet (Su et al. 2021, arXiv 2108.07009) through controlnet-aux; what the release of BPS
          and T2I-Adapter use, the former soft, the latter binary
hed       HED (Xie and Tu 2015, arXiv 1504.06375), the re-trained network of controlnet-aux
canny     Canny 1986 in scikit-image, on luminance; binary, and no learned edges: another condition
"""

from __future__ import annotations

import errno
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bench.base.weights import read_tensors
from bench.content import digest_json, refusing, sha256_bytes, sha256_file
from bench.data.coco import CELLS, TASKS, Recipe
from bench.data.coco.official import Category, Picture
from bench.data.picture import PictureError, decode, picture_bytes
from bench.judges import judges_folder
from bench.metrics.regions import coarse_colours
from bench.types import BenchError, Example

VERSION = 1  # raise it when the same options give other items
_RESIZES = {
    "crop": "short side, centre crop; Pillow bicubic",
    "squash": "both sides, aspect lost, as the release; Pillow bicubic",
}
_FILES = {"pidinet": "table5_pidinet.pth", "hed": "ControlNetHED.pth"}
_HALF = 128  # binary: edges of at least this much of 255
_STEP = 64  # controlnet-aux rounds sides to multiples of it
_CANNY: dict[str, float] = {"sigma": 1.0, "low_threshold": 0.1, "high_threshold": 0.2}
_LUMINANCE = np.array([0.299, 0.587, 0.114]) / 255

Sketcher = Callable[[np.ndarray], np.ndarray]
"""Draws the lines of an image: [H,W,3] uint8 -> [H,W] uint8, 255 = line; networks round sides to _STEP."""


class Broken(Exception):
    """Why an item is left out, in words that do not depend on the machine."""


def protocol_of(recipe: Recipe, categories: Sequence[Category], *, weights: Path | None) -> dict[str, str]:
    """Return a recipe in words, for manifest and protocol; errors as `describe_sketch`."""
    protocol = {
        "version": str(VERSION),
        "size": f"{recipe.size}x{recipe.size}",
        "resize": _RESIZES[recipe.resize],
        "orientation": "stored pixels, EXIF rotation not applied",
        "captions": "one of the image's, by SHA-256 of its id",
        "splits": recipe.splits,
        "tasks": ", ".join(t for t in TASKS if t in recipe.tasks),
    }
    if "sketch" in recipe.maps:
        own = "; at the photograph's own size, then by area or Lanczos" if recipe.lines == "photo" else ""
        protocol["sketch"] = describe_sketch(recipe, weights=weights) + own
    if "classes" in recipe.maps:
        protocol["classes"] = "panoptic maps, nearest pixel; void is class 0, black"
    if recipe.boxes:
        protocol["boxes"] = "instances without crowds, rounded outwards, larger ones below"
    if "drawing" in recipe.tasks:
        protocol["colours"] = f"means of {CELLS}x{CELLS} cells"
    if categories:
        digest = digest_json([[c.id, c.name, list(c.color)] for c in categories])
        protocol["palette"] = f"COCO panoptic, {len(categories)} classes, {digest}"
    if not recipe.leaky:
        protocol["duplicates"] = recipe.duplicates
    if recipe.limit is not None:
        protocol["limit"] = f"{recipe.limit} pictures of each set"
    return protocol


class Frame(NamedTuple):
    """The part of a picture that is kept, in its pixels, and the side of the square it becomes."""

    left: int
    top: int
    width: int
    height: int
    size: int

    def picture(self, image: Image.Image) -> np.ndarray:
        """Return the square of an RGB image, [S,S,3] uint8, by Pillow's bicubic filter (antialiased)."""
        return self._square(image, Image.Resampling.BICUBIC)

    def map(self, classes: np.ndarray) -> np.ndarray:
        """Return the square of a class map [H,W] uint8, [S,S] uint8, by the nearest pixel."""
        return self._square(Image.fromarray(classes), Image.Resampling.NEAREST)

    def lines(self, edges: np.ndarray) -> np.ndarray:
        """Return lines [H,W] uint8 squashed as the release does: by area where they shrink, else Lanczos."""
        shrinks = min(edges.shape) >= self.size
        chosen = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
        return np.asarray(Image.fromarray(edges).resize((self.size, self.size), chosen), np.uint8)

    def boxes(self, boxes: Iterable[tuple[float, ...]]) -> np.ndarray:
        """Return (class, x, y, width, height) as [M,5] int32: class, x0, y0, x1, y1 (exclusive).

        Rounded outwards to whole pixels of the square; what the crop leaves less than one pixel of is
        gone. Larger boxes come first, of equal ones the earlier: a drawing in this order leaves the
        smaller on top.
        """
        across, down = self.size / self.width, self.size / self.height
        kept = []
        for label, x, y, wide, high in boxes:
            x0, x1 = ((v - self.left) * across for v in (x, x + wide))
            y0, y1 = ((v - self.top) * down for v in (y, y + high))
            x0, y0, x1, y1 = (min(max(v, 0.0), float(self.size)) for v in (x0, y0, x1, y1))
            if x1 - x0 >= 1 and y1 - y0 >= 1:
                kept.append((int(label), int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))))
        kept.sort(key=lambda b: -(b[3] - b[1]) * (b[4] - b[2]))
        return np.array(kept, np.int32).reshape(-1, 5)

    def _square(self, image: Image.Image, filter: Image.Resampling) -> np.ndarray:
        part = (self.left, self.top, self.left + self.width, self.top + self.height)
        return np.asarray(image.crop(part).resize((self.size, self.size), filter), np.uint8)


def frame_of(width: int, height: int, *, size: int, resize: str) -> Frame:
    """Return the frame of a picture of width x height pixels; resize: "crop" or "squash"."""
    if resize == "squash":
        return Frame(0, 0, width, height, size)
    side = min(width, height)
    return Frame((width - side) // 2, (height - side) // 2, side, side, size)


def draw(
    picture: Picture, *, recipe: Recipe, categories: Sequence[Category], sketcher: Sketcher | None
) -> Example:
    """Return a picture as an item with the layers of a recipe (sketcher: None for none), or raise Broken."""
    if not picture.captions:
        raise Broken("no caption")
    classes = {category.id: place for place, category in enumerate(categories, start=1)}
    frame = frame_of(picture.width, picture.height, size=recipe.size, resize=recipe.resize)
    photo = _decoded(picture.file, "image", picture)
    image = frame.picture(Image.fromarray(photo))
    layers = {}
    if sketcher is not None:
        layers["sketch"] = frame.lines(sketcher(photo)) if recipe.lines == "photo" else sketcher(image)
    if "classes" in recipe.maps:
        layers["classes"] = frame.map(_classes(picture, classes))
    if recipe.boxes:
        layers["boxes"] = frame.boxes((classes[int(b[0])], *b[1:]) for b in picture.boxes)
    if "drawing" in recipe.tasks:
        layers["colours"] = coarse_colours(image, cells=CELLS)
    return Example(
        id=picture.name,
        caption=caption_of(picture.id, picture.captions),
        image=image,
        layers=layers,
        palette=palette_of(categories) if categories else None,
        photo=True,
    )


def redrawer(recipe: Recipe, protocol: Mapping[str, str]) -> Sketcher | None:
    """Return what drew a folder's sketches, None where the very weights are not in the folder of judges."""
    if "sketch" not in recipe.maps or recipe.lines != "square":
        return None
    if recipe.sketch == "canny":
        return canny_lines
    path = judges_folder() / _FILES[recipe.sketch]
    if not path.is_file() or sha256_file(path) not in protocol.get("sketch", ""):
        return None
    return partial(_redrawn, recipe)


def _redrawn(recipe: Recipe, image: np.ndarray) -> np.ndarray:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_sketcher(recipe, weights=judges_folder(), device=device)(image)


def palette_of(categories: Sequence[Category]) -> np.ndarray:
    """Return the colours of class 0 (void, black) and of the categories, [K,3] uint8, read-only."""
    palette = np.array([(0, 0, 0), *(category.color for category in categories)], np.uint8)
    palette.flags.writeable = False
    return palette


def caption_of(number: int, captions: Sequence[str]) -> str:
    """Choose one of an image's captions: always the same, whatever other images there are."""
    return captions[int(sha256_bytes(f"caption {number}".encode()), 16) % len(captions)]


def _classes(picture: Picture, classes: Mapping[int, int]) -> np.ndarray:
    """Read a panoptic PNG (segment id = R + 256 G + 256² B) as classes, [H,W] uint8, 0 = void."""
    if picture.map is None or picture.segments is None:
        raise Broken("no panoptic map")
    colours = _decoded(picture.map, "panoptic map", picture).astype(np.uint32)
    ids, places = np.unique(colours @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    table = {0: 0, **{s: classes[c] for s, c in picture.segments.items()}}
    if any(int(i) not in table for i in ids):
        raise Broken("the panoptic map has segments that its annotation lacks")
    return np.array([table[int(i)] for i in ids], np.uint8)[places].reshape(colours.shape[:2])


def _decoded(path: Path, what: str, picture: Picture) -> np.ndarray:
    """Read a file as RGB, not turned, [H,W,3] uint8; Broken if no whole picture of the annotated size."""
    try:
        pixels = decode(picture_bytes(path)).pixels
    except PictureError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno not in (None, errno.ENOENT):
            raise BenchError(f"{path} cannot be read ({error}).") from error
        raise Broken(f"the {what} file is damaged" if path.exists() else f"no {what} file") from error
    if pixels.shape[:2] != (picture.height, picture.width):
        raise Broken(f"the {what}'s size is not that of its annotations")
    return pixels


def describe_sketch(recipe: Recipe, *, weights: Path | None) -> str:
    """Return what the protocol says of a recipe's sketches; BenchError for missing files and unfit sizes."""
    if recipe.sketch == "canny":
        _package("skimage")
        numbers = ", ".join(f"{k} {v:g}" for k, v in _CANNY.items())
        return f"canny (scikit-image; {numbers}; luminance), binary"
    if recipe.size % _STEP:
        name = recipe.sketch
        raise BenchError(f"--sketch {name} needs a --size that is a multiple of {_STEP}, got {recipe.size}.")
    digest = sha256_file(_weights(recipe.sketch, weights))
    _package("controlnet_aux")
    edges = "soft" if recipe.soft else f"binary at {_HALF} of 255"
    return f"{recipe.sketch} (controlnet-aux; weights SHA-256 {digest}), {edges}"


@lru_cache(maxsize=2)
def load_sketcher(recipe: Recipe, *, weights: Path | None, device: str = "cpu") -> Sketcher:
    """Load a recipe's source of sketches; errors as `describe_sketch`."""
    if recipe.sketch == "canny":
        return canny_lines
    path = _weights(recipe.sketch, weights)
    with refusing(lambda why: f"{path} does not hold the weights of {recipe.sketch} ({why})."):
        if recipe.sketch == "hed":
            hed = _package("controlnet_aux.hed").HEDdetector
            detector = hed.from_pretrained(str(path.parent), filename=path.name)
        else:
            network = _package("controlnet_aux.pidi.model").pidinet()
            network.load_state_dict({k.removeprefix("module."): v for k, v in read_tensors(path).items()})
            detector = _package("controlnet_aux.pidi").PidiNetDetector(network.eval())
    detector.to(device)

    def lines(image: np.ndarray) -> np.ndarray:
        import torch

        threads = torch.get_num_threads()
        size = recipe.size if recipe.lines == "square" else min(image.shape[:2])
        torch.set_num_threads(1)  # the same bits however many processes draw at once
        try:
            edges = detector(image, detect_resolution=size, image_resolution=size, output_type="np")[..., 0]
        finally:
            torch.set_num_threads(threads)
        return np.asarray(edges if recipe.soft else np.where(edges >= _HALF, 255, 0), np.uint8)

    return lines


def canny_lines(image: np.ndarray) -> np.ndarray:
    """Return Canny's edges of an image, [H,W,3] uint8 -> [H,W] uint8, 255 = line."""
    canny = _package("skimage.feature").canny
    return np.where(canny(image @ _LUMINANCE, **_CANNY), 255, 0).astype(np.uint8)


def _weights(name: str, folder: Path | None) -> Path:
    file = _FILES[name]
    if folder is None or not (folder / file).is_file():
        got = folder / file if folder else "no --detectors"
        raise BenchError(
            f"--sketch {name} needs {file} (of lllyasviel/Annotators on the Hugging Face Hub), got {got}. "
            "Give its folder with --detectors, or draw without weights: --sketch canny, another protocol."
        )
    return folder / file


def _package(name: str) -> Any:
    """Import an optional package; BenchError that says how to install it."""
    needs = f"drawing sketches needs {name.split('.')[0]}"
    with (
        warnings.catch_warnings(),
        refusing(lambda why: f"{needs} ({why}): pip install 'bps-bench[coco]'", ImportError),
    ):
        warnings.simplefilter("ignore")  # controlnet-aux tells of detectors nobody asked for
        return importlib.import_module(name)
