"""ControlNet-XS: a narrow control encoder that exchanges features with the frozen UNet both ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetXSAdapter, UNetControlNetXSModel
from torch import Tensor

from baselines.inputs import ConditionedDenoiser, embedded, embedding_widths, like_base, to_rows
from bench.base.load import Base
from bench.base.weights import Source, one_part
from bench.types import Task

_TIMES = ("time_proj", "time_embedding", "add_time_proj", "add_embedding")
_SHARED = ("conv_in", *_TIMES, "conv_norm_out", "conv_out")


def control_widths(unet: Any, *, size_ratio: float) -> tuple[int, ...]:
    """Return the control encoder's widths: the UNet's times a ratio, whole attention heads each."""
    widths = zip(unet.config["block_out_channels"], _heads(unet), strict=True)
    return tuple(heads * max(1, round(width * size_ratio / heads)) for width, heads in widths)


def build_control(unet: Any, *, channels: int, downscale: int, size_ratio: float) -> ControlNetXSAdapter:
    """Return diffusers' adapter for a UNet, not yet joined to it (fuse).

    channels: C of the condition; downscale: pixels per latent cell. Its norms have at least two channels a
    group where diffusers lets one choose. Raises ValueError for a UNet without two resnets a level, all that
    diffusers' class is made for.
    """
    config = unet.config
    if config["layers_per_block"] != 2:
        raise ValueError(f"the UNet has {config['layers_per_block']} resnets a level; ControlNet-XS needs 2.")
    widths = control_widths(unet, size_ratio=size_ratio)
    shared = ("cross_attention_dim", "down_block_types", "sample_size", "transformer_layers_per_block")
    return ControlNetXSAdapter(
        conditioning_channels=channels,
        conditioning_embedding_out_channels=embedding_widths(downscale),
        num_attention_heads=_heads(unet),
        block_out_channels=widths,
        base_block_out_channels=config["block_out_channels"],
        upcast_attention=config["upcast_attention"] or False,
        max_norm_num_groups=max(1, min(config["norm_num_groups"], min(widths) // 2)),
        use_linear_projection=config["use_linear_projection"],
        **{name: config[name] for name in shared},
    )


def fuse(unet: Any, adapter: ControlNetXSAdapter) -> UNetControlNetXSModel:
    """Return diffusers' fused model of an adapter's weights and a UNet's own frozen modules.

    The UNet's modules are shared, not copied: diffusers' copies have group norms with eps 1e-6
    where Stable Diffusion has 1e-5, which moves eps by 1e-5 before any training.
    """
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
    for name in _SHARED:
        if hasattr(unet, name):
            setattr(fused, f"base_{name}", getattr(unet, name))
    fused.mid_block.base_midblock = unet.mid_block
    for blocks, owns, prefix in (
        (fused.down_blocks, unet.down_blocks, "base_"),
        (fused.up_blocks, unet.up_blocks, ""),
    ):
        for block, own in zip(blocks, owns, strict=True):
            for name in ("resnets", "attentions"):
                if hasattr(own, name):
                    setattr(block, f"{prefix}{name}", getattr(own, name))
            for name in ("downsamplers", "upsamplers"):
                if getattr(own, name, None) is not None:
                    setattr(block, f"{prefix}{name}", getattr(own, name)[0])


def split(fused: Any, config: Any) -> ControlNetXSAdapter:
    """Return a fused model's control part as diffusers' adapter of a configuration, the inverse of `fuse`."""
    adapter, state = ControlNetXSAdapter.from_config(config), fused.state_dict()
    adapter.load_state_dict({name: state[_in_fused(name)] for name in adapter.state_dict()})
    return adapter


def _in_fused(name: str) -> str:
    """Return where a fused model holds a parameter of an adapter."""
    name = re.sub(r"^(conv_in|time_embedding)\.", r"ctrl_\1.", name)
    name = re.sub(
        r"^(down_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|midblock)", r"\1.ctrl_\2", name
    )
    return name.replace("up_connections.", "up_blocks.", 1)


def _freeze_without_effect(fused: Any) -> None:
    """Zero and freeze what a group norm of one channel a group takes out again: constants of a channel."""
    levels = [block.ctrl_resnets for block in fused.down_blocks]
    for resnet in (r for resnets in (fused.mid_block.ctrl_midblock.resnets, *levels) for r in resnets):
        if resnet.norm2.num_groups == resnet.norm2.num_channels:
            for parameter in (resnet.conv1.bias, *resnet.time_emb_proj.parameters()):
                torch.nn.init.zeros_(parameter.requires_grad_(False))


class ControlNetXSDenoiser(ConditionedDenoiser):
    """diffusers' UNetControlNetXSModel; control and UNet read each other, so all K*B rows run both."""

    def __init__(self, base: Base, control: ControlNetXSAdapter, *, task: Task) -> None:
        super().__init__(base, task)
        self._base = base
        self.join(control)

    def join(self, control: ControlNetXSAdapter) -> None:
        """Control the base with an adapter's weights."""
        self.control = control.config
        self.fused: Any = like_base(fuse(self.unet, control), self._base.device)

    @property
    def unet(self) -> Any:  # type: ignore[override]
        """The base's UNet, whose modules the fused model shares."""
        return self._base.unet

    def predict(self, rows: dict[str, Any], features: Tensor) -> Tensor:
        """Return the fused model's output under a condition [B,C,H,W]."""
        return self.fused(**rows, controlnet_cond=to_rows(features, rows), return_dict=False)[0]


