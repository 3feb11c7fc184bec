"""ControlNet-XS: the base inside is the shared one, the widths fit, nothing without effect trains."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ControlNetXSAdapter, UNetControlNetXSModel

from baselines.controlnet_xs import ControlNetXS, build_control, control_widths, fuse
from bench.base.load import Base


def test_it_holds_the_base_once_and_frozen(
    build: Callable[..., Any], tools: SimpleNamespace, micro_base: Base
) -> None:
    denoiser = build(ControlNetXS)
    base = {id(p) for p in micro_base.unet.parameters()}
    own = {id(p): p for p in denoiser.parameters()}
    assert base <= set(own)
    assert not any(p.requires_grad for p in micro_base.unet.parameters())
    control = [p for i, p in own.items() if i not in base]
    frozen = [p for p in control if not p.requires_grad]
    assert all(not p.any() for p in frozen)
    # two resnets of the middle: a bias and a projection of the timestep of 8 channels each
    assert sum(p.numel() for p in frozen) == 2 * (8 + 8 * 128 + 8)
    assert tools.trainable(denoiser) == sum(p.numel() for p in control) - 2 * (16 + 8 * 128)


def test_what_is_frozen_has_no_effect(
    build: Callable[..., Any], tools: SimpleNamespace, inputs: SimpleNamespace, micro_base: Base
) -> None:
    denoiser = build(ControlNetXS)
    tools.shake(denoiser)
    call = (inputs.latents, inputs.timesteps, inputs.text, inputs.condition)
    base = {id(p) for p in micro_base.unet.parameters()}
    frozen = [p for p in denoiser.parameters() if not p.requires_grad and id(p) not in base]
    with torch.no_grad():
        before = denoiser(*call)
        for parameter in frozen:
            parameter.add_(0.1 * torch.randn(parameter.shape))
        assert frozen and torch.allclose(denoiser(*call), before, atol=1e-4)


def test_sharing_mends_the_norms_that_diffusers_copies_wrongly(tools: SimpleNamespace) -> None:
    unet = tools.small_unet()
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 24)
    condition = torch.rand(2, 1, 64, 64)
    adapter = ControlNetXSAdapter.from_unet(
        unet, size_ratio=1.0, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32, 96)
    )
    copied = UNetControlNetXSModel.from_unet(unet, controlnet=adapter)
    shared = fuse(unet, build_control(unet, channels=1, downscale=4, size_ratio=1.0))
    with torch.no_grad():
        plain = unet(x, t, text).sample
        assert torch.equal(shared(x, t, text, condition).sample, plain)
        assert not torch.equal(copied(x, t, text, condition).sample, plain)
    assert {m.eps for m in copied.down_blocks[0].base_resnets[0].modules() if hasattr(m, "eps")} == {1e-6}
    load = shared.load_state_dict(copied.state_dict(), strict=False)  # the same names throughout
    assert not load.missing_keys and not load.unexpected_keys


@pytest.mark.parametrize("ratio", [0.1, 0.25, 1.0])
def test_widths_hold_whole_heads(ratio: float, tools: SimpleNamespace) -> None:
    assert (
        control_widths(tools.sd15_unet(), size_ratio=ratio)
        == {0.1: (32, 64, 128, 128), 0.25: (80, 160, 320, 320), 1.0: (320, 640, 1280, 1280)}[ratio]
    )


def test_nothing_is_frozen_at_sd15_width(tools: SimpleNamespace) -> None:
    unet = tools.sd15_unet()
    with torch.device("meta"):
        fused = fuse(unet, build_control(unet, channels=3, downscale=8, size_ratio=0.25))
    base = sum(p.numel() for p in unet.parameters())
    assert sum(p.numel() for p in fused.parameters()) - base == tools.trainable(fused)


@pytest.mark.parametrize("ratio", [0, -1, 1.5, float("nan")])
def test_a_ratio_without_sense_is_refused(ratio: float, build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="size_ratio is .*; allowed: above 0, at most 1"):
        build(ControlNetXS, size_ratio=ratio)


def test_a_unet_that_the_class_is_not_made_for_is_refused(tools: SimpleNamespace) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(layers_per_block=1, cross_attention_dim=32)
    with pytest.raises(ValueError, match="the UNet has 1 resnets a level; ControlNet-XS needs 2"):
        build_control(unet, channels=1, downscale=4, size_ratio=0.25)
