"""What runs of a suite will need before anything is spent: parameters, memory, disk, steps, hours.

Parameters, bytes and operations are counted on the real classes (bench.footprint). What is assumed is
said with every plan: the share of the peak rate that is reached (mfu), the allowance over the counted
bytes, the bytes of a stored pixel.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.base.random import Shape, shape_like, shape_of
from bench.config import Budget, RunConfig, Suite
from bench.cost import libraries_bytes
from bench.data.latents import disk_needed
from bench.footprint import Footprint, Setting, encoding_flops, footprint
from bench.gpus import ALLOWANCE, USABLE, Gpu, find_gpu
from bench.suites import budget_of, method_of, suite_of, task_of
from bench.timings import Timing, load_timings
from bench.training.engine import Execution, micro_batches
from bench.types import BenchError, Method, Task, refusal

MFU = 0.25
PIXEL = 1.7  # bytes of a stored pixel: photographs as PNG
CPU_ALLOWANCE = 1.08  # over the counted bytes: glibc's heap and oneDNN's work space, measured
HOST_SHARE = 0.92  # of this machine's memory: the rest is the system's
ITEMS: Mapping[str, tuple[int, int]] = {"coco17": (118_287, 5_000)}
"""Items for training and evaluation of suites whose data the user brings: https://cocodataset.org."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done, for all methods alike. items: of the train and of the evaluation side.

    gpu: None for the CPU of this machine. sampled: images sampled at once. shuffled: whether samples
    are drawn once more under other items' conditions. mfu: see Plan. process: bytes that a process
    with the libraries takes before it does anything, on a CPU.
    """

    suite: Suite
    budget: Budget
    task: Task
    shape: Shape
    items: tuple[int, int]
    gpu: Gpu | None
    gpus: int = 1
    execution: Execution = Execution()
    sampled: int = 32
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
    def micro(self) -> int:
        """Images that a process trains at once."""
        return len(self._divided()[0])

    def check(self) -> None:
        """Raise BenchError where the batch cannot be divided as asked."""
        self._divided()

    def _divided(self) -> list[range]:
        batch, micro = self.suite.training.batch, self.execution.micro_batch
        return micro_batches(batch, micro=micro, count=self.gpus)

    @property
    def setting(self) -> Setting:
        """How its steps are made."""
        return Setting(
            training=self.suite.training,
            sampler=self.suite.sampler,
            execution=self.execution,
            micro=self.micro,
            accumulate=len(self._divided()) > 1,
            sampled=self.sampled,
            cuda=self.gpu is not None,
            processes=self.gpus,
        )

    def with_micro(self, micro: int, *, checkpointing: bool) -> Work:
        """Return the same work in micro batches of another size, with activations recomputed or not."""
        changed = replace(self.execution, micro_batch=micro, gradient_checkpointing=checkpointing)
        return replace(self, execution=changed)


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
        return {**asdict(self), "footprint": self.footprint.as_dict()}


def plan_method(
    method: Method, *, options: Mapping[str, Any], work: Work, timing: Timing | None = None
) -> Plan:
    """Plan the run of one method. timing: measured on this machine, for plans on its CPU.

    Raises BenchError where the method cannot do the task or refuses its options.
    """
    reason = refusal(method, work.task)
    if reason:
        raise BenchError(f"{method.name} cannot do {work.task.name}: {reason}")
    counted = _count(method, options, work)
    batch = work.suite.training.batch
    steps = max(1, work.budget.images(method.name) // batch) if counted.trainable else 0
    needed = needs(counted.peak, work)
    fits = needed <= work.usable
    train, sample = _hours(counted, work, steps=steps, timing=timing)
    evaluated = work.items[1] if work.budget.eval_items is None else work.budget.eval_items
    sets = 2 if work.shuffled and method.conditioned else 1
    return Plan(
        method=method.name,
        title=method.title,
        options=dict(options),
        footprint=counted,
        micro=work.micro,
        steps=steps,
        needed=needed,
        fits=fits,
        advice="" if fits else advise(method, options=options, work=work, counted=counted),
        train_hours=train,
        sample_hours=None if sample is None else sets * evaluated * sample,
        checkpoints=checkpoint_bytes(counted, work),
        samples=round(sets * evaluated * PIXEL * work.shape.size**2),
    )


def needs(peak: int, work: Work) -> int:
    """Return the memory of a process whose tensors take `peak` bytes at most."""
    if work.gpu is not None:
        return round(ALLOWANCE * peak)
    return round(work.process + held_bytes(work) + CPU_ALLOWANCE * peak)


def held_bytes(work: Work) -> int:
    """Return the bytes of encoded items that a run holds in memory, beside its device's."""
    if work.suite.storage != "memory":
        return 0
    shape, views = work.shape, 2 if work.suite.training.mirror else 1
    view = math.prod(shape.latent_shape) + work.task.channels * shape.size**2
    text = math.prod(shape.text_shape)
    train, evaluation = work.items
    return 4 * (train * (views * view + text) + evaluation * (view + text))


