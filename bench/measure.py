"""Measure what methods take, each alone: in a suite, or at any width on a base with random weights.

A training step is the benchmark's own (draw a batch, loss, backward pass, clipping, AdamW), and so is
sampling. On random weights yardsticks are measured beside the methods (baselines.yardsticks).
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.base.load import Base
from bench.base.random import build_base, shape_like
from bench.child import PROGRAM, child
from bench.config import RunConfig, RunSpec, Sampler, Training
from bench.cost import (
    TIMINGS_FILE,
    Timing,
    add_timing,
    be_deterministic,
    libraries_bytes,
    load_timings,
    peak_memory,
    reset_peak_memory,
    timing_key,
)
from bench.data.latents import Prepared
from bench.plan import CPU_ALLOWANCE, Setting, footprint, stand_in
from bench.record import MACHINE, digest_sources, environment
from bench.running import Run
from bench.sampling import sample_images
from bench.suites import method_of, resolve, suite_of, task_of
from bench.training.engine import Engine, Execution, check_execution, rebuilt
from bench.training.loop import training_loss
from bench.training.processes import find_device
from bench.types import BenchError, refusal

YARDSTICKS = ("UNetBackward", "UNetTrained", "DiffusersControlNet")
SAMPLER = Sampler(name="ddim", steps=2, guidance=7.5)  # on random weights: every step takes the same
_WARM_UP = 3
_PACKAGES = ("torch", "diffusers", "numpy")


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured. steps: of the optimiser; batches: of sampled items; rounds: over all methods."""

    steps: int = 30
    batches: int = 2
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class Stand:
    """What stands in for a suite's base: its likeness with random weights, and random items.

    like: "sd15" or "sd21"; width: of the UNet's first level; size: of images in pixels, None for its own.
    """

    like: str
    width: int = 320
    size: int | None = None

    def argv(self) -> list[str]:
        """Return the command line's arguments that say so."""
        size = [] if self.size is None else ["--size", str(self.size)]
        return ["--random", self.like, "--width", str(self.width), *size]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a method's denoiser over its base, and items to train on and to sample."""

    spec: RunSpec
    denoiser: Any
    base: Base
    train: Prepared
    evaluation: Prepared


def measure_costs(
    configs: Sequence[RunConfig],
    amount: Amount,
    *,
    stand: Stand | None = None,
    say: Callable[[str], None],
) -> Path:
    """Measure what methods take, each in a process of its own and alone; return the timings' file.

    Of the rounds over all methods the fastest counts; they go in turns, so that a slow spell of the
    machine does not meet one method alone. What was measured earlier stays until a method's last round
    is done. Several methods on random weights (stand) have the yardsticks beside them. BenchError if
    what was measured earlier is of another machine.
    """
    results, here = configs[0].results, machine(find_device(configs[0].device))
    load_timings(results, machine=here)
    if len(configs) == 1 and amount.rounds == 1:
        timing = measure_random(configs[0], stand, amount) if stand else measure(run_of(configs[0]), amount)
        return add_timing(results, timing, machine=here)
    timed: dict[str, RunConfig] = {}
    for config in configs:
        method, options = method_of(config)
        timed.setdefault(timing_key(method.name, options), config)
    if stand and len(configs) > 1:
        timed |= {n: replace(configs[0], method=f"baselines.yardsticks:{n}") for n in YARDSTICKS}
    turns = list(itertools.product(range(amount.rounds), timed.items()))
    rounds: dict[str, Timing] = {}
    for number, (turn, (key, config)) in enumerate(turns, start=1):
        timing = _measured_alone(config, amount, stand)
        rounds[key] = rounds[key].with_round(timing) if turn else timing
        say(f"[{number}/{len(turns)}] {timing.method}: measured")
        if turn == amount.rounds - 1:
            add_timing(results, rounds[key], machine=here)
    return results / TIMINGS_FILE


def _measured_alone(config: RunConfig, amount: Amount, stand: Stand | None) -> Timing:
    """Measure a method once in a process of its own."""
    argv = ["cost", "--rounds", "1", "--train-steps", str(amount.steps)]
    argv += ["--sample-batches", str(amount.batches), *(stand.argv() if stand else [])]
    with tempfile.TemporaryDirectory() as scratch:
        asked = json.dumps(replace(config, results=Path(scratch)).as_dict())
        code = child([*argv, "--config", asked], alone=True).wait()
        timings = load_timings(Path(scratch))
    if code or timings is None:
        raise BenchError(f"{config.method} could not be measured (exit code {code}), see above.")
    return timings.entries[0]


def run_of(config: RunConfig) -> Subject:
    """Return a method of a suite, as a run has it; untrained, since its cost does not depend on weights."""
    run = Run(resolve(config))
    return Subject(
        spec=run.spec,
        denoiser=run.denoiser,
        base=run.base,
        train=run.train_data,
        evaluation=run.eval_data,
    )


