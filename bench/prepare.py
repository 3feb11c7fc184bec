"""Latents, text and conditions of a set of items, computed once and cached by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bench.base import Base
from bench.content import Cache
from bench.types import Dataset, Example, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Items ready for training and sampling.

    ids: N item ids. latents [V,N,4,h,w] float32 (view 1: mirrored; absent for V = 1). text
    [N,L,D] float32, empty [1,L,D] float32. conditions [V,N,C,H,W] float32 in [0, 1]. images
    [N,H,W,3] uint8, unmirrored.
    """

    ids: tuple[str, ...]
    latents: torch.Tensor
    text: torch.Tensor
    empty: torch.Tensor
    conditions: torch.Tensor
    images: np.ndarray

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)


def mirrored(example: Example) -> Example:
    """Return the example mirrored left to right: image, layers and boxes."""
    width = example.image.shape[1]
    layers = {}
    for name, layer in example.layers.items():
        if name == "boxes":
            boxes = layer.copy()
            boxes[:, 1], boxes[:, 3] = width - layer[:, 3], width - layer[:, 1]
            layers[name] = boxes
        else:
            layers[name] = layer[:, ::-1]
    return replace(example, image=example.image[:, ::-1], layers=layers)


def prepare(
    base: Base, *, dataset: Dataset, ids: Sequence[str], task: Task, mirror: bool, cache: Cache
) -> Prepared:
    """Encode the items' images and captions with the base and build their conditions.

    Latents and text are cached under the digests of base and data; conditions are cheap and made
    anew. Raises BenchError where an item has no layer that the task needs.
    """
    import torch

    examples = [dataset[i] for i in ids]
    views = [examples, [mirrored(e) for e in examples]] if mirror else [examples]
    key = {"base": base.digest, "data": dataset.digest, "ids": list(ids), "views": len(views)}

    def make() -> dict[str, np.ndarray]:
        latents = [_encode(base, view) for view in views]
        captions = ["", *(e.caption for e in examples)]
        return {"latents": np.stack(latents), "text": base.encode_text(captions).cpu().numpy()}

    arrays = cache.load_or_make({"kind": "prepared", "version": 1, **key}, make)
    conditions = np.stack([np.stack([task.condition(e) for e in view]) for view in views])
    text = torch.from_numpy(arrays["text"])
    return Prepared(
        ids=tuple(ids), latents=torch.from_numpy(arrays["latents"]), text=text[1:], empty=text[:1],
        conditions=torch.from_numpy(conditions), images=np.stack([e.image for e in examples]),
    )  # fmt: skip


def _encode(base: Base, examples: Sequence[Example]) -> np.ndarray:
    parts = [
        base.encode_images(np.stack([e.image for e in examples[i : i + 64]])).cpu().numpy()
        for i in range(0, len(examples), 64)
    ]
    return np.concatenate(parts)
