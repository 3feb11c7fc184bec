"""Style-only SD: the whole UNet trained on the same images without a condition: their look alone."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel

from baselines.finetuned_sd import made_for
from baselines.inputs import OneNetwork, UnconditionedDenoiser
from bench.base.load import Base
from bench.base.weights import DRAWN_BY_TEXT, one_part
from bench.types import Task


class StyleOnly(OneNetwork):
    """Fine-tuned SD without a condition: what it gains over text-only is look, not obedience."""

    name = "style-only"
    title = "style-only SD"
    conditioned = False
    source = "fine-tuning as Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752"
    part, kind = "unet", UNet2DConditionModel
    exchange = one_part("unet", "UNet2DConditionModel", "StableDiffusionPipeline", drawn=DRAWN_BY_TEXT)

    def build(self, base: Base, task: Task) -> UnconditionedDenoiser:
        """Return a trainable copy of the base."""
        return UnconditionedDenoiser(base, task, base.prior_unet("free"))

    def made_for(self, config: Any) -> dict[str, Any]:
        """Return the base's shape."""
        return made_for(config)
