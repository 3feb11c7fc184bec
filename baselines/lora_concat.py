"""LoRA + concat: low-rank factors in a frozen copy of the UNet, the condition beside the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig

from baselines.concat import ConcatDenoiser
from baselines.inputs import like_base

if TYPE_CHECKING:
    from bench.base import Base
    from bench.types import Task

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def lora_targets(unet: Any) -> list[str]:
    """Return the names of the layers that get factors: attention projections and inner convolutions.

    conv_in and conv_out have four channels on one side: nothing there is worth a low rank.
    """
    return [
        name
        for name, module in unet.named_modules()
        if name.endswith(ATTENTION)
        or (isinstance(module, torch.nn.Conv2d) and name not in ("conv_in", "conv_out"))
    ]


def add_lora(unet: Any, *, rank: int) -> Any:
    """Freeze a UNet and add trainable LoRA factors of a rank to its targets, in place.

    The second factors are zero, so the output is the UNet's own to the last bit; the scaling is 1.
    """
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=lora_targets(unet)))
    return unet


class LoraConcat:
    """LoRA on attention and convolutions, and new input channels for the condition."""

    name = "lora-concat"
    title = "LoRA + concat"
    conditioned = True
    source = (
        "Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685; channel concatenation as in "
        "https://arxiv.org/abs/2211.09800"
    )
    options: dict[str, object] = {"rank": 16}

    def build(self, base: Base, task: Task, *, rank: int = 16) -> ConcatDenoiser:
        """Return a frozen copy of the base; its LoRA factors and its new input channels train.

        rank: of each pair of factors, a whole number from 1; ValueError for anything else.
        """
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank is {rank!r}; allowed: a whole number from 1.")
        unet = add_lora(base.prior_unet("free"), rank=rank)
        return ConcatDenoiser(base, like_base(unet, base.device), task=task)
