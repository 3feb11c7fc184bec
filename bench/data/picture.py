"""The one reader of picture files that come from outside: bounded, decoded whole, one class of error.

What a picture holds beside its colours (transparency, EXIF rotation, further frames) is dropped, as
torch-fidelity and clean-fid do, and named; where nothing may be dropped, such a picture is refused.
"""

from __future__ import annotations

import base64
import io
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.content import check_name, read_npz, refusing, write_npz
from bench.types import BenchError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MOST_PIXELS, MOST_SIDE = 1 << 27, 1 << 16
"""Larger pictures are refused where their size is not known beforehand: 8192 x 16384 in all."""
LOSSY, TRANSPARENT, ROTATED, FRAMES = "lossy", "transparency", "EXIF rotation", "further frames"
ODD = "odd metadata"
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
DROPPED = {
    TRANSPARENT: "dropped, as torch-fidelity and clean-fid do; lay them on a background first",
    ROTATED: "not applied, as in torch-fidelity and clean-fid; turn the pixels first",
    FRAMES: "only the first is taken, as in torch-fidelity and clean-fid",
    ODD: "Pillow warns of them; their pixels are taken",
}
LARGEST = 256
"""Pixels of the longer side of a picture on sheets and in tiles, which show several at once."""


class PictureError(BenchError):
    """Why a file cannot be read as a picture, in words without its name."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded file: pixels [H,W,3] uint8 RGB, and what is to be known of it.

    notes: of LOSSY (its format changed the pixels); TRANSPARENT, ROTATED, FRAMES (which are dropped);
    ODD (Pillow warned of it, or its EXIF data cannot be read).
    """

    pixels: np.ndarray
    notes: frozenset[str]


def decode(data: bytes, *, alpha: bool = False) -> Picture:
    """Decode a file of FORMATS, whatever its name; PictureError for what is broken or too large.

    alpha: pixels are [H,W,4], with the transparency that is dropped otherwise.

    16-bit grey is scaled to 8 bits, where Pillow's own conversion would cut it at 255. Grey of 32
    bits, integers or floats, has no known range and is refused. Call it from one thread at a time:
    Python's warnings are caught for the whole process.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _opened refuses more
        with _opened(data, FORMATS, None) as image:
            pixels, notes = _pixels(image, "RGBA" if alpha else "RGB"), _dropped(image)
            lossy = image.format in ("JPEG", "MPO") or image.info.get("compression") in _LOSSY_TIFF
            if image.format == "WEBP":
                first = re.search(rb"VP8[ L]", data)  # the chunk of pixels, of the first frame
                lossy = first is None or first[0] == b"VP8 "
    return Picture(pixels=pixels, notes=frozenset([*notes, *[LOSSY] * lossy, *[ODD] * bool(told)]))


def read_exact(
    path: Path, *, advice: str, size: tuple[int, int] | None = None, mode: str | None = None
) -> np.ndarray:
    """Read a PNG as this program writes them, [H,W,3] uint8 RGB, or [H,W] uint8 for mode "L".

    advice: what to do about one that cannot be read. size, mode: the (height, width) and Pillow's mode
    that it must have; without a mode, other than RGB is converted. BenchError, naming the file, also
    for a picture of which something would be dropped.
    """
    most = size[0] * size[1] if size else MOST_PIXELS
    with refusing(lambda why: f"{path} cannot be read ({why}). {advice}", PictureError):
        with _opened(picture_bytes(path, most=most), FORMATS[:1], size) as image:
            odd = _dropped(image) | ({f"mode {image.mode}"} if image.mode.startswith(("I", "F")) else set())
            if odd:
                raise PictureError(f"it holds {', '.join(sorted(odd))}, which would be lost")
            if mode and image.mode != mode:
                raise PictureError(f"it is of mode {image.mode}, not {mode}")
            return np.asarray(image.convert(mode or "RGB"))


def stacked(count: int, picture: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return pictures 0 to N-1 of one size as [N,H,W,3] uint8, of which none is held twice."""
    first = picture(0)
    pictures = np.empty((count, *first.shape), first.dtype)
    for row in range(count):
        pictures[row] = picture(row) if row else first
    return pictures


