"""Reads and checks the official COCO 2017 folders; what is broken is listed, what is unknown refused."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, NotRequired, TypeVar

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from bench.content import FromFile, Name, Text, Whole, refusing, sha256_file, validated
from bench.data.coco import SETS
from bench.types import BenchError, how_many, some

CAPTIONS, INSTANCES, PANOPTIC = "captions", "instances", "panoptic"
_ZIPS = {
    CAPTIONS: "annotations_trainval2017.zip",
    INSTANCES: "annotations_trainval2017.zip",
    PANOPTIC: "panoptic_annotations_trainval2017.zip",
}
_SLACK = 1.0  # px that a box may stick out of its image by rounding
_MOST_CLASSES = 255  # a class map holds uint8, and 0 is void
_Id = Annotated[Whole, Ge(0), Le(10**12 - 1)]  # 12 digits
_Side = Annotated[Whole, Ge(1), Le(65_535)]  # of a JPEG
_Byte = Annotated[Whole, Ge(0), Le(255)]


@dataclass(frozen=True, kw_only=True)
class Skip(FromFile):
    """Something left out, and why; what: "image", or "annotation" where the item stays."""

    set: Text
    id: Text
    file: Text
    reason: Text
    what: Text = "image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """A class of the panoptic annotations: COCO's id, name and colour (RGB)."""

    id: _Id
    name: Text
    color: tuple[_Byte, _Byte, _Byte]


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

    @property
    def name(self) -> str:
        """The id of the item: COCO's image id in 12 digits, as in its file names."""
        return f"{self.id:012d}"


@dataclass(frozen=True, kw_only=True)
class OfficialSet:
    """train2017 or val2017: its pictures in order of id, what is broken, digests of the JSON files."""

    name: str
    pictures: tuple[Picture, ...]
    skipped: tuple[Skip, ...]
    categories: tuple[Category, ...]
    digests: Mapping[str, str]


class _Image(TypedDict):
    id: _Id
    file_name: Name
    width: _Side
    height: _Side


class _Caption(TypedDict):
    id: Whole
    image_id: Whole
    caption: Text


class _Instance(TypedDict):
    id: Whole
    image_id: Whole
    category_id: Whole
    bbox: NotRequired[Any]
    iscrowd: NotRequired[Any]


class _Segment(TypedDict):
    id: Whole
    category_id: Whole


class _Map(TypedDict):
    image_id: Whole
    file_name: Name
    segments_info: list[_Segment]


_Row = TypeVar("_Row")


class _File(TypedDict, Generic[_Row]):
    images: list[_Image]
    annotations: list[_Row]


class _Panoptic(TypedDict):
    images: list[_Image]
    annotations: list[_Map]
    categories: list[Category]


_FILES: Mapping[str, Any] = {CAPTIONS: _File[_Caption], INSTANCES: _File[_Instance], PANOPTIC: _Panoptic}


