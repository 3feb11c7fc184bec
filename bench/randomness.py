"""One generator per item and purpose, so that no result depends on batch size or resumption."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far equal runs may differ: nothing is allowed where machine, threads and batches are equal.

    Sums in another order round otherwise; these are what is promised, and tests hold it. weights,
    images, features: greatest absolute difference (images in [0, 1], of one set of weights); levels:
    greatest difference of a stored uint8 pixel; items: of a per-item score; metrics: relative to the
    value. Grids with several jobs are equal to the bit to one job of as many threads.
    """

    weights: float = 1e-4
    images: float = 1e-4
    levels: int = 1
    features: float = 1e-4
    items: float = 5e-3
    metrics: float = 1e-3


TOLERANCES = Tolerances()
