"""Bayesian Power Steering: an image condition for a frozen text-to-image diffusion model.

The posterior noise is the prior noise of the frozen UNet plus a steering term learned from the
condition and the timestep: residuals added inside the UNet. Huang, Li, Huang, ICML 2024,
arXiv 2406.03683. Public names load on first use, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bps.adapter import BPSAdapter as BPSAdapter
    from bps.adapter import Residuals as Residuals
    from bps.pipeline import StableDiffusionBPSPipeline as StableDiffusionBPSPipeline
    from bps.pipeline import StableDiffusionXLBPSPipeline as StableDiffusionXLBPSPipeline
    from bps.release import convert_release_state_dict as convert_release_state_dict
    from bps.steering import Injection as Injection
    from bps.steering import SteeredUNet as SteeredUNet
    from bps.steering import steered as steered

_HOMES = {
    **dict.fromkeys(("BPSAdapter", "Residuals"), "bps.adapter"),
    **dict.fromkeys(("Injection", "SteeredUNet", "steered"), "bps.steering"),
    **dict.fromkeys(("StableDiffusionBPSPipeline", "StableDiffusionXLBPSPipeline"), "bps.pipeline"),
    "convert_release_state_dict": "bps.release",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bps' has no attribute '{name}'. It has: {sorted(_HOMES)}.")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
