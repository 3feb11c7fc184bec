"""What a method costs: parameters, multiply-accumulates, peak memory; measured, never declared."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt

from bench.base.load import Base
from bench.content import read_json, write_json
from bench.data.latents import Prepared
from bench.strict import Amount, Count, FromFile
from bench.types import BenchError

if TYPE_CHECKING:
    import torch


def count_parameters(denoiser: torch.nn.Module) -> tuple[int, int]:
    """Return (all, trainable) scalars of a denoiser, its frozen base included in the first."""
    unique = {id(p): p for p in denoiser.parameters()}.values()
    return sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)


def count_macs(denoiser: Any, *, base: Base, data: Prepared, branches: int = 1) -> int:
    """Return the multiply-accumulates of one image's denoiser call with K = `branches` texts.

    Matrix products, convolutions and attention are counted (torch's FlopCounterMode, two operations
    each). With two branches (guidance) a method that ignores the text does its own part once.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    latents = data.latents_at([0]).to(base.device)
    text = data.text_at([0]).to(base.device).expand(branches, 1, -1, -1)
    steps = torch.zeros(1, dtype=torch.long, device=base.device)
    with torch.no_grad():
        features = denoiser.encode(data.conditions_at([0]).to(base.device))
        with FlopCounterMode(display=False) as counter:
            denoiser(latents, steps, text, features)
    return int(counter.get_total_flops()) // 2


def count_encode_macs(denoiser: Any, *, base: Base, data: Prepared) -> int:
    """Return the multiply-accumulates of `encode`, which happens once an image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser.encode(data.conditions_at([0]).to(base.device))
    return int(counter.get_total_flops()) // 2


class Ledger:
    """Costs of sampling as they arise, in one JSON file that survives interruptions.

    Seconds and images are summed, the peak memory is the largest, over all starts. What a killed
    process had not written yet, or a lost or damaged file held, is unknown: None. path: None keeps no
    file, for all but the main process.
    """

    def __init__(self, path: Path | None, *, device: str) -> None:
        self.path, self.device = path, device
        self.sums: _Sums | None = None
        if path is not None and path.exists():
            with contextlib.suppress(BenchError):
                self.sums = read_json(path, of=_Sums)

    def add(self, *, seconds: float, images: int) -> None:
        """Add what images took, with the peak memory so far, and write the file."""
        before = self.sums or _Sums(sample_seconds=0.0, sample_images=0, peak_memory_bytes=0)
        self.sums = _Sums(
            sample_seconds=before.sample_seconds + seconds,
            sample_images=before.sample_images + images,
            peak_memory_bytes=max(before.peak_memory_bytes, peak_memory(self.device)),
        )
        if self.path is not None:
            write_json(self.path, vars(self.sums))

    @property
    def seconds_per_image(self) -> float | None:
        """Mean over the images that were counted."""
        return self.sums.sample_seconds / self.sums.sample_images if self.sums else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """Largest peak memory while images were sampled."""
        return self.sums.peak_memory_bytes if self.sums else None


@dataclass(frozen=True, kw_only=True)
class _Sums(FromFile):
    sample_seconds: Amount
    sample_images: Annotated[Count, Gt(0)]
    peak_memory_bytes: Count


def reset_peak_memory(device: str) -> None:
    """Forget earlier peaks, where the system allows it (CUDA, Linux).

    On a CPU what was freed goes back to the system first: a process keeps it, and what building a
    model needed for a moment would be counted as the work's.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes: of the process on a CPU, of the allocator on a GPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    found = _status("VmHWM:")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def libraries_bytes() -> int:
    """Return the bytes of this process with all libraries loaded that a step on a CPU uses.

    Ask for it before anything else is made. Where the system does not say, its peak so far.
    """
    import accelerate  # noqa: F401
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import torch
    import torch._dynamo  # torch.optim loads it at its first step
    import transformers  # noqa: F401

    layer = torch.nn.Conv2d(4, 4, 3)
    layer(torch.ones(1, 4, 8, 8)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()
    found = _status("VmRSS:")
    return peak_memory("cpu") if found is None else found


def _status(name: str) -> int | None:
    """Read a size from Linux's account of this process, in bytes; None elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def be_deterministic(device: str) -> None:
    """Make a GPU repeat itself: no TF32, no autotuning, deterministic kernels where they exist."""
    if not device.startswith("cuda"):
        return
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
