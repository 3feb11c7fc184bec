"""What a terminal sees: text that can neither steer nor break it, and progress, a bar or plain lines."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from bench.types import Hooks

_QUIET_SECONDS = 15.0
_RARE = re.compile(r"[^\x20-\x7e\n\t]")


def say(text: object) -> None:
    """Print a text and a newline, made `visible`."""
    typer.echo(visible(str(text)))


def aside(text: str) -> None:
    """Say something beside the output proper, on standard error."""
    typer.echo(visible(text), err=True)


def to_json(value: Any) -> str:
    """Return a value as JSON in ASCII, which every terminal shows and none obeys."""
    return json.dumps(value, indent=1)


def visible(text: str) -> str:
    r"""Return the text with control characters, and whatever else has no shape, written out as `\x1b`."""

    def shown(found: re.Match[str]) -> str:
        has_shape = found[0].isprintable() or unicodedata.category(found[0]) == "Zs"
        return found[0] if has_shape else found[0].encode("unicode_escape").decode()

    return _RARE.sub(shown, text)


def substitute_what_it_lacks() -> None:
    """Let this program's output print a substitute for characters that its encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class ConsoleHooks(Hooks):
    """Progress on standard error, and a flag that SIGTERM and Ctrl-C raise.

    On a terminal: a rich bar with rate and time left. Elsewhere: a plain line when a stage begins,
    every 15 seconds and when it ends.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        self._name, self._start, self._last_line = "", 0.0, 0.0
        self._before = -1  # steps that were done when this start of the program came to the stage
        self._bar: Any = None

    def stop(self) -> int | None:
        """Return 143 after SIGTERM, 130 after Ctrl-C, else None."""
        return self._code

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C interrupts at once."""
        if self._code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._code = 128 + number
        self.say("stopping: finishing this step and saving (Ctrl-C again to stop at once)")

    def stage(self, name: str, total: int) -> None:
        """Announce a stage."""
        self.close()
        self._name, self._before = name, -1
        self._start = self._last_line = time.monotonic()
        if sys.stderr.isatty() and total > 1:
            self._bar = make_bar()
            self._bar.start()
            self._bar.add_task(visible(name), total=total, note="")
        else:
            self.say(name)

    def tick(self, done: int, total: int, note: str = "") -> None:
        """Move the bar, or say a line if the last one is old or the stage is over."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, note=note)
            return
        now = time.monotonic()
        if self._before < 0:  # resumed work does not count into the rate
            self._before, self._start = done, now
        if now - self._last_line >= _QUIET_SECONDS or done == total:
            self._last_line, pace = now, ""
            if done > self._before and now > self._start:
                rate = (done - self._before) / (now - self._start)
                pace = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"
            self.say(f"{self._name}: {done}/{total}{pace} {note}".rstrip())

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
            from bench.training.engine import speaks  # brings numpy, which help does not need

            if speaks():
                aside(text)


def make_bar(terminal: Any = None) -> Any:
    """Return a progress display on `terminal` (a rich Console; by default standard error)."""
    from rich import progress
    from rich.console import Console

    class Rate(progress.ProgressColumn):
        """Steps a second; rich knows none before the second update."""

        def render(self, task: progress.Task) -> str:
            return "-/s" if task.speed is None else f"{task.speed:.1f}/s"

    name, note = (
        progress.TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}")
    )
    counts = progress.BarColumn(), progress.MofNCompleteColumn(), Rate(), progress.TimeRemainingColumn()
    return progress.Progress(name, *counts, note, console=terminal or Console(stderr=True))


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
