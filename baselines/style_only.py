"""Style-only SD: the whole UNet trained on the same images without a condition: their look alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from baselines.finetuned_sd import made_for
from baselines.inputs import ConditionedDenoiser, OneNetwork
from bench.base.weights import DRAWN_BY_TEXT, one_part

if TYPE_CHECKING:
    from bench.base.load import Base
    from bench.types import Task


class StyleOnlyDenoiser(ConditionedDenoiser):
    """A UNet of its own that never sees the condition."""

    def __init__(self, base: Base, task: Task) -> None:
        super().__init__(base, task)
        self.unet = base.prior_unet("free")

    def encode(self, condition: Tensor) -> None:
        """Ignore the condition."""

    def check(self, features: None, latents: Tensor) -> None:
        """Nothing has to fit."""


class StyleOnly(OneNetwork):
    """Fine-tuned SD without a condition: what it gains over text-only is look, not obedience."""

    name = "style-only"
    title = "style-only SD"
    conditioned = False
    source = "fine-tuning as Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752"
    part, kind = "unet", UNet2DConditionModel
    exchange = one_part("unet", "UNet2DConditionModel", "StableDiffusionPipeline", drawn=DRAWN_BY_TEXT)

    def build(self, base: Base, task: Task) -> StyleOnlyDenoiser:
        """Return a trainable copy of the base."""
        return StyleOnlyDenoiser(base, task)

    def made_for(self, config: Any) -> dict[str, Any]:
        """Return the base's shape."""
        return made_for(config)
