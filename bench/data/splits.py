"""Fixed sides of a data set (train, val, test), and the check that nothing leaks between them.

The check works on fingerprints of items, so any data set can use it: exact digests of image and
sketch, and two measures of likeness that see mirrored twins too (training may flip images).
    sketch  cosine of the sketches, resized to 64x64 and blurred 3x3: the same drawing with
            another line weight is still found, one moved by a pixel mostly is not. Above 0.98 a
            person calls the drawings the same.
    image   correlation of 16x16 RGB thumbnails, each less its own mean: blind to sharpness,
            compression, brightness and contrast. 0.99, because below it different faces in
            one round frame begin.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from bench.content import digest_arrays, digest_json, read_json
from bench.types import BenchError, Dataset, Example

SIDES = ("train", "val", "test")
SKETCH_LIMIT = 0.98
IMAGE_LIMIT = 0.99
_SKETCH_SIZE = 64
_THUMB_SIZE = 16
_ROWS = 1024
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The committed sides of a data set.

    train, val, test: sorted ids. items: id -> content digest. digests: side -> digest of its ids
    and their content digests. groups: id -> group of items that must share a side (may be empty).
    """

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    items: Mapping[str, str]
    digests: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict)

    def side(self, name: str) -> tuple[str, ...]:
        """Return the ids of one side; BenchError for a name that is not train, val or test."""
        if name not in SIDES:
            raise BenchError(f"unknown side '{name}'. Allowed: {', '.join(SIDES)}.")
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @property
    def digest(self) -> str:
        """One SHA-256 over all sides: membership and content."""
        return digest_json({side: self.digests[side] for side in SIDES})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing wrong with a split: its kind, a sentence for people, and the items.

    pairs: (id on the first side, id on the second side), or (id, id) where one item is meant.
    leak: whether it lets evaluation see training content (else the data differ from the record).
    """

    kind: str
    message: str
    pairs: tuple[tuple[str, str], ...] = ()
    leak: bool = True


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """What the leak check knows of N items, in one order.

    images, sketches: exact digests. thumbs [N,768], lines [N,4096]: float32 unit vectors, and
    the same of the mirrored item. sketches and both lines are None for data without sketches.
    """

    ids: tuple[str, ...]
    images: tuple[str, ...]
    thumbs: np.ndarray
    thumbs_mirrored: np.ndarray
    sketches: tuple[str, ...] | None = None
    lines: np.ndarray | None = None
    lines_mirrored: np.ndarray | None = None


def item_digest(example: Example) -> str:
    """Return the SHA-256 of an item's image, caption and layers (its id left out)."""
    return digest_arrays(
        image=example.image, caption=np.array(example.caption), **dict(example.layers)
    )


def side_digest(items: Mapping[str, str]) -> str:
    """Return the SHA-256 of one side: its ids and their content digests, in any order."""
    return digest_json(dict(items))


