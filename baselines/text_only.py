"""Text-only Stable Diffusion: the base without the condition, the floor of every table."""

from __future__ import annotations

from baselines.inputs import UnconditionedDenoiser
from bench.base.load import Base
from bench.types import Task


class TextOnly:
    """The base without the condition: nothing to train, nothing that can follow a sketch."""

    name = "text-only"
    title = "text-only"
    conditioned = False
    source = "Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752"
    options: dict[str, object] = {}

    def build(self, base: Base, task: Task) -> UnconditionedDenoiser:
        """Return the base as a denoiser without trainable parameters."""
        return UnconditionedDenoiser(base, task, base.unet)
