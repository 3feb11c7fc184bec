"""What the command line shows while work goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bench.processes import speaks
from bench.terminal import visible
from bench.types import Hooks

_QUIET_SECONDS = 15.0


class ConsoleHooks(Hooks):
    """Progress on standard error, and a flag that SIGTERM and Ctrl-C raise.

    On a terminal: a rich bar with rate and time left. Elsewhere: a plain line when a stage begins,
    every 15 seconds and when it ends.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        self._name, self._begun, self._said = "", 0.0, 0.0
        self._before = -1
        self._bar: Any = None
        self._bar_task: Any = None

    def stop(self) -> int | None:
        """Return 143 after SIGTERM, 130 after Ctrl-C, else None."""
        return self._code

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C interrupts at once."""
        if self._code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._code = 128 + number
        self._say("stopping: finishing this step and saving (Ctrl-C again to stop at once)")

    def stage(self, name: str, total: int) -> None:
        """Announce a stage."""
        self.close()
        self._name, self._begun, self._said = name, time.monotonic(), time.monotonic()
        self._before = -1
        if sys.stderr.isatty() and total > 1:
            self._bar = _bar()
            self._bar.start()
            self._bar_task = self._bar.add_task(visible(name), total=total, note="")
        else:
            self._say(name)

    def tick(self, done: int, total: int, note: str = "") -> None:
        """Move the bar, or say a line if the last one is old or the stage is over."""
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=done, note=note)
            return
        now = time.monotonic()
        if self._before < 0:  # resumed work does not count into the rate
            self._before, self._begun = done, now
        if now - self._said >= _QUIET_SECONDS or done == total:
            self._said = now
            self._say(f"{self._name}: {done}/{total}{self._pace(done, total, now)} {note}".rstrip())

    def _pace(self, done: int, total: int, now: float) -> str:
        """Say how fast it goes and how long it will; nothing where the first piece is just done."""
        if done <= self._before or now <= self._begun:
            return ""
        rate = (done - self._before) / (now - self._begun)
        return f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Say a line, below the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(visible(text), highlight=False, markup=False)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        if not speaks():
            return
        sys.stderr.write(visible(text) + "\n")
        sys.stderr.flush()


def _bar(*, terminal: Any = None) -> Any:
    """Return a progress display on `terminal` (a rich Console; by default standard error)."""
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        """Steps a second; rich knows none before the second update."""

        def render(self, task: progress.Task) -> Text:
            return Text("-/s" if task.speed is None else f"{task.speed:.1f}/s")

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
    )
    return progress.Progress(*columns, console=terminal or Console(stderr=True))


@contextmanager
def console_hooks() -> Iterator[ConsoleHooks]:
    """Give hooks that listen to SIGINT and SIGTERM while the block runs."""
    hooks = ConsoleHooks()
    before = {s: signal.signal(s, hooks.ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield hooks
    finally:
        hooks.close()
        for number, handler in before.items():
            signal.signal(number, handler)
