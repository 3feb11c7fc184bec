"""ControlNet: a trainable copy of the UNet's encoder, joined to the frozen UNet by zero convolutions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel

from baselines.inputs import (
    ConditionedDenoiser,
    check_match,
    embedding_widths,
    like_base,
)
from bench.types import Exchange

if TYPE_CHECKING:
    from bench.base.load import Base
    from bench.base.weights import Source
    from bench.types import Task

EXCHANGE = Exchange(
    parts=("controlnet",),
    classes={"controlnet": ("diffusers", "ControlNetModel")},
    pipeline="StableDiffusionControlNetPipeline",
    usage="""\
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
net = ControlNetModel.from_pretrained("{folder}")
pipe = StableDiffusionControlNetPipeline.from_pretrained(
    "{base}", controlnet=net, safety_checker=None, feature_extractor=None, dtype=torch.float32)
image = pipe("{prompt}", image=condition, {sampling}).images[0]
""",
    whole="""\
from diffusers import StableDiffusionControlNetPipeline
pipe = StableDiffusionControlNetPipeline.from_pretrained("{folder}")
image = pipe("{prompt}", image=condition, {sampling}).images[0]
""",
)


def build_controlnet(unet: Any, *, channels: int, downscale: int) -> ControlNetModel:
    """Return diffusers' ControlNetModel for a UNet, with the UNet's weights, all of it trainable.

    channels: C of the condition. downscale: image pixels per latent cell, a power of two.
    """
    net = ControlNetModel.from_unet(
        unet,
        conditioning_channels=channels,
        conditioning_embedding_out_channels=embedding_widths(downscale),
    )
    return net.requires_grad_(True)


class ControlNetDenoiser(ConditionedDenoiser):
    """The frozen UNet with a ControlNet's residuals on its skips and its middle.

    The ControlNet reads latents, timestep and text, so it runs on all K*B rows at every step.
    """

    def __init__(self, base: Base, controlnet: ControlNetModel, *, task: Task, scale: float) -> None:
        super().__init__(base, task)
        self.unet, self.controlnet, self.scale = base.unet, controlnet, scale

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        features: torch.Tensor,
    ) -> torch.Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], features [B,C,H,W] -> eps [K,B,4,h,w]."""
        check_match(features, latents, downscale=self.downscale)
        rows = self.rows(latents, timesteps, text)
        down, middle = self.controlnet(
            **rows,
            controlnet_cond=features.repeat(len(text), 1, 1, 1),
            conditioning_scale=self.scale,
            return_dict=False,
        )
        output = self.unet(
            **rows,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return self.eps(output, latents, timesteps)


class ControlNet:
    """ControlNet as in diffusers, the condition on both guidance branches."""

    name = "controlnet"
    title = "ControlNet"
    conditioned = True
    source = "Zhang, Rao, Agrawala, ICCV 2023, https://arxiv.org/abs/2302.05543"
    options: dict[str, object] = {"conditioning_scale": 1.0}
    allowed = {"conditioning_scale": "a finite number"}
    exchange = EXCHANGE

    def build(self, base: Base, task: Task, *, conditioning_scale: float = 1.0) -> ControlNetDenoiser:
        """Return the controlled base; only the ControlNet trains.

        conditioning_scale: a factor on its residuals, in training and in sampling. Raises
        ValueError for a scale that is not positive and for a downscale factor that is not a power
        of two.
        """
        if not (math.isfinite(conditioning_scale) and conditioning_scale > 0):
            raise ValueError(f"conditioning_scale is {conditioning_scale}; allowed: a number above 0.")
        net = build_controlnet(base.unet, channels=task.channels, downscale=base.downscale)
        return ControlNetDenoiser(base, like_base(net, base.device), task=task, scale=conditioning_scale)

    def load(self, denoiser: ControlNetDenoiser, source: Source) -> dict[str, str]:
        """Put a ControlNetModel's weights into the denoiser; BenchError where they do not fit.

        One that pools its residuals or reads more than text and time is refused.
        """
        net = source.model(ControlNetModel)
        source.fit(_made_for(net.config), _made_for(denoiser.controlnet.config))
        denoiser.controlnet = like_base(net, str(denoiser.unet.device))
        return {}

    def save(self, denoiser: ControlNetDenoiser, folder: Path) -> None:
        """Write the ControlNet as ControlNetModel.from_pretrained loads it."""
        denoiser.controlnet.save_pretrained(folder)


def _made_for(config: Any) -> dict[str, Any]:
    """Return what a ControlNet's configuration says of the base and the condition it is made for."""
    names = (
        *("layers_per_block", "cross_attention_dim", "global_pool_conditions"),
        *("addition_embed_type", "class_embed_type"),
    )
    return {
        **{name: config[name] for name in names},
        "widths": config["block_out_channels"],
        "condition channels": config["conditioning_channels"],
        "downscale": 2 ** (len(config["conditioning_embedding_out_channels"]) - 1),
    }