class ControlNetXS:
    """ControlNet-XS as in diffusers, around the shared frozen base."""

    name = "controlnet-xs"
    title = "ControlNet-XS"
    conditioned = True
    source = "Zavadski, Feiden, Rother, ECCV 2024, https://arxiv.org/abs/2312.06573"
    options: dict[str, object] = {"size_ratio": 0.25}
    allowed = {"size_ratio": "a number above 0, at most 1"}
    exchange = one_part(
        "controlnet",
        "ControlNetXSAdapter",
        "StableDiffusionControlNetXSPipeline",
        note="# diffusers copies the UNet into norms with eps 1e-6 (the base: 1e-5): its eps moves by 1e-5\n",
    )

    def build(self, base: Base, task: Task, *, size_ratio: float = 0.25) -> ControlNetXSDenoiser:
        """Return the controlled base; size_ratio: of the control's widths to the UNet's, in (0, 1]."""
        if not 0 < size_ratio <= 1:
            raise ValueError(f"size_ratio is {size_ratio}; allowed: above 0, at most 1.")
        sizes = {"channels": task.channels, "downscale": base.downscale}
        return ControlNetXSDenoiser(base, build_control(base.unet, size_ratio=size_ratio, **sizes), task=task)

    def load(self, denoiser: ControlNetXSDenoiser, source: Source) -> dict[str, str]:
        """Join a ControlNetXSAdapter's weights to the base; BenchError where they, or widths, do not fit."""
        adapter = source.model(ControlNetXSAdapter)
        source.fit(_made_for(adapter.config), _made_for(denoiser.control))
        denoiser.join(adapter)
        return {}

    def save(self, denoiser: ControlNetXSDenoiser, folder: Path) -> None:
        """Write the control part as ControlNetXSAdapter.from_pretrained loads it."""
        split(denoiser.fused, denoiser.control).save_pretrained(folder)


def _made_for(config: Any) -> dict[str, Any]:
    """Return what an adapter's configuration says of the base, the condition and the options."""
    names = ("conditioning_channel_order", "learn_time_embedding", "time_embedding_mix")
    return {
        **{name: config[name] for name in (*names, "cross_attention_dim", "max_norm_num_groups")},
        "widths": config["base_block_out_channels"],
        "widths of the control (option size_ratio)": config["block_out_channels"],
        **embedded(config),
    }