def measure_random(config: RunConfig, stand: Stand, amount: Amount) -> Timing:
    """Measure a method on a base with random weights, and say what `bench plan` expects.

    BenchError for what the device or the method cannot do.
    """
    import torch

    (method, options), task, device = method_of(config), task_of(config), find_device(config.device)
    suite, shape = suite_of(config), shape_like(stand.like, width=stand.width, size=stand.size)
    batch, precision = config.train_batch or 16, config.precision or "fp32"
    training, execution = (
        Training(batch=batch, loss="eps", mirror=False, precision=precision),
        Execution.of(config),
    )
    check_execution(execution, training, device=device)
    reason = refusal(method, task)
    if reason:
        raise BenchError(f"{config.method} cannot do {task.name}: {reason}")
    spec = RunSpec(
        config=config,
        suite=replace(suite, training=training, sampler=SAMPLER),
        task=task,
        method=method,
        budget=suite.budget(None),
        options=options,
        learning_rate=1e-5,
        device=device,
    )
    process = libraries_bytes()
    be_deterministic(device)
    base = build_base(shape, device=device)
    torch.manual_seed(0)
    denoiser = method.build(base, task, **options).to(device)
    items = stand_in(shape, task=task, count=max(batch, amount.batches * config.sample_batch))
    timing = measure(Subject(spec=spec, denoiser=denoiser, base=base, train=items, evaluation=items), amount)
    setting = Setting(
        training=training,
        sampler=SAMPLER,
        execution=execution,
        sampled=config.sample_batch,
        cuda=device != "cpu",
    )
    counted = footprint(method, options=options, shape=shape, task=task, setting=setting)
    setup = {"base": shape.name, "size": shape.size, "precision": precision, "batch": batch}
    return replace(
        timing,
        setup={**setup, "sampled": setting.sampled, "steps": SAMPLER.steps, **execution.as_dict()},
        planned_memory_bytes=counted.peak if setting.cuda else round(process + CPU_ALLOWANCE * counted.peak),
        train_flops=counted.train_flops or None,
    )


def measure(subject: Subject, amount: Amount) -> Timing:
    """Return the timing of a subject: training steps, then sampled batches, each after a warm-up.

    The rate is that of the middle step, so that a hiccup of the machine does not count.
    """
    code, spec = code_measured(), subject.spec  # before, as somebody may edit the sources meanwhile
    suite, device = spec.suite, spec.device
    reset_peak_memory(device)
    seconds = _training_steps(subject, amount.steps)
    peak = peak_memory(device) if seconds else 0
    subject.denoiser.eval()
    reset_peak_memory(device)
    few = replace(spec, suite=replace(suite, sampler=replace(suite.sampler, steps=1)))
    next(sample_images(subject.denoiser, few, base=subject.base, data=subject.evaluation))
    begun = time.perf_counter()
    batches = sample_images(subject.denoiser, spec, base=subject.base, data=subject.evaluation)
    items = sum(len(ids) for ids, _ in itertools.islice(batches, amount.batches))
    sampling = time.perf_counter() - begun
    return Timing(
        method=spec.method.name,
        options=dict(spec.options),
        task=spec.task.name,
        train_images_per_second=suite.training.batch / statistics.median(seconds) if seconds else None,
        sample_seconds_per_image=sampling / (items * suite.sampler.draws),
        peak_memory_bytes=max(peak, peak_memory(device)),
        steps=amount.steps,
        items=items,
        code=code,
    )


def _training_steps(subject: Subject, count: int) -> list[float]:
    """Take training steps after a warm-up; return the seconds of each, none where nothing is trained."""
    import torch

    denoiser, training, device = subject.denoiser, subject.spec.suite.training, subject.spec.device
    execution = Execution.of(subject.spec.config)
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    if not parameters:
        return []
    optimiser = torch.optim.AdamW(
        parameters, lr=1e-5, weight_decay=training.weight_decay, fused=execution.fused or None
    )
    loss = partial(training_loss, denoiser, base=subject.base, data=subject.train, training=training, seed=0)
    times = [time.perf_counter()]
    warm_up = min(_WARM_UP, count)
    with rebuilt(denoiser, execution):
        engine = Engine(
            denoiser,
            optimiser,
            loss=lambda step, places: loss(step=step, places=places),
            training=training,
            device=device,
            execution=execution,
        )
        for step in range(warm_up + count):
            engine.backward(step)
            engine.descend(parameters, clip=training.clip_norm)
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)][warm_up:]


def machine(device: str) -> dict[str, Any]:
    """Return what tells this machine from others, as records do."""
    import torch

    here = environment(device=device, threads=torch.get_num_threads())
    return {key: here[key] for key in MACHINE if key in here}


def code_measured(root: Path = PROGRAM.parent) -> dict[str, str]:
    """Return what tells this code from other code: a digest of the sources, versions of packages."""
    return {"sources": digest_sources(root)[:12], **{n: metadata.version(n) for n in _PACKAGES}}
