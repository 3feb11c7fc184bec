"""Reads and checks the official COCO 2017 folders; what is broken is listed, what is unknown refused."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.content import sha256_file
from bench.data.coco import SETS, item_name
from bench.data.leaks import how_many, some
from bench.strict import FromFile, Text, check_name
from bench.types import BenchError

CAPTIONS, INSTANCES, PANOPTIC = "captions", "instances", "panoptic"
_ZIPS = {
    CAPTIONS: "annotations_trainval2017.zip",
    INSTANCES: "annotations_trainval2017.zip",
    PANOPTIC: "panoptic_annotations_trainval2017.zip",
}
_SLACK = 1.0  # px that a box may stick out of its image by rounding
_MOST_CLASSES = 255  # a class map holds uint8, and 0 is void
_MOST_PIXELS = 65_535  # a side of a JPEG
_IDS = range(10**12)  # in 12 digits


@dataclass(frozen=True, kw_only=True)
class Skip(FromFile):
    """Something left out: of which set, the image's id and file, and why.

    what: "image" where the whole item is left out, "annotation" where the item stays.
    """

    set: Text
    id: Text
    file: Text
    reason: Text
    what: Text = "image"


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of the panoptic annotations: COCO's id, name and colour (RGB)."""

    id: int
    name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as the official files describe it.

    width, height: of the stored pixels, to which all annotations refer (EXIF rotation is not applied).
    captions: in order of their annotations' ids. boxes: (category id, x, y, width, height), crowds
    left out. map: the panoptic PNG; segments: what its ids are, segment id -> category id; both None
    where panoptic annotations were not asked for or miss this image.
    """

    id: int
    file: Path
    width: int
    height: int
    captions: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    map: Path | None = None
    segments: Mapping[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class OfficialSet:
    """train2017 or val2017: its pictures in order of id, what is broken, digests of the JSON files."""

    name: str
    pictures: tuple[Picture, ...]
    skipped: tuple[Skip, ...]
    categories: tuple[Category, ...]
    digests: Mapping[str, str]


def needed_kinds(tasks: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds of annotations that tasks need; class colours come with the panoptic ones."""
    kinds = {CAPTIONS}
    for task in tasks:
        kinds |= {"segmentation": {PANOPTIC}, "layout": {INSTANCES, PANOPTIC}}.get(task, set())
    return tuple(k for k in (CAPTIONS, INSTANCES, PANOPTIC) if k in kinds)


def read_official(root: Path, *, kinds: Sequence[str], maps: bool) -> dict[str, OfficialSet]:
    """Read both sets of a COCO root; kinds: of annotations; maps: whether panoptic PNGs are needed.

    BenchError that names every missing file and where it belongs, for files of another form, and for
    annotations of images or classes that no list holds.
    """
    _check_places(root, kinds=kinds, maps=maps)
    found = {name: _read_set(root, name, kinds=kinds) for name in SETS}
    first, second = (found[name] for name in SETS)
    if first.categories != second.categories:
        raise BenchError(
            f"panoptic_{first.name}.json and panoptic_{second.name}.json in {root} list "
            "other classes. Take both from one archive."
        )
    both = {p.id for p in first.pictures} & {p.id for p in second.pictures}
    if both:
        raise BenchError(
            f"{how_many(len(both), 'image id')} in both {first.name} and {second.name}: "
            f"{some([item_name(i) for i in sorted(both)])}. Ids of COCO are unique; restore the files."
        )
    return found


def _check_places(root: Path, *, kinds: Sequence[str], maps: bool) -> None:
    absent = []
    for name in SETS:
        if not (root / name).is_dir():
            absent.append(f"{root / name}/ (the images: {name}.zip)")
        for kind in kinds:
            path = root / "annotations" / f"{kind}_{name}.json"
            if not path.is_file():
                why = "; it also holds the classes' colours" if kind == PANOPTIC else ""
                absent.append(f"{path} (from {_ZIPS[kind]}{why})")
        folder = root / "annotations" / f"{PANOPTIC}_{name}"
        if maps and not folder.is_dir():
            absent.append(f"{folder}/ (unpack {PANOPTIC}_{name}.zip of {_ZIPS[PANOPTIC]} there)")
    if absent:
        listed = "".join(f"\n  {line}" for line in absent)
        raise BenchError(
            f"{root} is not a whole COCO 2017. Missing:{listed}\nThe archives are listed at "
            "https://cocodataset.org/#download; --root is the folder that holds train2017/."
        )


