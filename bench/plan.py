"""What runs of a suite will need before anything is spent: parameters, memory, disk, steps, hours.

Parameters, bytes and operations are counted on the real classes (bench.memory). What is assumed is
said with every plan: the share of the peak rate that is reached (mfu), the allowance over the counted
bytes, the bytes of a stored pixel.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.base.random import Shape, shape_like, shape_of
from bench.config import Budget, RunConfig, Suite
from bench.cost import Timing, libraries_bytes, load_timings
from bench.data.latents import disk_needed
from bench.memory import Footprint, Setting, encoding_flops, footprint
from bench.suites import budget_of, method_of, suite_of, task_of
from bench.training.engine import Execution
from bench.types import BenchError, Method, Task, refusal, unknown

MFU = 0.25
PIXEL = 1.7  # bytes of a stored pixel: photographs as PNG
CPU_ALLOWANCE = 1.08  # over the counted bytes: glibc's heap and oneDNN's work space, measured
HOST_SHARE = 0.92  # of this machine's memory: the rest is the system's
USABLE = 0.92  # of a GPU's stated memory: the rest goes to ECC, the driver and the CUDA context
ALLOWANCE = 1.10  # over the counted bytes: fragments of the allocator, work space of kernels
ITEMS: Mapping[str, tuple[int, int]] = {"coco17": (118_287, 5_000)}
"""Items for training and evaluation of suites whose data the user brings: https://cocodataset.org."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker states it. memory: GiB; half, single: peak TFLOP/s, dense.

    half: of tensor cores on bfloat16 (float16 where there is no bfloat16) summing in float32; single:
    of plain float32, since the benchmark switches TF32 off. matches: the last words of the name that CUDA
    gives the device.
    """

    name: str
    memory: float
    half: float
    single: float
    matches: str
    source: str
    bfloat16: bool = True

    @property
    def usable(self) -> int:
        """Bytes that a process can fill."""
        return int(self.memory * USABLE * 2**30)

    def peak(self, precision: str) -> float:
        """Return the peak FLOP/s for "fp32", "bf16" or "fp16"."""
        return 1e12 * (self.single if precision == "fp32" else self.half)


_NVIDIA, _PAPERS = "https://www.nvidia.com/en-us/data-center", "https://images.nvidia.com/aem-dam"
_AMPERE = "en-zz/Solutions/geforce/ampere/pdf/NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"
_ADA = "Solutions/Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
_GPUS = (
    Gpu("h100", 80, 989.4, 66.9, "H100 80GB HBM3", f"{_NVIDIA}/h100/ (SXM)"),
    Gpu("h200", 141, 989.4, 66.9, "H200", f"{_NVIDIA}/h200/ (SXM)"),
    Gpu("a100-80", 80, 312, 19.5, "A100-SXM4-80GB", f"{_NVIDIA}/a100/"),
    Gpu("a100-40", 40, 312, 19.5, "A100-SXM4-40GB", f"{_NVIDIA}/a100/"),
    Gpu("l40s", 48, 362.05, 91.6, "L40S", f"{_NVIDIA}/l40s/"),
    Gpu("4090", 24, 165.2, 82.6, "RTX 4090", f"{_PAPERS}/{_ADA}"),
    Gpu("3090", 24, 71, 35.6, "RTX 3090", f"{_PAPERS}/{_AMPERE}"),
    Gpu("v100", 32, 125, 15.7, "V100-SXM2-32GB", f"{_NVIDIA}/v100/ (SXM2, 32 GB)", bfloat16=False),
)
GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in _GPUS}


def recognise(device: str) -> Gpu | None:
    """Return the GPU whose name CUDA would give as `device`, None where the table lacks it.

    Other makes of one chip have other peaks and go on after the name: "H100 PCIe", a slice of MIG.
    """
    return next((g for g in _GPUS if f" {device}".endswith(f" {g.matches}")), None)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where runs are planned for. gpu: a name of GPUS, or "cpu" for this machine; gpus: processes.

    mfu: share of the peak rate. timings: folder of `bench cost`'s file, for a CPU. like, size: the
    base's likeness where the suite brings none, and image size in pixels, None for its own.
    """

    gpu: str = "h100"
    gpus: int = 1
    mfu: float = MFU
    timings: Path | None = None
    like: str = "sd15"
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done, for all methods alike. items: of the train and of the evaluation side.

    setting: how steps are made. gpu: None for the CPU of this machine. shuffled: whether samples are
    drawn once more under other items' conditions. mfu: see Machine. process: bytes that a process with
    the libraries takes before it does anything, on a CPU; available: bytes that it can fill there.
    """

    suite: Suite
    budget: Budget
    task: Task
    shape: Shape
    items: tuple[int, int]
    setting: Setting
    gpu: Gpu | None
    shuffled: bool = True
    mfu: float = MFU
    process: int = 0
    available: int = 0

    @property
    def device(self) -> str:
        """The name of what it runs on."""
        return self.gpu.name if self.gpu is not None else "cpu"

    @property
    def usable(self) -> int:
        """Bytes that a process can fill."""
        return self.gpu.usable if self.gpu is not None else self.available

    @property
    def views(self) -> int:
        """How often a training item is encoded: as it is, and mirrored."""
        return 2 if self.setting.training.mirror else 1

    def flops(self, precision: str) -> float:
        """Return the operations that a GPU does in an hour."""
        assert self.gpu is not None
        return self.mfu * 3600 * self.gpu.peak(precision)

    def count(self, method: Method, options: Mapping[str, Any]) -> Footprint:
        """Count what a method's steps need."""
        return footprint(method, options=options, shape=self.shape, task=self.task, setting=self.setting)

    def needs(self, peak: int) -> int:
        """Return the memory of a process whose tensors take `peak` bytes at most.

        On a CPU the process and the items that a run holds in memory are beside the tensors.
        """
        if self.gpu is not None:
            return round(ALLOWANCE * peak)
        return round(self.process + self._held() + CPU_ALLOWANCE * peak)

    def _held(self) -> int:
        if self.suite.storage != "memory":
            return 0
        view = math.prod(self.shape.latent_shape) + self.task.channels * self.shape.size**2
        text = math.prod(self.shape.text_shape)
        train, evaluation = self.items
        return 4 * (train * (self.views * view + text) + evaluation * (view + text))

    @property
    def disk_of_data(self) -> dict[str, int]:
        """Bytes on disk that all methods share, by part; none where the suite brings its data."""
        if self.suite.storage != "shards":
            return {}
        shape, (train, evaluation) = self.shape, self.items
        sizes = {"latent_shape": shape.latent_shape, "text_shape": shape.text_shape}
        encoded = disk_needed(train, views=self.views, **sizes) + disk_needed(evaluation, views=1, **sizes)
        return {"images": round(sum(self.items) * PIXEL * shape.size**2), "latents and text": encoded}

    @property
    def encode_hours(self) -> float | None:
        """Hours of encoding all items once, by one process; None where nothing tells the speed."""
        if self.gpu is None:
            return None
        count = self.views * self.items[0] + self.items[1]
        return count * encoding_flops(self.shape) / self.flops("fp32")

    @property
    def assumptions(self) -> list[str]:
        """What a plan takes for granted, a sentence each."""
        counted = [
            "counted: parameters, bytes of tensors and operations, by running the real modules, loss and "
            "optimiser on tensors without contents",
            f"assumed: {PIXEL} bytes a stored pixel; every training step is like the second; not counted: "
            "the judges, which score after sampling",
        ]
        if self.gpu is None:
            return [
                *counted,
                f"assumed: {gib(self.process)} for the process and {CPU_ALLOWANCE - 1:.0%} over the counted "
                f"bytes; {HOST_SHARE:.0%} of this machine's memory usable; hours from timings.json, which "
                "bench cost writes",
            ]
        return [
            *counted,
            f"assumed: {self.mfu:.0%} of the peak rate (bench cost --random measures it; --mfu), training "
            f"and sampling at {self.gpu.peak(self.setting.training.precision) / 1e12:.0f} TFLOP/s, encoding "
            f"and decoding in float32 at {self.gpu.peak('fp32') / 1e12:.0f} ({self.gpu.source})",
            f"assumed: {ALLOWANCE - 1:.0%} over the counted bytes for kernels and fragments; "
            f"{1 - USABLE:.0%} of the {self.gpu.memory:g} GiB for ECC, driver and context",
        ]