def checkpoint_bytes(counted: Footprint, work: Work) -> int:
    """Return the disk for checkpoints: those kept, one being written, and the finished weights."""
    trained = 4 * counted.trainable
    one = trained + counted.optimiser + counted.average
    return (work.execution.keep + 1) * one + trained if trained else 0


def disk_of_data(work: Work) -> dict[str, int]:
    """Return the bytes on disk that all methods share, by part; none where the suite brings its data."""
    if work.suite.storage != "shards":
        return {}
    shape, count = work.shape, sum(work.items)
    sizes = {"latent_shape": shape.latent_shape, "text_shape": shape.text_shape}
    views = 2 if work.suite.training.mirror else 1
    train, evaluation = work.items
    encoded = disk_needed(train, views=views, **sizes) + disk_needed(evaluation, views=1, **sizes)
    return {"images": round(count * PIXEL * shape.size**2), "latents and text": encoded}


def advise(method: Method, *, options: Mapping[str, Any], work: Work, counted: Footprint) -> str:
    """Say what to change so that a run fits, the least costly first; sizes are counted, not guessed.

    Between two counted micro batches the peak lies on or below the line between them, since at every
    moment the bytes grow linearly with the batch and the peak is the largest of such moments.
    """
    still = max(counted.sample_peak, counted.decode_peak)
    if needs(still, work) > work.usable:
        return f"sampling {work.sampled} at once needs {gib(needs(still, work))}: lower --sample-batch"
    for recomputed in (False, True):
        asked = {"checkpointing": recomputed}
        most = counted
        if recomputed != work.execution.gradient_checkpointing:
            most = _count(method, options, work.with_micro(work.micro, **asked))
        sizes = [n for n in range(1, work.micro + 1) if work.micro % n == 0]
        least = _count(method, options, work.with_micro(1, **asked)) if work.micro > 1 else most
        for size in reversed(sizes):
            peak = _between(least, most, size=size, work=work)
            if needs(peak, work) <= work.usable:
                return _words(size, work, recomputed=recomputed, needed=needs(peak, work))
    return (
        f"no micro batch fits: {gib(needs(least.train_peak, work))} even with --micro-batch 1 "
        "--gradient-checkpointing"
    )


def _between(least: Footprint, most: Footprint, *, size: int, work: Work) -> int:
    """Return a bound on the peak of a micro batch from those of one image and of the largest.

    Several micro batches a step hold the gradients of the first beside the activations of the next.
    """
    if size == work.micro:
        return most.train_peak
    top = most.train_peak + (0 if work.setting.accumulate else most.gradients)
    return round(least.train_peak + (top - least.train_peak) * (size - 1) / (work.micro - 1))


def _words(size: int, work: Work, *, recomputed: bool, needed: int) -> str:
    words = [] if size == work.micro else [f"--micro-batch {size}"]
    words += ["--gradient-checkpointing"] if recomputed else []
    return f"{' '.join(words)} (then {gib(needed)})"


def _count(method: Method, options: Mapping[str, Any], work: Work) -> Footprint:
    return footprint(method, options=options, shape=work.shape, task=work.task, setting=work.setting)


def _hours(
    counted: Footprint, work: Work, *, steps: int, timing: Timing | None
) -> tuple[float | None, float | None]:
    """Return hours of training, and of sampling one image."""
    batch = work.suite.training.batch
    if work.gpu is None:
        if timing is None:
            return (None if steps else 0.0), None
        rate = timing.train_images_per_second
        train = steps * batch / rate / 3600 if rate else 0.0
        return train, timing.sample_seconds_per_image / 3600
    speed = work.gpus * work.mfu * 3600
    precision = work.suite.training.precision
    once = counted.encode_flops + work.suite.sampler.steps * counted.step_flops
    train = steps * batch * counted.train_flops * _recomputing(work) / (speed * work.gpu.peak(precision))
    sample = once / (speed * work.gpu.peak(precision))
    decode = counted.decode_flops / (speed * work.gpu.peak("fp32"))  # the autoencoder stays float32
    return train, sample + decode


def _recomputing(work: Work) -> float:
    """The factor on a step's operations: one more forward pass beside one of 1 + 2."""
    return 4 / 3 if work.execution.gradient_checkpointing else 1.0


def gib(count: float) -> str:
    """Return bytes in words: 12.3 GiB."""
    return f"{count / 2**30:.1f} GiB"


