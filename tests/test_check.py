"""The integration check must fail for a method that is wired wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import registry
from bench.base.load import Base
from bench.check import check_method
from bench.content import Cache
from bench.data.latents import Prepared, prepare
from bench.data.openmoji import OpenMoji64, openmoji64_splits


@pytest.fixture(scope="module")
def data(micro_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(
        micro_base,
        dataset=OpenMoji64(),
        ids=openmoji64_splits().val[:6],
        task=registry.load("task", "sketch"),
        mirror=False,
        cache=Cache(tmp_path_factory.mktemp("check")),
    )


class Broken(torch.nn.Module):
    """A method wired wrongly in one way, which the integration check must see."""

    def __init__(self, base: Base, fault: str) -> None:
        super().__init__()
        self.unet, self.base, self.fault = base.prior_unet("free"), base, fault
        self.unet.requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.full((1,), 0.1 if fault == "start" else 0.0))
        self.idle = torch.nn.Parameter(torch.ones(1)) if fault == "dead" else None

    def encode(self, condition: torch.Tensor) -> torch.Tensor:
        return condition.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)

    def forward(self, z: Any, t: torch.Tensor, text: torch.Tensor, mean: torch.Tensor) -> Any:
        if self.fault == "thaw" and torch.is_grad_enabled():
            with torch.no_grad():
                next(self.unet.parameters()).add_(1e-3)
        k = len(text)
        out = self.unet(z.repeat(k, 1, 1, 1), t.repeat(k), text.flatten(0, 1)).sample
        eps = self.base.to_eps(out.unflatten(0, (k, -1)), z, t)
        return eps + self.scale * (1.0 if self.fault == "blind" else mean)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("start", "equals the base"),
        ("dead", "gradients reach"),
        ("thaw", "bit-identical"),
        ("blind", "condition changes"),
        ("none", ""),
    ],
)
def test_the_integration_check_sees_a_wrong_wire(
    fault: str, seen: str, micro_base: Base, data: Prepared
) -> None:
    class Row:
        conditioned = True
        options: dict[str, object] = {}

        def build(self, base: Base, task: object) -> Broken:
            return Broken(base, fault)

    task = registry.load("task", "sketch")
    findings = check_method(Row(), base=micro_base, task=task, data=data, options={})  # type: ignore[arg-type]
    failed = [f.statement for f in findings if not f.holds]
    assert len(failed) == (fault != "none") and all(seen in statement for statement in failed)
