"""What runs of a suite will need before anything is spent: parameters, memory, disk, steps, hours.

Live bytes by part and floating-point operations are counted on fake tensors, which have shapes and no
contents. Everything that runs is the real thing (the method's modules, `training_loss`, the backward pass,
AdamW, the average), in seconds and without memory, and the count is the same, byte for byte, as on real
tensors. Not counted: what kernels take for themselves while they run, and what an allocator leaves unused.
What is assumed is said with every plan: the share of the peak rate that is reached (mfu), the allowance
over the counted bytes, the bytes of a stored pixel, the rate at which checkpoints are copied.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.base.families import Shape
from bench.base.load import Base
from bench.base.random import build_base, shape_like, shape_of
from bench.config import Budget, RunConfig, Sampler, Suite, Training
from bench.cost import Rehearsal, Timing, count_parameters, libraries_bytes, load_timings, operations
from bench.data.coco.dataset import VARIABLE
from bench.data.latents import InMemory, Prepared, disk_needed
from bench.suites import budget_of, method_of, suite_of, task_of
from bench.training.checkpoint import KEPT, Trainable
from bench.training.engine import autocast, launched, micro_batches, rebuilt
from bench.training.loop import Average, training_loss
from bench.types import BenchError, Method, Task, refusal, unknown

if TYPE_CHECKING:
    import torch

MFU: Mapping[str, float] = {"fp32": 0.25, "bf16": 0.12, "fp16": 0.12}
CALIBRATED = (
    "in half precision that of 16.4 images/s at which a ControlNet of SD 1.5 trains on one A100 with flash "
    "attention; 11.7 without are 9%, 27.2 tuned are 20% (docs.nvidia.com/nemo-framework/user-guide/latest/"
    "multimodalmodels/text2image/controlnet/perf.html)"
)
MEASURED = (
    "measured here, in place of the rates assumed below: ten steps of every stage, in as many processes as "
    "were launched"
)
COPIED = 3e9  # bytes a second from a GPU into pageable memory, while training waits
_ROW = 3000  # bytes that are held of an item beside its picture
PIXEL = 1.7  # bytes of a stored pixel: photographs as PNG
CPU_ALLOWANCE = 1.08  # over the counted bytes: glibc's heap and oneDNN's work space, measured
HOST_SHARE = 0.92  # of this machine's memory: the rest is the system's
USABLE = 0.92  # of a GPU's stated memory: the rest goes to ECC, the driver and the CUDA context
ALLOWANCE = 1.10  # over the counted bytes: fragments of the allocator, work space of kernels
ITEMS: Mapping[str, tuple[int, int]] = {"coco17": (118_287, 5_000)}
"""Items for training and evaluation of suites whose data the user brings: https://cocodataset.org."""


# ---- live bytes


class LiveBytes:
    """Counts the bytes of storages that operations make, until they are freed.

    now: bytes alive; peak: the most since `mark`. A storage shared by several tensors counts once.
    What was made before `watching` began must be told by `hold`, or would count as new as soon as an
    operation returns a view of it.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def hold(self, *modules: Any) -> None:
        """Count the parameters and buffers of modules."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self.add(tensor)

    def mark(self) -> None:
        """Forget earlier peaks."""
        self.peak = self.now

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it already counts."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    @contextmanager
    def watching(self) -> Iterator[LiveBytes]:
        """Count what every operation returns while open."""
        from torch import Tensor
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        count = self.add

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                output = func(*args, **(kwargs or {}))
                for leaf in tree_leaves(output):
                    if isinstance(leaf, Tensor):
                        count(leaf)
                return output

        with Watch():
            yield self


