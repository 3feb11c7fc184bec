"""Many runs, each in a process of its own, some at once.

A process a run keeps peak memory honest and lets the grid go on when one run is killed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from bench.child import child
from bench.config import RunConfig, option_text
from bench.hooks import Hooks
from bench.processes import launched
from bench.record import RunRecord, load_record
from bench.running import finished, identify
from bench.suites import changes, resolve
from bench.training.checkpoint import Stopped
from bench.types import BenchError, Refused

STOPPED = (130, 143)
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run: a record and its folder, or what went wrong, or why it cannot be."""

    name: str
    config: RunConfig
    record: RunRecord | None = None
    folder: Path | None = None
    error: str | None = None
    refused: str | None = None


class Child(Protocol):
    """A started run."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""

    def last_words(self) -> str:
        """Return the last line it wrote, or "see above" where it wrote to the terminal."""


Start = Callable[[Sequence[str]], Child]
"""Starts this program's command line with some arguments."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    name: str
    config: RunConfig
    folder: Path
    child: Child


def run_grid(
    configs: Sequence[RunConfig],
    *,
    names: Sequence[str] | None = None,
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda text: None,
    start: Start | None = None,
    jobs: int = 1,
) -> list[Outcome]:
    """Do every run that has no valid record yet; one that fails does not stop the others.

    names: what messages call each; its configuration in words where None. start: starts a run (default:
    a new process here, with its share of the cores), elsewhere as many at once as there is room for.
    jobs: how many run at once here. Raises Stopped where somebody asked to stop, after the running ones
    have saved their work, and BenchError in one of several processes of a launcher, each of which
    would start the whole grid.
    """
    if not configs:
        return []
    if launched() > 1:
        raise BenchError(
            f"{len(configs)} runs were asked of {launched()} launched processes, which share one run. "
            "Launch one method, task and seed at a time."
        )
    named = sorted({config.method for config in configs if config.weights is not None})
    if len(named) > 1:
        raise BenchError(
            f"--weights {configs[0].weights} belong to one method, got {', '.join(named)}. Name one with "
            "--method."
        )
    jobs = jobs if start is None else len(configs)
    cells = list(zip(names or [words(config) for config in configs], configs, strict=True))
    grid = _Grid(cells, start=start or starter(jobs), say=say)
    with _passed_on(grid.running):
        while grid.waiting or grid.running:
            while grid.waiting and len(grid.running) < jobs:
                grid.begin()
            grid.collect()
            code = (hooks or Hooks()).stop()
            if code is not None:
                grid.end(code)
            if grid.running:
                time.sleep(_LOOK_SECONDS)
    return [grid.outcomes[number] for number in range(len(configs))]


def words(config: RunConfig) -> str:
    """Return what messages call a run: method, task, seed and what is set apart."""
    rate = [] if config.learning_rate is None else [f"learning rate {config.learning_rate:g}"]
    options = [f"{name}={option_text(value)}" for name, value in config.options.items()]
    more = [f"{name.replace('_', ' ')} {value}" for name, value in changes(config).items()]
    return ", ".join([config.method, config.task, f"seed {config.seed}", *rate, *options, *more])


class _Grid:
    """Runs that wait, run and have ended, by their place."""

    def __init__(
        self, named: Sequence[tuple[str, RunConfig]], *, start: Start, say: Callable[[str], None]
    ) -> None:
        self.start, self.say = start, say
        self.waiting = [(number, *pair) for number, pair in enumerate(named)]
        self.running: dict[int, _Running] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.total = len(named)

    def begin(self) -> None:
        """Start the next run, unless it has a record or cannot be."""
        number, name, config = self.waiting.pop(0)
        outcome = partial(Outcome, name=name, config=config)
        try:
            spec = resolve(config)
            folder = config.results / identify(spec).run_id
            record = finished(folder)
        except Refused as reason:
            self._ended(number, outcome(refused=str(reason)))
        except (BenchError, OSError) as error:
            self._ended(number, outcome(error=str(error)))
        else:
            if record is not None:
                self._ended(number, outcome(record=record, folder=folder))
                return
            asked = ("run", "--no-floor", "--config", json.dumps(config.as_dict()))
            child = self.start(asked)
            self.running[number] = _Running(name=name, config=config, folder=folder, child=child)

    def collect(self) -> None:
        """Take up every run that has ended; Stopped where one was asked to stop."""
        codes = {number: running.child.poll() for number, running in self.running.items()}
        for number, code in codes.items():
            if code is None:
                continue
            running = self.running.pop(number)
            if code in STOPPED:
                self.end(code)
            self._ended(number, _outcome(running, code))

    def end(self, code: int) -> None:
        """Ask every run to save its work, wait for it and raise Stopped."""
        for running in self.running.values():
            running.child.send_signal(signal.SIGTERM)
        while any(running.child.poll() is None for running in self.running.values()):
            time.sleep(_LOOK_SECONDS)
        raise Stopped(code)

    def _ended(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        state = outcome.error or outcome.refused or "done"
        self.say(f"[{len(self.outcomes)}/{self.total}] {outcome.name}: {state}")


def _outcome(running: _Running, code: int) -> Outcome:
    outcome = partial(Outcome, name=running.name, config=running.config)
    if code:
        return outcome(error=f"failed with exit code {code}, {running.child.last_words()}")
    try:
        return outcome(record=load_record(running.folder), folder=running.folder)
    except (BenchError, OSError) as error:
        return outcome(error=str(error))


def starter(jobs: int) -> Start:
    """Return what starts a run, `jobs` of which share the cores.

    Threads of several jobs are set through OMP_NUM_THREADS, unless the user has set it.
    """
    added = {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        added["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return partial(child, alone=jobs == 1, added=added)


@contextmanager
def _passed_on(running: Mapping[int, _Running]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the runs, so that they save and end, then to who listened."""
    before: dict[int, Any] = {}

    def forward(number: int, frame: FrameType | None) -> None:
        for one in list(running.values()):
            one.child.send_signal(number)
        if callable(before[number]):
            before[number](number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
