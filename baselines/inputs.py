"""What the baselines share: checks of what comes in, and features for K guidance branches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import types
from bench.base.load import Base
from bench.base.weights import Source
from bench.types import Task


class ConditionedDenoiser(torch.nn.Module):
    """What denoisers of the baselines share: the checks of a condition, and eps of what a UNet predicts."""

    unet: Any

    def __init__(self, base: Base, task: Task) -> None:
        super().__init__()
        self.downscale, self.channels, self.task_name = base.downscale, task.channels, task.name
        self._to_eps, self._rows = base.to_eps, base.unet_inputs

    def encode(self, condition: Tensor) -> Any:
        """Check the condition [B,C,H,W] in [0, 1] and pass it through; ValueError if it cannot fit."""
        check_condition(condition, channels=self.channels, downscale=self.downscale, task=self.task_name)
        return condition

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: Any) -> Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], features of encode -> eps [K,B,4,h,w]."""
        self.check(features, latents)
        output = self.predict(self._rows(latents, timesteps, text), features)
        return self._to_eps(output.unflatten(0, (-1, len(latents))), latents, timesteps)

    def check(self, features: Any, latents: Tensor) -> None:
        """Raise ValueError unless features of encode belong to latents; here [B,C,H,W], the condition's."""
        check_match(features, latents, downscale=self.downscale)

    def predict(self, rows: dict[str, Any], features: Any) -> Tensor:
        """Return the UNet's output [K*B,4,h,w] for Base.unet_inputs; here without the features."""
        return self.unet(**rows, return_dict=False)[0]


class UnconditionedDenoiser(ConditionedDenoiser):
    """A UNet that never sees the condition."""

    def __init__(self, base: Base, task: Task, unet: Any) -> None:
        super().__init__(base, task)
        self.unet = unet

    def encode(self, condition: Tensor) -> None:
        """Ignore the condition."""

    def check(self, features: None, latents: Tensor) -> None:
        """Nothing has to fit."""


class OneNetwork:
    """What methods share whose trained weights are one network of diffusers.

    part: its name in denoiser and pipeline; kind: its class; made_for: its configuration -> what of it base,
    task and options decide, in words.
    """

    conditioned = True
    options: dict[str, object] = {}
    part: str
    kind: Any

    def made_for(self, config: Any) -> dict[str, Any]:
        """Return what a network is made for, by its configuration."""
        raise NotImplementedError

    def load(self, denoiser: Any, source: Source) -> dict[str, str]:
        """Put the network's weights into a built denoiser; BenchError where they do not fit."""
        given = source.model(self.kind)
        source.fit(self.made_for(given.config), self.made_for(getattr(denoiser, self.part).config))
        setattr(denoiser, self.part, like_base(given, str(denoiser.unet.device)))
        return {}

    def save(self, denoiser: Any, folder: Path) -> None:
        """Write the network as from_pretrained of its class loads it."""
        getattr(denoiser, self.part).save_pretrained(folder)


def check_condition(condition: Tensor, *, channels: int, downscale: int, task: str) -> None:
    """Raise ValueError unless a condition is a task's: [B,channels,H,W], H and W divisible by downscale."""
    of = f"the base's downscale factor, task {task}"
    types.check_condition(condition, channels=channels, multiple=downscale, of=of)


def check_match(features: Tensor, latents: Tensor, *, downscale: int = 1) -> None:
    """Raise ValueError unless features [B,·,h*downscale,w*downscale] fit latents: nothing is broadcast."""
    rows, height, width = len(latents), *(side * downscale for side in latents.shape[2:])
    if (len(features), *features.shape[2:]) != (rows, height, width):
        has = f"{len(features)} rows of {features.shape[2]} x {features.shape[3]}"
        raise ValueError(
            f"the condition has {has}; latents {list(latents.shape)} need {rows} of {height} x {width}."
        )


def to_rows(condition: Tensor, rows: dict[str, Any]) -> Tensor:
    """Repeat a condition [B,C,H,W] for the K*B rows of Base.unet_inputs."""
    return condition.repeat(len(rows["sample"]) // len(condition), 1, 1, 1)


def add_to_branches(hidden: Tensor, feature: Tensor) -> Tensor:
    """Add a feature [B,C,h,w] to hidden [K*B,C,h,w], the same in each of the K branches."""
    return (hidden.unflatten(0, (-1, len(feature))) + feature).flatten(0, 1)


def embedding_widths(downscale: int) -> tuple[int, ...]:
    """Return the widths of diffusers' ControlNetConditioningEmbedding that shrinks by `downscale`.

    It halves the size once between two widths: log2(downscale) + 1 of them; 8 gives ControlNet's
    own (16, 32, 96, 256), and each level beyond repeats the last. ValueError unless a power of two.
    """
    if downscale < 1 or downscale & (downscale - 1):
        raise ValueError(f"the base's downscale factor is {downscale}; allowed: 1, 2, 4, 8, ...")
    count = downscale.bit_length()
    return (16, 32, 96, *(256,) * count)[:count]


def embedded(config: Any) -> dict[str, Any]:
    """Return what a ControlNet's configuration says of the condition it is made for, in words."""
    downscale = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    return {"condition channels": config["conditioning_channels"], "downscale": downscale}


def like_base(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """Bring a module to the base's device and memory layout (channels last)."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
