"""GPUs that a plan knows: memory and peak rates as their makers state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.types import unknown

GIB = 2**30
USABLE = 0.92  # of the stated memory: the rest goes to ECC, the driver and the CUDA context
ALLOWANCE = 1.10  # over the counted bytes: fragments of the allocator, work space of kernels


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU. memory: GiB as stated; half, single: peak TFLOP/s, dense.

    half: of tensor cores on bfloat16 (float16 where there is no bfloat16) summing in float32; single:
    of plain float32, since the benchmark switches TF32 off. matches: the last words of the name that CUDA
    gives the device.
    """

    name: str
    memory: float
    half: float
    single: float
    bfloat16: bool
    matches: str
    source: str

    @property
    def usable(self) -> int:
        """Bytes that a process can fill."""
        return int(self.memory * USABLE * GIB)

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s for "fp32", "bf16" or "fp16"."""
        return 1e12 * (self.single if precision == "fp32" else self.half)


_AMPERE = "https://images.nvidia.com/aem-dam/en-zz/Solutions/geforce/ampere/pdf/NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"  # noqa: E501
_ADA = "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"  # noqa: E501
GPUS: Mapping[str, Gpu] = {
    g.name: g
    for g in (
        Gpu(
            name="h100",
            memory=80,
            half=989.4,
            single=66.9,
            bfloat16=True,
            matches="H100 80GB HBM3",
            source="https://www.nvidia.com/en-us/data-center/h100/ (SXM)",
        ),
        Gpu(
            name="h200",
            memory=141,
            half=989.4,
            single=66.9,
            bfloat16=True,
            matches="H200",
            source="https://www.nvidia.com/en-us/data-center/h200/ (SXM)",
        ),
        Gpu(
            name="a100-80",
            memory=80,
            half=312,
            single=19.5,
            bfloat16=True,
            matches="A100-SXM4-80GB",
            source="https://www.nvidia.com/en-us/data-center/a100/",
        ),
        Gpu(
            name="a100-40",
            memory=40,
            half=312,
            single=19.5,
            bfloat16=True,
            matches="A100-SXM4-40GB",
            source="https://www.nvidia.com/en-us/data-center/a100/",
        ),
        Gpu(
            name="l40s",
            memory=48,
            half=362.05,
            single=91.6,
            bfloat16=True,
            matches="L40S",
            source="https://www.nvidia.com/en-us/data-center/l40s/",
        ),
        Gpu(name="4090", memory=24, half=165.2, single=82.6, bfloat16=True, matches="RTX 4090", source=_ADA),
        Gpu(name="3090", memory=24, half=71, single=35.6, bfloat16=True, matches="RTX 3090", source=_AMPERE),
        Gpu(
            name="v100",
            memory=32,
            half=125,
            single=15.7,
            bfloat16=False,
            matches="V100-SXM2-32GB",
            source="https://www.nvidia.com/en-us/data-center/v100/ (SXM2, 32 GB)",
        ),
    )
}


def find_gpu(name: str) -> Gpu:
    """Return a GPU by name; BenchError for an unknown one."""
    if name not in GPUS:
        raise unknown("GPU", name, [*GPUS, "cpu"])
    return GPUS[name]


def recognise(device: str) -> Gpu | None:
    """Return the GPU whose name CUDA would give as `device`, None where the table lacks it.

    Other makes of one chip have other peaks and go on after the name: "H100 PCIe", a slice of MIG.
    """
    return next((g for g in GPUS.values() if f" {device}".endswith(f" {g.matches}")), None)
