"""OpenMoji64: 1,871 emoji at 64x64 with the designers' own line drawings, shipped in the package.

Emoji by OpenMoji (https://openmoji.org), CC BY-SA 4.0; built by bench.emoji.openmoji.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bench.content import check_array, check_offsets, digest_arrays, digest_json, read_json, read_npz
from bench.data.splits import Splits, load_splits
from bench.strict import check_name
from bench.types import BenchError, Example

NAME = "openmoji64"
ASSETS = Path(__file__).resolve().parent.parent / "emoji" / "assets"
_COLUMNS: dict[str, tuple[type, tuple[int | None, ...]]] = {  # beside ids and captions
    "images": (np.uint8, (None, 64, 64, 3)),
    "sketches": (np.uint8, (None, 64, 64)),
    "classes": (np.uint8, (None, 64, 64)),
    "boxes": (np.uint8, (None, 5)),
    "box_offsets": (np.int32, (None,)),
}
_REMEDY = (
    "Restore it from the repository, or make it anew with "
    "`python -m bench.emoji.openmoji --package FOLDER --out FOLDER` (see its --help)."
)


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
        try:
            manifest = read_json(root / f"{NAME}.manifest.json")
            arrays = read_npz(root / f"{NAME}.npz", sha256=str(manifest["sha256"]))
            self.ids = tuple(check_name(str(item)) for item in arrays["ids"])
            self.captions = tuple(str(text) for text in arrays["captions"])
            self.class_names = tuple(str(entry["name"]) for entry in manifest["classes"])
            colours = [bytes.fromhex(entry["rgb"].lstrip("#")) for entry in manifest["classes"]]
            self.palette = np.array([tuple(colour) for colour in colours], dtype=np.uint8)
            if digest_arrays(**arrays) != manifest["content_digest"]:
                raise BenchError("the manifest's content digest is not that of the arrays.")
            self.digest = digest_json({"arrays": manifest["content_digest"], "classes": manifest["classes"]})
            self.attribution = str(manifest["attribution"])
            for name, (dtype, shape) in _COLUMNS.items():
                check_array(arrays[name], f"'{name}'", dtype=dtype, shape=shape)
            self.images, self.sketches, self.classes, self._boxes, self._offsets = (
                arrays[name] for name in _COLUMNS
            )
            check_offsets(self._offsets, items=len(self.ids), rows=len(self._boxes))
            lengths = (set(self.ids), self.captions, self.images, self.sketches, self.classes)
            if {*map(len, lengths)} != {len(self.ids)}:
                raise BenchError("its arrays have different lengths, or an id stands twice.")
        except BenchError as error:
            raise BenchError(f"the data set {NAME} cannot be loaded: {error} {_REMEDY}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BenchError(f"the manifest in {root} is incomplete ({error!r}). {_REMEDY}") from (error)
        for array in (self.images, self.sketches, self.classes, self._boxes, self.palette):
            array.flags.writeable = False
        self._row = {item: row for row, item in enumerate(self.ids)}

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def row(self, item_id: str) -> int:
        """Return the row of an item in the arrays; KeyError for an unknown id."""
        return self._row[item_id]

    def rows(self, item_ids: tuple[str, ...] | list[str]) -> np.ndarray:
        """Return the rows of several items, [M] int64; KeyError for an unknown id."""
        return np.array([self._row[item] for item in item_ids], dtype=np.int64)

    def boxes(self, item_id: str) -> np.ndarray:
        """Return an item's boxes, [M,5] uint8: class, x0, y0, x1, y1 (x1, y1 exclusive)."""
        row = self._row[item_id]
        return self._boxes[self._offsets[row] : self._offsets[row + 1]]

    def __getitem__(self, item_id: str) -> Example:
        """Return one item with layers sketch, classes, boxes, and the palette; KeyError if unknown."""
        row = self._row[item_id]
        layers = {
            "sketch": self.sketches[row],
            "classes": self.classes[row],
            "boxes": self.boxes(item_id),
        }
        return Example(
            id=item_id,
            caption=self.captions[row],
            image=self.images[row],
            layers=layers,
            palette=self.palette,
        )


def openmoji64_splits(folder: str | os.PathLike[str] | None = None) -> Splits:
    """Load the committed sides of OpenMoji64; BenchError if missing or changed."""
    root = Path(folder) if folder is not None else ASSETS
    return load_splits(root / f"{NAME}.splits.json")
