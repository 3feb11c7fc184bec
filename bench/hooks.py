"""How long work tells of its progress and learns that it should stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.training.checkpoint import Stopped

_TRY_SECONDS = 1.0


class Hooks:
    """How a run tells of its progress and learns that it should stop; does nothing by itself."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def tick(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are finished."""

    def stop(self) -> int | None:
        """Return an exit code once somebody asked to stop."""
        return None

    def say(self, text: str) -> None:
        """Something is worth a line."""


class Quiet(Hooks):
    """The hooks of a process that is not the main one: silent, but told to stop as all are."""

    def __init__(self, hooks: Hooks) -> None:
        self.stop = hooks.stop  # type: ignore[method-assign]


def patient(say: Callable[[str], None], stop: Callable[[], int | None]) -> Callable[[str], None]:
    """Return what waits for a bench.content.Lock: says once who holds it, raises Stopped when asked."""
    said: list[str] = []

    def wait(held: str) -> None:
        if not said:
            said.append(held)
            say(f"waiting: {held}")
        code = stop()
        if code is not None:
            raise Stopped(code)
        time.sleep(_TRY_SECONDS)

    return wait
