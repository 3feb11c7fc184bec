"""How long runs will take, from what like runs took; unknown is said, not guessed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.ablations import ABLATIONS_FOLDER
from bench.config import RunSpec
from bench.content import digest_json
from bench.packed import kept_records
from bench.record import RunRecord
from bench.timings import load_timings

PUBLISHED = Path("results/emoji")  # whose timings `bench plan` takes too


class Paces:
    """Knows the paces of a results folder: `bench cost`'s file first, then the middle of like records.

    What was measured on GPUs says nothing of CPUs, and the other way round: it is left out.
    """

    def __init__(self, results: Path) -> None:
        """Read timings and records; a damaged record counts for nothing."""
        self.timings, self.published = load_timings(results), load_timings(PUBLISHED)
        places = ("", ABLATIONS_FOLDER)
        self.records = [r for p in places for r in kept_records(results, p, skip_damaged=True)]

    def seconds(self, spec: RunSpec, *, items: int, trains: bool) -> float | None:
        """Return about how long a run of `items` evaluation items takes, None where nothing like it ran."""
        pace = self._timed(spec) or self._recorded(spec)
        if pace is None:
            return None
        images_a_second, step_seconds = pace
        images = spec.budget.images(spec.method.name)
        training = images / images_a_second if trains and images_a_second else 0.0
        return training + items * (spec.suite.sampler.steps * step_seconds + self._scoring(spec))

    def _timed(self, spec: RunSpec) -> tuple[float | None, float] | None:
        timings = self.timings or (self.published if spec.suite.name == PUBLISHED.name else None)
        if timings is None or _device(timings.machine) != spec.device:
            return None
        timing = timings.find(spec.method.name, spec.options)
        if timing is None:
            return None
        steps = registry.load(
            "suite", spec.config.suite
        ).sampler.steps  # times are of the suite's own sampler
        return timing.train_images_per_second, timing.sample_seconds_per_image / steps

    def _recorded(self, spec: RunSpec) -> tuple[float | None, float] | None:
        """Return the middle pace of runs with these options, else of others of the method."""
        same = [r for r in self._like(spec) if r.method == spec.method.name]
        found = [r for r in same if _plain(r.options) == _plain(spec.options)] or same
        steps = [
            r.cost.sample_seconds_per_image / r.protocol["sampler"]["steps"]
            for r in found
            if r.cost.sample_seconds_per_image
        ]
        rates = [r.cost.train_images_per_second for r in found if r.cost.train_images_per_second]
        if not steps:
            return None
        return statistics.median_low(rates) if rates else None, statistics.median_low(steps)

    def _scoring(self, spec: RunSpec) -> float:
        """Return the seconds an item of scoring in the middle of earlier runs of the suite, else 0."""
        found = [
            r.cost.score_seconds / r.splits.eval.n
            for r in self._like(spec)
            if r.cost.score_seconds and r.splits.eval.n
        ]
        return statistics.median_low(found) if found else 0.0

    def _like(self, spec: RunSpec) -> Sequence[RunRecord]:
        return [
            r for r in self.records if r.suite == spec.suite.name and _device(r.environment) == spec.device
        ]


def duration(seconds: float) -> str:
    """Return a time in words: "about 40 s", "about 12 min", "about 3.5 h"."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _device(machine: Mapping[str, Any]) -> str:
    return str(machine.get("device", "unknown"))


def _plain(options: Mapping[str, Any]) -> str:
    return digest_json({k: v for k, v in options.items() if k != "learning_rate"})
