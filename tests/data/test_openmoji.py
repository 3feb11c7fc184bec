"""The shipped data set: what it holds, what it promises, and that damage is noticed."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from bench.content import digest_arrays, write_json
from bench.data.openmoji import ASSETS, OpenMoji64, openmoji64_splits
from bench.types import BenchError


@pytest.fixture(scope="module")
def data() -> OpenMoji64:
    return OpenMoji64()


def test_it_loads_in_under_a_second(data: OpenMoji64) -> None:
    start = time.process_time()
    again = OpenMoji64()
    assert time.process_time() - start < 1.0
    assert again.digest == data.digest


def test_shapes_and_types(data: OpenMoji64) -> None:
    n = len(data)
    assert n == len(set(data.ids)) == len(data.captions) == 1871
    assert data.images.shape == (n, 64, 64, 3)
    assert data.sketches.shape == data.classes.shape == (n, 64, 64)
    arrays = (data.images, data.sketches, data.classes, data.palette)
    assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}
    assert len(data.palette) == len(data.class_names) == len(set(data.class_names))
    assert data.ids == tuple(sorted(data.ids))
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


def test_an_item_is_its_row(data: OpenMoji64) -> None:
    item = data["1F600"]
    row = data.ids.index("1F600")
    assert item.caption == "grinning face, openmoji style"
    assert np.array_equal(item.image, data.images[row])
    assert set(item.layers) == {"sketch", "classes", "boxes"}
    assert data.rows(["1F600"]).tolist() == [row]
    with pytest.raises(KeyError):
        data["no such id"]


def test_the_manifest_tells_the_truth(data: OpenMoji64) -> None:
    manifest = json.loads((ASSETS / "openmoji64.manifest.json").read_text("utf-8"))
    with np.load(ASSETS / "openmoji64.npz", allow_pickle=False) as archive:
        assert digest_arrays(**archive) == manifest["content_digest"]
    assert manifest["count"] == len(data)
    assert manifest["licence"] == "CC BY-SA 4.0" and "OpenMoji" in data.attribution
    assert manifest["count"] + sum(manifest["dropped"].values()) == 4495
    assert sum(path.stat().st_size for path in ASSETS.glob("openmoji64.*")) < 5_000_000


def test_captions_are_clean(data: OpenMoji64) -> None:
    for caption in data.captions:
        assert caption.endswith(", openmoji style") and caption == " ".join(caption.split())
        assert not set(caption) & set("‘’“”")


def test_sketches_are_lines_on_paper(data: OpenMoji64) -> None:
    assert (data.sketches.max(axis=(1, 2)) >= 128).all()
    assert (data.sketches == 0).mean(axis=(1, 2)).min() > 0.05
    ink = data.sketches == 255
    dark = data.images.max(-1) < 100
    visible = dark[ink].mean()
    assert visible > 0.95, visible  # lines are black, but for those that colour covers
    covered = (data.sketches > 0).mean()
    assert 0.1 < covered < 0.3, covered


def test_flags_and_letters_are_out(data: OpenMoji64) -> None:
    assert "1F1E9-1F1EA" not in data.ids and "1F1E6" not in data.ids
    assert not [caption for caption in data.captions if caption.startswith("flag: ")]


def test_classes_are_the_colours_of_the_image(data: OpenMoji64) -> None:
    assert data.classes.max() < len(data.palette)
    pure = data.sketches == 0
    gap = np.abs(data.images.astype(np.int16) - data.palette[data.classes]).max(-1)
    near = gap <= 16
    assert near[pure].mean() >= 0.99
    assert near[pure & (data.classes > 0)].mean() >= 0.95
    share = (near & pure).sum((1, 2)) / pure.sum((1, 2))
    assert np.quantile(share, 0.01) > 0.9


def test_boxes_are_regions_of_their_class(data: OpenMoji64) -> None:
    for item in data.ids:
        boxes, classes = data.boxes(item).astype(int), data[item].layers["classes"]
        assert boxes.shape[1:] == (5,) and len(boxes) <= 16
        for label, x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 and label > 0
            inside = classes[y0:y1, x0:x1] == label
            assert inside.sum() >= 12
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all()


def test_boxes_are_all_regions_of_twelve_pixels(data: OpenMoji64) -> None:
    for item in data.ids[::40]:
        classes = data[item].layers["classes"]
        sizes: list[int] = []
        for label in set(np.unique(classes).tolist()) - {0}:
            regions, _ = ndimage.label(classes == label)
            sizes += [size for size in np.bincount(regions.ravel())[1:] if size >= 12]
        assert len(data.boxes(item)) == min(16, len(sizes))


def copy_assets(folder: Path) -> Path:
    for path in ASSETS.glob("openmoji64.*"):
        shutil.copy(path, folder)
    return folder


def test_a_copy_loads_and_a_missing_folder_does_not(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="bench.emoji.openmoji"):
        OpenMoji64(tmp_path)
    assert len(OpenMoji64(copy_assets(tmp_path))) == 1871


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "gone"])
def test_a_damaged_file_is_refused_with_a_remedy(tmp_path: Path, damage: str) -> None:
    path = copy_assets(tmp_path) / "openmoji64.npz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes({"flip": bytes(raw), "truncate": bytes(raw[:1000])}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    with pytest.raises(BenchError, match="openmoji64.npz.*Restore it"):
        OpenMoji64(tmp_path)


def test_a_changed_palette_changes_the_digest_and_a_false_content_digest_is_refused(
    tmp_path: Path, data: OpenMoji64
) -> None:
    path = copy_assets(tmp_path) / "openmoji64.manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    assert OpenMoji64(tmp_path).digest == data.digest
    manifest["classes"][3]["rgb"] = "#123456"
    write_json(path, manifest)
    assert OpenMoji64(tmp_path).digest != data.digest
    write_json(path, {**manifest, "content_digest": "0" * 64})
    with pytest.raises(BenchError, match="content digest"):
        OpenMoji64(tmp_path)
    manifest["classes"][3]["rgb"] = 5
    write_json(path, manifest)
    with pytest.raises(BenchError, match="classes.3.rgb"):
        OpenMoji64(tmp_path)


@pytest.mark.parametrize("manifest", [[], {}, {"sha256": 3}, "text"])
def test_a_foreign_manifest_is_refused(tmp_path: Path, manifest: object) -> None:
    write_json(copy_assets(tmp_path) / "openmoji64.manifest.json", manifest)
    with pytest.raises(BenchError, match="Restore it"):
        OpenMoji64(tmp_path)


def test_every_item_has_one_side_and_the_sides_have_their_sizes(data: OpenMoji64) -> None:
    splits = openmoji64_splits()
    sides = [splits.train, splits.val, splits.test]
    assert [len(side) for side in sides] == [1359, 149, 363]
    assert Counter(item for side in sides for item in side) == Counter(data.ids)


@pytest.mark.parametrize(
    "variants",
    [
        "1F468-200D-1F680 1F469-200D-1F680 1F9D1-200D-1F680",  # astronaut
        "1F3C3 1F3C3-200D-2640-FE0F 1F3C3-200D-2642-FE0F-200D-27A1-FE0F",  # running
        "1F468 1F469 1F9D1 1F468-200D-1F9B0 1F9D1-200D-1F9B3",  # man, woman, hair
        "1F550 1F55B 1F567",  # clocks
        "1F311 1F314 1F319",  # moons
        "2764 1F499 1F49A 1F90D",  # hearts
        "1F50D 1F50E",  # magnifying glass, two sides
        "1F46A 1F468-200D-1F469-200D-1F466 1F48F",  # families
        "0030-FE0F-20E3 0039-FE0F-20E3",  # keycaps
        "1F34E 1F34F",  # apples
        "2648 2653",  # zodiac
        "E300 E301 1F9D1-200D-2695-FE0F",  # doctors of two families
    ],
)
def test_variants_of_a_concept_share_a_side(variants: str) -> None:
    splits = openmoji64_splits()
    items = variants.split()
    homes = {side for side in ("train", "val", "test") if set(items) & set(splits.side(side))}
    assert len(homes) == 1
    assert len({splits.groups[item] for item in items}) == 1


def test_no_concept_dominates_evaluation() -> None:
    splits = openmoji64_splits()
    for side in (splits.val, splits.test):
        assert max(Counter(splits.groups[item] for item in side).values()) <= 8
