"""The numbers of the authors' release, met by this implementation; wrong injections miss them."""

from __future__ import annotations

import pytest
import torch

from bps import Injection, SteeredUNet
from bps.sites import injection_sites
from bps.steering import time_embedding

SLOTS = (1, 2, 4, 5, 7, 8, 10, 11, *range(12, 25))


def deviations(tensor, expected):
    """(statistics off by more than allowed, largest error of the quoted values)."""
    values = tensor.detach().double().flatten()
    assert list(tensor.shape) == expected["shape"]
    found = {
        "mean": values.mean(),
        "std": values.std(correction=0),
        "absmax": values.abs().max(),
    }
    wrong = [
        name
        for name, value in found.items()
        if abs(value.item() - expected[name]) > 1e-5 + 1e-4 * abs(expected[name])
    ]
    quoted = torch.tensor(expected["first8"] + expected["last4"], dtype=torch.float64)
    return wrong, (torch.cat([values[:8], values[-4:]]) - quoted).abs().max().item()


def meets(tensor, expected, *, tolerance=2e-5):
    wrong, error = deviations(tensor, expected)
    return not wrong and error <= tolerance


@pytest.fixture(scope="module")
def steered_net(golden_unet, golden_adapter):
    return SteeredUNet(golden_unet, golden_adapter)


@pytest.fixture(scope="module")
def residuals(steered_net, golden_inputs):
    with torch.no_grad():
        return steered_net.residuals(golden_inputs.hint, golden_inputs.timesteps)


@pytest.fixture(scope="module")
def right(steered_net, golden_inputs, residuals):
    i = golden_inputs
    with torch.no_grad():
        return steered_net.steer(i.x, i.timesteps, i.context, residuals)


def test_fill_rule_gives_the_known_answers(golden, tools):
    known = golden["fill_rule"]["known_answers"]
    first = tools.fill_parameter(0, "input_blocks.0.weight", (32, 64, 3, 3)).flatten()
    cases = {
        "stream(0,6)": torch.from_numpy(tools.stream(0, 6)),
        "stream(90001,4)": torch.from_numpy(tools.stream(90001, 4)),
        "param p=0 input_blocks.0.weight [32,64,3,3] first4": first[:4].double(),
        "param p=2 (norm gain) [32] first4": tools.fill_parameter(2, "n.weight", (32,))[:4],
        "param p=1 (bias) [32] first4": tools.fill_parameter(1, "n.bias", (32,))[:4],
    }
    assert cases.keys() == known.keys()
    for name, values in cases.items():
        expected = torch.tensor(known[name], dtype=torch.float64)
        torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-8)


def test_every_residual_meets_the_release(golden, golden_adapter, golden_inputs):
    with torch.no_grad():
        found = golden_adapter(golden_inputs.hint, golden_inputs.emb)
    outputs = golden["bps_sketch_u8_w16"]["outputs"]
    assert tuple(o["slot"] for o in outputs if not o.get("none")) == SLOTS == tuple(found.by_slot)
    for expected in (o for o in outputs if not o.get("none")):
        tolerance = 1e-4 * max(1, expected["std"])
        assert meets(found.by_slot[expected["slot"]], expected, tolerance=tolerance), expected


def test_plain_unet_meets_the_release(golden, golden_unet, golden_inputs):
    i = golden_inputs
    with torch.no_grad():
        eps = golden_unet(i.x, i.timesteps, i.context).sample
    assert meets(eps, golden["unet_plain"]["eps"])


def test_time_embedding_meets_the_release(golden, golden_unet, golden_inputs):
    emb = time_embedding(golden_unet, golden_inputs.timesteps, batch=2)
    assert meets(emb, golden["unet_time_embed_output"])


def test_steered_unet_meets_the_release(golden, right):
    assert meets(right, golden["unet_bps_w16"]["eps"])


def _wrong_sites(unet, mode):
    every = injection_sites(unet)
    attentions = injection_sites(unet, modules="attentions")
    if mode == "mode_mid_once_maxabs_vs_official":
        return every | {12: every[12][:1]}
    if mode == "mode_res_only_maxabs_vs_official":
        return injection_sites(unet, modules="resnets")
    return {slot: attentions[slot] or every[slot] for slot in every} | {12: every[12]}


@pytest.mark.parametrize(
    "mode",
    [
        "mode_res_only_maxabs_vs_official",
        "mode_attn_only_maxabs_vs_official",
        "mode_mid_once_maxabs_vs_official",
    ],
)
def test_wrong_injections_miss_the_release_by_the_measured_distance(
    golden, golden_unet, golden_inputs, residuals, right, mode
):
    i = golden_inputs
    injection = Injection(golden_unet, residuals)
    injection._sites = _wrong_sites(golden_unet, mode)
    with torch.no_grad(), injection:
        wrong = golden_unet(i.x, i.timesteps, i.context).sample
    assert not meets(wrong, golden["unet_bps_w16"]["eps"])
    distance = (wrong - right).abs().max().item()
    assert distance == pytest.approx(golden["parity_measured"][mode], abs=2e-5)


@pytest.mark.parametrize("modules", ["resnets", "attentions"])
def test_the_modules_switch_changes_the_result(golden, golden_unet, golden_inputs, residuals, modules):
    i = golden_inputs
    with torch.no_grad(), Injection(golden_unet, residuals, modules=modules):
        wrong = golden_unet(i.x, i.timesteps, i.context).sample
    assert not meets(wrong, golden["unet_bps_w16"]["eps"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_meet_the_release(
    golden, golden_adapter, golden_unet, steered_net, golden_inputs, checkpointing
):
    i, expected = golden_inputs, golden["gradients"]
    golden_adapter.zero_grad(set_to_none=True)
    if checkpointing:
        golden_unet.enable_gradient_checkpointing()
    try:
        eps = steered_net(i.x, i.timesteps, i.context, i.hint)
        loss = torch.nn.functional.mse_loss(eps, i.target)
        loss.backward()
    finally:
        golden_unet.disable_gradient_checkpointing()
    found = {name: p.grad.double().pow(2).sum() for name, p in golden_adapter.named_parameters()}

    def norm(*prefixes):
        return sum(v for k, v in found.items() if k.startswith(prefixes)).sqrt().item()

    inner = tuple(f"emit.{slot}." for slot in range(1, 13))
    outer = tuple(f"emit.{slot}." for slot in range(13, 25))
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    groups = {
        "grad_norm_all": norm(""),
        "input_blocks": norm("encoder."),
        "zero_blocks": norm(*inner),
        "middle_block": norm("middle."),
        "output_blocks": norm("decoder.", "upsamplers.", *outer),
    }
    for name, value in groups.items():
        assert value == pytest.approx(expected[name], rel=1e-5), name
    for slot, value in expected["per_zero_block"].items():
        assert norm(f"emit.{slot}.") == pytest.approx(value, rel=1e-5), slot
    for index, value in expected["per_output_zero"].items():
        assert norm(f"emit.{13 + int(index)}.") == pytest.approx(value, rel=1e-5), index
    assert all(p.grad is None for p in golden_unet.parameters())
