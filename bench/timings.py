"""Times and memory of methods measured alone, kept beside the records whose cost columns they fill.

Runs of a grid share the machine, so the times in their records do not compare. `bench cost` measures
each method alone and writes one file into the results folder; reports take times from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.content import digest_json, read_json, write_json
from bench.record import RunRecord
from bench.types import BenchError

TIMINGS_FILE = "timings.json"
_NOT_TIMED = (  # recorded among the options; they cost nothing
    *("learning_rate", "weights", "no_train", "condition_channels", "invert_condition"),
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one method takes alone: rates in images, seconds an image, peak bytes of the process.

    options: as recorded, without the learning rate. train_images_per_second: None where nothing is
    trained. steps, items: how many were measured, after a warm-up.
    """

    method: str
    options: Mapping[str, Any]
    task: str
    train_images_per_second: float | None
    sample_seconds_per_image: float
    peak_memory_bytes: int
    steps: int
    items: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Timings of one machine. machine: processor, device, threads and platform, as in records."""

    machine: Mapping[str, Any]
    entries: tuple[Timing, ...]

    @property
    def machine_words(self) -> str:
        """Say on what machine they were measured."""
        machine = self.machine
        return (
            f"{machine.get('processor')}, {machine.get('device')}, {machine.get('threads')} threads"
        )

    def of(self, record: RunRecord) -> Timing | None:
        """Return the timing of a record's method and options, None where it was not measured.

        Times are of the suite's own sampler: a run with another guidance or steps has none.
        """
        if {"guidance", "steps"} & set(record.changes):
            return None
        return self.find(record.method, record.options)

    def find(self, method: str, options: Mapping[str, Any]) -> Timing | None:
        """Return the timing of a method with these options, the learning rate aside."""
        return next((t for t in self.entries if _key(t) == _named(method, options)), None)


def load_timings(folder: Path) -> Timings | None:
    """Read the timings in a results folder, None where there are none; BenchError if damaged."""
    path = folder / TIMINGS_FILE
    if not path.exists():
        return None
    raw = read_json(path)
    try:
        entries = tuple(Timing(**entry) for entry in raw["entries"])
        return Timings(machine=dict(raw["machine"]), entries=entries)
    except (KeyError, TypeError) as error:
        raise BenchError(f"{path} holds no timings ({error}). Measure anew: bench cost.") from error


def add_timing(folder: Path, timing: Timing, *, machine: Mapping[str, Any]) -> Path:
    """Write a timing into a results folder's file, in place of an earlier one of the same method.

    BenchError if the file there is of another machine.
    """
    found = load_timings(folder)
    path = folder / TIMINGS_FILE
    measured = Timings(machine=dict(machine), entries=(timing,))
    if found is not None and dict(found.machine) != measured.machine:
        raise BenchError(
            f"{path} was measured on another machine ({found.machine_words}; this one: "
            f"{measured.machine_words}). Times of two machines do not compare: move the file away "
            "and measure every method here."
        )
    others = [t for t in found.entries if _key(t) != _key(timing)] if found is not None else []
    entries = sorted([*others, timing], key=lambda t: (t.method, _key(t)))
    kept = [dataclasses.asdict(entry) for entry in entries]
    write_json(path, {"machine": measured.machine, "entries": kept})
    return path


def with_timing(record: RunRecord, timings: Timings) -> RunRecord:
    """Return the record with the times and memory measured alone, unknown (None) where they were not."""
    timing = timings.of(record)
    rate = timing.train_images_per_second if timing is not None else None
    images = record.cost.train_images
    cost = dataclasses.replace(
        record.cost,
        train_images_per_second=rate,
        train_seconds=images / rate if rate and images else None,
        sample_seconds_per_image=timing.sample_seconds_per_image if timing is not None else None,
        peak_memory_bytes=timing.peak_memory_bytes if timing is not None else None,
    )
    return dataclasses.replace(record, cost=cost)


def _key(of: Timing) -> str:
    return _named(of.method, of.options)


def _named(method: str, options: Mapping[str, Any]) -> str:
    """Name what is timed: the method with its options; tasks differ in condition channels alone."""
    return f"{method} {digest_json({k: v for k, v in options.items() if k not in _NOT_TIMED})}"
