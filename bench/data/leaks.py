"""What of one side is on the other: ids, exact contents, near-duplicates. Any data set can use it.

LIMITS: the likeness (see bench.data.likeness) above which two pictures are one, moved, mirrored,
brightened or packed. Measured on openmoji64, all pairs across its committed sides (train 1,359, val
149, test 363 items), and its test items against disguised copies of themselves:
                                                        image    sketch
    nearest pair of two pictures (train and test)       0.956    0.909   faces; horse and unicorn
    moved by up to 2 pixels, mirrored or not            1.000    1.000
    JPEG 75; JPEG 50 (lowest of 363)                    0.995; 0.990    0.999; 0.998
    brighter by 20 of 255; by 15%, whites clipped       0.993; 0.981    0.999; 0.999
    mirrored, moved by (1, -2), darker by 10%, JPEG 60  0.991    0.996
The limits, 0.97 and 0.95, lie between: no pair of the committed sides is above them, and no disguised
copy below. Turned or scaled copies are not looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.content import Cache, digest_arrays, digest_json
from bench.data.likeness import GRID, alike, shrink
from bench.types import BenchError, Example

LIMITS: Mapping[str, float] = {"image": 0.97, "sketch": 0.95}
_VERSION = 1  # raise it when a comparison may come out otherwise: cached ones are then made anew
NEAREST = 5
_SHOWN = 5


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
class Near:
    """A pair of items that are alike, but not above the limit; measure: "image" or "sketch"."""

    measure: str
    first: str
    second: str
    likeness: float


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a comparison of two sides found, and the nearest pairs that passed, nearest first."""

    findings: tuple[Finding, ...]
    nearest: tuple[Near, ...]

    @property
    def closest(self) -> dict[str, float]:
        """The highest likeness that passed, by measure."""
        return {n.measure: n.likeness for n in reversed(self.nearest)}


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """What the leak check knows of N items, in one order.

    images, sketches: exact digests. small [N,64,64,3], lines [N,64,64] uint8. captions: texts.
    sketches and lines are None for data without sketches.
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    images: tuple[str, ...]
    small: np.ndarray
    sketches: tuple[str, ...] | None = None
    lines: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all that a comparison looks at."""
        lines = {} if self.lines is None else {"lines": digest_arrays(lines=self.lines)}
        return digest_json(
            {
                "ids": self.ids,
                "captions": self.captions,
                "images": self.images,
                "sketches": self.sketches,
                "small": digest_arrays(small=self.small),
                **lines,
            }
        )


def fingerprint(items: Iterable[Example], *, sketch: str | None = "sketch") -> Fingerprints:
    """Take the fingerprints of items, one at a time.

    sketch: the layer that holds lines ([H,W] uint8), or None to look at images alone. BenchError
    where an item has no such layer.
    """
    ids, captions, images, small, sketches, lines = [], [], [], [], [], []
    for item in items:
        image = np.asarray(item.image)
        ids.append(item.id)
        captions.append(item.caption)
        images.append(digest_arrays(image=image))
        small.append(shrink(image))
        if sketch is not None:
            drawn = _layer(item, sketch)
            sketches.append(digest_arrays(sketch=drawn))
            lines.append(shrink(drawn))
    return Fingerprints(
        ids=tuple(ids),
        captions=tuple(captions),
        images=tuple(images),
        small=_stack(small, (GRID, GRID, 3)),
        sketches=tuple(sketches) if sketch is not None else None,
        lines=_stack(lines, (GRID, GRID)) if sketch is not None else None,
    )


def compare(
    train: Fingerprints,
    evaluation: Fingerprints,
    *,
    between: str = "train and evaluation",
    cache: Cache | None = None,
) -> Checked:
    """Find what of one side is on the other: ids, exact contents, near-duplicates.

    A pair is told once, under the strongest kind: the same id, image, sketch, then likeness. cache:
    where the answer for the same contents is kept.
    """
    if cache is None:
        return _compare(train, evaluation, between)
    key = {
        "kind": "leaks",
        "version": _VERSION,
        "limits": dict(LIMITS),
        "between": between,
        "first": train.digest,
        "second": evaluation.digest,
    }
    return cached(cache, key, lambda: _compare(train, evaluation, between))


