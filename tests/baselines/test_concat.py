"""Fine-tuned SD and LoRA + concat: a wider conv_in, sizes, and a base that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from baselines.finetuned_sd import FinetunedSD
from baselines.lora_concat import LoraConcat, add_lora, lora_targets
from bench.base.load import Base


def count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def step(denoiser: Any, inputs: SimpleNamespace) -> None:
    """Take one large optimiser step."""
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=1.0)
    features = denoiser.encode(inputs.condition)
    denoiser(inputs.latents, inputs.timesteps, inputs.text, features).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("method", [FinetunedSD, LoraConcat])
def test_the_shared_base_stays_bit_identical(
    method: Any, build: Callable[..., Any], inputs: SimpleNamespace, micro_base: Base
) -> None:
    names = list(micro_base.unet.state_dict())
    before = {n: v.clone() for n, v in micro_base.unet.state_dict().items()}
    denoiser = build(method)
    step(denoiser, inputs)
    after = micro_base.unet.state_dict()
    assert list(after) == names and all(torch.equal(before[n], after[n]) for n in names)
    assert not any(p.requires_grad or p.grad is not None for p in micro_base.unet.parameters())
    assert all(not m._forward_hooks for m in denoiser.unet.modules())


def test_finetuning_trains_the_whole_unet_and_the_new_inputs(
    build: Callable[..., Any], tools: SimpleNamespace, micro_base: Base
) -> None:
    denoiser = build(FinetunedSD)
    assert tools.trainable(denoiser) == count(micro_base.unet) + 32 * 16 * 9 == count(denoiser)


def test_the_first_convolution_is_one_over_latents_and_condition(
    build: Callable[..., Any], inputs: SimpleNamespace, tools: SimpleNamespace
) -> None:
    denoiser = build(FinetunedSD)
    tools.shake(denoiser)
    first = denoiser.unet.conv_in
    cells = F.pixel_unshuffle(inputs.condition, 4)
    wide = F.conv2d(
        torch.cat([inputs.latents, cells], dim=1),
        torch.cat([first.weight, denoiser.extra.weight], dim=1),
        first.bias,
        padding=1,
    )
    with torch.no_grad():
        parts = first(inputs.latents) + denoiser.encode(inputs.condition)
    assert torch.allclose(parts, wide, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 5])
def test_lora_has_rank_times_in_plus_out_parameters(
    rank: int, build: Callable[..., Any], tools: SimpleNamespace, micro_base: Base
) -> None:
    modules = dict(micro_base.unet.named_modules())
    expected = 0
    for name in lora_targets(micro_base.unet):
        weight = modules[name].weight  # [out, in] or [out, in, height, width]
        expected += rank * (weight.shape[0] + weight[0].numel())
    denoiser = build(LoraConcat, rank=rank)
    assert tools.trainable(denoiser) == expected + 32 * 16 * 9
    assert count(denoiser) == count(micro_base.unet) + tools.trainable(denoiser)


def test_lora_leaves_out_the_outer_convolutions_and_reaches_the_rest(tools: Any) -> None:
    unet = tools.small_unet()
    targets = set(lora_targets(unet))
    convolutions = {n for n, m in unet.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert convolutions - targets == {"conv_in", "conv_out"}
    attentions = sum(hasattr(m, "to_q") for m in unet.modules())
    assert len(targets - convolutions) == 4 * attentions > 0
    trained = {n for n, p in add_lora(unet, rank=2).named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(targets) and all("lora_" in n for n in trained)


@pytest.mark.parametrize("rank", [0, -3, 2.5, True, "16"])
def test_a_rank_without_sense_is_refused(rank: Any, build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="rank is .*; allowed: a whole number from 1"):
        build(LoraConcat, rank=rank)