def needed_kinds(tasks: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds of annotations that tasks need; class colours come with the panoptic ones."""
    needed = {"segmentation": (PANOPTIC,), "layout": (INSTANCES, PANOPTIC)}
    kinds = {CAPTIONS, *(kind for task in tasks for kind in needed.get(task, ()))}
    return tuple(kind for kind in _FILES if kind in kinds)


def read_official(root: Path, *, kinds: Sequence[str], maps: bool) -> dict[str, OfficialSet]:
    """Read both sets of a COCO root; kinds: of annotations; maps: whether panoptic PNGs are needed.

    BenchError that names every missing file and where it belongs, for files of another form, and for
    annotations of images or classes that no list holds.
    """
    wanted = {}
    for name in SETS:
        wanted[root / name] = f"/ (the images: {name}.zip)"
        for kind in kinds:
            why = "; it also holds the classes' colours" if kind == PANOPTIC else ""
            wanted[_path(root, kind, name)] = f" (from {_ZIPS[kind]}{why})"
        if maps:
            folder = _path(root, PANOPTIC, name).with_suffix("")
            wanted[folder] = f"/ (unpack {PANOPTIC}_{name}.zip of {_ZIPS[PANOPTIC]} there)"
    there = {path for path in wanted if (path.is_file() if path.suffix else path.is_dir())}
    listed = "".join(f"\n  {path}{whence}" for path, whence in wanted.items() if path not in there)
    if listed:
        archives = "The archives are listed at https://cocodataset.org/#download; --root holds train2017/."
        raise BenchError(f"{root} is not a whole COCO 2017. Missing:{listed}\n{archives}")
    first, second = (_read_set(root, name, kinds) for name in SETS)
    if first.categories != second.categories:
        files = f"panoptic_{first.name}.json and panoptic_{second.name}.json"
        raise BenchError(f"{files} in {root} list other classes. Take both from one archive.")
    both = sorted({p.name for p in first.pictures} & {p.name for p in second.pictures})
    if both:
        shared = f"{how_many(len(both), 'image id')} in both {first.name} and {second.name}: {some(both)}"
        raise BenchError(f"{shared}. Ids of COCO are unique; restore the files.")
    return {first.name: first, second.name: second}


def _path(root: Path, kind: str, name: str) -> Path:
    return root / "annotations" / f"{kind}_{name}.json"


def _read_set(root: Path, name: str, kinds: Sequence[str]) -> OfficialSet:
    paths = {kind: _path(root, kind, name) for kind in kinds}
    files = {kind: _read(path, kind) for kind, path in paths.items()}
    images = {image["id"]: image for file in files.values() for image in file["images"]}
    rows = {kind: files[kind]["annotations"] if kind in files else [] for kind in _FILES}
    for kind, path in paths.items():
        _check_known(path, "image", (row["image_id"] for row in rows[kind]), images)
    categories = _categories(paths, files) if PANOPTIC in kinds else ()
    captions: dict[int, list[str]] = defaultdict(list)
    for row in sorted(rows[CAPTIONS], key=lambda row: row["id"]):
        if row["caption"].split():
            captions[row["image_id"]].append(" ".join(row["caption"].split()))
    boxes: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    skipped = []
    for row in sorted(rows[INSTANCES], key=lambda row: row["id"]):
        image, box = images[row["image_id"]], row.get("bbox")
        reason = None if row.get("iscrowd") else _broken(box, image["width"], image["height"])
        if reason is not None:
            item, file = f"{image['id']:012d}", image["file_name"]
            skipped.append(Skip(set=name, id=item, file=file, reason=reason, what="annotation"))
        elif not row.get("iscrowd"):
            boxes[image["id"]].append((row["category_id"], *box))
    maps = {row["image_id"]: row for row in rows[PANOPTIC]}
    folder = _path(root, PANOPTIC, name).with_suffix("")
    segments = {n: {s["id"]: s["category_id"] for s in row["segments_info"]} for n, row in maps.items()}
    pictures = (
        Picture(
            id=number,
            file=root / name / image["file_name"],
            width=image["width"],
            height=image["height"],
            captions=tuple(captions[number]),
            boxes=tuple(boxes[number]),
            segments=segments.get(number),
            map=folder / maps[number]["file_name"] if number in maps else None,
        )
        for number, image in sorted(images.items())
    )
    return OfficialSet(
        name=name,
        pictures=tuple(pictures),
        skipped=tuple(skipped),
        categories=categories,
        digests={path.name: sha256_file(path) for path in paths.values()},
    )


def _categories(paths: Mapping[str, Path], files: Mapping[str, Any]) -> tuple[Category, ...]:
    """Return the classes in order of their ids, after checking that annotations have no others."""
    found, path = files[PANOPTIC]["categories"], paths[PANOPTIC]
    ids = {category.id for category in found}
    if len(ids) < len(found) or len(ids) > _MOST_CLASSES:
        raise BenchError(f"{path} lists {len(found)} classes; up to {_MOST_CLASSES}, each once.")
    segments = (s for row in files[PANOPTIC]["annotations"] for s in row["segments_info"])
    _check_known(path, "class", (s["category_id"] for s in segments), ids)
    if INSTANCES in files:
        rows = files[INSTANCES]["annotations"]
        _check_known(paths[INSTANCES], "class", (row["category_id"] for row in rows), ids)
    return tuple(sorted(found, key=lambda category: category.id))


def _read(path: Path, kind: str) -> Any:
    """Read a JSON file without its outlines, which are most of it and of no use here."""

    def lighten(value: dict[str, Any]) -> dict[str, Any]:
        value.pop("segmentation", None)
        return value

    kinds = OSError, ValueError, RecursionError
    with refusing(lambda why: f"{path} cannot be read ({why}). Unpack it anew.", *kinds):
        value = json.loads(path.read_bytes(), object_hook=lighten)
    return validated(value, _FILES[kind], path, remedy="Unpack it anew.")


def _check_known(path: Path, what: str, ids: Iterable[int], allowed: Iterable[int]) -> None:
    strange = sorted(set(ids) - set(allowed))
    if strange:
        held = f"{how_many(len(strange), what)} that no list of it holds: {some(strange)}"
        raise BenchError(f"{path} has annotations of {held}. The files do not belong together; unpack anew.")


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
