"""Many runs in a row, each in a process of its own.

A process a run keeps peak memory honest and lets the grid go on when one run is killed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bench.checkpoint import Stopped
from bench.record import RunRecord, load_record
from bench.run import Hooks, Run
from bench.types import BenchError, Refused

STOPPED = (130, 143)


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


def run_grid(
    cells: Sequence[Cell],
    *,
    prepare: Callable[[Cell], Run],
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda text: None,
    start: Callable[[Sequence[str]], int] | None = None,
) -> list[Outcome]:
    """Run every cell that has no valid record yet; a cell that fails does not stop the others.

    prepare: makes the cell's Run without starting it, so that finished ones are found and wrong names
    fail at once. start: runs the command line's arguments and returns an exit code (default: a new
    process). Raises Stopped where somebody asked to stop.
    """
    outcomes = []
    for number, cell in enumerate(cells, start=1):
        outcome = _one(cell, prepare=prepare, start=start or spawn)
        state = outcome.error or outcome.refused or "done"
        say(f"[{number}/{len(cells)}] {cell.name}: {state}")
        outcomes.append(outcome)
        code = (hooks or Hooks()).stop()
        if code is not None:
            raise Stopped(code)
    return outcomes


def _one(
    cell: Cell, *, prepare: Callable[[Cell], Run], start: Callable[[Sequence[str]], int]
) -> Outcome:
    try:
        run = prepare(cell)
        record, folder = run.finished(), run.folder
        del run  # its memory is the child's to use
        if record is None:
            code = start(cell.arguments)
            if code in STOPPED:
                raise Stopped(code)
            if code:
                return Outcome(cell=cell, error=f"failed with exit code {code}, see above")
            record = load_record(folder)
    except Refused as reason:
        return Outcome(cell=cell, refused=str(reason))
    except (BenchError, OSError) as error:
        return Outcome(cell=cell, error=str(error))
    return Outcome(cell=cell, record=record, folder=folder)


def spawn(arguments: Sequence[str]) -> int:
    """Run `bench` with arguments in a new process and return its exit code.

    Its messages go to standard error, its table nowhere. SIGINT and SIGTERM are passed on once, so
    that it saves and ends.
    """
    command = [sys.executable, "-m", "cli", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    with _passed_on(child):
        return child.wait()


@contextmanager
def _passed_on(child: subprocess.Popen[Any]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
