"""What a method costs: parameters, operations, memory and times; measured, never declared.

Runs of a grid share the machine, so the times in their records do not compare. `bench cost` measures
each method alone (bench.measure) and writes timings.json into a results folder, from which reports take
them.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt

from bench.base.load import Base
from bench.content import Amount, Count, FromFile, Text, Word, digest_json, read_json, write_json
from bench.data.latents import Prepared
from bench.record import RunRecord, device_words
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

TIMINGS_FILE = "timings.json"
_NOT_TIMED = (  # recorded among the options; they cost nothing
    *("learning_rate", "weights", "no_train", "condition_channels", "invert_condition"),
    "timesteps",  # how they are drawn
    *("emit_rate", "weights_rate"),
)


# ---- parameters and operations


def count_parameters(denoiser: torch.nn.Module) -> tuple[int, int]:
    """Return (all, trainable) scalars of a denoiser, its frozen base included in the first."""
    unique = {id(p): p for p in denoiser.parameters()}.values()
    return sum(p.numel() for p in unique), sum(p.numel() for p in unique if p.requires_grad)


def operations(call: Callable[[], Any]) -> int:
    """Return the floating-point operations of a call, two a multiply-accumulate.

    Matrix products, convolutions and attention are counted (torch's FlopCounterMode). That of older torch
    passes over attention on a CPU.
    """
    import torch
    from torch.utils import flop_counter

    aten = torch.ops.aten
    counts = (  # an operator, its formula, and of how many shapes that is
        (aten._scaled_dot_product_flash_attention_for_cpu, flop_counter.sdpa_flop_count, 3),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward, flop_counter.sdpa_backward_flop_count, 4),
    )
    missing = {
        operator: lambda *shapes, count=count, n=n, **_: count(*shapes[:n])
        for operator, count, n in counts
        if operator not in flop_counter.flop_registry
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=missing) as counter:
        call()
    return int(counter.get_total_flops())


def count_macs(denoiser: Any, *, base: Base, data: Prepared, branches: int = 1) -> tuple[int, int]:
    """Return the multiply-accumulates of one image's denoiser call with K = `branches` texts, and of its
    `encode`, which happens once an image.

    With two branches (guidance) a method that ignores the text does its own part once.
    """
    import torch

    latents, conditions = (rows([0]).to(base.device) for rows in (data.latents_at, data.conditions_at))
    text = data.text_at([0]).to(base.device).expand(branches, 1, -1, -1)
    steps, encoded = torch.zeros(1, dtype=torch.long, device=base.device), list[Any]()
    with torch.no_grad():
        encode = operations(lambda: encoded.append(denoiser.encode(conditions)))
        return operations(lambda: denoiser(latents, steps, text, encoded[0])) // 2, encode // 2


# ---- memory of a process


def reset_peak_memory(device: str) -> None:
    """Forget earlier peaks, where the system allows it (CUDA, Linux)."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()  # what was freed goes back to the system, or building a model would count as the work's
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes: of the process on a CPU, of the allocator on a GPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def libraries_bytes() -> int:
    """Return the bytes of this process, still empty, with all libraries that a step on a CPU uses."""
    import accelerate  # noqa: F401
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import torch
    import torch._dynamo  # torch.optim loads it at its first step
    import transformers  # noqa: F401

    layer = torch.nn.Conv2d(4, 4, 3)
    layer(torch.ones(1, 4, 8, 8)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()
    return _status("VmRSS:") or peak_memory("cpu")


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def be_deterministic(device: str) -> None:
    """Make a GPU repeat itself: no TF32, no autotuning, deterministic kernels where they exist."""
    if not device.startswith("cuda"):
        return
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)


# ---- what a run's sampling takes


@dataclass(frozen=True, kw_only=True)
class _Sums(FromFile):
    sample_seconds: Amount
    sample_images: Annotated[Count, Gt(0)]
    peak_memory_bytes: Count


class Ledger:
    """Costs of sampling as they arise, in one JSON file that survives interruptions.

    seconds_per_image: the mean over the images of all starts; peak_memory_bytes: the largest while they
    were sampled. What a killed process had not written yet, or a lost or damaged file held, is unknown:
    None. path: None keeps no file, for all but the main process.
    """

    def __init__(self, path: Path | None, *, device: str) -> None:
        self.path, self.device = path, device
        self._sums = _Sums(sample_seconds=0.0, sample_images=0, peak_memory_bytes=0)
        if path is not None and path.exists():
            with contextlib.suppress(BenchError):
                self._sums = read_json(path, of=_Sums)

    def add(self, *, seconds: float, images: int) -> None:
        """Add what images took, with the peak memory so far, and write the file."""
        sums, peak = self._sums, max(self._sums.peak_memory_bytes, peak_memory(self.device))
        counts: dict[str, Any] = {"sample_images": sums.sample_images + images, "peak_memory_bytes": peak}
        self._sums = _Sums(sample_seconds=sums.sample_seconds + seconds, **counts)
        if self.path is not None:
            write_json(self.path, vars(self._sums))

    @property
    def seconds_per_image(self) -> float | None:
        """Mean over the images that were counted."""
        images = self._sums.sample_images
        return self._sums.sample_seconds / images if images else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """Largest peak memory while images were sampled."""
        return self._sums.peak_memory_bytes or None


# ---- times measured alone


@dataclass(frozen=True, kw_only=True)
class Timing(FromFile):
    """What one method takes alone: rates in images, seconds an image, peak bytes of the process.

    options: as recorded, without the learning rate. train_images_per_second: None where nothing is
    trained. steps, items: measured a round, after a warm-up. rounds: of which the fastest counts, and the
    largest memory. code: digest of the sources and versions of packages, {} where an older file does not
    say. setup: base, size, batches, precision of a base with random weights; of a suite what was not its
    own, see `setup_of`. planned_memory_bytes, train_flops: as `bench plan` counts, operations an image.
    """

    method: Word
    options: Mapping[Text, Any]
    task: Word
    train_images_per_second: Amount | None
    sample_seconds_per_image: Amount
    peak_memory_bytes: Count
    steps: Count
    items: Count
    rounds: Count = 1
    code: Mapping[Text, Text] = dataclasses.field(default_factory=dict)
    setup: Mapping[Text, Any] = dataclasses.field(default_factory=dict)
    planned_memory_bytes: Count | None = None
    train_flops: Count | None = None

    @property
    def key(self) -> str:
        """The name of what is timed, which no two entries of a file share."""
        return timing_key(self.method, self.options, self.setup)

    def with_round(self, other: Timing) -> Timing:
        """Return both as rounds of one timing; BenchError where the code differs."""
        if dict(self.code) != dict(other.code):
            codes = (" ".join(f"{k} {v}" for k, v in sorted(t.code.items())) for t in (self, other))
            raise BenchError(f"{self.method}: rounds of different code ({'; '.join(codes)}). Measure anew.")
        rates = [t.train_images_per_second for t in (self, other)]
        return replace(
            self,
            train_images_per_second=max((r for r in rates if r is not None), default=None),
            sample_seconds_per_image=min(self.sample_seconds_per_image, other.sample_seconds_per_image),
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
            rounds=self.rounds + other.rounds,
        )


@dataclass(frozen=True, kw_only=True)
class Timings(FromFile):
    """Timings of one machine. machine: processor, device, GPU, threads, platform, as in records."""

    machine: Mapping[Text, Any]
    entries: tuple[Timing, ...]

    @property
    def words(self) -> str:
        """Say on what machine and how they were measured."""
        own, text = [t for t in self.entries if "base" not in t.setup], machine_words(self.machine)
        rounds = sorted({timing.rounds for timing in own})
        if rounds not in ([], [1]):
            text += f", the fastest of {' or '.join(map(str, rounds))} rounds"
        codes = {digest_json(dict(timing.code)) for timing in own}
        return f"{text}, METHODS BY DIFFERENT CODE" if len(codes) > 1 else text

    def find(
        self, method: str, options: Mapping[str, Any], setup: Mapping[str, Any] | None = None
    ) -> Timing | None:
        """Return the timing of a method with these options and setup, the learning rate aside."""
        key = timing_key(method, options, setup)
        return next((timing for timing in self.entries if timing.key == key), None)


def timing_key(method: str, options: Mapping[str, Any], setup: Mapping[str, Any] | None = None) -> str:
    """Name what is timed: the method with its options and setup; tasks differ in condition channels alone."""
    counted = {name: value for name, value in options.items() if name not in _NOT_TIMED}
    return f"{method} {digest_json(counted)}" + (digest_json(dict(setup)) if setup else "")


def setup_of(record: RunRecord) -> dict[str, Any] | None:
    """Return what changes times and is not the suite's own; None where the starts of a run differ in it."""
    starts = record.environment.get("execution", ())
    plain = [{k: v for k, v in start.items() if k not in ("step", "track")} for start in starts]
    ways = [{k: v for k, v in start.items() if (k, v) != ("processes", 1)} for start in plain]
    if any(way != ways[0] for way in ways):
        return None
    precision, batch = record.protocol.get("training", {}).get("precision"), record.changes.get("train_batch")
    given = {"precision": precision, "batch": batch}
    return {name: value for name, value in given.items() if value} | (ways[0] if ways else {})


def setup_words(setup: Mapping[str, Any] | None) -> str:
    """Return a setup in words: "bf16, batch 64, 8 processes"."""
    if setup is None:
        return "carried out in several ways"
    words = {"precision": "{}", "processes": "{} processes"}
    return ", ".join(words.get(name, f"{name} {{}}").format(value) for name, value in setup.items())


def gib(count: float) -> str:
    """Return bytes in words: 12.3 GiB."""
    return f"{count / 2**30:.1f} GiB"


def machine_words(machine: Mapping[str, Any]) -> str:
    """Return processor, device and threads of a machine as a record knows it."""
    return f"{machine.get('processor')}, {device_words(machine)}, {machine.get('threads')} threads"


def load_timings(folder: Path, *, machine: Mapping[str, Any] | None = None) -> Timings | None:
    """Read the timings in a results folder, None where there are none.

    machine: that others are to be added from. BenchError if the file is damaged or of another machine.
    """
    path = folder / TIMINGS_FILE
    if not path.exists():
        return None
    timings: Timings = read_json(path, of=Timings, remedy="Measure anew: bench cost.")
    if machine is not None and dict(timings.machine) != dict(machine):
        there, here = machine_words(timings.machine), machine_words(machine)
        raise BenchError(f"{path} was measured on another machine ({there}; this one: {here}). Move it away.")
    return timings


def add_timing(folder: Path, timing: Timing, *, machine: Mapping[str, Any]) -> Path:
    """Write a timing into a folder's file, in place of an earlier one of its like; see `load_timings`."""
    known = load_timings(folder, machine=machine)
    others = [t for t in (known.entries if known else ()) if t.key != timing.key]
    entries = sorted([*others, timing], key=lambda t: t.key)
    path = folder / TIMINGS_FILE
    write_json(path, {"machine": dict(machine), "entries": [dataclasses.asdict(t) for t in entries]})
    return path


def with_timing(record: RunRecord, timings: Timings) -> RunRecord:
    """Return the record with the times and memory measured alone, unknown (None) where they were not.

    Times are of the suite's own sampler: a run with another guidance or steps has none, nor has one of
    another precision, batch, device or number of processes than any that was measured.
    """
    setup, device = setup_of(record), record.environment.get("device")
    alike = not {"guidance", "steps"} & {*record.changes} and timings.machine.get("device", device) == device
    timing = timings.find(record.method, record.options, setup) if alike and setup is not None else None
    names = ("train_images_per_second", "sample_seconds_per_image", "peak_memory_bytes")
    known: dict[str, Any] = {name: getattr(timing, name, None) for name in names}
    rate, images = known["train_images_per_second"], record.cost.train_images
    seconds = images / rate if rate and images else None
    return replace(record, cost=replace(record.cost, train_seconds=seconds, **known))
