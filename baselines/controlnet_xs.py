"""ControlNet-XS: a narrow control encoder that exchanges features with the frozen UNet both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetXSAdapter, UNetControlNetXSModel

from baselines.inputs import (
    check_condition,
    check_match,
    embedding_widths,
    expand,
    like_base,
)

if TYPE_CHECKING:
    from bench.base import Base
    from bench.types import Task


def control_widths(unet: Any, *, size_ratio: float) -> tuple[int, ...]:
    """Return the control encoder's widths: the UNet's times a ratio, whole attention heads each."""
    heads = _heads(unet)
    return tuple(
        h * max(1, round(width * size_ratio / h))
        for width, h in zip(unet.config["block_out_channels"], heads, strict=True)
    )


def build_fused(
    unet: Any, *, channels: int, downscale: int, size_ratio: float
) -> UNetControlNetXSModel:
    """Return diffusers' fused model around a UNet's own frozen modules; the control part trains.

    The UNet's modules are shared, not copied: diffusers' copies have group norms with eps 1e-6
    where Stable Diffusion has 1e-5, which moves eps by 1e-5 before any training. Control norms have
    at least two channels a group where diffusers lets one choose. channels: C of the condition;
    downscale: pixels per latent cell.
    Raises ValueError for a UNet without two resnets a level, all that diffusers' class is made for.
    """
    config = unet.config
    if config["layers_per_block"] != 2:
        raise ValueError(
            f"the UNet has {config['layers_per_block']} resnets a level; ControlNet-XS needs 2."
        )
    widths = control_widths(unet, size_ratio=size_ratio)
    adapter = ControlNetXSAdapter(
        conditioning_channels=channels,
        conditioning_embedding_out_channels=embedding_widths(downscale),
        num_attention_heads=_heads(unet),
        block_out_channels=widths,
        base_block_out_channels=config["block_out_channels"],
        cross_attention_dim=config["cross_attention_dim"],
        down_block_types=config["down_block_types"],
        sample_size=config["sample_size"],
        transformer_layers_per_block=config["transformer_layers_per_block"],
        upcast_attention=config["upcast_attention"] or False,
        max_norm_num_groups=max(1, min(config["norm_num_groups"], min(widths) // 2)),
        use_linear_projection=config["use_linear_projection"],
    )
    fused = UNetControlNetXSModel.from_unet(unet, controlnet=adapter)
    fused.freeze_unet_params()
    _share(fused, unet.requires_grad_(False))
    _freeze_without_effect(fused)
    return fused


def _heads(unet: Any) -> tuple[int, ...]:
    """Return the attention heads of each level (the configuration calls them attention_head_dim)."""
    config = unet.config
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    return (heads,) * len(config["block_out_channels"]) if isinstance(heads, int) else tuple(heads)


def _share(fused: Any, unet: Any) -> None:
    """Put the UNet's own modules in place of the fused model's copies."""
    for name in ("conv_in", "time_proj", "time_embedding", "conv_norm_out", "conv_out"):
        setattr(fused, f"base_{name}", getattr(unet, name))
    for block, own in zip(fused.down_blocks, unet.down_blocks, strict=True):
        block.base_resnets = own.resnets
        if hasattr(own, "attentions"):
            block.base_attentions = own.attentions
        if own.downsamplers is not None:
            block.base_downsamplers = own.downsamplers[0]
    fused.mid_block.base_midblock = unet.mid_block
    for block, own in zip(fused.up_blocks, unet.up_blocks, strict=True):
        block.resnets = own.resnets
        if hasattr(own, "attentions"):
            block.attentions = own.attentions
        if own.upsamplers is not None:
            block.upsamplers = own.upsamplers[0]


def _freeze_without_effect(fused: Any) -> None:
    """Set to zero and freeze what a group norm of one channel a group takes out again.

    Such a norm removes any constant of a channel: of the convolution before it the bias, and the
    timestep. It occurs in the middle of narrow control encoders, where diffusers fixes the groups.
    Zero, because a saved method holds trained parameters only and must load to the same bits.
    """
    controls = [*fused.mid_block.ctrl_midblock.resnets]
    for block in fused.down_blocks:
        controls += [*block.ctrl_resnets]
    for resnet in controls:
        if resnet.norm2.num_groups == resnet.norm2.num_channels:
            for parameter in (resnet.conv1.bias, *resnet.time_emb_proj.parameters()):
                torch.nn.init.zeros_(parameter.requires_grad_(False))


class ControlNetXSDenoiser(torch.nn.Module):
    """diffusers' UNetControlNetXSModel; control and UNet read each other, so all K*B rows run both."""

    def __init__(self, base: Base, fused: UNetControlNetXSModel, *, task: Task) -> None:
        super().__init__()
        self.fused = fused
        self.downscale, self.channels, self.task_name = base.downscale, task.channels, task.name
        self._to_eps = base.to_eps

    def encode(self, condition: torch.Tensor) -> torch.Tensor:
        """Check the condition [B,C,H,W] in [0, 1] and pass it through; ValueError if it cannot fit."""
        check_condition(
            condition, channels=self.channels, downscale=self.downscale, task=self.task_name
        )
        return condition

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        features: torch.Tensor,
    ) -> torch.Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], features [B,C,H,W] -> eps [K,B,4,h,w]."""
        check_match(features, latents, downscale=self.downscale)
        output = self.fused(
            *expand(latents, timesteps, text),
            controlnet_cond=features.repeat(len(text), 1, 1, 1),
            return_dict=False,
        )[0]
        return self._to_eps(output.unflatten(0, (len(text), -1)), latents, timesteps)


class ControlNetXS:
    """ControlNet-XS as in diffusers, around the shared frozen base."""

    name = "controlnet-xs"
    title = "ControlNet-XS"
    conditioned = True
    source = "Zavadski, Feiden, Rother, ECCV 2024, https://arxiv.org/abs/2312.06573"
    options: dict[str, object] = {"size_ratio": 0.25}

    def build(self, base: Base, task: Task, *, size_ratio: float = 0.25) -> ControlNetXSDenoiser:
        """Return the controlled base; only the control encoder and the connections train.

        size_ratio: its widths as a share of the UNet's. Raises ValueError outside (0, 1].
        """
        if not 0 < size_ratio <= 1:
            raise ValueError(f"size_ratio is {size_ratio}; allowed: above 0, at most 1.")
        fused = build_fused(
            base.unet, channels=task.channels, downscale=base.downscale, size_ratio=size_ratio
        )
        return ControlNetXSDenoiser(base, like_base(fused, base.device), task=task)
