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
from bench.record import RunRecord, device_words
from bench.strict import Amount, Count, FromFile, Text, Word
from bench.types import BenchError

TIMINGS_FILE = "timings.json"
_NOT_TIMED = (  # recorded among the options; they cost nothing
    *("learning_rate", "weights", "no_train", "condition_channels", "invert_condition"),
    "timesteps",  # how they are drawn
)


@dataclass(frozen=True, kw_only=True)
class Timing(FromFile):
    """What one method takes alone: rates in images, seconds an image, peak bytes of the process.

    options: as recorded, without the learning rate. train_images_per_second: None where nothing is
    trained. steps, items: how many were measured a round, after a warm-up. rounds: how often; the
    fastest counts, as whatever else the machine does only slows, and the largest memory. code: digest
    of the sources and versions of packages, {} where an older file does not say.
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

    def with_round(self, other: Timing) -> Timing:
        """Return both as rounds of one timing; BenchError where amounts or code differ."""
        amounts = [(t.task, t.steps, t.items) for t in (self, other)]
        if amounts[0] != amounts[1]:
            raise BenchError(
                f"{self.method}: rounds of (task, steps, items) {amounts[0]} and {amounts[1]} do not "
                "compare. Measure every round with the same --task, --train-steps, --sample-batches and "
                "--sample-batch."
            )
        if dict(self.code) != dict(other.code):
            raise BenchError(
                f"{self.method}: rounds of different code do not compare ({_code_words(self)}; "
                f"{_code_words(other)}): the fastest would hide the other. Measure anew, without "
                "--further, and leave the sources alone meanwhile."
            )
        rates = [t.train_images_per_second for t in (self, other)]
        return dataclasses.replace(
            self,
            train_images_per_second=max((r for r in rates if r is not None), default=None),
            sample_seconds_per_image=min(t.sample_seconds_per_image for t in (self, other)),
            peak_memory_bytes=max(t.peak_memory_bytes for t in (self, other)),
            rounds=self.rounds + other.rounds,
        )


@dataclass(frozen=True, kw_only=True)
class Timings(FromFile):
    """Timings of one machine. machine: processor, device, GPU, threads, platform, as in records."""

    machine: Mapping[Text, Any]
    entries: tuple[Timing, ...]

    @property
    def machine_words(self) -> str:
        """Say on what machine they were measured."""
        machine = self.machine
        return f"{machine.get('processor')}, {device_words(machine)}, {machine.get('threads')} threads"

    @property
    def words(self) -> str:
        """Say on what machine and how they were measured."""
        rounds = sorted({timing.rounds for timing in self.entries})
        text = self.machine_words
        if rounds not in ([], [1]):
            text += f", the fastest of {' or '.join(map(str, rounds))} rounds"
        codes = {digest_json(dict(timing.code)) for timing in self.entries}
        return f"{text}, METHODS BY DIFFERENT CODE" if len(codes) > 1 else text

    def of(self, record: RunRecord) -> Timing | None:
        """Return the timing of a record's method and options, None where it was not measured.

        Times are of the suite's own sampler: a run with another guidance or steps has none.
        """
        if {"guidance", "steps"} & set(record.changes):
            return None
        return self.find(record.method, record.options)

    def find(self, method: str, options: Mapping[str, Any]) -> Timing | None:
        """Return the timing of a method with these options, the learning rate aside."""
        return next((t for t in self.entries if _key(t) == timing_key(method, options)), None)


def load_timings(folder: Path) -> Timings | None:
    """Read the timings in a results folder, None where there are none; BenchError if damaged."""
    path = folder / TIMINGS_FILE
    if not path.exists():
        return None
    found: Timings = read_json(path, of=Timings, remedy="Measure anew: bench cost.")
    return found


def add_timing(folder: Path, timing: Timing, *, machine: Mapping[str, Any], further: bool = False) -> Path:
    """Write a timing into a results folder's file, in place of an earlier one of the same method.

    further: as more rounds of the earlier one instead. BenchError as `with_timing_added`.
    """
    made = with_timing_added(folder, timing, machine=machine, further=further)
    path = folder / TIMINGS_FILE
    kept = [dataclasses.asdict(entry) for entry in made.entries]
    write_json(path, {"machine": made.machine, "entries": kept})
    return path


def with_timing_added(
    folder: Path, timing: Timing, *, machine: Mapping[str, Any], further: bool = False
) -> Timings:
    """Return a folder's timings with one added or put in the place of its like; write nothing.

    BenchError if those there are of another machine, or are rounds of other amounts or code.
    """
    found = load_timings(folder)
    measured = Timings(machine=dict(machine), entries=(timing,))
    if found is not None and dict(found.machine) != measured.machine:
        raise BenchError(
            f"{folder / TIMINGS_FILE} was measured on another machine ({found.machine_words}; this "
            f"one: {measured.machine_words}). Times of two machines do not compare: move the file "
            "away and measure every method here."
        )
    earlier = found.entries if found is not None else ()
    same = [t for t in earlier if _key(t) == _key(timing)]
    others = [t for t in earlier if _key(t) != _key(timing)]
    timing = same[0].with_round(timing) if further and same else timing
    entries = tuple(sorted([*others, timing], key=lambda t: (t.method, _key(t))))
    return dataclasses.replace(measured, entries=entries)


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


def _code_words(timing: Timing) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(timing.code.items())) or "code not recorded"


def _key(of: Timing) -> str:
    return timing_key(of.method, of.options)


def timing_key(method: str, options: Mapping[str, Any]) -> str:
    """Name what is timed: the method with its options; tasks differ in condition channels alone."""
    return f"{method} {digest_json({k: v for k, v in options.items() if k not in _NOT_TIMED})}"
