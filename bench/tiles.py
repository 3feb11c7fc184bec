"""Tiles: the few pictures of a run that figures show, as strips of lossless WebP in one file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.content import read_npz, write_npz
from bench.picture import PictureError, decode
from bench.strict import check_name
from bench.types import BenchError

TILES_FILE = "tiles.npz"
SIDES = ("condition", "sample", "target")
MOST_TILES = 24
"""Items whose pictures a run keeps beside its samples."""
_WIDEST = 16_383  # pixels of a WebP
_REMEDY = "Run again with --again, or leave the file away: figures are then drawn without this run."


def write_tiles(path: Path, rows: Mapping[str, np.ndarray], items: Sequence[str]) -> None:
    """Write rows of pictures of these items, [N,H,W,3] uint8 each, as strips: bytes of WebP by side.

    Only as many items as a picture may be wide; the same pictures give the same bytes.
    """
    count = min(len(items), _WIDEST // rows["sample"].shape[2])
    strips = {side: np.frombuffer(_strip(rows[side][:count]), dtype=np.uint8) for side in SIDES}
    write_npz(path, {**strips, "items": np.asarray(items[:count])})


def read_tiles(path: Path) -> dict[str, np.ndarray]:
    """Read a run's strips, which `tile_pictures` decodes; BenchError for a file that holds none."""
    found = read_npz(path)
    kinds = {name: (array.dtype.kind, array.ndim) for name, array in found.items()}
    if kinds != {**dict.fromkeys(SIDES, ("u", 1)), "items": ("U", 1)}:
        raise BenchError(f"{path} holds no tiles ({', '.join(SIDES)}, items). {_REMEDY}")
    return found


def tile_pictures(strips: Mapping[str, np.ndarray], where: object) -> dict[str, np.ndarray]:
    """Return the pictures of strips by side, [N,H,W,3] uint8 each; BenchError for damaged ones."""
    items = [check_name(item) for item in strips["items"].tolist()]
    try:
        rows = {side: _cut(strips[side].astype(np.uint8).tobytes(), len(items)) for side in SIDES}
    except PictureError as error:
        raise BenchError(f"{where}: a strip of tiles cannot be read ({error}). {_REMEDY}") from error
    if len({images.shape for images in rows.values()}) > 1:
        raise BenchError(f"{where}: strips of tiles differ in size. {_REMEDY}")
    return rows


def _strip(images: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    page = Image.fromarray(np.concatenate(list(images), axis=1))
    page.save(file, format="WEBP", lossless=True, quality=100, method=4)
    return file.getvalue()


def _cut(data: bytes, count: int) -> np.ndarray:
    picture = decode(data)
    height, width = picture.pixels.shape[:2]
    if picture.notes or not count or width % count:
        raise PictureError(f"it is no lossless strip of {count} pictures")
    return picture.pixels.reshape(height, count, width // count, 3).swapaxes(0, 1)
