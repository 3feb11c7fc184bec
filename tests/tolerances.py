"""How far equal runs may differ, which documentation promises and tests hold."""

from __future__ import annotations

from dataclasses import dataclass


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
