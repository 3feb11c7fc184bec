"""Rates of their own: a layer weight is a learning rate, and learned weights of any size can move."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench.base.load import Base
from bench.training.checkpoint import Trainable
from bench.training.loop import parameter_groups
from bps.method import BPS

RATE = 1e-3


def build(unet, **options):
    """BPS on a UNet alone, in its precision, the same untrained adapter for all options."""
    torch.manual_seed(0)
    base = SimpleNamespace(
        family=SimpleNamespace(pooled=0),
        unet=unet,
        downscale=4,
        device="cpu",
        prior_unet=lambda prior, seed: unet,
        to_eps=lambda output, latents, timesteps: output,
    )
    base.unet_inputs = partial(Base.unet_inputs, base)
    task = SimpleNamespace(name="sketch", channels=1)
    return BPS().build(base, task, **options).to(unet.dtype)


def trained(unet, *, steps, **options):
    """BPS after some steps of the loop's optimiser without clipping, and its noise for one input."""
    denoiser = build(unet, **options)
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=unet.dtype)

    optimiser = torch.optim.AdamW(parameter_groups(denoiser, Trainable(denoiser), rate=RATE, decay=0.01))
    for step in range(steps + 1):
        condition, text = draw(1, 1, 64, 32).sigmoid(), draw(1, 1, 3, 24)
        times = torch.tensor([37 * step % 1000])
        output = denoiser(draw(1, 4, 16, 8), times, text, denoiser.encode(condition))
        if step < steps:
            (output - draw(1, 1, 4, 16, 8)).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    return denoiser, output.detach()


def gap(first, second):
    return float((first - second).norm() / second.norm())


@pytest.fixture
def narrow_unet(make_unet):
    torch.manual_seed(1)
    return make_unet((False, True, False, False), norm_num_groups=16, block_out_channels=(32,) * 4)


def test_a_layer_weight_is_a_factor_of_its_convolutions_rate(narrow_unet):
    """Residual = w (W h + b), W and b zero at the start: Adam moves w W as it moves W at w times the rate."""
    unet = narrow_unet.double()
    head_heavy = trained(unet, steps=40, schedule="head_heavy")[1]
    times_w = trained(unet, steps=40, schedule="uniform", emit_rate="head_heavy")[1]
    assert times_w.dtype == torch.float64 and gap(times_w, head_heavy) < 1e-12
    uniform = trained(unet, steps=10, schedule="uniform")[1]
    over_w = trained(unet, steps=10, schedule="head_heavy", emit_rate="inverse")[1]
    assert gap(over_w, uniform) < 1e-12
    assert gap(uniform, trained(unet, steps=10, schedule="head_heavy")[1]) > 1e-2


def test_logarithms_of_learned_weights_move_at_a_rate_of_their_own(narrow_unet):
    weights = {
        name: trained(narrow_unet, steps=10, **options)[0].layer_weights()
        for name, options in {
            "learned": {"schedule": "learned"},
            "log": {"schedule": "learned_log"},
            "log at 100": {"schedule": "learned_log", "weights_rate": 100.0},
        }.items()
    }
    moved = {name: [now / start - 1 for start, now in found.values()] for name, found in weights.items()}
    head = max(map(abs, moved["learned"][:2]))
    assert 0 < head < 0.001, "a linear weight of 16 cannot leave its place"
    assert min(map(abs, moved["log"][:2])) > 20 * head
    assert max(map(abs, moved["log at 100"])) > max(map(abs, moved["log"])) > 0.05


def test_learned_weights_at_rate_0_are_the_fixed_schedule(narrow_unet):
    still, eps = trained(narrow_unet, steps=6, schedule="learned_log", weights_rate=0)
    assert torch.equal(eps, trained(narrow_unet, steps=6, schedule="head_heavy")[1])
    assert all(start == now for start, now in still.layer_weights().values())
    assert not still.steered.adapter.log_gains.any()


def test_groups_hold_every_parameter_once_and_decay_all_by_the_same_share(small_unet):
    denoiser = build(small_unet, schedule="learned_log", emit_rate="head_heavy", weights_rate=0)
    trainable = Trainable(denoiser)
    groups = parameter_groups(denoiser, trainable, rate=RATE, decay=0.01)
    assert [group["lr"] for group in groups] == [RATE * f for f in (1, 0, 16, 8, 4, 2)]
    assert sum(len(group["params"]) for group in groups) == len(trainable.parameters)
    assert [group["lr"] * group["weight_decay"] for group in groups if group["lr"]] == [1e-5] * 5
    (plain,) = parameter_groups(build(small_unet), Trainable(build(small_unet)), rate=RATE, decay=0.01)
    assert (plain["lr"], plain["weight_decay"], plain["eps"]) == (RATE, 0.01, 1e-8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"emit_rate": [-1.0] * 13}, "allowed: numbers from 0"),
        ({"schedule": "learned_log", "weights_rate": -1}, "allowed: numbers from 0"),
        ({"emit_rate": "invers"}, "invers"),
        ({"time_aware": "no"}, "allowed: true, false"),
    ],
)
def test_wrong_rates_are_refused(small_unet, options, message):
    with pytest.raises(ValueError, match=message):
        build(small_unet, **options)