def fake_tensors() -> Any:
    """Return a context in which every tensor that is created is a fake one on the CPU.

    The CPU's attention kernel keeps what those of GPUs keep (no matrix of all pairs), which the meta
    device's does not: it would overstate the memory of a step several times.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def make_fake(*modules: Any) -> None:
    """Exchange parameters and buffers of modules on the meta device for fake tensors, in place.

    What modules share stays shared. Call it within `fake_tensors`.
    """
    import torch

    made: dict[int, tuple[Any, Any]] = {}
    for module in (m for root in modules for m in root.modules()):
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty_like(old, device="cpu")
                    if isinstance(old, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = (new, old)  # the old one too, or its id might come again
                store[name] = made[id(old)][0]


@contextmanager
def norms_in_float32(*modules: Any) -> Iterator[None]:
    """Compute modules' group and layer norms in float32, as CUDA's autocast does and the CPU's does not.

    Their inputs and outputs are kept for the backward pass, so this counts in a step's memory.
    """
    import torch

    handles = [
        module.register_forward_pre_hook(lambda norm, inputs: tuple(t.float() for t in inputs))
        for root in modules
        for module in root.modules()
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parameter_bytes(*modules: Any) -> int:
    """Return the bytes of the parameters and buffers of modules, shared ones once."""
    return _bytes_of({id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}.values())


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

    def parts(self) -> list[range]:
        """Return the places within a batch, a range a micro batch; BenchError where none divide it."""
        return micro_batches(self.training.batch, micro=self.execution.micro_batch, count=self.processes)

    @property
    def micro(self) -> int:
        """Images that a process trains at once."""
        return len(self.parts()[0])

    @property
    def branches(self) -> int:
        """Texts that a sampling step runs for each image: two under guidance."""
        return 2 if self.sampler.guidance != 1.0 else 1

    def with_micro(self, micro: int, *, checkpointing: bool) -> Setting:
        """Return the same in micro batches of another size, with activations recomputed or not."""
        execution = replace(self.execution, micro_batch=micro, gradient_checkpointing=checkpointing)
        return replace(self, execution=execution)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Parameters, bytes and operations of one method.

    parameters: of the denoiser, its base included; dead: trainable ones that get no gradient. Bytes:
    weights of the denoiser, a second UNet that the base keeps where the method trains a copy (beside),
    autoencoder and text encoder (encoders), gradients (and the buckets in which processes exchange
    them), AdamW's state, the average, and what the forward pass keeps for the backward pass
    (activations). train_peak, sample_peak, decode_peak: the most that is alive in a training step
    once AdamW has its state, in a sampling step, and while images are decoded; weights included.
    Operations (two a multiply-accumulate) an image: of a training step, without recomputing; of the
    condition's encoding; of a sampling step with all its branches; of decoding.
    """

    parameters: int
    trainable: int
    dead: int = 0
    weights: int
    beside: int
    encoders: int
    gradients: int = 0
    buckets: int = 0
    optimiser: int = 0
    average: int = 0
    activations: int = 0
    train_peak: int = 0
    sample_peak: int
    decode_peak: int
    train_flops: int = 0
    encode_flops: int
    step_flops: int
    decode_flops: int

    @property
    def peak(self) -> int:
        """The most bytes of all."""
        return max(self.train_peak, self.sample_peak, self.decode_peak)


def footprint(
    method: Method, *, options: Mapping[str, Any], shape: Shape, task: Task, setting: Setting
) -> Footprint:
    """Count what a method needs on a base of a shape, in seconds and without memory.

    Raises BenchError where the method refuses its options or cannot do what `execution` asks.
    """
    base = build_base(shape)
    denoiser = build_meta(method, base=base, task=task, options=options)
    parameters, trainable = count_parameters(denoiser)
    weights = parameter_bytes(denoiser)
    encoders = parameter_bytes(*(m for m in _modules(base) if m is not base.unet))
    beside = parameter_bytes(denoiser, *filter(None, [base.unet])) - weights
    raised = [denoiser] if setting.cuda and setting.training.precision != "fp32" else []
    with fake_tensors(), norms_in_float32(*raised):
        make_fake(denoiser, *_modules(base))
        base = replace(base, device="cpu")
        data = stand_in(shape, task=task, count=max(setting.micro, setting.sampled))
        counted = count_training(denoiser, base=base, data=data, setting=setting)
        counted |= count_sampling(denoiser, base=base, data=data, setting=setting)
    return Footprint(
        parameters=parameters,
        trainable=trainable,
        weights=weights,
        beside=beside,
        encoders=encoders,
        **counted,
    )


def encoding_flops(shape: Shape) -> int:
    """Return the operations of encoding one image and its caption."""
    import torch

    base = build_base(shape)
    with fake_tensors(), torch.no_grad():
        make_fake(*_modules(base))
        pixels = torch.zeros(1, 3, shape.size, shape.size)
        tokens = torch.zeros(1, shape.tokens, dtype=torch.long)
        return operations(lambda: (base.vae.encode(pixels), [read(tokens) for read in base.text_encoders]))


