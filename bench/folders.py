"""Folders of a user's own images: what is in them, decoded once, and their features.

A manifest takes the images that lie directly in a folder, by suffix, in the order of their names.
What it leaves out (notes, grids in subfolders, hidden files) is counted, never swept in.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.content import digest_json
from bench.judges import Judge
from bench.metrics.paired import pixel_error
from bench.types import BenchError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LOSSY = (".jpg", ".jpeg", ".webp")
AS_GIVEN = "as given"
_NAMED = 10
_RANGE = 65535

Tick = Callable[[int, int], None]
"""Called with how many images are read, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of a folder, sorted by stem and suffix, and what was left out, by kind."""

    folder: Path
    files: tuple[Path, ...]
    skipped: Mapping[str, int]

    @property
    def stems(self) -> tuple[str, ...]:
        """File names without their suffix."""
        return tuple(path.stem for path in self.files)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that readers of a number do not see: another resizer, another file format.

    says: in words. apply: (image [H,W,3] uint8, side of the judge's input) -> image. generated_only:
    whether it is done to the first folder alone.
    """

    says: str
    apply: Callable[[np.ndarray, int | None], np.ndarray]
    generated_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one pass over a folder found.

    features: (judge, change) -> [N,D] float32. digests: SHA-256 of each file. sizes: how many images
    have each (height, width).
    """

    manifest: Manifest
    features: Mapping[tuple[str, str], np.ndarray]
    digests: tuple[str, ...]
    sizes: Mapping[tuple[int, int], int]

    @property
    def digest(self) -> str:
        """One SHA-256 over names and contents."""
        names = [path.name for path in self.manifest.files]
        return digest_json(dict(zip(names, self.digests, strict=True)))


def manifest_of(folder: Path) -> Manifest:
    """Return the images of a folder; BenchError if there is no such folder or no image in it."""
    if not folder.is_dir():
        raise BenchError(f"there is no folder {folder}. Give two folders of images.")
    files, skipped = [], Counter[str]()
    for path in folder.iterdir():
        if path.name.startswith("."):
            skipped["hidden"] += 1
        elif path.is_dir():
            skipped["subfolder"] += 1
        elif path.suffix.lower() in SUFFIXES:
            files.append(path)
        else:
            skipped[path.suffix.lower() or "no suffix"] += 1
    if not files:
        raise BenchError(
            f"{folder} holds no image ({left_out(skipped) or 'it is empty'}). Allowed: "
            f"{', '.join(SUFFIXES)}, directly in the folder."
        )
    files.sort(key=lambda path: (path.stem, path.suffix))
    return Manifest(folder=folder, files=tuple(files), skipped=dict(sorted(skipped.items())))


def left_out(skipped: Mapping[str, int]) -> str:
    """Return what a manifest left out, in words; "" for nothing."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))


def paired_stems(first: Manifest, second: Manifest) -> bool:
    """Tell whether both folders hold the same file stems, each once."""
    return first.stems == second.stems and len(set(first.stems)) == len(first.stems)


