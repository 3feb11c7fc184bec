"""The adapter: sizes, options, saving, training, and refusals."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from bps import BPSAdapter, SteeredUNet

ALL = (1, 2, 4, 5, 7, 8, *range(10, 25))
SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "sample_size": 64,
}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        return UNet2DConditionModel(**SD15)


@pytest.mark.parametrize("channels, parameters", [(1, 672_093_120), (3, 672_461_760), (4, 672_646_080)])
def test_parameter_counts_at_sd15_width(sd15, channels, parameters):
    assert count(sd15) == 859_520_964
    with torch.device("meta"):
        adapter = BPSAdapter.from_unet(sd15, channels)
        learned = BPSAdapter.from_unet(sd15, channels, schedule="learned")
    assert count(adapter) == parameters
    assert sum(p.numel() for p in adapter.parameters() if p.requires_grad) == parameters
    assert count(learned) == parameters + 9


@pytest.mark.parametrize(
    "channels, factor, parameters",
    [(1, 8, 6_752_352), (1, 4, 6_738_528), (3, 8, 6_789_216), (3, 4, 6_747_744)],
)
def test_parameter_counts_at_tiny_width(small_unet, channels, factor, parameters):
    adapter = BPSAdapter.from_unet(small_unet, channels, downscale_factor=factor)
    assert count(adapter) == parameters


def test_attention_stands_in_the_encoder_and_once_in_the_middle(small_unet, tools):
    """The release's class BPS_XL: nothing at the start, then softmax attention of all cells."""
    plain = BPSAdapter.from_unet(small_unet, 1, downscale_factor=4)
    adapter = BPSAdapter.from_unet(small_unet, 1, downscale_factor=4, attention=True)
    more = {name.split(".attention.")[0] for name in adapter.state_dict().keys() - plain.state_dict().keys()}
    assert more == {*(f"encoder.{slot}" for slot in (1, 2, 4, 5, 7, 8, 10, 11)), "middle.0"}
    attention, x = adapter.encoder[1].attention, torch.randn(2, 32, 3, 5)
    assert torch.equal(attention(x), x)
    tools.randomise(attention)
    q, k, v = attention.qkv(attention.norm(x).flatten(2).mT).split(32, dim=-1)
    seen = (q @ k.mT / 32**0.5).softmax(-1) @ v
    wanted = x + attention.out(seen).mT.reshape(x.shape)
    assert torch.allclose(attention(x), wanted, atol=1e-5)


def test_zero_at_initialisation_at_every_slot(small_unet):
    adapter = BPSAdapter.from_unet(small_unet, 3, downscale_factor=4)
    found = adapter(torch.rand(2, 3, 64, 64), torch.randn(2, 128))
    assert tuple(found.by_slot) == ALL
    assert not any(residual.any() for residual in found.by_slot.values())


def test_the_schedule_scales_residuals_exactly(small_unet, tools):
    torch.manual_seed(0)
    uniform = BPSAdapter.from_unet(small_unet, 1, downscale_factor=4, schedule="uniform")
    tools.randomise(uniform)
    numbers = list(range(2, 15))
    listed = BPSAdapter.from_unet(small_unet, 1, downscale_factor=4, schedule=numbers)
    listed.load_state_dict(uniform.state_dict() | {"weights": listed.weights})
    condition, emb = torch.rand(1, 1, 32, 64), torch.randn(1, 128)
    with torch.no_grad():
        ones, scaled = uniform(condition, emb), listed(condition, emb)
    for slot in ALL:
        weight = 1 if slot > 12 else 14 if slot == 12 else slot + 1
        assert torch.equal(scaled.by_slot[slot], weight * ones.by_slot[slot])


