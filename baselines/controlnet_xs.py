"""ControlNet-XS: a narrow control encoder that exchanges features with the frozen UNet both ways."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetXSAdapter, UNetControlNetXSModel

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
    classes={"controlnet": ("diffusers", "ControlNetXSAdapter")},
    pipeline="StableDiffusionControlNetXSPipeline",
    usage="""\
from diffusers import ControlNetXSAdapter, StableDiffusionControlNetXSPipeline
net = ControlNetXSAdapter.from_pretrained("{folder}")
pipe = StableDiffusionControlNetXSPipeline.from_pretrained(
    "{base}", controlnet=net, safety_checker=None, feature_extractor=None, dtype=torch.float32)
image = pipe("{prompt}", image=condition, {sampling}).images[0]
# diffusers copies the UNet into group norms with eps 1e-6 (Stable Diffusion: 1e-5): eps moves by 1e-5
""",
    whole="""\
from diffusers import StableDiffusionControlNetXSPipeline
pipe = StableDiffusionControlNetXSPipeline.from_pretrained("{folder}")
image = pipe("{prompt}", image=condition, {sampling}).images[0]
# diffusers copies the UNet into group norms with eps 1e-6 (Stable Diffusion: 1e-5): eps moves by 1e-5
""",
)


_EXCHANGED = ("base_to_ctrl", "ctrl_to_base")
_SHARED = (
    *("conv_in", "time_proj", "time_embedding", "add_time_proj", "add_embedding"),
    *("conv_norm_out", "conv_out"),
)


def control_widths(unet: Any, *, size_ratio: float) -> tuple[int, ...]:
    """Return the control encoder's widths: the UNet's times a ratio, whole attention heads each."""
    heads = _heads(unet)
    return tuple(
        h * max(1, round(width * size_ratio / h))
        for width, h in zip(unet.config["block_out_channels"], heads, strict=True)
    )


def build_fused(unet: Any, *, channels: int, downscale: int, size_ratio: float) -> UNetControlNetXSModel:
    """Return diffusers' fused model around a UNet's own frozen modules; the control part trains.

    Control norms have at least two channels a group where diffusers lets one choose. channels: C of the
    condition; downscale: pixels per latent cell.
    Raises ValueError for a UNet without two resnets a level, all that diffusers' class is made for.
    """
    return fuse(
        unet,
        build_control(unet, channels=channels, downscale=downscale, size_ratio=size_ratio),
    )


def build_control(unet: Any, *, channels: int, downscale: int, size_ratio: float) -> ControlNetXSAdapter:
    """Return diffusers' adapter for a UNet, not yet joined to it; see build_fused."""
    config = unet.config
    if config["layers_per_block"] != 2:
        raise ValueError(f"the UNet has {config['layers_per_block']} resnets a level; ControlNet-XS needs 2.")
    widths = control_widths(unet, size_ratio=size_ratio)
    return ControlNetXSAdapter(
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


def split(fused: Any, unet: Any) -> ControlNetXSAdapter:
    """Return a fused model's control part as diffusers' adapter, the inverse of `fuse`."""
    own, base = fused.config, unet.config
    names = (
        *("conditioning_channels", "conditioning_channel_order", "learn_time_embedding"),
        *("conditioning_embedding_out_channels", "block_out_channels", "num_attention_heads"),
        "max_norm_num_groups",
    )
    shared = (
        *("cross_attention_dim", "down_block_types", "sample_size", "use_linear_projection"),
        "transformer_layers_per_block",
    )
    adapter = ControlNetXSAdapter(
        **{name: own[f"ctrl_{name}"] for name in names},
        **{name: base[name] for name in shared},
        time_embedding_mix=own["time_embedding_mix"],
        base_block_out_channels=base["block_out_channels"],
        upcast_attention=base["upcast_attention"] or False,
    )
    for theirs, ours in _control_parts(adapter, fused):
        theirs.load_state_dict(ours.state_dict())
    return adapter


def _control_parts(adapter: Any, fused: Any) -> list[tuple[Any, Any]]:
    """Return the modules of an adapter, each with the one that holds its weights in a fused model."""
    pairs = [
        (adapter.controlnet_cond_embedding, fused.controlnet_cond_embedding),
        (adapter.conv_in, fused.ctrl_conv_in),
        (adapter.control_to_base_for_conv_in, fused.control_to_base_for_conv_in),
        (adapter.time_embedding, fused.ctrl_time_embedding),
        (adapter.mid_block.midblock, fused.mid_block.ctrl_midblock),
        *((getattr(adapter.mid_block, n), getattr(fused.mid_block, n)) for n in _EXCHANGED),
    ]
    for theirs, ours in zip(adapter.down_blocks, fused.down_blocks, strict=True):
        pairs += [
            (getattr(theirs, name), getattr(ours, f"ctrl_{name}"))
            for name in ("resnets", "attentions", "downsamplers")
        ]
        pairs += [(getattr(theirs, n), getattr(ours, n)) for n in _EXCHANGED]
    for theirs, ours in zip(adapter.up_connections, fused.up_blocks, strict=True):
        pairs.append((theirs.ctrl_to_base, ours.ctrl_to_base))
    return [pair for pair in pairs if pair[0] is not None]


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


class ControlNetXSDenoiser(ConditionedDenoiser):
    """diffusers' UNetControlNetXSModel; control and UNet read each other, so all K*B rows run both."""

    def __init__(self, base: Base, fused: UNetControlNetXSModel, *, task: Task) -> None:
        super().__init__(base, task)
        self.fused, self._base = fused, base

    @property
    def unet(self) -> Any:
        """The base's UNet, whose modules the fused model shares."""
        return self._base.unet

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
            **self.rows(latents, timesteps, text),
            controlnet_cond=features.repeat(len(text), 1, 1, 1),
            return_dict=False,
        )[0]
        return self.eps(output, latents, timesteps)