def decode(data: bytes) -> np.ndarray:
    """Decode an image file, [H,W,3] uint8 RGB; OSError or ValueError for what is broken.

    Transparency is dropped, as torch-fidelity and clean-fid do. 16-bit grey is scaled to 8 bits,
    where Pillow's own conversion would cut it at 255. Pixels of 32 bits have no known range.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "F":
            raise ValueError("pixels of 32-bit floats have no known range")
        if not image.mode.startswith("I"):
            return np.asarray(image.convert("RGB"))
        values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > _RANGE:
        raise ValueError("pixels of 32-bit integers have no known range")
    grey = np.rint(values * (255 / _RANGE)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


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
    sides = [
        _Side(manifest, generated=generated, judges=judges, changes=changes or {})
        for manifest, generated in ((first, True), (second, False))
    ]
    errors: list[np.ndarray] | None = [] if paired_stems(first, second) else None
    total = len(first.files) + len(second.files)
    for start in range(0, max(len(first.files), len(second.files)), batch):
        images, others = (side.read(start, batch) for side in sides)
        if errors is not None and all(a.shape == b.shape for a, b in zip(images, others, strict=True)):
            errors += [pixel_error(a[None], b[None]) for a, b in zip(images, others, strict=True)]
        else:
            errors = None
        if tick is not None:
            tick(sum(len(side.digests) for side in sides), total)
    return sides[0].reading(), sides[1].reading(), np.concatenate(errors) if errors else None


class _Side:
    """One folder on its way through the judges."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        generated: bool,
        judges: Mapping[str, Judge],
        changes: Mapping[str, Change],
    ) -> None:
        self.manifest, self.judges = manifest, judges
        self.changes = {n: c for n, c in changes.items() if generated or not c.generated_only}
        self.all_changes = tuple(changes)
        self.digests: list[str] = []
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.parts: dict[tuple[str, str], list[np.ndarray]] = {}

    def read(self, start: int, batch: int) -> list[np.ndarray]:
        """Decode and judge the next files; none where the folder is at its end."""
        images = []
        for digest, image in _decoded(self.manifest.files[start : start + batch], self.manifest):
            self.digests.append(digest)
            self.sizes[image.shape[0], image.shape[1]] += 1
            images.append(image)
        if images:
            self._judge(images, batch)
        return images

    def _judge(self, images: Sequence[np.ndarray], batch: int) -> None:
        for role, judge in self.judges.items():
            self._keep(role, AS_GIVEN, judged(judge, images, batch=batch))
            for name, change in self.changes.items():
                changed = [change.apply(image, judge.side) for image in images]
                self._keep(role, name, judged(judge, changed, batch=batch))

    def _keep(self, role: str, change: str, features: np.ndarray) -> None:
        self.parts.setdefault((role, change), []).append(features)

    def reading(self) -> Reading:
        """Return what was found; a change that was not made here leaves the images as given."""
        features = {key: np.concatenate(parts) for key, parts in self.parts.items()}
        for role in self.judges:
            for name in self.all_changes:
                features.setdefault((role, name), features[role, AS_GIVEN])
        return Reading(
            manifest=self.manifest, features=features, digests=tuple(self.digests), sizes=self.sizes
        )


def judged(judge: Judge, images: Sequence[np.ndarray], *, batch: int) -> np.ndarray:
    """Return the features of images of any sizes, [N,D] float32: those of one size together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(row)
    found: list[np.ndarray] = [np.empty(0)] * len(images)
    for rows in by_shape.values():
        features = judge.features(np.stack([images[row] for row in rows]), batch_size=batch)
        for row, feature in zip(rows, features, strict=True):
            found[row] = feature
    return np.stack(found)


_BROKEN = (OSError, ValueError, SyntaxError)  # Pillow raises all three for damaged files


def _decoded(files: Sequence[Path], whole: Manifest) -> Iterator[tuple[str, np.ndarray]]:
    """Give digest and image of each file; at the first broken one, name all of the folder."""
    for path in files:
        data = path.read_bytes()
        try:
            image = decode(data)
        except (*_BROKEN, _bomb()):
            raise _broken(whole) from None
        yield hashlib.sha256(data).hexdigest(), image


def _bomb() -> type[Exception]:
    from PIL import Image

    return Image.DecompressionBombError


def _broken(manifest: Manifest) -> BenchError:
    """Build the error that names a folder's broken images, the first ten of them."""
    found = []
    for path in manifest.files:
        try:
            decode(path.read_bytes())
        except (*_BROKEN, _bomb()) as error:
            found.append(f"{path.name} ({error})")
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return BenchError(
        f"{len(found)} of {len(manifest.files)} images in {manifest.folder} cannot be read: "
        f"{'; '.join(found[:_NAMED])}{more}. Restore or remove them; a set without them is another set."
    )