def picture_bytes(path: Path, *, most: int = MOST_PIXELS) -> bytes:
    """Read a file that may be a picture of so many pixels; PictureError where there is none."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device would never end
            raise PictureError("it is no file")
        if found.st_size > 8 * most + (1 << 24):  # 16 bits of four channels, and what else a file may hold
            raise PictureError(f"it has {found.st_size:,} bytes, too many for {most:,} pixels")
        return path.read_bytes()
    except OSError as error:
        lost = isinstance(error, FileNotFoundError) and path.is_symlink()
        raise PictureError("it is a link to nowhere" if lost else f"{error.strerror or error}") from error


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...], size: tuple[int, int] | None) -> Iterator[Image.Image]:
    """Give a decoded picture; all that Pillow raises for it, in the block too, is a PictureError."""
    if not data:
        raise PictureError("it is empty")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if size and (height, width) != size:
                raise PictureError(f"it has {width} x {height} pixels, not {size[1]} x {size[0]}")
            if not size and (width * height > MOST_PIXELS or max(width, height) > MOST_SIDE):
                most = f"{MOST_SIDE:,} a side and {MOST_PIXELS:,} in all"
                raise PictureError(f"it has {width} x {height} pixels; at most {most}")
            image.load()
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"it is damaged or no picture of {', '.join(formats)}") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"it is too large: {error}") from None
    except Exception as error:  # decoders raise nearly every class for damaged files
        raise PictureError(f"it is damaged: {error or type(error).__name__}") from error


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise PictureError(f"pixels of 32-bit {kind} have no known range; store 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) * (255 / 65535)).astype(np.uint8))
    whole = image.convert("RGBA") if image.has_transparency_data else image  # not at once: Pillow warns
    return np.asarray(whole.convert(mode))


def _dropped(image: Image.Image) -> set[str]:
    """Return what RGB pixels of the first frame do not show: all notes but LOSSY."""
    found = set()
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A") if not image.mode.startswith("I") else None
        if alpha is None or np.asarray(alpha).min() < 255:  # None: a transparent grey
            found.add(TRANSPARENT)
    try:
        if image.getexif().get(0x0112, 1) in range(2, 9):  # orientation
            found.add(ROTATED)
    except Exception:  # as many classes as a decoder raises; the pixels are whole
        found.add(ODD)
    if getattr(image, "n_frames", 1) > 1:
        found.add(FRAMES)
    return found


def encoded(pixels: np.ndarray, form: str, **settings: Any) -> bytes:
    """Return a picture [H,W(,3)] uint8 as a file's bytes; form, settings: of Pillow's writer."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form, **settings)
    return file.getvalue()


# ---- tiles: the few pictures of a run that figures show, as strips of lossless WebP in one file

TILES_FILE = "tiles.npz"
SIDES = ("condition", "sample", "target")
MOST_TILES = 24
"""Items whose pictures a run keeps beside its samples."""
_REMEDY = "Run again with --again, or leave the file away: figures are then drawn without this run."


def write_tiles(path: Path, rows: Mapping[str, np.ndarray], items: Sequence[str]) -> None:
    """Write pictures [N,H,W,3] uint8 of items, by side, as WebP strips; equal pictures give equal bytes."""
    count = min(len(items), 16_383 // rows["sample"].shape[2])  # pixels that a WebP may be wide
    how: dict[str, Any] = {"lossless": True, "quality": 100, "method": 4}
    strips = {side: encoded(np.concatenate(rows[side][:count], axis=1), "WEBP", **how) for side in SIDES}
    arrays = {side: np.frombuffer(strip, np.uint8) for side, strip in strips.items()}
    write_npz(path, {**arrays, "items": np.asarray(items[:count])})


def read_tiles(path: Path) -> dict[str, np.ndarray]:
    """Read a run's strips, which `tile_pictures` decodes; BenchError for a file that holds none."""
    found = read_npz(path)
    kinds = {name: (array.dtype.kind, array.ndim) for name, array in found.items()}
    if kinds != {**dict.fromkeys(SIDES, ("u", 1)), "items": ("U", 1)}:
        raise BenchError(f"{path} holds no tiles ({', '.join(SIDES)}, items). {_REMEDY}")
    return found


def shrunk(images: np.ndarray, *, most: int = LARGEST) -> np.ndarray:
    """Return pictures [N,H,W,3] uint8 with sides of at most so many pixels, as they are where they have."""
    height, width = images.shape[1:3]
    if max(height, width) <= most:
        return images
    size = (max(1, width * most // max(height, width)), max(1, height * most // max(height, width)))
    resized = [Image.fromarray(x).resize(size, Image.Resampling.LANCZOS) for x in images]
    return np.stack([np.asarray(image) for image in resized])


def data_uri(pixels: np.ndarray, form: str = "webp", **settings: Any) -> str:
    """Return a picture [H,W,3] uint8 as a data URI; settings: of Pillow's writer."""
    return f"data:image/{form};base64,{base64.b64encode(encoded(pixels, form, **settings)).decode()}"


def tile_pictures(strips: Mapping[str, np.ndarray], where: object) -> dict[str, np.ndarray]:
    """Return the pictures of strips by side, [N,H,W,3] uint8 each; BenchError for damaged ones."""
    items = [check_name(item) for item in strips["items"].tolist()]
    with refusing(lambda why: f"{where}: a strip of tiles cannot be read ({why}). {_REMEDY}", PictureError):
        rows = {side: _cut(strips[side].astype(np.uint8).tobytes(), len(items)) for side in SIDES}
    if len({images.shape for images in rows.values()}) > 1:
        raise BenchError(f"{where}: strips of tiles differ in size. {_REMEDY}")
    return rows


def _cut(data: bytes, count: int) -> np.ndarray:
    picture = decode(data)
    height, width = picture.pixels.shape[:2]
    if picture.notes or not count or width % count:
        raise PictureError(f"it is no lossless strip of {count} pictures")
    return picture.pixels.reshape(height, count, width // count, 3).swapaxes(0, 1)
