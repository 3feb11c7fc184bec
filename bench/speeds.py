"""From words to measurements of steps: what `bench speed` asks for, each in a process of its own."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.arguments import parse_device, parse_names
from bench.child import child
from bench.commands import Catalogue, Request
from bench.engine import check_execution
from bench.shapes import shape_like
from bench.spec import check_options
from bench.speed import FILE, TABLE, SpeedSpec, add_speed, measure_method, measure_yardstick
from bench.tasks import find_task
from bench.types import BenchError, refusal
from bench.yardsticks import YARDSTICKS


@dataclass(frozen=True, kw_only=True)
class SpeedAsk:
    """What the options of `bench speed` ask for. execution: those of `with_execution`."""

    method: str
    task: str = "sketch"
    like: str = "sd15"
    width: int = 320
    size: int | None = None
    batch: int = 16
    sampled: int = 16
    rounds: int = 5
    device: str = "auto"
    out: Path = Path("results/speed")
    execution: Mapping[str, Any] = field(default_factory=dict)

    def words(self, name: str) -> list[str]:
        """Return the command line that measures `name`."""
        given = {
            k: getattr(self, k)
            for k in ("task", "like", "width", "size", "batch", "sampled", "rounds", "device", "out")
        }
        words = ["speed", "--method", name]
        for option, value in {**given, **self.execution}.items():
            flag = f"--{option.replace('_', '-')}"
            if value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [flag, str(value)]
        return words

    @property
    def spec(self) -> SpeedSpec:
        """What is measured, checked; BenchError for what the device cannot do."""
        request = Request(suite="", results=Path(), **self.execution)
        precision, device = request.precision or "fp32", parse_device(self.device)
        execution = request.execution()
        check_execution(execution, precision=precision, batch=self.batch, device=device)
        return SpeedSpec(
            shape=shape_like(self.like, width=self.width, size=self.size),
            task=find_task(self.task),
            batch=self.batch,
            sampled=self.sampled,
            precision=precision,
            device=device,
            execution=execution,
            rounds=self.rounds,
        )


def measure_speeds(catalogue: Catalogue, ask: SpeedAsk, *, say: Callable[[str], None]) -> list[Path]:
    """Measure methods and yardsticks one after another; return the files written.

    Several are measured in a process each, so that the peak memory is each one's own. BenchError for
    unknown names, and where one could not be measured.
    """
    spec = ask.spec
    names = _names(catalogue, ask.method)
    if len(names) == 1:
        return _measure(catalogue, names[0], spec=spec, ask=ask)
    failed = []
    for number, name in enumerate(names, start=1):
        code = child(ask.words(name), alone=True).wait()
        say(f"[{number}/{len(names)}] {name}: {'measured' if not code else f'exit code {code}'}")
        failed += [name] if code else []
    if failed:
        raise BenchError(f"{', '.join(failed)} could not be measured, see above.")
    return [ask.out / FILE, ask.out / TABLE]


def _names(catalogue: Catalogue, text: str) -> list[str]:
    groups = {
        "all": tuple(catalogue.methods),
        "variants": tuple(catalogue.variants),
        "yardsticks": tuple(YARDSTICKS),
    }
    allowed = [*catalogue.methods, *catalogue.variants, *YARDSTICKS]
    return parse_names("method", text, allowed=allowed, groups=groups)


def _measure(catalogue: Catalogue, name: str, *, spec: SpeedSpec, ask: SpeedAsk) -> list[Path]:
    command = shlex.join(["bench", *ask.words("all,yardsticks")])
    if name in YARDSTICKS:
        return add_speed(ask.out, measure_yardstick(name, spec=spec), spec=spec, command=command)
    method, preset = catalogue.find(name)
    reason = refusal(method, spec.task)
    if reason:
        raise BenchError(f"{name} cannot do {spec.task.name}: {reason}")
    options = check_options(method, preset)
    found = measure_method(method, options=options, spec=spec, name=name)
    return add_speed(ask.out, found, spec=spec, command=command)
