"""Text-only Stable Diffusion: the base without the condition, the floor of every table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bench.base.load import Base
    from bench.types import Task


class TextOnlyDenoiser(torch.nn.Module):
    """The frozen base as it is."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.unet = base.unet
        self._eps = base.eps

    def encode(self, condition: Tensor) -> None:
        """Ignore the condition."""
        return None

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: None) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> eps [K,B,4,h,w]."""
        return self._eps(latents, timesteps, text)


class TextOnly:
    """The base without the condition: nothing to train, nothing that can follow a sketch."""

    name = "text-only"
    title = "text-only"
    conditioned = False
    source = "Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752"
    options: dict[str, object] = {}

    def build(self, base: Base, task: Task) -> TextOnlyDenoiser:
        """Return the base as a denoiser without trainable parameters."""
        return TextOnlyDenoiser(base)