def _read_set(root: Path, name: str, *, kinds: Sequence[str]) -> OfficialSet:
    folder = root / "annotations"
    paths = {kind: folder / f"{kind}_{name}.json" for kind in kinds}
    images: dict[int, dict[str, Any]] = {}
    values = {kind: _read(path) for kind, path in paths.items()}
    for kind, path in paths.items():
        images |= {row["id"]: row for row in _images(path, values[kind])}
    captions = _captions(paths[CAPTIONS], values[CAPTIONS], images)
    skipped: list[Skip] = []
    categories: tuple[Category, ...] = ()
    segments: dict[int, tuple[str, dict[int, int]]] = {}
    boxes: dict[int, list[tuple[float, ...]]] = {}
    if PANOPTIC in kinds:
        categories, segments = _panoptic(paths[PANOPTIC], values[PANOPTIC], images)
    if INSTANCES in kinds:
        known = {c.id for c in categories}
        boxes = _boxes(paths[INSTANCES], values[INSTANCES], images, known, name, skipped)
    pictures = []
    for number, row in sorted(images.items()):
        file, segmented = segments.get(number, (None, None))
        pictures.append(
            Picture(
                id=number,
                file=root / name / row["file_name"],
                width=row["width"],
                height=row["height"],
                captions=tuple(captions.get(number, ())),
                boxes=tuple(boxes.get(number, ())),
                segments=segmented,
                map=None if file is None else folder / f"{PANOPTIC}_{name}" / file,
            )
        )
    return OfficialSet(
        name=name,
        pictures=tuple(pictures),
        skipped=tuple(skipped),
        categories=categories,
        digests={path.name: sha256_file(path) for path in paths.values()},
    )


def _read(path: Path) -> Any:
    """Read a JSON file without its outlines, which are most of it and of no use here."""

    def lighten(value: dict[str, Any]) -> dict[str, Any]:
        value.pop("segmentation", None)
        return value

    try:
        return json.loads(path.read_bytes(), object_hook=lighten)
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read ({error}). Unpack it anew.") from error


def _rows(path: Path, value: Any, name: str, /, **fields: type | tuple[type, ...]) -> list[Any]:
    """Return a list of a file's objects, each checked to have fields of the right types."""
    rows = value.get(name) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise BenchError(f"{path} has no list '{name}': it is not COCO's file. Unpack it anew.")
    for row in rows:
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise BenchError(
                    f"{path}: an entry of '{name}' lacks a valid '{field}': {str(row)[:120]}. "
                    "Unpack the file anew."
                )
    return rows


def _images(path: Path, value: Any) -> list[dict[str, Any]]:
    rows = _rows(path, value, "images", id=int, file_name=str, width=int, height=int)
    for row in rows:
        _plain(path, row["file_name"])
        sides = (row["width"], row["height"])
        if row["id"] not in _IDS or not 1 <= min(sides) <= max(sides) <= _MOST_PIXELS:
            raise BenchError(f"{path}: image {row['id']} of {sides} has a size or an id that cannot be.")
    return rows


def _plain(path: Path, name: str) -> str:
    """Return a file's name; BenchError if it leads anywhere else."""
    try:
        return check_name(name)
    except BenchError as error:
        raise BenchError(f"{path} names a picture that is not a plain file name: {error}") from error


def _known(path: Path, what: str, ids: Iterable[int], allowed: Iterable[int]) -> None:
    strange = sorted(set(ids) - set(allowed))
    if strange:
        raise BenchError(
            f"{path} has annotations of {how_many(len(strange), what)} that no list of it holds: "
            f"{some([str(i) for i in strange])}. The files do not belong together; unpack them anew."
        )


