"""How fast steps are at a given size, on random weights: seconds, peak memory, share of the peak rate.

A training step is the benchmark's own: draw a batch, loss, backward pass, clipping, AdamW. A sampling
step runs all guidance branches and the sampler. Beside the methods stand yardsticks: a UNet alone, and
a step made as in the training script for ControlNets that diffusers publishes.
"""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from bench.base.load import Base
from bench.base.random import Shape, build_base, shape_like
from bench.child import child
from bench.config import RunConfig, Sampler, Training
from bench.content import atomic_write, read_json, write_json
from bench.cost import be_deterministic, libraries_bytes, peak_memory, reset_peak_memory
from bench.data.latents import Prepared
from bench.footprint import Setting, footprint, let_go, stand_in
from bench.gpus import recognise
from bench.plan import CPU_ALLOWANCE
from bench.record import device_words, environment
from bench.sampling import build_scheduler
from bench.strict import Count, FromFile, Positive, Text
from bench.suites import method_of, task_of
from bench.training.engine import Engine, Execution, autocast, check_execution, micro_batches, rebuilt
from bench.training.loop import training_loss
from bench.training.processes import find_device
from bench.types import BenchError, Method, Task, refusal, unknown
from bench.yardsticks import YARDSTICKS

FILE, TABLE = "speed.json", "speed.md"


