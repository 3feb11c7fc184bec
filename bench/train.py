"""The only training loop: every method sees the same items, noise, timesteps and prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base import Base
from bench.checkpoint import Stopped, Trainable, load_checkpoint, save_checkpoint
from bench.prepare import Prepared
from bench.randomness import generator
from bench.suites import Training
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

CHECKPOINT = "train.ckpt"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training took: seconds over all its starts, images, scalars without any gradient.

    curve: [(step, mean loss since the last point)].
    """

    steps: int
    images: int
    seconds: float
    dead: int
    curve: list[tuple[int, float]]


class _Progress:
    """Seconds and loss curve, saved with the checkpoint."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self.pending: list[float] = []
        self.dead = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "curve": self.curve, "pending": self.pending,
                "dead": self.dead}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = float(state["seconds"])
        self.curve = [(int(s), float(v)) for s, v in state["curve"]]
        self.pending = [float(v) for v in state["pending"]]
        self.dead = int(state["dead"])

    def add(self, step: int, loss: float, *, every: int) -> None:
        self.pending.append(loss)
        if step % every == 0:
            self.curve.append((step, round(float(np.mean(self.pending)), 6)))
            self.pending = []


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
    tick: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> TrainResult:
    """Train the denoiser's trainable parameters (or go on from the folder's checkpoint).

    images: how many training images in all, a multiple of the batch or rounded down to one. tick
    gets (step, steps, loss). stop returns an exit code when somebody asked to stop: the loop then
    writes a checkpoint and raises Stopped. Raises BenchError when the loss is not finite.
    """

    trainable = Trainable(denoiser)
    if not trainable.parameters:
        return TrainResult(steps=0, images=0, seconds=0.0, dead=0, curve=[])
    steps = max(1, images // training.batch)
    loop = _Loop(trainable, training=training, steps=steps, learning_rate=learning_rate)
    start = loop.load(folder / CHECKPOINT)
    for step in range(start, steps):
        begun = time.perf_counter()
        loss = training_loss(
            denoiser, base=base, data=data, training=training, seed=seed, step=step
        )
        value = loop.descend(loss, step)
        loop.progress.add(step + 1, value, every=max(1, steps // 100))
        loop.progress.seconds += time.perf_counter() - begun
        code = stop()
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps or code is not None:
            loop.save(folder / CHECKPOINT, step + 1)
        if tick is not None:
            tick(step + 1, steps, value)
        if code is not None and step + 1 < steps:
            raise Stopped(code)
    done = loop.progress
    return TrainResult(steps=steps, images=steps * training.batch, seconds=done.seconds,
                       dead=done.dead, curve=done.curve)  # fmt: skip


class _Loop:
    """Optimiser, schedule and progress of one training: what a checkpoint holds."""

    def __init__(
        self, trainable: Trainable, *, training: Training, steps: int, learning_rate: float
    ) -> None:
        import torch

        self.parameters = list(trainable.parameters.values())
        self.learning_rate, self.steps, self.clip = learning_rate, steps, training.clip_norm
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=training.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: learning_rate_factor(step, steps, training.warmup_share)
        )
        self.progress = _Progress()
        self.parts = {
            "weights": trainable,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "progress": self.progress,
        }

    def load(self, path: Path) -> int:
        return load_checkpoint(path, **self.parts)

    def save(self, path: Path, step: int) -> None:
        save_checkpoint(path, step=step, **self.parts)

    def _diverged(self, what: str, value: float, step: int) -> BenchError:
        return BenchError(
            f"the {what} is {value} at step {step} of {self.steps} (learning rate "
            f"{self.learning_rate:g}). Lower it with --learning-rate and start with --again."
        )

    def descend(self, loss: torch.Tensor, step: int) -> float:
        """One optimiser step; returns the loss. BenchError if it is not finite."""
        import torch

        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged("loss", value, step)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        if not math.isfinite(norm):
            raise self._diverged("gradient", norm, step)
        self.progress.dead = sum(p.numel() for p in self.parameters if p.grad is None)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.schedule.step()
        return value


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to 0."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def training_loss(
    denoiser: Any, *, base: Base, data: Prepared, training: Training, seed: int, step: int
) -> torch.Tensor:
    """Return the weighted eps error of one step's batch, a scalar (paper, eq. of the eps loss).

    A denoiser with `warp_timesteps` trains at other timesteps than those drawn (see Method).
    """
    latents, conditions, text, timesteps, noise = draw_batch(
        data, training=training, seed=seed, step=step, steps=len(base.alphas), device=base.device
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
) -> tuple[torch.Tensor, ...]:
    """Return latents, conditions, text [B,L,D], timesteps and noise of one step.

    steps: timesteps of the diffusion. Each example draws from a generator of its own (seed, item,
    place in the run); the order of the items is a fresh permutation an epoch.
    So a resumed or distributed run sees the same examples.
    """
    import torch

    drawn = training.latents == "sample"
    rows, view, dropped, times, noise, spread = [], [], [], [], [], []
    places = range(step * training.batch, (step + 1) * training.batch)
    for place in places:
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
    batch = (data.latents_at(rows, view, noise=draw), data.conditions_at(rows, view), text,
             torch.tensor(times), torch.from_numpy(np.stack(noise)))  # fmt: skip
    nexts = [_visit(data, seed, place + training.batch) for place in places]
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
