"""Steering a UNet: exact at the start, no hooks left, shared over branches."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from bps import BPSAdapter, Injection, SteeredUNet, steered
from bps.sites import injection_sites, slots_without_attention
from bps.steering import _add_to_output, time_embedding


def draw(branches=1, batch=2, size=16):
    g = torch.Generator().manual_seed(5)
    return (
        torch.randn(branches * batch, 4, size, size, generator=g),
        torch.randn(branches * batch, 5, 24, generator=g),
        torch.rand(batch, 3, 4 * size, 4 * size, generator=g),
    )


@pytest.fixture
def net(small_unet, small_adapter):
    return SteeredUNet(small_unet, small_adapter)


@pytest.mark.parametrize(
    "attention",
    [*itertools.product([False, True], [True], [False], [False, True]), (False,) * 4, (True,) * 4],
    ids=lambda levels: "".join("-x"[has] for has in levels),
)
def test_an_untrained_adapter_changes_no_bit_and_a_trained_one_does(make_unet, tools, attention):
    unet = make_unet(attention, norm_num_groups=16)
    adapter = BPSAdapter.from_unet(unet, 3, downscale_factor=4)
    x, text, condition = draw(batch=1, size=8)
    net = SteeredUNet(unet, adapter)
    with torch.no_grad():
        plain = unet(x, torch.tensor([7]), text).sample
        assert torch.equal(net(x, torch.tensor([7]), text, condition), plain)
        tools.randomise(adapter)
        assert not torch.equal(net(x, torch.tensor([7]), text, condition), plain)


def test_untrained_is_exact_for_branches_and_without_middle_attention(make_unet):
    unet = make_unet(mid_block_type="UNetMidBlock2D")
    net = SteeredUNet(unet, BPSAdapter.from_unet(unet, 3, downscale_factor=4))
    x, text, condition = draw(branches=2)
    with torch.no_grad():
        plain = unet(x, 11, text).sample
        assert torch.equal(net(x, 11, text, condition), plain)
    assert slots_without_attention(unet) == (10, 11, 12, 13, 14, 15)


def test_sites_are_those_of_the_table(make_unet):
    unet = make_unet()
    places = injection_sites(unet)
    down, up, mid = unet.down_blocks, unet.up_blocks, unet.mid_block
    assert sorted(places) == [1, 2, 4, 5, 7, 8, *range(10, 26)]
    assert places[25] == (unet.conv_out,)
    assert places[5] == (down[1].resnets[1], down[1].attentions[1])
    assert places[11] == (down[3].resnets[1],)
    assert set(places[12]) == {*mid.resnets, *mid.attentions} and len(places[12]) == 3
    assert places[14] == (up[0].resnets[1],)
    assert places[24] == (up[3].resnets[2], up[3].attentions[2])
    assert sum(map(len, places.values())) == 8 + 6 + 3 + 12 + 9 + 1


def test_each_residual_is_added_behind_its_own_modules(small_unet):
    """A residual of ones moves each module of its slot, and no other module, by one."""
    x, text, _ = draw(batch=1)
    outputs = {}

    def note(name):
        return lambda module, args, output: outputs.setdefault(name, []).append(
            output if torch.is_tensor(output) else output[0]
        )

    places = injection_sites(small_unet)
    injection = Injection(small_unet)
    handles = []
    for slot, modules in places.items():
        for index, module in enumerate(modules):
            handles.append(module.register_forward_hook(note((slot, index, "before"))))
    with injection, torch.no_grad():
        for slot, modules in places.items():
            for index, module in enumerate(modules):
                handles.append(module.register_forward_hook(note((slot, index, "after"))))
        small_unet(x, 3, text)
        shapes = {slot: outputs[slot, 0, "before"][0].shape for slot in places}
        for slot in places:
            outputs.clear()
            ones = {slot: torch.ones(shapes[slot])}
            injection.residuals = type("R", (), {"by_slot": ones})()
            small_unet(x, 3, text)
            for other, modules in places.items():
                for index in range(len(modules)):
                    before = outputs[other, index, "before"][0]
                    after = outputs[other, index, "after"][0]
                    assert torch.equal(after, before + (other == slot))
    for handle in handles:
        handle.remove()


def test_outputs_of_every_kind_are_handled():
    hidden, residual = torch.zeros(2, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert _add_to_output(hidden, residual, 1).sum() == 2
    first, second = _add_to_output((hidden, "kept"), residual, 1)
    assert first.sum() == 2 and second == "kept"
    output = _add_to_output(Transformer2DModelOutput(sample=hidden), residual, 1)
    assert isinstance(output, Transformer2DModelOutput) and output.sample.sum() == 2
    assert hidden.sum() == 0


def test_hooks_are_gone_after_a_call_and_after_errors(net, tools):
    x, text, condition = draw()
    before = tools.count_hooks(net.unet)
    net(x, 3, text, condition)
    assert tools.count_hooks(net.unet) == before
    injection = Injection(net.unet)
    with injection:
        assert tools.count_hooks(net.unet) == before + sum(map(len, injection_sites(net.unet).values()))
    assert tools.count_hooks(net.unet) == before
    with pytest.raises(RuntimeError, match="broken"), Injection(net.unet):
        raise RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"), steered(net.unet, net.adapter, condition):
        raise RuntimeError("broken")
    with pytest.raises(RuntimeError):
        net(x, 3, text[..., :5], condition)
    with pytest.raises(ValueError, match="residual of slot 1"):
        net(x[:, :, :8], 3, text, condition)
    assert tools.count_hooks(net.unet) == before


def test_attaching_twice_is_refused(net):
    injection = Injection(net.unet)
    with injection, pytest.raises(RuntimeError, match="already attached"), injection:
        pass


def test_branches_share_residuals_and_equal_separate_calls(net):
    x, text, condition = draw(branches=3)
    steps = torch.tensor([20, 900])
    with torch.no_grad():
        together = net(x, steps, text, condition)
        residuals = net.residuals(condition, steps)
        again = net(x, steps, text, residuals=residuals)
        full = net.steer(x, steps.repeat(3), text, residuals)
        parts = [net(x[k * 2 : k * 2 + 2], steps, text[k * 2 : k * 2 + 2], condition) for k in range(3)]
    assert torch.equal(together, again) and torch.equal(together, full)
    torch.testing.assert_close(together, torch.cat(parts), rtol=1e-4, atol=2e-5)
    assert not torch.allclose(parts[0], parts[1], atol=1e-2)


def test_one_condition_serves_many_samples(net):
    x, text, condition = draw(branches=1, batch=4)
    with torch.no_grad():
        shared = net(x, 50, text, condition[:1])
        repeated = net(x, 50, text, condition[:1].repeat(4, 1, 1, 1))
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=2e-5)


def test_the_adapter_runs_once_for_all_branches(net):
    x, text, condition = draw(branches=2)
    batches = []
    handle = net.adapter.register_forward_hook(lambda m, args, out: batches.append(out.batch))
    net(x, 3, text, condition)
    handle.remove()
    assert batches == [2]


@pytest.mark.parametrize("timestep", [17, 17.0, torch.tensor(17), torch.tensor([17])], ids=repr)
def test_every_form_of_timestep_is_the_same(net, timestep):
    x, text, condition = draw()
    with torch.no_grad():
        expected = net(x, torch.tensor([17, 17]), text, condition)
        assert torch.equal(net(x, timestep, text, condition), expected)


def test_time_matters_and_is_the_units_own_embedding(net):
    seen = []
    handle = net.unet.time_embedding.register_forward_hook(lambda m, a, out: seen.append(out))
    x, text, _ = draw()
    net.unet(x, torch.tensor([3, 800]), text)
    handle.remove()
    own = time_embedding(net.unet, torch.tensor([3, 800]), batch=2)
    assert torch.equal(own, seen[0]) and not own.requires_grad
    condition = draw()[2]
    early, late = net.residuals(condition, 3), net.residuals(condition, 800)
    assert not torch.allclose(early.by_slot[12], late.by_slot[12])


def test_the_context_manager_equals_the_steered_unet(net):
    x, text, condition = draw(branches=2)
    with torch.no_grad():
        expected = net(x, 30, text, condition)
        with steered(net.unet, net.adapter, condition):
            found = net.unet(x, 30, text).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
        with steered(net.unet, net.adapter, condition[:1], repeats=2):
            found = net.unet(x, 30, text).sample
        repeated = net(x, 30, text, condition[:1])
        torch.testing.assert_close(found, repeated, rtol=1e-4, atol=2e-5)
        with (
            steered(net.unet, net.adapter, condition.repeat(3, 1, 1, 1)),
            pytest.raises(ValueError, match="4 rows; allowed: a multiple of 6"),
        ):
            net.unet(x, 30, text)


def test_repeats_keep_the_order_of_conditions(net):
    x, text, condition = draw(branches=2, batch=4)
    with torch.no_grad():
        with steered(net.unet, net.adapter, condition[:2], repeats=2):
            found = net.unet(x, torch.tensor([3, 3, 800, 800] * 2), text).sample
        steps = torch.tensor([3, 3, 800, 800])
        expected = net(x, steps, text, condition[[0, 0, 1, 1]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_freezing_is_the_default_and_can_be_left_out(make_unet):
    unet = make_unet()
    adapter = BPSAdapter.from_unet(unet, 3, downscale_factor=4)
    SteeredUNet(unet, adapter, freeze=False)
    assert all(p.requires_grad for p in unet.parameters())
    net = SteeredUNet(unet, adapter)
    assert not any(p.requires_grad for p in unet.parameters())
    trainable = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trainable == {f"adapter.{name}" for name, _ in adapter.named_parameters()}


def test_an_unlocked_unet_is_trained_along(make_unet):
    unet = make_unet(norm_num_groups=16)
    net = SteeredUNet(unet, BPSAdapter.from_unet(unet, 3, downscale_factor=4), freeze=False)
    x, text, condition = draw(batch=1, size=8)
    net(x, 3, text, condition).square().mean().backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_gradients_with_checkpointing_are_equal(make_unet, tools):
    torch.manual_seed(0)
    unet = make_unet((True, True, False, False))
    adapter = BPSAdapter.from_unet(unet, 3, downscale_factor=4)
    tools.randomise(adapter)
    net = SteeredUNet(unet, adapter).train()
    x, text, condition = draw(batch=1)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        net.zero_grad(set_to_none=True)
        net(x, 3, text, condition).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in adapter.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_two_forward_passes_before_one_backward_with_checkpointing(make_unet, tools):
    torch.manual_seed(0)
    unet = make_unet((False, True, False, False))
    adapter = BPSAdapter.from_unet(unet, 3, downscale_factor=4)
    tools.randomise(adapter)
    net = SteeredUNet(unet, adapter)
    x, text, condition = draw()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        net.zero_grad(set_to_none=True)
        losses = [
            net(x[i : i + 1], 3 + i, text[i : i + 1], condition[i : i + 1]).square().mean() for i in range(2)
        ]
        sum(losses).backward()
        gradients.append([p.grad.clone() for p in adapter.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


def test_wrong_calls_are_refused(net):
    x, text, condition = draw(branches=2)
    residuals = net.residuals(condition, 3)
    with pytest.raises(ValueError, match="exactly one of condition and residuals"):
        net(x, 3, text)
    with pytest.raises(ValueError, match="exactly one of condition and residuals"):
        net(x, 3, text, condition, residuals=residuals)
    with pytest.raises(ValueError, match="sample has 3 rows"):
        net(x[:3], 3, text[:3], residuals=residuals)
    with pytest.raises(ValueError, match="encoder_hidden_states 2"):
        net(x, 3, text[:2], residuals=residuals)
    with pytest.raises(ValueError, match=r"timestep is \[4\]; allowed: a number, \[1\] or \[2\]"):
        net(x, torch.tensor([3, 4, 5, 6]), text, condition)
    with pytest.raises(ValueError, match=r"timestep is \[3\]; allowed: .* \[2\] or \[4\]"):
        net.steer(x, torch.tensor([3, 4, 5]), text, residuals)


def test_a_foreign_adapter_is_refused(make_unet):
    unet = make_unet((False, True, True, False))
    wide = make_unet(block_out_channels=(64, 64, 128, 128))
    with pytest.raises(ValueError, match="built for widths"):
        SteeredUNet(unet, BPSAdapter.from_unet(wide, 3))
    rich = make_unet((True, True, True, True))
    adapter = BPSAdapter.from_unet(rich, 3, modules="attentions")
    with pytest.raises(ValueError, match=r"slots \[1, 2, 10, 11, .* no 'attentions' modules"):
        SteeredUNet(unet, adapter)
