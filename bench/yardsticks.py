"""What methods' training steps are held against: a UNet alone, and diffusers' ControlNet training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.base.load import Base
from bench.data.latents import Prepared
from bench.training.engine import autocast
from bench.types import Task

_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """A step that can be taken again and again, and the parameters it runs and trains."""

    step: Callable[[], None]
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """make: (base, task, items, precision) -> Made. encoders: whether it uses the base's encoders."""

    title: str
    make: Callable[..., Made]
    encoders: bool = False


def unet_backward(base: Base, task: Task, data: Prepared, precision: str) -> Made:
    """A frozen UNet's forward and backward pass down to the latents: what every adapter pays at most."""
    latents, times, text, noise = _batch(base, data)
    latents.requires_grad_(True)

    def step() -> None:
        with autocast(base.device, precision):
            eps = base.eps(latents, times, text[None])[0]
        (eps.float() - noise).square().mean().backward()
        latents.grad = None

    return Made(step=step, parameters=_count(base.unet), trainable=0)


def unet_trained(base: Base, task: Task, data: Prepared, precision: str) -> Made:
    """A UNet without any condition, all of it trained by AdamW."""
    latents, times, text, noise = _batch(base, data)
    base.unet.requires_grad_(True)

    def loss() -> Any:
        with autocast(base.device, precision):
            eps = base.eps(latents, times, text[None])[0]
        return (eps.float() - noise).square().mean()

    count = _count(base.unet)
    return Made(step=_descent(base.unet, loss), parameters=count, trainable=count)


def diffusers_controlnet(
    base: Base, task: Task, data: Prepared, precision: str, *, cached: bool = True
) -> Made:
    """The step of diffusers' examples/controlnet/train_controlnet.py, made from its public classes.

    As there: a ControlNetModel.from_unet in float32 under autocast, the frozen parts in the precision
    itself, eps error, clipping to 1, AdamW over the control net. cached: latents and text are given, as
    in this benchmark; else autoencoder and text encoder run at every step, as there.
    """
    import torch
    from diffusers import ControlNetModel

    half = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    net = ControlNetModel.from_unet(base.unet, conditioning_channels=task.channels).train()
    net = net.to(base.device).requires_grad_(True)
    unet = base.unet.to(half)
    latents, times, text, noise = (t.to(half) if t.is_floating_point() else t for t in _batch(base, data))
    condition = data.conditions_at(range(len(data))).to(base.device, half)
    encode = None if cached else _encoder(base, data, condition, half)

    def loss() -> Any:
        given = (latents, text) if encode is None else encode()
        with autocast(base.device, precision):
            down, middle = net(given[0], times, given[1], controlnet_cond=condition, return_dict=False)
        eps = unet(
            given[0],
            times,
            given[1],
            return_dict=False,
            down_block_additional_residuals=[r.to(half) for r in down],
            mid_block_additional_residual=middle.to(half),
        )[0]
        return torch.nn.functional.mse_loss(eps.float(), noise.float())

    total, trained = _count(net) + _count(unet), _count(net)
    return Made(step=_descent(net, loss), parameters=total, trainable=trained)


def _encoder(base: Base, data: Prepared, condition: Any, half: Any) -> Callable[[], tuple[Any, Any]]:
    """Return what encodes a batch of images and captions with the frozen encoders, anew each time."""
    import torch

    vae, text_encoder = base.vae.to(half), base.text_encoder.to(half)
    side = condition.shape[-1]
    pixels = torch.rand(len(data), 3, side, side, device=base.device, dtype=half) * 2 - 1
    ids = torch.zeros(len(data), data.empty.shape[1], dtype=torch.long, device=base.device)

    def encode() -> tuple[Any, Any]:
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * base.scale
            return latents, text_encoder(ids)[0]

    return encode


def _batch(base: Base, data: Prepared) -> tuple[Any, ...]:
    """Return latents, timesteps, text and noise of all items, on the base's device."""
    import torch

    rows = range(len(data))
    latents = data.latents_at(rows)
    times = torch.randint(len(base.alphas), (len(data),), generator=torch.Generator().manual_seed(0))
    batch = (latents, times, data.text_at(rows), torch.randn_like(latents))
    return tuple(t.to(base.device) for t in batch)


def _descent(module: Any, loss: Callable[[], Any]) -> Callable[[], None]:
    """Return a training step: backward pass, clipping, AdamW."""
    import torch

    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-5)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), _CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


YARDSTICKS: Mapping[str, Yardstick] = {
    "unet-backward": Yardstick(title="UNet alone, frozen (forward, backward)", make=unet_backward),
    "unet-trained": Yardstick(title="UNet alone, trained", make=unet_trained),
    "diffusers-controlnet": Yardstick(
        title="ControlNet step as in diffusers' script, encoders left out", make=diffusers_controlnet
    ),
    "diffusers-controlnet-uncached": Yardstick(
        title="ControlNet step as in diffusers' script",
        encoders=True,
        make=partial(diffusers_controlnet, cached=False),
    ),
}
