"""The leak index: twins by content, picture and code are found and named, others are not."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.content import Cache, read_json, read_npz, sha256_file, write_json, write_npz
from bench.data import likeness as likenesses
from bench.data.leaks import (
    ARRAYS,
    LIMITS,
    MANIFEST,
    PRETRAINING,
    SAME_NAME,
    Fingerprints,
    code_limits,
    codes_of,
    compare,
    expected_likeness,
    fingerprint,
    load_seen,
    near_codes,
    overlap,
    plain_name,
    verify,
    write_seen,
)
from bench.data.likeness import FLOOR, alike, likeness, middle, views
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.data.splits import SIDES
from bench.types import BenchError, Example
from tests.data.toy import kinds, toy_item


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
    chosen = splits.test[:: len(splits.test) // 40][:40]
    items = [dataclasses.replace(data[item], layers={}) for item in chosen]
    twins = [
        dataclasses.replace(item, id=f"twin {item.id}", image=DISGUISES[disguise](item.image))
        for item in items
    ]
    found = compare(fingerprint(items), fingerprint(twins)).findings
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


def test_pairs_that_are_alike_are_those_that_a_full_comparison_finds() -> None:
    """Every pair above the floor, with its value."""
    data = OpenMoji64()
    first, second = data.images[:150], data.images[100:210:2]
    own = middle(first)
    full = np.max([own @ view.T for view in views(second)], axis=0)
    rows, others, values = alike(first, second)
    assert len(values) > 25  # the pictures that are on both sides, and others
    assert set(zip(rows, others, strict=True)) == set(zip(*np.nonzero(full > FLOOR), strict=True))
    assert values == pytest.approx(full[rows, others], abs=1e-5)


def test_no_matrix_of_all_pairs_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    data, described = OpenMoji64(), list[int]()
    first, second = data.images[:150], data.images[100:210:2]
    whole = alike(first, second)
    monkeypatch.setattr(likenesses, "_ROWS", 32)
    monkeypatch.setattr(likenesses, "middle", lambda x: (described.append(len(x)), middle(x))[1])
    for part, all_at_once in zip(alike(first, second), whole, strict=True):
        np.testing.assert_allclose(part, all_at_once, atol=1e-6)
    assert described == [32, 32, 32, 32, 22]


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


@pytest.mark.slow
def test_a_random_split_of_the_shipped_set_is_not() -> None:
    data = OpenMoji64()
    order = np.random.default_rng(0).permutation(data.ids).tolist()
    findings = compare(
        fingerprint(data[i] for i in order[512:]), fingerprint(data[i] for i in order[:363])
    ).findings
    assert {"same image", "same sketch", "near-duplicate sketch"} <= kinds(findings)
    assert overlap(findings) > 25


def test_images_alone_are_checked_at_any_size() -> None:
    photos = [dataclasses.replace(toy_item(seed, size=96 + seed), layers={}) for seed in range(4)]
    left, right = fingerprint(photos[:2]), fingerprint([*photos[2:]])
    assert not compare(left, right).findings and overlap(compare(left, left).findings) == 2
    assert set(compare(left, right).closest) <= {"image"}
    assert compare(left, right).limits == {"image": LIMITS["image"]}


def test_an_empty_side_shares_nothing() -> None:
    some, nothing = fingerprint([toy_item(0)]), fingerprint([])
    assert not compare(nothing, some).findings and not compare(some, nothing).findings


BASE = "a" * 64


def shipped(count: int) -> list[Example]:
    data, splits = OpenMoji64(), openmoji64_splits()
    return [data[item] for item in splits.test[:: len(splits.test) // count][:count]]


def seen_of(folder: Path, pictures: np.ndarray, names: list[str]) -> Fingerprints:
    write_seen(folder, base=BASE, pictures=pictures, names=names, facts={"about": "some drawings"})
    found = load_seen(folder, base=BASE)
    assert not isinstance(found, str)
    return found


def disguised(pictures: np.ndarray) -> np.ndarray:
    """Mirrored, one pixel down, two to the right, a little darker."""
    out = np.full_like(pictures, 255)
    out[:, 1:, 2:] = pictures[:, :-1, ::-1][:, :, :-2]
    return (out * 0.9).astype(np.uint8)


def test_exact_and_moved_twins_are_leaks_and_others_are_not(tmp_path: Path) -> None:
    items = shipped(24)
    images = np.stack([item.image for item in items])
    pictures = np.concatenate([images[:4], disguised(images[4:12])])
    seen = seen_of(tmp_path, pictures, [f"family: thing {i}" for i in range(12)])
    found = compare(seen, fingerprint(items), between=PRETRAINING)
    pairs = {finding.kind: finding.pairs for finding in found.findings}
    assert pairs["same image"] == tuple((f"family: thing {i}", items[i].id) for i in range(4))
    twins = sorted((f"family: thing {i}", items[i].id) for i in range(4, 12))
    assert pairs["near-duplicate image"] == tuple(twins)
    assert overlap(found.findings) == 12
    assert all("pretraining and evaluation" in finding.message for finding in found.findings)


def test_the_same_name_in_another_style_is_told_and_no_leak(tmp_path: Path) -> None:
    items = [
        dataclasses.replace(item, caption=f"thing-{i}, openmoji style") for i, item in enumerate(shipped(3))
    ]
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    seen = seen_of(tmp_path, noise, ["twemoji: Thing 1", "noto: other"])
    (finding,) = compare(seen, fingerprint(items), between=PRETRAINING).findings
    assert finding.kind == SAME_NAME and not finding.leak
    assert finding.pairs == (("twemoji: Thing 1", items[1].id),)
    assert "1 evaluation item of 3" in finding.message and overlap([finding]) == 0


def test_codes_measure_the_angle() -> None:
    """Differing bits of 192 are a binomial of the angle over pi: within four deviations of it."""
    data = OpenMoji64()
    rows, others, values = alike(data.images[:60], data.images[:60])
    pictures = data.images[:60]
    bits = near_codes(codes_of(pictures), pictures)
    assert all(bits[i, i] == 0 for i in range(60))
    assert expected_likeness(0) == 1 and expected_likeness(96) == pytest.approx(0)
    for (i, j), count in bits.items():
        share = np.arccos(min(1.0, expected_likeness(count))) / np.pi
        near = [v for a, b, v in zip(rows, others, values, strict=True) if (a, b) == (i, j)]
        if near and count > 0:
            wanted = np.arccos(min(1.0, near[0])) / np.pi
            assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 192) + 2 / 192
    assert len(bits) > 60


def test_without_fingerprints_nothing_is_known(tmp_path: Path) -> None:
    said = load_seen(tmp_path, base=BASE)
    assert isinstance(said, str) and "brings no fingerprints" in said
    seen_of(tmp_path, shipped(1)[0].image[None], ["a: b"])
    other = load_seen(tmp_path, base="b" * 64)
    assert isinstance(other, str) and "another base" in other


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"drawings": 7}, {"about": None}])
def test_damaged_fingerprints_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    seen_of(tmp_path, shipped(1)[0].image[None], ["a: b"])
    value = {**read_json(tmp_path / MANIFEST), **change}
    write_json(tmp_path / MANIFEST, {k: v for k, v in value.items() if v is not None})
    with pytest.raises(BenchError):
        load_seen(tmp_path, base=BASE)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda a: a.astype(np.float64)),
        ("codes", lambda a: a[:, :23]),
        ("digests", lambda a: a[0]),
        ("digests", lambda a: a.astype("U3")),
        ("names", lambda a: a[:0]),
    ],
)
def test_codes_of_another_form_are_refused(tmp_path: Path, name: str, change: Any) -> None:
    seen_of(tmp_path, np.stack([item.image for item in shipped(3)]), ["a: b"] * 3)
    arrays = read_npz(tmp_path / ARRAYS)
    write_npz(tmp_path / ARRAYS, arrays | {name: change(arrays[name])})
    write_json(
        tmp_path / MANIFEST, {**read_json(tmp_path / MANIFEST), "sha256": sha256_file(tmp_path / ARRAYS)}
    )
    with pytest.raises(BenchError):
        load_seen(tmp_path, base=BASE)


def test_answers_are_kept_by_content_and_files_have_the_same_bytes(tmp_path: Path) -> None:
    items = shipped(5)
    pictures = np.stack([item.image for item in items])
    seen = seen_of(tmp_path / "one", pictures, ["a: b"] * 5)
    seen_of(tmp_path / "two", pictures, ["a: b"] * 5)
    one, two = (tmp_path / name / ARRAYS for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    cache, prints = Cache(tmp_path / "cache"), fingerprint(items)
    assert compare(seen, prints, cache=cache) == compare(seen, prints, cache=cache)
    assert compare(seen, prints) == compare(seen, prints, cache=cache)
    assert len(list((tmp_path / "cache").glob("*/*.npz"))) == 1


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("grinning face, openmoji style", "grinning face"),
        ("twemoji: Grinning-Face", "grinning face"),
        ("twelve o'clock, openmoji style", "twelve o clock"),
    ],
)
def test_names_are_compared_in_words(caption: str, name: str) -> None:
    assert plain_name(caption) == name


def test_limits_are_in_order() -> None:
    assert expected_likeness(15) > LIMITS["image"] > expected_likeness(16)
    assert code_limits() == {"image": 0.9659}


def pictures(count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    fields = draw.integers(0, 255, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(f).resize((64, 64))) for f in fields])


def prints(small: np.ndarray, letter: str) -> Fingerprints:
    ids = tuple(f"{letter}{n:02d}" for n in range(len(small)))
    digests = tuple(f"{letter}{n:063d}" for n in range(len(small)))
    return Fingerprints(ids=ids, captions=ids, images=digests, small=small)


def test_pairs_have_the_likeness_that_a_full_comparison_finds() -> None:
    first = pictures(40, 1)
    second = np.roll(first[:, :, ::-1] // 2 + 60, 1, axis=1)  # mirrored, moved, dim
    rows, columns, values = alike(first, second)
    assert set(zip(range(40), range(40), strict=True)) <= set(zip(rows, columns, strict=True))
    assert np.allclose(likeness(first[rows], second[columns]), values, atol=1e-5)
    assert likeness(first[:0], second[:0]).shape == (0,)


def test_codes_tell_what_a_full_comparison_tells() -> None:
    train, evaluation = pictures(60, 2), pictures(12, 3)
    evaluation[4] = np.roll(train[17], 2, axis=0)
    evaluation[9] = np.clip(train[30].astype(int) + 15, 0, 255).astype(np.uint8)
    evaluation[11] = (train[50] // 2 + evaluation[11] // 2).astype(np.uint8)  # alike, but no twin
    left, right = prints(train, "t"), prints(evaluation, "e")
    asked: list[int] = []

    def small(ids: Sequence[str]) -> np.ndarray:
        asked.append(len(ids))
        return train[[left.ids.index(i) for i in ids]]

    side = dataclasses.replace(left, small=None, codes=codes_of(train), pictures=small)
    found, whole = (compare(one, right, between="a and b") for one in (side, left))
    assert found == whole
    assert found.findings[0].pairs == (("t17", "e04"), ("t30", "e09"))
    assert sum(asked) < 12  # of 720 pairs


def test_a_comparison_by_codes_is_kept_by_content(tmp_path: Path) -> None:
    train, evaluation = pictures(5, 4), pictures(3, 5)
    evaluation[0] = train[0]  # codes tell that this pair is to be looked at
    calls: list[int] = []

    def small(ids: Sequence[str]) -> np.ndarray:
        calls.append(1)
        return train[[int(i[1:]) for i in ids]]

    left = dataclasses.replace(prints(train, "t"), small=None, codes=codes_of(train), pictures=small)
    for images in (("a",) * 5, ("a",) * 5, ("b",) * 5):
        side = dataclasses.replace(left, images=images)
        compare(side, prints(evaluation, "e"), cache=Cache(tmp_path))
    assert len(calls) == 2
