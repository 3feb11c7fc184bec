"""Fixed sides of a data set (train, val, test), and the digests that say they are what was committed.

What leaks from one side to another is found by bench.data.leaks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import MinLen
from typing_extensions import TypedDict

from bench.content import Name, Text, digest_arrays, digest_json, read_json
from bench.types import BenchError, Dataset, Example

SIDES = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The committed sides of a data set.

    train, val, test: sorted ids. items: id -> content digest. digests: side -> digest of its ids
    and their content digests. groups: id -> group of items that must share a side (may be empty). tune: ids
    taken out of train to choose on, where that was asked for.
    """

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    items: Mapping[str, str]
    digests: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict)
    tune: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, sides: Mapping[str, Mapping[str, str]], groups: Mapping[str, str]) -> Splits:
        """Make splits of sides: train, val, test -> id -> content digest."""
        return cls(
            name=name,
            items={item: digest for side in SIDES for item, digest in sides[side].items()},
            digests={side: side_digest(sides[side]) for side in SIDES},
            groups=groups,
            **{side: tuple(sorted(sides[side])) for side in SIDES},  # type: ignore[arg-type]
        )

    def side(self, name: str) -> tuple[str, ...]:
        """Return the ids of one side; BenchError for a name that is not train, val, test or tune."""
        if name not in (*SIDES, "tune"):
            raise BenchError(f"unknown side '{name}'. Allowed: {', '.join(SIDES)}.")
        ids: tuple[str, ...] = getattr(self, name)
        return ids

    @property
    def digest(self) -> str:
        """One SHA-256 over all sides: membership and content."""
        return digest_json({side: self.digests[side] for side in (*SIDES, "tune") if side in self.digests})

    def leaking(self, side: str) -> Splits:
        """Return the same with a side on the train side too; the digests stay those of what was committed."""
        return replace(self, train=tuple(sorted({*self.train, *self.side(side)})))

    def held_out(self, ids: Sequence[str], *, besides: Collection[str]) -> Splits:
        """Return the same with items of the train side as side tune, and others besides left out."""
        train = tuple(sorted({*self.train} - {*ids, *besides}))
        sides = {"train": train, "tune": tuple(sorted(ids))}
        digests = {side: side_digest({i: self.items[i] for i in own}) for side, own in sides.items()}
        return replace(self, **sides, digests={**self.digests, **digests})  # type: ignore[arg-type]


class _Side(TypedDict):
    digest: Text
    items: dict[Name, Text]


class _File(TypedDict):
    """A splits file; what else stands in it tells how it was made."""

    dataset: Text
    sides: Annotated[dict[Literal["train", "val", "test"], _Side], MinLen(len(SIDES))]
    groups: NotRequired[dict[Name, Text]]


class OnDemand(Mapping[str, np.ndarray]):
    """Layers by name, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers, self._made = makers, dict[str, np.ndarray]()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class _OnDisk(Example):
    """An item whose image is read when it is first asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = vars(self).get("_shape") or self.image.shape
        return shape

    def __getattr__(self, name: str) -> Any:
        if name != "image" or "_read" not in vars(self):
            raise AttributeError(name)
        return vars(self).setdefault("image", vars(self)["_read"]())


def on_disk(read: Callable[[], np.ndarray], shape: tuple[int, ...], **about: Any) -> Example:
    """Return an item whose image, of a known shape, is read when it is first asked for; about: the rest."""
    item = object.__new__(_OnDisk)
    vars(item).update(about, _read=read, _shape=shape)
    return item


class Items(Sequence[Example]):
    """Items of a data set by row, each read when it is asked for: many are not held at once."""

    def __init__(self, dataset: Dataset, ids: Sequence[str]) -> None:
        self.dataset, self.ids = dataset, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        return self.dataset[self.ids[row]]


def item_digest(example: Example) -> str:
    """Return the SHA-256 of an item's image, caption and layers (its id left out)."""
    return digest_arrays(image=example.image, caption=np.array(example.caption), **dict(example.layers))


def side_digest(items: Mapping[str, str]) -> str:
    """Return the SHA-256 of one side: its ids and their content digests, in any order."""
    return digest_json(dict(items))


def load_splits(path: str | os.PathLike[str]) -> Splits:
    """Read a splits file; BenchError if it is missing, not such a file, or its digests are off."""
    file: _File = read_json(path, of=_File, remedy="Restore it: split membership is fixed.")
    known: Mapping[Any, _Side] = file["sides"]
    sides = {name: side["items"] for name, side in known.items()}
    splits = Splits.of(file["dataset"], sides, groups=file.get("groups", {}))
    wrong = [name for name in SIDES if splits.digests[name] != known[name]["digest"]]
    if wrong:
        why = f"the digest of {', '.join(wrong)} does not match its ids"
        raise BenchError(f"{path} was changed by hand: {why}. Restore the file; split membership is fixed.")
    return splits


def splits_json(name: str, sides: Mapping[str, Mapping[str, str]], **extra: Any) -> dict[str, Any]:
    """Build the JSON value that `load_splits` reads; sides: side -> id -> content digest."""
    table = {
        side: {"count": len(sides[side]), "digest": side_digest(sides[side]), "items": dict(sides[side])}
        for side in SIDES
    }
    return {"schema": 1, "dataset": name, "sides": table, **extra}
