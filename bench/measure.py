"""Measure what methods take, each alone: in a suite, or at any width on a base with random weights.

A training step is the benchmark's own (draw a batch, loss, backward pass, clipping, AdamW), and so is
sampling. On random weights yardsticks are measured beside the methods (baselines.yardsticks).
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench import cost
from bench.base.random import build_base, shape_like
from bench.child import PROGRAM, child, together
from bench.config import Amount, RunConfig, RunSpec, Sampler, Training, argv
from bench.cost import Timing
from bench.plan import CPU_ALLOWANCE, Setting, footprint, stand_in
from bench.record import MACHINE, digest_sources, environment
from bench.running import Run
from bench.sampling import sample_images
from bench.suites import method_of, resolve
from bench.training import engine
from bench.training.checkpoint import Trainable, Writer
from bench.training.loop import training_loss
from bench.types import BenchError, Hooks, refusal

YARDSTICKS = ("UNetBackward", "UNetTrained", "DiffusersControlNet")
SAMPLER = Sampler(name="ddim", steps=2, guidance=7.5)  # on random weights: every step takes the same
_WARM_UP = 3
_STEPS = 10
_PACKAGES = ("torch", "diffusers", "numpy")


def measure_costs(configs: Sequence[RunConfig], amount: Amount, *, say: Callable[[str], None]) -> Path:
    """Measure what methods take, each in a process of its own and alone; return the timings' file.

    Of the rounds over all methods the fastest counts; they go in turns, so that a slow spell of the
    machine does not meet one method alone. What was measured earlier stays until a method's last round
    is done. Several methods on random weights have the yardsticks beside them. BenchError if what was
    measured earlier is of another machine.
    """
    results, here = configs[0].results, machine(engine.find_device(configs[0].device))
    cost.load_timings(results, machine=here)
    if engine.launched() > 1 or (len(configs) == 1 and amount.rounds == 1):
        for config in configs:
            found = measure_random(config, amount) if amount.random else measure(Run(resolve(config)), amount)
            if engine.speaks():
                cost.add_timing(results, found, machine=here)
        return results / cost.TIMINGS_FILE
    timed: dict[str, RunConfig] = {}
    for config in configs:
        method, options = method_of(config)
        timed.setdefault(cost.timing_key(method.name, options), config)
    if amount.random and len(configs) > 1:
        timed |= {n: replace(configs[0], method=f"baselines.yardsticks:{n}") for n in YARDSTICKS}
    rounds: dict[str, Timing] = {}
    turns = list(itertools.product(range(1, amount.rounds + 1), timed.items()))
    for number, (turn, (key, config)) in enumerate(turns, start=1):
        timing = _measured_alone(config, replace(amount, rounds=1))
        rounds[key] = rounds[key].with_round(timing) if turn > 1 else timing
        say(f"[{number}/{len(turns)}] {timing.method}: measured")
        if turn == amount.rounds:
            cost.add_timing(results, rounds[key], machine=here)
    return results / cost.TIMINGS_FILE


def _measured_alone(config: RunConfig, amount: Amount) -> Timing:
    with tempfile.TemporaryDirectory() as scratch:
        asked = json.dumps(replace(config, results=Path(scratch)).as_dict())
        words = ["cost", *argv(amount), "--config", asked]
        count = 1 if amount.random else engine.count_processes(resolve(config))
        code = together(words, count=count, answers=False) if count > 1 else child(words, alone=True).wait()
        timings = cost.load_timings(Path(scratch))
    if code or timings is None:
        raise BenchError(f"{config.method} could not be measured (exit code {code}), see above.")
    return timings.entries[0]


def measure_random(config: RunConfig, amount: Amount) -> Timing:
    """Measure a method on random weights, and say what a plan expects; BenchError for what cannot be."""
    import torch

    spec = resolve(replace(config, base=config.base or Path("random")))  # which nobody reads
    method, task, options, device = spec.method, spec.task, spec.options, spec.device
    shape = shape_like(amount.random or "", width=amount.width, size=amount.size)
    batch, precision = config.train_batch or 16, config.precision or "fp32"
    training = Training(batch=batch, loss="eps", mirror=False, precision=precision)
    spec = replace(spec, suite=replace(spec.suite, training=training, sampler=SAMPLER))
    setting = Setting.of(spec.suite, config, cuda=device != "cpu")
    engine.check_execution(setting.execution, training, device=device)
    reason = refusal(method, task)
    if reason:
        raise BenchError(f"{config.method} cannot do {task.name}: {reason}")
    process = cost.libraries_bytes()
    cost.be_deterministic(device)
    base = build_base(shape, device=device)
    torch.manual_seed(0)
    denoiser = method.build(base, task, **options).to(device)
    items = stand_in(shape, task=task, count=max(batch, amount.batches * config.sample_batch))
    run = SimpleNamespace(spec=spec, denoiser=denoiser, base=base, train_data=items, eval_data=items)
    timing = measure(run, amount)
    counted = footprint(method, options=options, shape=shape, task=task, setting=setting)
    setup = {"base": shape.name, "size": shape.size, "precision": precision, "batch": batch}
    peak = counted["peak"]
    return replace(
        timing,
        setup={**setup, "sampled": setting.sampled, "steps": SAMPLER.steps, **engine.carried_out(config)},
        planned_memory_bytes=peak if setting.cuda else round(process + CPU_ALLOWANCE * peak),
        train_flops=counted["train_flops"] or None,
    )


def measure(run: Any, amount: Amount) -> Timing:
    """Return the timing of a run: training steps, then sampled batches, each after a warm-up.

    run: a `bench.running.Run`, or what has its spec, denoiser, base and data; untrained, since costs do not
    depend on weights. The rate is that of the middle step, so that a hiccup of the machine does not count.
    """
    code, spec = code_measured(), run.spec  # before, as somebody may edit the sources meanwhile
    suite, device = spec.suite, spec.device
    sample = partial(sample_images, run.denoiser, base=run.base, data=run.eval_data)
    _ = run.train_data  # encoded before anything is measured
    cost.reset_peak_memory(device)
    seconds = _training_steps(run, amount.steps)
    peak = cost.peak_memory(device) if seconds else 0
    run.denoiser.eval()
    cost.reset_peak_memory(device)
    next(sample(replace(spec, suite=replace(suite, sampler=replace(suite.sampler, steps=1)))), None)
    begun = time.perf_counter()
    drawn = itertools.islice(sample(spec), amount.batches)
    items = sum(len(ids) for ids, _ in drawn) or 1  # few may be others'
    sampling = time.perf_counter() - begun
    return Timing(
        method=spec.method.name,
        options=dict(spec.options),
        task=spec.task.name,
        train_images_per_second=suite.training.batch / statistics.median(seconds) if seconds else None,
        sample_seconds_per_image=sampling / (items * suite.sampler.draws * engine.join(device).num_processes),
        peak_memory_bytes=max(peak, cost.peak_memory(device)),
        steps=amount.steps,
        items=items,
        code=code,
        setup=_setup(spec),
    )


def rehearse(config: RunConfig, *, hooks: Hooks | None = None) -> tuple[Timing, dict[str, float]]:
    """Take ten steps of every stage of a run at its full size, in a folder of its own that goes afterwards.

    Every process of a launch does its share. Base, data and judges must be there; items that no run has
    encoded yet are encoded, a few batches of them. Returns the timing, and beside it "copied": bytes of a
    checkpoint a second, while training waits; "judged", "encoded": seconds an image.
    """
    place, spec = config.results / "rehearsal", resolve(config)
    batch, train = spec.suite.training.batch, len(spec.suite.splits().side("train"))
    few = replace(
        config,
        results=place,
        limit=max(10, config.sample_batch * engine.launched()),
        train_images=_STEPS * batch,
        train_items=min(train, 4 * batch),
        epochs=None,
    )
    run = Run(resolve(few), hooks)
    try:
        record = run.all()
        timing = measure(run, Amount(steps=_STEPS, batches=1))
        weights, rank = Trainable(run.denoiser), run.processes.process_index
        writer, begun = Writer(place / f"{rank}.ckpt", keep=1), time.perf_counter()
        writer.save(step=0, weights=weights)
        seconds = time.perf_counter() - begun
        writer.close()
        images, begun = run.eval_data.images(range(min(4, len(run.eval_ids)))), time.perf_counter()
        run.base.encode_posterior(images)
        run.base.encode_text(["a picture"] * len(images))
        encoded = (time.perf_counter() - begun) / len(images)
        run.processes.wait_for_everyone()
    finally:
        if engine.speaks():
            shutil.rmtree(place, ignore_errors=True)
    copied = sum(t.numel() * t.element_size() for t in weights.parameters.values()) / seconds
    judged = (record.cost.score_seconds or 0.0) / record.splits.eval.n
    return timing, {"copied": copied or 1.0, "judged": judged, "encoded": encoded}


def _setup(spec: RunSpec) -> dict[str, Any]:
    """Return what changes times and is not the suite's own, as `cost.setup_of` reads it from records."""
    precision, processes = spec.suite.training.precision, engine.join(spec.device).num_processes
    given: dict[str, Any] = {"precision": precision if precision != Training.precision else None}
    given |= {"batch": spec.config.train_batch, "processes": processes if processes > 1 else None}
    how = {k: v for k, v in engine.carried_out(spec.config).items() if k != "track"}
    return {**{name: value for name, value in given.items() if value}, **how}


