"""A small data set of random line drawings in colour, with its sides."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bench.data.leaks import Finding
from bench.data.splits import SIDES, Splits, item_digest
from bench.types import Example


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
    return Splits.of("toy", sides, groups={})


def kinds(findings: Iterable[Finding]) -> set[str]:
    return {finding.kind for finding in findings}
