"""The tables of a prepared folder: what is known of its items beside their pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.content import check_array, check_offsets, digest_arrays, read_npz, write_npz
from bench.data.coco.official import Skip
from bench.data.likeness import GRID, shrink
from bench.data.seen import BITS, codes_of
from bench.data.splits import item_digest
from bench.strict import check_name, parse_json, validated
from bench.types import BenchError, Example

_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {  # of a table: dtype, and shape of a row
    "images": (np.uint8, (32,)),
    "items": (np.uint8, (32,)),
    "boxes": (np.int32, (5,)),
    "offsets": (np.int64, ()),
    "codes": (np.uint8, (BITS // 8,)),
    "small": (np.uint8, (GRID, GRID, 3)),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """N items in one order.

    images, items [N,32] uint8: SHA-256 of the pixels, and of image, caption and layers. boxes [M,5]
    int32, those of item i being rows offsets[i] to offsets[i+1]. codes [N,24] uint8: see bench.data.seen.
    small [N,64,64,3] uint8: for near-duplicates; of evaluation sets alone, else [0,64,64,3].
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    images: np.ndarray
    items: np.ndarray
    boxes: np.ndarray
    offsets: np.ndarray
    codes: np.ndarray
    small: np.ndarray

    def keep(self, ids: Sequence[str]) -> Table:
        """Return the rows of some items, in the table's order."""
        wanted = set(ids)
        rows = [row for row, item in enumerate(self.ids) if item in wanted]
        counts = np.diff(self.offsets)[rows]
        boxes = [self.boxes[self.offsets[r] : self.offsets[r + 1]] for r in rows]
        return Table(
            ids=tuple(self.ids[r] for r in rows),
            captions=tuple(self.captions[r] for r in rows),
            images=self.images[rows],
            items=self.items[rows],
            boxes=np.concatenate([*boxes, np.zeros((0, 5), np.int32)]),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            codes=self.codes[rows],
            small=self.small[rows] if len(self.small) else self.small,
        )


def table_of(examples: Sequence[Example], *, small: bool) -> Table:
    """Describe items; small: whether to keep their small pictures."""
    shrunk = [shrink(e.image) for e in examples]
    pictures = np.stack(shrunk) if shrunk else np.zeros((0, GRID, GRID, 3), np.uint8)
    boxes = [e.layers.get("boxes", np.zeros((0, 5), np.int32)) for e in examples]
    counts = [len(b) for b in boxes]
    return Table(
        ids=tuple(e.id for e in examples),
        captions=tuple(e.caption for e in examples),
        images=_digests([digest_arrays(image=e.image) for e in examples]),
        items=_digests([item_digest(e) for e in examples]),
        boxes=np.concatenate([*boxes, np.zeros((0, 5), np.int32)]),
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
        codes=codes_of(pictures),
        small=pictures if small else pictures[:0],
    )


def join(tables: Sequence[Table]) -> Table:
    """Put tables one after another."""
    starts = np.cumsum([0, *(len(t.boxes) for t in tables)])
    offsets = [t.offsets[1:] + s for t, s in zip(tables, starts, strict=False)]
    empty = table_of([], small=True)
    return Table(
        ids=tuple(i for t in tables for i in t.ids),
        captions=tuple(c for t in tables for c in t.captions),
        offsets=np.concatenate([[0], *offsets]).astype(np.int64),
        **{
            name: np.concatenate([getattr(empty, name), *(getattr(t, name) for t in tables)])
            for name in ("images", "items", "boxes", "codes", "small")
        },
    )


def write_table(path: Path, table: Table, *, skipped: Sequence[Skip] = ()) -> None:
    """Write a table atomically, with what was left out beside it."""
    arrays = {name: getattr(table, name) for name in _COLUMNS}
    texts = {
        "ids": "\n".join(table.ids),
        "captions": "\n".join(table.captions),
        "skipped": json.dumps([asdict(s) for s in skipped]),
    }
    arrays |= {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    write_npz(path, arrays)


def read_table(path: Path, *, sha256: str | None = None) -> tuple[Table, tuple[Skip, ...]]:
    """Read a table, and what was left out; BenchError if it is damaged."""
    arrays = read_npz(path, sha256=sha256)
    try:
        texts = {n: bytes(arrays.pop(n)).decode() for n in ("ids", "captions", "skipped")}
        count = len(arrays["items"])
        table = Table(
            ids=tuple(texts["ids"].split("\n")) if count else (),
            captions=tuple(texts["captions"].split("\n")) if count else (),
            **arrays,
        )
        _check(table, count)
        skipped = parse_json(texts["skipped"].encode(), path, remedy="")
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(
            f"{path} is not a table of a prepared COCO ({error}). Prepare the data anew."
        ) from error
    return table, validated(skipped, tuple[Skip, ...], path, remedy="Prepare the data anew.")


def _check(table: Table, count: int) -> None:
    """Raise BenchError unless the columns belong to one table of so many items, each id a name."""
    for item in table.ids:
        check_name(item)
    for name, (dtype, row) in _COLUMNS.items():
        check_array(getattr(table, name), f"'{name}'", dtype=dtype, shape=(None, *row))
    check_offsets(table.offsets, items=count, rows=len(table.boxes))
    lengths = (table.ids, table.captions, table.images, table.codes, set(table.ids))
    if {*map(len, lengths)} != {count} or len(table.small) not in (0, count):
        raise BenchError("its arrays have different lengths, or an id stands twice.")


def _digests(digests: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)
