"""A COCO 2017 in the official layout, small, with everything that goes wrong in such folders.

train2017, ids 1 to 14:
    1 overlapping boxes and a crowd   2 greyscale   3 CMYK   4 truncated JPEG   5 no caption
    6 not on disk   7 EXIF orientation 6   8 portrait   9 two broken boxes   10 a void corner
    11 no instances   12 to 14 plain
val2017, ids 101 to 110: plain; `planted` puts the picture of train's 12 there as 108.
Boxes and panoptic segments of an image are the same rectangles, drawn in the image too.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60], "supercategory": "person"},
    {"id": 2, "name": "bicycle", "isthing": 1, "color": [119, 11, 32], "supercategory": "vehicle"},
    {"id": 187, "name": "sky-other-merged", "isthing": 0, "color": [70, 130, 180], "supercategory": "sky"},
    {"id": 193, "name": "grass-merged", "isthing": 0, "color": [152, 251, 152], "supercategory": "plant"},
]
WIDE, TALL = (96, 72), (72, 96)
TRAIN, VAL = range(1, 15), range(101, 111)
LEFT_OUT = {
    "000000000004": "the image file is damaged",
    "000000000005": "no caption",
    "000000000006": "no image file",
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A rectangle of an image: class, x, y, width, height, whether a crowd."""

    category: int
    box: tuple[int, int, int, int]
    crowd: bool = False


def things_of(number: int) -> list[Thing]:
    """The rectangles of an image, larger ones first, so that smaller ones are drawn over them."""
    if number == 11:
        return []
    draw = np.random.default_rng(number)
    x, y = int(draw.integers(4, 20)), int(draw.integers(4, 12))
    things = [
        Thing(category=1, box=(x, y, 40, 50)),
        Thing(category=2, box=(x + 20, y + 20, 24, 20)),
    ]
    return [*things, Thing(category=1, box=(2, 60, 30, 10), crowd=True)] if number == 1 else things


def size_of(number: int) -> tuple[int, int]:
    return TALL if number == 8 else WIDE


def picture_of(number: int) -> Image.Image:
    """A picture of soft random colours with the rectangles in it; another for every number."""
    draw = np.random.default_rng(1000 + number)
    fields = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(fields).resize(size_of(number), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for thing in things_of(number):
        x, y, wide, high = thing.box
        pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=tuple(draw.integers(0, 255, 3).tolist()))
    return image


def build_coco(root: Path, *, planted: bool = False) -> Path:
    """Write the fixture below a folder and return it."""
    for name, numbers in (("train2017", TRAIN), ("val2017", VAL)):
        (root / name).mkdir(parents=True)
        (root / "annotations" / f"panoptic_{name}").mkdir(parents=True)
        for number in numbers:
            _write_image(root / name / f"{number:012d}.jpg", number)
            _write_map(root / "annotations" / f"panoptic_{name}" / f"{number:012d}.png", number)
        for kind, make in (
            ("captions", _captions),
            ("instances", _instances),
            ("panoptic", _panoptic),
        ):
            value = {"images": [_image_row(n) for n in numbers], **make(numbers)}
            (root / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(value))
    (root / "train2017" / f"{6:012d}.jpg").unlink()
    if planted:
        shutil.copy(root / "train2017" / f"{12:012d}.jpg", root / "val2017" / f"{108:012d}.jpg")
    return root


def edit(root: Path, file: str, change: Any) -> None:
    """Change an annotation file in place."""
    path = root / "annotations" / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _write_image(path: Path, number: int) -> None:
    image = picture_of(number)
    if number == 2:
        image = image.convert("L")
    if number == 3:
        image = image.convert("CMYK")
    exif = Image.Exif()
    if number == 7:
        exif[0x0112] = 6  # "turn me by 90 degrees"
    image.save(path, quality=95, exif=exif)
    if number == 4:
        path.write_bytes(path.read_bytes()[:-400])


def segment_id(number: int, place: int) -> int:
    """An id that needs all three bytes of a panoptic PNG."""
    return (number % 200 + 1) * 65536 + 256 * 7 + place + 1


def _write_map(path: Path, number: int) -> None:
    width, height = size_of(number)
    ids = np.full((height, width), segment_id(number, 90), np.uint32)
    ids[height // 2 :] = segment_id(number, 91)
    for place, thing in enumerate(things_of(number)):
        x, y, wide, high = thing.box
        ids[y : y + high, x : x + wide] = segment_id(number, place)
    if number == 10:
        ids[:12, :24] = 0
    planes = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    Image.fromarray(planes).save(path)


def _image_row(number: int) -> dict[str, Any]:
    width, height = size_of(number)
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}


def _captions(numbers: range) -> dict[str, Any]:
    rows = [
        {
            "id": 10 * number + k,
            "image_id": number,
            "caption": f"A picture, number {number},\n in words {k}.",
        }
        for number in numbers
        if number != 5
        for k in range(5)
    ]
    return {"annotations": rows}


def _instances(numbers: range) -> dict[str, Any]:
    rows = [
        {
            "id": 10 * number + k,
            "image_id": number,
            "category_id": thing.category,
            "bbox": list(thing.box),
            "iscrowd": int(thing.crowd),
            "area": thing.box[2] * thing.box[3],
            "segmentation": [[0.0, 0.0, 1.0, 0.0, 1.0, 1.0]],
        }
        for number in numbers
        for k, thing in enumerate(things_of(number))
    ]
    if 9 in numbers:
        for k, box in ((7, [4, 4, 0, 9]), (8, [90, 4, 50, 9])):
            rows.append({"id": 90 + k, "image_id": 9, "category_id": 1, "bbox": box, "iscrowd": 0})
    return {"annotations": rows, "categories": [c for c in CATEGORIES if c["isthing"]]}


def _panoptic(numbers: range) -> dict[str, Any]:
    rows = []
    for number in numbers:
        parts = [
            {"id": segment_id(number, place), "category_id": thing.category, "iscrowd": int(thing.crowd)}
            for place, thing in enumerate(things_of(number))
        ]
        ground = [
            {"id": segment_id(number, 90), "category_id": 187, "iscrowd": 0},
            {"id": segment_id(number, 91), "category_id": 193, "iscrowd": 0},
        ]
        rows.append(
            {"image_id": number, "file_name": f"{number:012d}.png", "segments_info": [*parts, *ground]}
        )
    return {"annotations": rows, "categories": CATEGORIES}