def load_splits(path: str | os.PathLike[str]) -> Splits:
    """Read a splits file; BenchError if it is missing, not such a file, or its digests are off."""
    value = read_json(path)
    try:
        sides = {side: dict(value["sides"][side]["items"]) for side in SIDES}
        digests = {side: str(value["sides"][side]["digest"]) for side in SIDES}
        splits = Splits(
            name=str(value["dataset"]),
            items={item: digest for side in SIDES for item, digest in sides[side].items()},
            digests=digests,
            groups=dict(value.get("groups", {})),
            train=tuple(sorted(sides["train"])),
            val=tuple(sorted(sides["val"])),
            test=tuple(sorted(sides["test"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchError(f"{path} is not a splits file ({error!r}). Restore it.") from error
    wrong = [side for side in SIDES if side_digest(sides[side]) != digests[side]]
    if wrong:
        raise BenchError(
            f"{path} was changed by hand: the digest of {', '.join(wrong)} does not match its "
            "ids. Restore the file; split membership is fixed."
        )
    return splits


def splits_json(name: str, sides: Mapping[str, Mapping[str, str]], **extra: Any) -> dict[str, Any]:
    """Build the JSON value that `load_splits` reads; sides: side -> id -> content digest."""
    table = {
        side: {
            "count": len(sides[side]),
            "digest": side_digest(sides[side]),
            "items": dict(sides[side]),
        }
        for side in SIDES
    }
    return {"schema": 1, "dataset": name, "sides": table, **extra}


def fingerprint(items: Iterable[Example], *, sketch: str | None = "sketch") -> Fingerprints:
    """Take the fingerprints of items, one at a time.

    sketch: the layer that holds lines ([H,W] uint8), or None to look at images alone.
    """
    rows = [_fingerprint_one(item, sketch) for item in items]
    has_lines = sketch is not None

    def column(name: str, width: int) -> np.ndarray:
        values = [row[name] for row in rows]
        return np.stack(values) if values else np.zeros((0, width), np.float32)

    wide = _SKETCH_SIZE**2
    return Fingerprints(
        ids=tuple(row["id"] for row in rows),
        images=tuple(row["image"] for row in rows),
        thumbs=column("thumb", 3 * _THUMB_SIZE**2),
        thumbs_mirrored=column("thumb_mirrored", 3 * _THUMB_SIZE**2),
        sketches=tuple(row["sketch"] for row in rows) if has_lines else None,
        lines=column("line", wide) if has_lines else None,
        lines_mirrored=column("line_mirrored", wide) if has_lines else None,
    )


def similar_pairs(
    left: np.ndarray, right: np.ndarray, limit: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, cosine) with cosine > limit for unit vectors left [N,D] and right [M,D]."""
    for start in range(0, len(left), _ROWS):
        cosines = left[start : start + _ROWS] @ right.T
        for i, j in zip(*np.nonzero(cosines > limit), strict=True):
            yield start + int(i), int(j), float(cosines[i, j])


def check_leaks(
    train: Fingerprints, evaluation: Fingerprints, *, between: str = "train and evaluation"
) -> list[Finding]:
    """Find what of one side is on the other: ids, exact contents, near-duplicates.

    A pair is told once, under the strongest kind: the same id, image, sketch, then likeness.
    """
    kinds: list[tuple[str, str, Iterable[tuple[str, str]]]] = [
        ("shared id", "the same id", _equal_pairs(train, train.ids, evaluation, evaluation.ids)),
        (
            "same image",
            "exactly the same image",
            _equal_pairs(train, train.images, evaluation, evaluation.images),
        ),
    ]
    if train.sketches is not None and evaluation.sketches is not None:
        same = _equal_pairs(train, train.sketches, evaluation, evaluation.sketches)
        kinds.append(("same sketch", "exactly the same sketch", same))
    for name, near in _near_pairs(train, evaluation).items():
        kinds.append((f"near-duplicate {name}", f"nearly the same {name}", near))
    findings, told = [], set[tuple[str, str]]()
    for kind, words, pairs in kinds:
        fresh = tuple(sorted(set(pairs) - told))
        told.update(fresh)
        if fresh:
            findings.append(Finding(kind=kind, message=_say(fresh, words, between), pairs=fresh))
    return findings


def closest(train: Fingerprints, evaluation: Fingerprints) -> dict[str, float]:
    """Return the highest likeness across two sides, by measure: "image" and "sketch"."""
    highest = {}
    for kind, left, rights in _measures(train, evaluation):
        chunks = (left[start : start + _ROWS] for start in range(0, len(left), _ROWS))
        cosines = (float((c @ r.T).max(initial=-1.0)) for c in chunks for r in rights)
        highest[kind] = max(cosines, default=-1.0)
    return highest


def overlap(findings: Iterable[Finding]) -> int:
    """Count the evaluation items that any leak touches, each once."""
    return len({second for finding in findings if finding.leak for _, second in finding.pairs})


def verify(dataset: Dataset, splits: Splits, *, sketch: str | None = "sketch") -> list[Finding]:
    """Check a data set against its committed splits; an empty list means all is well.

    Looks for ids on two sides, ids missing from or unknown to the splits, contents and side
    digests that differ from the committed ones, groups that straddle sides, and leaks of train
    into val and test and of val into test.
    """
    findings = _check_membership(dataset, splits) + _check_digests(dataset, splits)
    findings += _check_groups(splits)
    known = set(dataset.ids)
    prints = {
        side: fingerprint((dataset[i] for i in splits.side(side) if i in known), sketch=sketch)
        for side in SIDES
    }
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        findings += check_leaks(prints[first], prints[second], between=f"{first} and {second}")
    return findings


def _check_membership(dataset: Dataset, splits: Splits) -> list[Finding]:
    placed = {item for side in SIDES for item in splits.side(side)}
    known = set(dataset.ids)
    findings = []
    for kind, words, ids in (
        ("missing id", "in the splits but not in the data", placed - known),
        ("extra id", "in the data but on no side", known - placed),
    ):
        if ids:
            pairs = tuple((item, item) for item in sorted(ids))
            message = f"{_count(len(pairs), 'item')} {words}: {_some(sorted(ids))}."
            findings.append(Finding(kind=kind, message=message, pairs=pairs, leak=False))
    return findings


def _check_digests(dataset: Dataset, splits: Splits) -> list[Finding]:
    known = set(dataset.ids)
    changed = sorted(
        item
        for item, digest in splits.items.items()
        if item in known and item_digest(dataset[item]) != digest
    )
    findings = []
    if changed:
        message = (
            f"the content of {_count(len(changed), 'item')} differs from the committed digest: "
            f"{_some(changed)}."
        )
        pairs = tuple((item, item) for item in changed)
        findings.append(Finding(kind="changed item", message=message, pairs=pairs, leak=False))
    for side in SIDES:
        items = {item: splits.items.get(item, "") for item in splits.side(side)}
        if side_digest(items) != splits.digests[side]:
            message = f"the ids of {side} are not those its committed digest was made from."
            findings.append(Finding(kind="changed side", message=message, leak=False))
    return findings


def _check_groups(splits: Splits) -> list[Finding]:
    home: dict[str, tuple[str, str]] = {}
    pairs = []
    for side in SIDES:
        for item in splits.side(side):
            group = splits.groups.get(item)
            if group is not None:
                first = home.setdefault(group, (side, item))
                if first[0] != side:
                    pairs.append((first[1], item))
    if not pairs:
        return []
    words = "a concept group"
    message = _say(tuple(pairs), words, "two sides")
    return [Finding(kind="split group", message=message, pairs=tuple(pairs))]


def _fingerprint_one(item: Example, sketch: str | None) -> dict[str, Any]:
    image = np.asarray(item.image)
    thumb = np.asarray(
        Image.fromarray(image).resize((_THUMB_SIZE, _THUMB_SIZE), Image.Resampling.BOX),
        dtype=np.float32,
    )
    thumb = thumb - thumb.mean()
    row: dict[str, Any] = {
        "id": item.id,
        "image": digest_arrays(image=image),
        "thumb": _unit(thumb),
        "thumb_mirrored": _unit(thumb[:, ::-1]),
    }
    if sketch is not None:
        if sketch not in item.layers:
            raise BenchError(f"item {item.id} has no layer '{sketch}'; check it with sketch=None.")
        lines = np.asarray(item.layers[sketch])
        small: Any = Image.fromarray(lines)
        if lines.shape != (_SKETCH_SIZE, _SKETCH_SIZE):
            small = small.resize((_SKETCH_SIZE, _SKETCH_SIZE), Image.Resampling.BOX)
        blurred = ndimage.uniform_filter(np.asarray(small, np.float32), 3, mode="constant")
        row |= {
            "sketch": digest_arrays(sketch=lines),
            "line": _unit(blurred),
            "line_mirrored": _unit(blurred[:, ::-1]),
        }
    return row


def _unit(vector: np.ndarray) -> np.ndarray:
    flat = vector.reshape(-1).astype(np.float32)
    return flat / max(float(np.linalg.norm(flat)), 1e-6)


def _equal_pairs(
    left: Fingerprints, keys: Sequence[str], right: Fingerprints, others: Sequence[str]
) -> Iterator[tuple[str, str]]:
    where: dict[str, list[str]] = {}
    for item, key in zip(left.ids, keys, strict=True):
        where.setdefault(key, []).append(item)
    for item, key in zip(right.ids, others, strict=True):
        for first in where.get(key, ()):
            yield first, item


def _measures(
    left: Fingerprints, right: Fingerprints
) -> Iterator[tuple[str, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    if left.lines is not None and right.lines is not None and right.lines_mirrored is not None:
        yield "sketch", left.lines, (right.lines, right.lines_mirrored)
    yield "image", left.thumbs, (right.thumbs, right.thumbs_mirrored)


def _near_pairs(left: Fingerprints, right: Fingerprints) -> dict[str, list[tuple[str, str]]]:
    limits = {"sketch": SKETCH_LIMIT, "image": IMAGE_LIMIT}
    return {
        kind: [
            (left.ids[i], right.ids[j])
            for vectors in others
            for i, j, _ in similar_pairs(own, vectors, limits[kind])
        ]
        for kind, own, others in _measures(left, right)
    }


def _say(pairs: Sequence[tuple[str, str]], words: str, between: str) -> str:
    items = len({second for _, second in pairs})
    return (
        f"{_count(items, 'item')} shared between {between}, by {words}: "
        f"{_some([a if a == b else f'{a} = {b}' for a, b in pairs])}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
