"""COCO 2017 as a data set, read item by item from the folder that `bench data prepare coco17` makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from typing_extensions import TypedDict

from bench import content
from bench.content import Cache, FromFile, Text, Whole, digest_arrays, digest_json
from bench.data.coco import CELLS, MANIFEST, NAME, SETS, TRAIN, VAL, Recipe
from bench.data.coco.draw import palette_of, redrawer
from bench.data.coco.official import Category
from bench.data.leaks import BITS, Fingerprints, codes_of, compare
from bench.data.likeness import GRID, shrink
from bench.data.picture import read_exact
from bench.data.splits import OnDemand, Splits, item_digest, on_disk
from bench.metrics.regions import coarse_colours
from bench.randomness import pick_items
from bench.types import BenchError, Example

VARIABLE = "BENCH_COCO17"
_SMALL = (GRID, GRID, 3)
SCHEMA = 3  # of a prepared folder: 1 had tables of another format, 2 one caption and no digests of maps
_IMAGES = "images"
_HELD_OUT = 24  # one in so many of train2017 is for choosing on: as many as val2017 has
ATTRIBUTION = (
    "Captions and annotations: COCO 2017 (https://cocodataset.org), CC BY 4.0; images: Flickr users, "
    "each under the licence its COCO entry names."
)
_KINDS = {
    "id": pa.string(),
    "caption": pa.string(),
    "captions": pa.list_(pa.string()),
    "image": pa.binary(32),
    "maps": pa.list_(pa.binary(32)),
    "item": pa.binary(32),
    "boxes": pa.list_(pa.int32()),
    "code": pa.binary(BITS // 8),
    "small": pa.binary(GRID * GRID * 3),
}
_COLUMNS = pa.schema([pa.field(name, kind, nullable=name == "small") for name, kind in _KINDS.items()])
_ANEW = "Prepare the data anew, into an empty folder."
_PREPARE = (
    "Prepare one with `bench data prepare coco17 --root COCO --out FOLDER`, where COCO holds "
    "train2017/, val2017/ and annotations/."
)


class TableFile(TypedDict):
    """Which table a manifest means: its SHA-256 and how many items it has."""

    sha256: Text
    items: Whole


@dataclass(frozen=True, kw_only=True)
class Manifest(FromFile):
    """What a prepared folder says of itself: options, in words too, sources, classes, tables by set."""

    schema: Whole
    name: Text
    recipe: Recipe
    protocol: dict[str, Text]
    source: dict[str, Text]
    attribution: Text
    categories: tuple[Category, ...]
    tables: dict[str, TableFile]
    skipped: dict[str, Any]


class Coco17:
    """A prepared COCO 2017: tables in memory, pictures on disk, each checked when it is read.

    digest: SHA-256 of the manifest, which names the digests of all tables, which hold those of all
    items. protocol: the options it was prepared with, in words. name: says where splits are leaky.
    """

    attribution = ATTRIBUTION

    def __init__(self, folder: str | os.PathLike[str], *, manifest: Any = None) -> None:
        """Read manifest (given while it is being prepared) and tables; BenchError where none, or damaged."""
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if manifest is None and not path.is_file():
            raise BenchError(f"{folder} is not a prepared COCO 2017 (no {MANIFEST}). {_PREPARE}")
        value = content.read_json(path) if manifest is None else manifest
        if isinstance(value, dict) and value.get("schema") != SCHEMA:
            raise BenchError(f"{folder} was prepared by another version of this program. {_ANEW}")
        found: Manifest = content.validated(value, Manifest, path, remedy=_PREPARE)
        self.digest, self.protocol, self.recipe = digest_json(value), found.protocol, found.recipe
        self.palette = palette_of(found.categories)
        self.class_names = ("void", *(category.name for category in found.categories))
        self._redraw = redrawer(self.recipe, self.protocol)
        self.name = f"{NAME} release-leaky" if self.recipe.leaky else NAME
        if set(found.tables) != set(SETS):
            raise BenchError(f"{path} names other tables than {', '.join(SETS)}. {_ANEW}")
        self.sides = {
            name: rows_of(read_table(table_path(self.folder, name), sha256=found.tables[name]["sha256"]))
            for name in SETS
        }
        self._place = {item: (name, row) for name in SETS for item, row in self.sides[name].items()}
        self.ids = tuple(self._place)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item_id: str) -> Example:
        """Return an item, its pictures read when asked (BenchError if changed); KeyError if unknown."""
        row, recipe = self._place[item_id][1], self.recipe
        read = {layer: cache(partial(self._picture, layer, item_id)) for layer in (_IMAGES, *recipe.maps)}
        layers: dict[str, Callable[[], np.ndarray]] = {layer: read[layer] for layer in recipe.maps}
        if recipe.boxes:
            layers["boxes"] = lambda: np.array(row["boxes"], np.int32).reshape(-1, 5)
        if "drawing" in recipe.tasks:
            layers["colours"] = lambda: coarse_colours(read[_IMAGES](), cells=CELLS)
        return on_disk(
            read[_IMAGES],
            (recipe.size, recipe.size, 3),
            id=item_id,
            caption=row["caption"],
            layers=OnDemand(layers),
            palette=self.palette if len(self.palette) > 1 else None,
            photo=True,
            redraw=self._redraw,
            class_names=self.class_names,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pass the folder to another process, which reads its tables once."""
        return _opened, (self.folder,)

    def captions_of(self, item_id: str) -> Sequence[str]:
        """Return all captions of an item; KeyError for an unknown id."""
        captions: Sequence[str] = self._place[item_id][1]["captions"]
        return captions

    def contents(self, ids: Sequence[str]) -> list[str]:
        """Return of each item a digest of image and caption, all that an encoder sees; KeyError as above."""
        rows = [self._place[item][1] for item in ids]
        return [digest_json([row["image"].hex(), row["caption"]]) for row in rows]

    def item_digests(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content digests of items; KeyError for an unknown id."""
        return {item: self._place[item][1]["item"].hex() for item in ids}

    def fingerprints(self, ids: Sequence[str]) -> Fingerprints:
        """Return the fingerprints of items, from tables; of few pictures of train2017 will more be read."""
        rows = [self._place[item][1] for item in ids]
        codes = np.frombuffer(b"".join(row["code"] for row in rows), np.uint8)
        return Fingerprints(
            ids=tuple(ids),
            captions=tuple(row["caption"] for row in rows),
            images=tuple(row["image"].hex() for row in rows),
            codes=codes.reshape(-1, BITS // 8),
            pictures=self._small,
        )

    def _small(self, ids: Sequence[str]) -> np.ndarray:
        """Return small pictures of items, [N,64,64,3] uint8."""
        kept = [(item, self._place[item][1]["small"]) for item in ids]
        small = [np.frombuffer(s, np.uint8) if s else shrink(self._picture(_IMAGES, i)) for i, s in kept]
        return np.array([picture.reshape(_SMALL) for picture in small], np.uint8).reshape(-1, *_SMALL)

    def _picture(self, layer: str, item: str) -> np.ndarray:
        """Return a stored layer: images [S,S,3] uint8, maps [S,S] uint8; BenchError where it was changed."""
        (name, row), image, side = self._place[item], layer == _IMAGES, self.recipe.size
        path = content.inside(self.folder / layer / name, f"{item}.png")
        pixels = read_exact(path, advice=_ANEW, size=(side, side), mode="RGB" if image else "L")
        kept = dict(zip((_IMAGES, *self.recipe.maps), (row["image"], *row["maps"]), strict=False))
        if digest_arrays(image=pixels) != kept[layer].hex():
            raise BenchError(f"item {item} is not what was prepared: {path} was changed. {_ANEW}")
        return pixels


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Coco17:
    return Coco17(folder)


def splits_of(data: Coco17, *, tune: bool = False) -> Splits:
    """Return the sides of a prepared COCO: val is val2017, train is train2017, and test is empty.

    Where it was prepared as release-leaky, train holds val2017 too, as in the release of BPS. tune: take
    pictures out of train to choose on; what looks like one of them is then left out of train.
    """
    train, val = tuple(data.sides[TRAIN]), tuple(data.sides[VAL])
    sides = {"train": data.ids if data.recipe.leaky else train, "val": val, "test": ()}
    splits = Splits.of(data.name, {side: data.item_digests(ids) for side, ids in sides.items()}, groups={})
    if not tune:
        return splits
    held = pick_items(train, max(1, len(train) // _HELD_OUT))
    left = sorted({*splits.train} - {*held})
    found = compare(data.fingerprints(left), data.fingerprints(held), cache=Cache()).findings
    return splits.held_out(held, besides={first for finding in found for first, _ in finding.pairs})


def find_folder(folder: Path | None) -> Path:
    """Return the prepared folder: as given, else that of BENCH_COCO17; BenchError without either."""
    named = folder or os.environ.get(VARIABLE)
    if not named:
        where = f"with --data FOLDER or in the environment variable {VARIABLE}"
        raise BenchError(f"suite 'coco17' needs a prepared COCO 2017: give its folder {where}. {_PREPARE}")
    return Path(named)


def table_path(folder: Path, name: str) -> Path:
    """Return where the table of a set lies in a prepared folder."""
    return folder / "tables" / f"{name}.parquet"


def table_of(
    examples: Sequence[Example],
    *,
    small: bool,
    maps: Sequence[str] = (),
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Return what is kept of items beside their pictures as a pyarrow table, a row an item.

    captions: all of each item, by id; its one where None. maps: the layers that are stored.
    image, maps, item: SHA-256 of the pixels, of each map, and of image, caption and layers. boxes: [M,5]
    int32, flat. code: see bench.data.leaks. small: [64,64,3] uint8 for near-duplicates; kept of evaluation
    sets alone.
    """
    shrunk = [shrink(e.image) for e in examples]
    columns = {
        "id": [e.id for e in examples],
        "caption": [e.caption for e in examples],
        "captions": [[e.caption] if captions is None else list(captions[e.id]) for e in examples],
        "image": [bytes.fromhex(digest_arrays(image=e.image)) for e in examples],
        "maps": [[bytes.fromhex(digest_arrays(image=e.layers[m])) for m in maps] for e in examples],
        "item": [bytes.fromhex(item_digest(e)) for e in examples],
        "boxes": [e.layers["boxes"].ravel().tolist() if "boxes" in e.layers else [] for e in examples],
        "code": [code.tobytes() for code in codes_of(np.array(shrunk, np.uint8))],
        "small": [picture.tobytes() if small else None for picture in shrunk],
    }
    return pa.table(columns, schema=_COLUMNS)


def write_table(path: Path, table: Any) -> None:
    """Write a pyarrow table as Parquet, atomically; equal tables give equal bytes."""
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer)
    content.atomic_write(path, buffer.getvalue().to_pybytes())


def read_table(path: Path, *, sha256: str | None = None) -> Any:
    """Read a table that `write_table` wrote; BenchError if it is damaged or of another form."""
    kinds = OSError, ValueError, pa.ArrowException
    with content.refusing(lambda why: f"{path} is no table of a prepared COCO ({why}). {_ANEW}", *kinds):
        data = path.read_bytes()
        if sha256 is not None and content.sha256_bytes(data) != sha256:
            raise BenchError("it is not the file its record names")
        table = parquet.read_table(pa.BufferReader(data))
        table.validate(full=True)
        if not table.schema.equals(_COLUMNS):
            raise BenchError("it has other columns")
    return table


def rows_of(table: Any) -> Mapping[str, dict[str, Any]]:
    """Return the rows of a table by id; BenchError for what is no id, and for one that stands twice."""
    rows = {content.check_name(row["id"]): row for row in table.to_pylist()}
    if len(rows) < table.num_rows or any(len(row["boxes"]) % 5 for row in rows.values()):
        raise BenchError(f"a table of a prepared COCO has an id twice, or boxes of no five numbers. {_ANEW}")
    return rows
