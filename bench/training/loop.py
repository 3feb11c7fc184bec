"""The only training loop: every method sees the same items, noise, timesteps and prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base
from bench.config import RunSpec, Training
from bench.cost import peak_memory
from bench.data.latents import Prepared
from bench.randomness import generator
from bench.training.checkpoint import NOTHING, Trainable, TrainResult, Writer, load_checkpoint
from bench.training.engine import Engine, Execution, gathered, join, rebuilt
from bench.types import BenchError, Hooks, Stopped

if TYPE_CHECKING:
    import torch

CHECKPOINT = "train.ckpt"
_ADAM_EPS = 1e-8


@dataclass(kw_only=True)
class _Progress:
    """What a TrainResult tells, as it grows; saved with the checkpoint, so that a kill loses none of it.

    pending: losses since the curve's last point.
    """

    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    dead: int = 0
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    peak: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, state.get(name, getattr(self, name)))

    def add(self, step: int, loss: float, *, every: int) -> None:
        self.pending.append(loss)
        if step % every == 0:
            self.curve.append((step, round(float(np.mean(self.pending)), 6)))
            self.pending = []


class Average:
    """An exponential moving average of trainable parameters: e <- decay e + (1 - decay) w.

    It begins at the parameters as they are.
    """

    def __init__(self, trainable: Trainable, *, decay: float) -> None:
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        self.trainable = trainable
        self.shadow = {n: t.clone() for n, t in trainable.state_dict().items()}
        self._average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take in the parameters as they are now."""
        now = self.trainable.state_dict()
        self._average(list(self.shadow.values()), list(now.values()), 0)

    def apply(self) -> None:
        """Put the average in the place of the parameters."""
        self.trainable.load_state_dict(self.shadow)

    def state_dict(self) -> dict[str, Any]:
        """Return name -> average."""
        return self.shadow

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy an average in; KeyError where names differ."""
        for name, tensor in self.shadow.items():
            tensor.copy_(state[name])


def train(
    denoiser: torch.nn.Module,
    spec: RunSpec,
    *,
    base: Base,
    data: Prepared,
    folder: Path,
    hooks: Hooks | None = None,
) -> TrainResult:
    """Train the denoiser's trainable parameters (or go on from the folder's checkpoint).

    spec: of the run, whose budget says how many images, rounded down to whole batches. folder: the run's
    own for work. hooks: the loop ticks every step; asked to stop, in any of the processes, it writes a
    checkpoint and raises Stopped. With `training.ema` the denoiser ends with the average. Raises
    BenchError when the loss is not finite.
    """
    trainable = Trainable(denoiser)
    if not trainable.parameters:
        return NOTHING
    with rebuilt(denoiser, Execution.of(spec.config)):
        loop = _Loop(denoiser, trainable, spec, base=base, data=data, folder=folder)
        try:
            loop.go(hooks or Hooks())
        finally:
            loop.engine.close()
            loop.writer.close()
    if loop.average is not None:
        loop.average.apply()
    done = loop.progress
    return TrainResult(
        steps=loop.steps,
        images=loop.steps * spec.suite.training.batch,
        seconds=done.seconds,
        dead=done.dead,
        curve=done.curve,
        starts=done.starts,
        peak_memory_bytes=done.peak,
    )


class _Loop:
    """Optimiser, schedule, average and progress of one training: what a checkpoint holds."""

    def __init__(
        self, denoiser: Any, trainable: Trainable, spec: RunSpec, *, base: Base, data: Prepared, folder: Path
    ) -> None:
        import torch

        self.spec, self.training, self.folder = spec, spec.suite.training, folder
        self.device, self.processes = base.device, join(base.device)
        self.execution = Execution.of(spec.config)
        self.steps = max(1, spec.budget.images(spec.method.name) // self.training.batch)
        self.parameters = list(trainable.parameters.values())
        optimiser = torch.optim.AdamW(
            parameter_groups(denoiser, trainable, rate=spec.learning_rate, decay=self.training.weight_decay),
            fused=self.execution.fused or None,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: learning_rate_factor(
                step, self.steps, self.training.warmup_share, self.training.schedule
            ),
        )
        if self.training.captions == "random" and not hasattr(data.dataset, "captions_of"):
            raise BenchError("--captions random: these data have one caption of each picture. Leave it away.")
        loss = partial(
            training_loss, denoiser, base=base, data=data, training=self.training, seed=spec.config.seed
        )
        self.engine = Engine(
            denoiser,
            optimiser,
            loss=lambda step, places: loss(step=step, places=places),
            training=self.training,
            device=self.device,
            execution=self.execution,
            folder=folder,
        )
        self.average = Average(trainable, decay=self.training.ema) if self.training.ema else None
        self.progress = _Progress()
        self.writer, self.saved = Writer(folder / CHECKPOINT, keep=self.execution.keep), time.monotonic()
        kept = {
            "weights": trainable,
            "optimiser": optimiser,
            "schedule": self.schedule,
            "progress": self.progress,
            "ema": self.average,
            "scaler": self.engine.scaler,
        }
        self.parts = {name: part for name, part in kept.items() if part is not None}

    def go(self, hooks: Hooks) -> None:
        """Take the steps that are left, with a checkpoint now and then and at the end."""
        for step in range(self._begin(hooks), self.steps):
            begun = time.perf_counter()
            rate = float(self.schedule.get_last_lr()[0])
            loss = self._descend(step)
            self.progress.add(step + 1, loss, every=max(1, self.steps // 100))
            taken = time.perf_counter() - begun
            self.progress.seconds += taken
            speed = self.training.batch / taken
            self.engine.log(step + 1, loss=loss, learning_rate=rate, images_per_second=speed)
            code = int(gathered(self.processes, [hooks.stop() or 0]).max())
            if self._due(step + 1) or step + 1 == self.steps or code:
                self._save(step + 1)
            hooks.tick(step + 1, self.steps, f"loss {loss:.4f}")
            if code and step + 1 < self.steps:
                self.writer.wait()
                raise Stopped(code)
        self.writer.wait()

    def _due(self, step: int) -> bool:
        every, minutes = self.spec.config.checkpoint_every, self.spec.config.checkpoint_minutes
        return step % every == 0 if every else time.monotonic() - self.saved >= 60 * minutes

    def _begin(self, hooks: Hooks) -> int:
        """Load the folder's checkpoint and return its step; all processes must find the same."""
        start = load_checkpoint(self.folder / CHECKPOINT, say=hooks.say, **self.parts)
        steps = gathered(self.processes, [start])
        if steps.min() != steps.max():
            raise BenchError(
                f"the processes found checkpoints of different steps ({steps.min():.0f} to "
                f"{steps.max():.0f}) in {self.folder}. All nodes need the same --results folder, on shared "
                "storage."
            )
        if start < self.steps:
            how = {"processes": self.processes.num_processes, **self.execution.as_dict()}
            self.progress.starts.append({"step": start, **how})
            settings = {
                "learning_rate": self.spec.learning_rate,
                "batch": self.training.batch,
                "steps": self.steps,
                "precision": self.training.precision,
            }
            self.engine.begin_log(self.folder.parent.name, settings)
        return start

    def _save(self, step: int) -> None:
        """Write the checkpoint, which holds nothing of one process alone."""
        if self.processes.is_main_process:
            self.progress.peak = max(self.progress.peak or 0, peak_memory(self.device))
            self.writer.save(step=step, **self.parts)
            self.saved = time.monotonic()

    def _descend(self, step: int) -> float:
        """One optimiser step; returns the batch's mean loss. BenchError if it is not finite."""
        value = self.engine.backward(step)
        if not math.isfinite(value):
            raise self._diverged("loss", value, step)
        self.progress.dead = sum(p.numel() for p in self.parameters if p.grad is None)
        norm = self.engine.descend(self.parameters, clip=self.training.clip_norm or math.inf)
        if not math.isfinite(norm):
            raise self._diverged("gradient", norm, step)
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        return value

    def _diverged(self, what: str, value: float, step: int) -> BenchError:
        return BenchError(
            f"the {what} is {value} at step {step} of {self.steps} (learning rate "
            f"{self.spec.learning_rate:g}). Lower it with --learning-rate and start with --again."
        )


