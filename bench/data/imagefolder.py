"""The user's own pictures with captions, and conditions where they have them: suite `folder`.

What diffusers' training scripts take is read by the `datasets` library: a folder of pictures with
metadata.jsonl, .csv or .parquet, one that `save_to_disk` wrote, or a hub id. Nothing is written into it.

An item is named by its picture, which decides its side too: the same pictures fall on the same sides in
any order, on any machine. What the leak check would find on two sides (see bench.data.leaks) is brought
together on the first of them; near-duplicates of one side share a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from bench.content import Cache, digest_json, refusing, sha256_bytes
from bench.data.coco import Recipe
from bench.data.coco.draw import canny_lines, describe_sketch, frame_of, redrawer
from bench.data.leaks import BITS, LIMITS, Fingerprints, codes_of, compare, fingerprints_of
from bench.data.likeness import GRID, alike, shrink
from bench.data.picture import PictureError, decode
from bench.data.splits import SIDES, OnDemand, Splits
from bench.judges import NETWORKS, need_file
from bench.types import BenchError, Example, some

NAME = "folder"
_CONDITION = "conditioning_image"
LEAST = 20  # pictures; fewer leave no side to evaluate on
_MOST_PAIRS = 5_000  # items of a side that are compared with each other
_LEAST_ON = {"train": 1, "test": 10}  # with fewer evaluation items no interval can be made
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a folder is read: columns, size in pixels of a side, and shares of train, val and test.

    condition: the column of conditioning pictures, None for conditioning_image where it is there. lines: what
    draws sketches. strict: broken pictures are refused, not left out.
    """

    image: str = "image"
    caption: str = "text"
    condition: str | None = None
    lines: str = "canny"
    size: int = 512
    shares: tuple[float, ...] = (0.6, 0.1, 0.3)
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse shares that are none, and sizes that no autoencoder takes."""
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-9:
            given, asked = ",".join(f"{s:g}" for s in self.shares), "three shares above 0 that add up to 1"
            raise BenchError(f"--shares {given}: give {asked}, of train, val and test, such as 0.6,0.1,0.3.")
        if self.size <= 0 or self.size % 64:
            raise BenchError(f"--resolution {self.size}: give a multiple of 64 pixels, such as 512.")

    @property
    def words(self) -> dict[str, str]:
        """What of it can move a number, in words, as a protocol holds it."""
        return {
            "columns": ", ".join(filter(None, (self.image, self.caption, self.condition))),
            "pictures": f"middle square, resized to {self.size} px (Lanczos)",
            "sides": f"by content, {' : '.join(f'{share:g}' for share in self.shares)}",
        }


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row before its pictures are decoded; sources, sha256: of the picture and its condition, if any."""

    name: str
    caption: str
    sources: tuple[Any, ...]
    sha256: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.sha256[0][:16]

    @property
    def digest(self) -> str:
        return digest_json({"caption": self.caption, "pictures": self.sha256})


