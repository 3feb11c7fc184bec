"""Bayesian Power Steering as a method of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bps.adapter import BPSAdapter
from bps.schedule import slot_weight
from bps.sites import MIDDLE_SLOT
from bps.steering import SteeredUNet

if TYPE_CHECKING:
    from bench.base import Base
    from bench.types import Task


class BPSDenoiser(torch.nn.Module):
    """The base's UNet steered by a BPS adapter.

    The residuals depend on condition and timestep alone, so one evaluation serves all K branches.
    """

    def __init__(self, base: Base, adapter: BPSAdapter, *, prior: str = "frozen") -> None:
        super().__init__()
        unet = base.prior_unet(prior, seed=torch.initial_seed())
        self.starts_as_base = prior != "none"
        self.steered = SteeredUNet(unet, adapter, freeze=prior == "frozen")
        self._to_eps = base.to_eps

    def layer_weights(self) -> dict[int, tuple[float, float]]:
        """Return slot -> (weight at the start, weight now) of the steered encoder and middle."""
        adapter = self.steered.adapter
        schedule = adapter.config["schedule"]
        slots = [slot for slot in adapter.slots if slot <= MIDDLE_SLOT]
        start = [slot_weight(schedule, slot=slot) for slot in slots]
        now = adapter.weights.detach().tolist()
        return dict(zip(slots, zip(start, now, strict=True), strict=True))

    def encode(self, condition: torch.Tensor) -> torch.Tensor:
        """Pass the condition [B,C,H,W] through: every residual also depends on the timestep."""
        return condition

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        features: torch.Tensor,
    ) -> torch.Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D], features [B,C,H,W] -> eps [K,B,4,h,w]."""
        branches = len(text)
        residuals = self.steered.residuals(features, timesteps)
        output = self.steered.steer(
            latents.repeat(branches, 1, 1, 1),
            timesteps.repeat(branches),
            text.flatten(0, 1),
            residuals,
        )
        return self._to_eps(output.unflatten(0, (branches, -1)), latents, timesteps)


class BPS:
    """Bayesian Power Steering: posterior eps = frozen prior eps + learned steering."""

    name = "bps"
    title = "BPS"
    conditioned = True
    source = "Huang, Li, Huang, ICML 2024, https://arxiv.org/abs/2406.03683"
    options = {
        "schedule": "head_heavy",
        "prior": "frozen",
        "sites": ("encoder", "middle", "decoder"),
        "modules": "both",
    }

    def build(
        self,
        base: Base,
        task: Task,
        *,
        schedule: str | Sequence[float] = "head_heavy",
        prior: str = "frozen",
        sites: Sequence[str] | str = ("encoder", "middle", "decoder"),
        modules: str = "both",
    ) -> BPSDenoiser:
        """Return the steered base; only the adapter trains while the prior is frozen.

        schedule, sites, modules: see BPSAdapter. prior: see Base.prior_unet.
        """
        adapter = BPSAdapter.from_unet(
            base.unet,
            task.channels,
            downscale_factor=base.downscale,
            schedule=schedule,
            sites=sites,
            modules=modules,
        )
        return BPSDenoiser(base, adapter.to(base.device), prior=prior)