def test_batch_mates_do_not_matter(small_adapter):
    condition, emb = torch.rand(3, 3, 64, 64), torch.randn(3, 128)
    with torch.no_grad():
        together = small_adapter(condition, emb)
        alone = small_adapter(condition[1:2], emb[1:2])
    for slot, residual in alone.by_slot.items():
        torch.testing.assert_close(together.by_slot[slot][1:2], residual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": "learned"}, {"sites": ("decoder",)}, {"schedule": [1.5] * 13}],
    ids=["default", "learned", "decoder", "list"],
)
def test_saved_and_loaded_adapters_are_equal(small_unet, tools, tmp_path, options):
    adapter = BPSAdapter.from_unet(small_unet, 2, downscale_factor=4, **options)
    tools.randomise(adapter)
    adapter.weights.data += 0.25
    adapter.save_pretrained(tmp_path)
    loaded = tools.settle(BPSAdapter.from_pretrained(tmp_path))
    condition, emb = torch.rand(1, 2, 32, 32), torch.randn(1, 128)
    with torch.no_grad():
        first, second = adapter(condition, emb), loaded(condition, emb)
    assert first.by_slot.keys() == second.by_slot.keys()
    assert all(torch.equal(first.by_slot[slot], second.by_slot[slot]) for slot in first.by_slot)
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()


def test_half_precision_stays_close(small_adapter):
    condition, emb = torch.rand(1, 3, 64, 64), torch.randn(1, 128)
    with torch.no_grad():
        full = small_adapter(condition, emb)
        half = BPSAdapter.from_config(small_adapter.config).to(torch.bfloat16)
        half.load_state_dict(small_adapter.state_dict())
        rough = half(condition, emb)
    for slot, residual in full.by_slot.items():
        assert rough.by_slot[slot].dtype == torch.bfloat16
        assert (rough.by_slot[slot] - residual).norm() < 0.15 * residual.norm()


@pytest.mark.parametrize("modules", ["both", "resnets", "attentions"])
@pytest.mark.parametrize(
    "sites",
    [("encoder",), ("middle",), ("decoder",), ("encoder", "decoder"), ("encoder", "middle")],
    ids="+".join,
)
def test_every_parameter_of_every_option_is_trained(make_unet, sites, modules):
    """After three optimiser steps each trainable parameter has had a gradient that is not zero."""
    torch.manual_seed(0)
    unet = make_unet((False, True, False, False), norm_num_groups=16)
    schedule = "uniform" if sites == ("decoder",) else "learned"
    adapter = BPSAdapter.from_unet(
        unet, 1, downscale_factor=4, sites=sites, modules=modules, schedule=schedule
    )
    assert trained(SteeredUNet(unet, adapter)) == {name for name, _ in adapter.named_parameters()}


def trained(net, steps=3):
    """Names of the adapter's parameters whose gradient was not zero in one of the steps."""
    generator = torch.Generator().manual_seed(3)
    optimiser = torch.optim.AdamW(net.adapter.parameters(), lr=1e-3)
    seen = set()
    for _ in range(steps):
        x = torch.randn(1, 4, 8, 8, generator=generator)
        text = torch.randn(1, 3, 24, generator=generator)
        condition = torch.rand(1, 1, 32, 32, generator=generator)
        optimiser.zero_grad()
        net(x, torch.tensor([500]), text, condition).square().mean().backward()
        seen |= {n for n, p in net.adapter.named_parameters() if p.grad is not None and p.grad.any()}
        assert all(p.grad is None for p in net.unet.parameters())
        optimiser.step()
    return seen


def test_training_reaches_every_parameter_and_site_and_moves_learned_weights(make_unet):
    torch.manual_seed(0)
    unet = make_unet()
    adapter = BPSAdapter.from_unet(unet, 1, downscale_factor=4, schedule="learned")
    before = {name: p.clone() for name, p in unet.state_dict().items()}
    assert trained(SteeredUNet(unet, adapter)) == {name for name, _ in adapter.named_parameters()}
    assert adapter.weights.shape == (9,) and adapter.weights.grad.all()
    assert (adapter.weights != torch.tensor([16.0, 16, 8, 8, 4, 4, 2, 2, 16])).all()
    assert all(torch.equal(p, before[name]) for name, p in unet.state_dict().items())