def _captions(path: Path, value: Any, images: Mapping[int, Any]) -> dict[int, list[str]]:
    rows = _rows(path, value, "annotations", id=int, image_id=int, caption=str)
    _known(path, "image", (r["image_id"] for r in rows), images)
    found: dict[int, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: int(r["id"])):
        text = _text(path, " ".join(row["caption"].split()))
        if text:
            found[row["image_id"]].append(text)
    return found


def _panoptic(
    path: Path, value: Any, images: Mapping[int, Any]
) -> tuple[tuple[Category, ...], dict[int, tuple[str, dict[int, int]]]]:
    """Return the classes in order of their ids, and image id -> (PNG, segment id -> class id)."""
    listed = _rows(path, value, "categories", id=int, name=str, color=list)
    categories = tuple(
        Category(id=row["id"], name=_text(path, row["name"]), colour=_colour(path, row))
        for row in sorted(listed, key=lambda r: int(r["id"]))
    )
    ids = {c.id for c in categories}
    if len(ids) < len(categories) or len(ids) > _MOST_CLASSES:
        raise BenchError(f"{path} lists {len(categories)} classes; up to {_MOST_CLASSES}, each once.")
    rows = _rows(path, value, "annotations", image_id=int, file_name=str, segments_info=list)
    _known(path, "image", (r["image_id"] for r in rows), images)
    found = {}
    for row in rows:
        parts = _rows(path, row, "segments_info", id=int, category_id=int)
        _known(path, "class", (p["category_id"] for p in parts), ids)
        segments = {p["id"]: p["category_id"] for p in parts}
        found[row["image_id"]] = (_plain(path, row["file_name"]), segments)
    return categories, found


def _text(path: Path, text: str) -> str:
    """Return a text; BenchError where it has halves of characters, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BenchError(f"{path} holds a text that is not Unicode: {ascii(text)[:60]}.") from error
    return text


def _colour(path: Path, row: Mapping[str, Any]) -> tuple[int, int, int]:
    colour = row["color"]
    if len(colour) != 3 or any(not isinstance(c, int) or not 0 <= c <= 255 for c in colour):
        raise BenchError(f"{path}: class '{row['name']}' has no colour of three bytes: {colour}.")
    return (colour[0], colour[1], colour[2])


def _boxes(
    path: Path,
    value: Any,
    images: Mapping[int, Any],
    known: Iterable[int],
    name: str,
    skipped: list[Skip],
) -> dict[int, list[tuple[float, ...]]]:
    """Return image id -> boxes, without crowds; broken ones go to `skipped`."""
    rows = _rows(path, value, "annotations", id=int, image_id=int, category_id=int)
    _known(path, "image", (r["image_id"] for r in rows), images)
    _known(path, "class", (r["category_id"] for r in rows), known)
    found: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: int(r["id"])):
        if row.get("iscrowd"):
            continue
        image = images[row["image_id"]]
        reason = _broken(row.get("bbox"), image["width"], image["height"])
        if reason:
            skipped.append(
                Skip(
                    set=name,
                    id=item_name(row["image_id"]),
                    file=image["file_name"],
                    reason=reason,
                    what="annotation",
                )
            )
        else:
            found[row["image_id"]].append((row["category_id"], *row["bbox"]))
    return found


def _broken(box: Any, width: int, height: int) -> str | None:
    """Return what is wrong with a box (x, y, width, height), None where nothing is."""
    numbers = isinstance(box, list) and len(box) == 4
    if not numbers or not all(isinstance(v, (int, float)) and abs(v) < math.inf for v in box):
        return "a box that is not four numbers"
    x, y, wide, high = box
    if wide <= 0 or high <= 0:
        return "an empty box"
    if min(x, y) < -_SLACK or x + wide > width + _SLACK or y + high > height + _SLACK:
        return "a box outside its image"
    return None