def build_meta(method: Method, *, base: Base, task: Task, options: Mapping[str, Any]) -> Any:
    """Build a method's denoiser on the meta device; BenchError where it refuses."""
    import torch

    try:
        with torch.device("meta"):
            return method.build(base, task, **options)
    except (ValueError, TypeError) as error:
        raise BenchError(f"method {method.name}: {error}") from error


def stand_in(shape: Shape, *, task: Task, count: int) -> Prepared:
    """Return items of random contents and a base's shapes, as training takes them."""
    import torch

    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random)

    nothing: Any = None  # nobody reads images of it
    return InMemory(
        ids=tuple(map(str, range(count))),
        dataset=nothing,
        latents=normal(1, count, *shape.latent_shape),
        text=normal(count, *shape.text_shape),
        empty=normal(1, *shape.text_shape),
        conditions=torch.rand(1, count, task.channels, shape.size, shape.size, generator=random),
    )


def _modules(base: Base) -> list[Any]:
    return [m for m in (base.unet, base.vae, *base.text_encoders) if m is not None]


def count_training(denoiser: Any, *, base: Base, data: Prepared, setting: Setting) -> dict[str, int]:
    """Count two training steps: on one image, for operations and AdamW's state, then as in `setting`.

    The tensors may be fake or real; the figures are the same. Returns Footprint's training figures,
    none where nothing is trained.
    """
    import torch

    trainable, live = Trainable(denoiser), LiveBytes()
    parameters = list(trainable.parameters.values())
    if not parameters:
        return {}
    live.hold(denoiser, *_modules(base))
    live.add(base.alphas)  # whoever asked for them first
    with live.watching():
        optimiser = _optimiser(parameters, setting)
        decay = setting.training.ema
        average = Average(trainable, decay=decay) if decay else None
        train_flops = _first_step(denoiser, optimiser, base=base, data=data, setting=setting)
        live.mark()
        with rebuilt(denoiser, setting.execution):
            for _ in setting.parts()[:2]:  # the first one's gradients lie beside the second's activations
                before = live.now
                loss = _loss(denoiser, base=base, data=data, setting=setting, images=setting.micro)
                activations = live.now - before
                loss.backward()
                del loss
        gradients = _bytes_of(p.grad for p in parameters if p.grad is not None)
        dead = sum(p.numel() for p in parameters if p.grad is None)
        torch.nn.utils.clip_grad_norm_(parameters, setting.training.clip_norm)
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


def _first_step(denoiser: Any, optimiser: Any, *, base: Base, data: Prepared, setting: Setting) -> int:
    """Take a step on one image and return the operations of its passes, nothing recomputed.

    AdamW is fused in it, one operation where the loop over parameters has thousands: all that is
    wanted of this step is its state.
    """
    import torch

    flops = operations(lambda: _loss(denoiser, base=base, data=data, setting=setting, images=1).backward())
    for group in optimiser.param_groups:
        group.update(fused=True, foreach=False)
    optimiser.step()
    for group in optimiser.param_groups:
        group.update(fused=optimiser.defaults["fused"], foreach=optimiser.defaults["foreach"])
    for state in optimiser.state.values():
        state["step"] = torch.tensor(1.0)  # a number that a fake tensor knows
    optimiser.zero_grad(set_to_none=True)
    return flops


def _optimiser(parameters: Any, setting: Setting) -> Any:
    """AdamW as torch would choose it on the device: over lists of tensors on a GPU, unless fused."""
    import torch

    fused = setting.execution.fused
    return torch.optim.AdamW(
        parameters,
        lr=1e-5,
        weight_decay=setting.training.weight_decay,
        fused=fused or None,
        foreach=None if fused else setting.cuda,
    )


def _loss(denoiser: Any, *, base: Base, data: Prepared, setting: Setting, images: int) -> torch.Tensor:
    with autocast("cpu", _as_cpu(setting.training.precision)):
        return training_loss(
            denoiser,
            base=base,
            data=data,
            training=setting.training,
            seed=0,
            step=0,
            places=range(images),
        )


def _as_cpu(precision: str) -> str:
    """Name the precision of the same width that a CPU has."""
    return "fp32" if precision == "fp32" else "bf16"


