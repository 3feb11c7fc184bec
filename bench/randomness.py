"""One generator per item and purpose, so that no result depends on batch size or resumption."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def generator(seed: int, purpose: str, item: str = "", index: int = 0) -> np.random.Generator:
    """Return the generator that belongs to (seed, purpose, item, index), the same everywhere.

    Source: a Philox counter generator (Salmon et al. 2011) keyed by the SHA-256 of the four.
    """
    name = f"{seed}/{purpose}/{item}/{index}".encode()
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def initial_noise(seed: int, item: str, shape: tuple[int, ...], *, number: int = 0) -> np.ndarray:
    """Return an item's initial latents, float32 standard normal, the same for every method."""
    noise = generator(seed, "sample", item, number).standard_normal(shape, dtype=np.float32)
    return noise


def derangement(seed: int, count: int) -> np.ndarray:
    """Return a permutation of `count` items in which none keeps its place, [count] int64.

    One random cycle through all items, so each condition is used exactly once.
    """
    if count < 2:
        raise ValueError(f"a derangement needs at least 2 items, got {count}")
    order = generator(seed, "shuffle").permutation(count)
    result = np.empty(count, dtype=np.int64)
    result[order] = np.roll(order, 1)
    return result


def pick_items(ids: Sequence[str], count: int | None, *, seed: int = 0) -> tuple[str, ...]:
    """Return `count` of the ids by a fixed rule (order of ids hashed with a seed), sorted; all for None."""
    if count is None or count >= len(ids):
        return tuple(sorted(ids))
    ranked = sorted(ids, key=lambda i: generator(seed, "pick", i).random())
    return tuple(sorted(ranked[:count]))
