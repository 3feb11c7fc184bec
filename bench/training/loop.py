"""The only training loop: every method sees the same items, noise, timesteps and prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base
from bench.config import RunSpec, Training
from bench.cost import peak_memory
from bench.data.latents import Prepared
from bench.randomness import generator
from bench.training.checkpoint import NOTHING, Trainable, TrainResult, Writer, check_finite, load_checkpoint
from bench.training.engine import Engine, carried_out, gathered, join, rebuilt
from bench.types import BenchError, Hooks, Stopped

if TYPE_CHECKING:
    import torch

CHECKPOINT = "train.ckpt"
_ADAM_EPS = 1e-8


class _Progress(SimpleNamespace):
    """What a TrainResult tells, as it grows; a checkpoint holds it. pending: losses since the last point."""

    pending: list[float]

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)

    def add(self, step: int, loss: float, *, every: int) -> None:
        self.pending.append(loss)
        if step % every == 0:
            self.curve.append((step, round(float(np.mean(self.pending)), 6)))
            self.pending = []


class Average(Trainable):
    """An exponential moving average of parameters, from where they are: e <- decay e + (1 - decay) w."""

    def __init__(self, trainable: Trainable, *, decay: float) -> None:
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        self.trainable, self._average = trainable, get_ema_multi_avg_fn(decay)
        self.parameters = {n: t.clone() for n, t in trainable.state_dict().items()}

    def update(self) -> None:
        """Take in the parameters as they are now."""
        self._average([*self.parameters.values()], [*self.trainable.state_dict().values()], 0)

    def apply(self) -> None:
        """Put the average in the place of the parameters."""
        self.trainable.load_state_dict(self.parameters)


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

    spec: its budget says how many images, rounded down to whole batches. folder: the run's own for work.
    hooks: tick every step; asked to stop, in any process, it writes a checkpoint and raises Stopped. With
    `training.ema` the denoiser ends with the average. BenchError when the loss is not finite.
    """
    import torch

    trainable = Trainable(denoiser)
    if not trainable.parameters:
        return NOTHING
    hooks, training, config, processes = hooks or Hooks(), spec.suite.training, spec.config, join(base.device)
    if training.captions == "random" and not hasattr(data.dataset, "captions_of"):
        raise BenchError("--captions random: these data have one caption of each picture. Leave it away.")
    steps = max(1, spec.budget.images(spec.method.name) // training.batch)
    parameters = list(trainable.parameters.values())
    groups = parameter_groups(denoiser, trainable, rate=spec.learning_rate, decay=training.weight_decay)
    optimiser = torch.optim.AdamW(groups, fused=config.fused or None)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, steps, training.warmup_share, training.schedule)
    )
    loss_of = partial(training_loss, denoiser, base=base, data=data, training=training, seed=config.seed)
    how: dict[str, Any] = {"training": training, "device": base.device, "config": config, "folder": folder}
    average = Average(trainable, decay=training.ema) if training.ema else None
    progress = _Progress(seconds=0.0, curve=[], pending=[], dead=0, starts=[], peak=None)
    lower = f"Lower --learning-rate, now {spec.learning_rate:g}, and start with --again."
    with (
        rebuilt(denoiser, config),
        closing(Engine(denoiser, optimiser, loss=loss_of, **how)) as engine,
        closing(Writer(folder / CHECKPOINT)) as writer,
    ):
        kept = {"weights": trainable, "optimiser": optimiser, "schedule": schedule, "progress": progress}
        kept |= {"ema": average, "scaler": engine.scaler}
        parts: dict[str, Any] = {name: part for name, part in kept.items() if part is not None}
        saved = time.monotonic()
        start = load_checkpoint(folder / CHECKPOINT, say=hooks.say, **parts)
        _check_alike(gathered(processes, [start]), folder)
        if start < steps:
            progress.starts.append(
                {"step": start, "processes": processes.num_processes, **carried_out(config)}
            )
            settings = {"learning_rate": spec.learning_rate, "batch": training.batch, "steps": steps}
            engine.begin_log(folder.parent.name, {**settings, "precision": training.precision})
        for step in range(start, steps):
            begun, rate = time.perf_counter(), float(schedule.get_last_lr()[0])
            loss = engine.backward(step)
            check_finite("loss", loss, step=step, steps=steps, advice=lower)
            progress.dead = sum(p.numel() for p in parameters if p.grad is None)
            norm = engine.descend(parameters, clip=training.clip_norm or math.inf)
            check_finite("gradient", norm, step=step, steps=steps, advice=lower)
            schedule.step()
            if average is not None:
                average.update()
            progress.add(step + 1, loss, every=max(1, steps // 100))
            taken = time.perf_counter() - begun
            progress.seconds += taken
            engine.log(step + 1, loss=loss, learning_rate=rate, images_per_second=training.batch / taken)
            code = int(gathered(processes, [hooks.stop() or 0]).max())
            if config.checkpoint_every:
                due = (step + 1) % config.checkpoint_every == 0
            else:
                due = time.monotonic() - saved >= 60 * config.checkpoint_minutes
            if (due or step + 1 == steps or code) and processes.is_main_process:
                progress.peak = max(progress.peak or 0, peak_memory(base.device))
                writer.save(step=step + 1, **parts)  # which hold nothing of one process alone
                saved = time.monotonic()
            hooks.tick(step + 1, steps, f"loss {loss:.4f}")
            if code and step + 1 < steps:
                writer.wait()
                raise Stopped(code)
        writer.wait()
    if average is not None:
        average.apply()
    return TrainResult(
        steps=steps,
        images=steps * training.batch,
        seconds=progress.seconds,
        dead=progress.dead,
        curve=progress.curve,
        starts=progress.starts,
        peak_memory_bytes=progress.peak,
    )


def _check_alike(starts: np.ndarray, folder: Path) -> None:
    """Raise BenchError where processes found checkpoints of different steps, [P,1]."""
    if starts.min() != starts.max():
        raise BenchError(
            f"the processes found checkpoints of different steps ({starts.min():.0f} to {starts.max():.0f}) "
            f"in {folder}. All nodes need the same --results folder, on shared storage."
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

    places: which of the batch, None for all. For timesteps other than those drawn see Method.
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

    steps: timesteps of the diffusion. places: which of the batch, None for all. encode: captions, where one
    of several is drawn. Each example has a generator of its own (seed, item, place in the run), each epoch a
    permutation, so a resumed or distributed run sees the same.
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
    return generator(seed, "order", index=epoch).permutation(count)
