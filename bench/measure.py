"""Measure what a method takes: training rate, seconds an image and peak memory, with nothing beside."""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.child import PROGRAM, child
from bench.config import RunConfig
from bench.cost import peak_memory, reset_peak_memory
from bench.record import MACHINE, digest_sources, environment
from bench.running import Run
from bench.sampling import sample_images
from bench.suites import method_of, resolve
from bench.timings import (
    TIMINGS_FILE,
    Timing,
    Timings,
    add_timing,
    load_timings,
    timing_key,
    with_timing_added,
)
from bench.training.loop import train
from bench.types import BenchError, Hooks

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
        options=dict(run.spec.options),
        task=run.spec.task.name,
        train_images_per_second=rate,
        sample_seconds_per_image=seconds,
        peak_memory_bytes=max(train_peak, sample_peak),
        steps=steps,
        items=items,
        code=code,
    )


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured. steps: of the optimiser; batches: of sampled items; rounds: over all methods.

    further: whether rounds are added to what was measured earlier, see `add_timing`.
    """

    steps: int = 30
    batches: int = 2
    rounds: int = 3
    further: bool = False


def measure_costs(configs: Sequence[RunConfig], amount: Amount, *, say: Callable[[str], None]) -> Path:
    """Measure what methods take, each in a process of its own and alone; return the timings' file.

    Of the rounds over all methods the fastest counts; they go in turns, so that a slow spell of the
    machine does not meet one method alone. What was measured earlier stays until a method's last round
    is done.
    """
    results = configs[0].results
    if len(configs) == 1 and amount.rounds == 1:
        run = Run(resolve(configs[0]))
        timing = measure(run, steps=amount.steps, batches=amount.batches)
        return add_timing(results, timing, machine=machine(run), further=amount.further)
    turns = list(itertools.product(range(amount.rounds), _timed_once(configs)))
    with tempfile.TemporaryDirectory() as scratch:
        for number, (turn, config) in enumerate(turns, start=1):
            made = _round_of(config, amount, folder=Path(scratch) / config.method.replace(":", "-"))
            say(f"[{number}/{len(turns)}] {config.method}: measured")
            keep = add_timing if turn == amount.rounds - 1 else with_timing_added  # refuses early
            keep(results, made.entries[0], machine=made.machine, further=amount.further)
    return results / TIMINGS_FILE


def _round_of(config: RunConfig, amount: Amount, *, folder: Path) -> Timings:
    """Measure a method once more in a process of its own; return what its folder holds by then."""
    counts = ["--train-steps", str(amount.steps), "--sample-batches", str(amount.batches)]
    asked = json.dumps(replace(config, results=folder).as_dict())
    code = child(["cost", "--rounds", "1", "--further", *counts, "--config", asked], alone=True).wait()
    made = load_timings(folder)
    if code or made is None:
        raise BenchError(f"{config.method} could not be measured (exit code {code}), see above.")
    return made


def _timed_once(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the configurations without those whose options cost what an earlier one's do."""
    found: dict[str, RunConfig] = {}
    for config in configs:
        method, options = method_of(config)
        found.setdefault(timing_key(method.name, options), config)
    return list(found.values())


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
    budget = replace(run.spec.budget, train_images=(_WARM_UP + steps) * batch, images_of={})
    config = replace(run.spec.config, checkpoint_every=_WARM_UP + steps)
    spec = replace(run.spec, budget=budget, config=config)

    class Clock(Hooks):
        def tick(self, done: int, total: int, note: str = "") -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        result = train(run.denoiser, spec, base=run.base, data=data, folder=place, hooks=Clock())
    if not result.steps:
        return None, 0
    taken = [b - a for a, b in zip(times, times[1:], strict=False)][_WARM_UP:]
    return batch / statistics.median(taken[:-1] or taken), peak_memory(run.spec.device)


def _sample(run: Run, batches: int) -> tuple[float, int, int]:
    """Sample `batches` batches after one that warms up; return seconds an image, items, peak."""
    run.denoiser.eval()
    data = run.eval_data
    reset_peak_memory(run.spec.device)
    drawn = sample_images(run.denoiser, run.spec, base=run.base, data=data)
    next(drawn)
    begun, items = time.perf_counter(), 0
    for _, (ids, _) in zip(range(batches), drawn, strict=False):
        items += len(ids)
    seconds = time.perf_counter() - begun
    return seconds / max(items, 1), items, peak_memory(run.spec.device)