def count_sampling(denoiser: Any, *, base: Base, data: Prepared, setting: Setting) -> dict[str, int]:
    """Count a sampling step of all branches, its conditions' encoding and the decoding of its images.

    The tensors may be fake or real. Returns Footprint's sampling figures.
    """
    import torch

    count, live = setting.sampled, LiveBytes()
    live.hold(denoiser, *_modules(base))
    with torch.no_grad(), live.watching():
        latents = torch.zeros(count, *data.latent_shape)
        times = torch.zeros(count, dtype=torch.long)
        text = data.text_at(range(count)).expand(setting.branches, -1, -1, -1).clone()
        with autocast("cpu", _as_cpu(setting.training.precision)):
            conditions = data.conditions_at(range(count))
            encoded: list[Any] = []
            encode_flops = operations(lambda: encoded.append(denoiser.encode(conditions)))
            features = encoded[0]
            step_flops = operations(lambda: denoiser(latents, times, text, features).float())
        sample_peak = live.peak
        live.mark()
        decode_flops = operations(lambda: base.decode(latents)) if base.vae is not None else 0
    return {
        "sample_peak": sample_peak,
        "decode_peak": live.peak,
        "encode_flops": encode_flops // count,
        "step_flops": step_flops // count,
        "decode_flops": decode_flops // count,
    }


# ---- GPUs and plans


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
class Work:
    """What is to be done, for all methods alike. items: of the train and of the evaluation side.

    setting: how steps are made. gpu: None for the CPU of this machine. wrong_conditions: how many times
    samples are drawn once more, under others than their own. mfu: see `work_of`. every, minutes: steps or
    minutes between checkpoints. encoded: seconds that an item took to encode, where that was measured.
    process: bytes that a process with the libraries takes before it does anything, on a CPU; available: bytes
    it can fill there.
    """

    suite: Suite
    budget: Budget
    task: Task
    shape: Shape
    items: tuple[int, int]
    setting: Setting
    gpu: Gpu | None
    wrong_conditions: int = 2
    mfu: float | None = None
    every: int | None = None
    minutes: float = 15.0
    encoded: float | None = None
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

    def hours(self, flops: float, precision: str) -> float:
        """Return how long a GPU takes for so many operations."""
        assert self.gpu is not None
        return flops / (self.share(precision) * 3600 * self.gpu.peak(precision))

    def share(self, precision: str) -> float:
        """Return the share of a GPU's peak rate that is reached."""
        return MFU[precision] if self.mfu is None else self.mfu

    def saves(self, steps: int, hours: float | None) -> int | None:
        """Return how many checkpoints a training writes; None where nothing tells how long it takes."""
        if self.every:
            return math.ceil(steps / self.every)
        return None if hours is None else 1 + int(60 * hours / self.minutes)

    def needs(self, peak: int) -> int:
        """Return the memory of a process whose tensors take `peak` bytes at most.

        On a CPU the process and the items that a run holds in memory are beside the tensors.
        """
        if self.gpu is not None:
            return round(ALLOWANCE * peak)
        view = math.prod(self.shape.latent_shape) + self.task.channels * self.shape.size**2
        text, (train, evaluation) = math.prod(self.shape.text_shape), self.items
        held = 4 * (train * (self.views * view + text) + evaluation * (view + text))
        return round(self.process + held * (self.suite.storage == "memory") + CPU_ALLOWANCE * peak)

    @property
    def host(self) -> int:
        """Bytes of a machine's own memory that scoring takes at most: pictures, samples, sums over pairs.

        In each process that scores a row.
        """
        count = min(self.items[1], self.budget.eval_items or self.items[1])
        pictures = 3 * self.shape.size**2 * count
        rows = min(self.setting.processes, 3 + self.wrong_conditions)
        return rows * (self.process + 2 * pictures + 3 * 8 * count**2 + _ROW * sum(self.items))

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
        if self.encoded is not None:
            return self.encoded * (self.views * self.items[0] + self.items[1]) / 3600
        if self.gpu is None:
            return None
        return self.hours((self.views * self.items[0] + self.items[1]) * encoding_flops(self.shape), "fp32")

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
                *([MEASURED] if self.encoded is not None else []),
                f"assumed: {gib(self.process)} for the process and {CPU_ALLOWANCE - 1:.0%} over the counted "
                f"bytes; {HOST_SHARE:.0%} of this machine's memory usable; hours from timings.json, which "
                "bench cost writes",
            ]
        rates = [
            f"{self.share(p):.0%} of the peak rate of {self.gpu.peak(p) / 1e12:.0f} TFLOP/s"
            for p in (self.setting.training.precision, "fp32")
        ]
        return [
            *counted,
            *([MEASURED] if self.encoded is not None else []),
            f"assumed: training and sampling at {rates[0]}, encoding and decoding in float32 at {rates[1]} "
            f"({self.gpu.source}); {CALIBRATED}; --mfu sets another share, --rehearse measures",
            f"assumed: checkpoints are copied at {COPIED / 1e9:g} GB/s while training waits",
            f"assumed: {ALLOWANCE - 1:.0%} over the counted bytes for kernels and fragments; "
            f"{1 - USABLE:.0%} of the {self.gpu.memory:g} GiB for ECC, driver and context",
        ]