def _training_steps(run: Any, count: int) -> list[float]:
    """Take training steps after a warm-up; return the seconds of each, none where nothing is trained."""
    import torch

    denoiser, training, config = run.denoiser, run.spec.suite.training, run.spec.config
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    if not parameters:
        return []
    how: dict[str, Any] = {"weight_decay": training.weight_decay, "fused": config.fused or None}
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, **how)
    loss = partial(training_loss, denoiser, base=run.base, data=run.train_data, training=training, seed=0)
    times, warm_up = [time.perf_counter()], min(_WARM_UP, count)
    with engine.rebuilt(denoiser, config):
        where: dict[str, Any] = {"training": training, "device": run.spec.device, "config": config}
        steps = engine.Engine(denoiser, optimiser, loss=loss, **where)
        for step in range(warm_up + count):
            steps.backward(step)
            steps.descend(parameters, clip=training.clip_norm or math.inf)
            if run.spec.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)][warm_up:]


def machine(device: str) -> dict[str, Any]:
    """Return what tells this machine from others, as records do."""
    here = environment(device=device, threads=engine.count_threads())
    return {key: here[key] for key in MACHINE if key in here}


def code_measured(root: Path = PROGRAM.parent) -> dict[str, str]:
    """Return what tells this code from other code: a digest of the sources, versions of packages."""
    return {"sources": digest_sources(root)[:12], **{n: metadata.version(n) for n in _PACKAGES}}
