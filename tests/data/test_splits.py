"""The leak check: the clean set passes, and a planted leak of each kind is caught and named."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.content import Cache, write_json
from bench.data.leaks import LIMITS, Finding, check_leaks, compare, fingerprint, overlap
from bench.data.likeness import FLOOR, alike, middle, views
from bench.data.openmoji import ASSETS, OpenMoji64, openmoji64_splits
from bench.data.splits import (
    SIDES,
    Splits,
    item_digest,
    load_splits,
    side_digest,
    splits_json,
    verify,
)
from bench.types import BenchError, Example


class Toy:
    """A small data set of random line drawings in colour."""

    name = "toy"
    digest = "none"

    def __init__(self, items: dict[str, Example]) -> None:
        self.items = items

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.items))

    def __getitem__(self, item_id: str) -> Example:
        return self.items[item_id]


def toy_item(seed: int, *, size: int = 64) -> Example:
    rng = np.random.default_rng(seed)
    sketch = np.zeros((size, size), np.uint8)
    image = np.full((size, size, 3), 255, np.uint8)
    for _ in range(5):
        x, y = rng.integers(0, size - 12, 2)
        sketch[y : y + 12, x : x + 2] = 255
        sketch[y : y + 2, x : x + 12] = 255
        image[y : y + 12, x : x + 12] = rng.integers(0, 256, 3)
    image[sketch > 0] = 0
    return Example(id=f"i{seed:03}", caption=f"toy {seed}", image=image, layers={"sketch": sketch})


def toy() -> tuple[Toy, Splits]:
    data = Toy({item.id: item for item in map(toy_item, range(30))})
    return data, splits_of(data, {"train": range(20), "val": range(20, 25), "test": range(25, 30)})


def splits_of(data: Toy, rows: dict[str, range]) -> Splits:
    sides = {side: {f"i{row:03}": item_digest(data[f"i{row:03}"]) for row in rows[side]} for side in SIDES}
    return Splits(
        name="toy",
        items={item: digest for side in sides.values() for item, digest in side.items()},
        digests={side: side_digest(items) for side, items in sides.items()},
        train=tuple(sorted(sides["train"])),
        val=tuple(sorted(sides["val"])),
        test=tuple(sorted(sides["test"])),
    )


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


@pytest.fixture(scope="module")
def shipped_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("leaks"))


def test_the_shipped_set_is_clean(shipped_cache: Cache) -> None:
    assert verify(OpenMoji64(), openmoji64_splits(), cache=shipped_cache) == []


def test_the_shipped_set_is_clean_with_room_to_spare(shipped_cache: Cache) -> None:
    """The figures of bench.data.leaks: the nearest pairs that are not one picture."""
    data, splits = OpenMoji64(), openmoji64_splits()
    prints = {side: fingerprint(data[i] for i in splits.side(side)) for side in SIDES}
    nearest: dict[str, float] = {}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        between = f"{first} and {second}"
        found = compare(prints[first], prints[second], between=between, cache=shipped_cache)
        for measure, value in found.closest.items():
            nearest[measure] = max(value, nearest.get(measure, 0.0))
    assert nearest == pytest.approx({"image": 0.9557, "sketch": 0.9086}, abs=2e-3)
    assert nearest["image"] < LIMITS["image"] - 0.01 and nearest["sketch"] < LIMITS["sketch"] - 0.03


def packed(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def moved(picture: np.ndarray, dx: int, dy: int, paper: int) -> np.ndarray:
    """Shift by whole pixels; what comes in at the border is paper."""
    out = np.full_like(picture, paper)
    h, w = picture.shape[:2]
    out[max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)] = picture[
        max(-dy, 0) : h + min(-dy, 0), max(-dx, 0) : w + min(-dx, 0)
    ]
    return out


DISGUISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "moved by a pixel": lambda p: moved(p, 1, 0, 255),
    "moved by two": lambda p: moved(p, -2, 2, 255),
    "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "mirrored and moved": lambda p: moved(np.ascontiguousarray(p[:, ::-1]), 2, -1, 255),
    "darker": lambda p: (p * 0.85).astype(np.uint8),
    "brighter": lambda p: np.clip(p.astype(int) + 12, 0, 255).astype(np.uint8),
    "JPEG 75": lambda p: packed(p, 75),
    "all of it": lambda p: packed((moved(p[:, ::-1].copy(), 1, -2, 255) * 0.9).astype(np.uint8), 75),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_picture_of_the_shipped_set_is_found(disguise: str) -> None:
    """Of 40 drawings each, and no pair of different drawings is taken for one."""
    data, splits = OpenMoji64(), openmoji64_splits()
    items = [data[item] for item in splits.test[:: len(splits.test) // 40][:40]]
    twins = [
        dataclasses.replace(item, id=f"twin {item.id}", image=DISGUISES[disguise](item.image))
        for item in items
    ]
    found = check_leaks(fingerprint(items, sketch=None), fingerprint(twins, sketch=None))
    pairs = sorted(pair for finding in found for pair in finding.pairs)
    assert pairs == sorted((item.id, f"twin {item.id}") for item in items)
    assert kinds(found) <= {"near-duplicate image", "same image"}  # some are their own mirror image
    assert "near-duplicate image" in kinds(found)


@pytest.mark.parametrize("disguise", ["moved by two", "mirrored and moved", "JPEG 75"])
def test_a_disguised_sketch_of_the_shipped_set_is_found(disguise: str) -> None:
    data, splits = OpenMoji64(), openmoji64_splits()
    sketches = data.sketches[data.rows(splits.test[:40])]
    twins = np.stack([255 - DISGUISES[disguise](255 - sketch) for sketch in sketches])
    rows, others, values = alike(sketches, twins)
    above = values > LIMITS["sketch"]
    assert rows[above].tolist() == others[above].tolist() == list(range(40))


def test_dismissed_pairs_are_none_that_a_full_comparison_finds() -> None:
    """The bound of `alike` overlooks nothing: every pair above the floor, with its exact value."""
    data = OpenMoji64()
    first, second = data.images[:300], data.images[200:420:2]
    full = np.max([middle(first) @ view.T for view in views(second)], axis=0)
    rows, others, values = alike(first, second)
    assert len(values) > len(second) // 2
    assert set(zip(rows, others, strict=True)) == set(zip(*np.nonzero(full > FLOOR), strict=True))
    assert values == pytest.approx(full[rows, others], abs=1e-5)


def test_likeness_is_blind_to_brightness_and_sees_a_drawing_in_itself() -> None:
    pictures = OpenMoji64().images[:20]
    dark = middle((pictures * 0.5).astype(np.uint8))
    assert (middle(pictures) * dark).sum(axis=1) == pytest.approx(np.ones(20), abs=2e-4)
    assert len(list(views(pictures[:1]))) == 50


def test_a_comparison_is_kept_by_content(tmp_path: Path) -> None:
    cache, items = Cache(tmp_path), [toy_item(seed) for seed in range(6)]
    first, second = fingerprint(items[:4]), fingerprint(items[2:])
    made = compare(first, second, cache=cache)
    assert made == compare(first, second, cache=cache) == compare(first, second)
    assert len(list(tmp_path.glob("*/*.npz"))) == 1
    other = fingerprint([*items[2:5], dataclasses.replace(toy_item(40), id="i005")])
    assert compare(first, other, cache=cache).findings == made.findings
    assert len(list(tmp_path.glob("*/*.npz"))) == 2


def test_a_random_split_of_the_shipped_set_is_not() -> None:
    data = OpenMoji64()
    order = np.random.default_rng(0).permutation(data.ids).tolist()
    findings = check_leaks(
        fingerprint(data[i] for i in order[512:]), fingerprint(data[i] for i in order[:363])
    )
    assert {"same image", "same sketch", "near-duplicate sketch"} <= kinds(findings)
    assert overlap(findings) > 25


def test_the_toy_is_clean() -> None:
    assert verify(*toy()) == []


def recoloured(item: Example) -> Example:
    return dataclasses.replace(item, image=255 - item.image)


def brightened(item: Example) -> Example:
    rng = np.random.default_rng(1)
    noisy = item.image * 0.9 + 5 + rng.normal(0, 4, item.image.shape)
    sketch = rng.integers(0, 2, item.layers["sketch"].shape, dtype=np.uint8) * 255
    return dataclasses.replace(item, image=noisy.clip(0, 255).astype(np.uint8), layers={"sketch": sketch})


def redrawn(item: Example) -> Example:
    rng = np.random.default_rng(2)
    faint = item.layers["sketch"].astype(float) * rng.uniform(0.9, 1, (64, 64))
    return dataclasses.replace(recoloured(item), layers={"sketch": faint.astype(np.uint8)}, caption="another")


def mirrored(item: Example) -> Example:
    flipped = np.ascontiguousarray(redrawn(item).layers["sketch"][:, ::-1])
    return dataclasses.replace(recoloured(item), layers={"sketch": flipped})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda item: item, "same image"),
        (lambda item: dataclasses.replace(item, layers=toy_item(99).layers), "same image"),
        (recoloured, "same sketch"),
        (redrawn, "near-duplicate sketch"),
        (mirrored, "near-duplicate sketch"),
        (brightened, "near-duplicate image"),
    ],
)
@pytest.mark.parametrize(("source", "target"), [(3, 21), (3, 27), (22, 28)])
def test_a_planted_twin_is_caught(
    change: Callable[[Example], Example], kind: str, source: int, target: int
) -> None:
    data, _ = toy()
    name = f"i{target:03}"
    data.items[name] = dataclasses.replace(change(data[f"i{source:03}"]), id=name)
    rows = {"train": range(20), "val": range(20, 25), "test": range(25, 30)}
    findings = verify(data, splits_of(data, rows))
    assert kinds(findings) == {kind}
    assert findings[0].pairs == ((f"i{source:03}", name),)
    assert name in findings[0].message and "1 item shared" in findings[0].message
    assert overlap(findings) == 1


def test_an_id_on_two_sides_is_caught_once() -> None:
    data, _ = toy()
    rows = {"train": range(20), "val": range(20, 25), "test": range(24, 30)}
    findings = verify(data, splits_of(data, rows))
    assert kinds(findings) == {"shared id"} and overlap(findings) == 1
    assert "i024" in findings[0].message and "val and test" in findings[0].message


def test_missing_and_extra_ids_are_caught() -> None:
    data, splits = toy()
    del data.items["i004"]
    data.items["i555"] = dataclasses.replace(toy_item(555), id="i555")
    findings = verify(data, splits)
    assert {finding.kind: finding.pairs for finding in findings} == {
        "missing id": (("i004", "i004"),),
        "extra id": (("i555", "i555"),),
    }
    assert overlap(findings) == 0


@pytest.mark.parametrize("field", ["caption", "image", "layers"])
def test_changed_content_is_caught(field: str) -> None:
    data, splits = toy()
    other = toy_item(77)
    data.items["i002"] = dataclasses.replace(data["i002"], **{field: getattr(other, field)})
    findings = verify(data, splits)
    assert kinds(findings) == {"changed item"} and findings[0].pairs == (("i002", "i002"),)


def test_a_changed_side_is_caught() -> None:
    data, splits = toy()
    findings = verify(data, dataclasses.replace(splits, train=splits.train[1:]))
    assert kinds(findings) == {"extra id", "changed side"}


def test_a_group_on_two_sides_is_caught() -> None:
    data, splits = toy()
    grouped = dataclasses.replace(splits, groups={"i001": "g", "i002": "g", "i026": "g"})
    findings = verify(data, grouped)
    assert kinds(findings) == {"split group"} and overlap(findings) == 1


def test_images_alone_can_be_checked_at_any_size() -> None:
    photos = [dataclasses.replace(toy_item(seed, size=96 + seed), layers={}) for seed in range(4)]
    left, right = fingerprint(photos[:2], sketch=None), fingerprint(photos[2:], sketch=None)
    assert check_leaks(left, right) == []
    assert overlap(check_leaks(left, left)) == 2
    assert set(compare(left, right).closest) <= {"image"}


def test_an_empty_side_and_a_missing_layer() -> None:
    some = fingerprint([toy_item(0)])
    assert check_leaks(fingerprint([]), some) == [] == check_leaks(some, fingerprint([]))
    with pytest.raises(BenchError, match="no layer 'sketch'"):
        fingerprint([dataclasses.replace(toy_item(0), layers={})])


def test_splits_survive_a_round_trip(tmp_path: Path) -> None:
    data, splits = toy()
    sides = {side: {item: splits.items[item] for item in splits.side(side)} for side in SIDES}
    write_json(tmp_path / "s.json", splits_json("toy", sides))
    assert load_splits(tmp_path / "s.json") == splits
    assert load_splits(tmp_path / "s.json").digest == splits.digest
    assert data.ids == tuple(sorted(splits.items))


def test_the_digest_sees_membership_and_content() -> None:
    data, splits = toy()
    moved = splits_of(data, {"train": range(21), "val": range(21, 25), "test": range(25, 30)})
    data.items["i001"] = dataclasses.replace(data["i001"], caption="another")
    rows = {"train": range(20), "val": range(20, 25), "test": range(25, 30)}
    assert len({splits.digest, moved.digest, splits_of(data, rows).digest}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"sides": {"train": {"items": [["a", "b"]]}}},
        {"sides": {"train": {"items": {"a": 1}}}},
        {"sides": {"train": {"items": {"../a": "b"}}}},
        {"sides": {"train": {"items": {"\ud800": "b"}}}},
        {"sides": []},
        {"groups": {"i001": ["g"]}},
        {"groups": "g"},
    ],
)
def test_splits_of_another_form_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    _, splits = toy()
    sides = {side: {item: splits.items[item] for item in splits.side(side)} for side in SIDES}
    value = splits_json("toy", sides)
    sides_now = {**value["sides"], **change["sides"]} if isinstance(change.get("sides"), dict) else None
    changed = {**value, **change, **({"sides": sides_now} if sides_now else {})}
    (tmp_path / "s.json").write_text(json.dumps(changed))
    with pytest.raises(BenchError, match="s.json"):
        load_splits(tmp_path / "s.json")


def test_hand_edited_splits_are_refused(tmp_path: Path) -> None:
    value = json.loads((ASSETS / "openmoji64.splits.json").read_text("utf-8"))
    item, digest = value["sides"]["test"]["items"].popitem()
    value["sides"]["train"]["items"][item] = digest
    write_json(tmp_path / "s.json", value)
    with pytest.raises(BenchError, match="train, test"):
        load_splits(tmp_path / "s.json")


@pytest.mark.parametrize("value", [[], {}, {"sides": {}}, {"sides": {"train": 3}}, None, "x"])
def test_a_foreign_file_is_refused(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "s.json", value)
    with pytest.raises(BenchError, match="not a splits file"):
        load_splits(tmp_path / "s.json")


def test_an_unknown_side_is_named() -> None:
    with pytest.raises(BenchError, match="train, val, test"):
        toy()[1].side("dev")
