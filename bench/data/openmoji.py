"""OpenMoji64: 1,871 emoji at 64x64 with the designers' own line drawings, shipped in the package.

Emoji by OpenMoji (https://openmoji.org), CC BY-SA 4.0; built by bench.emoji.openmoji.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import StringConstraints
from typing_extensions import TypedDict

from bench.content import Code, Text, digest_arrays, digest_json, read_json, read_npz, refusing
from bench.data.splits import Splits, load_splits
from bench.types import BenchError, Example

NAME = "openmoji64"
ASSETS = Path(__file__).resolve().parent.parent / "emoji" / "assets"
_REMEDY = (
    "Restore it from the repository, or make it anew with "
    "`python -m bench.emoji.openmoji --package FOLDER --out FOLDER` (see its --help)."
)


class _Class(TypedDict):
    name: Text
    rgb: Annotated[str, StringConstraints(pattern="^#[0-9a-f]{6}$")]


class _Manifest(TypedDict):
    """What the loader needs of the manifest; what else stands in it tells how the data were made."""

    sha256: Code
    content_digest: Code
    attribution: Text
    classes: list[_Class]


class OpenMoji64:
    """The embedded data set, checked against its manifest and held in memory, read-only.

    images [N,64,64,3] uint8 RGB; sketches [N,64,64] uint8 (255 = line, 0 = paper); classes
    [N,64,64] uint8, index into palette [K,3] uint8 and class_names (0 is background); captions:
    N texts; all in the order of `ids` (hexcodes, sorted). digest: SHA-256 of all arrays and of the
    palette with its names.
    attribution: the sentence to print beside published samples.
    Source: OpenMoji 17.0.0, https://openmoji.org, CC BY-SA 4.0.
    """

    name = NAME

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Load from a folder (default: the shipped assets); BenchError if missing or damaged."""
        root = Path(folder) if folder is not None else ASSETS
        path = root / f"{NAME}.manifest.json"
        with refusing(lambda why: f"the data set {NAME} cannot be loaded: {why} {_REMEDY}", BenchError):
            manifest: _Manifest = read_json(path, of=_Manifest, remedy="")
            arrays = read_npz(root / f"{NAME}.npz", sha256=manifest["sha256"])
            if digest_arrays(**arrays) != manifest["content_digest"]:
                raise BenchError(f"the content digest of {path} is not that of the arrays.")
        classes = manifest["classes"]
        self.digest = digest_json({"arrays": manifest["content_digest"], "classes": classes})
        self.attribution = manifest["attribution"]
        self.class_names = tuple(entry["name"] for entry in classes)
        self.palette = np.array([tuple(bytes.fromhex(c["rgb"][1:])) for c in classes], np.uint8)
        self.ids = tuple(arrays["ids"].tolist())
        self.captions = tuple(arrays["captions"].tolist())
        self.images, self.sketches, self.classes = (arrays[n] for n in ("images", "sketches", "classes"))
        self._boxes, self._offsets = arrays["boxes"], arrays["box_offsets"]
        for array in (self.images, self.sketches, self.classes, self._boxes, self.palette):
            array.flags.writeable = False
        self._row = {item: row for row, item in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return the rows of several items, [M] int64; KeyError for an unknown id."""
        return np.array([self._row[item] for item in item_ids], dtype=np.int64)

    def boxes(self, item_id: str) -> np.ndarray:
        """Return an item's boxes, [M,5] uint8: class, x0, y0, x1, y1 (x1, y1 exclusive)."""
        row = self._row[item_id]
        return self._boxes[self._offsets[row] : self._offsets[row + 1]]

    def __getitem__(self, item_id: str) -> Example:
        """Return one item with layers sketch, classes, boxes, and the palette; KeyError if unknown."""
        row = self._row[item_id]
        layers = {"sketch": self.sketches[row], "classes": self.classes[row], "boxes": self.boxes(item_id)}
        caption, image = self.captions[row], self.images[row]
        return Example(id=item_id, caption=caption, image=image, layers=layers, palette=self.palette)


def openmoji64_splits(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Load the committed sides of OpenMoji64; BenchError if missing or changed."""
    root = Path(folder) if folder is not None else ASSETS
    return load_splits(root / f"{NAME}.splits.json")