class ControlNetXS:
    """ControlNet-XS as in diffusers, around the shared frozen base."""

    name = "controlnet-xs"
    title = "ControlNet-XS"
    conditioned = True
    source = "Zavadski, Feiden, Rother, ECCV 2024, https://arxiv.org/abs/2312.06573"
    options: dict[str, object] = {"size_ratio": 0.25}
    allowed = {"size_ratio": "a number above 0, at most 1"}
    exchange = EXCHANGE

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

    def load(self, denoiser: ControlNetXSDenoiser, source: Source) -> dict[str, str]:
        """Join a ControlNetXSAdapter's weights to the base; BenchError where they do not fit.

        Its widths must be those of the option size_ratio, and it must have no time embedding of its own.
        """
        adapter, unet = source.model(ControlNetXSAdapter), denoiser.unet
        source.fit(_made_for(adapter.config), _made_for(split(denoiser.fused, unet).config))
        denoiser.fused = like_base(fuse(unet, adapter), str(unet.device))
        return {}

    def save(self, denoiser: ControlNetXSDenoiser, folder: Path) -> None:
        """Write the control part as ControlNetXSAdapter.from_pretrained loads it."""
        split(denoiser.fused, denoiser.unet).save_pretrained(folder)


def _made_for(config: Any) -> dict[str, Any]:
    """Return what an adapter's configuration says of the base, the condition and the options."""
    names = ("conditioning_channel_order", "learn_time_embedding", "time_embedding_mix")
    return {
        **{name: config[name] for name in (*names, "cross_attention_dim", "max_norm_num_groups")},
        "widths": config["base_block_out_channels"],
        "widths of the control (option size_ratio)": config["block_out_channels"],
        "condition channels": config["conditioning_channels"],
        "downscale": 2 ** (len(config["conditioning_embedding_out_channels"]) - 1),
    }
