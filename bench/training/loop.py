"""The only training loop: every method sees the same items, noise, timesteps and prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base
from bench.config import Training
from bench.cost import peak_memory
from bench.data.latents import Prepared
from bench.processes import ALONE, Processes
from bench.randomness import generator
from bench.training.checkpoint import Trainable, load_checkpoint, save_checkpoint
from bench.training.engine import Engine, Execution, micro_batches, rebuilt
from bench.types import BenchError, Stopped

if TYPE_CHECKING:
    import torch

CHECKPOINT = "train.ckpt"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training took: seconds over all its starts, images, scalars without any gradient.

    curve: [(step, mean loss since the last point)]. starts: how it was carried out, an entry a start:
    "step" it went on from, "processes", and what of Execution was not at its default.
    peak_memory_bytes: over all its starts, None where nothing was trained.
    """

    steps: int
    images: int
    seconds: float
    dead: int
    curve: list[tuple[int, float]]
    starts: list[Mapping[str, Any]] = field(default_factory=list)
    peak_memory_bytes: int | None = None


class _Progress:
    """Seconds, peak memory, loss curve and starts, saved with the checkpoint: what is killed is not lost."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self.pending: list[float] = []
        self.dead = 0
        self.starts: list[Mapping[str, Any]] = []
        self.peak: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "curve": self.curve,
            "pending": self.pending,
            "dead": self.dead,
            "starts": self.starts,
            "peak": self.peak,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = float(state["seconds"])
        self.curve = [(int(s), float(v)) for s, v in state["curve"]]
        self.pending = [float(v) for v in state["pending"]]
        self.dead = int(state["dead"])
        self.starts = list(state.get("starts", []))
        self.peak = state.get("peak")

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
    *,
    base: Base,
    data: Prepared,
    training: Training,
    images: int,
    learning_rate: float,
    seed: int,
    folder: Path,
    checkpoint_every: int = 100,
    execution: Execution | None = None,
    processes: Processes = ALONE,
    tick: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], int | None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> TrainResult:
    """Train the denoiser's trainable parameters (or go on from the folder's checkpoint).

    images: how many training images in all, a multiple of the batch or rounded down to one. tick
    gets (step, steps, loss). stop returns an exit code when somebody asked to stop, in any of the
    processes: the loop then writes a checkpoint and raises Stopped. say gets remarks. With
    `training.ema` the denoiser ends with the average. Raises BenchError when the loss is not finite.
    """

    trainable = Trainable(denoiser)
    if not trainable.parameters:
        return TrainResult(steps=0, images=0, seconds=0.0, dead=0, curve=[])
    steps = max(1, images // training.batch)
    execution = execution or Execution()
    loss = partial(training_loss, denoiser, base=base, data=data, training=training, seed=seed)
    with rebuilt(denoiser, execution):
        loop = _Loop(
            denoiser,
            trainable,
            loss=loss,
            training=training,
            steps=steps,
            device=base.device,
            learning_rate=learning_rate,
            folder=folder,
            execution=execution,
            processes=processes,
        )
        start = loop.load(say)
        try:
            loop.go(start, every=checkpoint_every, tick=tick, stop=stop)
        finally:
            loop.engine.close()
    if loop.average is not None:
        loop.average.apply()
    done = loop.progress
    return TrainResult(
        steps=steps,
        images=steps * training.batch,
        seconds=done.seconds,
        dead=done.dead,
        curve=done.curve,
        starts=done.starts,
        peak_memory_bytes=done.peak,
    )


class _Loop:
    """Optimiser, schedule, average and progress of one training: what a checkpoint holds."""

    def __init__(
        self,
        denoiser: Any,
        trainable: Trainable,
        *,
        loss: Callable[..., torch.Tensor],
        training: Training,
        steps: int,
        learning_rate: float,
        device: str,
        folder: Path,
        execution: Execution,
        processes: Processes,
    ) -> None:
        import torch

        self.parameters = list(trainable.parameters.values())
        self.learning_rate, self.steps, self.training = learning_rate, steps, training
        self.folder, self.execution, self.processes = folder, execution, processes
        self.device = device
        optimiser = torch.optim.AdamW(
            self.parameters,
            lr=learning_rate,
            weight_decay=training.weight_decay,
            fused=execution.fused or None,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_factor(step, steps, training.warmup_share)
        )
        parts = micro_batches(training.batch, processes=processes, micro=execution.micro_batch)
        self.engine = Engine(
            denoiser,
            optimiser,
            loss=lambda step, places: loss(step=step, places=places),
            parts=parts,
            precision=training.precision,
            device=device,
            execution=execution,
            processes=processes,
            folder=folder,
        )
        self.average = Average(trainable, decay=training.ema) if training.ema else None
        self.progress = _Progress()
        kept = {
            "weights": trainable,
            "optimiser": optimiser,
            "schedule": self.schedule,
            "progress": self.progress,
            "ema": self.average,
            "scaler": self.engine.scaler,
        }
        self.parts = {name: part for name, part in kept.items() if part is not None}

    def load(self, say: Callable[[str], None]) -> int:
        """Load the folder's checkpoint and return its step; all processes must find the same."""
        start = load_checkpoint(self.folder / CHECKPOINT, say=say, **self.parts)
        last, first = self.processes.largest(start, -start)
        if last != -first:
            raise BenchError(
                f"the processes found checkpoints of different steps ({-first:.0f} to {last:.0f}) in "
                f"{self.folder}. All nodes need the same --results folder, on shared storage."
            )
        self._note(start)
        return start

    def _note(self, start: int) -> None:
        """Remember how this start works, if it has anything to do."""
        how = {"processes": self.processes.count, **self.execution.as_dict()}
        if start < self.steps:
            self.progress.starts.append({"step": start, **how})
            settings = {
                "learning_rate": self.learning_rate,
                "batch": self.training.batch,
                "steps": self.steps,
                "precision": self.training.precision,
            }
            self.engine.begin_log(self.folder.parent.name, settings)

    def go(
        self,
        start: int,
        *,
        every: int,
        tick: Callable[[int, int, float], None] | None,
        stop: Callable[[], int | None],
    ) -> None:
        """Take the steps that are left, with a checkpoint `every` steps and at the end."""
        for step in range(start, self.steps):
            begun = time.perf_counter()
            rate = float(self.schedule.get_last_lr()[0])
            loss = self.descend(step)
            self.progress.add(step + 1, loss, every=max(1, self.steps // 100))
            taken = time.perf_counter() - begun
            self.progress.seconds += taken
            self.engine.log(
                step + 1, loss=loss, learning_rate=rate, images_per_second=self.training.batch / taken
            )
            code = self._asked(stop())
            if (step + 1) % every == 0 or step + 1 == self.steps or code is not None:
                self.save(step + 1)
            if tick is not None:
                tick(step + 1, self.steps, loss)
            if code is not None and step + 1 < self.steps:
                raise Stopped(code)

    def _asked(self, code: int | None) -> int | None:
        """Return the exit code that any of the processes was asked to stop with."""
        (found,) = self.processes.largest(code or 0)
        return int(found) or None

    def save(self, step: int) -> None:
        """Write the checkpoint, which holds nothing of one process alone."""
        if self.processes.main:
            self.progress.peak = max(self.progress.peak or 0, peak_memory(self.device))
            keep = self.execution.keep
            save_checkpoint(self.folder / CHECKPOINT, step=step, keep=keep, **self.parts)

    def _diverged(self, what: str, value: float, step: int) -> BenchError:
        return BenchError(
            f"the {what} is {value} at step {step} of {self.steps} (learning rate "
            f"{self.learning_rate:g}). Lower it with --learning-rate and start with --again."
        )

    def descend(self, step: int) -> float:
        """One optimiser step; returns the batch's mean loss. BenchError if it is not finite."""
        value = self.engine.backward(step)
        if not math.isfinite(value):
            raise self._diverged("loss", value, step)
        self.progress.dead = sum(p.numel() for p in self.parameters if p.grad is None)
        norm = self.engine.descend(self.parameters, clip=self.training.clip_norm)
        if not math.isfinite(norm):
            raise self._diverged("gradient", norm, step)
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        return value


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to 0."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
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
) -> tuple[torch.Tensor, ...]:
    """Return latents, conditions, text [B,L,D], timesteps and noise of one step.

    steps: timesteps of the diffusion. places: which of the batch's, None for all. Each example draws
    from a generator of its own (seed, item, place in the run); the order of the items is a fresh
    permutation an epoch. So a resumed or distributed run sees the same examples.
    """
    import torch

    drawn = training.latents == "sample"
    rows, view, dropped, times, noise, spread = [], [], [], [], [], []
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
    text = torch.where(torch.tensor(dropped)[:, None, None], data.empty, data.text_at(rows))
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
