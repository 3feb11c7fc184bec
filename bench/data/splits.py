"""Fixed sides of a data set (train, val, test), and the check that they are what was committed.

What leaks from one side to another is found by bench.data.leaks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.content import Cache, digest_arrays, digest_json, read_json
from bench.data.leaks import Finding, compare, fingerprint, how_many, some, tell
from bench.data.stored import Stored
from bench.strict import check_name
from bench.types import BenchError, Dataset, Example

SIDES = ("train", "val", "test")


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


def item_digest(example: Example) -> str:
    """Return the SHA-256 of an item's image, caption and layers (its id left out)."""
    return digest_arrays(image=example.image, caption=np.array(example.caption), **dict(example.layers))


def digests_of(dataset: Dataset, ids: Sequence[str]) -> dict[str, str]:
    """Return the content digests of items: those a data set keeps, if it does, else made anew."""
    if isinstance(dataset, Stored):
        return dataset.item_digests(ids)
    return {item: item_digest(dataset[item]) for item in ids}


def side_digest(items: Mapping[str, str]) -> str:
    """Return the SHA-256 of one side: its ids and their content digests, in any order."""
    return digest_json(dict(items))


def load_splits(path: str | os.PathLike[str]) -> Splits:
    """Read a splits file; BenchError if it is missing, not such a file, or its digests are off."""
    value = read_json(path)
    try:
        sides = {side: _texts(value["sides"][side]["items"]) for side in SIDES}
        digests = {side: str(value["sides"][side]["digest"]) for side in SIDES}
        splits = Splits(
            name=str(value["dataset"]),
            items={item: digest for side in SIDES for item, digest in sides[side].items()},
            digests=digests,
            groups=_texts(value.get("groups", {})),
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


def _texts(value: Any) -> dict[str, str]:
    """Return item -> text from JSON; BenchError for another form, and for ids that are no names."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BenchError("items and groups must be objects of texts")
    return {check_name(item): text for item, text in value.items()}


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


def verify(
    dataset: Dataset, splits: Splits, *, sketch: str | None = "sketch", cache: Cache | None = None
) -> list[Finding]:
    """Check a data set against its committed splits; an empty list means all is well.

    Looks for ids on two sides, ids missing from or unknown to the splits, contents and side
    digests that differ from the committed ones, groups that straddle sides, and leaks of train
    into val and test and of val into test. cache: where comparisons of equal contents are kept.
    """
    findings = _check_membership(dataset, splits) + _check_digests(dataset, splits)
    findings += _check_groups(splits)
    known = set(dataset.ids)
    sides = {side: [i for i in splits.side(side) if i in known] for side in SIDES}
    prints = {}
    if not isinstance(dataset, Stored):
        prints = {s: fingerprint((dataset[i] for i in ids), sketch=sketch) for s, ids in sides.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        between = f"{first} and {second}"
        if isinstance(dataset, Stored):
            checked = dataset.compare(sides[first], sides[second], between=between, cache=cache)
        else:
            checked = compare(prints[first], prints[second], between=between, cache=cache)
        findings += checked.findings
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
            message = f"{how_many(len(pairs), 'item')} {words}: {some(sorted(ids))}."
            findings.append(Finding(kind=kind, message=message, pairs=pairs, leak=False))
    return findings


def _check_digests(dataset: Dataset, splits: Splits) -> list[Finding]:
    known = set(dataset.ids)
    changed = sorted(
        item
        for item, digest in splits.items.items()
        if item in known and _read_digest(dataset, item) != digest
    )
    findings = []
    if changed:
        message = (
            f"the content of {how_many(len(changed), 'item')} differs from the committed digest: "
            f"{some(changed)}."
        )
        pairs = tuple((item, item) for item in changed)
        findings.append(Finding(kind="changed item", message=message, pairs=pairs, leak=False))
    for side in SIDES:
        items = {item: splits.items.get(item, "") for item in splits.side(side)}
        if side_digest(items) != splits.digests[side]:
            message = f"the ids of {side} are not those its committed digest was made from."
            findings.append(Finding(kind="changed side", message=message, leak=False))
    return findings


def _read_digest(dataset: Dataset, item: str) -> str | None:
    """Return the digest of an item as it is read now, None where it cannot be."""
    try:
        return item_digest(dataset[item])
    except BenchError:
        return None


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
    return tell([("split group", "a concept group", pairs)], "two sides")