def work_of(config: RunConfig, machine: Machine) -> Work:
    """Return what is to be done, checked; BenchError for what is not allowed."""
    suite, precision = suite_of(config), suite_of(config).training.precision
    if machine.gpu not in ("cpu", *GPUS):
        raise unknown("GPU", machine.gpu, [*GPUS, "cpu"])
    gpu = GPUS.get(machine.gpu)
    if gpu is None and (machine.gpus > 1 or precision == "fp16"):
        raise BenchError("--gpu cpu: one process, fp32 or bf16. Name a GPU for anything else.")
    if gpu is not None and precision == "bf16" and not gpu.bfloat16:
        raise BenchError(f"--precision bf16: {gpu.name} has no bfloat16. Use fp16 or fp32.")
    setting = Setting(
        training=suite.training,
        sampler=suite.sampler,
        execution=Execution.of(config),
        sampled=config.sample_batch,
        cuda=gpu is not None,
        processes=machine.gpus,
    )
    setting.parts()  # refuses a batch that cannot be divided
    like, size = machine.like, machine.size
    return Work(
        suite=suite,
        budget=budget_of(config, suite),
        task=task_of(config),
        shape=shape_like(like, size=size) if suite.base is None else shape_of(suite.base, size=size),
        items=_items(suite),
        setting=setting,
        gpu=gpu,
        shuffled=config.shuffled,
        mfu=machine.mfu,
        process=libraries_bytes(),
        available=round(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )


def _items(suite: Suite) -> tuple[int, int]:
    """Count the items of both sides; where the user's data are not there yet, those of the original."""
    try:
        splits = suite.splits()
    except BenchError:
        if suite.name not in ITEMS:
            raise
        return ITEMS[suite.name]
    return len(splits.side("train")), len(splits.side(suite.eval_side))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one method needs. All sizes in bytes.

    needed: memory of a process at its peak, allowance included; advice: what to change where that does
    not fit. train_hours: recomputing included; sample_hours: all sample sets, decoding included; None
    where nothing tells the speed. checkpoints, samples: on disk.
    """

    method: str
    title: str
    options: Mapping[str, Any]
    footprint: Footprint
    micro: int
    steps: int
    needed: int
    fits: bool
    advice: str
    train_hours: float | None
    sample_hours: float | None
    checkpoints: int
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"footprint": self.footprint.as_dict()}


def plan_runs(
    configs: Sequence[RunConfig], machine: Machine, *, say: Callable[[str], None]
) -> tuple[Work, list[Plan]]:
    """Plan runs that differ in method alone; say gets a line for each that cannot do the task.

    Raises BenchError for unknown names and for what the device or the suite cannot do.
    """
    work, plans = work_of(configs[0], machine), []
    measured = load_timings(machine.timings) if machine.timings is not None and work.gpu is None else None
    for config in configs:
        method, options = method_of(config)
        reason = refusal(method, work.task)
        if reason:
            say(f"{method.title} cannot do {work.task.name}: {reason}")
            continue
        timing = measured.find(method.name, options) if measured is not None else None
        plans.append(plan_method(method, options=options, work=work, timing=timing))
        say(f"{method.title}: counted")
    return work, plans


def plan_method(
    method: Method, *, options: Mapping[str, Any], work: Work, timing: Timing | None = None
) -> Plan:
    """Plan the run of one method. timing: measured on this machine, for plans on its CPU.

    Raises BenchError where the method refuses its options.
    """
    counted = work.count(method, options)
    images = work.budget.images(method.name)
    steps = max(1, images // work.setting.training.batch) if counted.trainable else 0
    needed = work.needs(counted.peak)
    fits = needed <= work.usable
    train, sample = _hours(counted, work, steps=steps, timing=timing)
    sets = 2 if work.shuffled and method.conditioned else 1
    sampled = sets * (work.items[1] if work.budget.eval_items is None else work.budget.eval_items)
    trained = 4 * counted.trainable
    checkpoint = trained + counted.optimiser + counted.average
    kept = work.setting.execution.keep + 1  # one more while it is written, and the finished weights
    return Plan(
        method=method.name,
        title=method.title,
        options=dict(options),
        footprint=counted,
        micro=work.setting.micro,
        steps=steps,
        needed=needed,
        fits=fits,
        advice="" if fits else advise(method, options=options, work=work, counted=counted),
        train_hours=train,
        sample_hours=None if sample is None else sampled * sample,
        checkpoints=kept * checkpoint + trained if trained else 0,
        samples=round(sampled * PIXEL * work.shape.size**2),
    )


def _hours(
    counted: Footprint, work: Work, *, steps: int, timing: Timing | None
) -> tuple[float | None, float | None]:
    """Return hours of training, and of sampling one image."""
    training, group = work.setting.training, work.setting.processes
    images = steps * training.batch
    if work.gpu is None:
        if timing is None:
            return (None if steps else 0.0), None
        rate = timing.train_images_per_second
        return images / rate / 3600 if rate else 0.0, timing.sample_seconds_per_image / 3600
    again = 4 / 3 if work.setting.execution.gradient_checkpointing else 1.0  # a forward pass beside 1 + 2
    flops = group * work.flops(training.precision)
    once = counted.encode_flops + work.suite.sampler.steps * counted.step_flops
    decode = counted.decode_flops / (group * work.flops("fp32"))  # the autoencoder stays float32
    return images * counted.train_flops * again / flops, once / flops + decode


def advise(method: Method, *, options: Mapping[str, Any], work: Work, counted: Footprint) -> str:
    """Say what to change so that a run fits, the least costly first; every size is counted, not guessed."""
    still, whole, planned = max(counted.sample_peak, counted.decode_peak), work.setting.micro, work.setting
    if work.needs(still) > work.usable:
        return f"sampling {planned.sampled} at once needs {gib(work.needs(still))}: lower --sample-batch"
    sizes = [size for size in range(whole, 0, -1) if whole % size == 0]
    for recomputed, micro in itertools.product((False, True), sizes):
        setting = planned.with_micro(micro, checkpointing=recomputed)
        needed = work.needs(replace(work, setting=setting).count(method, options).train_peak)
        if needed <= work.usable:
            words = [f"--micro-batch {micro}"] if micro != whole else []
            words += ["--gradient-checkpointing"] if recomputed else []
            return f"{' '.join(words)} (then {gib(needed)})"
    return f"no micro batch fits: {gib(needed)} even with --micro-batch 1 --gradient-checkpointing"


def total_hours(plans: Sequence[Plan]) -> float | None:
    """Return the hours of all runs one after another; None where one is unknown."""
    parts = [h for p in plans for h in (p.train_hours, p.sample_hours)]
    return None if None in parts else sum(h for h in parts if h is not None)


def gib(count: float) -> str:
    """Return bytes in words: 12.3 GiB."""
    return f"{count / 2**30:.1f} GiB"
