"""Latents, text and conditions of a set of items, computed once and cached by content.

Two ways of keeping them, which the loop and the sampler cannot tell apart: in memory, for sets of a
few thousand small images, and in shards on disk (bench.data.shards), for sets of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.base.load import Base, images_at_once
from bench.content import Cache
from bench.data.prepared import InMemory, Prepared, mirrored
from bench.data.shards import Sharded, encode
from bench.types import Dataset, Example, Task, unknown

__all__ = ["InMemory", "Prepared", "Sharded", "mirrored", "prepare"]
STORAGES = ("memory", "shards")


def prepare(
    base: Base,
    *,
    dataset: Dataset,
    ids: Sequence[str],
    task: Task,
    mirror: bool,
    cache: Cache,
    posterior: bool = False,
    storage: str = "memory",
    **progress: Any,
) -> Prepared:
    """Encode the items' images and captions with the base, and make their conditions available.

    Latents and text are cached under the digests of base and data; conditions are cheap and made
    anew. posterior: whether latents will be drawn, not only their mode. storage: "memory" or
    "shards", see Suite; progress: stage, tick and stop of bench.data.shards.encode. Raises BenchError
    where an item has no layer that the task needs, and where the disk is too small.
    """
    if storage not in STORAGES:
        raise unknown("storage", storage, STORAGES)
    if storage == "shards":
        views = 2 if mirror else 1
        shards = encode(base, dataset=dataset, ids=ids, views=views, cache=cache, **progress)
        return Sharded(shards, base=base, dataset=dataset, task=task)
    return _in_memory(base, dataset, tuple(ids), task, mirror, cache, posterior)


def _in_memory(
    base: Base,
    dataset: Dataset,
    ids: tuple[str, ...],
    task: Task,
    mirror: bool,
    cache: Cache,
    posterior: bool,
) -> InMemory:
    import torch

    examples = [dataset[i] for i in ids]
    views = [examples, [mirrored(e) for e in examples]] if mirror else [examples]
    key = {"base": base.digest, "data": dataset.digest, "ids": list(ids), "views": len(views)}
    key = {**key, "posterior": True} if posterior else key

    def make() -> dict[str, np.ndarray]:
        captions = ["", *(e.caption for e in examples)]
        text = {"text": base.encode_text(captions).cpu().numpy()}
        if not posterior:
            return {"latents": np.stack([_modes(base, view) for view in views]), **text}
        mean, deviation = zip(*(_posteriors(base, view) for view in views), strict=True)
        return {"latents": np.stack(mean), "deviation": np.stack(deviation), **text}

    arrays = cache.load_or_make({"kind": "prepared", "version": 1, **key}, make)
    conditions = np.stack([np.stack([task.condition(e) for e in view]) for view in views])
    made = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return InMemory(
        ids=ids,
        latents=made["latents"],
        text=made["text"][1:],
        empty=made["text"][:1],
        conditions=torch.from_numpy(conditions),
        dataset=dataset,
        deviation=made.get("deviation"),
    )


def _blocks(examples: Sequence[Example]) -> list[np.ndarray]:
    at_once = images_at_once(*examples[0].image.shape[:2])
    images = [e.image for e in examples]
    return [np.stack(images[i : i + at_once]) for i in range(0, len(images), at_once)]


def _modes(base: Base, examples: Sequence[Example]) -> np.ndarray:
    parts = [base.encode_images(block).cpu().numpy() for block in _blocks(examples)]
    return np.concatenate(parts)


def _posteriors(base: Base, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    parts = [base.encode_posterior(block) for block in _blocks(examples)]
    mean, deviation = zip(*parts, strict=True)
    return (
        np.concatenate([m.cpu().numpy() for m in mean]),
        np.concatenate([d.cpu().numpy() for d in deviation]),
    )