def work_of(
    config: RunConfig,
    *,
    gpu: str = "h100",
    gpus: int = 1,
    mfu: float | None = None,
    like: str = "sd15",
    size: int | None = None,
) -> Work:
    """Return what is to be done, checked; BenchError for what is not allowed.

    gpu: a name of GPUS, or "cpu" for this machine; gpus: processes. mfu: share of the peak rate,
    None for MFU's. like, size: the base's likeness where the suite brings none, and image size in pixels,
    None for its own.
    """
    suite, card = suite_of(config), GPUS.get(gpu)
    precision = suite.training.precision
    if card is None and gpu != "cpu":
        raise unknown("GPU", gpu, [*GPUS, "cpu"])
    if card is None and (gpus > launched() or precision == "fp16"):  # a rehearsal is of those that are there
        raise BenchError("--gpu cpu: one process, fp32 or bf16. Name a GPU for anything else.")
    if card is not None and precision == "bf16" and not card.bfloat16:
        raise BenchError(f"--precision bf16: {gpu} has no bfloat16. Use fp16 or fp32.")
    setting = Setting(
        training=suite.training,
        sampler=suite.sampler,
        execution=config,
        sampled=config.sample_batch,
        cuda=card is not None,
        processes=gpus,
    )
    setting.parts()  # refuses a batch that cannot be divided
    given = config.data is not None or VARIABLE in os.environ
    items, pixels = _items(suite, given=given)
    size = size or pixels
    return Work(
        suite=suite,
        budget=budget_of(config, suite, items=items[0]),
        task=task_of(config),
        shape=shape_like(like, size=size) if suite.base is None else shape_of(suite.base, size=size),
        items=items,
        setting=setting,
        gpu=card,
        wrong_conditions=len(config.wrong_conditions),
        mfu=mfu,
        every=config.checkpoint_every,
        minutes=config.checkpoint_minutes,
        process=libraries_bytes(),
        available=round(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )


def _items(suite: Suite, *, given: bool) -> tuple[tuple[int, int], int | None]:
    """Count the items of both sides; where the user's data are not there yet, those of the original.

    Beside them pixels of a side, where the data say that, not the base.
    """
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
    not fit. train_hours: recomputing included; sample_hours: all sample sets, decoding included; None
    where nothing tells the speed. checkpoints, samples: on disk. written: bytes of all checkpoints of the
    training; saving_hours: that it waits for them. judge_hours: of scoring, known of a rehearsal alone.
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
    *,
    timings: Path,
    say: Callable[[str], None],
    rehearse: Callable[[RunConfig], Rehearsal] | None = None,
    **machine: Any,
) -> tuple[Work, list[Plan]]:
    """Plan runs that differ in method alone; say gets a line for each that cannot do the task.

    timings: folder of `bench cost`'s file, for a CPU. rehearse: takes a few steps of every stage. machine:
    see `work_of`. BenchError for unknown names and for what the device or the suite cannot do.
    """
    work, plans = work_of(configs[0], **machine), []
    measured = load_timings(timings) if work.gpu is None else None
    for config in configs:
        method, options = method_of(config)
        reason = refusal(method, work.task)
        if reason:
            say(f"{method.title} cannot do {work.task.name}: {reason}")
            continue
        timing = measured.find(method.name, options) if measured is not None else None
        rehearsal = rehearse(config) if rehearse is not None else None
        work = work if rehearsal is None else replace(work, encoded=rehearsal.encoded)
        plans.append(plan_method(method, options=options, work=work, timing=timing, rehearsal=rehearsal))
        say(f"{method.title}: counted")
    return work, plans


