"""What tests ask of the program: configurations on the micro suite, and the runs that they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import RunConfig
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
