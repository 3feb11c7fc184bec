"""What `bench cost --random` holds methods against: a UNet alone, and ControlNet as diffusers trains it.

They are methods without a use of their own, so no table lists them: "baselines.yardsticks:UNetTrained".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from baselines.controlnet import ControlNetDenoiser, build_controlnet
from baselines.inputs import like_base
from baselines.style_only import StyleOnly
from baselines.text_only import TextOnlyDenoiser

if TYPE_CHECKING:
    from bench.base.load import Base
    from bench.types import Task


class ShiftedDenoiser(TextOnlyDenoiser):
    """The frozen base with the pass back to the latents: what is trained lies before the UNet."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.shift = torch.nn.Parameter(torch.zeros(1, device=base.device))

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: None) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> eps [K,B,4,h,w]."""
        return super().forward(latents + self.shift, timesteps, text, features)


class ScriptDenoiser(ControlNetDenoiser):
    """The step of diffusers' examples/controlnet/train_controlnet.py, latents and text given.

    As there: a ControlNetModel in float32 under autocast, the frozen UNet in the precision itself.
    """

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: Tensor) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], features [B,C,H,W] -> eps [K,B,4,h,w]."""
        rows = self.rows(latents, timesteps, text)
        condition = features.repeat(len(text), 1, 1, 1)
        down, middle = self.controlnet(**rows, controlnet_cond=condition, return_dict=False)
        precision = middle.dtype
        if self.unet.dtype != precision:
            self.unet.to(precision)  # at the first step, as the script does before it
        rows |= {name: rows[name].to(precision) for name in ("sample", "encoder_hidden_states")}
        return self.eps(self.predict(rows, down, middle), latents, timesteps)


class _Yardstick:
    conditioned = False
    source = "bench cost --random"
    options: dict[str, object] = {}


class UNetBackward(_Yardstick):
    """A frozen UNet's forward and backward pass down to the latents: what every adapter pays at most."""

    name, title = "unet-backward", "UNet alone, frozen (forward, backward)"

    def build(self, base: Base, task: Task) -> ShiftedDenoiser:
        """Return the base, whose latents are shifted by the one parameter that trains."""
        return ShiftedDenoiser(base)


class UNetTrained(StyleOnly):
    """A UNet without any condition, all of it trained."""

    name, title = "unet-trained", "UNet alone, trained"


class DiffusersControlNet(_Yardstick):
    """ControlNet as diffusers' training script runs it."""

    name, title = "diffusers-controlnet", "ControlNet as in diffusers' script"

    def build(self, base: Base, task: Task) -> ScriptDenoiser:
        """Return the base with diffusers' ControlNetModel, which trains."""
        net = build_controlnet(base.unet, channels=task.channels, downscale=base.downscale)
        return ScriptDenoiser(base, like_base(net, base.device), task=task, scale=1.0)