def plan_method(
    method: Method,
    *,
    options: Mapping[str, Any],
    work: Work,
    timing: Timing | None = None,
    rehearsal: Rehearsal | None = None,
) -> Plan:
    """Plan the run of one method. timing: measured on this machine, for plans on its CPU.

    Raises BenchError where the method refuses its options.
    """

    def count(setting: Setting) -> Footprint:
        return footprint(method, options=options, shape=work.shape, task=work.task, setting=setting)

    counted, images = count(work.setting), work.budget.images(method.name)
    steps = max(1, images // work.setting.training.batch) if counted.trainable else 0
    needed = work.needs(counted.peak)
    train, sample = _hours(counted, work, steps=steps, timing=rehearsal.timing if rehearsal else timing)
    sets = (1 + work.wrong_conditions * method.conditioned) * work.suite.sampler.draws
    items = min(work.items[1], work.budget.eval_items or work.items[1])
    sampled, copied = sets * items, rehearsal.copied if rehearsal else COPIED
    trained = 4 * counted.trainable
    state = trained + counted.optimiser + counted.average
    saves = work.saves(steps, train) if steps else 0
    kept = KEPT + 1  # one more while it is written, and the finished weights
    return Plan(
        method=method.name,
        title=method.title,
        options=dict(options),
        footprint=counted,
        micro=work.setting.micro,
        steps=steps,
        needed=needed,
        fits=needed <= work.usable,
        advice="" if needed <= work.usable else _advice(count, work, counted),
        train_hours=train,
        sample_hours=None if sample is None else sampled * sample,
        checkpoints=kept * state + trained if trained else 0,
        samples=round(sampled * PIXEL * work.shape.size**2),
        written=None if saves is None else saves * state,
        saving_hours=None if saves is None else saves * state / copied / 3600,
        judge_hours=(sampled + 2 * items) * rehearsal.judged / 3600 if rehearsal else None,
    )


def tuning_hours(work: Work, plans: Sequence[Plan]) -> float | None:
    """Return the hours of `bench tune --budget quick` for these methods; None where nothing tells."""
    suite, total = work.suite, 0.0
    if "quick" not in suite.budgets:
        return None
    budget, batch = suite.budget("quick"), work.setting.training.batch
    items = min(budget.eval_items or work.items[1], work.items[1])
    for plan in (plan for plan in plans if plan.steps):
        if plan.train_hours is None or plan.sample_hours is None:
            return None
        sampled = plan.samples / (PIXEL * work.shape.size**2)
        training = plan.train_hours * budget.images(plan.method) / (plan.steps * batch)
        total += training + plan.sample_hours * items * suite.sampler.draws / sampled
    return len(suite.rates) * total


def _hours(
    counted: Footprint, work: Work, *, steps: int, timing: Timing | None
) -> tuple[float | None, float | None]:
    """Return hours of training, and of sampling one image."""
    setting, images = work.setting, steps * work.setting.training.batch
    if timing is not None:
        rate = timing.train_images_per_second
        return images / rate / 3600 if rate else 0.0, timing.sample_seconds_per_image / 3600
    if work.gpu is None:
        return (None if steps else 0.0), None
    again = 4 / 3 if setting.execution.gradient_checkpointing else 1.0  # a forward pass beside 1 + 2
    once = counted.encode_flops + work.suite.sampler.steps * counted.step_flops
    training, sampling, decoding = (  # the autoencoder stays float32
        work.hours(flops, precision) / setting.processes
        for flops, precision in (
            (images * counted.train_flops * again, setting.training.precision),
            (once, setting.training.precision),
            (counted.decode_flops, "fp32"),
        )
    )
    return training, sampling + decoding


def _advice(count: Callable[[Setting], Footprint], work: Work, counted: Footprint) -> str:
    """Say what to change so that a run fits, the least costly first; every size is counted, not guessed."""
    still, whole, planned = max(counted.sample_peak, counted.decode_peak), work.setting.micro, work.setting
    if work.needs(still) > work.usable:
        return f"sampling {planned.sampled} at once needs {gib(work.needs(still))}: lower --sample-batch"
    sizes = [size for size in range(whole, 0, -1) if whole % size == 0]
    for recomputed, micro in itertools.product((False, True), sizes):
        needed = work.needs(count(planned.with_micro(micro, checkpointing=recomputed)).train_peak)
        if needed <= work.usable:
            words = [f"--micro-batch {micro}"] if micro != whole else []
            words += ["--gradient-checkpointing"] if recomputed else []
            return f"{' '.join(words)} (then {gib(needed)})"
    return f"no micro batch fits: {gib(needed)} even with --micro-batch 1 --gradient-checkpointing"


def gib(count: float) -> str:
    """Return bytes in words: 12.3 GiB."""
    return f"{count / 2**30:.1f} GiB"
