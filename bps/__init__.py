"""Bayesian Power Steering: an image condition for a frozen text-to-image diffusion model.

The posterior noise is the prior noise of the frozen UNet plus a steering term learned from the
condition and the timestep: residuals added inside the UNet. Huang, Li, Huang, ICML 2024,
arXiv 2406.03683. Public names load on first use, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bps.adapter import BPSAdapter, Residuals
    from bps.pipeline import StableDiffusionBPSPipeline, StableDiffusionXLBPSPipeline
    from bps.release import convert_release_state_dict
    from bps.steering import Injection, SteeredUNet, steered

__all__ = [
    "BPSAdapter",
    "Injection",
    "Residuals",
    "StableDiffusionBPSPipeline",
    "StableDiffusionXLBPSPipeline",
    "SteeredUNet",
    "convert_release_state_dict",
    "steered",
]

_HOMES = {
    "BPSAdapter": "bps.adapter",
    "Residuals": "bps.adapter",
    "StableDiffusionBPSPipeline": "bps.pipeline",
    "StableDiffusionXLBPSPipeline": "bps.pipeline",
    "convert_release_state_dict": "bps.release",
    "Injection": "bps.steering",
    "SteeredUNet": "bps.steering",
    "steered": "bps.steering",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bps' has no attribute '{name}'. It has: {sorted(_HOMES)}.")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
