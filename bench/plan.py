"""What runs of a suite will need before anything is spent: parameters, memory, disk, steps, hours.

Live bytes by part and floating-point operations are counted on fake tensors, which have shapes and no
contents. What runs is the real thing (modules, `training_loss`, AdamW, the average), in seconds, and the
count is the same, byte for byte, as on real tensors. Not counted: what kernels take for themselves while
they run, and what an allocator leaves unused. What is assumed is said with every plan. It brings torch.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.base import Shape
from bench.base.load import Base
from bench.base.random import build_base, shape_like, shape_of
from bench.config import Budget, Machine, RunConfig, Sampler, Suite, Training
from bench.cost import Timing, count_parameters, gib, libraries_bytes, load_timings, operations
from bench.data.coco.dataset import VARIABLE
from bench.data.latents import InMemory, Prepared, disk_needed
from bench.grid import PUBLISHED
from bench.reporting.render import filled
from bench.suites import budget_of, method_of, suite_of, task_of
from bench.training.checkpoint import KEPT, Trainable
from bench.training.engine import autocast, launched, micro_batches, rebuilt
from bench.training.loop import Average, training_loss
from bench.types import BenchError, Method, Task, refusal, unknown

MFU: Mapping[str, float] = {"fp32": 0.25, "bf16": 0.12, "fp16": 0.12}
COPIED = 3e9  # bytes a second from a GPU into pageable memory, while training waits
_ROW = 3000  # bytes that are held of an item beside its picture
PIXEL = 1.7  # bytes of a stored pixel: photographs as PNG
CPU_ALLOWANCE = 1.08  # over the counted bytes: glibc's heap and oneDNN's work space, measured
USABLE = 0.92  # of the stated memory: the rest goes to the system, or to ECC, the driver and the CUDA context
ALLOWANCE = 1.10  # over the counted bytes: fragments of the allocator, work space of kernels
ITEMS: Mapping[str, tuple[int, int]] = {"coco17": (118_287, 5_000)}
"""Items for training and evaluation of suites whose data the user brings: https://cocodataset.org."""


# ---- live bytes


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make while it is entered, until they are freed.

    now: bytes alive; peak: the most since `mark`. A storage shared by several tensors counts once. modules:
    whose parameters and buffers count; what else was made before must be told by `add`, or would count as
    new as soon as an operation returns a view of it.
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in _tensors(modules):
            self.add(tensor)

    def mark(self) -> None:
        """Forget earlier peaks."""
        self.peak = self.now

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it already counts."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and count what it returns."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return output


fake_tensors = partial(FakeTensorMode, allow_non_fake_inputs=True)
"""A context in which every tensor that is created is a fake one on the CPU, whose attention keeps what GPUs'
keep; that of the meta device, a matrix of all pairs, overstates memory."""


def make_fake(*modules: Any) -> None:
    """Exchange, within `fake_tensors`, tensors of modules on the meta device for fake ones, in place."""
    made: dict[int, tuple[Any, Any]] = {}
    parts = [module for root in modules for module in root.modules()]
    for store in (store for module in parts for store in (module._parameters, module._buffers)):
        for name, old in ((name, old) for name, old in store.items() if old is not None):
            if id(old) not in made:
                new: Any = torch.empty_like(old, device="cpu")
                if isinstance(old, torch.nn.Parameter):
                    new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                made[id(old)] = (new, old)  # the old one too, or its id might come again
            store[name] = made[id(old)][0]


@contextmanager
def norms_in_float32(*modules: Any) -> Iterator[None]:
    """Compute modules' group and layer norms in float32, as CUDA's autocast does and the CPU's does not.

    Their inputs and outputs are kept for the backward pass, so this counts in a step's memory.
    """
    with ExitStack() as hooks:
        for module in (m for root in modules for m in root.modules()):
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                raised = module.register_forward_pre_hook(lambda _, inputs: tuple(t.float() for t in inputs))
                hooks.callback(raised.remove)
        yield