@dataclass(frozen=True, kw_only=True)
class SpeedSpec:
    """What is measured. batch, sampled: images of a training and a sampling step. rounds: measured."""

    shape: Shape
    task: Task
    batch: int
    sampled: int
    precision: str = "fp32"
    device: str = "cpu"
    execution: Execution = Execution()
    rounds: int = 5

    @property
    def training(self) -> Training:
        """The loop's settings."""
        return Training(batch=self.batch, loss="eps", mirror=False, precision=self.precision)

    @property
    def setting(self) -> Setting:
        """The same for a plan."""
        parts = micro_batches(self.batch, micro=self.execution.micro_batch)
        return Setting(
            training=self.training,
            sampler=SAMPLER,
            execution=self.execution,
            micro=len(parts[0]),
            accumulate=len(parts) > 1,
            sampled=self.sampled,
            cuda=self.device != "cpu",
            alone=True,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what tells one measurement from another."""
        return {
            "base": self.shape.name,
            "size": self.shape.size,
            "task": self.task.name,
            "batch": self.batch,
            "sampled": self.sampled,
            "precision": self.precision,
            "execution": self.execution.as_dict(),
            "rounds": self.rounds,
        }


SAMPLER = Sampler(name="ddim", steps=50, guidance=7.5)


@dataclass(frozen=True, kw_only=True)
class Spread(FromFile):
    """Seconds of a step: the middle of the rounds, the least and the most."""

    median: Positive
    least: Positive
    most: Positive


@dataclass(frozen=True, kw_only=True)
class Speed(FromFile):
    """What one subject took; None where there is nothing to train or to sample.

    Bytes: the peak in training steps and in sampling steps, measured and, where it was planned,
    planned (of the process on a CPU, of the allocator on a GPU). Operations an image as in Footprint.
    """

    name: Text
    title: Text
    parameters: Count
    trainable: Count
    train: Spread | None
    sample: Spread | None
    encode: Spread | None
    train_bytes: Count | None
    sample_bytes: Count | None
    planned_train_bytes: Count | None
    planned_sample_bytes: Count | None
    train_flops: Count | None
    sample_flops: Count | None


@with_config(extra="allow")
class _Machine(TypedDict):
    processor: Text
    threads: Count


class _Spec(TypedDict):
    base: Text
    size: Count
    task: Text
    batch: Count
    sampled: Count
    precision: Text
    execution: Mapping[Text, Any]
    rounds: Count


@dataclass(frozen=True, kw_only=True)
class _File(FromFile):
    """What the file of a folder holds; see `SpeedSpec.as_dict` for spec."""

    machine: _Machine
    spec: _Spec
    command: Text
    entries: tuple[Speed, ...]


@dataclass(frozen=True, kw_only=True)
class Stand:
    """What stands in for a base: its likeness with random weights, and where measurements go.

    like: "sd15" or "sd21"; width: of the UNet's first level; size: of images in pixels, None for its own.
    """

    like: str
    width: int = 320
    size: int | None = None
    rounds: int = 5
    out: Path = Path("results/speed")

    def words(self) -> list[str]:
        """Return the command line's words that say so."""
        size = [] if self.size is None else ["--size", str(self.size)]
        given = ["--random", self.like, "--width", str(self.width), "--rounds", str(self.rounds)]
        return [*given, *size, "--out", str(self.out)]

    def spec(self, config: RunConfig) -> SpeedSpec:
        """Return what is measured, checked; BenchError for what the device cannot do."""
        device, batch = find_device(config.device), config.train_batch or 16
        execution, precision = Execution.of(config), config.precision or "fp32"
        check_execution(execution, Training(batch=batch, precision=precision), device=device)
        return SpeedSpec(
            shape=shape_like(self.like, width=self.width, size=self.size),
            task=task_of(config),
            batch=batch,
            sampled=config.sample_batch,
            precision=precision,
            device=device,
            execution=execution,
            rounds=self.rounds,
        )


def measure_speeds(
    configs: Sequence[RunConfig], stand: Stand, *, yardstick: str | None, say: Callable[[str], None]
) -> list[Path]:
    """Measure steps of methods, and of yardsticks beside several; return the files written.

    Several are measured in a process each, so that the peak memory is each one's own. yardstick: that
    one alone. BenchError for unknown names, and where one could not be measured.
    """
    spec = stand.spec(configs[0])
    if yardstick is not None:
        if yardstick not in YARDSTICKS:
            raise unknown("yardstick", yardstick, YARDSTICKS)
        found = measure_yardstick(yardstick, spec=spec)
        return add_speed(stand.out, found, spec=spec, command=_command(configs[0], stand))
    if len(configs) == 1:
        method, options = method_of(configs[0])
        reason = refusal(method, spec.task)
        if reason:
            raise BenchError(f"{configs[0].method} cannot do {spec.task.name}: {reason}")
        found = measure_method(method, options=options, spec=spec, name=configs[0].method)
        return add_speed(stand.out, found, spec=spec, command=_command(configs[0], stand))
    asked: dict[str, tuple[RunConfig, list[str]]] = {config.method: (config, []) for config in configs}
    asked |= {name: (configs[0], ["--yardstick", name]) for name in YARDSTICKS}
    failed = []
    for number, (name, (config, more)) in enumerate(asked.items(), start=1):
        words = ["cost", *stand.words(), *more, "--config", json.dumps(config.as_dict())]
        code = child(words, alone=True).wait()
        say(f"[{number}/{len(asked)}] {name}: {'measured' if not code else f'exit code {code}'}")
        failed += [name] if code else []
    if failed:
        raise BenchError(f"{', '.join(failed)} could not be measured, see above.")
    return [stand.out / FILE, stand.out / TABLE]


def _command(config: RunConfig, stand: Stand) -> str:
    """Return the command that measures all methods and yardsticks as one was."""
    words = shlex.split(replace(config, method="all").command())[2:]
    return shlex.join(["bench", "cost", *words, *stand.words()])


def measure_method(
    method: Method, *, options: Mapping[str, Any], spec: SpeedSpec, name: str, seed: int = 0
) -> Speed:
    """Measure sampling steps, then training steps, of a method on a base with random weights.

    name: as it was asked for, which may be a variant's.
    """
    import torch

    be_deterministic(spec.device)
    process = libraries_bytes() if spec.device == "cpu" else 0
    base = build_base(spec.shape, device=spec.device, encoders=False, seed=seed)
    torch.manual_seed(seed)
    denoiser = method.build(base, spec.task, **options).to(spec.device)
    let_go(base, denoiser)
    data = stand_in(spec.shape, task=spec.task, count=max(spec.batch, spec.sampled))
    encode, sample, sample_bytes = _sampling(denoiser, base=base, data=data, spec=spec)
    train, train_bytes = _training(denoiser, base=base, data=data, spec=spec)
    counted = footprint(method, options=options, shape=spec.shape, task=spec.task, setting=spec.setting)
    return Speed(
        name=name,
        title=method.title if name == method.name else f"{method.title} ({name})",
        parameters=counted.parameters,
        trainable=counted.trainable,
        train=train,
        sample=sample,
        encode=encode,
        train_bytes=train_bytes,
        sample_bytes=sample_bytes,
        planned_train_bytes=_planned(counted.train_peak, process, spec) if train else None,
        planned_sample_bytes=_planned(counted.sample_peak, process, spec),
        train_flops=counted.train_flops or None,
        sample_flops=counted.step_flops,
    )


def _planned(peak: int, process: int, spec: SpeedSpec) -> int:
    """Return what bench plan expects: on a CPU of the process, on a GPU of the tensors alone."""
    return round(process + CPU_ALLOWANCE * peak) if spec.device == "cpu" else peak


def measure_yardstick(name: str, *, spec: SpeedSpec, seed: int = 0) -> Speed:
    """Measure training steps of a yardstick, see bench.yardsticks."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    kind = YARDSTICKS[name]
    be_deterministic(spec.device)
    base = build_base(spec.shape, device=spec.device, encoders=kind.encoders, seed=seed)
    torch.manual_seed(seed)
    data = stand_in(spec.shape, task=spec.task, count=spec.batch)
    made = kind.make(base, spec.task, data, spec.precision)
    with FlopCounterMode(display=False) as counter:
        made.step()
    train, train_bytes = _rounds(made.step, spec=spec, warm_up=0)
    return Speed(
        name=name,
        title=kind.title,
        parameters=made.parameters,
        trainable=made.trainable,
        train=train,
        sample=None,
        encode=None,
        train_bytes=train_bytes,
        sample_bytes=None,
        planned_train_bytes=None,
        planned_sample_bytes=None,
        train_flops=counter.get_total_flops() // spec.batch,
        sample_flops=None,
    )


def _training(
    denoiser: Any, *, base: Base, data: Prepared, spec: SpeedSpec
) -> tuple[Spread | None, int | None]:
    import torch

    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    if not parameters:
        return None, None
    optimiser = torch.optim.AdamW(
        parameters,
        lr=1e-5,
        weight_decay=spec.training.weight_decay,
        fused=spec.execution.fused or None,
    )
    loss = partial(training_loss, denoiser, base=base, data=data, training=spec.training, seed=0)
    with rebuilt(denoiser, spec.execution):
        engine = Engine(
            denoiser,
            optimiser,
            loss=lambda step, places: loss(step=step, places=places),
            training=spec.training,
            device=spec.device,
            execution=spec.execution,
        )
        count = iter(range(1_000_000))

        def step() -> None:
            engine.backward(next(count))
            engine.descend(parameters, clip=spec.training.clip_norm)

        return _rounds(step, spec=spec)


def _sampling(denoiser: Any, *, base: Base, data: Prepared, spec: SpeedSpec) -> tuple[Spread, Spread, int]:
    """Return the times of encoding conditions and of a step, and the peak."""
    import torch

    scheduler, rows, device = build_scheduler(base, SAMPLER), range(spec.sampled), spec.device
    conditions = data.conditions_at(rows).to(device)
    text = torch.stack([data.empty.expand_as(data.text_at(rows)), data.text_at(rows)]).to(device)
    latents = torch.randn(spec.sampled, *data.latent_shape).to(device)
    times = iter(scheduler.timesteps.tolist() * spec.rounds)

    def encode() -> Any:
        with torch.inference_mode(), autocast(device, spec.precision):
            return denoiser.encode(conditions)

    features = encode()

    def step() -> None:
        now = next(times)
        with torch.inference_mode():
            steps = torch.full((spec.sampled,), now, dtype=torch.long, device=device)
            with autocast(device, spec.precision):
                eps = denoiser(latents, steps, text, features).float()
            guided = eps[0] + SAMPLER.guidance * (eps[1] - eps[0])
            scheduler.step(guided, now, latents)

    encoding, _ = _rounds(encode, spec=spec, warm_up=0)
    stepping, peak = _rounds(step, spec=spec)
    return encoding, stepping, peak


def _rounds(step: Callable[[], Any], *, spec: SpeedSpec, warm_up: int = 1) -> tuple[Spread, int]:
    """Time a step, `rounds` times after a warm-up; return the seconds and the peak memory."""
    taken = []
    for number in range(warm_up + spec.rounds):
        if number == warm_up:
            reset_peak_memory(spec.device)
        begun = time.perf_counter()
        step()
        _wait(spec.device)
        taken.append(time.perf_counter() - begun)
    timed = taken[warm_up:]
    spread = Spread(median=statistics.median(timed), least=min(timed), most=max(timed))
    return spread, peak_memory(spec.device)


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def add_speed(folder: Path, speed: Speed, *, spec: SpeedSpec, command: str) -> list[Path]:
    """Write a measurement into a folder's file, beside others of the same kind and machine."""
    import torch

    machine = environment(device=spec.device, threads=torch.get_num_threads())
    what = {"machine": machine, "spec": spec.as_dict(), "command": command}
    path = folder / FILE
    found: _File | None = read_json(path, of=_File) if path.exists() else None
    alike = found is not None and (found.machine, found.spec) == (what["machine"], what["spec"])
    others = [e for e in found.entries if e.name != speed.name] if found is not None and alike else []
    write_json(path, {**what, "entries": [asdict(entry) for entry in (*others, speed)]})
    atomic_write(folder / TABLE, speed_table(folder).encode())
    return [path, folder / TABLE]


def speed_table(folder: Path) -> str:
    """Return a folder's measurements as Markdown: times, memory, operations, share of the peak rate."""
    from bench.reporting.grid import Grid, Text, to_markdown

    found: _File = read_json(folder / FILE, of=_File)
    spec, machine = found.spec, found.machine
    gpu = recognise(device_words(machine))
    peak = gpu.peak(spec["precision"]) if gpu is not None else None
    body = tuple(tuple(Text(main=c) for c in _row(e, spec, peak)) for e in found.entries)
    table = to_markdown(Grid(header=_HEADER, body=body, caption=_NOTES))
    about = (
        f"{spec['base']} with random weights, {spec['size']} px, {spec['task']}, {spec['precision']}, "
        f"batch {spec['batch']} (training), {spec['sampled']} (sampling); {machine['processor']}, "
        f"{device_words(machine)}, {machine['threads']} threads; median of {spec['rounds']} rounds "
        "[least, most]"
    )
    more = f"; {_execution(spec)}" if spec["execution"] else ""
    return f"{about}{more}.\n\n{table}\n    {found.command}\n"


_HEADER = (
    "step of",
    "parameters",
    "trained",
    "training step, s",
    "images/s",
    "TFLOP/s",
    "MFU",
    "peak, GiB",
    "planned, GiB",
    "sampling step, s",
    "encoding, s",
    "peak, GiB",
    "planned, GiB",
)
_NOTES = (
    "TFLOP/s: operations of matrix products, convolutions and attention in the forward and backward "
    "passes, two a multiply-accumulate, nothing recomputed, over the time of the step. MFU: their share "
    "of the device's peak, where bench.gpus knows it. Sampling: one step of both guidance branches; "
    "encoding: what happens once an image. Planned: what `bench plan` expects for the same process."
)


def _row(entry: Speed, spec: _Spec, peak: float | None) -> list[str]:
    train, flops = entry.train, entry.train_flops
    rate = flops * spec["batch"] / train.median if train and flops else None
    return [
        entry.title,
        f"{entry.parameters / 1e6:.1f} M",
        f"{entry.trainable / 1e6:.1f} M",
        _spread(train),
        _shown(spec["batch"] / train.median if train else None),
        _shown(rate and rate / 1e12),
        _shown(rate and peak and 100 * rate / peak, "%"),
        _gib(entry.train_bytes),
        _gib(entry.planned_train_bytes),
        _spread(entry.sample),
        _spread(entry.encode),
        _gib(entry.sample_bytes),
        _gib(entry.planned_sample_bytes),
    ]


def _execution(spec: _Spec) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in spec["execution"].items())


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.3g} [{spread.least:.3g}, {spread.most:.3g}]"


def _shown(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g}{unit}"


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"