class ImageFolder:
    """Pictures [S,S,3] uint8, cut to their middle square and resized, with captions and layers.

    layers: "condition" [S,S,4] uint8 where a column has it (grey as equal colours, without transparency
    opaque); "sketch" [S,S] uint8, drawn when it is asked for, those of a network once. digest: SHA-256 of all
    items and of how they are read. left_out: reason -> file names. protocol: see Reading.words.
    """

    name = NAME

    def __init__(self, source: str | Path, reading: Reading | None = None, *, cache: Cache | None = None):
        """Read all rows and the bytes of their pictures; BenchError where that cannot be.

        source: a folder, or a hub id. cache: for which pictures are broken, their codes and drawn lines.
        """
        self.source, self.reading, self._cache = str(source), reading or Reading(), cache or Cache()
        self._redraw, drawn_by = _lines_of(self.reading)
        table = _table(self.source)
        if self.reading.condition is None and _CONDITION in table.column_names:
            self.reading = replace(self.reading, condition=_CONDITION)
        rows: dict[str, _Row] = {}
        twice = []
        for row in _read_rows(table, self.source, self.reading):
            if rows.setdefault(row.id, row) is not row:
                twice.append(row.name)
        self._rows = rows
        ids = sorted(rows)
        codes, whole = self._survey(ids)
        broken = [rows[item].name for item, there in zip(ids, whole, strict=True) if not there]
        if broken and self.reading.strict:
            raise BenchError(f"{len(broken)} pictures of {source} cannot be read: {some(broken)}.")
        self.ids = tuple(item for item, there in zip(ids, whole, strict=True) if there)
        self._codes = dict(zip(self.ids, codes[whole], strict=True))
        reasons = {"the same picture again": twice, "broken": broken}
        self.left_out = {reason: tuple(names) for reason, names in reasons.items() if names}
        if len(self.ids) < LEAST:
            told = "".join(f"; left out as {why}: {some(names)}" for why, names in self.left_out.items())
            needed = f"At least {LEAST} are needed, to train on some and evaluate on others. Bring more."
            raise BenchError(f"{source} holds {len(self.ids)} usable pictures{told}. {needed}")
        self.protocol = self.reading.words | drawn_by
        self.digest = digest_json({"items": self.item_digests(self.ids), "read": self.protocol})

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item_id: str) -> Example:
        """Read one item; KeyError for an unknown id, BenchError where its files were changed."""
        row = self._rows[item_id]
        image, *conditions = self._pictures(row)
        pixels = image[..., :3]
        given: dict[str, Any] = {"condition": lambda: conditions[0]} if conditions else {}
        layers = OnDemand({**given, "sketch": lambda: self._sketch(row, pixels)})
        drawn: dict[str, Any] = {"image": pixels, "layers": layers, "redraw": self._redraw}
        return Example(id=item_id, caption=row.caption, photo=True, **drawn)

    def item_digests(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content digests of items; KeyError for an unknown id."""
        return {item: self._rows[item].digest for item in ids}

    def fingerprints(self, ids: Sequence[str]) -> Fingerprints:
        """Return the fingerprints of items; small pictures are read when they are asked for."""
        return Fingerprints(
            ids=tuple(ids),
            captions=tuple(self._rows[item].caption for item in ids),
            images=tuple(self._rows[item].sha256[0] for item in ids),
            codes=np.array([self._codes[item] for item in ids], np.uint8).reshape(-1, BITS // 8),
            pictures=self._small,
        )

    @cached_property
    def splits(self) -> Splits:
        """The sides: by content, near-duplicates together; BenchError where one is left empty."""
        edges = np.cumsum(self.reading.shares)[:-1]
        sides: dict[str, list[str]] = {side: [] for side in SIDES}
        for item in self.ids:
            sides[SIDES[int(np.searchsorted(edges, int(item, 16) / 16**16, side="right"))]].append(item)
        pairs = list(combinations(SIDES, 2))
        for _ in range(_ROUNDS):
            if not any([self._join(sides, *pair) for pair in pairs]):
                break
        few = {side: len(sides[side]) for side, least in _LEAST_ON.items() if len(sides[side]) < least}
        if few:
            left = " and ".join(f"{count} for {side}" for side, count in few.items())
            shares = ",".join(f"{share:g}" for share in self.reading.shares)
            raise BenchError(
                f"{len(self.ids)} pictures of {self.source} leave {left} once near-duplicates are on one "
                f"side; test needs {_LEAST_ON['test']}. Bring more, or other --shares, now {shares}."
            )
        groups = {item: group for ids in sides.values() for item, group in self._groups(ids).items()}
        return Splits.of(NAME, {side: self.item_digests(ids) for side, ids in sides.items()}, groups=groups)

    @property
    def manifest(self) -> dict[str, Any]:
        """What was read, as JSON values: file, side and digest of each item, and what was left out."""
        items = {
            item: {"file": self._rows[item].name, "side": side, "sha256": self._rows[item].sha256[0]}
            for side in SIDES
            for item in self.splits.side(side)
        }
        left_out = {reason: list(names) for reason, names in self.left_out.items()}
        return {"source": Path(self.source).name, "read": self.protocol, "items": items, "left out": left_out}

    def _join(self, sides: dict[str, list[str]], first: str, second: str) -> bool:
        """Move what of the second side the leak check finds on the first; return whether there was any."""
        prints = [fingerprints_of(self, sides[side]) for side in (first, second)]
        leaks = [found for found in compare(*prints, cache=self._cache).findings if found.leak]
        moved = {item for found in leaks for _, item in found.pairs}
        sides[first] += sorted(moved)
        sides[second] = [item for item in sides[second] if item not in moved]
        return bool(moved)

    def _groups(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the group of each item of a side, named by its first item."""
        group = {item: item for item in ids}
        if len(ids) <= _MOST_PAIRS:
            small = self._small(ids)
            for i, j, value in zip(*alike(small, small), strict=True):
                old, new = sorted((group[ids[i]], group[ids[j]]), reverse=True)
                if value > LIMITS["image"] and old != new:
                    group = {item: new if name == old else name for item, name in group.items()}
        return group

    def _survey(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of pictures, [N,24] uint8, and which can be read, [N] bool; kept by content."""
        digests = [self._rows[item].sha256 for item in ids]

        def make() -> dict[str, np.ndarray]:
            codes, whole = np.zeros((len(ids), BITS // 8), np.uint8), np.ones(len(ids), bool)
            for place, item in enumerate(ids):
                try:
                    codes[place] = codes_of(self._small([item]))[0]
                except PictureError:
                    whole[place] = False
            return {"codes": codes, "whole": whole}

        key = {"kind": "codes of pictures", "pictures": digests, "size": self.reading.size}
        kept = self._cache.load_or_make(key, make)
        return kept["codes"], kept["whole"]

    def _sketch(self, row: _Row, pixels: np.ndarray) -> np.ndarray:
        if self.reading.lines == "canny":
            return self._redraw(pixels)
        key = {"kind": "lines", "picture": row.sha256[0], "read": self.protocol}
        return self._cache.load_or_make(key, lambda: {"lines": self._redraw(pixels)})["lines"]

    def _small(self, ids: Sequence[str]) -> np.ndarray:
        small = [shrink(self._pictures(self._rows[item])[0][..., :3]) for item in ids]
        return np.array(small, np.uint8).reshape(-1, GRID, GRID, 3)

    def _pictures(self, row: _Row) -> list[np.ndarray]:
        """Return the picture and its condition, if any, [S,S,4] uint8 each."""
        data = [_bytes(source) for source in row.sources]
        if tuple(map(sha256_bytes, data)) != row.sha256:
            raise BenchError(f"{row.name} of {self.source} was changed meanwhile. Begin anew.")
        pictures = [decode(content, alpha=True).pixels for content in data]
        shapes = [f"{p.shape[1]}x{p.shape[0]}" for p in pictures]
        if len(set(shapes)) > 1:
            differ = f"the conditioning picture of {row.name} is {shapes[1]}, the picture {shapes[0]}"
            raise BenchError(f"{differ}. Give both the same size, so that they stay aligned.")
        return [_square(picture, self.reading.size) for picture in pictures]


def _lines_of(reading: Reading) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    """Return what draws sketches, and what protocols say of it; BenchError where its weights are missing."""
    if reading.lines == "canny":
        return canny_lines, {}
    weights = need_file(reading.lines, None, NETWORKS[reading.lines])
    recipe = Recipe(sketch=reading.lines, size=reading.size, tasks=("sketch",))
    words = {"sketch": describe_sketch(recipe, weights=weights.parent)}
    redraw = redrawer(recipe, words)
    assert redraw is not None, "its weights are there"
    return redraw, words


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    left, top, side, *_ = frame_of(picture.shape[1], picture.shape[0], size=size, resize="crop")
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS, box=box))


def _read_rows(table: Any, source: str, reading: Reading) -> Iterator[_Row]:
    """Give the rows of a folder or hub id, with the digests of their files."""
    names = [reading.image, reading.caption, *filter(None, [reading.condition])]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        remedy = "Name columns with --image-column, --caption-column and --conditioning-column."
        raise BenchError(
            f"{source} has no column '{missing[0]}'; it has {', '.join(table.column_names)}. {remedy}"
        )
    for number, row in enumerate(table.select_columns(names)):
        sources = tuple(_source(row[name], source) for name in names if name != reading.caption)
        name = Path(str(sources[0])).name if isinstance(sources[0], Path) else f"row {number}"
        empty = [column for column in names if column != reading.caption and not row[column]]
        if empty:
            raise BenchError(f"{name} of {source} has no picture in column '{empty[0]}'. Give it one.")
        caption = row[reading.caption]
        if not isinstance(caption, str) or not caption.strip():
            raise BenchError(f"{name} of {source} has no caption in column '{reading.caption}'. Give it one.")
        try:
            digests = tuple(sha256_bytes(_bytes(part)) for part in sources)
        except OSError as error:
            raise BenchError(f"a picture of {source} cannot be read: {error}") from error
        yield _Row(name=name, caption=caption, sources=sources, sha256=digests)


def _table(source: str) -> Any:
    """Return the rows as the `datasets` library reads them, pictures as bytes or paths."""
    datasets.disable_progress_bars()
    folder = Path(source)
    remedy = "Give pictures with metadata.jsonl (file_name, text), a folder of save_to_disk, or a hub id."
    with refusing(lambda why: f"--data {source} cannot be read as a folder of pictures ({why}). {remedy}"):
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(source)
        elif folder.is_dir():
            found = datasets.load_dataset("imagefolder", data_dir=source)
        else:
            found = datasets.load_dataset(source)
        parts = list(found.values()) if isinstance(found, datasets.DatasetDict) else [found]
        table = datasets.concatenate_datasets(parts)
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _source(value: Any, folder: str) -> Any:
    """Return the path or the bytes of a picture as a row holds it; a text is a path inside the folder."""
    if isinstance(value, str):
        path, root = (Path(folder) / value).resolve(), Path(folder).resolve()
        if not path.is_relative_to(root):
            raise BenchError(f"{folder} names the picture {value}, outside of it. Paths stay inside.")
        return path
    given = value or {}
    return given.get("bytes") or Path(given.get("path") or "")


def _bytes(source: Any) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else bytes(source)