def total_hours(plans: Sequence[Plan]) -> float | None:
    """Return the hours of all runs one after another; None where one is unknown."""
    parts = [h for p in plans for h in (p.train_hours, p.sample_hours)]
    return None if None in parts else sum(h for h in parts if h is not None)


def encode_hours(work: Work) -> float | None:
    """Return the hours of encoding all items once, by one process; None where nothing tells the speed."""
    if work.gpu is None:
        return None
    views = 2 if work.suite.training.mirror else 1
    count = views * work.items[0] + work.items[1]
    return count * encoding_flops(work.shape) / (work.mfu * 3600 * work.gpu.peak("fp32"))


def assumptions(work: Work) -> list[str]:
    """Return what a plan takes for granted, a sentence each."""
    said = [
        "counted: parameters, bytes of tensors and operations, by running the real modules, loss and "
        "optimiser on tensors without contents",
        f"assumed: {PIXEL} bytes a stored pixel; every training step is like the second; not counted: the "
        "judges, which score after sampling",
    ]
    if work.gpu is None:
        return [
            *said,
            f"assumed: {gib(work.process)} for the process and {CPU_ALLOWANCE - 1:.0%} over "
            f"the counted bytes; {HOST_SHARE:.0%} of this machine's memory usable; hours from "
            "timings.json, which bench cost writes",
        ]
    return [
        *said,
        f"assumed: {work.mfu:.0%} of the peak rate (bench cost --random measures it; --mfu), training and "
        f"sampling at {work.gpu.peak(work.suite.training.precision) / 1e12:.0f} TFLOP/s, encoding and "
        f"decoding in float32 at {work.gpu.peak('fp32') / 1e12:.0f} ({work.gpu.source})",
        f"assumed: {ALLOWANCE - 1:.0%} over the counted bytes for kernels and fragments; "
        f"{1 - USABLE:.0%} of the {work.gpu.memory:g} GiB for ECC, driver and context",
    ]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where runs are planned for. gpu: a name of bench.gpus, or "cpu" for this machine; gpus: processes.

    mfu: share of the peak rate, None for MFU. timings: folder of `bench cost`'s file, for a CPU. like,
    size: the base's likeness where the suite brings none, and image size in pixels, None for its own.
    """

    gpu: str = "h100"
    gpus: int = 1
    mfu: float | None = None
    timings: Path | None = None
    like: str = "sd15"
    size: int | None = None


def plan_runs(
    configs: Sequence[RunConfig], machine: Machine, *, say: Callable[[str], None]
) -> tuple[Work, list[Plan]]:
    """Plan runs that differ in method alone; say gets a line for each that cannot do the task.

    Raises BenchError for unknown names and for what the device or the suite cannot do.
    """
    work = work_of(configs[0], machine)
    known = load_timings(machine.timings) if machine.timings is not None and work.gpu is None else None
    plans = []
    for config in configs:
        method, options = method_of(config)
        reason = refusal(method, work.task)
        if reason:
            say(f"{method.title} cannot do {work.task.name}: {reason}")
            continue
        timing = known.find(method.name, options) if known is not None else None
        plans.append(plan_method(method, options=options, work=work, timing=timing))
        say(f"{method.title}: counted")
    return work, plans


def work_of(config: RunConfig, machine: Machine) -> Work:
    """Return what is to be done, checked; BenchError for what is not allowed."""
    suite, task = suite_of(config), task_of(config)
    precision, gpu = suite.training.precision, None if machine.gpu == "cpu" else find_gpu(machine.gpu)
    if gpu is None and (machine.gpus > 1 or precision == "fp16"):
        raise BenchError("--gpu cpu: one process, fp32 or bf16. Name a GPU for anything else.")
    if gpu is not None and precision == "bf16" and not gpu.bfloat16:
        raise BenchError(f"--precision bf16: {gpu.name} has no bfloat16. Use fp16 or fp32.")
    work = Work(
        suite=suite,
        budget=budget_of(config, suite),
        task=task,
        shape=_shape(suite.base, machine),
        items=_items(suite),
        gpu=gpu,
        gpus=machine.gpus,
        execution=Execution.of(config),
        sampled=config.sample_batch,
        shuffled=config.shuffled,
        mfu=MFU if machine.mfu is None else machine.mfu,
        process=libraries_bytes(),
        available=round(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )
    work.check()
    return work


def _shape(base: Path | None, machine: Machine) -> Shape:
    size = machine.size
    return shape_like(machine.like, size=size) if base is None else shape_of(base, size=size)


def _items(suite: Suite) -> tuple[int, int]:
    """Count the items of both sides; where the user's data are not there yet, those of the original."""
    try:
        splits = suite.splits()
    except BenchError:
        if suite.name not in ITEMS:
            raise
        return ITEMS[suite.name]
    return len(splits.side("train")), len(splits.side(suite.eval_side))