def test_sites_and_modules_leave_nothing_idle(make_unet):
    unet = make_unet((True, True, True, False))

    def slots(**options):
        adapter = BPSAdapter.from_unet(unet, 1, downscale_factor=4, **options)
        assert set(adapter.emit) == {str(slot) for slot in adapter.slots}
        return adapter, adapter.slots

    adapter, found = slots(sites=("encoder",))
    assert found == (1, 2, 4, 5, 7, 8, 10, 11)
    assert len(adapter.middle) == len(adapter.decoder) == len(adapter.upsamplers) == 0
    adapter, found = slots(sites=("encoder",), modules="attentions")
    assert found == (1, 2, 4, 5, 7, 8) and len(adapter.encoder) == 9
    adapter, found = slots(sites=("middle",))
    assert found == (12,) and len(adapter.encoder) == 12 and len(adapter.decoder) == 0
    adapter, found = slots(modules="attentions")
    assert found == (1, 2, 4, 5, 7, 8, 12, *range(16, 25))
    adapter, found = slots(modules="resnets")
    assert found == ALL


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sites": ("encodr",)}, r"unknown site 'encodr'. Did you mean 'encoder'\?"),
        ({"sites": ()}, "leave no place"),
        ({"modules": "resnet"}, r"Did you mean 'resnets'\? Allowed: attentions, both, resnets"),
        ({"schedule": "flat"}, "unknown schedule 'flat'"),
        ({"schedule": "learned", "sites": ("decoder",)}, "nothing to learn"),
        ({"condition_channels": 0}, "condition_channels 0"),
        ({"block_out_channels": (32, 64)}, "has 2 levels; allowed: 3 or 4"),
        ({"block_out_channels": (32, 64, 100, 128)}, "positive multiples of 32"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        BPSAdapter(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block_out_channels": (16, 32, 64, 128)}, "positive multiples of 32"),
        ({"layers_per_block": 1}, "layers_per_block 1; allowed: 2"),
        ({"layers_per_block": (2, 2, 2, 1)}, "allowed: 2 at every level"),
        ({"mid_block_type": None}, "no mid_block"),
    ],
)
def test_unets_that_do_not_fit_are_refused(make_unet, options, message):
    with torch.device("meta"):
        unet = make_unet(norm_num_groups=16, **options)
    with pytest.raises(ValueError, match=message):
        BPSAdapter.from_unet(unet, 1)


def test_something_that_is_no_unet_is_refused():
    with pytest.raises(ValueError, match="got a Linear; allowed: a diffusers UNet2DCondition"):
        BPSAdapter.from_unet(torch.nn.Linear(1, 1), 1)


def test_two_levels_are_refused():
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        cross_attention_dim=8,
    )
    with pytest.raises(ValueError, match="has 2 levels; allowed: 3 or 4"):
        BPSAdapter.from_unet(unet, 1)


@pytest.mark.parametrize(
    "condition, message",
    [
        (torch.zeros(1, 1, 64, 64), r"\[1, 1, 64, 64\]; allowed: \[B,3,H,W\]"),
        (torch.zeros(3, 64, 64), r"allowed: \[B,3,H,W\]"),
        (torch.zeros(1, 3, 64, 48), "64 x 48 pixels; allowed: .* divisible by 32"),
        (torch.zeros(1, 3, 0, 64), "divisible by 32"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide 8-bit images by 255"),
        (torch.zeros(2, 3, 64, 64), r"emb is \[1, 128\]; allowed: \[2,128\]"),
    ],
)
def test_wrong_conditions_are_refused(small_adapter, condition, message):
    with pytest.raises(ValueError, match=message):
        small_adapter(condition, torch.zeros(1, 128))
