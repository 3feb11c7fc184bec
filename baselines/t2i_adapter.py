"""T2I-Adapter: features of the condition alone, added once a level to the frozen UNet's encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import T2IAdapter as AdapterModel
from torch import Tensor

from baselines.inputs import ConditionedDenoiser, OneNetwork, add_to_branches, check_match, like_base
from bench.base.load import Base
from bench.base.weights import DRAWN_BY_TEXT
from bench.types import Exchange, Task

_DRAWN = f"""\
with adapted(pipe.unet, adapter(condition)):
    {DRAWN_BY_TEXT}# StableDiffusionAdapterPipeline does the same on the published bases
"""
EXCHANGE = Exchange(
    parts=("adapter",),
    classes={"adapter": ("diffusers", "T2IAdapter")},
    pipeline="StableDiffusionAdapterPipeline",
    usage="""\
from baselines.t2i_adapter import adapted  # of BPS-Bench
from diffusers import StableDiffusionPipeline, T2IAdapter
adapter = T2IAdapter.from_pretrained("{folder}")
pipe = StableDiffusionPipeline.from_pretrained(
    "{base}", safety_checker=None, feature_extractor=None, dtype=torch.float32)
"""
    + _DRAWN,
    whole="""\
from baselines.t2i_adapter import adapted  # of BPS-Bench
from diffusers import StableDiffusionAdapterPipeline, StableDiffusionPipeline
whole = StableDiffusionAdapterPipeline.from_pretrained("{folder}").components
adapter, pipe = whole.pop("adapter"), StableDiffusionPipeline(**whole, requires_safety_checker=False)
"""
    + _DRAWN,
)
TIMESTEPS = ("cubic", "uniform")


def build_adapter(unet: Any, *, channels: int, downscale: int) -> AdapterModel:
    """Return diffusers' full T2IAdapter with one feature map for each level of a UNet.

    SDXL's (of three levels) begins a level lower, behind the UNet's first downsampler, and has a fourth map
    for the middle.
    """
    widths = list(unet.config["block_out_channels"])
    xl = len(widths) == 3
    return AdapterModel(
        in_channels=channels,
        channels=widths + widths[-1:] * xl,
        num_res_blocks=2,
        downscale_factor=downscale * (1 + xl),
        adapter_type="full_adapter_xl" if xl else "full_adapter",
    )


def cubic_timesteps(timesteps: Tensor, *, steps: int) -> Tensor:
    """Map uniform timesteps 0..steps-1 to (1 - u^3) * steps with u = (t + 1/2) / steps.

    Noisy timesteps come more often: P(t' < s) = 1 - (1 - s / steps)^(1/3), mean 3/4 steps. One
    integer goes to one integer, so near 0, where the density is a third of the uniform one, every
    third timestep occurs. Source: arXiv 2302.08453, its cubic sampling of timesteps.
    """
    share = (timesteps.double() + 0.5) / steps
    return ((1 - share**3) * steps).long().clamp(0, steps - 1)


@contextmanager
def adapted(unet: Any, features: Sequence[Tensor]) -> Iterator[None]:
    """Add feature i [B,C,h,w] behind the last resnet or attention of down block i while open.

    That is before the downsampler, as in the paper, and bit for bit what diffusers does with
    `down_intrablock_additional_residuals` where it can: in its blocks without attention that
    argument comes after the downsampler, where the sizes differ unless the block is the last. SDXL's are
    made for those sizes: the first is added behind the downsampler, a fourth behind the middle block.
    """
    places = [(getattr(block, "attentions", None) or block.resnets)[-1] for block in unet.down_blocks]
    if len(features) > len(places):
        places = [unet.down_blocks[0].downsamplers[-1], *places[1:], unet.mid_block]
    with ExitStack() as hooks:
        for place, feature in zip(places, features, strict=True):
            hooks.enter_context(place.register_forward_hook(partial(_added, feature)))
        yield


def _added(feature: Tensor, module: torch.nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # a transformer asked for return_dict=False
        return (add_to_branches(output[0], feature), *output[1:])
    return add_to_branches(output, feature)


class T2IAdapterDenoiser(ConditionedDenoiser):
    """The frozen UNet with a T2I-Adapter's features, made once an image; untrained it is not the base."""

    starts_as_base = False

    def __init__(self, base: Base, adapter: AdapterModel, *, task: Task, timesteps: str) -> None:
        super().__init__(base, task)
        self.unet, self.adapter = base.unet, adapter
        self.steps, self.timesteps = len(base.alphas), timesteps

    def encode(self, condition: Tensor) -> list[Tensor]:
        """Condition [B,C,H,W] in [0, 1] -> one feature map a UNet level, from [B,w0,h,w] down."""
        return list(self.adapter(super().encode(condition)))

    def warp_timesteps(self, timesteps: Tensor) -> Tensor:
        """Map the training loop's uniform timesteps [B] to those this method trains at, [B]."""
        return cubic_timesteps(timesteps, steps=self.steps) if self.timesteps == "cubic" else timesteps

    def check(self, features: Sequence[Tensor], latents: Tensor) -> None:
        """Raise ValueError unless feature maps belong to latents."""
        step = self.adapter.config["downscale_factor"] // self.downscale
        check_match(features[0], latents[..., ::step, ::step])

    def predict(self, rows: dict[str, Any], features: Sequence[Tensor]) -> Tensor:
        """Return the UNet's output with the features added to its encoder."""
        with adapted(self.unet, features):
            return super().predict(rows, features)


class T2IAdapter(OneNetwork):
    """T2I-Adapter, diffusers' full adapter."""

    name = "t2i-adapter"
    title = "T2I-Adapter"
    source = "Mou et al., AAAI 2024, https://arxiv.org/abs/2302.08453"
    options: dict[str, object] = {"timesteps": "cubic"}
    allowed = {"timesteps": "cubic, uniform"}
    part, kind = "adapter", AdapterModel
    exchange = EXCHANGE

    def build(self, base: Base, task: Task, *, timesteps: str = "cubic") -> T2IAdapterDenoiser:
        """Return the adapted base, whose adapter trains; timesteps: "cubic" as in the paper, or "uniform"."""
        if timesteps not in TIMESTEPS:
            raise ValueError(f"timesteps is '{timesteps}'; allowed: {', '.join(TIMESTEPS)}.")
        adapter = build_adapter(base.unet, channels=task.channels, downscale=base.downscale)
        return T2IAdapterDenoiser(base, like_base(adapter, base.device), task=task, timesteps=timesteps)

    def made_for(self, config: Any) -> dict[str, Any]:
        """Return the base and the condition; a light adapter's last map is as wide as the one before."""
        widths, kind = list(config["channels"]), config["adapter_type"]
        return {
            "condition channels": config["in_channels"],
            "widths": widths + widths[-1:] if kind == "light_adapter" else widths,
            "downscale": config["downscale_factor"],
            "for SDXL": kind == "full_adapter_xl",
        }
