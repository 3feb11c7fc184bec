"""Many runs, each in a process of its own, some at once.

A process a run keeps peak memory honest and lets the grid go on when one run is killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from bench.checkpoint import Stopped
from bench.child import child
from bench.hooks import Hooks
from bench.record import RunRecord, load_record
from bench.types import BenchError, Refused

if TYPE_CHECKING:
    from bench.run import Run

STOPPED = (130, 143)
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid. name: in words; arguments: of the command line, from "run" on."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a cell: a record and its folder, or what went wrong, or why it cannot be."""

    cell: Cell
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


@dataclass(frozen=True, kw_only=True)
class _Running:
    cell: Cell
    folder: Path
    child: Child


def run_grid(
    cells: Sequence[Cell],
    *,
    prepare: Callable[[Cell], Run],
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda text: None,
    start: Callable[[Sequence[str]], Child] | None = None,
    jobs: int = 1,
) -> list[Outcome]:
    """Run every cell that has no valid record yet; a cell that fails does not stop the others.

    prepare: makes the cell's Run without starting it, so that finished ones are found and wrong names
    fail at once. start: starts the command line's arguments (default: a new process, with its share
    of the cores). jobs: how many run at once. Raises Stopped where somebody asked to stop, after the
    running ones have saved their work.
    """
    grid = _Grid(cells, prepare=prepare, start=start or starter(jobs), say=say)
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
    return [grid.outcomes[number] for number in range(len(cells))]


class _Grid:
    """Cells that wait, run and have ended, by their place."""

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        prepare: Callable[[Cell], Run],
        start: Callable[[Sequence[str]], Child],
        say: Callable[[str], None],
    ) -> None:
        self.prepare, self.start, self.say = prepare, start, say
        self.waiting = list(enumerate(cells))
        self.running: dict[int, _Running] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.total = len(cells)

    def begin(self) -> None:
        """Start the next cell, unless it has a record or cannot be."""
        number, cell = self.waiting.pop(0)
        try:
            run = self.prepare(cell)
            record, folder = run.finished(), run.folder
            del run  # its memory is the child's to use
        except Refused as reason:
            self._ended(number, Outcome(cell=cell, refused=str(reason)))
            return
        except (BenchError, OSError) as error:
            self._ended(number, Outcome(cell=cell, error=str(error)))
            return
        if record is not None:
            self._ended(number, Outcome(cell=cell, record=record, folder=folder))
            return
        self.running[number] = _Running(cell=cell, folder=folder, child=self.start(cell.arguments))

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
        self.say(f"[{len(self.outcomes)}/{self.total}] {outcome.cell.name}: {state}")


def _outcome(running: _Running, code: int) -> Outcome:
    if code:
        words = running.child.last_words()
        return Outcome(cell=running.cell, error=f"failed with exit code {code}, {words}")
    try:
        return Outcome(cell=running.cell, record=load_record(running.folder), folder=running.folder)
    except (BenchError, OSError) as error:
        return Outcome(cell=running.cell, error=str(error))


def starter(jobs: int) -> Callable[[Sequence[str]], Child]:
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
