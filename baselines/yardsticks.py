"""What `bench cost --random` holds methods against: a UNet alone, and ControlNet as diffusers trains it.

They are methods without a use of their own, so no table lists them: "baselines.yardsticks:UNetTrained".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.controlnet import ControlNet, ControlNetDenoiser
from baselines.inputs import UnconditionedDenoiser
from baselines.style_only import StyleOnly
from baselines.text_only import TextOnly
from bench.base.load import Base
from bench.types import Task


class ShiftedDenoiser(UnconditionedDenoiser):
    """The frozen base with the pass back to the latents: what is trained lies before the UNet."""

    def __init__(self, base: Base, task: Task) -> None:
        super().__init__(base, task, base.unet)
        self.shift = torch.nn.Parameter(torch.zeros(1, device=base.device))

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: None) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> eps [K,B,4,h,w]."""
        return super().forward(latents + self.shift, timesteps, text, features)


class ScriptDenoiser(ControlNetDenoiser):
    """The step of diffusers' examples/controlnet/train_controlnet.py, latents and text given.

    As there: a ControlNetModel in float32 under autocast, the frozen UNet in the precision itself.
    """

    def residuals(self, rows: dict[str, Any], features: Tensor) -> Any:
        """Return the ControlNet's, and bring UNet and rows to their precision."""
        down, middle = super().residuals(rows, features)
        if self.unet.dtype != middle.dtype:
            self.unet.to(middle.dtype)  # at the first step, as the script does before it
        rows |= {name: rows[name].to(middle.dtype) for name in ("sample", "encoder_hidden_states")}
        return down, middle


class UNetBackward(TextOnly):
    """A frozen UNet's forward and backward pass down to the latents: what every adapter pays at most."""

    name, title = "unet-backward", "UNet alone, frozen (forward, backward)"

    def build(self, base: Base, task: Task) -> ShiftedDenoiser:
        """Return the base, whose latents are shifted by the one parameter that trains."""
        return ShiftedDenoiser(base, task)


class UNetTrained(StyleOnly):
    """A UNet without any condition, all of it trained."""

    name, title = "unet-trained", "UNet alone, trained"


class DiffusersControlNet(ControlNet):
    """ControlNet as diffusers' training script runs it."""

    name, title = "diffusers-controlnet", "ControlNet as in diffusers' script"
    options, denoiser = {}, ScriptDenoiser
