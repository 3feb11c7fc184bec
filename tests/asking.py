"""What tests ask of the program: configurations on the micro suite, and the runs that they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import RunConfig, RunSpec
from bench.running import Run
from bench.suites import resolve
from bench.types import Hooks


def micro(base: Path, results: Path, **asked: Any) -> RunConfig:
    """A run on the micro suite, on the CPU, in small batches."""
    given = {"suite": "micro", "device": "cpu", "sample_batch": 4, **asked}
    return RunConfig(base=base, results=results, **given)


def made(config: RunConfig, hooks: Hooks | None = None, **changes: Any) -> Run:
    """The run of a configuration, loaded but not started."""
    return Run(resolve(replace(config, **changes)), hooks)


def specified(**asked: Any) -> RunSpec:
    """What a training or sampling on the micro suite works with, for who brings base and data himself."""
    return resolve(micro(Path("base"), Path("results"), **asked))


class Asked(Hooks):
    """Hooks that keep what is said and answer `stop` in turn, None at the end."""

    def __init__(self, stops: Iterable[int | None] = ()) -> None:
        self.stops, self.said = iter(stops), list[str]()

    def stop(self) -> int | None:
        return next(self.stops, None)

    def say(self, text: str) -> None:
        self.said.append(text)
