"""What the loop and the sampler know of encoded items: rows and views, wherever they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bench.types import Dataset, Example

if TYPE_CHECKING:
    import torch

Rows = Sequence[int] | np.ndarray
Views = Sequence[int] | np.ndarray | int


class Prepared(ABC):
    """Items ready for training and sampling, read by row and view (0: as they are, 1: mirrored).

    ids: N item ids. views: 1 or 2. latent_shape (4,h,w). empty: the empty prompt [1,L,D] float32.
    views may be given one a row or one for all.
    """

    ids: tuple[str, ...]
    views: int
    latent_shape: tuple[int, ...]
    empty: torch.Tensor

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.ids)

    @abstractmethod
    def latents_at(self, rows: Rows, views: Views = 0, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return latents [B,4,h,w] float32: the mode, or a draw with standard normal noise alike."""

    @abstractmethod
    def conditions_at(self, rows: Rows, views: Views = 0) -> torch.Tensor:
        """Return conditions [B,C,H,W] float32 in [0, 1]."""

    @abstractmethod
    def text_at(self, rows: Rows) -> torch.Tensor:
        """Return encoded captions [B,L,D] float32."""

    @abstractmethod
    def images(self, rows: Rows) -> np.ndarray:
        """Read images [B,H,W,3] uint8, unmirrored."""

    @abstractmethod
    def expect(self, rows: Rows, views: Views) -> None:
        """Tell which conditions will be asked for next, so that they may be read meanwhile."""


@dataclass(frozen=True, kw_only=True)
class InMemory(Prepared):
    """All items in memory: the mode of the latents, or mean and deviation where draws are wanted.

    latents [V,N,4,h,w] float32 (view 1: mirrored; absent for V = 1), deviation alike or None. text
    [N,L,D] float32. conditions [V,N,C,H,W] float32 in [0, 1]. dataset: where images are read.
    """

    ids: tuple[str, ...]
    latents: torch.Tensor
    text: torch.Tensor
    empty: torch.Tensor
    conditions: torch.Tensor
    dataset: Dataset
    deviation: torch.Tensor | None = None

    @property
    def views(self) -> int:  # type: ignore[override]
        """1, or 2 with the mirrored view."""
        return len(self.latents)

    @property
    def latent_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(4,h,w)."""
        return tuple(self.latents.shape[2:])

    def latents_at(self, rows: Rows, views: Views = 0, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """See Prepared."""
        at = (view_of(views, rows), list(rows))
        if noise is None:
            return self.latents[at]
        assert self.deviation is not None, "prepared without the deviation of the latents"
        return self.latents[at] + self.deviation[at] * noise

    def conditions_at(self, rows: Rows, views: Views = 0) -> torch.Tensor:
        """See Prepared."""
        return self.conditions[view_of(views, rows), list(rows)]

    def text_at(self, rows: Rows) -> torch.Tensor:
        """See Prepared."""
        return self.text[list(rows)]

    def images(self, rows: Rows) -> np.ndarray:
        """See Prepared."""
        return read_images(self.dataset, [self.ids[r] for r in rows])

    def expect(self, rows: Rows, views: Views) -> None:
        """Do nothing: all is here."""


def view_of(views: Views, rows: Rows) -> list[int]:
    """Return one view a row."""
    return [int(views)] * len(rows) if isinstance(views, int) else [int(v) for v in views]


def read_images(dataset: Dataset, ids: Sequence[str]) -> np.ndarray:
    """Read the images of items, [N,H,W,3] uint8."""
    return np.stack([dataset[i].image for i in ids])


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