def cached(cache: Cache, key: Mapping[str, Any], make: Any) -> Checked:
    """Return a comparison from the cache, or make it and keep it there."""
    found = cache.load_or_make(key, lambda: {"checked": np.array(json.dumps(asdict(make())))})
    raw = json.loads(str(found["checked"]))
    findings = [Finding(**{**f, "pairs": tuple((a, b) for a, b in f["pairs"])}) for f in raw["findings"]]
    return Checked(findings=tuple(findings), nearest=tuple(Near(**n) for n in raw["nearest"]))


def check_leaks(
    train: Fingerprints, evaluation: Fingerprints, *, between: str = "train and evaluation"
) -> list[Finding]:
    """Return the findings of `compare`."""
    return list(compare(train, evaluation, between=between).findings)


def overlap(findings: Iterable[Finding]) -> int:
    """Count the evaluation items that any leak touches, each once."""
    return len({second for finding in findings if finding.leak for _, second in finding.pairs})


def tell(kinds: Iterable[tuple[str, str, Iterable[tuple[str, str]]]], between: str) -> list[Finding]:
    """Make findings of (kind, words, pairs), telling each pair once, under the first kind."""
    findings, told = [], set[tuple[str, str]]()
    for kind, words, pairs in kinds:
        fresh = tuple(sorted(set(pairs) - told))
        told.update(fresh)
        if fresh:
            findings.append(Finding(kind=kind, message=_say(fresh, words, between), pairs=fresh))
    return findings


def _compare(train: Fingerprints, evaluation: Fingerprints, between: str) -> Checked:
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
    nearest: list[Near] = []
    for measure, first, second in _measures(train, evaluation):
        near, passed = _alike(train, evaluation, measure, first, second)
        kinds.append((f"near-duplicate {measure}", f"nearly the same {measure}", near))
        nearest += passed
    findings = tell(kinds, between)
    return Checked(findings=tuple(findings), nearest=tuple(nearest))


def _alike(
    train: Fingerprints,
    evaluation: Fingerprints,
    measure: str,
    first: np.ndarray,
    second: np.ndarray,
) -> tuple[list[tuple[str, str]], list[Near]]:
    """Return the pairs above the limit, and the nearest of those below it."""
    limit, near, passed = LIMITS[measure], [], []
    for i, j, value in zip(*alike(first, second), strict=True):
        one, other = train.ids[i], evaluation.ids[j]
        if value > limit:
            near.append((one, other))
        else:
            found = round(float(value), 4)
            passed.append(Near(measure=measure, first=one, second=other, likeness=found))
    passed.sort(key=lambda pair: (-pair.likeness, pair.first, pair.second))
    return near, passed[:NEAREST]


def _measures(left: Fingerprints, right: Fingerprints) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    if left.lines is not None and right.lines is not None:
        yield "sketch", left.lines, right.lines
    yield "image", left.small, right.small


def _layer(item: Example, sketch: str) -> np.ndarray:
    if sketch not in item.layers:
        raise BenchError(f"item {item.id} has no layer '{sketch}'; check it with sketch=None.")
    return np.asarray(item.layers[sketch])


def _stack(rows: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, *shape), np.uint8)


def _equal_pairs(
    left: Fingerprints, keys: Sequence[str], right: Fingerprints, others: Sequence[str]
) -> Iterator[tuple[str, str]]:
    where: dict[str, list[str]] = {}
    for item, key in zip(left.ids, keys, strict=True):
        where.setdefault(key, []).append(item)
    for item, key in zip(right.ids, others, strict=True):
        for first in where.get(key, ()):
            yield first, item


def _say(pairs: Sequence[tuple[str, str]], words: str, between: str) -> str:
    items = len({second for _, second in pairs})
    return (
        f"{how_many(items, 'item')} shared between {between}, by {words}: "
        f"{some([a if a == b else f'{a} = {b}' for a, b in pairs])}."
    )


def how_many(number: int, noun: str) -> str:
    """Return a number with its noun: "1 item", "2 items"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
