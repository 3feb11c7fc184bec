"""What a method's steps need, counted on fake tensors: live bytes by part, and floating-point operations.

Fake tensors have shapes and no contents. Everything that runs is the real thing (the method's modules,
`training_loss`, the backward pass, AdamW, the average), in seconds and without memory, and the count is
the same, byte for byte, as on real tensors. Not counted: what kernels take for themselves while they
run, and what an allocator leaves unused.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from bench.base.load import Base
from bench.base.random import Shape, build_base
from bench.config import Sampler, Training
from bench.cost import count_parameters, operations
from bench.data.latents import InMemory, Prepared
from bench.training.checkpoint import Trainable
from bench.training.engine import Execution, autocast, micro_batches, rebuilt
from bench.training.loop import Average, training_loss
from bench.types import BenchError, Method, Task

if TYPE_CHECKING:
    import torch


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


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make every tensor that is created while open a fake one on the CPU.

    The CPU's attention kernel keeps what those of GPUs keep (no matrix of all pairs), which the meta
    device's does not: it would overstate the memory of a step several times.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


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
    execution: Execution = Execution()
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

    def as_dict(self) -> dict[str, int]:
        """Return all figures and the peak."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"peak": self.peak}


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
    encoders = parameter_bytes(*filter(None, [base.vae, base.text_encoder]))
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
        make_fake(base.vae, base.text_encoder)
        pixels = torch.zeros(1, 3, shape.size, shape.size)
        tokens = torch.zeros(1, shape.tokens, dtype=torch.long)
        return operations(lambda: (base.vae.encode(pixels), base.text_encoder(tokens)))


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
    return [m for m in (base.unet, base.vae, base.text_encoder) if m is not None]


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
        "average": _bytes_of(average.shadow.values()) if average is not None else 0,
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
