"""Messages for inputs that cannot fit, and the repetition over guidance branches."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines.inputs import (
    add_to_branches,
    check_condition,
    check_match,
    embedding_widths,
)
from bench import registry
from bench.base.load import Base

CONDITIONED = sorted(set(registry.names("method", ["all"])) - {"bps", "text-only", "style-only"})


@pytest.mark.parametrize("name", CONDITIONED)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 64, 64), r"condition is \[2, 3, 64, 64\]; allowed: \[B,1,H,W\]"),
        ((2, 1, 64, 62), "64 x 62 pixels; allowed: height and width divisible by 4"),
        ((1, 64, 64), r"condition is \[1, 64, 64\]; allowed: \[B,1,H,W\]"),
    ],
)
def test_a_condition_that_cannot_fit_is_refused(
    name: str, shape: tuple[int, ...], message: str, build: Callable[..., Any]
) -> None:
    denoiser = build(type(registry.load("method", name)))
    with pytest.raises(ValueError, match=message):
        denoiser.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="torch.uint8; allowed: floating point"):
        denoiser.encode(torch.zeros(2, 1, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("name", CONDITIONED)
@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 1, 4, 4)])
def test_a_condition_of_other_latents_is_refused_and_not_broadcast(
    name: str, shape: tuple[int, ...], build: Callable[..., Any], inputs: SimpleNamespace
) -> None:
    denoiser = build(type(registry.load("method", name)))
    with torch.no_grad(), pytest.raises(ValueError, match=r"latents \[3, 4, 16, 16\] need 3"):
        features = denoiser.encode(torch.zeros(shape))
        denoiser(inputs.latents, inputs.timesteps, inputs.text, features)


def test_a_fitting_condition_passes_the_checks() -> None:
    check_condition(torch.zeros(2, 3, 16, 24), channels=3, downscale=8, task="drawing")
    check_match(torch.zeros(2, 3, 16, 24), torch.zeros(2, 4, 2, 3), downscale=8)


def test_rows_are_ordered_branch_by_branch(inputs: SimpleNamespace, micro_base: Base) -> None:
    rows = micro_base.unet_inputs(inputs.latents, inputs.timesteps, inputs.text)
    latents, steps, text = rows.values()
    assert torch.equal(latents[3 + 1], inputs.latents[1]) and steps.tolist() == [5, 420, 990] * 2
    assert torch.equal(text[3 + 2], inputs.text[1, 2])
    feature = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 4, 16, 16)
    assert torch.equal(add_to_branches(latents, feature)[3 + 2], inputs.latents[2] + 2)


@pytest.mark.parametrize(
    ("downscale", "widths"),
    [(8, (16, 32, 96, 256)), (4, (16, 32, 96)), (1, (16,)), (32, (16, 32, 96, 256, 256, 256))],
)
def test_the_embedding_shrinks_by_the_downscale_factor(downscale: int, widths: tuple[int, ...]) -> None:
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    assert embedding_widths(downscale) == widths
    net = ControlNetConditioningEmbedding(8, 1, embedding_widths(downscale))
    assert net(torch.zeros(1, 1, 64, 64)).shape == (1, 8, 64 // downscale, 64 // downscale)


@pytest.mark.parametrize("downscale", [0, 3, 12])
def test_a_downscale_factor_that_is_no_power_of_two_is_refused(downscale: int) -> None:
    with pytest.raises(ValueError, match=f"downscale factor is {downscale}; allowed: 1, 2, 4"):
        embedding_widths(downscale)