def parameter_bytes(*modules: Any) -> int:
    """Return the bytes of the parameters and buffers of modules, shared ones once."""
    return _bytes_of({id(tensor): tensor for tensor in _tensors(modules)}.values())


def _tensors(modules: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (tensor for m in modules for tensor in (*m.parameters(), *m.buffers()))


def _bytes_of(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- a method's footprint


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How steps are made: what decides their memory beside the method.

    sampled: images sampled at once. cuda: on a GPU (norms in float32 under autocast, AdamW over lists
    of tensors). processes: of data-parallel training.
    """

    training: Training
    sampler: Sampler
    execution: RunConfig = RunConfig()
    sampled: int = 1
    cuda: bool = False
    processes: int = 1

    @classmethod
    def of(cls, suite: Suite, config: RunConfig, **where: Any) -> Setting:
        """Return how a suite and a configuration make steps; where: cuda, processes."""
        how = {"execution": config, "sampled": config.sample_batch, **where}
        return cls(training=suite.training, sampler=suite.sampler, **how)

    @property
    def parts(self) -> list[range]:
        """The places within a batch, a range a micro batch; BenchError where none divide it."""
        return micro_batches(self.training.batch, micro=self.execution.micro_batch, count=self.processes)

    @property
    def micro(self) -> int:
        """Images that a process trains at once."""
        return len(self.parts[0])

    def autocast(self) -> Any:
        """Return a context of the precision of the same width that a CPU has."""
        return autocast("cpu", "fp32" if self.training.precision == "fp32" else "bf16")


TRAINED = ("dead", "gradients", "buckets", "optimiser", "average", "activations", "train_peak", "train_flops")
"""Figures of a footprint that are 0 where nothing is trained."""


def footprint(
    method: Method, *, options: Mapping[str, Any], shape: Shape, task: Task, setting: Setting
) -> dict[str, int]:
    """Count what a method needs on a base of a shape, in seconds and without memory; return figures by name.

    parameters: of the denoiser, its base included; trainable; dead: trainable ones that get no gradient.
    Bytes: weights of the denoiser, a second UNet that the base keeps where the method trains a copy (beside),
    autoencoder and text encoder (encoders), gradients (and the buckets in which processes exchange them),
    AdamW's state (optimiser), the average, and what the forward pass keeps for the backward pass
    (activations). train_peak, sample_peak, decode_peak: the most that is alive in a training step once AdamW
    has its state, in a sampling step, and while images are decoded, weights included; peak: of the three.
    train_flops, encode_flops, step_flops, decode_flops: operations (two a multiply-accumulate) an image, of
    a training step without recomputing, the condition's encoding, a sampling step with all its branches, and
    decoding. Raises BenchError where the method refuses its options or cannot do what `execution` asks.
    """
    base = build_base(shape)
    denoiser = build_meta(method, base=base, task=task, options=options)
    counted = dict(zip(("parameters", "trainable"), count_parameters(denoiser), strict=True))
    counted["weights"] = parameter_bytes(denoiser)
    counted["beside"] = parameter_bytes(denoiser, *filter(None, [base.unet])) - counted["weights"]
    counted["encoders"] = parameter_bytes(*(m for m in _modules(base) if m is not base.unet))
    raised = [denoiser] if setting.cuda and setting.training.precision != "fp32" else []
    with fake_tensors(), norms_in_float32(*raised):
        make_fake(denoiser, *_modules(base))
        base = replace(base, device="cpu")
        data = stand_in(shape, task=task, count=max(setting.micro, setting.sampled))
        counted |= count_training(denoiser, base=base, data=data, setting=setting)
        counted |= count_sampling(denoiser, base=base, data=data, setting=setting)
    return counted | {"peak": max(counted[f"{stage}_peak"] for stage in ("train", "sample", "decode"))}


def encoding_flops(shape: Shape) -> int:
    """Return the operations of encoding one image and its caption."""
    base = build_base(shape)
    with fake_tensors(), torch.no_grad():
        make_fake(*_modules(base))
        pixels = torch.zeros(1, 3, shape.size, shape.size)
        tokens = torch.zeros(1, shape.tokens, dtype=torch.long)
        return operations(lambda: (base.vae.encode(pixels), [read(tokens) for read in base.text_encoders]))


def build_meta(method: Method, *, base: Base, task: Task, options: Mapping[str, Any]) -> Any:
    """Build a method's denoiser on the meta device; BenchError where it refuses."""
    try:
        with torch.device("meta"):
            return method.build(base, task, **options)
    except (ValueError, TypeError) as error:
        raise BenchError(f"method {method.name}: {error}") from error


def stand_in(shape: Shape, *, task: Task, count: int) -> Prepared:
    """Return items of random contents and a base's shapes, as training takes them."""
    random = torch.Generator().manual_seed(0)
    nothing: Any = None  # nobody reads images of it
    return InMemory(
        ids=tuple(map(str, range(count))),
        dataset=nothing,
        latents=torch.randn(1, count, *shape.latent_shape, generator=random),
        text=torch.randn(count, *shape.text_shape, generator=random),
        empty=torch.randn(1, *shape.text_shape, generator=random),
        conditions=torch.rand(1, count, task.channels, shape.size, shape.size, generator=random),
    )


def _modules(base: Base) -> list[Any]:
    return [m for m in (base.unet, base.vae, *base.text_encoders) if m is not None]


def count_training(denoiser: Any, *, base: Base, data: Prepared, setting: Setting) -> dict[str, int]:
    """Count, on fake or real tensors, steps on one image, then as in `setting`; return figures of TRAINED."""
    trainable, live = Trainable(denoiser), LiveBytes(denoiser, *_modules(base))
    parameters = list(trainable.parameters.values())
    if not parameters:
        return dict.fromkeys(TRAINED, 0)
    live.add(base.alphas)  # whoever asked for them first
    training, fused = setting.training, setting.execution.fused
    # As torch would choose it on the device: over lists of tensors on a GPU, unless fused.
    how: dict[str, Any] = {"fused": fused or None, "foreach": None if fused else setting.cuda}

    def loss_of(images: int) -> torch.Tensor:
        where: dict[str, Any] = {"training": training, "seed": 0, "step": 0, "places": range(images)}
        with setting.autocast():
            return training_loss(denoiser, base=base, data=data, **where)

    with live:
        optimiser = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=training.weight_decay, **how)
        average = Average(trainable, decay=training.ema) if training.ema else None
        train_flops = operations(lambda: loss_of(1).backward())
        for parameter in (p for p in parameters if p.grad is not None):
            state = {"step": torch.tensor(1.0)}  # a number that a fake tensor knows
            state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimiser.state[parameter] = state
        optimiser.zero_grad(set_to_none=True)
        live.mark()
        with rebuilt(denoiser, setting.execution):
            for _ in setting.parts[:2]:  # the first one's gradients lie beside the second's activations
                before = live.now
                loss = loss_of(setting.micro)
                activations = live.now - before
                loss.backward()
                del loss
        gradients = _bytes_of(p.grad for p in parameters if p.grad is not None)
        dead = sum(p.numel() for p in parameters if p.grad is None)
        torch.nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if average is not None:
            average.update()
    buckets = gradients if setting.processes > 1 else 0
    return {
        "dead": dead,
        "gradients": gradients,
        "buckets": buckets,
        "optimiser": _bytes_of(t for s in optimiser.state.values() for t in s.values()),
        "average": _bytes_of(average.parameters.values()) if average is not None else 0,
        "activations": activations,
        "train_peak": live.peak + buckets,
        "train_flops": train_flops,
    }


def count_sampling(denoiser: Any, *, base: Base, data: Prepared, setting: Setting) -> dict[str, int]:
    """Count, on fake or real tensors, a sampling step of all branches, encoding and decoding."""
    count, live = setting.sampled, LiveBytes(denoiser, *_modules(base))
    branches = 2 if setting.sampler.guidance != 1.0 else 1
    with torch.no_grad(), live:
        latents = torch.zeros(count, *data.latent_shape)
        times = torch.zeros(count, dtype=torch.long)
        text = data.text_at(range(count)).expand(branches, -1, -1, -1).clone()
        with setting.autocast():
            conditions = data.conditions_at(range(count))
            encoded: list[Any] = []
            encode = operations(lambda: encoded.append(denoiser.encode(conditions)))
            step = operations(lambda: denoiser(latents, times, text, encoded[0]).float())
        sample_peak = live.peak
        live.mark()
        decode = operations(lambda: base.decode(latents)) if base.vae is not None else 0
    flops = {"encode_flops": encode // count, "step_flops": step // count, "decode_flops": decode // count}
    return {"sample_peak": sample_peak, "decode_peak": live.peak, **flops}


# ---- GPUs and plans


@dataclass(frozen=True)
class Device:
    """A GPU as its maker states it, or a CPU, of which the memory alone is known (GiB).

    half, single: peak TFLOP/s, dense, of tensor cores on bfloat16 (float16 where there is no bfloat16)
    summing in float32, and of plain float32, since the benchmark switches TF32 off. matches: the last words
    of the name that CUDA gives it.
    """

    name: str
    memory: float
    half: float = 0.0
    single: float = 0.0
    matches: str = "no GPU"
    source: str = ""
    bfloat16: bool = True

    @property
    def on_cpu(self) -> bool:
        """Whether it is none of the GPUs."""
        return not self.half

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
    Device("h100", 80, 989.4, 66.9, "H100 80GB HBM3", f"{_NVIDIA}/h100/ (SXM)"),
    Device("h200", 141, 989.4, 66.9, "H200", f"{_NVIDIA}/h200/ (SXM)"),
    Device("a100-80", 80, 312, 19.5, "A100-SXM4-80GB", f"{_NVIDIA}/a100/"),
    Device("a100-40", 40, 312, 19.5, "A100-SXM4-40GB", f"{_NVIDIA}/a100/"),
    Device("l40s", 48, 362.05, 91.6, "L40S", f"{_NVIDIA}/l40s/"),
    Device("4090", 24, 165.2, 82.6, "RTX 4090", f"{_PAPERS}/{_ADA}"),
    Device("3090", 24, 71, 35.6, "RTX 3090", f"{_PAPERS}/{_AMPERE}"),
    Device("v100", 32, 125, 15.7, "V100-SXM2-32GB", f"{_NVIDIA}/v100/ (SXM2, 32 GB)", bfloat16=False),
)
GPUS: Mapping[str, Device] = {gpu.name: gpu for gpu in _GPUS}


def recognise(device: str) -> Device | None:
    """Return the GPU whose name CUDA would give as `device`, None where the table lacks it.

    Other makes of one chip have other peaks and go on after the name: "H100 PCIe", a slice of MIG.
    """
    return next((g for g in _GPUS if f" {device}".endswith(f" {g.matches}")), None)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done, for all methods alike. items: of the train and of the evaluation side.

    config: of any of the runs. setting: how steps are made. mfu: see Machine. encoded: seconds that an item
    took to encode, where that was measured. process: bytes that a process with the libraries takes before it
    does anything, on a CPU.
    """

    config: RunConfig = RunConfig()
    suite: Suite
    budget: Budget
    task: Task
    shape: Shape
    items: tuple[int, int]
    setting: Setting
    device: Device
    mfu: float | None = None
    encoded: float | None = None
    process: int = 0

    def evaluated(self, budget: Budget | None = None) -> int:
        """Return the evaluation items of a budget, else of this one."""
        return min(self.items[1], (budget or self.budget).eval_items or self.items[1])

    @property
    def views(self) -> int:
        """How often a training item is encoded: as it is, and mirrored."""
        return 2 if self.setting.training.mirror else 1

    def hours(self, flops: float, precision: str) -> float:
        """Return how long a GPU takes for so many operations."""
        return flops / (self.share(precision) * 3600 * self.device.peak(precision))

    def share(self, precision: str) -> float:
        """Return the share of a GPU's peak rate that is reached."""
        return MFU[precision] if self.mfu is None else self.mfu

    def saves(self, steps: int, hours: float | None) -> int | None:
        """Return how many checkpoints a training writes; None where nothing tells how long it takes."""
        if self.config.checkpoint_every:
            return math.ceil(steps / self.config.checkpoint_every)
        return None if hours is None else 1 + int(60 * hours / self.config.checkpoint_minutes)

    def needs(self, peak: int) -> int:
        """Return the memory of a process whose tensors take `peak` bytes at most.

        On a CPU the process and the items that a run holds in memory are beside the tensors.
        """
        if not self.device.on_cpu:
            return round(ALLOWANCE * peak)
        view = math.prod(self.shape.latent_shape) + self.task.channels * self.shape.size**2
        text, (train, evaluation) = math.prod(self.shape.text_shape), self.items
        held = 4 * (train * (self.views * view + text) + evaluation * (view + text))
        return round(self.process + held * (self.suite.storage == "memory") + CPU_ALLOWANCE * peak)

    @property
    def host(self) -> int:
        """Bytes of a machine's own memory that scoring takes at most, in each process that scores a row."""
        rows = min(self.setting.processes, 3 + len(self.config.wrong_conditions))
        pairs, pictures = 3 * 8 * self.evaluated() ** 2, 2 * 3 * self.shape.size**2 * self.evaluated()
        return rows * (self.process + pictures + pairs + _ROW * sum(self.items))

    @property
    def disk_of_data(self) -> dict[str, int]:
        """Bytes on disk that all methods share, by part; none where the suite brings its data."""
        if self.suite.storage != "shards":
            return {}
        size, shape = PIXEL * self.shape.size**2, self.shape
        sizes = {"latent_shape": shape.latent_shape, "text_shape": shape.text_shape}
        sides = zip(self.items, (self.views, 1), strict=True)
        encoded = sum(disk_needed(n, views=views, **sizes) for n, views in sides)
        return {"images": round(sum(self.items) * size), "latents and text": encoded}

    @property
    def encode_hours(self) -> float | None:
        """Hours of encoding all items once, by one process; None where nothing tells the speed."""
        pictures = self.views * self.items[0] + self.items[1]
        if self.encoded is not None:
            return self.encoded * pictures / 3600
        return None if self.device.on_cpu else self.hours(pictures * encoding_flops(self.shape), "fp32")

    @property
    def assumptions(self) -> list[str]:
        """What a plan takes for granted, a sentence each."""

        def rate(precision: str) -> str:
            peak = self.device.peak(precision) / 1e12
            return f"{self.share(precision):.0%} of the peak rate of {peak:.0f} TFLOP/s"

        shares = {"cpu_allowance": CPU_ALLOWANCE - 1, "allowance": ALLOWANCE - 1, "reserved": 1 - USABLE}
        told = {name: f"{share:.0%}" for name, share in shares.items()}
        told |= {"pixel": f"{PIXEL}", "copied": f"{COPIED / 1e9:g}"}
        return filled("assumed.txt", work=self, rate=rate, gib=gib, **told).splitlines()


def work_of(config: RunConfig, machine: Machine = Machine()) -> Work:
    """Return what is to be done on a machine, checked; BenchError for what is not allowed."""
    suite, memory = suite_of(config), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    devices, precision = {**GPUS, "cpu": Device("cpu", memory)}, suite.training.precision
    if machine.gpu not in devices:
        raise unknown("GPU", machine.gpu, devices)
    device = devices[machine.gpu]
    if device.on_cpu and (machine.gpus > launched() or precision == "fp16"):  # those of a rehearsal are there
        raise BenchError("--gpu cpu: one process, fp32 or bf16. Name a GPU for anything else.")
    if precision == "bf16" and not device.bfloat16:
        raise BenchError(f"--precision bf16: {device.name} has no bfloat16. Use fp16 or fp32.")
    setting = Setting.of(suite, config, cuda=not device.on_cpu, processes=machine.gpus)
    _ = setting.parts  # refuses a batch that cannot be divided
    items, pixels = _items(suite, given=config.data is not None or VARIABLE in os.environ)
    size, own = machine.size or pixels, suite.base
    return Work(
        config=config,
        suite=suite,
        budget=budget_of(config, suite, items=items[0]),
        task=task_of(config),
        shape=shape_like(machine.like, size=size) if own is None else shape_of(own, size=size),
        items=items,
        setting=setting,
        device=device,
        mfu=machine.mfu,
        process=libraries_bytes(),
    )


def _items(suite: Suite, *, given: bool) -> tuple[tuple[int, int], int | None]:
    """Count the items of both sides, else the original's; beside them pixels, where the data say that."""
    try:
        splits, dataset = suite.splits(), suite.dataset()
    except BenchError:
        if given or suite.name not in ITEMS:
            raise
        return ITEMS[suite.name], None
    sides = len(splits.side("train")), len(splits.side(suite.eval_side))
    return sides, getattr(dataset, "size", None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one method needs. All sizes in bytes.

    needed: memory of a process at its peak, allowance included; advice: what to change where that does
    not fit. sampled: images. Hours are None where nothing tells the speed: of training, recomputing
    included; of sampling, decoding included; of waiting for checkpoints; of scoring, which a rehearsal alone
    tells. checkpoints, samples: on disk. written: all checkpoints of the training.
    """

    method: str
    title: str
    options: Mapping[str, Any]
    footprint: Mapping[str, int]
    micro: int
    steps: int
    sampled: int
    needed: int
    fits: bool
    advice: str
    train_hours: float | None
    sample_hours: float | None
    checkpoints: int
    samples: int
    written: int | None
    saving_hours: float | None
    judge_hours: float | None = None

    @property
    def hours(self) -> float | None:
        """All stages; None where one is unknown, but for judging."""
        parts = (self.train_hours, self.sample_hours, self.saving_hours)
        return None if None in parts else sum(hours or 0.0 for hours in (*parts, self.judge_hours))


def plan_runs(
    configs: Sequence[RunConfig],
    machine: Machine,
    *,
    say: Callable[[str], None],
    rehearse: Callable[[RunConfig], tuple[Timing, dict[str, float]]] | None = None,
) -> tuple[Work, list[Plan]]:
    """Plan runs that differ in method alone; say gets a line for each that cannot do the task.

    rehearse: `bench.measure.rehearse`; without it a CPU's rates are those of `bench cost` in the results
    folder, else the published ones. BenchError for what the device or the suite cannot do.
    """
    work, plans, timings = work_of(configs[0], machine), [], None
    if work.device.on_cpu and rehearse is None:
        timings = load_timings(configs[0].results) or load_timings(PUBLISHED)
    for config in configs:
        method, options = method_of(config)
        reason = refusal(method, work.task)
        if reason:
            say(f"{method.title} cannot do {work.task.name}: {reason}")
            continue
        timing, measured = timings.find(method.name, options) if timings else None, dict[str, float]()
        if rehearse is not None:
            timing, measured = rehearse(config)
            work = replace(work, encoded=measured["encoded"])
        plans.append(plan_method(method, options=options, work=work, timing=timing, measured=measured))
        say(f"{method.title}: counted")
    return work, plans


def plan_method(
    method: Method,
    *,
    options: Mapping[str, Any],
    work: Work,
    timing: Timing | None = None,
    measured: Mapping[str, float] = {},
) -> Plan:
    """Plan the run of one method; BenchError where it refuses its options.

    timing: measured on this machine, for plans on its CPU; measured: what a rehearsal found beside it.
    """

    def count(setting: Setting) -> dict[str, int]:
        return footprint(method, options=options, shape=work.shape, task=work.task, setting=setting)

    counted, images = count(work.setting), work.budget.images(method.name)
    steps = max(1, images // work.setting.training.batch) if counted["trainable"] else 0
    train, sample = _hours(counted, work, steps=steps, timing=timing)
    sets = 1 + len(work.config.wrong_conditions) * method.conditioned
    sampled, needed = sets * work.suite.sampler.draws * work.evaluated(), work.needs(counted["peak"])
    trained = 4 * counted["trainable"]
    state = trained + counted["optimiser"] + counted["average"]
    saves = work.saves(steps, train) if steps else 0
    written = None if saves is None else saves * state
    kept = KEPT + 1  # one more while it is written, and the finished weights
    return Plan(
        method=method.name,
        title=method.title,
        options=dict(options),
        footprint=counted,
        micro=work.setting.micro,
        steps=steps,
        sampled=sampled,
        needed=needed,
        fits=needed <= work.device.usable,
        advice="" if needed <= work.device.usable else _advice(count, work, counted),
        train_hours=train,
        sample_hours=None if sample is None else sampled * sample,
        checkpoints=kept * state + trained if trained else 0,
        samples=round(sampled * PIXEL * work.shape.size**2),
        written=written,
        saving_hours=None if written is None else written / measured.get("copied", COPIED) / 3600,
        judge_hours=(sampled + 2 * work.evaluated()) * measured["judged"] / 3600 if measured else None,
    )


def tuning_hours(work: Work, plans: Sequence[Plan]) -> float | None:
    """Return the hours of `bench tune --budget quick` for these methods; None where nothing tells."""
    suite, batch, total = work.suite, work.setting.training.batch, 0.0
    if "quick" not in suite.budgets:
        return None
    budget = suite.budget("quick")
    sampled = work.evaluated(budget) * suite.sampler.draws
    for plan in (plan for plan in plans if plan.steps):
        if plan.train_hours is None or plan.sample_hours is None:
            return None
        total += plan.train_hours * budget.images(plan.method) / (plan.steps * batch)
        total += plan.sample_hours * sampled / plan.sampled
    return len(suite.rates) * total


def _hours(
    counted: Mapping[str, int], work: Work, *, steps: int, timing: Timing | None
) -> tuple[float | None, float | None]:
    setting, images = work.setting, steps * work.setting.training.batch
    if timing is not None:
        rate = timing.train_images_per_second
        return images / rate / 3600 if rate else 0.0, timing.sample_seconds_per_image / 3600
    if work.device.on_cpu:
        return (None if steps else 0.0), None
    again = 4 / 3 if setting.execution.gradient_checkpointing else 1.0  # a forward pass beside 1 + 2
    once = counted["encode_flops"] + work.suite.sampler.steps * counted["step_flops"]
    precision = setting.training.precision
    training = work.hours(images * counted["train_flops"] * again, precision)
    sampling = work.hours(once, precision) + work.hours(counted["decode_flops"], "fp32")  # as it stays
    return training / setting.processes, sampling / setting.processes


def _advice(count: Callable[[Setting], Mapping[str, int]], work: Work, counted: Mapping[str, int]) -> str:
    """Say what to change so that a run fits, the least costly first; every size is counted, not guessed."""
    still, planned = work.needs(max(counted["sample_peak"], counted["decode_peak"])), work.setting
    if still > work.device.usable:
        return f"sampling {planned.sampled} at once needs {gib(still)}: lower --sample-batch"
    whole = planned.micro
    sizes = [size for size in range(whole, 0, -1) if whole % size == 0]
    for recomputed, micro in itertools.product((False, True), sizes):
        changed = replace(planned.execution, micro_batch=micro, gradient_checkpointing=recomputed)
        needed = work.needs(count(replace(planned, execution=changed))["train_peak"])
        if needed <= work.device.usable:
            words = [f"--micro-batch {micro}"] if micro != whole else []
            words += ["--gradient-checkpointing"] if recomputed else []
            return f"{' '.join(words)} (then {gib(needed)})"
    return f"no micro batch fits: {gib(needed)} even with --micro-batch 1 --gradient-checkpointing"
