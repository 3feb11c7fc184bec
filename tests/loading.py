"""Methods with random trained weights, saved and loaded through their own rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    UNet2DConditionModel,
)

from bench import registry
from bench.base.load import Base
from bench.base.weights import Source, Weights, open_source
from bench.training.checkpoint import Trainable

TASK = registry.load("task", "sketch")


def built(name: str, base: Base, *, seed: int = 0, task: Any = TASK, **options: Any) -> Any:
    torch.manual_seed(seed)
    method = registry.load("method", name)
    return method.build(base, task, **{**method.options, **options}).eval()


def moved(name: str, base: Base, **options: Any) -> Any:
    """A method with random trained weights, so that nothing is zero."""
    denoiser = built(name, base, **options)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in Trainable(denoiser).parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
    return denoiser


def inputs(base: Base, channels: int = 1) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(2)
    size, width = 16, base.unet.config["cross_attention_dim"]
    return (
        torch.randn(2, 4, size, size, generator=draws),
        torch.tensor([3, 700]),
        torch.randn(1, 2, 5, width, generator=draws),
        torch.rand(2, channels, size * base.downscale, size * base.downscale, generator=draws),
    )


def eps(denoiser: Any, base: Base, channels: int = 1) -> torch.Tensor:
    latents, steps, text, condition = inputs(base, channels)
    with torch.no_grad():
        return denoiser(latents, steps, text, denoiser.encode(condition))[0]


def source(path: Path, name: str) -> Source:
    found = open_source(Weights(path=path), registry.load("method", name))
    assert found is not None
    return found


def load(denoiser: Any, path: Path, name: str) -> dict[str, str]:
    return registry.load("method", name).load(denoiser, source(path, name))


def saved(name: str, base: Base, folder: Path, **options: Any) -> Any:
    denoiser = moved(name, base, **options)
    folder.mkdir(exist_ok=True)
    registry.load("method", name).save(denoiser, folder)
    return denoiser


def other_base(base: Base, **changes: Any) -> Base:
    """The base with another UNet of random weights."""
    torch.manual_seed(7)
    unet = UNet2DConditionModel.from_config(base.unet.config, **changes).eval()
    return replace(base, unet=unet.requires_grad_(False))


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))
