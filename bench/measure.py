"""Measure what a method takes: training rate, seconds an image and peak memory, with nothing beside."""

from __future__ import annotations

import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.child import PROGRAM
from bench.cost import peak_memory, reset_peak_memory
from bench.record import MACHINE, digest_sources, environment
from bench.run import Run
from bench.sample import sample_images
from bench.timings import Timing
from bench.train import train

_WARM_UP = 3
_PACKAGES = ("torch", "diffusers", "numpy")


def measure(run: Run, *, steps: int, batches: int) -> Timing:
    """Return the timing of a run's method, untrained: its cost does not depend on its weights.

    steps: optimiser steps measured; batches: of sampled items measured; both after a warm-up. The rate
    is that of the middle step, so that a hiccup of the machine does not count.
    """
    code = code_measured()  # before, as somebody may edit it meanwhile
    rate, train_peak = _train(run, steps)
    seconds, items, sample_peak = _sample(run, batches)
    return Timing(
        method=run.spec.method.name,
        options=dict(run.options),
        task=run.spec.task,
        train_images_per_second=rate,
        sample_seconds_per_image=seconds,
        peak_memory_bytes=max(train_peak, sample_peak),
        steps=steps,
        items=items,
        code=code,
    )


def machine(run: Run) -> dict[str, Any]:
    """Return what tells this machine from others, as records do."""
    import torch

    found = environment(device=run.spec.device, threads=torch.get_num_threads())
    return {key: found[key] for key in MACHINE if key in found}


def code_measured(root: Path = PROGRAM.parent) -> dict[str, str]:
    """Return what tells this code from other code: a digest of the sources, versions of packages."""
    return {"sources": digest_sources(root)[:12], **{n: metadata.version(n) for n in _PACKAGES}}


def _train(run: Run, steps: int) -> tuple[float | None, int]:
    batch, times = run.spec.suite.training.batch, [time.perf_counter()]
    data = run.train_data
    reset_peak_memory(run.spec.device)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            run.denoiser,
            base=run.base,
            data=data,
            training=run.spec.suite.training,
            images=(_WARM_UP + steps) * batch,
            learning_rate=run.learning_rate,
            seed=run.spec.seed,
            folder=Path(folder),
            execution=run.spec.execution,
            checkpoint_every=_WARM_UP + steps,
            tick=lambda step, total, loss: times.append(time.perf_counter()),
        )
    if not result.steps:
        return None, 0
    taken = [b - a for a, b in zip(times, times[1:], strict=False)][_WARM_UP:]
    return batch / statistics.median(taken[:-1] or taken), peak_memory(run.spec.device)


def _sample(run: Run, batches: int) -> tuple[float, int, int]:
    """Sample `batches` batches after one that warms up; return seconds an image, items, peak."""
    run.denoiser.eval()
    data = run.eval_data
    reset_peak_memory(run.spec.device)
    drawn = sample_images(
        run.denoiser,
        base=run.base,
        data=data,
        sampler=run.spec.suite.sampler,
        seed=run.spec.seed,
        batch=run.spec.batch,
    )
    next(drawn)
    begun, items = time.perf_counter(), 0
    for _, (ids, _) in zip(range(batches), drawn, strict=False):
        items += len(ids)
    seconds = time.perf_counter() - begun
    return seconds / max(items, 1), items, peak_memory(run.spec.device)
