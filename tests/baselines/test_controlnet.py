"""ControlNet: its size at SD1.5 width, and equality with diffusers' own two calls."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines.controlnet import ControlNet, build_controlnet
from bench.base.load import Base


@pytest.mark.parametrize(("channels", "count"), [(1, 361_278_832), (3, 361_279_120)])
def test_the_size_at_sd15_width(channels: int, count: int, tools: SimpleNamespace) -> None:
    unet = tools.sd15_unet()
    with torch.device("meta"):
        net = build_controlnet(unet, channels=channels, downscale=8)
    assert tools.trainable(net) == count == sum(p.numel() for p in net.parameters())


def test_it_starts_as_a_trainable_copy_of_the_frozen_encoder(
    build: Callable[..., Any], micro_base: Base
) -> None:
    denoiser = build(ControlNet)
    net, unet = denoiser.controlnet, micro_base.unet
    for part in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
        ours, theirs = getattr(net, part).state_dict(), getattr(unet, part).state_dict()
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in unet.parameters())
    own = {p.data_ptr() for p in net.parameters()}
    assert not own & {p.data_ptr() for p in unet.parameters()}


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_it_equals_diffusers_called_branch_by_branch(
    scale: float,
    build: Callable[..., Any],
    tools: SimpleNamespace,
    inputs: SimpleNamespace,
    micro_base: Base,
) -> None:
    denoiser = build(ControlNet, conditioning_scale=scale)
    tools.shake(denoiser.controlnet)
    with torch.no_grad():
        features = denoiser.encode(inputs.condition)
        eps = denoiser(inputs.latents, inputs.timesteps, inputs.text, features)
        for k, text in enumerate(inputs.text):
            net = denoiser.controlnet(
                inputs.latents, inputs.timesteps, text, inputs.condition, conditioning_scale=scale
            )
            output = micro_base.unet(
                inputs.latents,
                inputs.timesteps,
                text,
                down_block_additional_residuals=net.down_block_res_samples,
                mid_block_additional_residual=net.mid_block_res_sample,
            ).sample
            expected = micro_base.to_eps(output, inputs.latents, inputs.timesteps)
            assert torch.allclose(eps[k], expected, atol=1e-4)
        plain = micro_base.eps(inputs.latents, inputs.timesteps, inputs.text)
    assert (eps - plain).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_without_sense_is_refused(scale: float, build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="conditioning_scale is .*; allowed: a number above 0"):
        build(ControlNet, conditioning_scale=scale)
