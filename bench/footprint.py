"""What a method's steps need, counted on fake tensors: bytes by part, and floating-point operations.

Everything that runs is the real thing (the method's modules, `training_loss`, AdamW, the average), so
the count follows the code; only the tensors have no contents. Not counted: what kernels take for
themselves while they run, and what an allocator leaves unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.base.load import Base
from bench.base.random import Shape, build_base
from bench.config import Sampler, Training
from bench.data.latents import InMemory, Prepared
from bench.live import LiveBytes, fake_tensors, make_fake, norms_in_float32, parameter_bytes
from bench.training.checkpoint import Trainable
from bench.training.engine import Execution, autocast, rebuilt
from bench.training.loop import Average, training_loss
from bench.types import BenchError, Method, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How steps are made: what decides their memory beside the method.

    micro: images trained at once; accumulate: whether a step takes several such. sampled: images
    sampled at once. cuda: on a GPU (norms in float32 under autocast, AdamW over lists of tensors).
    processes: of data-parallel training. alone: nothing but the denoiser is loaded, as by
    `bench cost --random`: no autoencoder, no text encoder, no UNet that the base keeps beside a copy
    that is trained.
    """

    training: Training
    sampler: Sampler
    execution: Execution
    micro: int
    accumulate: bool = False
    sampled: int = 1
    cuda: bool = False
    processes: int = 1
    alone: bool = False

    @property
    def branches(self) -> int:
        """Texts that a sampling step runs for each image: two under guidance."""
        return 2 if self.sampler.guidance != 1.0 else 1


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
    dead: int
    weights: int
    beside: int
    encoders: int
    gradients: int
    buckets: int
    optimiser: int
    average: int
    activations: int
    train_peak: int
    sample_peak: int
    decode_peak: int
    train_flops: int
    encode_flops: int
    step_flops: int
    decode_flops: int

    @property
    def peak(self) -> int:
        """The most bytes of all."""
        return max(self.train_peak, self.sample_peak, self.decode_peak)

    def as_dict(self) -> dict[str, int]:
        """Return all figures and the peak."""
        return {**asdict(self), "peak": self.peak}


def footprint(
    method: Method, *, options: Mapping[str, Any], shape: Shape, task: Task, setting: Setting
) -> Footprint:
    """Count what a method needs on a base of a shape, in seconds and without memory.

    Raises BenchError where the method refuses its options or cannot do what `execution` asks.
    """
    base = build_base(shape, encoders=not setting.alone)
    denoiser = build_meta(method, base=base, task=task, options=options)
    if setting.alone:
        let_go(base, denoiser)
    parts = _parts(denoiser, base)
    raised = [denoiser] if setting.cuda and setting.training.precision != "fp32" else []
    with fake_tensors(), norms_in_float32(*raised):
        make_fake(denoiser, *_modules(base))
        base = replace(base, device="cpu")
        data = stand_in(shape, task=task, count=max(setting.micro, setting.sampled))
        trained = count_training(denoiser, base=base, data=data, setting=setting)
        sampled = count_sampling(denoiser, base=base, data=data, setting=setting)
    return Footprint(**parts, **trained, **sampled)


def encoding_flops(shape: Shape) -> int:
    """Return the operations of encoding one image and its caption."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    base = build_base(shape)
    with fake_tensors(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        make_fake(base.vae, base.text_encoder)
        base.vae.encode(torch.zeros(1, 3, shape.size, shape.size))
        base.text_encoder(torch.zeros(1, shape.tokens, dtype=torch.long))
    return int(counter.get_total_flops())


def build_meta(method: Method, *, base: Base, task: Task, options: Mapping[str, Any]) -> Any:
    """Build a method's denoiser on the meta device; BenchError where it refuses."""
    import torch

    try:
        with torch.device("meta"):
            return method.build(base, task, **options)
    except (ValueError, TypeError) as error:
        raise BenchError(f"method {method.name}: {error}") from error


def let_go(base: Base, denoiser: Any) -> None:
    """Drop the base's UNet where the denoiser has one of its own."""
    held = {id(p) for p in denoiser.parameters()}
    if not any(id(p) in held for p in base.unet.parameters()):
        base.unet = None


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


