"""Style-only SD: the whole UNet trained on the same images without a condition: their look alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import UNet2DConditionModel
from torch import Tensor

from baselines.finetuned_sd import made_for
from baselines.inputs import ConditionedDenoiser
from bench.types import Exchange

if TYPE_CHECKING:
    from bench.base.load import Base
    from bench.base.weights import Source
    from bench.types import Task

_DRAWN = 'image = pipe("{prompt}", height={size}, width={size}, {sampling}).images[0]\n'
EXCHANGE = Exchange(
    parts=("unet",),
    classes={"unet": ("diffusers", "UNet2DConditionModel")},
    pipeline="StableDiffusionPipeline",
    usage="""\
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
unet = UNet2DConditionModel.from_pretrained("{folder}")
pipe = StableDiffusionPipeline.from_pretrained(
    "{base}", unet=unet, safety_checker=None, feature_extractor=None, dtype=torch.float32)
"""
    + _DRAWN,
    whole="""\
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(
    "{folder}", safety_checker=None, feature_extractor=None)
"""
    + _DRAWN,
)


class StyleOnlyDenoiser(ConditionedDenoiser):
    """A UNet of its own that never sees the condition."""

    def __init__(self, base: Base, task: Task) -> None:
        super().__init__(base, task)
        self.unet = base.prior_unet("free")

    def encode(self, condition: Tensor) -> None:
        """Ignore the condition."""
        return None

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: None) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> eps [K,B,4,h,w]."""
        output = self.unet(**self.rows(latents, timesteps, text), return_dict=False)[0]
        return self.eps(output, latents, timesteps)


class StyleOnly:
    """Fine-tuned SD without a condition: what it gains over text-only is look, not obedience."""

    name = "style-only"
    title = "style-only SD"
    conditioned = False
    source = "fine-tuning as Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752"
    options: dict[str, object] = {}
    exchange = EXCHANGE

    def build(self, base: Base, task: Task) -> StyleOnlyDenoiser:
        """Return a trainable copy of the base."""
        return StyleOnlyDenoiser(base, task)

    def load(self, denoiser: StyleOnlyDenoiser, source: Source) -> dict[str, str]:
        """Put in a UNet of the base's shape; BenchError where it does not fit."""
        given = source.model(UNet2DConditionModel)
        source.fit(made_for(given), made_for(denoiser.unet))
        denoiser.unet.load_state_dict(given.state_dict())
        return {}

    def save(self, denoiser: StyleOnlyDenoiser, folder: Path) -> None:
        """Write the UNet as UNet2DConditionModel.from_pretrained loads it."""
        denoiser.unet.save_pretrained(folder)
