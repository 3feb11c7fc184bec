"""What a method costs: parameters, multiply-accumulates, peak memory; measured, never declared."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Any

from bench.base import Base
from bench.prepare import Prepared

if TYPE_CHECKING:
    import torch


def count_parameters(denoiser: torch.nn.Module) -> tuple[int, int]:
    """Return (all, trainable) scalars of a denoiser, its frozen base included in the first."""
    unique = {id(p): p for p in denoiser.parameters()}.values()
    return sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)


def count_macs(denoiser: Any, *, base: Base, data: Prepared) -> int:
    """Return the multiply-accumulates of one image's denoiser call with one text branch.

    Matrix products, convolutions and attention are counted (torch's FlopCounterMode, two operations
    each); `encode` is not, since it happens once an image.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    latents = data.latents[0, :1].to(base.device)
    text = data.text[:1].to(base.device)
    steps = torch.zeros(1, dtype=torch.long, device=base.device)
    with torch.no_grad():
        features = denoiser.encode(data.conditions[0, :1].to(base.device))
        with FlopCounterMode(display=False) as counter:
            denoiser(latents, steps, text[None], features)
    return int(counter.get_total_flops()) // 2


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes: of the process on a CPU, of the allocator on a GPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
