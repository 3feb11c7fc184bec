"""A UNet of its own whose first convolution also sees the condition (channel concatenation)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from baselines.inputs import ConditionedDenoiser, add_to_branches, check_match, like_base
from bench.base.load import Base
from bench.types import Task

DRAWN = """\
pipe = StableDiffusionPipeline.from_pretrained(
    "{base}", unet=unet, safety_checker=None, feature_extractor=None, dtype=torch.float32)
seen = torch.nn.functional.pixel_unshuffle(condition, {downscale})
unet.register_to_config(in_channels=4)  # what the pipeline draws; the UNet reads the condition beside it
unet.register_forward_pre_hook(lambda _, given: (
    torch.cat([given[0], seen.expand(len(given[0]), -1, -1, -1)], dim=1), *given[1:]))
image = pipe("{prompt}", height={size}, width={size}, {sampling}).images[0]
"""
"""How to draw with a UNet that reads latents and condition together, as lines of an Exchange."""


class ConcatDenoiser(ConditionedDenoiser):
    """A copy of the base's UNet that takes latents and condition together.

    The condition is pixel-unshuffled to latent cells, [B,C*f*f,h,w], and read by new input channels
    of conv_in, zero at the start. They are a convolution of their own whose output is added to
    conv_in's: the same function as one wider convolution, which on a CPU sums in another order for
    some sizes (one row, 48 new channels: 5e-7 away from the base before any training). As its part
    depends on the condition alone, it is computed once an image.
    """

    def __init__(self, base: Base, unet: Any, *, task: Task) -> None:
        super().__init__(base, task)
        self.unet = unet
        first = unet.conv_in
        extra = torch.nn.Conv2d(
            task.channels * base.downscale**2,
            first.out_channels,
            first.kernel_size,
            padding=first.padding,
            bias=False,  # conv_in has the one bias
        )
        torch.nn.init.zeros_(extra.weight)
        self.extra: Any = like_base(extra, base.device)

    def encode(self, condition: Tensor) -> Tensor:
        """Condition [B,C,H,W] in [0, 1] -> its part of the first convolution, [B,w0,h,w]."""
        return self.extra(F.pixel_unshuffle(super().encode(condition), self.downscale))

    def check(self, features: Tensor, latents: Tensor) -> None:
        """Raise ValueError unless features [B,w0,h,w] belong to latents."""
        check_match(features, latents)

    def predict(self, rows: dict[str, Any], features: Tensor) -> Tensor:
        """Return the UNet's output, with the features added to its first convolution's."""
        with self.unet.conv_in.register_forward_hook(
            lambda module, args, output: add_to_branches(output, features)
        ):
            return super().predict(rows, features)


def wide_input(denoiser: ConcatDenoiser) -> dict[str, Tensor]:
    """Return one convolution of latents and unshuffled condition: weight [w0,4+C*f*f,3,3], bias [w0]."""
    first = denoiser.unet.conv_in
    weight = torch.cat([first.weight, denoiser.extra.weight], dim=1).detach()
    return {"weight": weight.contiguous(), "bias": first.bias.detach()}


def widened(denoiser: ConcatDenoiser) -> UNet2DConditionModel:
    """Return a plain UNet of cat[latents, pixel_unshuffle(condition, f)], sharing the denoiser's tensors."""
    unet, first = denoiser.unet, wide_input(denoiser)
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(unet.config, in_channels=first["weight"].shape[1])
    state = {**unet.state_dict(), **{f"conv_in.{name}": tensor for name, tensor in first.items()}}
    plain.load_state_dict(state, assign=True)
    return plain


def put_input(denoiser: ConcatDenoiser, first: dict[str, Tensor]) -> None:
    """Put one convolution of latents and condition (wide_input) into the denoiser's two."""
    count = denoiser.unet.conv_in.in_channels
    with torch.no_grad():
        denoiser.unet.conv_in.weight.copy_(first["weight"][:, :count])
        denoiser.unet.conv_in.bias.copy_(first["bias"])
        denoiser.extra.weight.copy_(first["weight"][:, count:])
