"""Near-duplicates by codes and few pictures: the same pairs as by all pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bench.content import Cache
from bench.data.leaks import Fingerprints, check_leaks
from bench.data.likeness import alike, likeness
from bench.data.seen import Seen, codes_of
from bench.data.stored import compare_codes


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

    side = Seen(
        base="",
        about="",
        sha256="",
        names=left.ids,
        codes=codes_of(train),
        digests=np.zeros((0, 6), np.uint8),
    )
    found = compare_codes(side, right, images=left.images, pictures=small, between="a and b")
    assert found.findings == tuple(check_leaks(left, right, between="a and b"))
    assert found.findings[0].pairs == (("t17", "e04"), ("t30", "e09"))
    assert sum(asked) < 12  # of 720 pairs


def test_a_comparison_is_kept_by_content() -> None:
    train, evaluation = pictures(5, 4), pictures(3, 5)
    calls: list[int] = []

    def small(ids: Sequence[str]) -> np.ndarray:
        calls.append(1)
        return train[[int(i[1:]) for i in ids]]

    for images in (("a",) * 5, ("a",) * 5, ("b",) * 5):
        side = Seen(
            base="",
            about="",
            sha256="",
            names=tuple(f"t{n:02d}" for n in range(5)),
            digests=np.zeros((0, 6), np.uint8),
            codes=codes_of(train),
        )
        compare_codes(
            side, prints(evaluation, "e"), images=images, pictures=small, between="x and y", cache=Cache()
        )
    assert len(calls) == 2