def parameter_groups(
    denoiser: Any, trainable: Trainable, *, rate: float, decay: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups: one, and another for every factor that a denoiser's `rate_factors` names.

    A factor f is what a constant f before a parameter that starts at zero would be: the rate is f x rate,
    and decay and Adam's eps are divided by f, so that a step decays every parameter by the same share. One
    with f = 0 stays as it is.
    """
    factors: Mapping[str, float] = getattr(denoiser, "rate_factors", dict)()
    groups: dict[float, list[Any]] = {1.0: []}
    for name, parameter in trainable.parameters.items():
        groups.setdefault(float(factors.get(name, 1.0)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": factor * rate,
            "weight_decay": decay / factor if factor else 0.0,
            "eps": _ADAM_EPS / (factor or 1.0),
        }
        for factor, parameters in groups.items()
        if parameters or factor == 1.0
    ]


def learning_rate_factor(step: int, steps: int, warmup_share: float, schedule: str = "cosine") -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to 0, or a constant 1."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def training_loss(
    denoiser: Any,
    *,
    base: Base,
    data: Prepared,
    training: Training,
    seed: int,
    step: int,
    places: range | None = None,
) -> torch.Tensor:
    """Return the mean weighted eps error of a step's examples, a scalar (paper, eq. of the eps loss).

    places: which of the batch, None for all. A denoiser with `warp_timesteps` trains at other
    timesteps than those drawn (see Method).
    """
    latents, conditions, text, timesteps, noise = draw_batch(
        data,
        training=training,
        seed=seed,
        step=step,
        steps=len(base.alphas),
        device=base.device,
        places=places,
        encode=base.encode_text,
    )
    warp = getattr(denoiser, "warp_timesteps", None)
    timesteps = timesteps if warp is None else warp(timesteps)
    alpha = base.alphas.to(latents.device).float()[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    eps = denoiser(noisy, timesteps, text[None], denoiser.encode(conditions))[0]
    error = (eps.float() - noise).square()
    if training.loss == "v":
        error = error / alpha
    return error.mean()


def draw_batch(
    data: Prepared,
    *,
    training: Training,
    seed: int,
    step: int,
    steps: int = 1000,
    device: str = "cpu",
    places: range | None = None,
    encode: Callable[[Sequence[str]], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Return latents, conditions, text [B,L,D], timesteps and noise of one step.

    steps: timesteps of the diffusion. places: which of the batch's, None for all. encode: captions, where
    one of several is drawn. Each example draws
    from a generator of its own (seed, item, place in the run); the order of the items is a fresh
    permutation an epoch. So a resumed or distributed run sees the same examples.
    """
    import torch

    drawn = training.latents == "sample"
    rows, view, dropped, times, noise, spread, words = [], [], [], [], [], [], list[str]()
    visits = [step * training.batch + p for p in places or range(training.batch)]
    for place in visits:
        row, seen, rng = _visit(data, seed, place)
        rows.append(row)
        view.append(seen)
        dropped.append(bool(rng.random() < training.drop_caption))
        times.append(int(rng.integers(steps)))
        noise.append(rng.standard_normal(data.latent_shape, dtype=np.float32))
        if drawn:
            spread.append(rng.standard_normal(data.latent_shape, dtype=np.float32))
        if training.captions == "random":
            captions: Sequence[str] = data.dataset.captions_of(data.ids[row])  # type: ignore[attr-defined]
            words.append(captions[int(rng.integers(len(captions)))])
    own = encode(words).float().cpu() if words and encode is not None else data.text_at(rows)
    text = torch.where(torch.tensor(dropped)[:, None, None], data.empty, own)
    draw = torch.from_numpy(np.stack(spread)) if drawn else None
    batch = (
        data.latents_at(rows, view, noise=draw),
        data.conditions_at(rows, view),
        text,
        torch.tensor(times),
        torch.from_numpy(np.stack(noise)),
    )
    nexts = [_visit(data, seed, place + training.batch) for place in visits]
    data.expect([row for row, _, _ in nexts], [seen for _, seen, _ in nexts])
    return tuple(t.to(device) for t in batch)


def _visit(data: Prepared, seed: int, place: int) -> tuple[int, int, np.random.Generator]:
    """Return the row and view of a place in the run, and the generator of all else drawn there."""
    count = len(data)
    row = int(_order(seed, place // count, count)[place % count])
    rng = generator(seed, "train", data.ids[row], place)
    return row, int(rng.integers(data.views)), rng


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the permutation of one epoch."""
    return generator(seed, "order", index=epoch).permutation(count)
