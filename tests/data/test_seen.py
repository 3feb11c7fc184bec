"""Fingerprints of pretraining data: what is found, what is told, and when nothing can be known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.content import Cache, read_json, read_npz, sha256_file, write_json, write_npz
from bench.data.leaks import fingerprint, overlap
from bench.data.likeness import alike
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.data.seen import (
    ARRAYS,
    LIMIT_BITS,
    MANIFEST,
    NEAR_BITS,
    SAME_NAME,
    Seen,
    code_limits,
    compare_seen,
    expected_likeness,
    load_seen,
    near_codes,
    plain_name,
    write_seen,
)
from bench.types import BenchError, Example

BASE = "a" * 64


def shipped(count: int) -> list[Example]:
    data, splits = OpenMoji64(), openmoji64_splits()
    return [data[item] for item in splits.test[:: len(splits.test) // count][:count]]


def seen_of(folder: Path, pictures: np.ndarray, names: list[str]) -> Seen:
    write_seen(folder, base=BASE, pictures=pictures, names=names, facts={"about": "some drawings"})
    found = load_seen(folder, base=BASE)
    assert not isinstance(found, str)
    return found


def moved(pictures: np.ndarray) -> np.ndarray:
    """Mirrored, one pixel down, two to the right, a little darker."""
    out = np.full_like(pictures, 255)
    out[:, 1:, 2:] = pictures[:, :-1, ::-1][:, :, :-2]
    return (out * 0.9).astype(np.uint8)


def test_exact_and_moved_twins_are_leaks_and_others_are_not(tmp_path: Path) -> None:
    items = shipped(24)
    images = np.stack([item.image for item in items])
    pictures = np.concatenate([images[:4], moved(images[4:12])])
    seen = seen_of(tmp_path, pictures, [f"family: thing {i}" for i in range(12)])
    found = compare_seen(seen, fingerprint(items))
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
    (finding,) = compare_seen(seen, fingerprint(items)).findings
    assert finding.kind == SAME_NAME and not finding.leak
    assert finding.pairs == (("twemoji: Thing 1", items[1].id),)
    assert "1 evaluation item of 3" in finding.message and overlap([finding]) == 0


def test_codes_measure_the_angle() -> None:
    """Differing bits of 192 are a binomial of the angle over pi: within four deviations of it."""
    data = OpenMoji64()
    rows, others, values = alike(data.images[:60], data.images[:60])
    pictures = data.images[:60]
    codes = Seen(
        base="", about="", names=(), sha256="", digests=np.zeros((60, 6), np.uint8), codes=_codes(pictures)
    )
    bits = near_codes(codes, pictures)
    assert all(bits[i, i] == 0 for i in range(60))
    assert expected_likeness(0) == 1 and expected_likeness(96) == pytest.approx(0)
    for (i, j), count in bits.items():
        share = np.arccos(min(1.0, expected_likeness(count))) / np.pi
        near = [v for a, b, v in zip(rows, others, values, strict=True) if (a, b) == (i, j)]
        if near and count > 0:
            wanted = np.arccos(min(1.0, near[0])) / np.pi
            assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 192) + 2 / 192
    assert len(bits) > 60


def _codes(pictures: np.ndarray) -> np.ndarray:
    from bench.data.likeness import middle
    from bench.data.seen import _signs

    return np.packbits(_signs(middle(pictures)) > 0, axis=1)


def test_without_fingerprints_nothing_is_known(tmp_path: Path) -> None:
    said = load_seen(tmp_path, base=BASE)
    assert isinstance(said, str) and "brings no fingerprints" in said
    seen_of(tmp_path, shipped(1)[0].image[None], ["a: b"])
    other = load_seen(tmp_path, base="b" * 64)
    assert isinstance(other, str) and "another base" in other


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"drawings": 7}, {"about": None}])
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
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
    assert compare_seen(seen, prints, cache=cache) == compare_seen(seen, prints, cache=cache)
    assert compare_seen(seen, prints) == compare_seen(seen, prints, cache=cache)
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
    assert 0 < LIMIT_BITS < NEAR_BITS < 96
    assert 0.9 < code_limits()["image"] < 1
