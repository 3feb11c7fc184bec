"""Folders of a user's own images: what is in them, decoded once, and their features.

A manifest takes the images that lie directly in a folder, by suffix, in the order of their names.
What it leaves out (notes, grids in subfolders, hidden files) is counted, never swept in.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bench.content import check_array, digest_arrays, digest_json, read_npz, refusing, sha256_bytes
from bench.data.picture import DROPPED, LOSSY, PictureError, decode, encoded, picture_bytes
from bench.judges import Judge
from bench.metrics.frechet import Moments
from bench.metrics.intervals import FEW_ITEMS
from bench.metrics.paired import pixel_error
from bench.types import BenchError, some

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
STATISTICS = ".npz"
AS_GIVEN = "as given"

Tick = Callable[[int, int], None]
"""Called with how many images are read, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of a folder, sorted by stem and suffix, and what was left out, by kind."""

    folder: Path
    files: tuple[Path, ...]
    skipped: Mapping[str, int]


class Change(NamedTuple):
    """Something that readers of a number do not see: another resizer, another file format.

    says: in words. apply: (image [H,W,3] uint8, side of the judge's input) -> image. generated_only:
    whether it is done to the first folder alone.
    """

    says: str
    apply: Callable[[np.ndarray, int | None], np.ndarray]
    generated_only: bool = False


def _bilinear(image: np.ndarray, side: int | None) -> np.ndarray:
    size = (side, side) if side else image.shape[1::-1]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


CHANGES: Mapping[str, Change] = {
    "resizer": Change("both folders resized by Pillow, bilinear, before the judge", _bilinear),
    "jpeg95": Change(
        "the first folder stored as JPEG, quality 95 (Pillow)",
        lambda image, side: decode(encoded(image, "JPEG", quality=95)).pixels,
        generated_only=True,
    ),
}


class Reading:
    """A folder on its way through the judges: what one pass over it tells.

    digests: SHA-256 of each file. contents: of each file's pixels. sizes: how many images have each
    (height, width); notes: how many have each note of `bench.data.picture`.
    """

    def __init__(
        self, manifest: Manifest, *, judges: Mapping[str, Judge], changes: Mapping[str, Change]
    ) -> None:
        self.manifest, self._judges, self._changes = manifest, judges, changes
        self.digests: list[str] = []
        self.contents: list[str] = []
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.notes: Counter[str] = Counter()
        self._parts: dict[tuple[str, str], list[np.ndarray]] = {}

    def read(self, start: int, batch: int) -> list[np.ndarray]:
        """Decode and judge the next files; none where the folder is at its end."""
        images = []
        for path in self.manifest.files[start : start + batch]:
            try:
                data = picture_bytes(path)
                picture = decode(data)
            except PictureError:
                raise _broken(self.manifest) from None
            self.digests.append(sha256_bytes(data))
            self.contents.append(digest_arrays(pixels=picture.pixels))
            self.sizes[picture.pixels.shape[0], picture.pixels.shape[1]] += 1
            self.notes.update(picture.notes)
            images.append(picture.pixels)
        for role, judge in self._judges.items() if images else ():
            sets = {n: [c.apply(image, judge.side) for image in images] for n, c in self._changes.items()}
            for name, changed in {AS_GIVEN: images, **sets}.items():
                self._parts.setdefault((role, name), []).append(judged(judge, changed, batch=batch))
        return images

    def features(self, role: str, change: str = AS_GIVEN) -> Any:
        """Return features [N,D] float32, None without such a judge; of a change not made, as given."""
        parts = self._parts.get((role, change)) or self._parts.get((role, AS_GIVEN))
        return None if parts is None else np.concatenate(parts)

    @property
    def facts(self) -> dict[str, Any]:
        """What was read, as a JSON value; digest: one SHA-256 over names and contents."""
        names = [readable(path.name) for path in self.manifest.files]
        return {
            "folder": readable(str(self.manifest.folder)),
            "n": len(self.digests),
            "digest": digest_json(dict(zip(names, self.digests, strict=True))),
            "sizes": {f"{width}x{height}": n for (height, width), n in sorted(self.sizes.items())},
            "skipped": dict(self.manifest.skipped),
        }


def manifest_of(folder: Path) -> Manifest:
    """Return the images of a folder; BenchError if there is no such folder or no image in it."""
    if not folder.is_dir():
        raise BenchError(f"there is no folder {folder}. Give two folders of images.")
    with refusing(lambda why: f"{folder} cannot be listed ({why}).", OSError):
        kinds = {path: _kind(path) for path in folder.iterdir()}
    files = sorted((p for p, kind in kinds.items() if not kind), key=lambda path: (path.stem, path.suffix))
    skipped = dict(sorted(Counter(filter(None, kinds.values())).items()))
    if not files:
        why, allowed = left_out(skipped) or "it is empty", ", ".join(SUFFIXES)
        raise BenchError(f"{folder} holds no image ({why}). Allowed: {allowed}, directly in the folder.")
    return Manifest(folder=folder, files=tuple(files), skipped=skipped)


@contextmanager
def opened(path: Path) -> Iterator[Manifest | Moments]:
    """Give what a path stands for: the images of a folder, or what a .npz file holds.

    That is the images of an ADM reference batch (arr_0, [N,H,W,3] uint8), or mean and covariance of
    features (mu [D], sigma [D,D]), as pytorch-fid, clean-fid and EDM write them. BenchError for others.
    """
    if path.suffix.lower() != STATISTICS:
        yield manifest_of(path)
        return
    arrays = read_npz(path)
    held = f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}"
    asked = "neither images (arr_0, [N,H,W,3] uint8) nor statistics (mu [D], sigma [D,D])"
    remedy = "Give such a file, or a folder of images."
    with refusing(lambda why: f"{held}: {asked} ({why}). {remedy}", KeyError, ValueError):
        if "arr_0" in arrays:
            check_array(arrays["arr_0"], "arr_0", dtype=np.uint8, shape=(None, None, None, 3))
        else:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
            check_array(mean, "mu", dtype=np.float64, shape=(None,))
            check_array(covariance, "sigma", dtype=np.float64, shape=(len(mean), len(mean)))
            if not np.isfinite([mean, *covariance]).all():
                raise BenchError("mu or sigma is not finite")
    if "arr_0" not in arrays:
        yield Moments(count=2, mean=mean, scatter=covariance)
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(arrays["arr_0"]):
            Image.fromarray(image).save(Path(folder) / f"{number:08}.png", compress_level=1)
        yield replace(manifest_of(Path(folder)), folder=path)


def _kind(path: Path) -> str:
    """Return what a file is that is no image by its name, "" for an image."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_dir():
        return "subfolder"
    suffix = path.suffix.lower()
    return "" if suffix in SUFFIXES else readable(suffix) or "no suffix"


def readable(name: str) -> str:
    """Return a file's name as text that can be written: bytes that are no UTF-8 become escapes."""
    return name.encode(errors="backslashreplace").decode()


def left_out(skipped: Mapping[str, int]) -> str:
    """Return what a manifest left out, in words; "" for nothing."""
    return ", ".join(f"{count} {kind}" for kind, count in skipped.items())


def paired_stems(first: Manifest, second: Manifest) -> bool:
    """Tell whether both folders hold the same file stems, each once."""
    stems, others = ([path.stem for path in side.files] for side in (first, second))
    return stems == others and len(set(stems)) == len(stems)


def read_folders(
    first: Manifest,
    second: Manifest,
    *,
    judges: Mapping[str, Judge],
    changes: Mapping[str, Change] | None = None,
    batch: int = 32,
    tick: Tick | None = None,
) -> tuple[Reading, Reading, np.ndarray | None]:
    """Read both folders in one pass, each image decoded once, `batch` of them in memory a folder.

    judges: by role ("features", "clip"). changes: what else to judge beside the images as given.
    Returns both readings, and where the stems pair up and all sizes agree the pixel error of each
    pair, [N] float64 in [0, 1], else None. BenchError names broken images.
    """
    changes = changes or {}
    both = {name: change for name, change in changes.items() if not change.generated_only}
    sides = Reading(first, judges=judges, changes=changes), Reading(second, judges=judges, changes=both)
    errors: list[np.ndarray] | None = [] if paired_stems(first, second) else None
    total = len(first.files) + len(second.files)
    for start in range(0, max(len(first.files), len(second.files)), batch):
        pairs = list(zip(*(side.read(start, batch) for side in sides), strict=errors is not None))
        if errors is not None and all(a.shape == b.shape for a, b in pairs):
            errors += [pixel_error(a[None], b[None]) for a, b in pairs]
        else:
            errors = None
        if tick is not None:
            tick(sum(len(side.digests) for side in sides), total)
    return *sides, np.concatenate(errors) if errors else None


def doubts(a: Reading, b: Reading) -> Iterator[str]:
    """Say what makes the numbers less than they seem."""
    fewest = min(len(a.digests), len(b.digests))
    if fewest < FEW_ITEMS:
        yield (
            f"{fewest} images are fewer than {FEW_ITEMS:,}: the Fréchet distance is biased upwards by an "
            "amount that depends on their number; compare it at equal numbers only, and read KID."
        )
    shared = len(set(a.digests) & set(b.digests))
    if shared:
        yield f"{shared} files are in both folders, byte for byte."
    lossy = {(x.notes[LOSSY] > 0, x.notes[LOSSY] < len(x.digests)) for x in (a, b)}
    if len(lossy) > 1:
        yield "only one folder holds lossy files (JPEG, WebP): formats move distances, see --sensitivity."
    for note, meaning in DROPPED.items():
        if a.notes[note] or b.notes[note]:
            yield f"{note} in {a.notes[note]} files of A and {b.notes[note]} of B: {meaning}."
    if set(a.sizes) != set(b.sizes):
        yield "image sizes differ between the folders: resizing moves distances, see --sensitivity."


def judged(judge: Judge, images: Sequence[np.ndarray], *, batch: int) -> np.ndarray:
    """Return the features of images of any sizes, [N,D] float32: those of one size together."""
    order = sorted(range(len(images)), key=lambda row: images[row].shape)
    sets = (np.stack(list(same)) for _, same in groupby((images[row] for row in order), np.shape))
    features = np.concatenate([judge.features(images, batch_size=batch) for images in sets])
    return np.asarray(features[np.argsort(order)])


def _broken(manifest: Manifest) -> BenchError:
    """Build the error that names a folder's broken images, the first ten of them."""
    broken = []
    for path in manifest.files:
        try:
            decode(picture_bytes(path))
        except PictureError as error:
            broken.append(f"{readable(path.name)} ({error})")
    lost = f"{len(broken)} of {len(manifest.files)} images in {manifest.folder} cannot be read"
    remedy = "Restore or remove them; a set without them is another set."
    return BenchError(f"{lost}: {some(broken, most=10, mark='; ')}. {remedy}")
