"""ControlNet: a trainable copy of the UNet's encoder, joined to the frozen UNet by zero convolutions."""

from __future__ import annotations

import math
from typing import Any

from diffusers import ControlNetModel
from torch import Tensor

from baselines.inputs import ConditionedDenoiser, OneNetwork, embedded, embedding_widths, like_base, to_rows
from bench.base.load import Base
from bench.base.weights import one_part
from bench.types import Task


def build_controlnet(unet: Any, *, channels: int, downscale: int) -> ControlNetModel:
    """Return diffusers' ControlNetModel with a UNet's weights, all trainable; channels: of the condition."""
    net = ControlNetModel.from_unet(
        unet, conditioning_channels=channels, conditioning_embedding_out_channels=embedding_widths(downscale)
    )
    return net.requires_grad_(True)


class ControlNetDenoiser(ConditionedDenoiser):
    """The frozen UNet with a ControlNet's residuals, which are made of all K*B rows at every step."""

    def __init__(self, base: Base, controlnet: ControlNetModel, *, task: Task, scale: float) -> None:
        super().__init__(base, task)
        self.unet, self.controlnet, self.scale = base.unet, controlnet, scale

    def predict(self, rows: dict[str, Any], features: Tensor) -> Tensor:
        """Return the UNet's output under a condition [B,C,H,W]."""
        down, middle = self.residuals(rows, features)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return super().predict(rows | added, features)

    def residuals(self, rows: dict[str, Any], features: Tensor) -> Any:
        """Return what the ControlNet adds to the UNet's skips and to its middle."""
        given = {"controlnet_cond": to_rows(features, rows), "conditioning_scale": self.scale}
        return self.controlnet(**rows, **given, return_dict=False)


class ControlNet(OneNetwork):
    """ControlNet as in diffusers, the condition on both guidance branches."""

    name = "controlnet"
    title = "ControlNet"
    source = "Zhang, Rao, Agrawala, ICCV 2023, https://arxiv.org/abs/2302.05543"
    options: dict[str, object] = {"conditioning_scale": 1.0}
    allowed = {"conditioning_scale": "a finite number"}
    part, kind = "controlnet", ControlNetModel
    denoiser = ControlNetDenoiser
    exchange = one_part("controlnet", "ControlNetModel", "StableDiffusionControlNetPipeline")

    def build(self, base: Base, task: Task, *, conditioning_scale: float = 1.0) -> ControlNetDenoiser:
        """Return the controlled base; only the ControlNet trains.

        conditioning_scale: a factor on its residuals, in training and in sampling. Raises
        ValueError for a scale that is not positive and for a downscale factor that is not a power
        of two.
        """
        if not (math.isfinite(conditioning_scale) and conditioning_scale > 0):
            raise ValueError(f"conditioning_scale is {conditioning_scale}; allowed: a number above 0.")
        net = build_controlnet(base.unet, channels=task.channels, downscale=base.downscale)
        return self.denoiser(base, like_base(net, base.device), task=task, scale=conditioning_scale)

    def made_for(self, config: Any) -> dict[str, Any]:
        """Return the base and the condition; one that pools its residuals or reads more does not fit."""
        names = ("layers_per_block", "cross_attention_dim", "class_embed_type")
        more = ("global_pool_conditions", "addition_embed_type")
        said = {name: config[name] for name in (*names, *more)}
        return {**said, "widths": config["block_out_channels"], **embedded(config)}
