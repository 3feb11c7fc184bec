"""COCO 2017 as a data set, read item by item from the folder that `bench data prepare coco17` makes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.content import Cache, digest_json, inside, read_json
from bench.data.coco import ATTRIBUTION, MANIFEST, NAME, SETS, TABLES, TRAIN, VAL, VARIABLE
from bench.data.coco.draw import as_example
from bench.data.coco.official import Category
from bench.data.coco.recipe import Recipe
from bench.data.coco.tables import Table, read_table
from bench.data.leaks import Checked, Fingerprints
from bench.data.likeness import GRID, shrink
from bench.data.seen import Seen
from bench.data.splits import Splits, item_digest, side_digest
from bench.data.stored import compare_codes
from bench.picture import read_exact
from bench.types import BenchError, Example

_PREPARE = (
    "Prepare one with `bench data prepare coco17 --root COCO --out FOLDER`, where COCO holds "
    "train2017/, val2017/ and annotations/."
)


class Coco17:
    """A prepared COCO 2017: tables in memory, pictures on disk, each checked when it is read.

    digest: SHA-256 of the manifest, which names the digests of all tables, which hold those of all
    items. protocol: the options it was prepared with, in words. name: says where splits are leaky.
    """

    attribution = ATTRIBUTION

    def __init__(self, folder: str | os.PathLike[str], *, manifest: Mapping[str, Any] | None = None) -> None:
        """Read manifest and tables; BenchError where the folder is not a prepared one, or damaged.

        manifest: of a folder that has none yet, while it is being prepared.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        manifest = manifest or _manifest(path)
        try:
            self.digest = digest_json(manifest)
            self.protocol = {str(k): str(v) for k, v in manifest["protocol"].items()}
            options = manifest["recipe"]
            self.recipe = Recipe(**{**options, "tasks": tuple(options["tasks"])})
            tables = {n: str(manifest["tables"][n]["sha256"]) for n in SETS}
            self.palette = _palette([c["color"] for c in manifest["categories"]])
            self.class_names = ("void", *(str(c["name"]) for c in manifest["categories"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BenchError(f"{path} is incomplete ({error!r}). {_PREPARE}") from error
        self.name = f"{NAME} release-leaky" if self.recipe.leaky else NAME
        self._tables = {
            n: read_table(self.folder / TABLES / f"{n}.npz", sha256=digest)[0] for n, digest in tables.items()
        }
        self._place = {
            item: (name, row) for name, t in self._tables.items() for row, item in enumerate(t.ids)
        }
        self.ids = tuple(self._place)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    def table(self, name: str) -> Table:
        """Return the table of train2017 or val2017."""
        return self._tables[name]

    def __getitem__(self, item_id: str) -> Example:
        """Read one item; KeyError for an unknown id, BenchError for one that is not what it was."""
        name, row = self._place[item_id]
        table = self._tables[name]
        layers = {m: self._picture(m, name, item_id) for m in self.recipe.maps}
        if self.recipe.boxes:
            layers["boxes"] = table.boxes[table.offsets[row] : table.offsets[row + 1]]
        found = as_example(
            item_id,
            caption=table.captions[row],
            image=self._picture("images", name, item_id),
            layers=layers,
            palette=self.palette,
            recipe=self.recipe,
        )
        if item_digest(found) != table.items[row].tobytes().hex():
            raise BenchError(
                f"item {item_id} in {self.folder} is not what was prepared: its files were changed. "
                "Prepare into an empty folder."
            )
        return found

    def item_digests(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content digests of items; KeyError for an unknown id."""
        places = {item: self._place[item] for item in ids}
        return {i: self._tables[n].items[r].tobytes().hex() for i, (n, r) in places.items()}

    def fingerprints(self, ids: Sequence[str]) -> Fingerprints:
        """Return the fingerprints of items, from tables; only train pictures have to be read."""
        places = [self._place[item] for item in ids]
        return Fingerprints(
            ids=tuple(ids),
            captions=tuple(self._tables[n].captions[r] for n, r in places),
            images=tuple(self._tables[n].images[r].tobytes().hex() for n, r in places),
            small=self.small(ids),
        )

    def small(self, ids: Sequence[str]) -> np.ndarray:
        """Return small pictures of items, [N,64,64,3] uint8."""
        found = np.zeros((len(ids), GRID, GRID, 3), np.uint8)
        for place, item in enumerate(ids):
            name, row = self._place[item]
            kept = self._tables[name].small
            found[place] = kept[row] if len(kept) else shrink(self._picture("images", name, item))
        return found

    def compare(
        self,
        train: Sequence[str],
        evaluation: Sequence[str],
        *,
        between: str = "train and evaluation",
        cache: Cache | None = None,
    ) -> Checked:
        """Find what of the train items is among the evaluation items, by stored codes."""
        places = [self._place[item] for item in train]
        codes = [self._tables[n].codes[r] for n, r in places]
        images = [self._tables[n].images[r].tobytes().hex() for n, r in places]
        side = Seen(
            base="",
            about="",
            sha256="",
            names=tuple(train),
            digests=np.zeros((0, 6), np.uint8),
            codes=np.stack(codes) if codes else np.zeros((0, 24), np.uint8),
        )
        return compare_codes(
            side,
            self.fingerprints(evaluation),
            images=images,
            pictures=self.small,
            between=between,
            cache=cache,
        )

    def _picture(self, layer: str, name: str, item: str) -> np.ndarray:
        """Return a stored layer: images [S,S,3] uint8, maps [S,S] uint8."""
        path = inside(self.folder / layer / name, f"{item}.png")
        size = self.recipe.size, self.recipe.size
        mode = "RGB" if layer == "images" else "L"
        return read_exact(path, advice="Prepare into an empty folder.", size=size, mode=mode)


def palette_of(categories: Sequence[Category]) -> np.ndarray:
    """Return the colours of class 0 (void, black) and of the categories, [K,3] uint8, read-only."""
    return _palette([c.colour for c in categories])


def _palette(colours: Sequence[Sequence[int]]) -> np.ndarray:
    palette = np.array([(0, 0, 0), *map(tuple, colours)], np.uint8)
    palette.flags.writeable = False
    return palette


def _manifest(path: Path) -> Any:
    if not path.is_file():
        raise BenchError(f"{path.parent} is not a prepared COCO 2017 (no {MANIFEST}). {_PREPARE}")
    return read_json(path)


def splits_of(data: Coco17) -> Splits:
    """Return the sides of a prepared COCO: val is val2017, train is train2017, and test is empty.

    Where it was prepared as release-leaky, train holds val2017 too, as in the release of BPS.
    """
    train, val = data.table(TRAIN).ids, data.table(VAL).ids
    items = data.item_digests(data.ids)
    sides = {"train": (*train, *val) if data.recipe.leaky else train, "val": val, "test": ()}
    return Splits(
        name=data.name,
        train=tuple(sorted(sides["train"])),
        val=tuple(sorted(val)),
        test=(),
        items=items,
        digests={n: side_digest({i: items[i] for i in ids}) for n, ids in sides.items()},
    )


def find_folder(folder: Path | None) -> Path:
    """Return the prepared folder: as given, else that of BENCH_COCO17; BenchError without either."""
    named = folder or os.environ.get(VARIABLE)
    if not named:
        raise BenchError(
            "suite 'coco17' needs a prepared COCO 2017: give its folder with --data FOLDER or in the "
            f"environment variable {VARIABLE}. {_PREPARE}"
        )
    return Path(named)
