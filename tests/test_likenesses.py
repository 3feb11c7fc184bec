"""Every method on bases that have the topology of SD 1.5, SD 2.1 (which predicts v) and SDXL.

Pictures of 128 pixels: at 64 the deepest level is one cell, whose memory layout is ambiguous, and
convolutions then sum in another order (1e-6) in methods that add zeros.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.base.load import Base, load_base
from bench.base.random import LIKENESSES, write_random_base
from bench.check import check_method
from bench.content import Cache
from bench.data.latents import prepare
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.types import Example
from bps.adapter import BPSAdapter
from bps.steering import SteeredUNet

TASK = "drawing"


class Doubled:
    """OpenMoji64 at 128 pixels: every pixel four times."""

    name = digest = "doubled"

    def __init__(self) -> None:
        self.data = OpenMoji64()
        self.ids = self.data.ids

    def __getitem__(self, item_id: str) -> Example:
        item = self.data[item_id]
        names = ("sketch", "classes")
        layers = {n: item.layers[n].repeat(2, 0).repeat(2, 1) for n in names}
        image = item.image.repeat(2, 0).repeat(2, 1)
        return dataclasses.replace(item, image=image, layers=layers)


@pytest.fixture(scope="module", params=sorted(LIKENESSES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("like") / request.param
    return load_base(write_random_base(folder, like=request.param, width=32, size=64))


@pytest.fixture(scope="module")
def data(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return prepare(
        base,
        dataset=Doubled(),
        ids=openmoji64_splits().val[:4],
        task=registry.load("task", TASK),
        mirror=False,
        cache=Cache(tmp_path_factory.mktemp("cache")),
    )


METHODS = [
    pytest.param(name, marks=[] if name == "bps" else pytest.mark.slow)
    for name in sorted(registry.names("method", ["all"]))
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_wired_into_the_base(name: str, base: Base, data: Any) -> None:
    """Equal to the base before training, a gradient everywhere, the prior frozen, the condition seen."""
    method = registry.load("method", name)
    findings = check_method(
        method, base=base, task=registry.load("task", TASK), data=data, options=method.options, steps=3
    )
    assert len(findings) >= 2 and [f.statement for f in findings if not f.holds] == []


def test_eps_is_made_of_what_the_unet_predicts(base: Base) -> None:
    """eps = sqrt(a) v + sqrt(1 - a) z where the model says v, and its output as it is elsewhere."""
    latents, times = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    text = base.encode_text(["a dog", "a cat"])
    with torch.no_grad():
        output = base.unet(**base.unet_inputs(latents, times, text[None])).sample
        eps = base.eps(latents, times, text[None])[0]
    a = base.alphas.float()[times].view(-1, 1, 1, 1)
    wanted = output if base.prediction == "epsilon" else a.sqrt() * output + (1 - a).sqrt() * latents
    assert torch.allclose(eps, wanted, atol=1e-6)
    assert (base.prediction == "v_prediction") == ("sd21" in base.name)


def test_steering_reaches_attentions_with_linear_projections(base: Base) -> None:
    """A residual on the attentions alone moves the output, and every steered place sees it."""
    adapter = BPSAdapter.from_unet(base.unet, 4, downscale_factor=8, modules="attentions")
    steered = SteeredUNet(base.unet, adapter)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(2)))
        latents, text = torch.randn(1, 4, 8, 8), base.encode_text(["a dog"])[None]
        rows = base.unet_inputs(latents, torch.tensor([500]), text)
        images = [torch.full((1, 4, 64, 64), value) for value in (0.0, 1.0)]
        dark, light = (steered.steer(**rows, residuals=steered.residuals(image, 500)) for image in images)
    assert torch.isfinite(dark).all() and not torch.allclose(dark, light, atol=1e-4)


def test_a_base_written_twice_is_one_base(base: Base, tmp_path: Path) -> None:
    again = write_random_base(tmp_path / "again", like=base.name, width=32, size=64)
    assert load_base(again).digest == base.digest
