"""Data sets too large to be read whole for every run: they keep digests and codes of their items.

compare_codes finds near-duplicates in two steps. Codes of a side's pictures (bench.data.seen: 192 bits)
dismiss almost every pair; of those that differ in at most NEAR_BITS the pictures themselves are
compared, with the likeness and limit of bench.data.leaks. A pair above the limit, 0.97, is expected to
differ in 15 bits or less, with a standard deviation of 3.7, in the best of its 50 views in fewer still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from bench.content import Cache, digest_arrays, digest_json
from bench.data.leaks import (
    LIMITS,
    NEAREST,
    Checked,
    Fingerprints,
    Near,
    cached,
    compare,
    fingerprint,
    tell,
)
from bench.data.likeness import likeness
from bench.data.seen import Seen, near_codes
from bench.types import Dataset

_VERSION = 1  # raise it when a comparison may come out otherwise


@runtime_checkable
class Stored(Protocol):
    """What a data set has, beside items, that vouches for its contents without reading them."""

    def item_digests(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the digests (see `item_digest`) of items, as stored; reading an item checks its own."""

    def fingerprints(self, ids: Sequence[str]) -> Fingerprints:
        """Return the fingerprints of items, without sketches."""

    def compare(
        self, train: Sequence[str], evaluation: Sequence[str], *, between: str, cache: Cache | None
    ) -> Checked:
        """Find what of the train items is among the evaluation items."""


def fingerprints_of(dataset: Dataset, ids: Sequence[str]) -> Fingerprints:
    """Return the fingerprints of items: stored ones where a data set keeps them, else made."""
    if isinstance(dataset, Stored):
        return dataset.fingerprints(ids)
    return fingerprint(dataset[item] for item in ids)


def compare_items(
    dataset: Dataset,
    train: Sequence[str],
    evaluation: Sequence[str],
    *,
    between: str = "train and evaluation",
    cache: Cache | None = None,
) -> Checked:
    """Find what of the train items is among the evaluation items, as `bench.data.leaks.compare`."""
    if isinstance(dataset, Stored):
        return dataset.compare(train, evaluation, between=between, cache=cache)
    first, second = (fingerprints_of(dataset, ids) for ids in (train, evaluation))
    return compare(first, second, between=between, cache=cache)


def limits_of(dataset: Dataset) -> dict[str, float]:
    """Return the limits of likeness in force, by measure: stored data keep no sketches to compare."""
    return {"image": LIMITS["image"]} if isinstance(dataset, Stored) else dict(LIMITS)


def compare_codes(
    train: Seen,
    evaluation: Fingerprints,
    *,
    images: Sequence[str],
    pictures: Callable[[Sequence[str]], np.ndarray],
    between: str,
    cache: Cache | None = None,
) -> Checked:
    """Compare a side known by its codes with evaluation items known by small pictures.

    train: names are item ids. images: the train items' image digests. pictures: train ids -> small
    pictures [P,64,64,3] uint8, asked for the few that codes do not dismiss.
    """
    if cache is None:
        return _compare(train, evaluation, images, pictures, between)
    key = {
        "kind": "codes",
        "version": _VERSION,
        "limit": LIMITS["image"],
        "between": between,
        "first": digest_json([list(train.names), list(images)]),
        "codes": digest_arrays(codes=train.codes),
        "second": evaluation.digest,
    }
    return cached(cache, key, lambda: _compare(train, evaluation, images, pictures, between))


def _compare(
    train: Seen,
    evaluation: Fingerprints,
    images: Sequence[str],
    pictures: Callable[[Sequence[str]], np.ndarray],
    between: str,
) -> Checked:
    own = {item: digest for item, digest in zip(train.names, images, strict=True)}
    shared = [(item, item) for item in evaluation.ids if item in own]
    where: dict[str, list[str]] = {}
    for item, digest in own.items():
        where.setdefault(digest, []).append(item)
    same = [
        (first, item)
        for item, digest in zip(evaluation.ids, evaluation.images, strict=True)
        for first in where.get(digest, ())
    ]
    told = {*shared, *same}
    near, passed = [], []
    for pair, value in _likely(train, evaluation, told, pictures).items():
        if value > LIMITS["image"]:
            near.append(pair)
        else:
            passed.append(Near(measure="image", first=pair[0], second=pair[1], likeness=value))
    passed.sort(key=lambda n: (-n.likeness, n.first, n.second))
    findings = tell(
        [
            ("shared id", "the same id", shared),
            ("same image", "exactly the same image", same),
            ("near-duplicate image", "nearly the same image", near),
        ],
        between,
    )
    return Checked(findings=tuple(findings), nearest=tuple(passed[:NEAREST]))


def _likely(
    train: Seen,
    evaluation: Fingerprints,
    told: set[tuple[str, str]],
    pictures: Callable[[Sequence[str]], np.ndarray],
) -> Mapping[tuple[str, str], float]:
    """Return the likeness of the pairs that codes do not dismiss and nothing has told yet."""
    if not len(evaluation.ids) or not train.names:
        return {}
    rows = sorted(near_codes(train, evaluation.small))
    pairs = [(train.names[i], evaluation.ids[j]) for i, j in rows]
    kept = [n for n, pair in enumerate(pairs) if pair not in told]
    first = pictures([pairs[n][0] for n in kept])
    second = evaluation.small[[rows[n][1] for n in kept]]
    values = likeness(first, second)
    return {pairs[n]: round(float(v), 4) for n, v in zip(kept, values, strict=True)}