def _parts(denoiser: Any, base: Base) -> dict[str, int]:
    """Parameters and the bytes that are there all the time, on the meta device."""
    from bench.cost import count_parameters

    weights = parameter_bytes(denoiser)
    total, trainable = count_parameters(denoiser)
    return {
        "parameters": total,
        "trainable": trainable,
        "weights": weights,
        "beside": parameter_bytes(denoiser, *filter(None, [base.unet])) - weights,
        "encoders": parameter_bytes(*filter(None, [base.vae, base.text_encoder])),
    }


def count_training(denoiser: Any, *, base: Base, data: Prepared, setting: Setting) -> dict[str, int]:
    """Count two training steps: on one image, for operations and AdamW's state, then as in `setting`.

    The tensors may be fake or real; the figures are the same. Returns Footprint's training figures.
    """
    trainable = Trainable(denoiser)
    parameters = list(trainable.parameters.values())
    names = ("dead", "gradients", "buckets", "optimiser", "average", "activations")
    found, live = dict.fromkeys((*names, "train_peak", "train_flops"), 0), LiveBytes()
    if not parameters:
        return found
    live.hold(denoiser, *_modules(base))
    with live.watching():
        optimiser = _optimiser(parameters, setting)
        decay = setting.training.ema
        average = Average(trainable, decay=decay) if decay else None
        found["train_flops"] = _first_step(denoiser, optimiser, base=base, data=data, setting=setting)
        live.mark()
        with rebuilt(denoiser, setting.execution):
            for _ in range(1 + setting.accumulate):
                before = live.now
                loss = _loss(denoiser, base=base, data=data, setting=setting, images=setting.micro)
                found["activations"] = live.now - before
                loss.backward()
                del loss
        _descend(parameters, optimiser, setting=setting, found=found)
        if average is not None:
            average.update()
            found["average"] = _bytes_of(average.shadow.values())
        found["optimiser"] = _bytes_of(t for s in optimiser.state.values() for t in s.values())
        found["train_peak"] = live.peak + found["buckets"]
    return found


def _first_step(denoiser: Any, optimiser: Any, *, base: Base, data: Prepared, setting: Setting) -> int:
    """Take a step on one image and return the operations of its passes, nothing recomputed.

    AdamW is fused in it, one operation where the loop over parameters has thousands: all that is
    wanted of this step is its state.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss = _loss(denoiser, base=base, data=data, setting=setting, images=1)
        loss.backward()
    for group in optimiser.param_groups:
        group.update(fused=True, foreach=False)
    optimiser.step()
    for group in optimiser.param_groups:
        group.update(fused=optimiser.defaults["fused"], foreach=optimiser.defaults["foreach"])
    for state in optimiser.state.values():
        state["step"] = torch.tensor(1.0)  # a number that a fake tensor knows
    optimiser.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def _descend(parameters: Any, optimiser: Any, *, setting: Setting, found: dict[str, int]) -> None:
    """Clip, step and forget, as bench.training.engine.Engine does, and note the gradients."""
    import torch

    found["gradients"] = _bytes_of(p.grad for p in parameters if p.grad is not None)
    found["buckets"] = found["gradients"] if setting.processes > 1 else 0
    found["dead"] = sum(p.numel() for p in parameters if p.grad is None)
    torch.nn.utils.clip_grad_norm_(parameters, setting.training.clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


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
    from torch.utils.flop_counter import FlopCounterMode

    count, live = setting.sampled, LiveBytes()
    live.hold(denoiser, *_modules(base))
    with torch.no_grad(), live.watching():
        latents = torch.zeros(count, *data.latent_shape)
        times = torch.zeros(count, dtype=torch.long)
        text = data.text_at(range(count)).expand(setting.branches, -1, -1, -1).clone()
        counters = [FlopCounterMode(display=False) for _ in range(3)]
        with autocast("cpu", _as_cpu(setting.training.precision)):
            with counters[0]:
                features = denoiser.encode(data.conditions_at(range(count)))
            with counters[1]:
                denoiser(latents, times, text, features).float()
        sampled = live.peak
        live.mark()
        if base.vae is not None:
            with counters[2]:
                base.decode(latents)
        flops = [int(c.get_total_flops()) // count for c in counters]
    return {
        "sample_peak": sampled,
        "decode_peak": live.peak,
        "encode_flops": flops[0],
        "step_flops": flops[1],
        "decode_flops": flops[2],
    }


def _bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
