"""How long runs of an ablation will take, from what earlier runs took; unknown is said, not guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ablate import EXISTS, MISSING, Planned
from bench.ablations import ABLATIONS_FOLDER
from bench.content import digest_json
from bench.record import RunRecord, find_records, load_record
from bench.spec import check_options
from bench.suites import SUITES
from bench.timings import TIMINGS_FILE, Timings, load_timings
from bench.types import BenchError

_RATE = "learning_rate"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a method takes: images a second in training, seconds an image and sampling step.

    train None: it trains nothing. exact: with these options, else with others of the same method.
    """

    train: float | None
    step: float
    exact: bool
    source: str


class Forecast:
    """Knows the paces of a results folder: `bench cost`'s file first, then records.

    What was measured on GPUs says nothing of CPUs, and the other way round: it is left out.
    """

    def __init__(self, results: Path) -> None:
        """Read timings and records; a damaged record counts for nothing."""
        self.timings = load_timings(results)
        places = (results, results / ABLATIONS_FOLDER)
        self.records = [r for place in places for r in map(_record, find_records(place)) if r]

    def pace(self, one: Planned) -> Pace | None:
        """Return the pace of a run's method, None where nothing like it has been measured."""
        method, options = one.spec.method.name, check_options(one.spec.method, one.spec.options)
        timings = self._timings(one)
        timing = timings.find(method, options) if timings is not None else None
        if timing is not None:
            suite = SUITES.get(one.spec.suite.name, one.spec.suite)
            seconds = timing.sample_seconds_per_image / suite.sampler.steps
            return Pace(train=timing.train_images_per_second, step=seconds, exact=True, source=TIMINGS_FILE)
        same = [r for r in self._like(one) if r.method == method]
        exact = [r for r in same if _plain(r.options) == _plain(options)]
        return _pace(exact or same, exact=bool(exact))

    def seconds(self, one: Planned) -> float | None:
        """Return about how long a missing run will take, 0 for others; None where unknown."""
        if one.state != MISSING:
            return 0.0
        pace = self.pace(one)
        if pace is None:
            return None
        images = one.spec.budget.images(one.spec.method.name)
        train = images / pace.train if one.trains and pace.train else 0.0
        sampling = one.items * one.spec.suite.sampler.steps * pace.step
        return train + sampling + self.scoring(one)

    def scoring(self, one: Planned) -> float:
        """Return the seconds of scoring in the middle of earlier runs of the suite, 0 if there is none."""
        found = [
            r.cost.score_seconds * one.items / r.splits.eval.n
            for r in self._like(one)
            if r.cost.score_seconds and r.splits.eval.n
        ]
        return sorted(found)[len(found) // 2] if found else 0.0

    def _timings(self, one: Planned) -> Timings | None:
        found = self.timings
        return found if found is not None and _device(found.machine) == one.spec.device else None

    def _like(self, one: Planned) -> list[RunRecord]:
        """Return the records of a run's suite on its device."""
        suite, device = one.spec.suite.name, one.spec.device
        return [r for r in self.records if r.suite == suite and _device(r.environment) == device]

    def words(self, planned: Sequence[Planned]) -> str:
        """Say how many runs exist, how many are missing and how long those will take."""
        missing = [one for one in planned if one.state == MISSING]
        exist = sum(one.state == EXISTS for one in planned)
        cannot = len(planned) - exist - len(missing)
        text = f"{exist} of {len(planned)} runs exist, {len(missing)} missing"
        text += f", {cannot} cannot be" if cannot else ""
        if not missing:
            return f"{text}: nothing to do."
        paces = [self.pace(one) for one in missing]
        known = [p for p in paces if p is not None]
        if not known:
            return f"{text}: how long they take is unknown. Measure first: bench cost."
        total = sum(self.seconds(one) or 0.0 for one in missing)
        text += f": {duration(total)}, one after the other"
        lacking = len(paces) - len(known)
        text += f", and {lacking} runs of unknown length" if lacking else ""
        return f"{text} ({self._basis(known, missing)})."

    def _basis(self, known: Sequence[Pace], missing: Sequence[Planned]) -> str:
        measured = sum(p.source == TIMINGS_FILE for p in known)
        parts = []
        if measured and self.timings is not None:
            parts.append(f"{measured} by {TIMINGS_FILE}, {self.timings.machine_words}")
        if len(known) > measured:
            parts.append(f"{len(known) - measured} by earlier records, on whatever ran beside them")
        rough = sum(not p.exact for p in known)
        parts += [f"{rough} of them by the same method with other options"] if rough else []
        scored = all(self.scoring(one) for one in missing)
        parts.append("starting not counted" if scored else "starting and scoring not counted")
        return "; ".join(parts)


def duration(seconds: float) -> str:
    """Return a time in words: "about 40 s", "about 12 min", "about 3.5 h"."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _device(machine: Mapping[str, Any]) -> str:
    return str(machine.get("device", "unknown"))


def _record(folder: Path) -> RunRecord | None:
    try:
        return load_record(folder, verify=False)
    except BenchError:
        return None


def _plain(options: Mapping[str, Any]) -> str:
    return digest_json({k: v for k, v in options.items() if k != _RATE})


def _pace(records: Sequence[RunRecord], *, exact: bool) -> Pace | None:
    """Return the middle pace of records; None without one that says how long sampling took."""
    sampled = sorted(
        r.cost.sample_seconds_per_image / r.protocol["sampler"]["steps"]
        for r in records
        if r.cost.sample_seconds_per_image
    )
    if not sampled:
        return None
    rates = sorted(r.cost.train_images_per_second for r in records if r.cost.train_images_per_second)
    return Pace(
        train=rates[len(rates) // 2] if rates else None,
        step=sampled[len(sampled) // 2],
        exact=exact,
        source="records",
    )
