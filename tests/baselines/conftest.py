"""Denoisers and inputs on the tiny base, and UNets of known shapes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from bench import registry
from bench.base.load import Base

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def sd15_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)


def small_unet(attention: tuple[bool, ...] = (True, True, True, False)) -> UNet2DConditionModel:
    """A random four-level UNet with attention at the given levels."""
    down = tuple(CROSS if has else PLAIN for has in attention)
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32, 48),
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=8,
    ).requires_grad_(False)


def shake(module: torch.nn.Module) -> None:
    """Move every trainable parameter, so that no zero convolution hides anything."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def trainable(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above, for test modules."""
    return SimpleNamespace(sd15_unet=sd15_unet, small_unet=small_unet, shake=shake, trainable=trainable)


@pytest.fixture
def build(micro_base: Base) -> Callable[..., Any]:
    """Build a method on the tiny base for the sketch task."""

    def make(method: Any, **options: Any) -> Any:
        torch.manual_seed(0)
        return method().build(micro_base, registry.load("task", "sketch"), **options).eval()

    return make


@pytest.fixture
def inputs(micro_base: Base) -> SimpleNamespace:
    """Latents [3,4,16,16], timesteps, text [2,3,L,D] and a sketch [3,1,64,64]."""
    rng = torch.Generator().manual_seed(1)
    width = micro_base.unet.config["cross_attention_dim"]
    return SimpleNamespace(
        latents=torch.randn(3, 4, 16, 16, generator=rng),
        timesteps=torch.tensor([5, 420, 990]),
        text=torch.randn(2, 3, 16, width, generator=rng),
        condition=torch.rand(3, 1, 64, 64, generator=rng),
    )
